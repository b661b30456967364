//! `user.*`: accounts and sessions.

use nestling::{Event, Message, RpcError};
use serde::{Deserialize, Serialize};

use crate::{Fields, Meta, Page, PageRequest, Role, Secret, Timestamp, UserId};

crate::svc!("user");

/// An account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Id.
    pub id: UserId,
    /// Address, in lower case.
    pub email: String,
    /// Name.
    pub name: String,
    /// What the user may do.
    pub roles: Vec<Role>,
    /// Language, such as `en`.
    pub locale: String,
    /// Whether the address was confirmed.
    pub verified: bool,
    /// Whether the account is closed.
    pub disabled: bool,
    /// Counts changes.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Makes an account. Errors: `validation`, `email_taken`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "user.register", reply = User)]
pub struct Register {
    /// Address.
    pub email: String,
    /// At least ten characters.
    pub password: Secret,
    /// Name.
    pub name: String,
    /// Language, such as `en`.
    pub locale: String,
}

impl Register {
    /// # Errors
    /// `validation`.
    pub fn validate(&self) -> Result<(), RpcError> {
        let mut fields = Fields::new();
        check_email(&mut fields, &self.email);
        check_password(&mut fields, &self.password, "/password");
        fields.length(self.name.trim(), 1..=120, "/name");
        fields.length(&self.locale, 2..=16, "/locale");
        fields.finish()
    }
}

fn check_email(fields: &mut Fields, email: &str) {
    let ok = email.len() <= 254
        && !email.contains(char::is_whitespace)
        && email
            .split_once('@')
            .is_some_and(|(user, host)| !user.is_empty() && host.contains('.'));
    fields.check(ok, "/email", "email", "an address such as name@example.org");
}

fn check_password(fields: &mut Fields, password: &Secret, pointer: &str) {
    fields.length(password.expose(), 10..=200, pointer);
}

/// Signs in. Errors: `unauthenticated`, the same for an unknown user and a wrong password.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "user.login", reply = Tokens)]
pub struct Login {
    /// Address.
    pub email: String,
    /// Password.
    pub password: Secret,
    /// What the user signs in from, shown in the list of sessions.
    pub device: String,
}

/// What signing in gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tokens {
    /// An EdDSA-signed JWT, valid for 15 minutes.
    pub access: Secret,
    /// For so many seconds.
    pub expires_in: u32,
    /// Who signed in.
    pub user: User,
}

/// What the access token says. A contract because gateway and user service share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// The user.
    pub sub: UserId,
    /// The session.
    pub sid: crate::SessionId,
    /// What the user may do.
    pub roles: Vec<Role>,
    /// Issued at, seconds since 1970.
    pub iat: u64,
    /// Valid until, seconds since 1970.
    pub exp: u64,
    /// `nestling-shop`.
    pub iss: String,
}

/// Asks for the public keys that access tokens are signed with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "user.jwks", reply = Keys, idempotent)]
pub struct GetKeys {}

/// Public keys, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Keys {
    /// As in RFC 8037: `kty` OKP, `crv` Ed25519.
    pub keys: Vec<Key>,
}

/// An Ed25519 public key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// Which key a token's header names.
    pub kid: String,
    /// The 32 bytes, base64url without padding.
    pub x: String,
}

/// Reads an account: one's own, or anybody's for staff. Errors: `not_found`, `forbidden`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "user.get", reply = User, idempotent)]
pub struct GetUser {
    /// Which.
    pub user_id: UserId,
}

/// Lists accounts, for staff.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "user.list", reply = Page<User>, idempotent)]
pub struct ListUsers {
    /// Part of the name or address.
    pub q: Option<String>,
    /// Only those with this role.
    pub role: Option<Role>,
    /// Which page.
    pub page: PageRequest,
}

/// Changes an account. Errors: `validation`, `version_conflict`, `email_taken`, `unauthenticated`
/// when the old password is wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "user.update", reply = User)]
pub struct UpdateUser {
    /// Which.
    pub user_id: UserId,
    /// The version that was read.
    pub expected_version: u64,
    /// A new name.
    pub name: Option<String>,
    /// A new address, which then has to be verified.
    pub email: Option<String>,
    /// A new language.
    pub locale: Option<String>,
    /// A new password.
    pub password: Option<ChangePassword>,
}

/// A change of password; it ends all other sessions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangePassword {
    /// The one that was.
    pub old: Secret,
    /// The one that is to be.
    pub new: Secret,
}

impl UpdateUser {
    /// # Errors
    /// `validation`.
    pub fn validate(&self) -> Result<(), RpcError> {
        let mut fields = Fields::new();
        if let Some(name) = &self.name {
            fields.length(name.trim(), 1..=120, "/name");
        }
        if let Some(email) = &self.email {
            check_email(&mut fields, email);
        }
        if let Some(locale) = &self.locale {
            fields.length(locale, 2..=16, "/locale");
        }
        if let Some(password) = &self.password {
            check_password(&mut fields, &password.new, "/password/new");
        }
        fields.finish()
    }
}

/// An account was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(pattern = "user.registered", key = user_id)]
pub struct UserRegistered {
    /// Id.
    pub user_id: UserId,
    /// The account.
    pub user: User,
    /// When, which version.
    pub meta: Meta,
}
