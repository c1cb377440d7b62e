//! The stack machine on its own: what a pickle of a few bytes builds, and what it may not.

use super::*;

fn list(bytes: &[u8]) -> Vec<Value> {
    let pickle = read(bytes).unwrap();
    let Value::List(items) = &pickle.values[pickle.root] else { panic!("no list") };
    items.iter().map(|&id| pickle.values[id].clone()).collect()
}

#[test]
fn the_memo_counts_as_pythons_does() {
    // Put under 1, then 0, then 1 again; the next is number 2.
    let program = b"\x80\x04(K\x0aq\x01K\x0bq\x00K\x0cq\x01K\x0d\x94h\x02l.";
    let numbers = [10, 11, 12, 13, 13].map(Value::Int);
    assert_eq!(list(program), numbers);
}

#[test]
fn integers_of_every_width_keep_their_sign() {
    let program = b"(J\xff\xff\xff\xffM\xff\xff\x8a\x00\x8a\x01\x80\x8a\x09\0\0\0\0\0\0\0\0\x01l.";
    let wide = Value::BigInt(vec![0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let numbers = [-1, 65535, 0, -128].map(Value::Int);
    assert_eq!(list(program), [&numbers[..], &[wide]].concat());
}

#[test]
fn what_no_checkpoint_needs_is_refused() {
    for (program, reason) in [
        (&b"(S'text'\nl."[..], "instruction 0x53"),
        (b"q\x00.", "the stack is empty"),
        (b"(0t.", "no mark is set"),
        (b"h\x05.", "nothing is remembered as 5"),
        (b"NNR.", "are not a tuple"),
        (b"]K\x01", "it is cut short"),
    ] {
        let refused = read(program).unwrap_err();
        assert!(refused.reason.contains(reason), "{refused}");
    }
}
