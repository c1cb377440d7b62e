//! The header against the reference implementation, and loads against a naive twin.
//!
//! Files are made up from a grammar that goes wrong on purpose, then damaged: what the reference
//! (the `safetensors` crate) accepts must be accepted with the same tensors, and what it
//! refuses must be refused. The one wanted difference is a name that stands twice.

use proptest::{collection::vec, option, prelude::*, sample};
use safetensors::SafeTensors;
use std::{collections::BTreeMap, fs};
use veturboio::format::{
    dtype::Dtype,
    encode::{encode, Entry},
    safetensors::Header,
};

/// Name, dtype, shape and offsets: what both readers must agree on.
type Described = (String, String, Vec<u64>, (u64, u64));

fn ours(file: &[u8]) -> Result<Vec<Described>, String> {
    let len = file.len() as u64;
    let json_len = Header::json_len(file, len).map_err(|refused| refused.to_string())?;
    let json = &file[8..8 + json_len as usize];
    let header = Header::parse(json, len).map_err(|refused| refused.to_string())?;
    let described = header.tensors().iter().map(|tensor| {
        let bytes = tensor.bytes();
        let shape = tensor.shape().to_vec();
        (
            tensor.name().to_owned(),
            tensor.dtype().name().to_owned(),
            shape,
            (bytes.start, bytes.end),
        )
    });
    let mut described: Vec<Described> = described.collect();
    described.sort();
    Ok(described)
}

fn theirs(file: &[u8]) -> Result<Vec<Described>, String> {
    let (_, metadata) = SafeTensors::read_metadata(file).map_err(|refused| refused.to_string())?;
    let described = metadata.tensors().into_iter().map(|(name, info)| {
        let shape = info.shape.iter().map(|&size| size as u64).collect();
        let (begin, end) = info.data_offsets;
        (name, info.dtype.to_string(), shape, (begin as u64, end as u64))
    });
    let mut described: Vec<Described> = described.collect();
    described.sort();
    Ok(described)
}

fn assert_agreement(file: &[u8]) {
    let (ours, theirs) = (ours(file), theirs(file));
    match (&ours, &theirs) {
        (Ok(a), Ok(b)) => assert_eq!(a, b),
        (Err(_), Err(_)) => {}
        (Err(refused), Ok(_)) if refused.contains("name stands twice") => {}
        _ => {
            panic!("ours: {ours:?}\ntheirs: {theirs:?}\nfile: {:?}", String::from_utf8_lossy(file))
        }
    }
}

fn file(json: &str, data_len: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(bytes.len() + data_len, 7);
    bytes
}

fn dtype() -> impl Strategy<Value = Dtype> {
    sample::select(Dtype::all().collect::<Vec<_>>())
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-c]{1,2}",
        1 => ".{0,6}",
        1 => Just("__metadata__".to_owned()),
        1 => Just("dtype".to_owned()),
    ]
}

