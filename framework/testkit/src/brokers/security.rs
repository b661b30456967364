//! Brokers that do not talk to everybody.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// TLS on both sides, and the one user who is let in. Broker and clients show the same certificate.
#[derive(Clone)]
pub struct Security {
    /// The certificate of the authority, as PEM.
    pub authority: String,
    /// A certificate by it for 127.0.0.1, as PEM.
    pub certificate: String,
    /// Its key, as PEM.
    pub key: String,
    /// The name of the user: letters and digits.
    pub user: String,
    /// The password: letters and digits.
    pub password: String,
}

impl Security {
    /// Writes the PEM files into a folder.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written to.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::write(authority(folder), &self.authority)?;
        fs::write(certificate(folder), &self.certificate)?;
        fs::write(key(folder), &self.key)
    }

    /// What a client's URL says of the files in the folder.
    #[must_use]
    pub fn client_options(&self, folder: &Path) -> String {
        let (ca, own) = (authority(folder), own_options(folder));
        format!("ca={}&{own}", ca.display())
    }

    /// What a server's URL says of them.
    #[must_use]
    pub fn server_options(&self, folder: &Path) -> String {
        let (ca, own) = (authority(folder), own_options(folder));
        format!("client_ca={}&{own}", ca.display())
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

fn own_options(folder: &Path) -> String {
    let (certificate, key) = (certificate(folder), key(folder));
    format!("cert={}&key={}", certificate.display(), key.display())
}

pub(super) fn authority(folder: &Path) -> PathBuf {
    folder.join("authority.pem")
}

pub(super) fn certificate(folder: &Path) -> PathBuf {
    folder.join("certificate.pem")
}

pub(super) fn key(folder: &Path) -> PathBuf {
    folder.join("key.pem")
}
