//! What the service answers.

use contracts::{
    Actor, Fields, Page, Reason, Role,
    user::{
        ChangePassword, GetKeys, GetUser, Keys, ListUsers, Login, Register, Tokens, UpdateUser,
        User,
    },
};
use nestling::{RpcError, controller};

use crate::{
    Clock,
    account::{new_user, normal_email},
    cursor::CursorKey,
    error::Error,
    password::Passwords,
    store::{Change, Filter, Store},
    token::{Signer, VALID_S},
};

/// The longest name of a device that is kept.
const DEVICE: usize = 200;

pub(crate) struct UserController {
    pub(crate) store: Store,
    pub(crate) passwords: Passwords,
    pub(crate) signer: Signer,
    pub(crate) cursors: CursorKey,
    pub(crate) clock: Clock,
}

#[controller]
impl UserController {
    #[message_pattern]
    async fn register(&self, request: Register) -> Result<User, Error> {
        request.validate()?;
        let user = new_user(
            &request.email,
            &request.name,
            request.locale,
            (self.clock)(),
        );
        // Looked up before the costly part; the database has the last word.
        if self.store.is_taken(&user.email).await? {
            return Err(Error::EmailTaken);
        }
        let hash = self.passwords.hash(&request.password).await?;
        self.store.register(user, &hash).await
    }

    #[message_pattern]
    async fn login(&self, request: Login) -> Result<Tokens, Error> {
        let now = (self.clock)();
        let found = self
            .store
            .attempt_by_email(&normal_email(&request.email), now)
            .await?;
        let (user, hash) = found.map(|found| (found.user, found.password)).unzip();
        let fits = self.passwords.verify(&request.password, hash).await?;
        let user = user
            .filter(|user| fits && !user.disabled)
            .ok_or(Error::WrongCredentials)?;
        let device: String = request.device.chars().take(DEVICE).collect();
        let session = self.store.begin_session(user.id, &device, now).await?;
        let access = self.signer.sign(&user, session, now)?;
        Ok(Tokens {
            access,
            expires_in: VALID_S,
            user,
        })
    }

    #[message_pattern]
    fn keys(&self, _: GetKeys) -> Result<Keys, RpcError> {
        Ok(self.signer.public())
    }

    #[message_pattern]
    async fn get(&self, request: GetUser, actor: Actor) -> Result<User, Error> {
        actor.require_own(request.user_id)?;
        self.store.get(request.user_id).await
    }

    #[message_pattern]
    async fn list(&self, request: ListUsers, actor: Actor) -> Result<Page<User>, Error> {
        actor.require(&[Role::Support, Role::Manager, Role::Admin])?;
        let mut fields = Fields::new();
        request.page.check(&mut fields);
        fields.finish()?;
        let cursor = request.page.cursor.as_deref();
        let after = cursor.map(|cursor| self.cursors.read(cursor)).transpose()?;
        let limit = request.page.limit;
        let ListUsers { q, role, .. } = request;
        let mut items = self
            .store
            .list(Filter {
                q,
                role,
                after,
                limit,
            })
            .await?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let last = items.last().filter(|_| more);
        let next_cursor = last.map(|last| self.cursors.write(last.id));
        Ok(Page { items, next_cursor })
    }

    #[message_pattern]
    async fn update(&self, request: UpdateUser, actor: Actor) -> Result<User, Error> {
        let is_own = actor.user_id == request.user_id;
        if !is_own {
            actor.require(&[Role::Admin])?;
        }
        request.validate()?;
        let password = match &request.password {
            Some(_) if !is_own => {
                return Err(Reason::Forbidden
                    .error("a password is changed by its owner")
                    .into());
            }
            Some(password) => Some((self.new_hash(&actor, password).await?, actor.session)),
            None => None,
        };
        let change = Change {
            user_id: request.user_id,
            expected_version: request.expected_version,
            name: request.name.map(|name| name.trim().to_owned()),
            email: request.email.map(|email| normal_email(&email)),
            locale: request.locale,
            password,
        };
        self.store.update(change).await
    }

    /// The hash of the new password, if the old one is right. A wrong one counts like a wrong one
    /// at sign-in.
    async fn new_hash(&self, actor: &Actor, password: &ChangePassword) -> Result<String, Error> {
        let found = self.store.attempt(actor.user_id, (self.clock)()).await?;
        let hash = found.map(|found| found.password);
        if !self.passwords.verify(&password.old, hash).await? {
            return Err(Error::WrongCredentials);
        }
        self.store.unlock(actor.user_id).await?;
        self.passwords.hash(&password.new).await
    }
}
