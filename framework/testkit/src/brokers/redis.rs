//! `redis-server` with an append-only file, or with nothing on disk.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::Command,
};

use super::{Broker, Kind, Prepared, Security, Unavailable, connect, find_program, security};

/// The server's account of itself is a few hundred bytes.
const ANSWER_LIMIT: u64 = 64 * 1024;
const QUESTION: &str = "PING\r\nINFO server\r\n";

pub(super) fn prepare(broker: &Broker) -> Result<Prepared, Unavailable> {
    let program =
        find_program("redis-server").ok_or_else(|| Kind::Redis.missing("redis-server"))?;
    let append_only = if broker.volatile { "no" } else { "yes" };
    let mut command = Command::new(program);
    let port = broker.port.to_string();
    command.args(["--bind", "127.0.0.1"]);
    let probe = match &broker.security {
        None => {
            command.args(["--port", &port]);
            let ask = |port, pid| answers(connect(port)?, QUESTION, pid);
            Box::new(ask) as Box<dyn Fn(u16, u32) -> io::Result<bool>>
        }
        Some(security) => {
            let door = secure(&mut command, security, broker);
            let (user, password) = (&security.user, &security.password);
            let question = format!("AUTH {user} {password}\r\n{QUESTION}");
            Box::new(move |_, pid| answers(UnixStream::connect(&door)?, &question, pid))
        }
    };
    command
        .arg("--dir")
        .arg(&broker.data_dir)
        // The append-only file alone survives a kill; snapshots beside it would only be written twice.
        .args(["--appendonly", append_only, "--save", ""]);
    Ok(Prepared { command, probe })
}

/// Only TLS on the port; and a door for the probe, which speaks none.
fn secure(command: &mut Command, security: &Security, broker: &Broker) -> PathBuf {
    let (folder, port) = (&broker.data_dir, broker.port.to_string());
    let door = folder.join("probe.sock");
    command
        .args(["--port", "0", "--tls-port", &port, "--tls-auth-clients"])
        .args(["yes", "--tls-ca-cert-file"])
        .arg(security::authority(folder))
        .arg("--tls-cert-file")
        .arg(security::certificate(folder))
        .arg("--tls-key-file")
        .arg(security::key(folder))
        .arg("--unixsocket")
        .arg(&door)
        .args(["--user", "default", "off"])
        .args(["--user", &security.user, "on", "~*", "&*", "+@all"])
        .arg(format!(">{}", security.password));
    door
}

/// `PING` is refused while the data is being loaded; the pid tells our server from another on the same port.
fn answers(mut stream: impl Read + Write, question: &str, pid: u32) -> io::Result<bool> {
    stream.write_all(question.as_bytes())?;
    let mut lines = BufReader::new(stream.take(ANSWER_LIMIT)).lines();
    let mut first = lines.next().transpose()?;
    if first.as_deref() == Some("+OK") {
        first = lines.next().transpose()?;
    }
    if first.as_deref() != Some("+PONG") {
        return Ok(false);
    }
    let ours = format!("process_id:{pid}");
    for line in lines {
        let line = line?;
        if line.starts_with("process_id:") {
            return Ok(line == ours);
        }
    }
    Ok(false)
}
