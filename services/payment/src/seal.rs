//! Sealing: what the database must not show is encrypted before it gets there.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use contracts::Secret;
use nestling::RpcError;

/// The key tokens and provider references are sealed with: AES-256-GCM, a random nonce for each.
pub struct SealKey(RandomizedNonceKey);

/// Why a text is not a key; says nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAKey;

impl SealKey {
    /// From 64 hexadecimal digits.
    ///
    /// # Errors
    /// When they are something else.
    pub fn from_hex(text: &Secret) -> Result<Self, NotAKey> {
        let digits: Option<Vec<u32>> = text
            .expose()
            .trim()
            .chars()
            .map(|digit| digit.to_digit(16))
            .collect();
        let digits = digits.filter(|digits| digits.len() == 64).ok_or(NotAKey)?;
        let bytes: Vec<u8> = digits
            .chunks(2)
            .map(|pair| (pair[0] * 16 + pair[1]) as u8)
            .collect();
        Self::new(&bytes)
    }

    /// A key that nobody knows: for a database that ends with its process.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn random() -> Result<Self, NotAKey> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).map_err(|_| NotAKey)?;
        Self::new(&bytes)
    }

    fn new(bytes: &[u8]) -> Result<Self, NotAKey> {
        RandomizedNonceKey::new(&AES_256_GCM, bytes)
            .map(Self)
            .map_err(|_| NotAKey)
    }

    /// Nonce and ciphertext of `secret`, which only opens again beside the same `owner`: moved to
    /// another row it is worthless.
    pub(crate) fn seal(&self, secret: &Secret, owner: &str) -> Result<Vec<u8>, RpcError> {
        let mut sealed = secret.expose().as_bytes().to_vec();
        let nonce = self
            .0
            .seal_in_place_append_tag(Aad::from(owner.as_bytes()), &mut sealed)
            .map_err(|_| RpcError::internal("a secret could not be sealed"))?;
        let mut whole = nonce.as_ref().to_vec();
        whole.append(&mut sealed);
        Ok(whole)
    }

    /// What [`seal`](Self::seal) sealed for `owner`.
    pub(crate) fn open(&self, sealed: &[u8], owner: &str) -> Result<Secret, RpcError> {
        self.try_open(sealed, owner)
            .ok_or_else(|| RpcError::internal("a secret could not be opened: is it another key?"))
    }

    fn try_open(&self, sealed: &[u8], owner: &str) -> Option<Secret> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut rest = rest.to_vec();
        let plain = self
            .0
            .open_in_place(nonce, Aad::from(owner.as_bytes()), &mut rest)
            .ok()?;
        Some(Secret::new(std::str::from_utf8(plain).ok()?))
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for NotAKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key is 32 bytes as 64 hexadecimal digits")
    }
}

impl std::error::Error for NotAKey {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_with_its_key_beside_its_owner_only() {
        let key = SealKey::from_hex(&Secret::new("0f".repeat(32))).unwrap();
        let token = Secret::new("tok_1");
        let sealed = key.seal(&token, "mth_1").unwrap();
        assert!(!sealed.windows(5).any(|window| window == b"tok_1"));
        assert_ne!(sealed, key.seal(&token, "mth_1").unwrap());

        assert_eq!(key.open(&sealed, "mth_1").unwrap(), token);
        assert!(key.open(&sealed, "mth_2").is_err());
        assert!(SealKey::random().unwrap().open(&sealed, "mth_1").is_err());
        for broken in [&sealed[..5], &sealed[..sealed.len() - 1], &[]] {
            assert!(key.open(broken, "mth_1").is_err());
        }
    }

    #[test]
    fn a_key_is_64_digits_and_is_never_shown() {
        for text in [
            "",
            "0f",
            &"0g".repeat(32),
            &"0f".repeat(33),
            &"ä".repeat(32),
        ] {
            assert!(SealKey::from_hex(&Secret::new(text)).is_err());
        }
        assert_eq!(format!("{:?}", SealKey::random().unwrap()), "***");
    }
}
