use std::{collections::HashMap, time::Duration};

use contracts::{Currency, ProductId, TaxRate, order::OrderStatus as Status, product::Fulfilment};

use super::*;

fn start() -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000)
}

fn after(seconds: u64) -> Timestamp {
    start().plus(Duration::from_secs(seconds))
}

fn method() -> MethodId {
    MethodId::derive("card")
}

fn placed(method_id: Option<MethodId>) -> Order {
    let money = |amount| Money::new(amount, Currency::EUR);
    let line = OrderLine {
        line_id: 1,
        product_id: ProductId::derive("lamp"),
        sku: "lamp".to_owned(),
        name: "Lamp".to_owned(),
        fulfilment: Fulfilment::Physical,
        qty: 1,
        unit_net: money(100),
        net: money(100),
        tax_rate: TaxRate(1900),
        tax: money(19),
        state: LineState::Pending,
    };
    let fact = Fact::Placed(Box::new(Placed {
        number: "N-1".to_owned(),
        user_id: UserId::derive("ada"),
        email: "ada@example.org".to_owned(),
        lines: vec![line],
        totals: Totals {
            items_net: money(100),
            shipping_net: money(0),
            tax: money(19),
            gross: money(119),
        },
        address: None,
        shipping_option: None,
        method_id,
        cart: "cart".to_owned(),
        reserve_by: after(60),
    }));
    let mut order = Order::blank(OrderId::derive("1"));
    order.apply(&fact, start());
    order
}

fn feed(order: &mut Order, input: &Input, now: Timestamp) -> Vec<Fact> {
    let facts = order.decide(input, now).unwrap();
    for fact in &facts {
        order.apply(fact, now);
    }
    facts
}

fn held() -> Input {
    Input::Held {
        until: after(900),
        pay_by: after(600),
    }
}

fn declined(attempt: u32) -> Input {
    Input::Declined {
        attempt,
        code: "card_declined".to_owned(),
        message: String::new(),
    }
}

fn kinds(facts: &[Fact]) -> Vec<&'static str> {
    facts.iter().map(Fact::kind).collect()
}

/// Everything that can arrive at any time.
fn inputs(order: &Order) -> Vec<Input> {
    let mut inputs = vec![
        Input::Pay {
            method_id: method(),
        },
        Input::Cancel {
            reason: "no more".to_owned(),
        },
        held(),
        Input::Short { lines: vec![] },
        Input::HoldRefused,
        Input::Tick,
        Input::Released,
        Input::StockExpired,
    ];
    let amount = order.totals.gross;
    for attempt in 1..=3 {
        let payment_id = payment_id(order.id, attempt);
        inputs.extend([Input::Authorized { attempt }, declined(attempt)]);
        for reversal in [Reversal::Voided, Reversal::Refunded, Reversal::Nothing] {
            inputs.push(Input::Reversed { attempt, reversal });
        }
        inputs.extend([
            Input::Captured { payment_id, amount },
            Input::Refunded {
                payment_id,
                amount,
                full: false,
            },
            Input::Refunded {
                payment_id,
                amount,
                full: true,
            },
            Input::Voided { payment_id },
        ]);
    }
    inputs
}

fn is_allowed(from: Status, to: Status) -> bool {
    use Status::{AwaitingPayment, Cancelled, Cancelling, Confirmed, Placed, Rejected};
    from == to
        || matches!(
            (from, to),
            (Placed, AwaitingPayment | Rejected | Cancelling)
                | (AwaitingPayment, Confirmed | Rejected | Cancelling)
                | (Confirmed, Cancelling)
                | (Cancelling, Cancelled)
        )
}

