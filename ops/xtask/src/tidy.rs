//! `tidy`: the project's rules that no compiler knows, kept as data.
//!
//! Crates and modules have a height and refer only downwards; some names are allowed in one place only; files end
//! before they get long. An exception is a change of a table here, with its reason.

use crate::layers::{Layer, module_of, objection, roots};
use crate::source::{Source, line_of, words};
use anyhow::{Context, Result, bail};
use std::fmt;
use std::fs;
use std::path::Path;

/// The modules of `gateway/src`, lowest first.
const LAYERS: &[Layer] = &[
    Layer {
        modules: &["mailbox", "io"],
        siblings: false,
    },
    Layer {
        modules: &["tls", "access_log"],
        siblings: false,
    },
    Layer {
        modules: &["downstream", "upstream"],
        siblings: false,
    },
    Layer {
        modules: &["clusters"],
        siblings: false,
    },
    Layer {
        modules: &["proxy"],
        siblings: false,
    },
    Layer {
        modules: &["shard", "control"],
        siblings: false,
    },
    Layer {
        modules: &["run", "cli", "main", "demo", "lib"],
        siblings: true,
    },
];

/// Crates that a crate must not know, in its manifest or its code.
const CRATES: &[(&str, &[&str])] = &[
    (
        "gateway/core/",
        &["isthmus-config", "isthmus", "glommio", "tokio"],
    ),
    ("config/", &["isthmus", "glommio", "tokio"]),
];

/// Crates that nothing depends on: unmaintained, or replaced by what the standard library has.
const NEVER: &[&str] = &["lazy_static", "rustls-pemfile", "serde_yml"];

/// A name that product code has in some places only.
struct Name {
    /// Words that follow each other with `::` between them.
    path: &'static [&'static str],
    /// What the paths of these places begin with.
    only_in: &'static [&'static str],
    why: &'static str,
}

const NAMES: &[Name] = &[
    Name {
        path: &["glommio"],
        only_in: &["gateway/src/io", "gateway/src/shard", "gateway/src/mailbox"],
        why: "so that the runtime of the shards can be replaced",
    },
    Name {
        path: &["tokio"],
        only_in: &["gateway/src/control", "gateway/src/run.rs", "gateway/src/demo"],
        why: "its runtime belongs to the control thread",
    },
    Name {
        path: &["Instant", "now"],
        only_in: &["gateway/src/io/clock.rs"],
        why: "decisions are told the time",
    },
    Name {
        path: &["spawn_local"],
        // Control's tasks are tokio's, which catches panics itself.
        only_in: &["gateway/src/io/spawn.rs", "gateway/src/control"],
        why: "which catches a task's panic",
    },
    Name {
        path: &["serde_yaml"],
        only_in: &["config/src/yaml"],
        why: "so that the parser can be replaced",
    },
];

/// Where product code is; the rest of the tree is tests and tools.
const PRODUCT: &[&str] = &["gateway/src/", "gateway/core/src/", "config/src/"];
/// The only place of unsafe code, in files with a comment line that begins with [`UNSAFE_MARK`] and says why.
const UNSAFE_IN: &str = "gateway/src/io/";
const UNSAFE_MARK: &str = "// unsafe: ";
/// Longest file, its tests not counted: beyond it, a file holds more than one concept.
const LINES_MAX: usize = 1_000;
const FOLDERS: &[&str] = &["gateway", "config", "tests", "ops", "bench", "fuzz"];

/// A rule that a line breaks.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    path: String,
    line: usize,
    text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.text)
    }
}

/// Checks the tree, prints every violation, and fails if there is one.
pub(crate) fn run(root: &Path) -> Result<()> {
    let (files, violations) = check(root)?;
    for violation in &violations {
        println!("{violation}");
    }
    if !violations.is_empty() {
        bail!("tidy: {} violations in {files} files", violations.len());
    }
    println!("tidy: {files} files are clean");
    Ok(())
}

fn check(root: &Path) -> Result<(usize, Vec<Violation>)> {
    let mut paths = vec!["Cargo.toml".to_owned()];
    for folder in FOLDERS {
        collect(root, folder, &mut paths)?;
    }
    let mut violations = Vec::new();
    for path in &paths {
        let text = fs::read_to_string(root.join(path)).with_context(|| path.clone())?;
        let mut report = |line: usize, text: String| {
            violations.push(Violation {
                path: path.clone(),
                line,
                text,
            })
        };
        if path.ends_with(".toml") {
            check_manifest(path, &text, &mut report);
        } else {
            let source = Source::new(&text);
            check_crates(path, source.code_before_tests(), &mut report);
            check_layers(path, source.code_before_tests(), &mut report);
            check_names(path, &source, &mut report);
            check_unsafe(path, &source, &mut report);
            check_comments(&source, &mut report);
            let lines = source.lines_before_tests();
            if lines > LINES_MAX {
                report(
                    lines,
                    format!(
                        "{lines} lines before the tests; {LINES_MAX} are allowed: find the second concept"
                    ),
                );
            }
        }
    }
    Ok((paths.len(), violations))
}

