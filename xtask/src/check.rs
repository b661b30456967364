//! `up --check`: one order from end to end over HTTP, and what came of it.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use ureq::{
    Agent,
    http::{HeaderMap, Method, Request, Response},
};

use nestling_testkit::unique;

use crate::fleet::{Home, SERVICES};

/// What an answer may take: the gateway's own limit for writes and the wait it was asked for.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// What follows from a confirmed order comes by events.
const EFFECT_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
const QUANTITY: i64 = 2;
/// What services log while they are checked: each of their own calls, with how long it took.
pub(crate) const LOG_FILTER: &str = "info,nestling::calls=debug";

/// A client for the gateway. A status is an answer, not an error.
pub(crate) fn agent(limit: Duration) -> Agent {
    Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        .build()
        .into()
}

/// Places an order and verifies stock, payment and history.
pub(crate) fn run(base: &str, home: &Home) -> Result<()> {
    println!("\none order, end to end");
    let mut visit = Visit::new(base);
    let outcome = visit.order();
    let behind = visit.hops_behind(home);
    visit.hops.extend(behind);
    visit.print_hops();
    let order = outcome.context("the check failed")?;
    println!("\norder {order} confirmed: stock, payment and history agree");
    Ok(())
}

/// One call or event between two parts of the shop.
struct Hop {
    from: String,
    to: String,
    transport: String,
    pattern: String,
    /// None for an event that was received.
    milliseconds: Option<f64>,
}

struct Visit {
    agent: Agent,
    base: String,
    /// Makes mail address and keys new in every run.
    run: String,
    token: Option<String>,
    /// The trace of the request that placed the order.
    trace: Option<String>,
    hops: Vec<Hop>,
}

impl Visit {
    fn new(base: &str) -> Self {
        Self {
            agent: agent(ANSWER_LIMIT),
            base: format!("{base}/v1"),
            run: unique("check"),
            token: None,
            trace: None,
            hops: Vec::new(),
        }
    }

    fn order(&mut self) -> Result<String> {
        let email = format!("{}@example.com", self.run);
        let password = "correct horse battery";
        self.send(
            "POST",
            "/auth/register",
            &json!({"email": email, "password": password, "name": "Check", "locale": "en"}),
        )?;
        let tokens = self.send(
            "POST",
            "/auth/login",
            &json!({"email": email, "password": password, "device": "xtask"}),
        )?;
        self.token = Some(text(&tokens, "access")?);
        let card =
            json!({"pan": "4242424242424242", "exp": "12/34", "cvc": "123", "holder": "Check"});
        let method = text(&self.send("POST", "/me/payment-methods", &card)?, "id")?;

        let product = self.choose_product()?;
        let before = self.stock(&product)?;
        self.send(
            "PUT",
            &format!("/cart/lines/{product}"),
            &json!({"qty": QUANTITY}),
        )?;
        let quote = self.send(
            "POST",
            "/checkout/quote",
            &json!({"ship_to": {"country": "DE", "postcode": "10115"}, "use_credit": false}),
        )?;
        let placed = self.send(
            "POST",
            "/orders",
            &json!({
                "quote_id": text(&quote, "id")?,
                "address": {
                    "name": "Check", "street": ["Lane 1"], "postcode": "10115", "city": "Berlin", "country": "DE",
                },
                "shipping_option": quote["options"][0]["id"],
                "method_id": method,
                "use_credit": false,
                "email": email,
            }),
        )?;
        let order = text(&placed, "id")?;
        self.verify(&order, &product, before)?;
        Ok(order)
    }

    fn choose_product(&mut self) -> Result<String> {
        let page = self.get("/products?in_stock=true&limit=25")?;
        let items = page["items"].as_array().context("products has no items")?;
        let product = items
            .iter()
            .find(|item| item["available"].as_i64() >= Some(QUANTITY))
            .with_context(|| format!("no product has {QUANTITY} in stock"))?;
        text(product, "id")
    }

