//! Which fields of two values differ, whatever their types: both are read back from how they show themselves for
//! debugging, so that a field that the core gains is compared without a word here.

use std::iter::Peekable;
use std::str::Chars;

/// A field that differs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FieldChange {
    /// Its path, such as `destinations[0].weight`.
    pub field: String,
    /// What it was; None for what was not there.
    pub old: Option<String>,
    /// What it is; None for what is gone.
    pub new: Option<String>,
}

/// Nesting that is followed; what is deeper is compared as text.
const DEPTH_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tree {
    Text(String),
    /// `Name { field: value }`
    Fields(String, Vec<(String, Tree)>),
    /// `Name(value)`, and tuples.
    Items(String, Vec<Tree>),
    List(Vec<Tree>),
}

/// All fields that differ between two values.
pub(super) fn changes<T: std::fmt::Debug + ?Sized>(old: &T, new: &T) -> Vec<FieldChange> {
    let mut found = Vec::new();
    compare("", &tree(old), &tree(new), &mut found);
    found
}

/// Every leaf of a value as text.
pub(super) fn leaves<T: std::fmt::Debug + ?Sized>(value: &T) -> Vec<String> {
    fn collect(tree: Tree, leaves: &mut Vec<String>) {
        match tree {
            Tree::Text(text) => leaves.push(text),
            Tree::Fields(_, fields) => fields.into_iter().for_each(|(_, tree)| collect(tree, leaves)),
            Tree::Items(_, items) | Tree::List(items) => {
                items.into_iter().for_each(|tree| collect(tree, leaves));
            }
        }
    }
    let mut found = Vec::new();
    collect(tree(value), &mut found);
    found
}

fn tree<T: std::fmt::Debug + ?Sized>(value: &T) -> Tree {
    let text = format!("{value:?}");
    let mut reader = Reader {
        rest: text.chars().peekable(),
        depth: 0,
    };
    match reader.value() {
        Some(tree) if reader.rest.peek().is_none() => tree,
        _ => Tree::Text(text),
    }
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    depth: usize,
}

impl Reader<'_> {
    fn skip(&mut self, wanted: char) -> bool {
        self.rest.next_if_eq(&wanted).is_some()
    }

    fn space(&mut self) {
        while self.skip(' ') {}
    }

    fn value(&mut self) -> Option<Tree> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return None;
        }
        self.space();
        let tree = if self.skip('[') {
            let items = self.items(']')?;
            // An IPv6 address with its port begins like a list.
            match self.rest.peek() {
                Some(':') => Tree::Text(format!("[{}]{}", inline(&items), self.word()?)),
                _ => Tree::List(items),
            }
        } else if self.skip('{') {
            Tree::Fields(String::new(), self.fields()?)
        } else {
            let word = self.word()?;
            if self.skip('(') {
                Tree::Items(word, self.items(')')?)
            } else {
                let mut ahead = self.rest.clone();
                let opens = ahead.next() == Some(' ') && ahead.next() == Some('{');
                if opens && !word.is_empty() {
                    self.space();
                    self.skip('{');
                    Tree::Fields(word, self.fields()?)
                } else {
                    Tree::Text(word)
                }
            }
        };
        self.depth -= 1;
        Some(tree)
    }

    fn items(&mut self, end: char) -> Option<Vec<Tree>> {
        let mut items = Vec::new();
        loop {
            self.space();
            if self.skip(end) {
                return Some(items);
            }
            items.push(self.value()?);
            self.space();
            if !self.skip(',') && self.rest.peek() != Some(&end) {
                return None;
            }
        }
    }

    fn fields(&mut self) -> Option<Vec<(String, Tree)>> {
        let mut fields = Vec::new();
        loop {
            self.space();
            if self.skip('}') {
                return Some(fields);
            }
            let mut name = String::new();
            while let Some(c) = self.rest.next_if(|c| !":,}".contains(*c)) {
                name.push(c);
            }
            if !self.skip(':') {
                return None;
            }
            fields.push((name, self.value()?));
            self.space();
            if !self.skip(',') && self.rest.peek() != Some(&'}') {
                return None;
            }
        }
    }

    /// A name, a number, or a quoted text with whatever stands before its quote.
    fn word(&mut self) -> Option<String> {
        let mut word = String::new();
        while let Some(c) = self.rest.next_if(|c| !"(),[]{} ".contains(*c)) {
            word.push(c);
            if c == '"' {
                loop {
                    let inner = self.rest.next()?;
                    word.push(inner);
                    match inner {
                        '\\' => word.push(self.rest.next()?),
                        '"' => break,
                        _ => {}
                    }
                }
            }
        }
        Some(word)
    }
}

/// `snake_case` as resources write it.
fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or("").to_owned();
    parts.fold(first, |mut all, part| {
        let mut characters = part.chars();
        all.extend(characters.next().map(|c| c.to_ascii_uppercase()));
        all.push_str(characters.as_str());
        all
    })
}

fn inline(items: &[Tree]) -> String {
    items.iter().map(show).collect::<Vec<_>>().join(", ")
}

