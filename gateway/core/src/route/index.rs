//! The path index: which rules of a virtual host a path may belong to, at a cost that does not grow with their number.
//!
//! Exact paths, prefixes, and the text that every match of a regex must begin with are one trie over bytes, held as a
//! double array (Aoe 1989): a step compares one number and costs the same however many rules there are. A walk ends
//! at the longest stretch of the path that some rule names; from there the rules of that stretch and of those it
//! begins with are asked, the longest first, and of those that take the request the one that was written first wins.
//! Lists that begin behind a rule that was already found are not asked at all. Rules that ignore case have a trie of
//! their own, in which both cases of a letter are the same step.

use super::{Route, TextMatch};
use regex_syntax::hir::{Hir, HirKind};

/// No rule, no terminal, or a free place.
const NONE: u32 = u32::MAX;
/// Bit of a candidate whose path the walk has compared and that asks for nothing else.
const SURE: u32 = 1 << 31;
/// Places that are tried for a node before the end of the array is taken, so that building stays linear.
const TRIES_MAX: usize = 32;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct PathIndex {
    exact_case: Trie,
    /// Few virtual hosts have one.
    any_case: Option<Box<Trie>>,
}

/// What a rule must still be asked when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Everything but the path, which was compared.
    BeyondPath,
    /// Everything.
    All,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    /// Where the children are: child `c` is at `base + c`.
    base: u32,
    /// The node that this is a child of; NONE when the place is free.
    parent: u32,
    /// The nearest terminal at this node or above.
    terminal: u32,
}

const FREE: Node = Node {
    base: 0,
    parent: NONE,
    terminal: NONE,
};

/// A node at which rules end.
#[derive(Debug, Clone, Copy)]
struct Terminal {
    node: u32,
    /// The next terminal above.
    above: u32,
    /// Rules for exactly this path, as a range of [`Trie::candidates`].
    exact: (u32, u32),
    /// Rules for every path that begins so.
    prefix: (u32, u32),
}

/// One trie; a table of one rule and one of ten thousand are walked by the same steps.
#[derive(Debug, Clone)]
struct Trie {
    nodes: Vec<Node>,
    /// Steps by byte; 0 for a byte that no rule has.
    classes: Box<[u8; 256]>,
    terminals: Vec<Terminal>,
    /// Positions of rules, some with [`SURE`], in rising order within each list.
    candidates: Vec<u32>,
}

impl Default for Trie {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            classes: Box::new([0; 256]),
            terminals: Vec::new(),
            candidates: Vec::new(),
        }
    }
}

/// What a rule's path is filed under.
struct Key {
    text: Vec<u8>,
    exact: bool,
    candidate: u32,
}

impl PathIndex {
    /// Files all rules.
    pub(super) fn new(routes: &[Route]) -> Self {
        let mut exact_case = Vec::new();
        let mut any_case = Vec::new();
        for (at, route) in routes.iter().enumerate().take(SURE as usize) {
            let path = &route.matches.path;
            let compared = !matches!(path.text, TextMatch::Regex(_));
            let sure = compared && route.matches.is_path_only();
            let candidate = at as u32 | if sure { SURE } else { 0 };
            let (text, exact) = match &path.text {
                TextMatch::Exact(text) => (text.as_bytes().to_vec(), true),
                TextMatch::Prefix(text) => (text.as_bytes().to_vec(), false),
                TextMatch::Regex(regex) => (required_prefix(regex.pattern()), false),
                TextMatch::Present => (Vec::new(), false),
            };
            // Case is ignored for exact paths and prefixes only.
            let list = if path.ignore_case && compared {
                &mut any_case
            } else {
                &mut exact_case
            };
            list.push(Key {
                text,
                exact,
                candidate,
            });
        }
        Self {
            exact_case: Trie::new(exact_case, false),
            any_case: (!any_case.is_empty()).then(|| Box::new(Trie::new(any_case, true))),
        }
    }