fn collect(root: &Path, folder: &str, into: &mut Vec<String>) -> Result<()> {
    let Ok(entries) = fs::read_dir(root.join(folder)) else {
        return Ok(());
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| folder.to_owned())?;
        names.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.file_type()?.is_dir(),
        ));
    }
    names.sort();
    for (name, is_folder) in names {
        let path = format!("{folder}/{name}");
        if is_folder && name != "target" && !name.starts_with('.') {
            collect(root, &path, into)?;
        } else if name.ends_with(".rs") || name == "Cargo.toml" {
            into.push(path);
        }
    }
    Ok(())
}

fn check_manifest(path: &str, text: &str, report: &mut impl FnMut(usize, String)) {
    let forbidden = CRATES
        .iter()
        .filter(|(folder, _)| path.strip_prefix(folder) == Some("Cargo.toml"));
    let forbidden: Vec<&str> = forbidden.flat_map(|(_, names)| *names).copied().collect();
    let mut section = "";
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.starts_with('[') {
            section = line;
        }
        // `[dependencies.name]` is a section that names a dependency.
        let name = match section.trim_matches(['[', ']']).rsplit_once("dependencies.") {
            Some((_, name)) if line.starts_with('[') => name,
            _ if section.ends_with("dependencies]") => line.split(['=', '.', ' ']).next().unwrap_or_default(),
            _ => continue,
        };
        let renamed = NEVER
            .iter()
            .find(|never| line.contains(&format!("package = \"{never}\"")));
        if NEVER.contains(&name) || renamed.is_some() {
            report(
                number + 1,
                format!("{} is never a dependency", renamed.unwrap_or(&name)),
            );
        } else if forbidden.contains(&name) {
            report(number + 1, format!("this crate must not depend on {name}"));
        }
    }
}

/// Whether the word at this position is the name of a crate in a path or a `use`, and not a word that looks like it.
fn names_a_crate(code: &str, at: usize, word: &str) -> bool {
    let (before, after) = (code[..at].trim_end(), code[at + word.len()..].trim_start());
    let begins_a_path = !before.ends_with("::")
        || before
            .strip_suffix("::")
            .is_some_and(|rest| rest.ends_with(['{', ',', ' ']));
    begins_a_path && (after.starts_with("::") || (before.ends_with("use") && after.starts_with([';', 'a'])))
}

fn check_crates(path: &str, code: &str, report: &mut impl FnMut(usize, String)) {
    for (at, word) in words(code) {
        let name = word.replace('_', "-");
        let above = CRATES.iter().any(|(folder, names)| {
            path.strip_prefix(folder)
                .is_some_and(|rest| rest.starts_with("src/"))
                && names.contains(&name.as_str())
        });
        if above && names_a_crate(code, at, word) {
            report(line_of(code, at), format!("this crate must not know {word}"));
        }
        if NEVER.iter().any(|never| never.replace('-', "_") == word) {
            report(line_of(code, at), format!("{word} is never used"));
        }
    }
}

fn check_layers(path: &str, code: &str, report: &mut impl FnMut(usize, String)) {
    let Some((module, depth)) = path
        .strip_prefix("gateway/src/")
        .and_then(|below| module_of(Path::new(below)))
    else {
        return;
    };
    if !LAYERS
        .iter()
        .any(|layer| layer.modules.contains(&module.as_str()))
    {
        report(
            1,
            format!("{module} has no place in the table of layers (ops/xtask/src/tidy.rs)"),
        );
    }
    for (at, name) in roots(code, depth) {
        if let Some(objection) = objection(LAYERS, &module, name) {
            report(line_of(code, at), objection);
        }
    }
}

fn check_names(path: &str, source: &Source, report: &mut impl FnMut(usize, String)) {
    if !PRODUCT.iter().any(|folder| path.starts_with(folder)) {
        return;
    }
    let code = source.code_before_tests();
    for Name {
        path: wanted,
        only_in,
        why,
    } in NAMES
    {
        if only_in.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        for (at, word) in words(code) {
            if word == wanted[0] && continues(&code[at + word.len()..], &wanted[1..]) {
                let name = wanted.join("::");
                report(
                    line_of(code, at),
                    format!("{name} only in {}: {why}", only_in.join(", ")),
                );
            }
        }
    }
}

