//! The Rust API: what is saved is loaded, and what cannot be is refused by name.

use std::{collections::HashMap, fs};
use tch::{Device, Kind, Tensor};
use veturboio::{LoadOptions, SaveOptions, Way};

fn cpu(kind: Kind) -> (Kind, Device) {
    (kind, Device::Cpu)
}

#[test]
fn what_is_saved_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let saved: HashMap<String, Tensor> = HashMap::from([
        ("plain".to_owned(), Tensor::randn([5, 7], cpu(Kind::Float))),
        ("scalar".to_owned(), Tensor::from(2.5f64)),
        ("empty".to_owned(), Tensor::zeros([0, 3], cpu(Kind::Half))),
        ("turned".to_owned(), Tensor::randn([64, 33], cpu(Kind::Double)).transpose(0, 1)),
        ("brain".to_owned(), Tensor::randn([9], cpu(Kind::BFloat16))),
    ]);
    veturboio::save(&saved, &path).unwrap();
    let loaded = LoadOptions::new().num_thread(3).load(&path).unwrap();
    assert_eq!(loaded.len(), saved.len());
    for (name, tensor) in &saved {
        let same = &loaded[name];
        assert_eq!((same.size(), same.kind()), (tensor.size(), tensor.kind()), "{name}");
        assert!(same.equal(tensor), "{name}");
    }
}

#[test]
fn numbers_of_floating_point_are_converted_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    // More than passes through one segment.
    let weight = Tensor::randn([5_000, 1_001], cpu(Kind::Float));
    let ids = Tensor::arange(1_000, cpu(Kind::Int64));
    veturboio::save([("weight", &weight), ("ids", &ids)], &path).unwrap();
    for (way, kind) in [(Way::Map, Kind::BFloat16), (Way::Direct, Kind::Double)] {
        let loaded = LoadOptions::new().way(way).dtype(kind).load(&path).unwrap();
        assert_eq!(loaded["weight"].kind(), kind);
        assert!(loaded["weight"].equal(&weight.to_kind(kind)));
        assert!(loaded["ids"].equal(&ids));
    }
    let refused = LoadOptions::new().dtype(Kind::Int).load(&path).unwrap_err();
    assert_eq!(refused.kind(), veturboio::Kind::InvalidArgument);
    assert!(refused.to_string().ends_with("dtype must be one of floating point"), "{refused}");
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    veturboio::save([("weight", Tensor::ones([3], cpu(Kind::Float)))], &path).unwrap();
    let refused = LoadOptions::new().map_location(Device::Cuda(99)).load(&path).unwrap_err();
    assert_eq!(refused.kind(), veturboio::Kind::Device);
    assert!(refused.to_string().contains("there is no device cuda:99"), "{refused}");
}

#[test]
fn a_tensor_outlives_the_others_and_writing_to_it_leaves_the_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let tensors = [("a", Tensor::ones([100_000], cpu(Kind::Float))), ("b", Tensor::from(1i64))];
    veturboio::save(tensors, &path).unwrap();
    let before = fs::read(&path).unwrap();
    let mut a = veturboio::load(&path).unwrap().remove("a").unwrap();
    let _ = a.f_add_scalar_(1).unwrap();
    assert_eq!(a.sum(Kind::Int64).int64_value(&[]), 200_000);
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn large_tensors_that_are_not_contiguous_are_cut_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    // 29 MB of three dimensions in the wrong order: cuts fall into rows of rows.
    let large =
        Tensor::arange(1203 * 301 * 20, cpu(Kind::Float)).view([1203, 301, 20]).permute([2, 0, 1]);
    let long = Tensor::arange(3_000_001, cpu(Kind::Int64))
        .view([1, 3_000_001])
        .transpose(0, 1)
        .slice(0, 0, None, 3);
    let spread = Tensor::from_slice(&[1u8, 2, 3]).view([3, 1]).expand([3, 9_000_000], false);
    veturboio::save([("large", &large), ("long", &long), ("spread", &spread)], &path).unwrap();
    let loaded = veturboio::load(&path).unwrap();
    assert!(loaded["large"].equal(&large));
    assert!(loaded["long"].equal(&long));
    assert!(loaded["spread"].equal(&spread));
}

