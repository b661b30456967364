//! What goes wrong, and that everything else goes on.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use nestling::{Code, Router, RpcError, transport::Wire};

use super::{
    fixture::{Stage, echo},
    witness::Gate,
};

/// The error of a handler reaches its caller whole, but for what is only for the log.
pub async fn a_typed_error_keeps_code_message_and_details(stage: Stage) {
    let pattern = stage.pattern("fail");
    let details = || serde_json::json!({ "sku": "é-7", "left": 3 });
    let fail = move || async move {
        let error = RpcError::failed_precondition("out of “stock”\n").with_details(details());
        Err::<(), _>(error.with_source("a secret of the service"))
    };
    let server = stage.start(Router::new().message_at(pattern, fail)).await;
    let client = stage.client(&[&server]).await;

    let error = client.send_at::<()>(pattern, &()).await.unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    assert_eq!(error.message, "out of “stock”\n");
    assert_eq!(error.details, Some(details()));
    assert!(!format!("{error:?}").contains("secret"));
}

/// Nobody handles the pattern: the caller learns it at once, or by its deadline.
pub async fn an_unknown_pattern_is_an_error(stage: Stage) {
    let (known, unknown) = (stage.pattern("known"), stage.pattern("unknown"));
    let server = stage
        .start(Router::new().message_at(known, echo::<u64>))
        .await;
    let client = stage.client(&[&server]).await;
    assert_eq!(client.send_at::<u64>(known, &1).await, Ok(1));

    if stage.capabilities().detects_absence {
        let patience = Duration::from_secs(30);
        let asked = Instant::now();
        let error = client
            .send_at::<u64>(unknown, &2)
            .timeout(patience)
            .await
            .unwrap_err();
        assert!(
            matches!(error.code, Code::Unimplemented | Code::Unavailable),
            "{error:?}"
        );
        assert!(
            asked.elapsed() < patience / 2,
            "it took {:?}",
            asked.elapsed()
        );
    } else {
        let patience = Duration::from_millis(500);
        let error = client
            .send_at::<u64>(unknown, &2)
            .timeout(patience)
            .await
            .unwrap_err();
        let expected = [
            Code::Unimplemented,
            Code::Unavailable,
            Code::DeadlineExceeded,
        ];
        assert!(expected.contains(&error.code), "{error:?}");
    }
    assert_eq!(client.send_at::<u64>(known, &3).await, Ok(3));
}

/// A payload that is not what the handler takes is refused before it runs.
pub async fn an_undecodable_payload_is_the_callers_fault(stage: Stage) {
    let pattern = stage.pattern("number");
    let server = stage
        .start(Router::new().message_at(pattern, echo::<u64>))
        .await;
    let client = stage.client(&[&server]).await;

    let error = client.send_at::<u64>(pattern, &"seven").await.unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument);
    // NestJS's wire carries JSON, whatever a header calls it.
    if client.wire() == Wire::Native {
        let foreign = client
            .send_at::<u64>(pattern, &7)
            .header("content-type", "application/x-strange");
        assert_eq!(foreign.await.unwrap_err().code, Code::InvalidArgument);
    }
    assert_eq!(client.send_at::<u64>(pattern, &7).await, Ok(7));
}

/// A caller waits as long as it said, the handler is stopped by then, and both ends go on.
pub async fn a_call_without_a_reply_times_out_and_is_forgotten(stage: Stage) {
    let (slow, fast) = (stage.pattern("slow"), stage.pattern("fast"));
    let (started, ended) = (Gate::new(), Gate::new());
    let wait = move || async move {
        let _ended = ended.on_drop();
        started.open();
        pending::<Result<(), RpcError>>().await
    };
    let router = Router::new()
        .message_at(slow, wait)
        .message_at(fast, echo::<u64>);
    let server = stage.start(router).await;
    let client = stage.client(&[&server]).await;
    assert_eq!(client.send_at::<u64>(fast, &1).await, Ok(1));

    let patience = Duration::from_secs(3);
    let asked = Instant::now();
    let error = client
        .send_at::<()>(slow, &())
        .timeout(patience)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    assert!(
        asked.elapsed() >= patience / 2,
        "it took only {:?}",
        asked.elapsed()
    );
    started.opened("the handler to start").await;
    ended.opened("the handler to be dropped").await;
    assert_eq!(client.send_at::<u64>(fast, &2).await, Ok(2));
}

/// A handler that panics, at once or later, costs its own caller an error and nobody else anything.
pub async fn a_panic_is_internal_and_the_server_goes_on(stage: Stage) {
    let (at_once, later, fine) = (
        stage.pattern("once"),
        stage.pattern("later"),
        stage.pattern("fine"),
    );
    let panic_at_once = || async { panic!("on purpose: a secret") };
    let panic_later = || async {
        tokio::task::yield_now().await;
        panic!("on purpose: a secret")
    };
    let router = Router::new()
        .message_at(at_once, move || async move {
            panic_at_once().await as Result<(), RpcError>
        })
        .message_at(later, move || async move {
            panic_later().await as Result<(), RpcError>
        })
        .message_at(fine, echo::<u64>);
    let server = stage.start(router).await;
    let client = stage.client(&[&server]).await;

    for pattern in [at_once, later] {
        let error = client.send_at::<()>(pattern, &()).await.unwrap_err();
        assert_eq!(error.code, Code::Internal);
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        assert_eq!(client.send_at::<u64>(fine, &7).await, Ok(7));
    }
}
