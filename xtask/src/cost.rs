//! `cargo xtask cost`: what a message costs in instructions and allocations, against what is recorded.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::{
    cargo, install,
    terminal::{loud_step, step},
};

/// Where the costs are recorded, below the root of the workspace.
const RECORD: &str = "bench/cost/costs.json";
/// How many messages the programs measure: their own `MESSAGES`.
const MESSAGES: f64 = 640.0;
/// How much more instructions or bytes than recorded are none too many.
const TOLERANCE: f64 = 0.03;
/// The same for allocations, of which there is a fraction where a buffer grows now and then.
const FRACTION: f64 = 0.1;
/// The function whose instructions count.
const MEASURED: &str = "*measured_messages";

/// What `cargo xtask cost` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Record what is measured, instead of comparing with what is recorded
    #[arg(long)]
    update: bool,
    /// Measure only what has one of these in its name
    #[arg(conflicts_with = "update")]
    filters: Vec<String>,
}

/// What one message costs.
#[derive(Clone, Copy)]
struct Cost {
    instructions: f64,
    allocations: f64,
    bytes: f64,
}

type Costs = BTreeMap<String, Cost>;

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    install::ensure_valgrind()?;
    let programs = loud_step("build", || cargo::build_as("cost", &["cost"], &[]))?;
    let program = |name: &str| programs.get(name).with_context(|| format!("no {name}"));
    let mut costs = step("count allocations", || {
        allocations(program("cost-allocations")?)
    })?;
    costs.retain(|name, _| is_wanted(name, &options.filters));
    step("count instructions", || {
        for (name, cost) in &mut costs {
            cost.instructions = instructions(program("cost-instructions")?, name)?;
        }
        Ok(())
    })?;
    let path = cargo::root().join(RECORD);
    let measured_with = measured_with()?;
    if options.update {
        let record = record(&costs, &measured_with);
        let text = serde_json::to_string_pretty(&record).context("write the costs")? + "\n";
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        print(&costs, &Costs::new());
        return Ok(ExitCode::SUCCESS);
    }
    let (recorded, recorded_with) = read(&path)?;
    print(&costs, &recorded);
    let known: Costs = { recorded.into_iter() }
        .filter(|(name, _)| is_wanted(name, &options.filters))
        .collect();
    let is_same_compiler = measured_with == recorded_with;
    if !is_same_compiler {
        println!(
            "  instructions are not compared: recorded with {recorded_with}, measured with {measured_with}"
        );
    }
    let findings = compare(&costs, &known, is_same_compiler);
    if findings.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for finding in &findings {
        println!("  {finding}");
    }
    println!("  bench/cost/README.md says how to see where they go");
    println!("  to record what is measured: cargo xtask cost --update");
    Ok(ExitCode::FAILURE)
}

fn is_wanted(name: &str, filters: &[String]) -> bool {
    filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
}

/// Allocations and bytes of every scenario; the instructions are still missing.
fn allocations(program: &Path) -> Result<Costs> {
    let output = Command::new(program)
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).context("read the allocations")?;
    text.lines().map(allocations_of).collect()
}

fn allocations_of(line: &str) -> Result<(String, Cost)> {
    let mut words = line.splitn(3, ' ');
    let mut number = || -> Result<f64> {
        let word = words.next().context("no number")?;
        word.parse().with_context(|| format!("read {line:?}"))
    };
    let cost = Cost {
        instructions: 0.0,
        allocations: number()? / MESSAGES,
        bytes: number()? / MESSAGES,
    };
    let name = words.next().context("no name")?;
    Ok((name.to_owned(), cost))
}

