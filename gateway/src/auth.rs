//! Who is asking: bearer tokens, verified here with the user service's public keys.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};
use contracts::{
    Actor, Reason, Role,
    user::{Claims, GetKeys},
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use nestling::Client;
use tokio::{sync::Mutex, time::Instant};

use crate::{Gateway, calls::Calls, error::Problem};

const ISSUER: &str = "nestling-shop";
/// How far the clocks of two machines may differ, in seconds.
const LEEWAY_S: u64 = 5;
/// Unknown keys make the gateway ask again, but not more often than this.
const REFRESH: Duration = Duration::from_secs(5);
/// After a failure it may ask again sooner.
const RETRY: Duration = Duration::from_millis(500);

/// The public keys, fetched when a token first names one and again when one is unknown.
pub(crate) struct Keyring {
    user: Client,
    known: RwLock<HashMap<String, DecodingKey>>,
    /// When it may ask next; held while asking, so that one request asks for all.
    next: Mutex<Option<Instant>>,
}

impl Keyring {
    pub(crate) fn new(user: Client) -> Self {
        Self {
            user,
            known: RwLock::default(),
            next: Mutex::default(),
        }
    }

    async fn verify(&self, token: &str, calls: &Calls) -> Result<Actor, Problem> {
        let refuse = || Problem::new(Reason::Unauthenticated, "the token is not valid");
        let header = jsonwebtoken::decode_header(token).map_err(|_| refuse())?;
        let kid = header.kid.ok_or_else(refuse)?;
        let key = match self.find(&kid) {
            Some(key) => key,
            None => {
                self.refresh(&kid, calls).await?;
                self.find(&kid).ok_or_else(refuse)?
            }
        };
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY_S;
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        let token =
            jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(|_| refuse())?;
        let Claims {
            sub, sid, roles, ..
        } = token.claims;
        Ok(Actor {
            user_id: sub,
            roles,
            session: sid,
        })
    }

    fn find(&self, kid: &str) -> Option<DecodingKey> {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(kid)
            .cloned()
    }

    async fn refresh(&self, kid: &str, calls: &Calls) -> Result<(), Problem> {
        let mut next = self.next.lock().await;
        // Another request may have brought it while this one waited.
        if self.find(kid).is_some() {
            return Ok(());
        }
        if next.is_some_and(|next| Instant::now() < next) {
            let none = self
                .known
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .is_empty();
            let detail = "tokens cannot be verified at the moment";
            return if none {
                Err(Problem::new(Reason::Unavailable, detail))
            } else {
                Ok(())
            };
        }
        let reply = calls.send(&self.user, GetKeys {}).await;
        *next = Some(Instant::now() + if reply.is_ok() { REFRESH } else { RETRY });
        let keys = reply?.keys.into_iter().filter_map(|key| {
            let decoding = DecodingKey::from_ed_components(&key.x);
            let decoding = decoding.inspect_err(|error| {
                tracing::warn!(%error, kid = key.kid, "a public key cannot be read");
            });
            Some((key.kid, decoding.ok()?))
        });
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = keys.collect();
        Ok(())
    }
}

/// Whoever asks, signed in or not. A token that is not valid is refused rather than ignored.
pub(crate) struct Visitor(pub(crate) Option<Actor>);

impl FromRequestParts<Gateway> for Visitor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        let Ok(calls) = Calls::from_request_parts(parts, gateway).await;
        let Some(value) = parts.headers.get(header::AUTHORIZATION) else {
            return Ok(Self(None));
        };
        let token = value.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then_some(token.trim())
        });
        let token = token.ok_or_else(|| {
            Problem::new(
                Reason::Unauthenticated,
                "the Authorization header is not a bearer token",
            )
        })?;
        gateway
            .keyring
            .verify(token, &calls)
            .await
            .map(|actor| Self(Some(actor)))
    }
}

/// A user who is signed in.
pub(crate) struct SignedIn(pub(crate) Actor);

impl FromRequestParts<Gateway> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        let Visitor(actor) = Visitor::from_request_parts(parts, gateway).await?;
        actor
            .map(Self)
            .ok_or_else(|| Problem::new(Reason::Unauthenticated, "sign in first"))
    }
}

/// A user who runs the shop.
pub(crate) struct ManagerOnly(pub(crate) Actor);

impl FromRequestParts<Gateway> for ManagerOnly {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        let SignedIn(actor) = SignedIn::from_request_parts(parts, gateway).await?;
        actor.require(&[Role::Manager, Role::Admin])?;
        Ok(Self(actor))
    }
}

/// A user who works for the shop.
pub(crate) struct StaffOnly(pub(crate) Actor);

impl FromRequestParts<Gateway> for StaffOnly {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        let SignedIn(actor) = SignedIn::from_request_parts(parts, gateway).await?;
        actor.require(&[Role::Support, Role::Manager, Role::Admin])?;
        Ok(Self(actor))
    }
}