/// A tensor's entry as JSON, and the bytes it takes, mostly right.
fn entry(begin: usize) -> impl Strategy<Value = (String, usize)> {
    (dtype(), vec(0u64..4, 0..4), 0..40u8).prop_map(move |(dtype, shape, fault)| {
        let bits = shape.iter().product::<u64>() * dtype.bits();
        let len = (bits / 8) as usize;
        let end = begin + len;
        let (name, shape) = (dtype.name(), format!("{shape:?}"));
        let text = match fault {
            0 => format!(r#"{{"dtype":"{name}","shape":{shape}}}"#),
            1 => format!(r#"["{name}",{shape},[{begin},{end}]]"#),
            2 => format!(r#"["{name}",{shape},[{begin},{end}],null]"#),
            3 => format!(r#"{{"dtype":{{"{name}":null}},"shape":{shape},"data_offsets":[{begin},{end}]}}"#),
            4 => format!(r#"{{"dtype":{{"{name}":{{}}}},"shape":{shape},"data_offsets":[{begin},{end}]}}"#),
            5 => format!(r#"{{"dtype":{{"{name}":1}},"shape":{shape},"data_offsets":[{begin},{end}]}}"#),
            6 => format!(r#"{{"dtype":"F99","shape":{shape},"data_offsets":[{begin},{end}]}}"#),
            7 => format!(r#"{{"dtype":"{name}","shape":{shape},"data_offsets":[{begin},{end}],"x":1e999}}"#),
            8 => format!(r#"{{"dtype":"{name}","shape":{shape},"data_offsets":[{begin},{end}],"x":{{"y":[1.5]}}}}"#),
            9 => format!(r#"{{"x":"\ud800","dtype":"{name}","shape":{shape},"data_offsets":[{begin},{end}]}}"#),
            10 => format!(r#"{{"dtype":"{name}","shape":{shape},"data_offsets":[{begin},{end}.0]}}"#),
            11 => format!(r#"{{"dtype":"{name}","shape":{shape},"data_offsets":[{begin},{end},{end}]}}"#),
            12 => format!(r#"{{"dtype":"{name}","shape":{shape},"data_offsets":[-0,{end}]}}"#),
            13 => format!(r#"{{"dtype":"{name}","shape":{shape},"data_offsets":["0",{end}]}}"#),
            14 => format!(r#"{{"dtype":"{name}","shape":[{}],"data_offsets":[{begin},{end}]}}"#, u64::MAX),
            15 => format!(r#"{{"dtype":"{name}","shape":[4294967296,4294967296,0],"data_offsets":[{begin},{end}]}}"#),
            16 => format!(r#"{{"dtype":"{name}","shape":{shape},"data_offsets":[{},{end}]}}"#, begin + 1),
            17 => format!(r#"{{"dtype":"{name}","shape":{shape},"data_offsets":[{end},{begin}]}}"#),
            18 => format!(r#"{{"dtype":"{name}","dtype":"{name}","shape":{shape},"data_offsets":[{begin},{end}]}}"#),
            19 => "null".to_owned(),
            _ => format!(r#"{{"dtype":"{name}","shape":{shape},"data_offsets":[{begin},{end}]}}"#),
        };
        (text, len)
    })
}

fn metadata() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just(r#"{"format":"pt"}"#.to_owned()),
        1 => sample::select(vec!["null", "{}", "[]", r#"{"a":1}"#, r#"{"a":null}"#, r#"{"a":"b","a":"c"}"#, "1"])
            .prop_map(str::to_owned),
    ]
}

/// A whole header: entries that follow on from one another, in any order, and the data's length.
fn header() -> impl Strategy<Value = (String, usize)> {
    let entries = vec((name(), any::<prop::sample::Index>()), 0..5).prop_flat_map(|names| {
        let mut strategy: BoxedStrategy<(Vec<String>, usize)> = Just((vec![], 0)).boxed();
        for (name, _) in names {
            strategy = strategy
                .prop_flat_map(move |(entries, begin)| {
                    let name = serde_json::to_string(&name).unwrap();
                    entry(begin).prop_map(move |(text, len)| {
                        let mut entries = entries.clone();
                        entries.push(format!("{name}:{text}"));
                        (entries, begin + len)
                    })
                })
                .boxed();
        }
        strategy
    });
    let shuffled =
        entries.prop_flat_map(|(entries, len)| (Just(entries).prop_shuffle(), Just(len)));
    let space = sample::select(vec!["", "", "", " ", "\n\t ", "\u{feff}", "\0", "x"]);
    (shuffled, option::of(metadata()), space.clone(), space).prop_map(
        |((mut entries, len), metadata, before, after)| {
            entries.extend(metadata.map(|text| format!(r#""__metadata__":{text}"#)));
            (format!("{before}{{{}}}{after}", entries.join(",")), len)
        },
    )
}

proptest! {
    #![proptest_config(cases(4000))]

    #[test]
    fn made_up_headers_are_judged_as_the_reference_judges_them((json, len) in header()) {
        assert_agreement(&file(&json, len));
    }

    #[test]
    fn damaged_files_are_judged_as_the_reference_judges_them(
        (json, len) in header(),
        position in any::<sample::Index>(),
        byte in prop_oneof![any::<u8>(), sample::select(b"[]{},:\"0123456789-.eE\\ ".to_vec())],
        cut in option::of(any::<sample::Index>()),
    ) {
        let mut bytes = file(&json, len);
        let position = position.index(bytes.len());
        bytes[position] = byte;
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        assert_agreement(&bytes);
    }

    #[test]
    fn headers_are_encoded_byte_for_byte_as_the_reference_does(
        tensors in prop::collection::btree_map(".{0,8}", (dtype(), vec(0u64..4, 0..4)), 0..6),
        entry_of_metadata in option::of((".{0,4}", ".{0,4}")),
    ) {
        let whole = |dtype: Dtype, shape: &[u64]| (shape.iter().product::<u64>() * dtype.bits()).is_multiple_of(8);
        let tensors: Vec<_> = tensors
            .into_iter()
            .filter(|(name, (dtype, shape))| name != "__metadata__" && whole(*dtype, shape))
            .collect();
        let entries: Vec<_> = tensors
            .iter()
            .map(|(name, (dtype, shape))| Entry { name, dtype: *dtype, shape: shape.clone() })
            .collect();
        let metadata: BTreeMap<_, _> = entry_of_metadata.into_iter().collect();
        let encoded = encode(&entries, &metadata).unwrap();

        let zeros = vec![0; 64 * 8];
        let views = tensors.iter().map(|(name, (dtype, shape))| {
            let dtype: safetensors::Dtype = serde_json::from_value(dtype.name().into()).unwrap();
            let shape: Vec<usize> = shape.iter().map(|&size| size as usize).collect();
            let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            (name, safetensors::tensor::TensorView::new(dtype, shape, &zeros[..len]).unwrap())
        });
        let given = (!metadata.is_empty()).then(|| metadata.clone().into_iter().collect());
        let reference = safetensors::serialize(views, given).unwrap();
        let data_len = encoded.layout.last().map_or(0, |&(_, _, end)| end) as usize;
        prop_assert_eq!(&encoded.bytes[..], &reference[..reference.len() - data_len]);
    }
}

proptest! {
    // Each case writes a file.
    #![proptest_config(cases(300))]

    #[test]
    fn loads_are_what_a_naive_reader_slices_out((json, len) in header(), seed in any::<u8>()) {
        let mut bytes = file(&json, 0);
        bytes.extend((0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)));
        let path = tempfile::NamedTempFile::new().unwrap();
        fs::write(path.path(), &bytes).unwrap();
        if let Ok(loaded) = veturboio::load(path.path()) {
            let described = theirs(&bytes).unwrap();
            prop_assert_eq!(loaded.len(), described.len());
            let data = &bytes[8 + json.len()..];
            for (name, _, _, (begin, end)) in described {
                let tensor = &loaded[&name];
                let got = if tensor.numel() == 0 { Vec::new() } else { raw(tensor) };
                prop_assert_eq!(&got, &data[begin as usize..end as usize], "{}", name);
            }
        }
    }
}

/// The bytes of a contiguous tensor.
fn raw(tensor: &tch::Tensor) -> Vec<u8> {
    let flat = tensor.flatten(0, -1); // torch views as bytes only what has a dimension
    let bytes: Vec<i64> = flat.f_view_dtype(tch::Kind::Uint8).unwrap().try_into().unwrap();
    bytes.into_iter().map(|byte| byte as u8).collect()
}

fn cases(cases: u32) -> ProptestConfig {
    // A failure prints its input; a file of seeds beside the test would only hide in a diff.
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}
