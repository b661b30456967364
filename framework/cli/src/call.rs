//! What is sent, and how: the arguments that [`send`](crate::send) and [`emit`](crate::emit) share.

use std::{
    io::{self, Read},
    pin::pin,
    str::FromStr,
    time::Duration,
};

use bytes::Bytes;
use nestling::{Client, header, service};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    outcome::Failure,
    target::{Pattern, Target},
};

/// Who we are to brokers that address replies to a service.
const SERVICE: &str = "nestling";

/// To whom, and with what.
#[derive(Debug, clap::Args)]
pub(crate) struct Call {
    #[command(flatten)]
    target: Target,
    /// What it is called: a name such as user.get, or the JSON text of an object
    pattern: Pattern,
    /// The payload: JSON, which is sent as it is written; - reads it from standard input; none
    /// without it
    #[arg(allow_negative_numbers = true)]
    json: Option<String>,
    /// How long to wait for the answer, or for each value of it; connecting has a time of its own
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// A header, such as actor=ada; repeat it for several
    #[arg(long = "header", value_name = "NAME=VALUE")]
    headers: Vec<Header>,
}

/// A call whose arguments have been checked.
pub(crate) struct Prepared {
    url: String,
    pub(crate) pattern: String,
    pub(crate) payload: Bytes,
    pub(crate) timeout: Duration,
    pub(crate) headers: Vec<(String, String)>,
}

impl Call {
    /// Reads and checks everything, before anything is sent.
    pub(crate) fn prepare(self) -> Result<Prepared, Failure> {
        let url = self.target.url()?;
        let payload = match self.json {
            None => Bytes::new(),
            Some(text) if text == "-" => {
                let mut read = Vec::new();
                io::stdin().read_to_end(&mut read)?;
                json("standard input", read)?
            }
            Some(text) => json("the payload", text)?,
        };
        let headers = self
            .headers
            .into_iter()
            .map(|Header(name, value)| (name, value));
        Ok(Prepared {
            url,
            pattern: self.pattern.into_text(),
            payload,
            timeout: self.timeout,
            headers: headers.collect(),
        })
    }
}

impl Prepared {
    /// Connects, calls, and lets go: of the call too, if somebody interrupts it.
    pub(crate) async fn make(
        self,
        call: impl AsyncFnOnce(&Client, Self) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let instance = Uuid::new_v4().simple().to_string();
        let client = Client::builder(&self.url).identity(SERVICE, instance);
        let mut stop = pin!(service::terminated());
        let client = tokio::select! {
            biased;
            () = &mut stop => return Err(Failure::Interrupted),
            client = client.build() => client?,
        };
        let ended = tokio::select! {
            biased;
            () = &mut stop => Err(Failure::Interrupted),
            ended = call(&client, self) => ended,
        };
        // What is still to be written is written now; that nobody waits any more, for one.
        client.close().await;
        ended
    }
}

/// The bytes of a JSON text, which is only looked through: numbers stay as they are.
pub(crate) fn json(what: &str, text: impl Into<Bytes>) -> Result<Bytes, Failure> {
    let text = text.into();
    match serde_json::from_slice::<&RawValue>(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::Usage(format!("{what} is not JSON: {error}"))),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Header(String, String);

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or("a header is written NAME=VALUE")?;
        let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || !name.chars().all(is_legal) {
            return Err(
                "a header's name is letters, digits, dashes, underscores and dots".to_owned(),
            );
        }
        let name = name.to_ascii_lowercase();
        let of_the_wire = [
            "nestling",
            header::CORRELATION_ID,
            header::DEADLINE,
            header::PATTERN,
            header::REPLY_TO,
        ];
        if of_the_wire.contains(&name.as_str()) {
            return Err(format!("the header {name} is the transport's own"));
        }
        Ok(Self(name, header_value(value)?))
    }
}

/// What some transport could not carry is refused on all.
pub(crate) fn header_value(text: &str) -> Result<String, String> {
    match text.contains(char::is_control) {
        true => Err("it has control characters".to_owned()),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_a_name_and_a_value() {
        let check = |text: &str, name: &str, value: &str| {
            assert_eq!(text.parse(), Ok(Header(name.to_owned(), value.to_owned())));
        };
        check("actor=ada", "actor", "ada");
        check("X-Own=a=b, ünï", "x-own", "a=b, ünï");
        check("empty=", "empty", "");
        for bad in [
            "actor",
            "=ada",
            "a b=c",
            "ä=b",
            "a=b\r\nc: d",
            "Deadline=7",
            "nestling=1",
        ] {
            assert!(bad.parse::<Header>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn json_is_not_rewritten() {
        for text in ["1.50", " {\"a\" : 1e2}\n", "-0", "\"\\u00e4\""] {
            assert_eq!(json("it", text).ok(), Some(Bytes::from(text)));
        }
        for text in [&b""[..], b"{", b"1 2", b"nul", b"\"\xff\""] {
            assert!(json("it", text).is_err(), "{text:?}");
        }
    }
}