fn show(tree: &Tree) -> String {
    match tree {
        Tree::Text(text) if text == "None" => "none".to_owned(),
        Tree::Text(text) => text.trim_start_matches('b').trim_matches('"').to_owned(),
        Tree::Items(name, items) if name == "Some" => inline(items),
        Tree::Items(name, items) => format!("{}({})", camel(name), inline(items)),
        Tree::List(items) => format!("[{}]", inline(items)),
        Tree::Fields(_, fields) => {
            let fields = fields
                .iter()
                .map(|(name, tree)| format!("{}: {}", camel(name), show(tree)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
    }
}

fn compare(path: &str, old: &Tree, new: &Tree, found: &mut Vec<FieldChange>) {
    if old == new {
        return;
    }
    match (old, new) {
        (Tree::Fields(a, old), Tree::Fields(b, new)) if a == b && old.len() == new.len() => {
            for ((name, old), (_, new)) in old.iter().zip(new) {
                let dot = if path.is_empty() { "" } else { "." };
                compare(&format!("{path}{dot}{}", camel(name)), old, new, found);
            }
        }
        (Tree::Items(a, old), Tree::Items(b, new)) if a == b && old.len() == new.len() => {
            for (old, new) in old.iter().zip(new) {
                compare(path, old, new, found);
            }
        }
        (Tree::List(old), Tree::List(new)) => compare_lists(path, old, new, found),
        _ => found.push(FieldChange {
            field: path.to_owned(),
            old: Some(show(old)),
            new: Some(show(new)),
        }),
    }
}

/// Lists of one length are compared item by item; of others, what is gone and what is new is told.
fn compare_lists(path: &str, old: &[Tree], new: &[Tree], found: &mut Vec<FieldChange>) {
    if old.len() == new.len() {
        // What is in both is left aside, wherever it stands.
        let all = old.iter().enumerate();
        let gone: Vec<(usize, &Tree)> = all.filter(|(_, item)| !new.contains(item)).collect();
        let come: Vec<&Tree> = new.iter().filter(|item| !old.contains(item)).collect();
        if gone.len() == come.len() && !gone.is_empty() {
            for ((at, old), new) in gone.into_iter().zip(come) {
                compare(&format!("{path}[{at}]"), old, new, found);
            }
            return;
        }
        return found.push(FieldChange {
            field: path.to_owned(),
            old: Some(format!("[{}]", inline(old))),
            new: Some(format!("[{}]", inline(new))),
        });
    }
    let before = found.len();
    let mut told = |items: &[Tree], others: &[Tree], is_old: bool| {
        for item in items.iter().filter(|item| !others.contains(item)) {
            let text = Some(show(item));
            found.push(FieldChange {
                field: path.to_owned(),
                old: text.clone().filter(|_| is_old),
                new: text.filter(|_| !is_old),
            });
        }
    };
    told(old, new, true);
    told(new, old, false);
    if found.len() == before {
        // They differ in how often something is in them.
        found.push(FieldChange {
            field: path.to_owned(),
            old: Some(format!("{} items", old.len())),
            new: Some(format!("{} items", new.len())),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::time::Duration;

    #[derive(Debug, Clone)]
    struct Inner {
        max_count: u32,
        name: Option<&'static str>,
    }

    #[derive(Debug, Clone)]
    #[allow(dead_code, reason = "shown for debugging only, which is what is tested")]
    struct Outer {
        inner: Inner,
        wait: Option<Duration>,
        list: Vec<SocketAddr>,
        text: bytes::Bytes,
    }

    fn outer() -> Outer {
        Outer {
            inner: Inner {
                max_count: 1,
                name: Some("a, \"b\" {c"),
            },
            wait: Some(Duration::from_secs(15)),
            list: vec!["10.0.0.1:80".parse().unwrap(), "[::1]:80".parse().unwrap()],
            text: bytes::Bytes::from_static(b"x)"),
        }
    }

    fn told(old: &Outer, new: &Outer) -> Vec<(String, String)> {
        let word = |text: &Option<String>| text.clone().unwrap_or("-".to_owned());
        let all = changes(old, new);
        all.iter()
            .map(|change| {
                (
                    change.field.clone(),
                    format!("{} > {}", word(&change.old), word(&change.new)),
                )
            })
            .collect()
    }

    #[test]
    fn each_field_that_differs_is_named() {
        let old = outer();
        assert_eq!(told(&old, &old), []);
        let mut new = outer();
        new.inner.max_count = 2;
        new.inner.name = None;
        new.wait = Some(Duration::from_millis(2500));
        new.list.push("10.0.0.2:80".parse().unwrap());
        let pair = |field: &str, text: &str| (field.to_owned(), text.to_owned());
        assert_eq!(
            told(&old, &new),
            [
                pair("inner.maxCount", "1 > 2"),
                pair("inner.name", "a, \\\"b\\\" {c > none"),
                pair("wait", "15s > 2.5s"),
                pair("list", "- > 10.0.0.2:80"),
            ]
        );
        let mut new = outer();
        new.list[1] = "[::2]:80".parse().unwrap();
        new.text = bytes::Bytes::from_static(b"y");
        assert_eq!(
            told(&old, &new),
            [pair("list[1]", "[::1]:80 > [::2]:80"), pair("text", "x) > y")]
        );
        assert!(leaves(&old).contains(&"10.0.0.1:80".to_owned()));
    }
}