    /// How many there are, and how many of them can be sold.
    fn stock(&mut self, product: &str) -> Result<(i64, i64)> {
        let product = self.get(&format!("/products/{product}"))?;
        Ok((number(&product, "on_hand")?, number(&product, "available")?))
    }

    fn verify(&mut self, order: &str, product: &str, before: (i64, i64)) -> Result<()> {
        let path = format!("/orders/{order}");
        self.until("the order to be confirmed", |visit| {
            let order = visit.get(&path)?;
            let status = text(&order, "status")?;
            ensure!(
                !["rejected", "cancelled"].contains(&status.to_lowercase().as_str()),
                "the order was {status}: {order}"
            );
            Ok((status.eq_ignore_ascii_case("confirmed"), status))
        })?;
        self.until("the payment to be captured", |visit| {
            let order = visit.get(&path)?;
            let state = payment_state(&order).to_lowercase();
            Ok((state == "captured", state))
        })?;
        let after = (before.0 - QUANTITY, before.1 - QUANTITY);
        self.until("the stock to go down", |visit| {
            let now = visit.stock(product)?;
            let report = format!("on hand and available were {before:?}, are {now:?}");
            Ok((now == after, report))
        })?;
        let history = self.get(&format!("{path}/timeline"))?;
        let kinds = event_kinds(&history);
        for expected in ["placed", "confirmed"] {
            ensure!(
                kinds.iter().any(|kind| kind == expected),
                "the order's history lacks {expected}: {history}"
            );
        }
        Ok(())
    }

    fn until(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Result<(bool, String)>,
    ) -> Result<()> {
        let deadline = Instant::now() + EFFECT_LIMIT;
        loop {
            let (good, report) = look(self)?;
            if good {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("waited {} s for {what}: {report}", EFFECT_LIMIT.as_secs());
            }
            thread::sleep(POLL);
        }
    }

    fn get(&mut self, path: &str) -> Result<Value> {
        self.call("GET", path, None)
    }

    fn send(&mut self, method: &'static str, path: &str, body: &Value) -> Result<Value> {
        self.call(method, path, Some(body))
    }

    fn call(&mut self, method: &'static str, path: &str, body: Option<&Value>) -> Result<Value> {
        let what = format!("{method} {path}");
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes())?)
            .uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if method == "POST" {
            request = request
                .header("idempotency-key", unique(&self.run))
                .header("prefer", "wait=5");
        }
        let start = Instant::now();
        let answer = match body {
            Some(body) => {
                let request = request.header("content-type", "application/json");
                self.agent.run(request.body(body.to_string())?)
            }
            None => self.agent.run(request.body(())?),
        };
        let mut answer: Response<_> = answer.with_context(|| what.clone())?;
        let text = answer
            .body_mut()
            .read_to_string()
            .with_context(|| what.clone())?;
        self.record(&what, answer.headers(), start.elapsed());
        if what == "POST /orders" {
            let trace = answer.headers().get("traceparent");
            let parts = trace
                .and_then(|trace| trace.to_str().ok())
                .unwrap_or_default()
                .split('-');
            self.trace = parts.skip(1).map(str::to_owned).next();
        }
        ensure!(
            answer.status().is_success(),
            "{what}: {} {text}",
            answer.status()
        );
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{what}: not JSON: {text}"))
    }

    fn record(&mut self, what: &str, headers: &HeaderMap, took: Duration) {
        self.hops.push(Hop {
            from: "client".to_owned(),
            to: "gateway".to_owned(),
            transport: "http".to_owned(),
            pattern: what.split('?').next().unwrap_or(what).to_owned(),
            milliseconds: Some(took.as_secs_f64() * 1000.0),
        });
        let timings = headers
            .get_all("server-timing")
            .iter()
            .filter_map(|value| value.to_str().ok());
        self.hops
            .extend(timings.flat_map(|timing| timing.split(',')).filter_map(hop));
    }

    /// What services sent, emitted and received on behalf of the order, as their logs tell.
    fn hops_behind(&self, home: &Home) -> Vec<Hop> {
        let Some(trace) = &self.trace else {
            return Vec::new();
        };
        let mut hops = Vec::new();
        for service in &SERVICES {
            // A service that logged nothing has made no call.
            let log = fs::read_to_string(home.log(service.name)).unwrap_or_default();
            let lines = log.lines().filter(|line| line.contains(trace.as_str()));
            hops.extend(lines.filter_map(|line| logged_hop(service.name, line)));
        }
        // Calls first, then events as they went out and as they arrived.
        hops.sort_by_key(|hop| (hop.to == BUS, hop.from == BUS));
        hops
    }

    /// The calls in the order they were first made; what was asked again while waiting is counted.
    fn print_hops(&self) {
        let mut rows: Vec<(&Hop, usize)> = Vec::new();
        let mut places: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
        for hop in &self.hops {
            let key = (hop.from.as_str(), hop.to.as_str(), hop.pattern.as_str());
            match places.get(&key) {
                Some(place) => rows[*place].1 += 1,
                None => {
                    places.insert(key, rows.len());
                    rows.push((hop, 1));
                }
            }
        }
        println!(
            "\n{:<28} {:<10} {:<56} {:>8}",
            "hop", "transport", "pattern", "ms"
        );
        for (hop, count) in rows {
            let route = format!("{} → {}", hop.from, hop.to);
            let again = match count {
                1 => String::new(),
                count => format!("  (the first of {count})"),
            };
            let took = hop
                .milliseconds
                .map_or("-".to_owned(), |took| format!("{took:.1}"));
            println!(
                "{route:<28} {:<10} {:<56} {took:>8}{again}",
                hop.transport, hop.pattern
            );
        }
    }
}

