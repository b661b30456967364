//! What the files say, in the form that rustls takes.

use std::{fmt, io, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName,
        pem::{self, PemObject},
    },
    server::WebPkiClientVerifier,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{Files, Own};
use crate::transport::{Address, Error, ErrorKind};

/// How to connect with TLS.
#[derive(Clone)]
pub(in crate::transport) struct Connector(Arc<ClientConfig>);

impl Connector {
    /// The one that a URL asks for; `None` where it asks for none.
    ///
    /// # Errors
    /// `Config` when the options make no sense, or a file cannot be used.
    pub(in crate::transport) fn of(address: &Address) -> Result<Option<Self>, Error> {
        let files = Files::of_client(address)?;
        files.as_ref().map(Self::new).transpose()
    }

    fn new(files: &Files) -> Result<Self, Error> {
        let roots = match &files.ca {
            Some(file) => authorities(file)?,
            None => authorities_of_the_system()?,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(roots);
        let config = match &files.own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let (chain, key) = own.read()?;
                let config = builder.with_client_auth_cert(chain, key);
                config.map_err(|error| own.refused(error))?
            }
        };
        Ok(Self(Arc::new(config)))
    }

    /// One that trusts nobody: for a URL that does not ask for TLS, where a library would begin with it
    /// by itself because a broker says so.
    #[cfg(feature = "nats")]
    pub(in crate::transport) fn distrustful() -> Result<Self, Error> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// For a client library that connects by itself.
    #[cfg(feature = "nats")]
    pub(in crate::transport) fn config(&self) -> ClientConfig {
        (*self.0).clone()
    }

    /// Shakes hands with `host`, whose name has to be in its certificate.
    #[cfg(any(feature = "tcp", feature = "redis"))]
    pub(super) async fn connect(
        &self,
        host: &str,
        socket: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::clone(&self.0));
        Ok(connector.connect(name, socket).await?.into())
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// How to be connected to with TLS.
#[derive(Clone)]
pub(in crate::transport) struct Acceptor(Arc<ServerConfig>);

#[cfg(feature = "tcp")]
impl Acceptor {
    /// The one that a server's URL asks for; `None` where it asks for none.
    ///
    /// # Errors
    /// `Config` when the options make no sense, or a file cannot be used.
    pub(in crate::transport) fn of(address: &Address) -> Result<Option<Self>, Error> {
        let Some(files) = Files::of_server(address)? else {
            return Ok(None);
        };
        let Some(own) = &files.own else {
            return Ok(None);
        };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match &files.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let roots = Arc::new(authorities(file)?);
                let clients = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let clients = clients.build().map_err(|error| {
                    let what = format!("the authorities in {file} cannot be used");
                    Error::new(ErrorKind::Config, what).with_source(error)
                })?;
                builder.with_client_cert_verifier(clients)
            }
        };
        let (chain, key) = own.read()?;
        let config = builder.with_single_cert(chain, key);
        Ok(Some(Self(Arc::new(
            config.map_err(|error| own.refused(error))?,
        ))))
    }

    /// One that nobody gets through.
    #[cfg(test)]
    pub(in crate::transport) fn for_tests() -> Self {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
        Self(Arc::new(config))
    }

    /// Shakes hands with somebody who has connected.
    pub(super) async fn accept(&self, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.0));
        Ok(acceptor.accept(socket).await?.into())
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

impl Own {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| unreadable(&self.key, "private key", error))?;
        Ok((certificates(&self.certificate)?, key))
    }

    fn refused(&self, error: rustls::Error) -> Error {
        let Self { certificate, key } = self;
        let what = format!("the certificate in {certificate} cannot be used with the key in {key}");
        Error::new(ErrorKind::Config, what).with_source(error)
    }
}

/// Always named: the default of the process is the application's, and it panics where the features of
/// rustls leave a choice.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn unusable(error: rustls::Error) -> Error {
    Error::new(ErrorKind::Config, "TLS cannot be used").with_source(error)
}

fn authorities(file: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| {
            let what = format!("{file} has a certificate that is no authority's");
            Error::new(ErrorKind::Config, what).with_source(error)
        })?;
    }
    Ok(roots)
}

/// Those that cannot be read are left out: there are many, and one is needed.
fn authorities_of_the_system() -> Result<RootCertStore, Error> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "cannot read an authority of the system");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let what = "this system knows no authorities (Debian has them in ca-certificates): name those to trust by ca=FILE";
        return Err(Error::new(ErrorKind::Config, what));
    }
    Ok(roots)
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unreadable(file, "certificate", error))?;
    if certificates.is_empty() {
        return Err(unreadable(file, "certificate", pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

/// What cannot be parsed is not quoted: it may be a key.
fn unreadable(file: &str, what: &str, error: pem::Error) -> Error {
    let failed = |why: &str| Error::new(ErrorKind::Config, format!("{file} {why}"));
    match error {
        pem::Error::Io(error) => failed("cannot be read").with_source(error),
        pem::Error::NoItemsFound => failed(&format!("has no {what} in PEM")),
        _ => failed("is not in the form of PEM"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_parsed_is_not_quoted() {
        let folder = std::env::temp_dir().join(format!("nestling-tls-{}", fastrand::u64(..)));
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("key.pem").display().to_string();
        for (text, says) in [
            ("-----BEGIN hunter2\nAAAA\n", "is not in the form of PEM"),
            (
                "-----BEGIN PRIVATE KEY-----\nhunter2!\n-----END PRIVATE KEY-----\n",
                "is not in the form of PEM",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nhunter2\n",
                "in the form of PEM",
            ),
            ("hunter2\n", "has no private key in PEM"),
        ] {
            std::fs::write(&file, text).unwrap();
            let own = Own {
                certificate: file.clone(),
                key: file.clone(),
            };
            let error = own.read().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let text = format!("{error} {error:?}");
            assert!(text.contains(&file) && text.contains(says), "{text}");
            // Nor byte by byte.
            let bytes = format!("{:?}", b"hunter");
            let bytes = bytes.trim_matches(['[', ']']);
            assert!(!text.contains("hunter") && !text.contains(bytes), "{text}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
        let gone = certificates(&file).unwrap_err().to_string();
        assert!(
            gone.contains(&file) && gone.contains("cannot be read"),
            "{gone}"
        );
    }
}
