//! Standard output: JSON, a line for each value.

use std::{
    io::{self, Write},
    sync::Arc,
};

use tokio::sync::Mutex;

/// Standard output, to which lines are written whole and in the order in which they were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    turn: Arc<Mutex<()>>,
}

impl Output {
    /// Writes a JSON text as one line, and waits until whoever reads it has taken it.
    pub(crate) async fn line(&self, json: &str) -> io::Result<()> {
        let mut line = one_line(json);
        line.push('\n');
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let write = move || {
            // For as long as it takes, even if nobody waits for it any more.
            let _turn = turn;
            let mut stdout = io::stdout().lock();
            stdout.write_all(line.as_bytes())?;
            stdout.flush()
        };
        tokio::task::spawn_blocking(write)
            .await
            .map_err(io::Error::other)?
    }
}

/// Line breaks in a JSON text are between its tokens: those in its strings are escaped.
fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_line_breaks_are_taken_out() {
        let pretty = "{\r\n  \"a\\n\": [1.50,\n 2e1]\n}";
        assert_eq!(one_line(pretty), "{  \"a\\n\": [1.50, 2e1]}");
    }
}