/// One entry of a `Server-Timing` header: `order.place;dur=3.2;desc="kafka"`.
fn hop(entry: &str) -> Option<Hop> {
    let mut parts = entry.trim().split(';');
    let pattern = parts.next()?.trim();
    let mut milliseconds = None;
    let mut transport = None;
    for part in parts {
        match part.trim().split_once('=') {
            Some(("dur", value)) => milliseconds = value.parse().ok(),
            Some(("desc", value)) => transport = Some(value.trim_matches('"')),
            _ => {}
        }
    }
    Some(Hop {
        from: "gateway".to_owned(),
        to: owner(pattern)?.to_owned(),
        transport: transport.unwrap_or("?").to_owned(),
        pattern: pattern.to_owned(),
        milliseconds: Some(milliseconds?),
    })
}

/// Where events are between those who emit and those who handle them.
const BUS: &str = "bus";

/// A call that a service logged: `… nestling::calls: kind="sent" pattern="stock.reserve" …`.
fn logged_hop(service: &str, line: &str) -> Option<Hop> {
    let (_, fields) = line.split_once("nestling::calls: ")?;
    let field = |name: &str| {
        let (_, rest) = fields.split_once(&format!("{name}="))?;
        let value = rest.split(' ').next()?;
        Some(value.trim_matches('"').to_owned())
    };
    let pattern = field("pattern")?;
    let (from, to) = match field("kind")?.as_str() {
        "sent" => (service.to_owned(), owner(&pattern)?.to_owned()),
        "emitted" => (service.to_owned(), BUS.to_owned()),
        _ => (BUS.to_owned(), service.to_owned()),
    };
    let micros: Option<f64> = field("micros").and_then(|micros| micros.parse().ok());
    let milliseconds = micros.map(|micros| micros / 1000.0);
    Some(Hop {
        from,
        to,
        transport: field("transport")?,
        pattern,
        milliseconds,
    })
}

/// The service that answers a pattern.
fn owner(pattern: &str) -> Option<&str> {
    let (family, _) = pattern.split_once('.')?;
    Some(match family {
        "category" | "stock" => "product",
        "cart" | "checkout" | "delivery" | "report" => "order",
        "wallet" | "invoice" | "ledger" | "chargeback" => "payment",
        "rec" => "recommendation",
        other => other,
    })
}