fn continues(rest: &str, wanted: &[&str]) -> bool {
    let Some((first, more)) = wanted.split_first() else {
        return true;
    };
    let Some(path) = rest.trim_start().strip_prefix("::") else {
        return false;
    };
    let path = path.trim_start();
    match words(path).next() {
        Some((0, word)) if word == *first => continues(&path[word.len()..], more),
        _ => false,
    }
}

fn check_unsafe(path: &str, source: &Source, report: &mut impl FnMut(usize, String)) {
    let marked = source
        .comments
        .lines()
        .any(|line| line.trim_start().starts_with(UNSAFE_MARK));
    if path.starts_with(UNSAFE_IN) && marked {
        return;
    }
    if let Some((at, _)) = words(&source.code).find(|(_, word)| *word == "unsafe") {
        let text =
            format!("unsafe only below {UNSAFE_IN}, in a file with a line `{UNSAFE_MARK}...` that says why");
        report(line_of(&source.code, at), text);
    }
}

fn check_comments(source: &Source, report: &mut impl FnMut(usize, String)) {
    for (at, word) in words(&source.comments) {
        let named = || {
            let name = source.comments[at + word.len()..]
                .strip_prefix('(')
                .and_then(|rest| rest.split_once(')'));
            name.is_some_and(|(name, _)| !name.trim().is_empty())
        };
        if word == "TODO" && !named() {
            report(
                line_of(&source.comments, at),
                "a TODO names who will do it: TODO(name)".to_owned(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const CLEAN: &[(&str, &str)] = &[
        (
            "Cargo.toml",
            "[workspace.dependencies]\nglommio = \"0.9\" # no lazy_static\ntokio = \"1\"\n",
        ),
        (
            "gateway/core/Cargo.toml",
            "[package]\nname = \"isthmus-core\"\n[dependencies]\nbytes.workspace = true\n",
        ),
        (
            "gateway/core/src/lib.rs",
            "//! Knows neither tokio:: nor isthmus::config.\nuse std::time::Instant;\n",
        ),
        (
            "config/Cargo.toml",
            "[dependencies]\nisthmus-core.workspace = true\n",
        ),
        (
            "config/src/yaml/mod.rs",
            "use isthmus_core::name; fn a() { serde_yaml::from_str(\"isthmus::x\") }\n",
        ),
        ("gateway/src/lib.rs", "pub mod io;\npub use crate::run::run;\n"),
        (
            "gateway/src/run.rs",
            "use crate::{cli, control, shard::{self, Shard}};\nuse tokio::runtime;\n",
        ),
        ("gateway/src/cli.rs", "use crate::run::Options;\n"),
        (
            "gateway/src/control/mod.rs",
            "use crate::mailbox; use tokio::sync;\n",
        ),
        (
            "gateway/src/shard/accept.rs",
            "use super::Shard; use super::super::proxy; use glommio::x;\n",
        ),
        (
            "gateway/src/io/clock.rs",
            "pub fn now() -> Instant { Instant::now() }\n",
        ),
        (
            "gateway/src/io/spawn.rs",
            "glommio::spawn_local(x); // TODO(ada): name tasks\n",
        ),
        (
            "gateway/src/io/sys.rs",
            "// unsafe: accept4 has no safe form here\nunsafe { accept4() }\n",
        ),
        (
            "gateway/src/mailbox.rs",
            "#[cfg(test)]\nmod tests { use crate::shard; fn t() { Instant::now(); } }\n",
        ),
        ("tests/src/a.rs", "fn a() { Instant::now(); \"TODO unsafe\"; }\n"),
    ];

    fn tree(planted: Option<(&str, &str)>) -> Vec<String> {
        let root = TempDir::new().unwrap();
        for (path, text) in CLEAN.iter().copied().chain(planted) {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            // What is planted comes after what is there.
            let old = fs::read_to_string(&file).unwrap_or_default();
            let text = if planted == Some((path, text)) {
                text.to_owned() + &old
            } else {
                text.to_owned()
            };
            fs::write(&file, text).unwrap();
        }
        let (files, violations) = check(root.path()).unwrap();
        assert!(files >= CLEAN.len());
        violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_clean_tree_passes() {
        assert_eq!(tree(None), Vec::<String>::new());
    }

    #[test]
    fn every_planted_violation_is_found() {
        let long = "fn a() {}\n".repeat(1_001);
        let planted = [
            (
                "gateway/core/Cargo.toml",
                "[dependencies]\nisthmus-config.workspace = true\n",
                "must not depend on isthmus-config",
            ),
            (
                "gateway/core/Cargo.toml",
                "[dependencies.tokio]\nversion = \"1\"\n",
                "must not depend on tokio",
            ),
            (
                "gateway/core/src/a.rs",
                "fn a() { isthmus_config::load() }\n",
                "must not know isthmus_config",
            ),
            (
                "config/Cargo.toml",
                "[dev-dependencies]\nisthmus = { path = \"..\" }\n",
                "must not depend on isthmus",
            ),
            ("config/src/a.rs", "use glommio;\n", "must not know glommio"),
            ("config/src/b.rs", "use tokio::sync;\n", "must not know tokio"),
            (
                "Cargo.toml",
                "[workspace.dependencies]\nserde_yml = \"1\"\n",
                "serde_yml is never a dependency",
            ),
            (
                "Cargo.toml",
                "[workspace.dependencies]\npem = { package = \"rustls-pemfile\", version = \"1\" }\n",
                "rustls-pemfile is never",
            ),
            (
                "tests/src/b.rs",
                "use lazy_static::lazy_static;\n",
                "lazy_static is never used",
            ),
            (
                "gateway/src/mailbox.rs",
                "use crate::io::x;\n",
                "mailbox refers to io, which stands beside it",
            ),
            (
                "gateway/src/io/a.rs",
                "use crate::tls;\n",
                "io refers to tls, which is above it",
            ),
            (
                "gateway/src/downstream/h1.rs",
                "use crate::{io, upstream::h1};\n",
                "downstream refers to upstream",
            ),
            (
                "gateway/src/upstream/h1.rs",
                "fn a() { super::super::downstream::x() }\n",
                "upstream refers to downstream",
            ),
            (
                "gateway/src/clusters.rs",
                "use super::proxy;\n",
                "clusters refers to proxy, which is above it",
            ),
            (
                "gateway/src/proxy/http.rs",
                "use crate::{\n    clusters::{self, Clusters},\n    shard,\n};\n",
                "http.rs:3: proxy refers to shard",
            ),
            (
                "gateway/src/control/a.rs",
                "use crate::shard;\n",
                "control refers to shard, which stands beside it",
            ),
            (
                "gateway/src/shard/a.rs",
                "use crate::run::Options;\n",
                "shard refers to run, which is above it",
            ),
            (
                "gateway/src/helpers.rs",
                "\n",
                "helpers has no place in the table",
            ),
            (
                "gateway/src/proxy/a.rs",
                "use glommio::timer;\n",
                "glommio only in gateway/src/io",
            ),
            (
                "gateway/src/shard/b.rs",
                "use tokio::sync::mpsc;\n",
                "tokio only in gateway/src/control",
            ),
            (
                "gateway/core/src/b.rs",
                "fn a() { std::time::Instant::now() }\n",
                "Instant::now only in",
            ),
            (
                "gateway/src/shard/c.rs",
                "fn a() { glommio::spawn_local(b) }\n",
                "spawn_local only in",
            ),
            (
                "config/src/c.rs",
                "use serde_yaml::Value;\n",
                "serde_yaml only in config/src/yaml",
            ),
            (
                "gateway/src/proxy/b.rs",
                "// unsafe: because\nunsafe { a() }\n",
                "proxy/b.rs:2: unsafe only below gateway/src/io/",
            ),
            (
                "gateway/src/io/b.rs",
                "/* unsafe: */ unsafe { a() }\n",
                "unsafe only below gateway/src/io/",
            ),
            (
                "tests/src/c.rs",
                "#[cfg(test)]\nmod tests { unsafe fn a() {} }\n",
                "unsafe only below",
            ),
            ("ops/xtask/src/a.rs", "// TODO: later\n", "a TODO names who"),
            ("gateway/core/src/c.rs", "/* TODO() */\n", "a TODO names who"),
            ("bench/src/long.rs", long.as_str(), "1001 lines before the tests"),
        ];
        for (path, text, wanted) in planted {
            let found = tree(Some((path, text)));
            let right = found.iter().any(|line| line.contains(wanted));
            // What a crate must not know may be bound to another place as well.
            let only = found.len() <= 2 && found.iter().all(|line| line.starts_with(path));
            assert!(right && only, "{path} {text:?} wanted {wanted:?}: {found:?}");
        }
    }

    #[test]
    fn tests_of_a_long_file_do_not_count() {
        let tests = "#[cfg(test)]\nmod tests {\n".to_owned() + &"fn a() {}\n".repeat(1_001) + "}\n";
        assert_eq!(
            tree(Some(("gateway/core/src/d.rs", &tests))),
            Vec::<String>::new()
        );
    }
}
