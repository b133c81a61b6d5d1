//! Which modules a file of the gateway's shell refers to, and which it may.

use crate::source::words;
use std::path::Path;

/// Modules of one height. A module may refer to lower layers and to itself.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Their names.
    pub(crate) modules: &'static [&'static str],
    /// Whether they may refer to each other, too.
    pub(crate) siblings: bool,
}

/// The module that a file below `src` belongs to, and how deep its own path is: `a/b/c.rs` is `a`, at depth 3.
pub(crate) fn module_of(below_src: &Path) -> Option<(String, usize)> {
    let mut names: Vec<_> = below_src
        .with_extension("")
        .iter()
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    if names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    let depth = if names.len() == 1 && matches!(names[0].as_str(), "lib" | "main") {
        0
    } else {
        names.len()
    };
    names.into_iter().next().map(|first| (first, depth))
}

/// What stands at the root of each path that code names through `crate::` or through `super::` up to the root, with its
/// position.
pub(crate) fn roots(code: &str, depth: usize) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    // Behind the last `super` of a chain, which counts as one path.
    let mut read_to = 0;
    for (at, word) in words(code) {
        if at < read_to {
            continue;
        }
        let path = &code[at + word.len()..];
        let rest = match word {
            "crate" => path.strip_prefix("::"),
            "super" => {
                let (ups, rest) = chain_of_supers(path);
                read_to = code.len() - rest.len();
                if ups == depth {
                    rest.strip_prefix("::")
                } else {
                    None
                }
            }
            _ => None,
        };
        if let Some(rest) = rest {
            let offset = code.len() - rest.len();
            found.extend(first_words(rest).map(|(start, name)| (offset + start, name)));
        }
    }
    found
}

/// How many modules `super` and what follows it goes up, and the code behind.
fn chain_of_supers(mut path: &str) -> (usize, &str) {
    let mut ups = 1;
    while let Some(more) = path.strip_prefix("::super") {
        if more.starts_with(|next: char| next.is_alphanumeric() || next == '_') {
            break;
        }
        (ups, path) = (ups + 1, more);
    }
    (ups, path)
}

/// The first word of a path, or of each path of a group `{a, b::{c, d}}`.
fn first_words(rest: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut starts = Vec::new();
    let trimmed = rest.trim_start();
    let begin = rest.len() - trimmed.len();
    if trimmed.starts_with('{') {
        let mut depth = 0;
        for (at, character) in rest.char_indices().skip(begin) {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if (character == '{' || character == ',') && depth == 1 {
                starts.push(at + 1);
            }
            if depth == 0 {
                break;
            }
        }
    } else {
        starts.push(begin);
    }
    starts.into_iter().filter_map(|start| {
        let text = &rest[start..];
        let (at, word) = words(text).next()?;
        // Nothing but blanks may come before it: `{}` and a trailing comma have no word of their own.
        text[..at].trim().is_empty().then_some((start + at, word))
    })
}

/// Why a module may not refer to another one, if it may not.
pub(crate) fn objection(layers: &[Layer], from: &str, to: &str) -> Option<String> {
    let height = |name: &str| layers.iter().position(|layer| layer.modules.contains(&name));
    let (own, other) = (height(from)?, height(to)?);
    if from == to || other < own || (other == own && layers[own].siblings) {
        return None;
    }
    let relation = if other == own {
        "stands beside it"
    } else {
        "is above it"
    };
    Some(format!("{from} refers to {to}, which {relation}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(code: &str, depth: usize) -> Vec<&str> {
        roots(code, depth).into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn paths_from_the_root_are_found() {
        assert_eq!(
            names(
                "use crate::a::b; crate::c::d(); pub(crate) fn e() {} pub(in crate::f) g",
                1
            ),
            ["a", "c", "f"]
        );
        assert_eq!(
            names("use crate::{a, b::{c, d}, e::f as g,};", 1),
            ["a", "b", "e"]
        );
        assert_eq!(names("use crate::{\n    a::{b, c},\n\n    d,\n};", 1), ["a", "d"]);
        assert_eq!(names("use isthmus::a; my_crate::b;", 1), Vec::<&str>::new());
    }

    #[test]
    fn supers_are_counted() {
        assert_eq!(names("use super::a; use super::super::b;", 1), ["a"]);
        assert_eq!(names("use super::a; use super::super::{b, c::d};", 2), ["b", "c"]);
        assert_eq!(names("super::super::super::a(); super::superb::b()", 3), ["a"]);
    }

    #[test]
    fn a_files_module_is_its_first_folder_or_its_name() {
        let module = |path: &str| module_of(Path::new(path)).unwrap();
        assert_eq!(module("io/clock.rs"), ("io".to_owned(), 2));
        assert_eq!(module("io/mod.rs"), ("io".to_owned(), 1));
        assert_eq!(module("mailbox.rs"), ("mailbox".to_owned(), 1));
        assert_eq!(module("lib.rs"), ("lib".to_owned(), 0));
    }
}
