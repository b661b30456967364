//! What takes the place of TLS in a build without it: nothing, and an error for who asks for it.

use super::Files;
use crate::transport::{Address, Error, ErrorKind};

/// How to connect with TLS: nobody can.
#[derive(Clone, Debug)]
pub(in crate::transport) enum Connector {}

impl Connector {
    /// # Errors
    /// `Config` when the URL asks for TLS.
    pub(in crate::transport) fn of(address: &Address) -> Result<Option<Self>, Error> {
        refuse(Files::of_client(address)?, address)
    }
}

/// How to be connected to with TLS: nobody can.
#[derive(Clone, Debug)]
pub(in crate::transport) enum Acceptor {}

#[cfg(feature = "tcp")]
impl Acceptor {
    /// # Errors
    /// `Config` when the URL asks for TLS.
    pub(in crate::transport) fn of(address: &Address) -> Result<Option<Self>, Error> {
        refuse(Files::of_server(address)?, address)
    }
}

fn refuse<T>(files: Option<Files>, address: &Address) -> Result<Option<T>, Error> {
    match files {
        None => Ok(None),
        Some(_) => {
            let what = "this build has no TLS: it is a feature of the crate, `tls`";
            Err(Error::new(ErrorKind::Config, format!("{address}: {what}")))
        }
    }
}
