//! A connection that is plain or not, and how it is made.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{self, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

#[cfg(feature = "tcp")]
use super::Acceptor;
use super::Connector;

/// One connection.
#[derive(Debug)]
pub(in crate::transport) enum Stream {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::TlsStream<TcpStream>>),
}

/// Connects to `host`, which is `name:port`, with TLS if there is a connector.
pub(in crate::transport) async fn connect(
    host: &str,
    tls: Option<&Connector>,
) -> io::Result<Stream> {
    let socket = TcpStream::connect(host).await?;
    socket.set_nodelay(true)?;
    match tls {
        None => Ok(Stream::Plain(socket)),
        #[cfg(feature = "tls")]
        Some(connector) => {
            let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
            let name = name.trim_start_matches('[').trim_end_matches(']');
            let stream = connector.connect(name, socket).await?;
            Ok(Stream::Tls(Box::new(stream)))
        }
        #[cfg(not(feature = "tls"))]
        Some(connector) => connector.never(),
    }
}

#[cfg(feature = "tcp")]
impl Stream {
    /// What it goes over.
    pub(in crate::transport) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Greets somebody who has connected.
    pub(in crate::transport) async fn accept(
        socket: TcpStream,
        tls: &Acceptor,
    ) -> io::Result<Self> {
        #[cfg(feature = "tls")]
        {
            let stream = tls.accept(socket).await?;
            Ok(Self::Tls(Box::new(stream)))
        }
        #[cfg(not(feature = "tls"))]
        {
            drop(socket);
            tls.never()
        }
    }
}

/// Runs an expression on the connection, whichever kind it is.
macro_rules! either {
    ($stream:expr, $inner:ident => $result:expr) => {
        match $stream.get_mut() {
            Stream::Plain(socket) => {
                let $inner = Pin::new(socket);
                $result
            }
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => {
                let $inner = Pin::new(stream);
                $result
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, inner => inner.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, inner => inner.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, inner => inner.poll_write_vectored(cx, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => inner.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => inner.poll_shutdown(cx))
    }
}
