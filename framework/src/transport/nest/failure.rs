//! The `err` member: an [`RpcError`] as a NestJS application sees it, and back.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

use super::NO_HANDLER;
use crate::error::{Code, RpcError};

/// What a NestJS application gets of an error that has no message.
const NO_MESSAGE: &str = "the remote service failed and said no more";

/// `status` and `message` are what `RpcException` gives; `code` and `details` stand beside them.
#[derive(Serialize)]
struct Failure<'a> {
    status: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "is_unknown")]
    code: Code,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a Value>,
}

/// What NestJS says of an error whose kind nobody knows: nothing.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks like this")]
fn is_unknown(code: &Code) -> bool {
    *code == Code::Unknown
}

/// Appends the error as the JSON object that a NestJS application gets.
pub(in crate::transport) fn write(out: &mut Vec<u8>, error: &RpcError) {
    let failure = Failure {
        status: "error",
        message: &error.message,
        code: error.code,
        details: error.details.as_ref(),
    };
    let start = out.len();
    if serde_json::to_writer(&mut *out, &failure).is_err() {
        out.truncate(start);
        out.extend_from_slice(
            br#"{"status":"error","message":"internal error","code":"INTERNAL"}"#,
        );
    }
}

/// Reads what a NestJS application, or we, gave as an error: any JSON value.
///
/// What does not say its code becomes [`Code::Unknown`]; an object that has more than a message is
/// kept whole in the details, so that nothing it said is lost.
pub(in crate::transport) fn read(failure: &Value) -> RpcError {
    let members = match failure {
        Value::String(text) if text == NO_HANDLER => return RpcError::unimplemented(text.clone()),
        Value::String(text) => return RpcError::unknown(text.clone()),
        Value::Object(members) => members,
        other => return RpcError::unknown(other.to_string()),
    };
    let message = match members.get("message") {
        Some(Value::String(text)) => Cow::Borrowed(text.as_str()),
        Some(other) => Cow::Owned(other.to_string()),
        None => Cow::Borrowed(NO_MESSAGE),
    };
    let code = members
        .get("code")
        .and_then(|code| Code::by_name(code.as_str()?));
    let foreign = |name: &str, value: &Value| match name {
        "status" => value != "error",
        "message" => !value.is_string(),
        "code" => code.is_none(),
        "details" => false,
        _ => true,
    };
    let error = RpcError::new(code.unwrap_or(Code::Unknown), message);
    if members.iter().any(|(name, value)| foreign(name, value)) {
        return error.with_details(failure.clone());
    }
    match members.get("details") {
        Some(details) => error.with_details(details.clone()),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn there_and_back(error: &RpcError) -> (String, RpcError) {
        let mut bytes = Vec::new();
        write(&mut bytes, error);
        let value = serde_json::from_slice(&bytes).unwrap();
        (String::from_utf8(bytes).unwrap(), read(&value))
    }

    #[test]
    fn nothing_of_an_error_is_lost_on_the_way() {
        let errors = [
            RpcError::not_found("no such user").with_details(json!({ "id": 7 })),
            RpcError::aborted("version conflict"),
            RpcError::unknown("boom"),
            RpcError::unknown("bad").with_details(json!({ "code": 42, "message": "bad" })),
            RpcError::internal("secret"),
        ];
        for error in errors {
            let (json, back) = there_and_back(&error);
            assert_eq!(back, error, "{json}");
            assert!(!json.contains("secret"));
        }
    }

    #[test]
    fn a_nestjs_application_sees_what_it_knows() {
        let error = RpcError::not_found("no such user").with_details(json!([1]));
        let (json, _) = there_and_back(&error);
        let expected =
            r#"{"status":"error","message":"no such user","code":"NOT_FOUND","details":[1]}"#;
        assert_eq!(json, expected);
        let (json, _) = there_and_back(&RpcError::unknown("boom"));
        assert_eq!(json, r#"{"status":"error","message":"boom"}"#);
    }

    #[test]
    fn the_errors_of_nestjs_applications_are_understood() {
        let check = |failure: Value, code: Code, message: &str, details: Option<Value>| {
            let error = read(&failure);
            assert_eq!((error.code, &*error.message), (code, message), "{failure}");
            assert_eq!(error.details, details, "{failure}");
        };
        use Code::{NotFound, Unimplemented, Unknown};
        check(
            json!({"status":"error","message":"boom"}),
            Unknown,
            "boom",
            None,
        );
        check(json!("E"), Unknown, "E", None);
        check(json!(5), Unknown, "5", None);
        check(json!(NO_HANDLER), Unimplemented, NO_HANDLER, None);
        check(json!({"status":"error"}), Unknown, NO_MESSAGE, None);
        let object = json!({"code":42,"message":"bad","extra":[1,"x"]});
        check(object.clone(), Unknown, "bad", Some(object));
        let number = json!({"status":"error","message":5});
        check(number.clone(), Unknown, "5", Some(number));
        let known = json!({"code":"NOT_FOUND","message":"no such user"});
        check(known, NotFound, "no such user", None);
        let strange = json!({"code":"TEAPOT","message":"short"});
        check(strange.clone(), Unknown, "short", Some(strange));
        check(json!({}), Unknown, NO_MESSAGE, None);
    }
}
