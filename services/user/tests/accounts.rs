//! Accounts and sessions over the memory transport.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use contracts::{
    Actor, PageRequest, Reason, Role, Secret, SessionId, Timestamp, UserId,
    user::{
        ChangePassword, GetKeys, GetUser, ListUsers, Login, Register, Tokens, UpdateUser, User,
        UserRegistered,
    },
};
use nestling::{
    Client, Code, Router, RpcError, Running, Server, sqlite::open_in_memory, transport::Memory,
};
use sqlx::SqlitePool;
use tokio::sync::mpsc;
use user::{App, Background, DEMO_ACCOUNTS, Deps};

const PASSWORD: &str = "correct horse";

struct Shop {
    client: Client,
    pool: SqlitePool,
    time: Arc<AtomicI64>,
    events: mpsc::Receiver<UserRegistered>,
    _servers: [Running; 2],
    _background: Background,
}

impl Shop {
    async fn open() -> Self {
        let memory = Memory::new();
        let pool = open_in_memory().await.unwrap();
        let client = Client::connect(&memory).await.unwrap();
        let time = Arc::new(AtomicI64::new(1_800_000_000_000));
        let clock = Arc::clone(&time);
        let mut deps = Deps::new(pool.clone(), client.clone());
        deps.clock = Arc::new(move || Timestamp::from_millis(clock.load(Ordering::Relaxed)));
        let (heard, events) = mpsc::channel(16);
        let listener = Router::new().event(move |event: UserRegistered| {
            let heard = heard.clone();
            async move { heard.send(event).await.map_err(RpcError::internal) }
        });
        let listener = Server::new("listener", listener)
            .listen(&memory)
            .start()
            .await
            .unwrap();
        let App { router, background } = user::start(deps).await.unwrap();
        let server = Server::new("user", router)
            .listen(&memory)
            .start()
            .await
            .unwrap();
        Self {
            client,
            pool,
            time,
            events,
            _servers: [listener, server],
            _background: background,
        }
    }

    async fn register(&self, email: &str) -> Result<User, RpcError> {
        let (password, name) = (Secret::new(PASSWORD), "Ada".to_owned());
        let request = Register {
            email: email.to_owned(),
            password,
            name,
            locale: "en".to_owned(),
        };
        self.client.send(request).await
    }

    async fn login(&self, email: &str, password: &str) -> Result<Tokens, RpcError> {
        let (password, device) = (Secret::new(password), "test".to_owned());
        self.client
            .send(Login {
                email: email.to_owned(),
                password,
                device,
            })
            .await
    }

    async fn update(&self, actor: &Actor, request: UpdateUser) -> Result<User, RpcError> {
        self.client
            .send(request)
            .header("actor", actor.to_header())
            .await
    }