    /// The position of the first rule for a path that `takes` accepts; it is asked only about rules whose path fits,
    /// or, with [`Ask::All`], may fit.
    pub(super) fn find(
        &self,
        path: &[u8],
        routes: &[Route],
        mut takes: impl FnMut(&Route, Ask) -> bool,
    ) -> Option<usize> {
        let mut best = NONE;
        self.exact_case.find(path, routes, &mut takes, &mut best);
        if let Some(any_case) = &self.any_case {
            any_case.find(path, routes, &mut takes, &mut best);
        }
        (best != NONE).then_some(best as usize)
    }
}

impl Trie {
    fn new(mut keys: Vec<Key>, any_case: bool) -> Self {
        let mut trie = Self::default();
        if keys.is_empty() {
            return trie;
        }
        if any_case {
            for key in &mut keys {
                key.text.make_ascii_lowercase();
            }
        }
        // Within one text the order of the rules stays.
        keys.sort_by(|a, b| a.text.cmp(&b.text));
        let mut used = 0_u8;
        for &byte in keys.iter().flat_map(|key| &key.text) {
            if trie.classes[usize::from(byte)] == 0 {
                // There are fewer than 256 bytes in UTF-8 text.
                used = used.saturating_add(1);
                trie.classes[usize::from(byte)] = used;
                if any_case {
                    trie.classes[usize::from(byte.to_ascii_uppercase())] = used;
                }
            }
        }
        trie.build(&keys);
        trie.nodes.shrink_to_fit();
        trie.terminals.shrink_to_fit();
        trie.candidates.shrink_to_fit();
        trie
    }

    fn build(&mut self, keys: &[Key]) {
        self.nodes.push(Node { parent: 0, ..FREE });
        let mut free = FreePlaces::default();
        // Node, its keys (all begin with the same `depth` bytes), and the terminal above.
        let mut work: Vec<(u32, &[Key], usize, u32)> = vec![(0, keys, 0, NONE)];
        let mut children: Vec<(u8, &[Key])> = Vec::new();
        while let Some((node, keys, depth, above)) = work.pop() {
            let (here, deeper) = keys.split_at(keys.partition_point(|key| key.text.len() == depth));
            let terminal = if here.is_empty() {
                above
            } else {
                self.add_terminal(node, above, here)
            };
            children.clear();
            let mut rest = deeper;
            while let Some(byte) = rest.first().and_then(|key| key.text.get(depth)).copied() {
                let same = rest.partition_point(|key| key.text.get(depth) == Some(&byte));
                let (same, others) = rest.split_at(same);
                children.push((self.classes[usize::from(byte)], same));
                rest = others;
            }
            let base = free.place(&mut self.nodes, &children.iter().map(|(class, _)| *class));
            if let Some(place) = self.nodes.get_mut(node as usize) {
                place.base = base;
                place.terminal = terminal;
            }
            for (class, keys) in children.drain(..) {
                let child = base + u32::from(class);
                if let Some(place) = self.nodes.get_mut(child as usize) {
                    place.parent = node;
                }
                work.push((child, keys, depth + 1, terminal));
            }
        }
    }

    fn add_terminal(&mut self, node: u32, above: u32, keys: &[Key]) -> u32 {
        let mut list = |exact: bool| {
            let start = self.candidates.len() as u32;
            let kept = keys.iter().filter(|key| key.exact == exact);
            self.candidates.extend(kept.map(|key| key.candidate));
            (start, self.candidates.len() as u32)
        };
        let (exact, prefix) = (list(true), list(false));
        self.terminals.push(Terminal {
            node,
            above,
            exact,
            prefix,
        });
        self.terminals.len() as u32 - 1
    }

    fn find(
        &self,
        path: &[u8],
        routes: &[Route],
        takes: &mut impl FnMut(&Route, Ask) -> bool,
        best: &mut u32,
    ) {
        let Some(mut node) = self.nodes.first() else {
            return;
        };
        let mut at = 0;
        let mut whole = true;
        for &byte in path {
            let next = node.base + u32::from(self.classes[usize::from(byte)]);
            match self.nodes.get(next as usize) {
                Some(child) if child.parent == at && next != 0 => {
                    node = child;
                    at = next;
                }
                _ => {
                    whole = false;
                    break;
                }
            }
        }
        let mut terminal = self.terminals.get(node.terminal as usize);
        while let Some(here) = terminal {
            if whole && here.node == at {
                self.ask(here.exact, routes, takes, best);
            }
            self.ask(here.prefix, routes, takes, best);
            terminal = self.terminals.get(here.above as usize);
        }
    }