fn check_invariants(order: &Order) {
    let is_over = order.next_step().is_none();
    if order.status == Status::Cancelled || order.status == Status::Rejected {
        assert!(
            order
                .lines
                .iter()
                .all(|line| line.state == LineState::Cancelled)
        );
    }
    if is_over {
        assert!(
            order.status.is_settled(),
            "nothing will ever happen to {order:?}"
        );
        assert_eq!(order.undo, Undo::default());
        if order.status == Status::Confirmed {
            assert!(!matches!(
                order.payment,
                PaymentStatus::None | PaymentStatus::Failed
            ));
        } else {
            let is_kept = order.payment == PaymentStatus::Authorized;
            assert!(!is_kept, "money is kept for nothing: {order:?}");
        }
    }
    assert!(order.attempt <= 3);
    assert!(!order.was_confirmed || order.attempt > 0);
    if order.undo != Undo::default() {
        assert_eq!(order.next_step(), Some(Step::Compensate));
    }
}

/// Every state that can be reached from a placed order, by every input, early and late.
#[test]
fn every_reachable_order_moves_only_as_the_table_says_and_never_gets_stuck() {
    let key = |order: &Order| {
        format!(
            "{:?}",
            Order {
                version: 0,
                ..order.clone()
            }
        )
    };
    let mut seen = HashMap::new();
    let mut queue = vec![placed(Some(method())), placed(None)];
    while let Some(order) = queue.pop() {
        if seen.insert(key(&order), order.status).is_some() {
            continue;
        }
        check_invariants(&order);
        for input in inputs(&order) {
            for now in [after(1), after(899), after(2000)] {
                let Ok(facts) = order.decide(&input, now) else {
                    continue;
                };
                let mut next = order.clone();
                for fact in &facts {
                    let before = next.status;
                    next.apply(fact, now);
                    assert!(is_allowed(before, next.status), "{before:?} by {fact:?}");
                }
                assert_eq!(next.version, order.version + facts.len() as u64);
                queue.push(next);
            }
        }
    }
    for status in [
        Status::Confirmed,
        Status::Rejected,
        Status::Cancelling,
        Status::Cancelled,
    ] {
        assert!(
            seen.values().any(|other| *other == status),
            "{status:?} is never reached"
        );
    }
    assert!(seen.len() > 100, "{}", seen.len());
}

/// From every reachable state, acknowledging what is asked for settles the order.
#[test]
fn whoever_answers_its_steps_settles_an_order() {
    for (stock, money) in [(held(), true), (held(), false), (Input::HoldRefused, true)] {
        for cancel_after in 0..8 {
            let mut order = placed(Some(method()));
            for turn in 0..20 {
                if turn == cancel_after && order.can_cancel() {
                    feed(
                        &mut order,
                        &Input::Cancel {
                            reason: "x".to_owned(),
                        },
                        after(1),
                    );
                }
                let attempt = order.attempt;
                match order.next_step() {
                    Some(Step::Reserve) => feed(&mut order, &stock, after(1)),
                    Some(Step::Authorize) if money => {
                        feed(&mut order, &Input::Authorized { attempt }, after(1))
                    }
                    Some(Step::Authorize) => feed(&mut order, &declined(attempt), after(1)),
                    Some(Step::AwaitPayment) if attempt < 3 => feed(
                        &mut order,
                        &Input::Pay {
                            method_id: method(),
                        },
                        after(1),
                    ),
                    Some(Step::AwaitPayment) => feed(&mut order, &Input::Tick, after(600)),
                    Some(Step::Compensate) => {
                        feed(&mut order, &Input::Released, after(1));
                        let reversal = Reversal::Nothing;
                        feed(&mut order, &Input::Reversed { attempt, reversal }, after(1))
                    }
                    None => break,
                };
            }
            assert_eq!(order.next_step(), None, "{order:?}");
            assert!(order.status.is_settled());
        }
    }
}

