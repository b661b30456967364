//! Contracts of every shape.
use nestling::{Event, Guarantee, Message, Shape};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct User {
    id: u64,
}

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.get", reply = User, idempotent)]
struct GetUser {
    id: u64,
}

#[derive(Serialize, Deserialize, Message)]
#[message(stream = Vec<(u64, User)>, pattern = "user.list.v2")]
struct ListUsers;

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.set_roles", reply = (),)]
enum SetRoles {
    All(u64),
    One { id: u64, role: String },
}

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "order.placed", key = order)]
struct OrderPlaced {
    order: u64,
    lines: Vec<u8>,
}

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "user.seen", key = 0, best_effort)]
struct UserSeen(String);

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "user.left")]
struct UserLeft;

/// Raw names are keys too.
#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "kind.made", key = r#type)]
struct KindMade {
    r#type: char,
}

fn many<M: Message>() -> bool {
    M::Shape::MANY
}

fn main() {
    assert_eq!(GetUser::PATTERN, "user.get");
    assert!(GetUser::IDEMPOTENT && !many::<GetUser>());
    assert!(!ListUsers::IDEMPOTENT && many::<ListUsers>());
    assert_eq!(SetRoles::PATTERN, "user.set_roles");

    assert_eq!(
        OrderPlaced {
            order: 7,
            lines: vec![]
        }
        .key()
        .as_deref(),
        Some("7")
    );
    assert_eq!(OrderPlaced::DELIVERY, Guarantee::AtLeastOnce);
    assert_eq!(UserSeen("ada".to_owned()).key().as_deref(), Some("ada"));
    assert_eq!(UserSeen::DELIVERY, Guarantee::BestEffort);
    assert_eq!(UserLeft.key(), None);
    assert_eq!(KindMade { r#type: 'x' }.key().as_deref(), Some("x"));
}
