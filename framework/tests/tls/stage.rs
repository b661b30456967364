//! Certificates, a server that answers, and what the tests ask of both.

use std::{fs, future::IntoFuture, path::PathBuf, time::Duration};

use nestling::{
    Client, Endpoint, Payload, Router, RpcError, Running, Server, StartError,
    transport::{Error, ErrorKind},
};
use nestling_testkit::{Authority, Broker, Kind, Options, or_skip, unique};

/// Longer than anything takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// The password of every broker here.
pub(crate) const PASSWORD: &str = "qWv7secretPw41";
/// One that is wrong.
pub(crate) const WRONG: &str = "xKz9wrongPw82";

pub(crate) async fn within<F: IntoFuture>(what: &str, future: F) -> F::Output {
    let ended = tokio::time::timeout(LIMIT, future.into_future()).await;
    ended.unwrap_or_else(|_| panic!("{what} takes more than {LIMIT:?}"))
}

/// A folder of PEM files.
pub(crate) struct Files {
    folder: PathBuf,
}

impl Files {
    pub(crate) fn new() -> Self {
        let folder = std::env::temp_dir().join(unique("nestling-tls"));
        fs::create_dir(&folder).unwrap();
        Self { folder }
    }

    /// Writes one and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let file = self.folder.join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    /// `cert=FILE&key=FILE` with a certificate by `authority`.
    pub(crate) fn own(&self, authority: &Authority, host: &str) -> String {
        let (certificate, key) = authority.issue(&[host]).unwrap();
        let name = unique("own");
        let certificate = self.write(&format!("{name}.pem"), &certificate);
        let key = self.write(&format!("{name}.key.pem"), &key);
        format!("cert={certificate}&key={key}")
    }

    /// The file of an authority.
    pub(crate) fn authority(&self, authority: &Authority) -> String {
        self.write(&format!("{}.pem", unique("authority")), &authority.pem())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// A server that doubles.
pub(crate) fn server(url: impl Into<Endpoint>, pattern: &'static str) -> Server {
    let double = |Payload(n): Payload<u64>| async move { Ok::<_, RpcError>(2 * n) };
    let router = Router::new().message_with(pattern, true, double);
    Server::new(unique("tls"), router).listen(url.into())
}

/// The same, running.
pub(crate) async fn start(url: impl Into<Endpoint>, pattern: &'static str) -> Running {
    within("a server to start", server(url, pattern).start())
        .await
        .unwrap()
}

/// Why a server does not start.
pub(crate) async fn no_start(url: &str, pattern: &'static str) -> Error {
    match within("a start to fail", server(url, pattern).start()).await {
        Err(StartError::Transport { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

/// The address of a TCP server with other options.
pub(crate) fn address(server: &Running, options: &str) -> String {
    let address = server.address().split('?').next().unwrap();
    format!("{address}?{options}")
}

pub(crate) async fn connect(url: &str) -> Result<Client, Error> {
    let building = Client::builder(url)
        .identity(unique("tls"), "one")
        .timeout(LIMIT)
        .build();
    within("a client to be built", building).await
}

/// Asks once, which has to work.
pub(crate) async fn check_answers(url: &str, pattern: &str) {
    let client = connect(url).await.unwrap();
    assert_eq!(client.send_at::<u64>(pattern, &21).await, Ok(42));
    client.close().await;
}

/// Asks once by TCP, which has to fail before anything is sent, and why.
pub(crate) async fn failure(url: &str, pattern: &str) -> (ErrorKind, String) {
    let client = connect(url).await.unwrap();
    let error = within("a call to fail", client.send_at::<u64>(pattern, &1)).await;
    let error = error.unwrap_err();
    let kind = Error::behind(&error)
        .expect("a failure of this side")
        .kind();
    (kind, texts(&error))
}

/// All that an error says, with its causes.
pub(crate) fn texts(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(" {cause} {cause:?}");
        source = cause.source();
    }
    text
}

/// A broker with TLS, that asks for [`PASSWORD`].
pub(crate) fn secure_broker(kind: Kind, authority: &Authority) -> Option<Broker> {
    let security = authority.security(PASSWORD).unwrap();
    or_skip(Broker::start(
        kind,
        Options {
            security: Some(security),
            ..Options::default()
        },
    ))
}

/// The URL without one of its options.
pub(crate) fn without(url: &str, option: &str) -> String {
    let (address, options) = url.split_once('?').unwrap();
    let kept: Vec<_> = options
        .split('&')
        .filter(|pair| !pair.starts_with(&format!("{option}=")))
        .collect();
    format!("{address}?{}", kept.join("&"))
}