#[test]
fn stock_then_money_confirms() {
    let mut order = placed(Some(method()));
    assert_eq!(
        kinds(&feed(&mut order, &held(), after(1))),
        ["awaiting_payment", "payment_requested"]
    );
    assert_eq!(order.next_step(), Some(Step::Authorize));
    assert_eq!(
        kinds(&feed(
            &mut order,
            &Input::Authorized { attempt: 1 },
            after(2)
        )),
        ["confirmed"]
    );
    assert_eq!(
        (order.status, order.payment),
        (Status::Confirmed, PaymentStatus::Authorized)
    );
    assert!(order.can_cancel());
    assert_eq!(
        feed(&mut order, &Input::Authorized { attempt: 1 }, after(3)),
        []
    );
    assert_eq!(feed(&mut order, &held(), after(3)), []);
}

#[test]
fn the_third_refusal_rejects_with_its_code_and_undoes() {
    let mut order = placed(Some(method()));
    feed(&mut order, &held(), after(1));
    for attempt in 1..=2 {
        assert_eq!(
            kinds(&feed(&mut order, &declined(attempt), after(2))),
            ["payment_failed"]
        );
        assert_eq!(order.next_step(), Some(Step::AwaitPayment));
        feed(
            &mut order,
            &Input::Pay {
                method_id: method(),
            },
            after(3),
        );
    }
    assert!(matches!(
        order.decide(
            &Input::Pay {
                method_id: method()
            },
            after(3)
        ),
        Err(Error::NotPayable)
    ));
    assert_eq!(
        kinds(&feed(&mut order, &declined(3), after(4))),
        ["payment_failed", "rejected"]
    );
    assert_eq!(order.reason.as_deref(), Some("card_declined"));
    assert_eq!(
        order.undo,
        Undo {
            release: true,
            reverse: true
        }
    );
}

#[test]
fn deadlines_reject_with_what_was_missing() {
    let mut order = placed(Some(method()));
    assert_eq!(feed(&mut order, &Input::Tick, after(59)), []);
    feed(&mut order.clone(), &Input::Tick, after(60));
    let mut stuck = order.clone();
    feed(&mut stuck, &Input::Tick, after(60));
    assert_eq!(stuck.reason.as_deref(), Some("stock_unavailable"));

    feed(&mut order, &held(), after(1));
    let mut pending = order.clone();
    feed(&mut pending, &Input::Tick, after(600));
    assert_eq!(pending.reason.as_deref(), Some("payment_timeout"));

    feed(&mut order, &declined(1), after(2));
    feed(&mut order, &Input::Tick, after(600));
    assert_eq!(order.reason.as_deref(), Some("card_declined"));
}

#[test]
fn while_it_is_cancelled_replies_are_noted_and_money_that_arrived_goes_back() {
    let mut order = placed(Some(method()));
    feed(&mut order, &held(), after(1));
    feed(
        &mut order,
        &Input::Cancel {
            reason: "no more".to_owned(),
        },
        after(2),
    );
    assert_eq!(
        feed(
            &mut order,
            &Input::Cancel {
                reason: "again".to_owned()
            },
            after(2)
        ),
        []
    );
    assert_eq!(
        kinds(&feed(
            &mut order,
            &Input::Authorized { attempt: 1 },
            after(2)
        )),
        ["reply_noted"]
    );
    assert_eq!(order.status, Status::Cancelling);
    assert_eq!(
        kinds(&feed(&mut order, &Input::Released, after(3))),
        ["stock_released"]
    );
    let reversed = Input::Reversed {
        attempt: 1,
        reversal: Reversal::Voided,
    };
    assert_eq!(
        kinds(&feed(&mut order, &reversed, after(3))),
        ["payment_reversed", "cancelled"]
    );
    assert_eq!(
        (order.status, order.payment),
        (Status::Cancelled, PaymentStatus::Voided)
    );

    feed(&mut order, &Input::Authorized { attempt: 1 }, after(4));
    assert_eq!(order.next_step(), Some(Step::Compensate));
    feed(&mut order, &reversed, after(5));
    assert_eq!((order.status, order.next_step()), (Status::Cancelled, None));
}

