//! Registering, signing in, one's own account.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use contracts::{
    Secret,
    user::{ChangePassword, GetUser, Login, Register, Tokens, UpdateUser, User},
};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    Gateway,
    auth::SignedIn,
    body::Body,
    calls::Calls,
    docs,
    error::Problem,
    version::{expected, tagged},
};

#[derive(Deserialize, ToSchema)]
pub(crate) struct RegisterBody {
    email: String,
    /// At least ten characters.
    #[schema(value_type = String)]
    password: Secret,
    name: String,
    /// `en` unless said otherwise.
    locale: Option<String>,
}

/// Makes an account.
#[utoipa::path(
    post, path = "/v1/auth/register", tag = "accounts",
    request_body = RegisterBody,
    responses((status = 201, description = "the account", body = docs::User)),
)]
pub(crate) async fn register(
    State(gateway): State<Gateway>,
    calls: Calls,
    Body(body): Body<RegisterBody>,
) -> Result<(StatusCode, Json<User>), Problem> {
    let RegisterBody {
        email,
        password,
        name,
        locale,
    } = body;
    let locale = locale.unwrap_or_else(|| "en".to_owned());
    let message = Register {
        email,
        password,
        name,
        locale,
    };
    let user = calls.send(&gateway.clients.user, message).await?;
    Ok((StatusCode::CREATED, Json(user)))
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct LoginBody {
    email: String,
    #[schema(value_type = String)]
    password: Secret,
    /// What one signs in from.
    #[serde(default)]
    device: String,
}

/// Signs in.
#[utoipa::path(
    post, path = "/v1/auth/login", tag = "accounts",
    request_body = LoginBody,
    responses((status = 200, description = "a token for 15 minutes", body = docs::Tokens)),
)]
pub(crate) async fn login(
    State(gateway): State<Gateway>,
    calls: Calls,
    Body(body): Body<LoginBody>,
) -> Result<Json<Tokens>, Problem> {
    let LoginBody {
        email,
        password,
        device,
    } = body;
    let message = Login {
        email,
        password,
        device,
    };
    Ok(Json(calls.send(&gateway.clients.user, message).await?))
}

/// One's own account.
#[utoipa::path(
    get, path = "/v1/me", tag = "accounts", security(("bearer" = [])),
    responses(
        (status = 200, description = "the account; `ETag` is its version", body = docs::User),
        (status = 304, description = "`If-None-Match` names this version"),
    ),
)]
pub(crate) async fn me(
    State(gateway): State<Gateway>,
    calls: Calls,
    SignedIn(actor): SignedIn,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let message = GetUser {
        user_id: actor.user_id,
    };
    let user = calls
        .by(&actor)
        .send(&gateway.clients.user, message)
        .await?;
    Ok(tagged(user.version, user, &headers))
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeBody {
    name: Option<String>,
    email: Option<String>,
    locale: Option<String>,
    password: Option<PasswordBody>,
    /// The version that was read, where it is not in `If-Match`.
    expected_version: Option<u64>,
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct PasswordBody {
    #[schema(value_type = String)]
    old: Secret,
    /// At least ten characters.
    #[schema(value_type = String)]
    new: Secret,
}

/// Changes one's own account.
#[utoipa::path(
    patch, path = "/v1/me", tag = "accounts", security(("bearer" = [])),
    params(("If-Match" = Option<String>, Header, description = "the `ETag` that was read")),
    request_body = ChangeBody,
    responses((status = 200, description = "the account as it is now", body = docs::User)),
)]
pub(crate) async fn change_me(
    State(gateway): State<Gateway>,
    calls: Calls,
    SignedIn(actor): SignedIn,
    headers: HeaderMap,
    Body(body): Body<ChangeBody>,
) -> Result<Response, Problem> {
    let message = UpdateUser {
        user_id: actor.user_id,
        expected_version: expected(&headers, body.expected_version)?,
        name: body.name,
        email: body.email,
        locale: body.locale,
        password: body
            .password
            .map(|PasswordBody { old, new }| ChangePassword { old, new }),
    };
    let user = calls
        .by(&actor)
        .send(&gateway.clients.user, message)
        .await?;
    // The reader's conditions are not the writer's.
    Ok(tagged(user.version, user, &HeaderMap::new()))
}