/// A field of an answer, or of one of the parts it is composed of.
fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.get(name).or_else(|| {
        let parts = value.as_object()?.values();
        parts.filter_map(|part| part.get(name)).next()
    })
}

fn text(value: &Value, name: &str) -> Result<String> {
    field(value, name)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("the answer has no {name}: {value}"))
}

fn number(value: &Value, name: &str) -> Result<i64> {
    field(value, name)
        .and_then(Value::as_i64)
        .with_context(|| format!("the answer has no {name}: {value}"))
}

/// The order's own word for its payment, or the payment's for itself.
fn payment_state(order: &Value) -> String {
    let payment = field(order, "payment").unwrap_or(&Value::Null);
    let state = payment
        .as_str()
        .or_else(|| payment["state"].as_str())
        .or_else(|| payment["payment"].as_str());
    state.unwrap_or("unknown").to_owned()
}

/// `order.confirmed`, `OrderConfirmed`, `confirmed`: the last word, in lower case.
fn event_kinds(history: &Value) -> Vec<String> {
    let events = match history {
        Value::Array(events) => Some(events),
        other => other
            .as_object()
            .and_then(|parts| parts.values().find_map(Value::as_array)),
    };
    events
        .into_iter()
        .flatten()
        .filter_map(|event| field(event, "type")?.as_str())
        .map(|kind| {
            let word = kind.rsplit('.').next().unwrap_or(kind);
            word.strip_prefix("Order").unwrap_or(word).to_lowercase()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{BUS, event_kinds, hop, logged_hop, payment_state};

    #[test]
    fn a_server_timing_entry_is_a_hop() {
        let hop = hop(r#" stock.get;dur=3.25;desc="tcp""#).unwrap();
        assert_eq!((hop.from.as_str(), hop.to.as_str()), ("gateway", "product"));
        assert_eq!(
            (hop.transport.as_str(), hop.pattern.as_str()),
            ("tcp", "stock.get")
        );
        assert_eq!(hop.milliseconds, Some(3.25));
    }

    #[test]
    fn other_server_timing_entries_are_none() {
        for entry in ["", "cache", "cache;desc=\"hit\"", "total;dur=3"] {
            assert!(hop(entry).is_none(), "{entry}");
        }
    }

    #[test]
    fn payment_and_history_are_found_where_they_are() {
        assert_eq!(payment_state(&json!({"payment": "captured"})), "captured");
        assert_eq!(
            payment_state(&json!({"order": {"payment": "authorized"}})),
            "authorized"
        );
        assert_eq!(
            payment_state(&json!({"payment": {"state": "Captured"}})),
            "Captured"
        );
        let events = json!([{"type": "order.placed"}, {"type": "OrderConfirmed"}]);
        assert_eq!(event_kinds(&events), ["placed", "confirmed"]);
        assert_eq!(
            event_kinds(&json!({"items": events})),
            ["placed", "confirmed"]
        );
    }

    #[test]
    fn a_logged_call_becomes_a_hop() {
        let line = r#"2026-01-01T00:00:00Z DEBUG nestling::calls: kind="sent" pattern="stock.reserve" transport="tcp" micros=1250 ok=true trace="00-ab-cd-01""#;
        let hop = logged_hop("order", line).unwrap();
        assert_eq!((hop.from.as_str(), hop.to.as_str()), ("order", "product"));
        assert_eq!(
            (hop.transport.as_str(), hop.milliseconds),
            ("tcp", Some(1.25))
        );
        let line = r#"DEBUG nestling::calls: kind="handled" pattern="order.confirmed" transport="kafka" trace="""#;
        let hop = logged_hop("payment", line).unwrap();
        assert_eq!((hop.from.as_str(), hop.milliseconds), (BUS, None));
        assert!(logged_hop("order", "INFO nestling::server: listening").is_none());
    }
}
