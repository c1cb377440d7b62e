//! Compiles the C++ border in `csrc/` and links it whole.
//!
//! The border registers its operators from a static initialiser that nothing else refers to:
//! a linker that picks objects by need would drop it, so the archive is linked whole.

use std::{env, path::PathBuf};

const SOURCES: [&str; 8] = [
    "csrc/helper.cpp",
    "csrc/lanes.cpp",
    "csrc/load_ops.cpp",
    "csrc/ops.cpp",
    "csrc/save_ops.cpp",
    "csrc/state_dict.cpp",
    "csrc/targets.cpp",
    "csrc/tensor.cpp",
];
const HEADERS: [&str; 9] = [
    "csrc/error.h",
    "csrc/helper.h",
    "csrc/lanes.h",
    "csrc/ops.h",
    "csrc/saving.h",
    "csrc/state_dict.h",
    "csrc/targets.h",
    "csrc/tensor.h",
    "csrc/wanted.h",
];

fn main() {
    for file in SOURCES.iter().chain(&HEADERS) {
        println!("cargo:rerun-if-changed={file}");
    }
    let libtorch = PathBuf::from(
        env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names the directory of libtorch"),
    );
    let include = match env::var_os("LIBTORCH_INCLUDE") {
        Some(prefix) => PathBuf::from(prefix).join("include"),
        None => libtorch.parent().expect("libtorch lies in <torch>/lib").join("include"),
    };
    cxx_build::bridge("src/ffi.rs")
        .files(SOURCES)
        .std("c++20")
        .flag("-isystem")
        .flag(&include)
        .flag("-Wall")
        .flag("-Wextra")
        // GCC 12 sees a write past the end in torch's reference counts, where there is none.
        .flag("-Wno-stringop-overflow")
        .link_lib_modifier("+whole-archive")
        .compile("veturboio_border");

    // Installed in site-packages/veturboio/, the library finds torch beside its own folder.
    // Test programs and examples take LD_LIBRARY_PATH, as with every crate that uses tch.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-rpath,$ORIGIN/../torch/lib");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libveturboio.so");
}
