//! What a bare Debian machine lacks, through apt, Maven and npm.

use std::{
    env,
    fs::{self, File},
    io::{self, IsTerminal},
    path::Path,
    process::{self, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nestling_testkit::{Kind, clock, find_program, kafka_jars, nestjs};

use crate::terminal::{last_lines, step};

/// Sees to it that the brokers can be started, and the transports built: Debian's packages for programs and headers,
/// and Kafka's jars.
///
/// Where systemd runs, Debian starts its own NATS and Redis on 4222 and 6379 on installation. They are left alone.
pub(crate) fn ensure(kinds: &[Kind]) -> Result<()> {
    let mut needs = of_brokers(kinds);
    needs.push(openssl());
    provide(&needs)?;
    kafka(kinds)
}

/// As [`ensure`], for the tests: they also talk to NestJS applications, and set clocks wrong.
pub(crate) fn ensure_for_tests(kinds: &[Kind]) -> Result<()> {
    let mut needs = of_brokers(kinds);
    needs.push(openssl());
    needs.push(Need {
        who: "NestJS",
        missing: Box::new(nestjs::missing_programs),
    });
    needs.push(Need {
        who: "a wrong clock",
        missing: Box::new(clock::missing_programs),
    });
    provide(&needs)?;
    kafka(kinds)?;
    step("NestJS's packages", || Ok(nestjs::modules().map(drop)?))
}

/// Sees to it that instructions can be counted.
pub(crate) fn ensure_valgrind() -> Result<()> {
    let missing = || match find_program("valgrind") {
        Some(_) => Vec::new(),
        None => vec![("valgrind", "valgrind")],
    };
    provide(&[Need {
        who: "the count of instructions",
        missing: Box::new(missing),
    }])
}

fn of_brokers(kinds: &[Kind]) -> Vec<Need> {
    let need = |kind: &Kind| {
        let kind = *kind;
        Need {
            who: kind.name(),
            missing: Box::new(move || kind.missing_programs()),
        }
    };
    kinds.iter().map(need).collect()
}

/// What Kafka's client is built with, for TLS.
fn openssl() -> Need {
    Need {
        who: "Kafka's TLS",
        missing: Box::new(missing_headers),
    }
}

fn missing_headers() -> Vec<(&'static str, &'static str)> {
    if has_openssl() {
        return Vec::new();
    }
    let mut missing = vec![("openssl.pc", "libssl-dev")];
    if find_program("pkg-config").is_none() {
        missing.push(("pkg-config", "pkg-config"));
    }
    missing
}

/// Whether a build finds the headers of OpenSSL.
pub(crate) fn has_openssl() -> bool {
    let known = Command::new("pkg-config")
        .args(["--exists", "openssl"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    known || env::var_os("OPENSSL_DIR").is_some()
}

fn kafka(kinds: &[Kind]) -> Result<()> {
    if kinds.contains(&Kind::Kafka) {
        step("Apache Kafka's jars", || Ok(kafka_jars().map(drop)?))?;
    }
    Ok(())
}

/// Somebody's programs and other files, of which some may be missing.
struct Need {
    who: &'static str,
    /// Each with the Debian package that has it.
    missing: Box<dyn Fn() -> Vec<(&'static str, &'static str)>>,
}

fn provide(needs: &[Need]) -> Result<()> {
    let lacking: Vec<Lack> = needs
        .iter()
        .map(|need| Lack {
            who: need.who,
            packages: (need.missing)()
                .into_iter()
                .map(|(_, package)| package)
                .collect(),
        })
        .filter(|lack| !lack.packages.is_empty())
        .collect();
    if !lacking.is_empty() {
        apt(&lacking)?;
    }
    for Need { who, missing } in needs {
        if let [(program, package), ..] = missing()[..] {
            bail!("{who} is unavailable: {program} is missing even though {package} is installed");
        }
    }
    Ok(())
}

/// The packages that somebody lacks.
struct Lack {
    who: &'static str,
    packages: Vec<&'static str>,
}

fn apt(lacking: &[Lack]) -> Result<()> {
    let Some(root) = become_root() else {
        bail!("{}", by_hand(lacking));
    };
    let log = env::temp_dir().join(format!("nestling-install-{}.log", process::id()));
    step("apt-get update", || apt_get(&root, &["update"], &log))?;
    for Lack { who, packages } in lacking {
        for package in packages {
            let install = ["install", "--yes", "--no-install-recommends", package];
            step(&format!("apt-get install {package}"), || {
                apt_get(&root, &install, &log).with_context(|| format!("{who} is unavailable"))
            })?;
        }
    }
    fs::remove_file(&log).with_context(|| format!("remove {}", log.display()))
}

fn by_hand(lacking: &[Lack]) -> String {
    let reason = match find_program("apt-get") {
        None => "there is no apt-get here",
        Some(_) => "this user is not root, and sudo cannot be used",
    };
    let mut text = format!("packages are missing, and {reason}:");
    let mut all: Vec<&str> = Vec::new();
    for Lack { who, packages } in lacking {
        text += &format!("\n  {who} needs {}", packages.join(" and "));
        all.extend(packages.iter().copied());
    }
    text + &format!(
        "\nplease run: apt-get update && apt-get install --no-install-recommends {}",
        all.join(" ")
    )
}

/// The words in front of a command that is to run as root; `None` when there is no way.
fn become_root() -> Option<Vec<&'static str>> {
    find_program("apt-get")?;
    let id = Command::new("id").arg("-u").output().ok()?;
    if id.stdout.trim_ascii() == b"0" {
        return Some(Vec::new());
    }
    find_program("sudo")?;
    let without_asking = Command::new("sudo")
        .args(["-n", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if without_asking {
        return Some(vec!["sudo", "-n"]);
    }
    if !io::stdin().is_terminal() {
        return None;
    }
    println!("  sudo is needed to install packages");
    let allowed = Command::new("sudo").arg("-v").status();
    allowed
        .is_ok_and(|status| status.success())
        .then(|| vec!["sudo"])
}

fn apt_get(root: &[&str], arguments: &[&str], log: &Path) -> Result<()> {
    let output = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    // `env` rather than our own environment, as sudo clears that.
    let mut words = root.to_vec();
    words.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    words.extend(["-o", "DPkg::Lock::Timeout=120"]);
    words.extend(arguments);
    let status = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("share the log")?)
        .stderr(output)
        .status()
        .context("run apt-get")?;
    if !status.success() {
        bail!(
            "apt-get {}: {status}\n{}",
            arguments.join(" "),
            last_lines(log, 20)
        );
    }
    Ok(())
}
