//! What a developer is told once the shop runs.

use std::fs;

use crate::fleet::{Addresses, Fleet, Home, SERVICES};

/// The name of the process when there is only one.
pub(crate) const EMBEDDED: &str = "shop";

const CARDS: &str = "\
test cards
  4242 4242 4242 4242   approved
  4000 0000 0000 0002   declined: card_declined
  4000 0000 0000 9995   declined: insufficient_funds";

/// A shopper's way from nothing to an order, for any POSIX shell with curl.
const TOUR: &str = r#"an order by hand (paste it as it stands)
  api=BASE/v1
  json='Content-Type: application/json'
  mail="robin-$(date +%s)@example.com"
  first() { grep -o "$1_[0-9A-Za-z]*" | head -n 1; }
  curl -s $api/auth/register -H "$json" -d '{"email":"'$mail'","password":"correct horse battery","name":"Robin","locale":"en"}'; echo
  token=$(curl -s $api/auth/login -H "$json" -d '{"email":"'$mail'","password":"correct horse battery","device":"curl"}' | sed 's/.*"access":"\([^"]*\)".*/\1/')
  me="Authorization: Bearer $token"
  card=$(curl -s $api/me/payment-methods -H "$me" -H "$json" -H "Idempotency-Key: card-$mail" -d '{"pan":"4242424242424242","exp":"12/34","cvc":"123","holder":"Robin"}' | first mth)
  product=$(curl -s "$api/products?in_stock=true&limit=1" | first prd)
  curl -s -X PUT $api/cart/lines/$product -H "$me" -H "$json" -d '{"qty":1}'; echo
  quote=$(curl -s $api/checkout/quote -H "$me" -H "$json" -d '{"ship_to":{"country":"DE","postcode":"10115"},"use_credit":false}' | first quo)
  curl -si $api/orders -H "$me" -H "$json" -H "Idempotency-Key: order-$mail" -H 'Prefer: wait=5' -d '{"quote_id":"'$quote'","address":{"name":"Robin","street":["Lane 1"],"postcode":"10115","city":"Berlin","country":"DE"},"shipping_option":"standard","method_id":"'$card'","use_credit":false,"email":"'$mail'"}'; echo"#;

pub(crate) fn print(base: &str, home: &Home, addresses: Option<&Addresses>, fleet: &Fleet) {
    println!("\ngateway            {base}");
    match addresses {
        Some(addresses) => {
            for service in &SERVICES {
                println!(
                    "  {:<16} {}",
                    service.name, addresses.services[service.name]
                );
            }
            println!("  {:<16} {}", "events", addresses.events);
        }
        None => {
            println!("  every service runs in the gateway's process, over the in-memory transport")
        }
    }
    let logins = logins(home, addresses.is_none());
    if !logins.is_empty() {
        println!("\nlogins");
        for login in logins {
            println!("  {login}");
        }
    }
    println!("\n{CARDS}");
    println!("\n{}", TOUR.replace("BASE", base));
    let pids: Vec<String> = fleet
        .pids()
        .into_iter()
        .map(|(name, pid)| format!("{name} {pid}"))
        .collect();
    let logs = home.0.join("logs");
    let logs = logs.display();
    println!("\n{:<18} {}", "pids", pids.join(", "));
    println!("{:<18} tail -f {logs}/*.log", "follow the logs");
    println!("{:<18} sh {logs}/NAME.cmd", "start one again");
    println!("{:<18} Ctrl-C", "stop");
}

/// The accounts of the demo catalogue, as the program that made them printed them: `login: …`.
fn logins(home: &Home, embedded: bool) -> Vec<String> {
    let log = home.log(if embedded { EMBEDDED } else { "seed" });
    // Without the log there are no logins to show, and everything else works.
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut logins: Vec<String> = Vec::new();
    for login in text.lines().filter_map(|line| line.strip_prefix("login: ")) {
        if !logins.iter().any(|known| known == login) {
            logins.push(login.to_owned());
        }
    }
    logins
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::TOUR;

    #[test]
    fn the_tour_is_valid_shell() {
        let (_, lines) = TOUR.split_once('\n').unwrap();
        let status = Command::new("sh").args(["-n", "-c", lines]).status();
        assert!(status.unwrap().success());
    }
}
