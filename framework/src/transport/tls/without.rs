//! What takes the place of TLS in a build without it: nothing, and an error for who asks for it.

use std::convert::Infallible;

use super::Files;
use crate::transport::{Address, Error, ErrorKind};

/// How to connect with TLS: there is no such value.
#[derive(Clone, Debug)]
pub(in crate::transport) struct Connector(Infallible);

impl Connector {
    /// # Errors
    /// `Config` when the URL asks for TLS.
    pub(in crate::transport) fn of(address: &Address) -> Result<Option<Self>, Error> {
        refuse(Files::of_client(address)?, address)
    }

    pub(super) fn never<T>(&self) -> T {
        match self.0 {}
    }
}

/// How to be connected to with TLS: there is no such value.
#[derive(Clone, Debug)]
pub(in crate::transport) struct Acceptor(Infallible);

#[cfg(feature = "tcp")]
impl Acceptor {
    /// # Errors
    /// `Config` when the URL asks for TLS.
    pub(in crate::transport) fn of(address: &Address) -> Result<Option<Self>, Error> {
        refuse(Files::of_server(address)?, address)
    }

    pub(super) fn never<T>(&self) -> T {
        match self.0 {}
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