#[test]
fn tied_tensors_are_refused_stored_once_or_stored_in_full() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let tensor = Tensor::randn([1000], cpu(Kind::Float));
    let tied = || [("head", tensor.shallow_clone()), ("embed", tensor.shallow_clone())];
    let refused = veturboio::save(tied(), &path).unwrap_err();
    assert_eq!(refused.kind(), veturboio::Kind::InvalidArgument);
    assert!(refused.to_string().contains(r#"tensors "embed", "head" share memory"#), "{refused}");
    assert!(!path.exists());

    SaveOptions::new().force_save_shared_tensor(true).save(tied(), &path).unwrap();
    assert!(fs::metadata(&path).unwrap().len() < 5000);
    let loaded = veturboio::load(&path).unwrap();
    assert_eq!(loaded["head"].data_ptr(), loaded["embed"].data_ptr());
    let header = veturboio::read_header(&path).unwrap();
    assert_eq!(header.tensors()[0].name(), "head", "the first is kept");
    assert_eq!(header.metadata()["format"], "pt");
    let stored = veturboio::LoadOptions::new().restore_aliases(false).load(&path).unwrap();
    assert_eq!(stored.keys().collect::<Vec<_>>(), ["head"]);

    let clone = SaveOptions::new().force_clone_shared_tensor(true);
    let refused = clone.save(tied(), &path).unwrap_err();
    assert_eq!(refused.kind(), veturboio::Kind::InvalidArgument);
    clone.force_save_shared_tensor(true).save(tied(), &path).unwrap();
    assert!(fs::metadata(&path).unwrap().len() > 8000);
    let loaded = veturboio::load(&path).unwrap();
    assert_ne!(loaded["head"].data_ptr(), loaded["embed"].data_ptr());
    assert!(loaded["head"].equal(&tensor) && loaded["embed"].equal(&tensor));
}

#[test]
fn what_cannot_be_saved_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let refused = |tensors: &[(&str, &Tensor)]| {
        let error = veturboio::save(tensors.iter().copied(), &path).unwrap_err();
        assert!(!path.exists());
        error.to_string()
    };
    let one = Tensor::from(1f32);
    let wide = Tensor::zeros([2], cpu(Kind::ComplexDouble));
    assert!(refused(&[("z", &wide)])
        .contains(r#"tensor "z": dtype ComplexDouble has no safetensors name"#));
    assert!(refused(&[("__metadata__", &one)]).contains("reserved for metadata"));
    assert!(refused(&[("a", &one), ("a", &Tensor::from(2f32))])
        .contains(r#"tensor "a": name stands twice"#));
    let sparse = Tensor::zeros([2, 2], cpu(Kind::Float)).to_sparse(None, None::<i64>, None);
    assert!(refused(&[("s", &sparse)]).contains(r#"tensor "s": layout"#));
}

#[test]
fn errors_are_of_their_kind() {
    let missing = veturboio::load("/nowhere/model.safetensors").unwrap_err();
    assert_eq!(missing.to_string(), "open /nowhere/model.safetensors: No such file or directory");
    assert_eq!(missing.errno(), Some(libc::ENOENT));
    let unwritable =
        veturboio::save([("a", Tensor::from(1f32))], "/nowhere/model.safetensors").unwrap_err();
    assert_eq!(
        unwritable.to_string(),
        "save /nowhere/model.safetensors: No such file or directory"
    );
    let none = LoadOptions::new().num_thread(0).load("/nowhere").unwrap_err();
    assert_eq!(none.to_string(), "load /nowhere: num_thread must be at least 1");
}

#[test]
fn every_way_brings_the_same_and_says_why_it_was_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let weight = Tensor::randn([1000, 300], cpu(Kind::Float));
    veturboio::save([("weight", &weight), ("bias", &weight.get(0).copy())], &path).unwrap();
    for way in [Way::Map, Way::Read, Way::Direct, Way::Uring] {
        let options = LoadOptions::new().way(way);
        assert!(options.load(&path).unwrap()["weight"].equal(&weight), "{way:?}");
        let reason = options.explain(&path).unwrap();
        assert!(reason.contains(&format!("{} was asked for", way.name())), "{reason}");
    }
    let part = LoadOptions::new().names(["weight"]).slice("weight", 0, 5..10);
    let loaded = part.load(&path).unwrap();
    assert_eq!(loaded.len(), 1);
    assert!(loaded["weight"].equal(&weight.narrow(0, 5, 5)));
    let refused = LoadOptions::new().slice("bias", 1, 0..1).load(&path).unwrap_err();
    assert_eq!(
        (refused.kind(), refused.tensor()),
        (veturboio::Kind::InvalidArgument, Some("bias"))
    );
}

/// A file of PyTorch's old format: a tensor `w` of two floats, and a fraction, whose class is unknown.
fn with_a_fraction() -> Vec<u8> {
    let parts: [&[u8]; 6] = [
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
        b"\x80\x02}X\x0d\0\0\0little_endian\x88s.",
        b"\x80\x02}(X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage\
          ctorch\nFloatStorage\nX\x01\0\0\0kX\x03\0\0\0cpuK\x02NtQK\0K\x02\x85K\x01\x85\x89}tR",
        b"X\x01\0\0\0xcfractions\nFraction\nK\x01K\x02\x86Ru.",
        b"\x80\x02]X\x01\0\0\0ka.",
        b"\x02\0\0\0\0\0\0\0\0\0\x80?\0\0\0@",
    ];
    parts.concat()
}

#[test]
fn what_is_of_an_unknown_class_is_left_out_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    fs::write(&path, with_a_fraction()).unwrap();
    let refused = veturboio::load(&path).unwrap_err();
    assert!(refused.to_string().contains("fractions.Fraction"), "{refused}");
    let options = LoadOptions::new().skip_unknown(true);
    let loaded = options.load(&path).unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(Vec::<f32>::try_from(&loaded["w"]).unwrap(), [1.0, 2.0]);
    assert!(options.explain(&path).unwrap().contains("8 bytes"));
}
