//! What the commands say of themselves.

use std::{env, path::Path};

use super::*;

#[test]
fn help_is_as_it_was_read_last() {
    for (name, args) in [
        ("nestling", &["--help"][..]),
        ("send", &["send", "--help"]),
        ("emit", &["emit", "--help"]),
        ("listen", &["listen", "--help"]),
        ("bench", &["bench", "--help"]),
    ] {
        let ended = match args {
            [one] => run([one]),
            [one, two, ..] => run([one, two]),
            [] => continue,
        };
        assert_eq!((ended.code, &*ended.err), (Some(0), ""));
        insta::assert_snapshot!(name, ended.out);
    }
}

/// The examples in the help text of a command.
fn examples(command: &str) -> Vec<String> {
    let help = run([command, "--help"]).out;
    let examples = help
        .lines()
        .filter(|line| line.starts_with("  ") && line.contains("nestling "));
    examples.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn the_examples_work_as_they_stand() {
    const PLACE: &str = "tcp://127.0.0.1:7000";
    let program = Path::new(env!("CARGO_BIN_EXE_nestling"));
    let mut path = program.parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(env::var_os("PATH").unwrap());
    let shell = |line: String| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &line]).env("PATH", &path);
        Started::of(command)
    };
    for command in ["send", "emit"] {
        let examples = examples(command);
        let (first, others) = examples.split_first().unwrap();
        // A port that is free, where the example has one of its own.
        let first = format!("exec {}", first.replace(PLACE, "tcp://127.0.0.1:0"));
        let (listening, address) = shell(first).heard();
        assert!(others.len() > 2, "{examples:?}");
        for example in others {
            assert!(example.contains(PLACE), "{example}");
            let ended = shell(example.replace(PLACE, &address)).end();
            assert_eq!((ended.code, &*ended.err), (Some(0), ""), "{example}");
            assert_eq!(
                ended.out.is_empty(),
                command == "emit",
                "{example}: {ended:?}"
            );
        }
        listening.interrupt();
    }
}

#[test]
fn without_a_command_it_says_what_there_is() {
    let ended = run([]);
    ended.check(64, "");
    assert!(ended.err.contains("Usage: nestling <COMMAND>"), "{ended:?}");
}
