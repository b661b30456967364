//! The rules of `ARCHITECTURE.md` that the compiler does not know, checked in the sources.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each module of the framework may use of its siblings. A transport sees the seam, the leaves, and of two others
/// one name each: what an event needs is a word of the seam, and so is a boxed future.
const ARROWS: &[(&str, &[&str])] = &[
    ("contract", &[]),
    ("envelope", &[]),
    ("error", &[]),
    ("pattern", &[]),
    ("codec", &["envelope", "error"]),
    ("context", &["envelope"]),
    ("extract", &["codec", "context", "envelope", "error"]),
    (
        "handler",
        &["codec", "context", "contract", "error", "extract"],
    ),
    (
        "router",
        &["context", "contract", "error", "handler", "pattern"],
    ),
    ("layer", &["context", "error", "handler", "router"]),
    (
        "introspect",
        &["context", "error", "extract", "handler", "router"],
    ),
    (
        "transport",
        &[
            "contract::Guarantee",
            "envelope",
            "error",
            "handler::BoxFuture",
            "pattern",
        ],
    ),
    ("endpoint", &["transport"]),
    (
        "server",
        &[
            "context",
            "contract",
            "endpoint",
            "envelope",
            "error",
            "handler",
            "router",
            "transport",
        ],
    ),
    (
        "client",
        &[
            "codec",
            "context",
            "contract",
            "endpoint",
            "envelope",
            "error",
            "handler",
            "pattern",
            "transport",
        ],
    ),
    (
        "sqlite",
        &[
            "client",
            "codec",
            "context",
            "contract",
            "envelope",
            "error",
            "handler::BoxFuture",
            "introspect",
            "transport",
        ],
    ),
    (
        "service",
        &[
            "client",
            "endpoint",
            "introspect",
            "router",
            "server",
            "transport",
        ],
    ),
];

/// The one place that may name a client library.
const LIBRARIES: &[(&str, &str)] = &[
    ("async_nats", "transport/nats"),
    ("rdkafka", "transport/kafka"),
    ("redis", "transport/redis"),
    ("rustls", "transport/tls"),
    ("sqlx", "sqlite"),
    ("tokio_rustls", "transport/tls"),
    ("sqlx", "transport/sqlite"),
];

const SERVICES: [&str; 6] = [
    "order",
    "payment",
    "product",
    "recommendation",
    "review",
    "user",
];

