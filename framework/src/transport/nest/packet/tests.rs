//! What is read and written.

use super::*;
use crate::error::RpcError;

fn packet(json: &str) -> Packet {
    match read_packet(&Bytes::copy_from_slice(json.as_bytes())).unwrap() {
        Incoming::Packet(packet) => packet,
        Incoming::Foreign(_) => panic!("{json} is no packet"),
    }
}

fn answer(json: &str) -> (Option<String>, Item) {
    let Answer { id, item } = read_answer(&Bytes::copy_from_slice(json.as_bytes())).unwrap();
    (id.map(|id| String::from_utf8(id.to_vec()).unwrap()), item)
}

#[test]
fn a_packet_keeps_its_parts_as_they_were_written() {
    let packet = packet(
        r#"{"pattern":"nope", "pattern" : {"a": 1},"data":[1, 2.0],"id":{"x":[]},"metadata":{"k":"v\n","n":1},"foo":{}}"#,
    );
    assert_eq!(packet.pattern.as_deref(), Some(&br#"{"a": 1}"#[..]));
    assert_eq!(packet.data.as_deref(), Some(&b"[1, 2.0]"[..]));
    assert_eq!(packet.id.as_deref(), Some(&br#"{"x":[]}"#[..]));
    assert_eq!(packet.metadata.get("k"), Some("v\n"));
    assert_eq!(packet.metadata.get("n"), Some("1"));
}

#[test]
fn a_pattern_has_a_name_however_it_is_written() {
    let name = |pattern: &str| packet(&format!(r#"{{"data":1,{pattern}"id":1}}"#)).name();
    assert_eq!(name(r#""pattern":"user.get","#), "user.get");
    assert_eq!(name(r#""pattern":"\u0061\"ü","#), "a\"ü");
    assert_eq!(name(r#""pattern":"\ud800","#), r#""\ud800""#);
    assert_eq!(name(r#""pattern":{"a": 1},"#), r#"{"a": 1}"#);
    assert_eq!(name(""), "undefined");
}

#[test]
fn an_absent_id_is_not_a_null_one() {
    assert_eq!(packet(r#"{"data":1}"#).id, None);
    assert_eq!(packet(r#"{"data":1,"id":null}"#).id, Some("null".into()));
    assert_eq!(packet(r#"{"data":null}"#).data, Some("null".into()));
    assert_eq!(packet(r#"{"pattern":"p"}"#).data, None);
    assert_eq!(
        packet(r#"{"p\u0061ttern":"p"}"#).pattern,
        Some("\"p\"".into())
    );
}

#[test]
fn what_is_no_packet_is_foreign_and_what_is_no_json_an_error() {
    for json in ["null", "5", "\"s\"", "[1]", "{}", r#"{"id":"x"}"#, " true "] {
        let read = read_packet(&Bytes::copy_from_slice(json.as_bytes())).unwrap();
        assert!(
            matches!(read, Incoming::Foreign(text) if text == json),
            "{json}"
        );
    }
    for json in ["", "{", "{a}", "nul", "1 2", "{\"data\":1}x"] {
        read_packet(&Bytes::copy_from_slice(json.as_bytes())).unwrap_err();
        read_answer(&Bytes::copy_from_slice(json.as_bytes())).unwrap_err();
    }
}

#[test]
fn odd_texts_and_deep_data_pass_through() {
    let deep = format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000));
    let json = format!(r#"{{"pattern":"echo","data":{deep},"id":"x"}}"#);
    assert_eq!(packet(&json).data.unwrap(), deep);
    assert_eq!(packet(r#"{"data":"\ud800"}"#).data.unwrap(), r#""\ud800""#);
    let broken = Bytes::from_static(b"{\"data\":\"\xff\"}");
    let Incoming::Packet(packet) = read_packet(&broken).unwrap() else {
        panic!("no packet");
    };
    assert_eq!(packet.data.unwrap(), "\"\u{fffd}\"");
}

#[test]
fn metadata_is_limited() {
    let members: Vec<_> = (0..=MAX_METADATA)
        .map(|n| format!("\"{n}\":\"\""))
        .collect();
    let json = format!(r#"{{"data":1,"metadata":{{{}}}}}"#, members.join(","));
    read_packet(&Bytes::from(json)).unwrap_err();
    assert!(packet(r#"{"data":1,"metadata":5}"#).metadata.is_empty());
}

#[test]
fn replies_are_read_as_a_nestjs_client_reads_them() {
    let check = |json: &str, item: Item| {
        assert_eq!(answer(json), (Some("\"i\"".to_owned()), item), "{json}");
    };
    let value = |json: &str| Item::Value(Bytes::copy_from_slice(json.as_bytes()));
    let last = |json: &str| Item::Last(Bytes::copy_from_slice(json.as_bytes()));
    check(r#"{"id":"i","response":1}"#, value("1"));
    check(r#"{"id":"i","response":1,"isDisposed":true}"#, last("1"));
    check(r#"{"id":"i","response":2,"isDisposed":"yes"}"#, last("2"));
    check(r#"{"id":"i","response":2,"isDisposed":false}"#, value("2"));
    check(
        r#"{"id":"i","response":null,"isDisposed":true}"#,
        last("null"),
    );
    check(r#"{"id":"i","isDisposed":true}"#, Item::End);
    check(r#"{"id":"i"}"#, value(""));
    check(r#"{"id":"i","status":"error"}"#, value(""));
    check(
        r#"{"id":"i","err":"E"}"#,
        Item::Fail(RpcError::unknown("E")),
    );
    check(r#"{"id":"i","err":""}"#, value(""));
    check(
        r#"{"id":"i","err":null,"response":5,"isDisposed":true}"#,
        last("5"),
    );
    check(
        r#"{"id":"i","err":0.0,"response":5,"isDisposed":-0}"#,
        value("5"),
    );
    let foreign = r#"{"id":"i","response":1,"foo":1}"#;
    check(foreign, last(foreign));
    for foreign in ["5", "null", "[1]", "{}"] {
        assert_eq!(answer(foreign), (None, last(foreign)), "{foreign}");
    }
    assert_eq!(
        answer(r#"{"response":1,"isDisposed":true}"#),
        (None, last("1"))
    );
}

#[test]
fn a_reply_is_told_from_what_is_taken_for_one() {
    let is_answer = |json: &str| is_answer(&Bytes::copy_from_slice(json.as_bytes()));
    for json in [
        r#"{"id":"i"}"#,
        r#"{"response":1,"isDisposed":true,"id":"i"}"#,
    ] {
        assert!(is_answer(json), "{json}");
    }
    for json in [
        "",
        "{}",
        "5",
        "[1]",
        r#"{"id":"i","data":1}"#,
        r#"{"id":"i""#,
    ] {
        assert!(!is_answer(json), "{json}");
    }
}

#[test]
fn replies_are_written_in_the_order_of_nestjs() {
    let check = |item: Item, expected: &str| {
        let mut out = Vec::new();
        write_item(&mut out, Some(b"7"), &item);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    };
    check(Item::Value("1".into()), r#"{"response":1,"id":7}"#);
    check(
        Item::Last("1".into()),
        r#"{"response":1,"isDisposed":true,"id":7}"#,
    );
    check(Item::Last(Bytes::new()), r#"{"isDisposed":true,"id":7}"#);
    check(Item::Value(Bytes::new()), r#"{"id":7}"#);
    check(Item::End, r#"{"isDisposed":true,"id":7}"#);
    let error = r#"{"err":{"status":"error","message":"boom"},"isDisposed":true,"id":7}"#;
    check(Item::Fail(RpcError::unknown("boom")), error);
    let mut out = Vec::new();
    write_item(&mut out, None, &Item::End);
    assert_eq!(out, br#"{"isDisposed":true}"#);
}

#[tokio::test(start_paused = true)]
async fn requests_are_written_in_the_order_of_nestjs() {
    let now = Instant::now();
    let mut envelope = Envelope::new(r#"{"b": 1, "a": 2}"#, "[1]");
    envelope.headers.set("x-own", "\"");
    let mut out = Vec::new();
    write_request(&mut out, &envelope, "abc", Some(now));
    let expected = r#"{"pattern":{"b":1,"a":2},"data":[1],"metadata":{"x-own":"\""},"id":"abc"}"#;
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    let mut out = Vec::new();
    write_event(&mut out, "\"e\"", &Envelope::new("e", ""), Some(now));
    assert_eq!(out, br#"{"pattern":"e"}"#);
}
