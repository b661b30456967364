//! Access tokens: JWTs signed with Ed25519, which the gateway verifies without asking.

use aws_lc_rs::{rand::SystemRandom, signature::Ed25519KeyPair};
use contracts::{
    Secret, SessionId, Timestamp,
    user::{Claims, Key, Keys, User},
};
use jsonwebtoken::{
    Algorithm, EncodingKey, Header,
    jwk::{AlgorithmParameters, Jwk, ThumbprintHash},
};
use nestling::RpcError;

/// How long an access token is valid, in seconds.
pub(crate) const VALID_S: u32 = 15 * 60;
const ISSUER: &str = "nestling-shop";

/// A private key as it is stored.
pub(crate) struct StoredKey(pub(crate) Vec<u8>);

impl StoredKey {
    /// A new one, in PKCS #8.
    pub(crate) fn generate() -> Result<Self, RpcError> {
        let document = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new())
            .map_err(|_| RpcError::internal("generate an Ed25519 key"))?;
        Ok(Self(document.as_ref().to_vec()))
    }
}

/// Signs with the newest key, and knows the public halves of all.
pub(crate) struct Signer {
    key: EncodingKey,
    header: Header,
    public: Keys,
}

impl Signer {
    /// `stored` is newest first.
    pub(crate) fn new(stored: Vec<StoredKey>) -> Result<Self, RpcError> {
        let keys: Vec<_> = stored
            .into_iter()
            .map(|StoredKey(der)| EncodingKey::from_ed_der(&der))
            .collect();
        let public = keys.iter().map(public_key).collect::<Result<Vec<_>, _>>()?;
        let (Some(key), Some(newest)) = (keys.into_iter().next(), public.first()) else {
            return Err(RpcError::internal("there is no key to sign with"));
        };
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(newest.kid.clone());
        Ok(Self {
            key,
            header,
            public: Keys { keys: public },
        })
    }

    pub(crate) fn public(&self) -> Keys {
        self.public.clone()
    }

    pub(crate) fn sign(
        &self,
        user: &User,
        session: SessionId,
        now: Timestamp,
    ) -> Result<Secret, RpcError> {
        let iat = u64::try_from(now.millis() / 1000).unwrap_or_default();
        let claims = Claims {
            sub: user.id,
            sid: session,
            roles: user.roles.clone(),
            iat,
            exp: iat + u64::from(VALID_S),
            iss: ISSUER.to_owned(),
        };
        let token = jsonwebtoken::encode(&self.header, &claims, &self.key);
        Ok(Secret::new(token.map_err(RpcError::internal)?))
    }
}

/// The public half, named by its thumbprint (RFC 7638).
fn public_key(key: &EncodingKey) -> Result<Key, RpcError> {
    let jwk = Jwk::from_encoding_key(key, Algorithm::EdDSA).map_err(RpcError::internal)?;
    let kid = jwk
        .thumbprint(ThumbprintHash::SHA256)
        .map_err(RpcError::internal)?;
    let AlgorithmParameters::OctetKeyPair(pair) = jwk.algorithm else {
        return Err(RpcError::internal("the stored key is not an Ed25519 key"));
    };
    Ok(Key { kid, x: pair.x })
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;
    use crate::account::new_user;

    #[test]
    fn a_token_is_verified_with_the_public_key_of_its_kid() {
        let signer = Signer::new(vec![
            StoredKey::generate().unwrap(),
            StoredKey::generate().unwrap(),
        ])
        .unwrap();
        let now = Timestamp::now();
        let user = new_user("ada@example.org", "Ada", "en".to_owned(), now);
        let session = SessionId::new();
        let token = signer.sign(&user, session, now).unwrap();

        let keys = signer.public().keys;
        let header = jsonwebtoken::decode_header(token.expose()).unwrap();
        assert_eq!(header.kid.as_deref(), Some(&*keys[0].kid));
        let validation = Validation::new(Algorithm::EdDSA);
        let decode = |key: &Key| {
            let key = DecodingKey::from_ed_components(&key.x).unwrap();
            jsonwebtoken::decode::<Claims>(token.expose(), &key, &validation)
        };
        let claims = decode(&keys[0]).unwrap().claims;
        assert_eq!(
            (claims.sub, claims.sid, claims.exp - claims.iat),
            (user.id, session, 900)
        );
        assert!(decode(&keys[1]).is_err());
    }
}
