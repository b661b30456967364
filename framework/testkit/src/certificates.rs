//! Certificates for tests, made when they are needed.

use std::{error::Error, fmt};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::{Security, unique};

/// Who says who somebody is.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one, that nobody else trusts.
    ///
    /// # Errors
    ///
    /// When there are no keys to be had.
    pub fn new() -> Result<Self, Box<dyn Error + Send + Sync>> {
        let mut parameters = CertificateParams::default();
        let name = &mut parameters.distinguished_name;
        name.push(DnType::CommonName, unique("authority"));
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    /// Its certificate, as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate of it for these host names or addresses, and its key, both as PEM. Servers and clients can use it.
    ///
    /// # Errors
    ///
    /// When a name is none, or there are no keys to be had.
    pub fn issue(&self, names: &[&str]) -> Result<(String, String), Box<dyn Error + Send + Sync>> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut parameters = CertificateParams::new(names)?;
        let name = &mut parameters.distinguished_name;
        name.push(DnType::CommonName, unique("test"));
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// What a broker on this machine needs, with a password of these letters and digits.
    ///
    /// # Errors
    ///
    /// As [`Authority::issue`].
    pub fn security(&self, password: &str) -> Result<Security, Box<dyn Error + Send + Sync>> {
        let (certificate, key) = self.issue(&["127.0.0.1", "localhost"])?;
        Ok(Security {
            authority: self.pem(),
            certificate,
            key,
            user: "ada".to_owned(),
            password: password.to_owned(),
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}
