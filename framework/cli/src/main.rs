//! `nestling`: sends messages and events from a terminal, and listens to them, over every transport
//! of the framework.
//!
//! A file per command; [`target`] and [`call`] have what several of them take, [`outcome`] what a
//! command comes to.

mod bench;
mod call;
mod dead_letters;
mod emit;
mod listen;
mod outcome;
mod output;
mod send;
mod target;

use std::process::ExitCode;

use clap::Parser;

use self::outcome::Failure;

/// Sends messages and events to services, and listens to them, wherever they are.
///
/// URL says where: tcp://host:port, nats://host:port, redis://host:port or kafka://host:port.
#[derive(Debug, Parser)]
#[command(name = "nestling", version, after_help = outcome::EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Send(send::Send),
    Emit(emit::Emit),
    Listen(listen::Listen),
    Bench(bench::Bench),
    DeadLetters(dead_letters::DeadLetters),
}

impl Command {
    /// What is logged, to standard error, where `RUST_LOG` does not say.
    fn log_filter(&self) -> &'static str {
        match self {
            // What went wrong is their last word, in JSON, and should be the only one.
            Self::Send(_) | Self::Emit(_) | Self::Bench(_) | Self::DeadLetters(_) => "off",
            Self::Listen(_) => "warn",
        }
    }

    async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Send(send) => send.run().await,
            Self::Emit(emit) => emit.run().await,
            Self::Listen(listen) => listen.run().await,
            Self::Bench(bench) => bench.run().await,
            Self::DeadLetters(dead_letters) => dead_letters.run().await,
        }
    }
}

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return outcome::not_parsed(&error),
    };
    nestling::service::init_logging_or(command.log_filter());
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::from(error).report(),
    };
    let ended = runtime.block_on(command.run());
    // A write to a pipe that nobody reads must not hold us.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The words of a shell's line, which may be quoted by `'`.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for c in line.chars() {
            match (c, words.last_mut()) {
                ('\'', _) => quoted = !quoted,
                (' ', _) if !quoted => words.push(String::new()),
                (c, Some(word)) => word.push(c),
                (_, None) => {}
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_examples_of_every_command_are_understood() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            let examples: Vec<_> = help
                .lines()
                .filter_map(|line| line.find("nestling ").map(|start| &line[start..]))
                .collect();
            assert!(examples.len() >= 3, "{}", command.get_name());
            for example in examples {
                let parsed = Cli::try_parse_from(words(example));
                assert!(parsed.is_ok(), "{example}: {:?}", parsed.err());
            }
        }
    }
}