#[test]
fn what_is_packed_or_over_is_not_cancelled() {
    let mut order = placed(Some(method()));
    feed(&mut order, &held(), after(1));
    feed(&mut order, &Input::Authorized { attempt: 1 }, after(2));
    let cancel = Input::Cancel {
        reason: "x".to_owned(),
    };
    assert!(order.decide(&cancel, after(3)).is_ok());
    order.lines[0].state = LineState::Processed;
    assert!(matches!(
        order.decide(&cancel, after(3)),
        Err(Error::NotCancellable)
    ));

    let mut rejected = placed(Some(method()));
    feed(&mut rejected, &Input::HoldRefused, after(1));
    assert!(matches!(
        rejected.decide(&cancel, after(3)),
        Err(Error::NotCancellable)
    ));
}

#[test]
fn stock_that_ran_out_is_held_again_before_money_counts() {
    let mut order = placed(Some(method()));
    feed(&mut order, &held(), after(1));
    assert_eq!(
        kinds(&feed(&mut order, &Input::StockExpired, after(2))),
        ["stock_expired"]
    );
    let authorized = Input::Authorized { attempt: 1 };
    assert_eq!(
        kinds(&feed(&mut order, &authorized, after(3))),
        ["payment_authorized"]
    );
    assert_eq!(order.next_step(), Some(Step::Reserve));
    let mut short = order.clone();
    feed(&mut short, &Input::Short { lines: vec![] }, after(4));
    assert_eq!(short.reason.as_deref(), Some("out_of_stock"));
    assert!(short.undo.reverse);
    assert_eq!(
        kinds(&feed(&mut order, &held(), after(4))),
        ["stock_held", "confirmed"]
    );
}

#[test]
fn without_a_card_it_waits_and_without_a_price_it_does_not() {
    let mut order = placed(None);
    assert_eq!(
        kinds(&feed(&mut order, &held(), after(1))),
        ["awaiting_payment"]
    );
    assert_eq!(order.next_step(), Some(Step::AwaitPayment));

    let mut free = placed(None);
    free.totals.gross = Money::zero(Currency::EUR);
    feed(&mut free, &held(), after(1));
    assert_eq!(free.next_step(), Some(Step::Authorize));
}

#[test]
fn news_of_money_counts_once_and_never_backwards() {
    let mut order = placed(Some(method()));
    feed(&mut order, &held(), after(1));
    feed(&mut order, &Input::Authorized { attempt: 1 }, after(2));
    let (amount, payment_id) = (order.totals.gross, payment_id(order.id, 1));
    let captured = Input::Captured { payment_id, amount };
    assert_eq!(
        kinds(&feed(&mut order, &captured, after(3))),
        ["payment_captured"]
    );
    assert_eq!(feed(&mut order, &captured, after(3)), []);
    feed(
        &mut order,
        &Input::Refunded {
            payment_id,
            amount,
            full: false,
        },
        after(4),
    );
    assert_eq!(order.payment, PaymentStatus::PartiallyRefunded);
    feed(
        &mut order,
        &Input::Refunded {
            payment_id,
            amount,
            full: true,
        },
        after(5),
    );
    assert_eq!(feed(&mut order, &captured, after(6)), []);
    assert_eq!(order.payment, PaymentStatus::Refunded);
    let foreign = contracts::payment::payment_id(order.id, 2);
    assert_eq!(
        feed(
            &mut order,
            &Input::Voided {
                payment_id: foreign
            },
            after(6)
        ),
        []
    );
}

#[test]
fn facts_are_stored_as_json_that_reads_back() {
    let fact = Fact::Rejected {
        reason: "out_of_stock".to_owned(),
        short: vec![],
        undo: Undo {
            release: true,
            reverse: false,
        },
    };
    let text = serde_json::to_string(&fact).unwrap();
    assert_eq!(
        text,
        r#"{"rejected":{"reason":"out_of_stock","short":[],"undo":{"release":true,"reverse":false}}}"#
    );
    assert_eq!(serde_json::from_str::<Fact>(&text).unwrap(), fact);
    assert_eq!(
        serde_json::to_string(&Fact::Cancelled).unwrap(),
        r#""cancelled""#
    );
}
