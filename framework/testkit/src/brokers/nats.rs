//! `nats-server` with JetStream.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    process::Command,
};

use super::{Broker, Kind, Prepared, Unavailable, connect, find_program, names, security};

/// The greeting is a few hundred bytes; nobody else's server may make us read for ever.
const GREETING_LIMIT: u64 = 16 * 1024;

/// A client that is gone without a word is noticed in seconds, and not in the six minutes of the defaults: until then its
/// share of a queue group's work goes to it.
const SETTINGS: &str = "ping_interval: \"2s\"\nping_max: 2\nwrite_deadline: \"5s\"\n";

pub(super) fn prepare(broker: &Broker) -> Result<Prepared, Unavailable> {
    let program = find_program("nats-server").ok_or_else(|| Kind::Nats.missing("nats-server"))?;
    let name = names::unique("nestling");
    let settings = broker.data_dir.join("nats.conf");
    fs::write(&settings, SETTINGS).map_err(|error| {
        Kind::Nats.unavailable(format_args!("write {}: {error}", settings.display()))
    })?;
    let mut command = Command::new(program);
    command
        .arg("-c")
        .arg(&settings)
        .args(["-a", "127.0.0.1", "-p", &broker.port.to_string(), "-js"])
        .arg("-sd")
        .arg(&broker.data_dir)
        .args(["--name", &name]);
    if let Some(security) = &broker.security {
        let folder = &broker.data_dir;
        command
            .args(["--tls", "--tlsverify", "--tlscacert"])
            .arg(security::authority(folder))
            .arg("--tlscert")
            .arg(security::certificate(folder))
            .arg("--tlskey")
            .arg(security::key(folder))
            .args(["--user", &security.user, "--pass", &security.password]);
    }
    let probe = move |port, _pid| greets_as(port, &name);
    Ok(Prepared {
        command,
        probe: Box::new(probe),
    })
}

/// A server speaks first, and its greeting has its name; TLS begins behind it.
fn greets_as(port: u16, name: &str) -> io::Result<bool> {
    let stream = connect(port)?;
    let mut greeting = String::new();
    BufReader::new(stream.take(GREETING_LIMIT)).read_line(&mut greeting)?;
    Ok(greeting.starts_with("INFO ") && greeting.contains(&format!("\"{name}\"")))
}
