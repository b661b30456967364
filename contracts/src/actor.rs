//! Who is asking.

use nestling::{Context, FromContext, RpcError, header};
use serde::{Deserialize, Serialize};

use crate::{Reason, SessionId, UserId};

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Buys.
    Customer,
    /// Helps buyers.
    Support,
    /// Runs the shop.
    Manager,
    /// Delivers.
    Courier,
    /// Runs the system.
    Admin,
}

impl Role {
    /// Its text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Support => "support",
            Self::Manager => "manager",
            Self::Courier => "courier",
            Self::Admin => "admin",
        }
    }
}

/// The user on whose behalf a message is sent, as the gateway found out; a header carries it over
/// all hops. As a handler's argument it refuses messages without one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Actor {
    /// The user.
    pub user_id: UserId,
    /// What the user may do.
    pub roles: Vec<Role>,
    /// The session the user is in.
    pub session: SessionId,
}

impl Actor {
    /// The header's text.
    pub fn to_header(&self) -> String {
        serde_json::to_string(self).expect("ids and unit variants always have a JSON form")
    }

    /// Whether the user has one of `roles`.
    pub fn is_any(&self, roles: &[Role]) -> bool {
        self.roles.iter().any(|role| roles.contains(role))
    }

    /// Staff may see what is not theirs.
    pub fn is_staff(&self) -> bool {
        self.is_any(&[Role::Support, Role::Manager, Role::Admin])
    }

    /// # Errors
    /// `forbidden` unless the user has one of `roles`.
    pub fn require(&self, roles: &[Role]) -> Result<(), RpcError> {
        if self.is_any(roles) {
            Ok(())
        } else {
            Err(Reason::Forbidden.error("not allowed"))
        }
    }

    /// # Errors
    /// `forbidden` unless it is the user's own or the user is staff.
    pub fn require_own(&self, owner: UserId) -> Result<(), RpcError> {
        if self.user_id == owner || self.is_staff() {
            Ok(())
        } else {
            Err(Reason::Forbidden.error("not yours"))
        }
    }
}

impl FromContext for Actor {
    fn from_context(cx: &Context) -> Result<Self, RpcError> {
        let text = cx
            .header(header::ACTOR)
            .ok_or_else(|| Reason::Unauthenticated.error("sign in first"))?;
        serde_json::from_str(text).map_err(|error| {
            Reason::Malformed
                .error("the actor header is malformed")
                .with_source(error)
        })
    }
}