/// Instructions of one scenario, which callgrind writes for each time the measured function runs.
fn instructions(program: &Path, name: &str) -> Result<f64> {
    let folder = callgrind_folder(program, name)?;
    let out = folder.join("out");
    let mut option = std::ffi::OsString::from("--callgrind-out-file=");
    option.push(&out);
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(option)
        .arg(format!("--dump-before={MEASURED}"))
        .arg(format!("--dump-after={MEASURED}"))
        .arg(program)
        .arg(name)
        .output()
        .context("run valgrind")?;
    ensure!(
        output.status.success(),
        "{name} under valgrind: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    // The first file is what came before, and the third what was between the two runs.
    let once = total(&out.with_extension("2"))?;
    let twice = total(&out.with_extension("4"))?;
    ensure!(twice > once, "{name}: more messages cost nothing");
    Ok((twice - once) / MESSAGES)
}

/// An empty folder beside the programs.
fn callgrind_folder(program: &Path, name: &str) -> Result<PathBuf> {
    let beside = program.parent().context("a program in no folder")?;
    let folder = beside.join("callgrind").join(name.replace(", ", "-"));
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

fn total(path: &Path) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = total.with_context(|| format!("no total in {}", path.display()))?;
    total.parse().with_context(|| format!("read {total:?}"))
}

/// What changes the number of instructions without a change of ours.
fn measured_with() -> Result<String> {
    let word = |program: &str, argument: &str| -> Result<String> {
        let mut command = Command::new(program);
        let output = command.current_dir(cargo::root()).arg(argument).output();
        let output = output.with_context(|| format!("run {program} {argument}"))?;
        if !output.status.success() {
            bail!("{program} {argument}: {}", output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let compiler = word("rustc", "--version")?;
    let libc = word("getconf", "GNU_LIBC_VERSION")?;
    Ok(format!("{compiler}, {libc}, {}", env::consts::ARCH))
}

fn record(costs: &Costs, measured_with: &str) -> Value {
    let cents = |number: f64| (number * 100.0).round() / 100.0;
    let cost = |(name, cost): (&String, &Cost)| {
        let numbers = json!({
            "instructions": cost.instructions.round(),
            "allocations": cents(cost.allocations),
            "bytes": cost.bytes.round(),
        });
        (name.clone(), numbers)
    };
    let costs: Map<_, _> = costs.iter().map(cost).collect();
    json!({ "measured_with": measured_with, "per_message": costs })
}

/// The recorded costs, and what they were measured with.
fn read(path: &Path) -> Result<(Costs, String)> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let record: Value = serde_json::from_str(&text).context("read the recorded costs")?;
    let per_message = record["per_message"].as_object();
    let cost = |(name, numbers): (&String, &Value)| {
        let number = |what: &str| {
            let number = numbers[what].as_f64();
            number.with_context(|| format!("{name} has no {what}"))
        };
        let cost = Cost {
            instructions: number("instructions")?,
            allocations: number("allocations")?,
            bytes: number("bytes")?,
        };
        Ok((name.clone(), cost))
    };
    let costs = per_message.context("no recorded costs")?.iter().map(cost);
    let measured_with = record["measured_with"].as_str().unwrap_or_default();
    Ok((costs.collect::<Result<_>>()?, measured_with.to_owned()))
}

/// What costs more than is recorded, or is not recorded.
fn compare(costs: &Costs, recorded: &Costs, with_instructions: bool) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, cost) in costs {
        let Some(old) = recorded.get(name) else {
            findings.push(format!("{name}: not recorded"));
            continue;
        };
        let mut check = |what, new: f64, old: f64, most: f64| {
            if new > most {
                findings.push(format!("{name}: {new:.1} {what} instead of {old:.1}"));
            }
        };
        let most = |old: f64| old * (1.0 + TOLERANCE) + 1.0;
        if with_instructions {
            let old = old.instructions;
            check("instructions", cost.instructions, old, most(old));
        }
        check(
            "allocations",
            cost.allocations,
            old.allocations,
            old.allocations + FRACTION,
        );
        check("bytes", cost.bytes, old.bytes, most(old.bytes));
    }
    let gone = recorded.keys().filter(|name| !costs.contains_key(*name));
    findings.extend(gone.map(|name| format!("{name}: recorded, and no longer measured")));
    findings
}

fn print(costs: &Costs, recorded: &Costs) {
    println!(
        "  {:<50} {:>13} {:>12} {:>7}",
        "per message", "instructions", "allocations", "bytes"
    );
    for (name, cost) in costs {
        let change = recorded.get(name).map_or(String::new(), |old| {
            let change = 100.0 * (cost.instructions / old.instructions - 1.0);
            format!("  {change:+.1} % instructions")
        });
        println!(
            "  {name:<50} {:>13.0} {:>12.2} {:>7.0}{change}",
            cost.instructions, cost.allocations, cost.bytes
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Cost = Cost {
        instructions: 1000.0,
        allocations: 3.0,
        bytes: 500.0,
    };

    fn check(cost: Cost, with_instructions: bool) -> Vec<String> {
        let costs = |cost| Costs::from([("a message".to_owned(), cost)]);
        compare(&costs(cost), &costs(OLD), with_instructions)
    }

    #[test]
    fn a_little_more_is_no_finding_and_much_more_is() {
        let instructions = |instructions| Cost {
            instructions,
            ..OLD
        };
        assert_eq!(check(instructions(1029.0), true), [""; 0]);
        assert_eq!(check(instructions(100.0), true), [""; 0]);
        assert_eq!(
            check(instructions(1050.0), true),
            ["a message: 1050.0 instructions instead of 1000.0"]
        );
        let allocations = Cost {
            allocations: 4.0,
            ..OLD
        };
        assert_eq!(check(allocations, true).len(), 1);
    }

    #[test]
    fn another_compiler_excuses_instructions_only() {
        let more = Cost {
            instructions: 2000.0,
            allocations: 4.0,
            bytes: 900.0,
        };
        assert_eq!(
            check(more, false),
            [
                "a message: 4.0 allocations instead of 3.0",
                "a message: 900.0 bytes instead of 500.0"
            ]
        );
    }

    #[test]
    fn what_is_not_recorded_or_not_measured_is_named() {
        let one = Costs::from([("one".to_owned(), OLD)]);
        let other = Costs::from([("other".to_owned(), OLD)]);
        assert_eq!(
            compare(&one, &other, true),
            [
                "one: not recorded",
                "other: recorded, and no longer measured"
            ]
        );
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let path = env::temp_dir().join(format!("nestling-costs-{}.json", std::process::id()));
        let costs = Costs::from([("a, b".to_owned(), OLD)]);
        fs::write(&path, record(&costs, "rustc 1").to_string()).unwrap();
        let (read, with) = read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(with, "rustc 1");
        assert_eq!(compare(&costs, &read, true), [""; 0]);
        assert_eq!(compare(&read, &costs, true), [""; 0]);
    }
}
