//! TLS: what the options of a URL say of it, and connections that are plain or not.
//!
//! The options are the same on every transport. TCP and Redis are connected to by [`connect`]; the client
//! library of NATS is given a configuration, that of Kafka the names of the files.

#[cfg(feature = "tls")]
mod config;
#[cfg(any(feature = "tcp", feature = "redis"))]
mod stream;
#[cfg(not(feature = "tls"))]
mod without;

#[cfg(feature = "tls")]
pub(super) use self::config::{Acceptor, Connector};
#[cfg(any(feature = "tcp", feature = "redis"))]
pub(super) use self::stream::{Stream, connect};
#[cfg(not(feature = "tls"))]
pub(super) use self::without::{Acceptor, Connector};
use super::{Address, Error, ErrorKind};

/// The options that all URLs may have.
pub(super) const OPTIONS: [&str; 5] = [ON, CA, CERTIFICATE, KEY, CLIENT_CA];

const ON: &str = "tls";
const CA: &str = "ca";
const CERTIFICATE: &str = "cert";
const KEY: &str = "key";
const CLIENT_CA: &str = "client_ca";

/// What a URL that asks for TLS says of it: the names of PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    /// The authorities that are trusted; without it the system's are.
    pub(super) ca: Option<String>,
    /// One's own certificate.
    pub(super) own: Option<Own>,
    /// The authorities of those who may connect; without it everybody may.
    pub(super) client_ca: Option<String>,
}

/// A certificate with what proves that it is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    /// The certificate, and those between it and its authority.
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Files {
    /// For who connects; `None` where TLS is not asked for.
    pub(super) fn of_client(address: &Address) -> Result<Option<Self>, Error> {
        let files = Self::read(address)?;
        if files.as_ref().is_some_and(|it| it.client_ca.is_some()) {
            let what = "client_ca is for a TCP server; whom to trust is said by ca=FILE";
            return Err(config(address, what));
        }
        Ok(files)
    }

    /// For who is connected to.
    pub(super) fn of_server(address: &Address) -> Result<Option<Self>, Error> {
        let Some(files) = Self::read(address)? else {
            return Ok(None);
        };
        if files.ca.is_some() {
            let what = "ca is for a client; whose clients a server takes is said by client_ca=FILE";
            return Err(config(address, what));
        }
        if files.own.is_none() {
            let what = "a server with TLS has to have a certificate: cert=FILE and key=FILE";
            return Err(config(address, what));
        }
        Ok(Some(files))
    }

    fn read(address: &Address) -> Result<Option<Self>, Error> {
        match address.option(ON) {
            None | Some("on") => {}
            Some(_) => return Err(config(address, "tls can only be on; plain is without it")),
        }
        let file = |name: &str| match address.option(name) {
            Some("") | Some("true") => Err(config(address, &format!("{name} names no file"))),
            file => Ok(file.map(str::to_owned)),
        };
        let own = match (file(CERTIFICATE)?, file(KEY)?) {
            (Some(certificate), Some(key)) => Some(Own { certificate, key }),
            (None, None) => None,
            (Some(_), None) => {
                let what = "cert needs the key of the certificate: key=FILE";
                return Err(config(address, what));
            }
            (None, Some(_)) => {
                let what = "key needs the certificate that it is for: cert=FILE";
                return Err(config(address, what));
            }
        };
        let is_wanted = OPTIONS.iter().any(|name| address.option(name).is_some());
        Ok(is_wanted.then_some(Self {
            ca: file(CA)?,
            own,
            client_ca: file(CLIENT_CA)?,
        }))
    }
}

fn config(address: &Address, what: &str) -> Error {
    Error::new(ErrorKind::Config, format!("{address}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = Result<Option<Files>, Error>;

    fn client(url: &str) -> Read {
        Files::of_client(&url.parse()?)
    }

    fn server(url: &str) -> Read {
        Files::of_server(&url.parse()?)
    }

    fn check_refused(read: Read, says: &str) {
        let error = read.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(says), "{error}");
    }

    #[test]
    fn any_of_the_options_asks_for_tls() {
        assert_eq!(client("tcp://h?wire=nest").unwrap(), None);
        assert_eq!(server("tcp://h").unwrap(), None);
        for options in ["tls=on", "ca=a.pem", "cert=c.pem&key=k.pem"] {
            let files = client(&format!("tcp://h?{options}")).unwrap();
            assert!(files.is_some(), "{options}");
        }
        let files = server("tcp://h?cert=c.pem&key=k.pem&client_ca=a.pem").unwrap();
        assert_eq!(
            files,
            Some(Files {
                ca: None,
                own: Some(Own {
                    certificate: "c.pem".to_owned(),
                    key: "k.pem".to_owned(),
                }),
                client_ca: Some("a.pem".to_owned()),
            })
        );
    }

    #[test]
    fn wrong_combinations_are_refused_with_the_way_out() {
        check_refused(client("tcp://h?tls=off"), "tls can only be on");
        check_refused(client("tcp://h?key=k.pem"), "cert=FILE");
        check_refused(client("tcp://h?cert=c.pem"), "key=FILE");
        check_refused(client("tcp://h?client_ca=a.pem"), "ca=FILE");
        check_refused(client("tcp://h?ca"), "ca names no file");
        check_refused(server("tcp://h?tls=on"), "cert=FILE and key=FILE");
        check_refused(
            server("tcp://h?ca=a.pem&cert=c.pem&key=k.pem"),
            "client_ca=FILE",
        );
    }
}
