//! Accounts that are there from the start.

use contracts::{Role, Secret, Timestamp, UserId, user::User};
use nestling::RpcError;
use sqlx::SqlitePool;

use crate::{account::normal_email, password::Passwords, store};

/// A login for trying things out; its password is public.
#[derive(Clone, Copy, Debug)]
pub struct DemoAccount {
    /// Address.
    pub email: &'static str,
    /// Password.
    pub password: &'static str,
    /// Name.
    pub name: &'static str,
    /// What it may do.
    pub roles: &'static [Role],
}

/// One login for each way to use the demo shop.
pub const DEMO_ACCOUNTS: [DemoAccount; 3] = [
    DemoAccount {
        email: "customer@example.org",
        password: "customer-demo",
        name: "Casey Customer",
        roles: &[Role::Customer],
    },
    DemoAccount {
        email: "manager@example.org",
        password: "manager-demo",
        name: "Morgan Manager",
        roles: &[Role::Customer, Role::Manager],
    },
    DemoAccount {
        email: "admin@example.org",
        password: "admin-demo-1",
        name: "Avery Admin",
        roles: &[Role::Customer, Role::Admin],
    },
];

/// Makes the demo logins that are not there.
///
/// # Errors
/// When the database cannot.
pub async fn seed_demo(pool: &SqlitePool) -> Result<(), RpcError> {
    for account in DEMO_ACCOUNTS {
        let DemoAccount {
            email,
            password,
            name,
            roles,
        } = account;
        seed_account(pool, email, password, name, roles).await?;
    }
    Ok(())
}

/// Makes an account with these roles unless its address has one; nobody is told by an event.
/// Returns its id, which follows from the address.
///
/// # Errors
/// When the database cannot.
pub async fn seed_account(
    pool: &SqlitePool,
    email: &str,
    password: &str,
    name: &str,
    roles: &[Role],
) -> Result<UserId, RpcError> {
    store::create_tables(pool).await?;
    let email = normal_email(email);
    if let Some(id) = store::id_of(pool, &email).await? {
        return Ok(id);
    }
    let hash = Passwords::new().await?.hash(&Secret::new(password)).await?;
    let user = User {
        id: UserId::derive(&email),
        email,
        name: name.to_owned(),
        roles: roles.to_vec(),
        locale: "en".to_owned(),
        verified: true,
        disabled: false,
        version: 1,
        created_at: Timestamp::now(),
    };
    store::insert_unless_there(pool, &user, &hash).await?;
    Ok(user.id)
}