#[test]
fn modules_use_only_what_is_below_them() {
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for file in framework_sources() {
        let module = file.module();
        if module == "lib" || file.name.ends_with("/tests.rs") {
            continue;
        }
        let Some(allowed) = arrows.get(module) else {
            wrong.push(format!(
                "{}: module {module} is not in the list of arrows",
                file.name
            ));
            continue;
        };
        for used in file.crate_paths() {
            let top = used.split("::").next().unwrap_or_default();
            let is_fine = |arrow: &&str| *arrow == top || *arrow == used;
            if top != module && !allowed.iter().any(is_fine) {
                wrong.push(format!("{}: {module} may not use crate::{used}", file.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_arrows_have_no_cycle() {
    let tops = |arrows: &[&'static str]| -> BTreeSet<_> {
        arrows
            .iter()
            .filter_map(|arrow| arrow.split("::").next())
            .collect()
    };
    let mut left: BTreeMap<_, _> = ARROWS
        .iter()
        .map(|(module, arrows)| (*module, tops(arrows)))
        .collect();
    while let Some((leaf, _)) = left.iter().find(|(_, uses)| uses.is_empty()) {
        let leaf = *leaf;
        left.remove(leaf);
        left.values_mut().for_each(|uses| {
            uses.remove(leaf);
        });
    }
    assert!(left.is_empty(), "a cycle among {:?}", left.keys());
}

#[test]
fn only_a_transports_own_files_name_its_client_library() {
    let mut wrong = Vec::new();
    for file in framework_sources() {
        for (library, home) in LIBRARIES {
            // One of them has two homes.
            let at_home = LIBRARIES.iter().any(|(other, home)| {
                let is_in =
                    file.name.starts_with(&format!("{home}/")) || file.name == format!("{home}.rs");
                other == library && is_in
            });
            if !at_home && file.names_crate(library) {
                wrong.push(format!(
                    "{} names {library}, which belongs to {home}",
                    file.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_task_is_spawned_in_one_place_only() {
    let mut found = Vec::new();
    let crates = [
        "framework/src",
        "framework/cli/src",
        "contracts/src",
        "gateway/src",
        "shop/src",
        "services",
    ];
    for file in crates
        .iter()
        .flat_map(|folder| sources(&root().join(folder)))
    {
        for (number, line) in file.code.lines().enumerate() {
            if line.contains("tokio::spawn(") || line.contains("task::spawn(") {
                found.push(format!("{}:{}", file.name, number + 1));
            }
        }
    }
    let [only] = &found[..] else {
        panic!("tasks without an owner: {found:?}")
    };
    assert!(only.starts_with("transport/mod.rs:"), "{only}");
}

#[test]
fn each_pattern_is_declared_once() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in sources(&root().join("contracts/src")) {
        for pattern in file.declared_patterns() {
            places.entry(pattern).or_default().push(file.name.clone());
        }
    }
    assert!(
        places.len() > 20,
        "the shop has more patterns than {:?}",
        places.keys()
    );
    let twice: Vec<_> = places
        .iter()
        .filter(|(_, places)| places.len() > 1)
        .collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn crates_meet_in_contracts_only() {
    let manifest = |path: &str| dependencies(&root().join(path).join("Cargo.toml"));
    let all_of_the_shop: BTreeSet<_> = SERVICES
        .iter()
        .copied()
        .chain(["contracts", "gateway", "shop", "xtask"])
        .collect();
    let mut wrong = Vec::new();
    let mut forbid = |krate: &str, forbidden: &BTreeSet<&str>| {
        for dependency in manifest(krate) {
            if forbidden.contains(dependency.as_str()) {
                wrong.push(format!("{krate} depends on {dependency}"));
            }
        }
    };
    let http = ["axum", "hyper", "tower-http", "utoipa"];
    let mut others = all_of_the_shop.clone();
    others.extend(http);
    for krate in [
        "framework",
        "framework/cli",
        "framework/macros",
        "framework/testkit",
        "contracts",
    ] {
        forbid(krate, &others);
    }
    others.remove("contracts");
    for service in SERVICES {
        forbid(&format!("services/{service}"), &others);
    }
    let mut services: BTreeSet<_> = SERVICES.into_iter().collect();
    services.insert("shop");
    forbid("gateway", &services);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_guide_shows_the_example_that_runs() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let guide = read("docs/nestjs.md");
    for example in [
        "framework/examples/warehouse.rs",
        "framework/testkit/nestjs/warehouse.ts",
    ] {
        let text = read(example);
        assert!(
            guide.contains(&format!("\n{text}```\n")),
            "docs/nestjs.md does not show {example} as it is"
        );
    }
}

/// A source file without its comments and without the tests at its end.
struct Source {
    /// The path below the folder that was asked for.
    name: String,
    code: String,
}

impl Source {
    fn module(&self) -> &str {
        let first = self.name.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// All that is named behind `crate::`: `error`, `handler::BoxFuture`, …
    fn crate_paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        for (position, _) in self.code.match_indices("crate::") {
            let before = self.code[..position].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            tree(&self.code[position + "crate::".len()..], "", &mut paths);
        }
        paths
    }

    /// Whether the file uses the crate of this name, and not only a module of its own that is called so.
    fn names_crate(&self, library: &str) -> bool {
        self.code.match_indices(library).any(|(position, _)| {
            let before = self.code[..position].chars().next_back();
            let after = &self.code[position + library.len()..];
            let is_word =
                before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':' && c != '"');
            is_word && after.starts_with("::") && !after.starts_with("::SCHEME")
        })
    }

    /// The string literals in the place of a pattern: behind `=`, lower-case words joined by dots.
    fn declared_patterns(&self) -> Vec<String> {
        let pattern = |text: &str| {
            let word = |word: &str| {
                !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            };
            text.contains('.') && text.split('.').all(word)
        };
        let literals = self
            .code
            .match_indices("= \"")
            .filter_map(|(position, start)| {
                let rest = &self.code[position + start.len()..];
                rest.split('"').next()
            });
        literals
            .filter(|text| pattern(text))
            .map(str::to_owned)
            .collect()
    }
}

/// Reads one use tree, or one path, at the start of `text`; returns how long it is.
fn tree(text: &str, prefix: &str, paths: &mut Vec<String>) -> usize {
    let join = |name: &str| {
        if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}::{name}")
        }
    };
    if !text.starts_with('{') {
        let end = text
            .find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*')
            .unwrap_or(text.len());
        let path = join(&text[..end]);
        return match text[end..].strip_prefix("::") {
            // Two names are enough to know what is used of whom.
            Some(rest) if prefix.is_empty() => end + 2 + tree(rest, &path, paths),
            Some(rest) => {
                let length = tree(rest, &path, &mut Vec::new());
                paths.push(path);
                end + 2 + length
            }
            None => {
                paths.push(path);
                end
            }
        };
    }
    let mut position = 1;
    loop {
        let rest = &text[position..];
        let skipped = rest.len() - rest.trim_start_matches([',', ' ', '\n']).len();
        position += skipped;
        if text[position..].starts_with('}') || position >= text.len() {
            return position + 1;
        }
        let length = tree(&text[position..], prefix, paths);
        assert!(length > 0, "an unreadable use tree: {}", &text[..position]);
        position += length;
        if let Some(alias) = text[position..].strip_prefix(" as ") {
            position += " as ".len() + alias.find([',', '}']).unwrap_or_default();
        }
    }
}

fn root() -> PathBuf {
    let framework = Path::new(env!("CARGO_MANIFEST_DIR"));
    framework.parent().unwrap().to_owned()
}

fn framework_sources() -> Vec<Source> {
    let sources = sources(&root().join("framework/src"));
    assert!(sources.len() > 20, "the sources are elsewhere");
    sources
}

fn sources(folder: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(folder)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.push(Source {
                    name,
                    code: code(&fs::read_to_string(&path).unwrap()),
                });
            }
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

fn code(text: &str) -> String {
    let tests = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    text[..tests]
        .lines()
        .filter(is_code)
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The names behind which a manifest lists dependencies, of all kinds.
fn dependencies(manifest: &Path) -> Vec<String> {
    let text = fs::read_to_string(manifest).unwrap();
    let mut inside = false;
    let mut names = Vec::new();
    for line in text.lines() {
        if let Some(section) = line.strip_prefix('[') {
            inside = section.trim_end().ends_with("dependencies]");
        } else if inside && line.starts_with(|c: char| c.is_ascii_alphabetic()) {
            names.extend(line.split(['.', ' ', '=']).next().map(str::to_owned));
        }
    }
    names
}

#[test]
fn use_trees_are_read() {
    let source = Source {
        name: "x.rs".to_owned(),
        code: "use crate::{\n    a::B,\n    c::{d, E as F},\n    g,\n};\nlet x = crate::h::i::J::new();".to_owned(),
    };
    assert_eq!(source.crate_paths(), ["a::B", "c::d", "c::E", "g", "h::i"]);
}
