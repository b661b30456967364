//! Transport URLs: `scheme://user:password@host:port,host:port/path?option=value`.

use std::{fmt, str::FromStr};

use super::{Error, ErrorKind};

/// A transport's URL, taken apart. Printing it hides the password, a user name without one, which is a
/// token, and the values of options that no transport of this build has.
///
/// Unlike the URLs of the web it may name several hosts: `kafka://one:9092,two:9092`.
///
/// ```
/// use nestling::transport::Address;
///
/// let address: Address = "nats://ada:secret@localhost?wire=nest".parse()?;
/// assert_eq!(address.hosts(4222), ["localhost:4222"]);
/// assert_eq!(address.option("wire"), Some("nest"));
/// assert_eq!(address.to_string(), "nats://ada:***@localhost?wire=nest");
/// # Ok::<(), nestling::transport::Error>(())
/// ```
#[derive(Clone)]
pub struct Address {
    scheme: String,
    user: Option<String>,
    password: Option<String>,
    hosts: Vec<String>,
    path: String,
    options: Vec<(String, String)>,
}

impl Address {
    /// The part before `:`.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// User name, percent-decoded.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Password, percent-decoded.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// `host:port` of each host, with `default_port` where none is given.
    pub fn hosts(&self, default_port: u16) -> Vec<String> {
        let has_port = |host: &str| {
            host.rsplit_once(':').is_some_and(|(name, port)| {
                port.parse::<u16>().is_ok() && (!name.contains(':') || name.ends_with(']'))
            })
        };
        let with_port = |host: &String| match has_port(host) {
            true => host.clone(),
            false => format!("{host}:{default_port}"),
        };
        self.hosts.iter().map(with_port).collect()
    }

    /// The path, without its leading slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The value of a query option.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// A query option as a number or another value with a text form.
    ///
    /// # Errors
    /// `Config` when it is set and is not such a value.
    pub fn parsed_option<T: FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        self.option(name).map(str::parse).transpose().map_err(|_| {
            let value = self.option(name).unwrap_or_default();
            Error::new(
                ErrorKind::Config,
                format!("{self}: {name} cannot be {value:?}"),
            )
        })
    }

    /// The usual name of Redis over TLS, `rediss`, in the words of all other transports.
    pub(super) fn without_alias(mut self) -> Self {
        if self.scheme == "rediss" {
            "redis".clone_into(&mut self.scheme);
            if self.option("tls").is_none() {
                self.options.push(("tls".to_owned(), "on".to_owned()));
            }
        }
        self
    }

    /// The names of all query options.
    pub fn options(&self) -> impl Iterator<Item = &str> {
        self.options.iter().map(|(key, _)| key.as_str())
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // Never quotes the text: it may hold a password.
        let malformed = |what: &str| Error::new(ErrorKind::Config, format!("transport URL {what}"));
        let (scheme, rest) = text
            .split_once(':')
            .ok_or_else(|| malformed("has no scheme"))?;
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        // It would be printed, as the path or an option.
        if path.contains('@') {
            return Err(malformed(
                "has an @ behind a /: write %2F for a / in the password, and %40 for an @ in a path",
            ));
        }
        if query.contains('@') {
            return Err(malformed(
                "has an @ behind a ?: write %3F for a ? in the password, and %40 for an @ in an option",
            ));
        }
        let decoded = |part: &str| decode(part).ok_or_else(|| malformed("has a bad escape"));
        let (user, password) =
            match credentials.map(|text| text.split_once(':').unwrap_or((text, ""))) {
                None => (None, None),
                Some((user, "")) => (Some(decoded(user)?), None),
                Some((user, password)) => (Some(decoded(user)?), Some(decoded(password)?)),
            };
        let mut options = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, "true"));
            options.push((decoded(name)?, decoded(value)?));
        }
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            user,
            password,
            hosts: hosts
                .split(',')
                .filter(|host| !host.is_empty())
                .map(str::to_owned)
                .collect(),
            path: decoded(path)?,
            options,
        })
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let value = digit(rest.next())? * 16 + digit(rest.next())?;
        bytes.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        match (&self.user, &self.password) {
            (Some(_), None) => f.write_str("***@")?,
            (Some(user), Some(_)) => write!(f, "{user}:***@")?,
            (None, _) => {}
        }
        f.write_str(&self.hosts.join(","))?;
        if !self.path.is_empty() {
            write!(f, "/{}", self.path)?;
        }
        for (position, (name, value)) in self.options.iter().enumerate() {
            let separator = if position == 0 { '?' } else { '&' };
            let value = if super::is_known_option(name) {
                value
            } else {
                "***"
            };
            write!(f, "{separator}{name}={value}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn several_hosts_keep_their_ports() {
        let address = parse("kafka://one:1,two,[::1]:3,[::1]/x?partitions=6&flag");
        assert_eq!(
            address.hosts(9092),
            ["one:1", "two:9092", "[::1]:3", "[::1]:9092"]
        );
        assert_eq!(address.path(), "x");
        assert_eq!(address.parsed_option::<u16>("partitions").unwrap(), Some(6));
        assert_eq!(address.option("flag"), Some("true"));
    }

    #[test]
    fn a_password_is_never_printed() {
        let address = parse("redis://ada:p%40ss@localhost");
        assert_eq!(address.password(), Some("p@ss"));
        assert!(!format!("{address} {address:?}").contains("p@ss"));
        let address = parse("nats://t0ken@localhost");
        assert_eq!(address.to_string(), "nats://***@localhost");
        assert!("no-scheme".parse::<Address>().is_err());
        let address = parse("kafka://localhost?ssl.key.password=s3cret");
        assert_eq!(
            address.to_string(),
            "kafka://localhost?ssl.key.password=***"
        );
    }

    #[test]
    fn a_password_that_breaks_the_url_is_not_taken_for_another_part() {
        for url in [
            "redis://ada:s3/cret@localhost",
            "redis://ada:s3?cret@localhost",
            "redis://ada:s3@c/ret@localhost",
            "redis://ada:s3@c?ret@localhost",
        ] {
            let error = url.parse::<Address>().unwrap_err();
            assert!(!error.to_string().contains("s3"), "{error}");
        }
    }

    #[test]
    fn rediss_is_redis_with_tls() {
        let address = parse("rediss://localhost/1").without_alias();
        assert_eq!(address.to_string(), "redis://localhost/1?tls=on");
        let address = parse("rediss://localhost?tls=off").without_alias();
        assert_eq!(address.option("tls"), Some("off"));
    }
}