    fn pass(&self, time: Duration) {
        self.time
            .fetch_add(i64::try_from(time.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

fn actor(user_id: UserId, roles: &[Role]) -> Actor {
    Actor {
        user_id,
        roles: roles.to_vec(),
        session: SessionId::new(),
    }
}

fn change(user: &User) -> UpdateUser {
    UpdateUser {
        user_id: user.id,
        expected_version: user.version,
        name: None,
        email: None,
        locale: None,
        password: None,
    }
}

fn reason(result: Result<impl std::fmt::Debug, RpcError>) -> Reason {
    let error = result.unwrap_err();
    Reason::of(&error).unwrap_or_else(|| panic!("no reason in {error:?}"))
}

#[tokio::test]
async fn who_registers_can_sign_in_and_is_announced() {
    let mut shop = Shop::open().await;
    let user = shop.register("Ada@Example.org").await.unwrap();
    assert_eq!(
        (&*user.email, &*user.roles, user.version),
        ("ada@example.org", &[Role::Customer][..], 1)
    );
    assert_eq!(shop.events.recv().await.unwrap().user, user);

    let tokens = shop.login("ADA@example.org", PASSWORD).await.unwrap();
    assert_eq!((tokens.expires_in, &tokens.user), (900, &user));
    let keys = shop.client.send(GetKeys {}).await.unwrap().keys;
    assert_eq!(keys.len(), 1);
    let (claims, kid) = read(&tokens, &keys[0].x);
    assert_eq!(kid, keys[0].kid);
    assert_eq!(claims.sub, user.id);
    assert_eq!(claims.roles, [Role::Customer]);
}

fn read(tokens: &Tokens, x: &str) -> (contracts::user::Claims, String) {
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::EdDSA);
    validation.set_issuer(&["nestling-shop"]);
    let key = jsonwebtoken::DecodingKey::from_ed_components(x).unwrap();
    let token = jsonwebtoken::decode(tokens.access.expose(), &key, &validation).unwrap();
    (token.claims, token.header.kid.unwrap())
}

#[tokio::test]
async fn an_address_has_one_account_whatever_its_case() {
    let shop = Shop::open().await;
    shop.register("ada@example.org").await.unwrap();
    assert_eq!(
        reason(shop.register("ADA@example.org").await),
        Reason::EmailTaken
    );
    let both = tokio::join!(
        shop.register("bob@example.org"),
        shop.register("Bob@example.org")
    );
    assert!(both.0.is_ok() != both.1.is_ok());
}

#[tokio::test]
async fn what_cannot_be_an_account_is_refused_with_its_fields() {
    let shop = Shop::open().await;
    let request = Register {
        email: "nobody".to_owned(),
        password: Secret::new("short"),
        name: " ".to_owned(),
        locale: "en".to_owned(),
    };
    let error = shop.client.send(request).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Validation));
    let fields = &error.details.unwrap()["errors"];
    let pointers: Vec<_> = (0..3)
        .map(|index| fields[index]["pointer"].as_str().unwrap())
        .collect();
    assert_eq!(pointers, ["/email", "/password", "/name"]);
}

#[tokio::test]
async fn an_unknown_user_and_a_wrong_password_get_one_answer() {
    let shop = Shop::open().await;
    shop.register("ada@example.org").await.unwrap();
    let wrong = shop
        .login("ada@example.org", "wrong horse")
        .await
        .unwrap_err();
    let unknown = shop
        .login("eve@example.org", "wrong horse")
        .await
        .unwrap_err();
    assert_eq!(wrong, unknown);
    assert_eq!(wrong.code, Code::Unauthenticated);
}

#[tokio::test]
async fn five_wrong_passwords_lock_the_account_for_a_while() {
    let shop = Shop::open().await;
    shop.register("ada@example.org").await.unwrap();
    for _ in 0..5 {
        assert_eq!(
            reason(shop.login("ada@example.org", "wrong horse").await),
            Reason::Unauthenticated
        );
    }
    assert_eq!(
        reason(shop.login("ada@example.org", PASSWORD).await),
        Reason::Unauthenticated
    );
    shop.pass(Duration::from_secs(15 * 60));
    shop.login("ada@example.org", PASSWORD).await.unwrap();
}

#[tokio::test]
async fn a_right_password_forgives_the_wrong_ones_before() {
    let shop = Shop::open().await;
    shop.register("ada@example.org").await.unwrap();
    for _ in 0..2 {
        for _ in 0..4 {
            shop.login("ada@example.org", "wrong horse")
                .await
                .unwrap_err();
        }
        shop.login("ada@example.org", PASSWORD).await.unwrap();
    }
}

#[tokio::test]
async fn an_account_is_read_by_its_owner_and_by_staff() {
    let shop = Shop::open().await;
    let ada = shop.register("ada@example.org").await.unwrap();
    let get = async |actor: Option<Actor>, user_id| {
        let mut call = shop.client.send(GetUser { user_id });
        if let Some(actor) = actor {
            call = call.header("actor", actor.to_header());
        }
        call.await
    };
    let customer = [Role::Customer];
    assert_eq!(
        get(Some(actor(ada.id, &customer)), ada.id).await.unwrap(),
        ada
    );
    assert_eq!(
        get(Some(actor(UserId::new(), &[Role::Support])), ada.id)
            .await
            .unwrap(),
        ada
    );
    let stranger = get(Some(actor(UserId::new(), &customer)), ada.id).await;
    assert_eq!(reason(stranger), Reason::Forbidden);
    assert_eq!(reason(get(None, ada.id).await), Reason::Unauthenticated);
    let nobody = UserId::new();
    assert_eq!(
        reason(get(Some(actor(nobody, &customer)), nobody).await),
        Reason::NotFound
    );
}

#[tokio::test]
async fn a_change_needs_the_version_that_was_read() {
    let shop = Shop::open().await;
    let ada = shop.register("ada@example.org").await.unwrap();
    shop.register("bob@example.org").await.unwrap();
    let owner = actor(ada.id, &[Role::Customer]);
    let name = Some("Ada L.".to_owned());
    let changed = shop
        .update(
            &owner,
            UpdateUser {
                name,
                ..change(&ada)
            },
        )
        .await
        .unwrap();
    assert_eq!((&*changed.name, changed.version), ("Ada L.", 2));
    assert_eq!(
        reason(shop.update(&owner, change(&ada)).await),
        Reason::VersionConflict
    );
    let email = Some("Bob@example.org".to_owned());
    let taken = shop
        .update(
            &owner,
            UpdateUser {
                email,
                ..change(&changed)
            },
        )
        .await;
    assert_eq!(reason(taken), Reason::EmailTaken);
    let stranger = actor(UserId::new(), &[Role::Customer]);
    assert_eq!(
        reason(shop.update(&stranger, change(&changed)).await),
        Reason::Forbidden
    );
}

#[tokio::test]
async fn a_new_password_needs_the_old_one() {
    let shop = Shop::open().await;
    let ada = shop.register("ada@example.org").await.unwrap();
    let owner = actor(ada.id, &[Role::Customer]);
    let password = |old: &str| {
        Some(ChangePassword {
            old: Secret::new(old),
            new: Secret::new("battery staple"),
        })
    };
    let wrong = UpdateUser {
        password: password("wrong horse"),
        ..change(&ada)
    };
    assert_eq!(
        reason(shop.update(&owner, wrong).await),
        Reason::Unauthenticated
    );
    let right = UpdateUser {
        password: password(PASSWORD),
        ..change(&ada)
    };
    shop.update(&owner, right).await.unwrap();
    shop.login("ada@example.org", PASSWORD).await.unwrap_err();
    shop.login("ada@example.org", "battery staple")
        .await
        .unwrap();
    let admin = actor(UserId::new(), &[Role::Admin]);
    let foreign = UpdateUser {
        password: password("battery staple"),
        ..change(&ada)
    };
    assert_eq!(
        reason(shop.update(&admin, foreign).await),
        Reason::Forbidden
    );
}

#[tokio::test]
async fn staff_page_through_all_accounts() {
    let shop = Shop::open().await;
    for name in ["a", "b", "c", "d", "e"] {
        shop.register(&format!("{name}@example.org")).await.unwrap();
    }
    let list = async |roles: &[Role], q: Option<&str>, cursor| {
        let page = PageRequest { limit: 2, cursor };
        let request = ListUsers {
            q: q.map(str::to_owned),
            role: Some(Role::Customer),
            page,
        };
        shop.client
            .send(request)
            .header("actor", actor(UserId::new(), roles).to_header())
            .await
    };
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let page = list(&[Role::Support], None, cursor).await.unwrap();
        seen.extend(page.items.into_iter().map(|user| user.email));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    seen.sort();
    assert_eq!(seen.len(), 5);
    seen.dedup();
    assert_eq!(seen.len(), 5);
    let found = list(&[Role::Admin], Some("C@"), None).await.unwrap().items;
    assert_eq!(found.len(), 1);
    assert_eq!(
        reason(list(&[Role::Customer], None, None).await),
        Reason::Forbidden
    );
    let forged = Some("usr_x.00".to_owned());
    assert_eq!(
        reason(list(&[Role::Admin], None, forged).await),
        Reason::Validation
    );
}

#[tokio::test]
async fn the_demo_logins_are_made_once_with_their_roles() {
    let shop = Shop::open().await;
    for _ in 0..2 {
        user::seed_demo(&shop.pool).await.unwrap();
    }
    for account in DEMO_ACCOUNTS {
        let tokens = shop.login(account.email, account.password).await.unwrap();
        assert_eq!(tokens.user.roles, account.roles);
    }
}

#[tokio::test]
async fn the_key_survives_a_restart_in_a_file_of_our_own() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("user.db");
    let memory = Memory::new();
    let client = Client::connect(&memory).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let pool = user::open(&path).await.unwrap();
        let app = user::start(Deps::new(pool.clone(), client.clone()))
            .await
            .unwrap();
        let server = Server::new("user", app.router)
            .listen(&memory)
            .start()
            .await
            .unwrap();
        seen.push(client.send(GetKeys {}).await.unwrap());
        server.shutdown().await;
        drop(app.background);
        pool.close().await;
    }
    assert_eq!(seen[0], seen[1]);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
