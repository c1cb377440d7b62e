//! What a reader does is a small multiple of what it is given, whatever that is.

use super::{
    pickle,
    pytorch::Checkpoint,
    rebuild,
    steps::Steps,
    value::{Pickle, Value},
    Refusal,
};

/// As the fuzz target has it.
const STEPS_A_BYTE: u64 = 64;
const FREE_STEPS: u64 = 8 << 20;

/// Reads a pickle in every way there is; returns the steps, and what was said.
fn work(program: &[u8], skip_unknown: bool) -> (u64, Result<Vec<u8>, Refusal>) {
    let steps = Steps::new(&|| false);
    let read = || {
        let (machined, _) = pickle::read(program, &steps)?;
        let pickle = machined.of(program.to_vec());
        rebuild::storages(&pickle, &steps)?;
        let checkpoint = Checkpoint::new(pickle, skip_unknown, &steps)?;
        let _ = checkpoint.names(&steps);
        checkpoint.to_pickle(&steps)
    };
    let said = read();
    (steps.done(), said)
}

fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// A list of what `each` makes, `times` times over, after `first`.
fn again(first: &[u8], each: &[u8], times: usize) -> Vec<u8> {
    [&b"\x80\x02"[..], first, b"](", &each.repeat(times), b"e."].concat()
}

#[test]
fn steps_are_bounded_by_the_length() {
    let storage = |key: &[u8]| {
        let (tag, cpu) = (text("storage"), text("cpu"));
        [b"(", &tag[..], b"ctorch\nFloatStorage\n", key, &cpu, b"K\x04tQ"].concat()
    };
    let many = [&b"("[..], &b"N".repeat(100_000), b"tq\x000"].concat();
    let listed = [&b"]("[..], &b"N".repeat(100_000), b"eq\x000"].concat();
    let name = [&text(&"n".repeat(200_000))[..], b"q\x000"].concat();
    let doubled = [&b"]q\x00"[..], &b"(h\x00h\x00h\x00h\x00lq\x00".repeat(10_000), b"0"].concat();
    let keys = [&b"("[..], &b"K\x01".repeat(900), b"tq\x000"].concat();
    let unknown = b"cnobody\nNothing\n0";
    for (what, program) in [
        ("ids that are none", again(&[&unknown[..], &many].concat(), b"h\x00Q", 50_000)),
        ("sets of a list", again(&listed, b"cbuiltins\nset\nh\x00\x85R", 5_000)),
        ("arguments", again(&many, b"cbuiltins\nset\nh\x00R", 50_000)),
        ("dicts of pairs", again(&many, b"ccollections\nOrderedDict\n(h\x00lh\x00\x85R", 5_000)),
        ("keys of storages", again(&name, &storage(b"h\x00"), 5_000)),
        ("names from the stack", again(&name, b"h\x00h\x00\x93", 50_000)),
        ("keys of dicts", again(&keys, b"}h\x00Ns", 50_000)),
        ("long strings", again(&name, b"h\x00", 200_000)),
        ("doubled lists", again(&doubled, b"h\x00", 1_000)),
        ("stand-ins", again(&many, b"cnobody\nNothing\nh\x00R", 50_000)),
        ("states", again(&listed, b"cnobody\nNothing\n)Rh\x00b", 50_000)),
        ("sizes", again(&many, b"ctorch\nSize\nh\x00\x85R", 5_000)),
    ] {
        for skip_unknown in [false, true] {
            let (steps, said) = work(&program, skip_unknown);
            let len = program.len() as u64;
            assert!(steps <= FREE_STEPS + STEPS_A_BYTE * len, "{what}: {steps} for {len} bytes");
            if let Ok(written) = said {
                assert!(written.len() <= 64 + 32 * program.len(), "{what}: {}", written.len());
            }
        }
    }
}

/// The values as Python would write them, far enough to compare.
fn shown(pickle: &Pickle) -> String {
    fn show(pickle: &Pickle, value: super::value::Ref, depth: usize) -> String {
        let all = |items: &mut dyn Iterator<Item = super::value::Ref>| {
            let items: Vec<String> = items.map(|item| show(pickle, item, depth + 1)).collect();
            items.join(",")
        };
        if depth > 6 {
            return "...".to_owned();
        }
        match pickle.value(value) {
            Value::List(mut items) => format!("[{}]", all(&mut items)),
            Value::Dict(mut items) => format!("{{{}}}", all(&mut items)),
            Value::Tuple(items) => format!("({})", all(&mut items.iter().copied())),
            Value::Persistent(id) => format!("!{}", show(pickle, id, depth + 1)),
            Value::Str(text) => String::from_utf8_lossy(text).into_owned(),
            other => format!("{other:?}"),
        }
    }
    show(pickle, pickle.root, 0)
}

#[test]
fn what_is_written_builds_the_same() {
    for program in [
        &b"]."[..],
        b"](K\x01J\xff\xff\xff\xffG\x3f\xf0\0\0\0\0\0\0NK\x02e.",
        b"}(X\x01\0\0\0aK\x01X\x01\0\0\0b](K\x02K\x03eu.",
        // A list in a tuple in the list: the tuple is open when the list is met again.
        b"]q\x00h\x00\x85q\x01ah\x010.",
        // The same from the tuple on, and by way of a dict.
        b"]q\x00\x85q\x01h\x00h\x01a0h\x01.",
        b"}q\x00\x85q\x01h\x00K\x01h\x01s0h\x01.",
        // One tuple twice, one string twice, and an empty tuple.
        b"](K\x01K\x02\x86q\x00h\x00X\x05\0\0\0helloq\x01h\x01)e.",
    ] {
        let steps = Steps::new(&|| false);
        let pickle = pickle::read(program, &steps).unwrap().0.of(program.to_vec());
        let expected = shown(&pickle);
        let (_, written) = work(program, false);
        let written = written.unwrap();
        let read = pickle::read(&written, &steps).unwrap().0.of(written);
        assert_eq!(shown(&read), expected);
    }
}
