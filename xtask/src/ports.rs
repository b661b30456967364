//! Ports that stay the same from one `up` to the next while nobody else takes them.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
};

use anyhow::{Context, Result};

/// The ports last used, by name, kept in a file of `name port` lines.
#[derive(Debug)]
pub(crate) struct Ports {
    file: PathBuf,
    used: BTreeMap<String, u16>,
}

impl Ports {
    pub(crate) fn load(file: PathBuf) -> Result<Self> {
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        };
        // A line that does not parse costs no more than another port.
        let used = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(name, port)| Some((name.to_owned(), port.parse().ok()?)))
            .collect();
        Ok(Self { file, used })
    }

    /// The port used last time, if it is free now.
    pub(crate) fn known(&self, name: &str) -> Option<u16> {
        self.used.get(name).copied().filter(|port| is_free(*port))
    }

    /// The port used last time, or else any free one.
    pub(crate) fn pick(&mut self, name: &str) -> Result<u16> {
        let port = match self.known(name) {
            Some(port) => port,
            None => any_free()?,
        };
        self.remember(name, port)?;
        Ok(port)
    }

    pub(crate) fn remember(&mut self, name: &str, port: u16) -> Result<()> {
        self.used.insert(name.to_owned(), port);
        let text: String = self
            .used
            .iter()
            .map(|(name, port)| format!("{name} {port}\n"))
            .collect();
        fs::write(&self.file, text).with_context(|| format!("write {}", self.file.display()))
    }
}

pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

pub(crate) fn any_free() -> Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .context("find a free port")
}
