//! The service of `docs/nestjs.md`, as NestJS has it and as nestling has it: its callers see no difference.

use nestling::Server;
use nestling_testkit::{nestjs, or_skip};
use serde_json::{Value, json};

#[path = "../../examples/warehouse.rs"]
#[allow(dead_code, reason = "the example has a `main`")]
mod example;

use crate::{
    caller::{Caller, Failure},
    names::{Names, object, string},
    stage::{self, Place, Side, connect, eventually, within},
};

const ANYWHERE: &str = "tcp://127.0.0.1:0";

#[test]
fn a_nestjs_client_sees_no_difference() {
    check(Side::Nest);
}

#[test]
fn a_nestling_client_sees_no_difference() {
    check(Side::Nestling);
}

fn check(caller: Side) {
    if or_skip(nestjs::modules()).is_none() {
        return;
    }
    stage::block_on(async {
        let before = Place::program("warehouse.mjs", ANYWHERE.to_owned(), &[]).await;
        behaves(&connect(caller, &before.url, &before.names).await).await;

        let server = Server::new("warehouse", example::router()).listen(ANYWHERE);
        let after = within("a server to start", server.start()).await.unwrap();
        behaves(&connect(caller, after.address(), &Names::new()).await).await;
    });
}

async fn behaves(caller: &Caller) {
    let (stock, reserve) = (object(r#"{"cmd":"stock"}"#), string("stock.reserve"));
    let amount = |sku: &str, count: u32| json!({ "sku": sku, "count": count });

    assert_eq!(caller.send(&stock, &json!("tea"), &[]).await, Ok(json!(3)));
    let unknown = caller.send(&stock, &json!("hat"), &[]).await;
    fails(unknown, "NOT_FOUND", "no such article", None);
    let missing = caller.send(&reserve, &amount("tea", 5), &[]).await;
    let details = json!({ "missing": 2 });
    fails(missing, "FAILED_PRECONDITION", "not enough", Some(&details));
    let left = caller.send(&reserve, &amount("mug", 4), &[]).await;
    assert_eq!(left, Ok(json!({ "sku": "mug", "left": 6 })));

    let delivered = string("stock.delivered");
    caller.emit(&delivered, &amount("tea", 2), &[]).await;
    eventually("the delivery to be seen", || async {
        let left = caller.send(&stock, &json!("tea"), &[]).await;
        (left == Ok(json!(5))).then_some(())
    })
    .await;

    let list = caller.stream(&string("stock.list"), &json!({}), None).await;
    assert_eq!(list.failure, None);
    let (mug, tea) = (
        json!({ "sku": "mug", "left": 6 }),
        json!({ "sku": "tea", "left": 5 }),
    );
    assert_eq!(list.values, [mug, tea]);
}

#[track_caller]
fn fails(outcome: Result<Value, Failure>, code: &str, message: &str, details: Option<&Value>) {
    let code = serde_json::from_value(json!(code)).unwrap();
    match outcome {
        Ok(value) => panic!("{code} was expected, not {value}"),
        Err(failure) => assert!(failure.is(code, message, details), "{failure:?}"),
    }
}
