//! Typing mistakes: one edit in the name of each field that Istio's kinds have must be found, at its line and column,
//! with the right name beside it.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers as well"
)]

use isthmus_config::{FieldInfo, Options, Source, compile, fields};
use isthmus_core::random::Random;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// The document that has nothing but one field, and the line and column of its name.
fn document(field: &FieldInfo, typo: &str) -> (String, usize, usize) {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\nkind: {}\nmetadata:\n  name: a\nspec:\n",
        field.kind
    );
    let mut indent = 2;
    let mut dash = false;
    let steps: Vec<&str> = field.path.split('.').collect();
    let mut place = (0, 0);
    for (at, step) in steps.iter().enumerate() {
        let last = at + 1 == steps.len();
        let name = step
            .trim_end_matches("[]")
            .trim_end_matches("{}")
            .trim_end_matches('*');
        let name = if last { typo } else { name };
        let lead = if dash {
            format!("{}- ", " ".repeat(indent - 2))
        } else {
            " ".repeat(indent)
        };
        place = (text.lines().count() + 1, lead.chars().count() + 1);
        let _ = write!(text, "{lead}{name}:");
        if last {
            text.push_str(" x\n");
            break;
        }
        text.push('\n');
        dash = step.ends_with("[]");
        if step.ends_with("{}") {
            indent += 2;
            let _ = writeln!(text, "{}key:", " ".repeat(indent));
        }
        indent += if dash { 4 } else { 2 };
    }
    (text, place.0, place.1)
}

/// One edit of a kind: a letter more, less, another one, or two swapped.
fn edit(name: &str, kind: usize, random: &mut Random) -> String {
    let mut letters: Vec<char> = name.chars().collect();
    let letter = char::from(b'a' + random.below(26) as u8);
    let at = random.below(letters.len() as u64) as usize;
    match kind {
        0 => letters.insert(random.below(letters.len() as u64 + 1) as usize, letter),
        1 => drop(letters.remove(at)),
        2 => letters[at] = letter,
        _ => {
            let at = random.below(letters.len().saturating_sub(1).max(1) as u64) as usize;
            if at + 1 < letters.len() {
                letters.swap(at, at + 1);
            }
        }
    }
    letters.into_iter().collect()
}

/// The names that would do in the place of a field.
fn siblings<'a>(all: &'a [FieldInfo], field: &FieldInfo) -> BTreeSet<String> {
    let parent = |path: &'a str| path.rsplit_once('.').map_or("", |(parent, _)| parent);
    let own = field.path.rsplit_once('.').map_or("", |(parent, _)| parent);
    all.iter()
        .filter(|other| other.kind == field.kind && parent(&other.path) == own)
        .map(|other| name_of(&other.path).to_owned())
        .collect()
}

fn name_of(path: &str) -> &str {
    let last = path.rsplit('.').next().unwrap_or(path);
    last.trim_end_matches("[]")
        .trim_end_matches("{}")
        .trim_end_matches('*')
}

fn same(a: &str, b: &str) -> bool {
    let plain = |text: &str| text.replace('_', "").to_lowercase();
    plain(a) == plain(b)
}

#[test]
fn a_typing_mistake_in_any_field_is_found_and_named() {
    let all = fields();
    assert_eq!(all.len(), 649);
    let mut random = Random::from_seed(649);
    let (mut typos, mut right) = (0_usize, 0_usize);
    let mut missed: BTreeSet<String> = BTreeSet::new();
    for field in &all {
        let name = name_of(&field.path);
        let known = siblings(&all, field);
        for kind in 0..4 {
            let typo = edit(name, kind, &mut random);
            let valid = typo.is_empty() || known.iter().any(|known| same(known, &typo));
            // Without letters it is no name, and what YAML reads as something else is another mistake.
            if valid
                || typo.parse::<f64>().is_ok()
                || ["y", "n", "no", "on", "off", "yes"].contains(&typo.as_str())
            {
                continue;
            }
            typos += 1;
            let (text, line, column) = document(field, &typo);
            let source = Source {
                name: "a.yaml".to_owned(),
                text: text.into(),
            };
            let compiled = compile(std::slice::from_ref(&source), &Options::default());
            let found = compiled
                .diagnostics
                .iter()
                .find(|found| matches!(found.code, "unknown-field" | "removed-field"));
            let Some(found) = found else {
                panic!(
                    "{} {}: `{typo}` is not found\n{}",
                    field.kind, field.path, source.text
                );
            };
            assert_eq!((found.line, found.column), (line, column), "{}", source.text);
            let expected = format!("did you mean `{name}`?");
            let written = found.help.as_deref().unwrap_or("");
            if same(written, &expected) {
                right += 1;
            } else {
                missed.insert(format!(
                    "{typo} for {name}: {}",
                    found.help.as_deref().unwrap_or("nothing")
                ));
            }
        }
    }
    eprintln!("{right} of {typos} typing mistakes are named; not: {missed:#?}");
    let expected: BTreeSet<String> = include_str!("typos.txt")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(str::to_owned)
        .collect();
    assert!(typos > 2_400, "{typos}");
    assert!(right * 100 >= typos * 98, "{right} of {typos}");
    assert_eq!(missed, expected);
}
