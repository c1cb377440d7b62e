//! The stack machine on its own: what a pickle of a few bytes builds, and what it may not.

use super::*;
use crate::format::value::Value;

fn read_all(bytes: &[u8]) -> Result<Pickle, String> {
    let steps = Steps::new(&|| false);
    let read = read(bytes, &steps).map(|(machined, _)| machined.of(bytes.to_vec()));
    read.map_err(|unread| match unread {
        Unread::Cut(malformed) | Unread::Malformed(malformed) => malformed.reason,
        Unread::Stopped => "stopped".to_owned(),
    })
}

/// The integers of a list.
fn list(bytes: &[u8]) -> Vec<i64> {
    let pickle = read_all(bytes).unwrap();
    let Value::List(items) = pickle.value(pickle.root) else { panic!("no list") };
    let int = |item| match pickle.value(item) {
        Value::Int(number) => number,
        Value::BigInt(bytes) => i64::MIN + bytes.len() as i64,
        other => panic!("{other:?}"),
    };
    items.map(int).collect()
}

#[test]
fn the_memo_counts_as_pythons_does() {
    // Put under 1, then 0, then 1 again; the next is number 2.
    let program = b"\x80\x04(K\x0aq\x01K\x0bq\x00K\x0cq\x01K\x0d\x94h\x02l.";
    assert_eq!(list(program), [10, 11, 12, 13, 13]);
}

#[test]
fn integers_of_every_width_keep_their_sign() {
    let program = b"(J\xff\xff\xff\xffM\xff\xff\x8a\x00\x8a\x01\x80\x8a\x09\0\0\0\0\0\0\0\0\x01l.";
    assert_eq!(list(program), [-1, 65535, 0, -128, i64::MIN + 9]);
}

#[test]
fn a_list_is_filled_in_any_number_of_pieces() {
    assert_eq!(list(b"]K\x01aK\x02a(K\x03K\x04e(eK\x05a."), [1, 2, 3, 4, 5]);
    assert_eq!(list(b"(K\x01lK\x02a."), [1, 2]);
    assert!(list(b"](e.").is_empty());
}

#[test]
fn what_is_used_twice_is_known() {
    let pickle = read_all(b"](X\x01\0\0\0aq\x00h\x00]q\x01]h\x01N2e.").unwrap();
    let Value::List(items) = pickle.value(pickle.root) else { panic!("no list") };
    let shared: Vec<bool> = items.map(|item| pickle.is_shared(item)).collect();
    assert_eq!(shared, [true, true, true, false, true, false, false]);
}

#[test]
fn a_set_has_what_its_argument_held_when_it_was_called() {
    // The list is appended to afterwards.
    let pickle = read_all(b"cbuiltins\nset\n](K\x01eq\x00\x85R(h\x00K\x02a1.").unwrap();
    let Value::Set(items) = pickle.value(pickle.root) else { panic!("no set") };
    assert_eq!(items.count(), 1);
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
        (b"X\x02\0\0\0\xed\xa0.", "not UTF-8"),
    ] {
        let refused = read_all(program).unwrap_err();
        assert!(refused.contains(reason), "{refused}");
    }
    assert!(read_all(b"X\x03\0\0\0\xed\xa0\x80.").is_ok(), "a surrogate, as Python writes it");
}

#[test]
fn a_caller_can_stop_it() {
    let steps = Steps::new(&|| true);
    let program = [&b"("[..], &b"N".repeat(100_000), b"l."].concat();
    assert!(matches!(read(&program, &steps), Err(Unread::Stopped)));
}
