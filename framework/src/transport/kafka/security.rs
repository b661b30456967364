//! TLS and credentials: what a URL says of them, in the words of the library, and what the brokers think
//! of them.

use std::{
    fmt,
    fs::File,
    sync::{Arc, Mutex},
};

use rdkafka::{ClientConfig, error::RDKafkaErrorCode};

use super::super::{
    Address, Error, ErrorKind,
    pending::lock,
    tls::{Files, Own},
};

/// The option that names the way to show a password.
pub(super) const MECHANISM: &str = "sasl";

/// How to be let in.
#[derive(Clone, Default)]
pub(super) struct Security {
    properties: Vec<(&'static str, String)>,
}

impl Security {
    pub(super) fn of(address: &Address) -> Result<Self, Error> {
        let refuse = |what: &str| Err(Error::new(ErrorKind::Config, format!("{address}: {what}")));
        let files = Files::of_client(address)?;
        if files.is_some() && !cfg!(feature = "kafka-tls") {
            return refuse(
                "this build has no TLS for Kafka: it is a feature of the crate, `kafka-tls`",
            );
        }
        let mut properties = Vec::new();
        let login = address.user().filter(|user| !user.is_empty());
        properties.push((
            "security.protocol",
            match (&files, login) {
                (None, None) => "plaintext",
                (None, Some(_)) => "sasl_plaintext",
                (Some(_), None) => "ssl",
                (Some(_), Some(_)) => "sasl_ssl",
            }
            .to_owned(),
        ));
        if let Some(files) = files {
            add_files(&files, &mut properties)?;
        }
        let mechanism = match (login, address.option(MECHANISM)) {
            (None, None) => return Ok(Self { properties }),
            (None, Some(_)) => {
                return refuse("sasl needs a name and a password: kafka://NAME:PASSWORD@…");
            }
            (Some(_), Some("plain")) => "PLAIN",
            (Some(_), None | Some("scram-sha-512")) => "SCRAM-SHA-512",
            (Some(_), Some("scram-sha-256")) => "SCRAM-SHA-256",
            (Some(_), Some(_)) => {
                return refuse("sasl can be scram-sha-512, scram-sha-256 or plain");
            }
        };
        if mechanism != "PLAIN" && !cfg!(feature = "kafka-tls") {
            return refuse(
                "this build has no SCRAM: it comes with a feature of the crate, `kafka-tls`; without it a \
                 password can only be shown as it is, by sasl=plain",
            );
        }
        let (Some(user), Some(password)) = (login, address.password()) else {
            return refuse("the name has no password: kafka://NAME:PASSWORD@…");
        };
        properties.extend([
            ("sasl.mechanism", mechanism.to_owned()),
            ("sasl.username", user.to_owned()),
            ("sasl.password", password.to_owned()),
        ]);
        Ok(Self { properties })
    }

    pub(super) fn apply(&self, config: &mut ClientConfig) {
        for (name, value) in &self.properties {
            config.set(*name, value);
        }
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security").finish_non_exhaustive()
    }
}

/// Without a file of authorities OpenSSL takes the system's.
fn add_files(files: &Files, properties: &mut Vec<(&'static str, String)>) -> Result<(), Error> {
    properties.push(("ssl.endpoint.identification.algorithm", "https".to_owned()));
    let mut named = Vec::new();
    if let Some(ca) = &files.ca {
        named.push(("ssl.ca.location", ca));
    }
    if let Some(Own { certificate, key }) = &files.own {
        named.push(("ssl.certificate.location", certificate));
        named.push(("ssl.key.location", key));
    }
    for (property, file) in named {
        // The library would say which property is wrong, in its own words.
        File::open(file).map_err(|error| {
            Error::new(ErrorKind::Config, format!("{file} cannot be read")).with_source(error)
        })?;
        properties.push((property, file.clone()));
    }
    Ok(())
}

/// Why the brokers do not let us in, as far as a client of the library has heard.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict(Arc<Mutex<Option<(ErrorKind, String)>>>);

impl Verdict {
    pub(super) fn note(&self, code: RDKafkaErrorCode, reason: &str) {
        let kind = match code {
            RDKafkaErrorCode::Authentication => ErrorKind::Refused,
            RDKafkaErrorCode::SSL => ErrorKind::Connect,
            _ => return,
        };
        *lock(&self.0) = Some((kind, reason.to_owned()));
    }

    /// The last failure.
    pub(super) fn failure(&self) -> Option<(ErrorKind, String)> {
        lock(&self.0).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::new();
        Security::of(&url.parse()?)?.apply(&mut config);
        Ok(config)
    }

    fn check_refused(url: &str, says: &str) {
        let error = config(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{url}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(says), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_url_says_how_to_be_let_in() {
        let check = |url: &str, protocol: &str, mechanism: Option<&str>| {
            let config = config(url).unwrap();
            assert_eq!(config.get("security.protocol"), Some(protocol), "{url}");
            assert_eq!(config.get("sasl.mechanism"), mechanism, "{url}");
        };
        check("kafka://h", "plaintext", None);
        check(
            "kafka://ada:hunter2@h?sasl=plain",
            "sasl_plaintext",
            Some("PLAIN"),
        );
        if cfg!(feature = "kafka-tls") {
            check("kafka://h?tls=on", "ssl", None);
            let scram = Some("SCRAM-SHA-512");
            check("kafka://ada:hunter2@h?tls=on", "sasl_ssl", scram);
            check("kafka://ada:hunter2@h", "sasl_plaintext", scram);
        } else {
            check_refused("kafka://h?tls=on", "`kafka-tls`");
            check_refused("kafka://ada:hunter2@h", "sasl=plain");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        check_refused("kafka://ada@h?sasl=plain", "no password");
        check_refused("kafka://h?sasl=plain", "a name and a password");
        check_refused("kafka://ada:hunter2@h?sasl=gssapi", "sasl can be");
        check_refused("kafka://h?key=k.pem", "cert=FILE");
        if cfg!(feature = "kafka-tls") {
            check_refused("kafka://h?ca=/nowhere.pem", "/nowhere.pem cannot be read");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let address = "kafka://ada:hunter2@h?sasl=plain".parse().unwrap();
        let security = Security::of(&address).unwrap();
        assert!(!format!("{security:?}").contains("hunter2"));
    }
}