    /// Asks the rules of one list until one takes the request or none of them could come before the best so far.
    fn ask(
        &self,
        (start, end): (u32, u32),
        routes: &[Route],
        takes: &mut impl FnMut(&Route, Ask) -> bool,
        best: &mut u32,
    ) {
        let list = self.candidates.get(start as usize..end as usize).unwrap_or(&[]);
        for &candidate in list {
            let at = candidate & !SURE;
            if at >= *best {
                return;
            }
            let taken = candidate & SURE != 0
                || routes.get(at as usize).is_some_and(|route| {
                    let ask = match route.matches.path.text {
                        TextMatch::Regex(_) => Ask::All,
                        _ => Ask::BeyondPath,
                    };
                    takes(route, ask)
                });
            if taken {
                *best = at;
                return;
            }
        }
    }
}

/// Where the next nodes can go.
#[derive(Default)]
struct FreePlaces {
    /// No place before this one is free.
    first: usize,
}

impl FreePlaces {
    /// Finds a base at which all classes are free, makes room, and leaves it to the caller to take the places.
    fn place(&mut self, nodes: &mut Vec<Node>, classes: &(impl Iterator<Item = u8> + Clone)) -> u32 {
        let (Some(low), Some(high)) = (classes.clone().min(), classes.clone().max()) else {
            return 0;
        };
        let (low, high) = (usize::from(low), usize::from(high));
        let is_free = |at: usize| nodes.get(at).is_none_or(|node| node.parent == NONE);
        while !is_free(self.first) {
            self.first += 1;
        }
        let start = self.first.max(low);
        let fits = |base: &usize| classes.clone().all(|class| is_free(base + usize::from(class)));
        let base = (start..start + TRIES_MAX)
            .map(|place| place - low)
            .find(fits)
            .unwrap_or(nodes.len());
        if nodes.len() <= base + high {
            nodes.resize(base + high + 1, FREE);
        }
        // What stays free behind a crowded stretch is given up, or every search would begin there.
        if base + low >= self.first + TRIES_MAX {
            self.first += TRIES_MAX;
        }
        base as u32
    }
}

/// The text that whatever a pattern matches as a whole must begin with; empty when that cannot be said.
fn required_prefix(pattern: &str) -> Vec<u8> {
    let mut prefix = Vec::new();
    if let Ok(hir) = regex_syntax::parse(pattern) {
        collect_prefix(&hir, &mut prefix);
    }
    prefix
}

/// Appends the literal beginning of `hir`; true when `hir` is nothing but that, so that what follows it counts, too.
fn collect_prefix(hir: &Hir, prefix: &mut Vec<u8>) -> bool {
    match hir.kind() {
        HirKind::Literal(literal) => {
            prefix.extend_from_slice(&literal.0);
            true
        }
        HirKind::Empty | HirKind::Look(regex_syntax::hir::Look::Start) => true,
        HirKind::Capture(capture) => collect_prefix(&capture.sub, prefix),
        HirKind::Concat(parts) => parts.iter().all(|part| collect_prefix(part, prefix)),
        HirKind::Look(_) | HirKind::Class(_) | HirKind::Repetition(_) | HirKind::Alternation(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regexes_are_filed_under_what_they_begin_with() {
        for (pattern, expected) in [
            ("/api/v[0-9]+/.*", "/api/v"),
            ("^/a/(b)c", "/a/bc"),
            ("/a|/b", "/"),
            ("a|b", ""),
            ("(?i)/a", "/"),
            ("/ab?", "/a"),
            (".*", ""),
            ("/x{2}", "/"),
            (r"/a\.b$", "/a.b"),
            ("(", ""),
        ] {
            let found = String::from_utf8(required_prefix(pattern)).unwrap();
            assert!(
                found == expected || expected.starts_with(&found) || found.starts_with(expected),
                "{pattern}: {found}"
            );
        }
        assert_eq!(required_prefix("/api/v[0-9]+/.*"), b"/api/v");
        assert_eq!(required_prefix("^/a/(b)c"), b"/a/bc");
    }
}
