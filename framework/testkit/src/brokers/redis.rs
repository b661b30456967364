//! `redis-server` with an append-only file, or with nothing on disk.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    process::Command,
};

use super::{Broker, Kind, Prepared, Unavailable, connect, find_program};

/// The server's account of itself is a few hundred bytes.
const ANSWER_LIMIT: u64 = 64 * 1024;

pub(super) fn prepare(broker: &Broker) -> Result<Prepared, Unavailable> {
    let program =
        find_program("redis-server").ok_or_else(|| Kind::Redis.missing("redis-server"))?;
    let append_only = if broker.volatile { "no" } else { "yes" };
    let mut command = Command::new(program);
    command
        .args(["--bind", "127.0.0.1", "--port", &broker.port.to_string()])
        .arg("--dir")
        .arg(&broker.data_dir)
        // The append-only file alone survives a kill; snapshots beside it would only be written twice.
        .args(["--appendonly", append_only, "--save", ""]);
    Ok(Prepared {
        command,
        probe: Box::new(answers),
    })
}

/// `PING` is refused while the data is being loaded; the pid tells our server from another on the same port.
fn answers(port: u16, pid: u32) -> io::Result<bool> {
    let mut stream = connect(port)?;
    stream.write_all(b"PING\r\nINFO server\r\n")?;
    let mut lines = BufReader::new(stream.take(ANSWER_LIMIT)).lines();
    if lines.next().transpose()?.as_deref() != Some("+PONG") {
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
