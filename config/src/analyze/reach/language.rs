//! Texts that meet several demands at a time: whether there is one, and the shortest if there is.
//!
//! What a rule asks of a path, a method, a field or a parameter is a regular language, and so is what can come there at
//! all (a [`Space`]). A demand is such a language or its complement, and [`Languages::find`] looks for a text in the
//! intersection of all. Most questions are answered by comparing literals or by trying what is near at hand; for the
//! rest, the automata of all demands are walked together, breadth first, over one byte of each class that none of them
//! tells apart. Regexes are determinized on the way and only as far as the walk gets. Whatever becomes too large is
//! answered with [`Found::Unknown`].

use isthmus_core::header::is_value_byte;
use isthmus_core::limits::PathNormalization;
use isthmus_core::name::HostPattern;
use isthmus_core::route::{REGEX_COMPILED_MAX, Regex, Scratch, TextMatch};
use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
use std::collections::{HashMap, HashSet};

/// Most states that one walk visits.
const WALK_STATES_MAX: usize = 20_000;
/// Most memory of one pattern's determinized states.
const AUTOMATON_BYTES_MAX: usize = 1 << 20;
/// What making one costs, in transitions.
const AUTOMATON_WORK: u64 = 5_000;
/// Longest literal of a walk.
const LITERAL_MAX: usize = 60_000;
/// Patterns whose automata are kept for the next question.
const AUTOMATA_MAX: usize = 256;

/// A language, or its complement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand<'a> {
    pub(crate) text: &'a TextMatch,
    /// Compare exact texts and prefixes without case.
    pub(crate) ignore_case: bool,
    /// Whether the text must look so, or must not.
    pub(crate) holds: bool,
}

/// What can come at all.
#[derive(Debug, Clone)]
pub(crate) enum Space {
    /// Paths without query, as the data path normalizes them.
    Path(PathNormalization),
    /// Methods (RFC 9110, 5.6.2).
    Token,
    /// Values of fields (RFC 9110, 5.5), several lines of one joined.
    Value,
    /// Values of query parameters.
    QueryValue,
    /// Authorities of some hosts.
    Authority(AuthoritySpace),
    /// This text only.
    Only(Box<str>),
}

/// The authorities whose host is named by one pattern, and by no more specific one that leads elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct AuthoritySpace {
    pub(crate) inside: TextMatch,
    pub(crate) outside: Vec<TextMatch>,
    /// One of them.
    pub(crate) sample: String,
}

impl AuthoritySpace {
    /// None when the pattern is too long to reason about.
    pub(crate) fn new(inside: &HostPattern, outside: &[&HostPattern], sample: String) -> Option<Self> {
        let all: Option<Vec<TextMatch>> = outside.iter().map(|pattern| authorities(pattern)).collect();
        Some(Self {
            inside: authorities(inside)?,
            outside: all?,
            sample,
        })
    }
}

/// All authorities whose host a pattern names: in any case, perhaps with the root's dot, perhaps with a port.
fn authorities(pattern: &HostPattern) -> Option<TextMatch> {
    const HOST_BYTE: &str = r"[A-Za-z0-9\-._~%!$&']";
    let quoted = |text: &str| -> String {
        text.chars()
            .flat_map(|c| {
                (!c.is_ascii_alphanumeric())
                    .then_some('\\')
                    .into_iter()
                    .chain([c])
            })
            .collect()
    };
    let host = match pattern {
        HostPattern::Exact(name) if name.is_ascii() => quoted(name),
        HostPattern::Suffix(suffix) if suffix.is_ascii() => format!("{HOST_BYTE}+{}", quoted(suffix)),
        HostPattern::Any => format!(r"(?:{HOST_BYTE}*|\[[0-9A-Fa-f:.]+\])"),
        _ => return None,
    };
    let text = format!(r"(?i-u:{host})\.?(?::[0-9]{{0,5}})?");
    Regex::new(&text).ok().map(TextMatch::Regex)
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// This text meets all demands.
    Text(Vec<u8>),
    /// It is proven that none does.
    Nothing,
    /// Too much work, or a pattern that cannot be reasoned about.
    Unknown,
}

/// Working memory: regexes as the data path runs them, and their automata.
#[derive(Default)]
pub(crate) struct Languages {
    scratch: Scratch,
    automata: HashMap<String, Box<Automaton>>,
    /// Patterns that have none.
    opaque: HashSet<String>,
    /// Transitions that may still be tried.
    pub(crate) work: u64,
}

struct Automaton {
    dfa: DFA,
    cache: Cache,
}

impl Automaton {
    fn new(pattern: &str) -> Option<Self> {
        let config = DFA::config()
            .match_kind(MatchKind::All)
            .unicode_word_boundary(true)
            .cache_capacity(AUTOMATON_BYTES_MAX)
            .skip_cache_capacity_check(true)
            // States stay valid during a walk: instead of being cleared, a full cache is an error.
            .minimum_cache_clear_count(Some(0));
        let dfa = DFA::builder()
            .configure(config)
            .thompson(thompson::Config::new().nfa_size_limit(Some(REGEX_COMPILED_MAX)))
            .build(&format!("^(?:{pattern})$"))
            .ok()?;
        Some(Self {
            cache: dfa.create_cache(),
            dfa,
        })
    }

    fn start(&mut self) -> Option<LazyStateID> {
        if self.cache.memory_usage() > AUTOMATON_BYTES_MAX / 2 {
            self.dfa.reset_cache(&mut self.cache);
        }
        let config = start::Config::new().anchored(Anchored::Yes);
        self.dfa.start_state(&mut self.cache, &config).ok()
    }

    fn step(&mut self, state: LazyStateID, byte: u8) -> Option<LazyStateID> {
        let next = self.dfa.next_state(&mut self.cache, state, byte).ok()?;
        (!next.is_quit()).then_some(next)
    }

    fn accepts(&mut self, state: LazyStateID) -> Option<bool> {
        let end = self.dfa.next_eoi_state(&mut self.cache, state).ok()?;
        (!end.is_quit()).then_some(end.is_match())
    }
}

impl Space {
    const START: u8 = 0;

    /// The state behind a byte; None when nothing that goes on so is in the space.
    fn step(&self, state: u8, byte: u8) -> Option<u8> {
        let uri = byte.is_ascii_graphic() && byte != b'#';
        match self {
            // 1: behind a slash, 2: behind `/.`, 3: behind `/..`, 4: elsewhere.
            Self::Path(mode) => {
                if !uri || byte == b'?' {
                    return None;
                }
                let (raw, merged) = match mode {
                    PathNormalization::None => (true, false),
                    PathNormalization::Base => (false, false),
                    PathNormalization::MergeSlashes | PathNormalization::DecodeAndMergeSlashes => {
                        (false, true)
                    }
                };
                match (state, byte) {
                    (0, b'/') => Some(1),
                    (0, _) => None,
                    (_, b'\\') if !raw => None,
                    (1, b'/') if merged => None,
                    (2 | 3, b'/') if !raw => None,
                    (_, b'/') => Some(1),
                    (1, b'.') => Some(2),
                    (2, b'.') => Some(3),
                    _ => Some(4),
                }
            }
            Self::Token => {
                let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
                token.then_some(1)
            }
            // 1: behind a byte that may be the last, 2: behind white space.
            Self::Value => match byte {
                b' ' | b'\t' => (state != 0).then_some(2),
                _ => is_value_byte(byte).then_some(1),
            },
            Self::QueryValue => (uri && byte != b'&').then_some(0),
            Self::Authority(_) => byte.is_ascii_graphic().then_some(0),
            Self::Only(text) => (text.as_bytes().get(usize::from(state)) == Some(&byte)).then_some(state + 1),
        }
    }

    /// Whether a text may end here.
    fn ends(&self, state: u8) -> bool {
        match self {
            Self::Path(PathNormalization::None) | Self::Token => state != 0,
            Self::Path(_) => matches!(state, 1 | 4),
            Self::Value => state != 2,
            Self::QueryValue | Self::Authority(_) => true,
            Self::Only(text) => usize::from(state) == text.len(),
        }
    }

    fn holds(&self, text: &[u8]) -> bool {
        let mut state = Self::START;
        for &byte in text {
            match self.step(state, byte) {
                Some(next) => state = next,
                None => return false,
            }
        }
        self.ends(state)
    }

    /// Bytes that the space tells apart, beyond whether they may come at all.
    fn special(&self) -> &[u8] {
        match self {
            Self::Path(_) => b"/.\\",
            Self::Value => b" \t",
            Self::Only(text) => text.as_bytes(),
            Self::Token | Self::QueryValue | Self::Authority(_) => b"",
        }
    }

    /// What is tried first, behind what the demands ask for.
    fn usual(&self) -> &[&'static str] {
        match self {
            Self::Path(_) => &["/", "/x", "/~x"],
            Self::Token => &["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "X"],
            Self::Value | Self::QueryValue => &["x", "1", ""],
            Self::Authority(_) => &[],
            Self::Only(_) => &[],
        }
    }
}

/// Bytes in the order in which witnesses prefer them.
fn preferred() -> impl Iterator<Item = u8> {
    let first = b"xabcdefghijklmnopqrstuvwyz0123456789/-_ABCDEFGHIJKLMNOPQRSTUVWXYZ.";
    let rest = (0x21..=0x7e_u8).chain([b' ', b'\t']).chain(0x80..=0xff);
    first
        .iter()
        .copied()
        .chain(rest.filter(move |byte| !first.contains(byte)))
}

/// One demand of a walk.
enum Part<'a> {
    Literal {
        text: &'a [u8],
        ignore_case: bool,
        prefix: bool,
        holds: bool,
    },
    Pattern {
        automaton: Box<Automaton>,
        pattern: &'a str,
        holds: bool,
    },
}

/// Where all automata of a walk are. Of a literal, the bytes that were met; one behind its length is a mismatch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Joint {
    space: u8,
    literals: Vec<u16>,
    patterns: Vec<LazyStateID>,
}

impl Languages {
    /// Whether a text meets a demand.
    pub(crate) fn meets(&mut self, demand: Demand<'_>, text: &[u8]) -> bool {
        let looks_so = match demand.text {
            TextMatch::Exact(wanted) if demand.ignore_case => text.eq_ignore_ascii_case(wanted.as_bytes()),
            TextMatch::Prefix(prefix) if demand.ignore_case => begins(text, prefix.as_bytes(), true),
            other => other.matches(text, &mut self.scratch),
        };
        looks_so == demand.holds
    }

    fn meets_all(&mut self, space: &Space, demands: &[Demand<'_>], text: &[u8]) -> bool {
        space.holds(text) && demands.iter().all(|demand| self.meets(*demand, text))
    }

    /// A text of the space that meets all demands.
    pub(crate) fn find(&mut self, space: &Space, demands: &[Demand<'_>]) -> Found {
        let mut all: Vec<Demand<'_>> = demands.to_vec();
        if let Space::Authority(authority) = space {
            let demand = |text, holds| Demand {
                text,
                ignore_case: false,
                holds,
            };
            all.push(demand(&authority.inside, true));
            all.extend(authority.outside.iter().map(|text| demand(text, false)));
        }
        all.retain(|demand| !(demand.holds && *demand.text == TextMatch::Present));
        if all.iter().any(|demand| *demand.text == TextMatch::Present) {
            return Found::Nothing;
        }
        self.work = self.work.saturating_sub(1 + all.len() as u64);
        let definite = |text: &[u8], this: &mut Self| match this.meets_all(space, &all, text) {
            true => Found::Text(text.to_vec()),
            false => Found::Nothing,
        };
        if let Space::Only(text) = space {
            return definite(text.as_bytes(), self);
        }
        let exact = all.iter().find_map(|demand| match demand.text {
            TextMatch::Exact(text) if demand.holds && !demand.ignore_case => Some(text),
            _ => None,
        });
        if let Some(text) = exact {
            return definite(text.as_bytes(), self);
        }
        if contradict(&all) {
            return Found::Nothing;
        }
        match self.guess(space, &all) {
            Some(text) => Found::Text(text),
            None => self.walk(space, &all),
        }
    }

    /// Tries what is near at hand.
    fn guess(&mut self, space: &Space, demands: &[Demand<'_>]) -> Option<Vec<u8>> {
        let patterns = demands
            .iter()
            .any(|demand| demand.holds && matches!(demand.text, TextMatch::Regex(_)));
        if let Space::Authority(authority) = space {
            let sample = authority.sample.as_bytes();
            return self.meets_all(space, demands, sample).then(|| sample.to_vec());
        }
        if patterns && !matches!(space, Space::Token) {
            return None;
        }
        let stems = demands.iter().filter_map(|demand| match demand.text {
            TextMatch::Exact(text) | TextMatch::Prefix(text) if demand.holds => Some(&**text),
            _ => None,
        });
        let stem = stems.max_by_key(|text| text.len()).unwrap_or("");
        for usual in std::iter::once("").chain(space.usual().iter().copied()) {
            // What is asked for may already be all that there is to say.
            let text = match space {
                Space::Path(_) if stem.ends_with('/') => format!("{stem}{}", usual.trim_start_matches('/')),
                _ if stem.is_empty() && usual.is_empty() => continue,
                _ => format!("{stem}{usual}"),
            };
            if self.meets_all(space, demands, text.as_bytes()) {
                return Some(text.into_bytes());
            }
        }
        None
    }

    /// Walks all automata together.
    fn walk(&mut self, space: &Space, demands: &[Demand<'_>]) -> Found {
        let mut parts = Vec::with_capacity(demands.len());
        let mut complete = true;
        for demand in demands {
            let (text, prefix) = match demand.text {
                TextMatch::Exact(text) => (text, false),
                TextMatch::Prefix(text) => (text, true),
                TextMatch::Present => continue,
                TextMatch::Regex(regex) => {
                    match self.take_automaton(regex.pattern()) {
                        Some(automaton) => parts.push(Part::Pattern {
                            automaton,
                            pattern: regex.pattern(),
                            holds: demand.holds,
                        }),
                        None => complete = false,
                    }
                    continue;
                }
            };
            complete &= text.len() <= LITERAL_MAX;
            parts.push(Part::Literal {
                text: text.as_bytes(),
                ignore_case: demand.ignore_case,
                prefix,
                holds: demand.holds,
            });
        }
        let found = match complete {
            true => Walk {
                space,
                parts: &mut parts,
                complete: true,
            }
            .run(&mut self.work),
            false => Found::Unknown,
        };
        if self.automata.len() >= AUTOMATA_MAX {
            self.automata.clear();
        }
        for part in parts {
            if let Part::Pattern {
                automaton, pattern, ..
            } = part
            {
                self.automata.insert(pattern.to_owned(), automaton);
            }
        }
        found
    }

    /// The automaton of a pattern; it is put back after the walk. None for a pattern that has none.
    fn take_automaton(&mut self, pattern: &str) -> Option<Box<Automaton>> {
        if self.opaque.contains(pattern) {
            return None;
        }
        if let Some(known) = self.automata.remove(pattern) {
            return Some(known);
        }
        self.work = self.work.saturating_sub(AUTOMATON_WORK);
        let automaton = Automaton::new(pattern).map(Box::new);
        if automaton.is_none() {
            self.opaque.insert(pattern.to_owned());
        }
        automaton
    }
}

fn begins(text: &[u8], prefix: &[u8], ignore_case: bool) -> bool {
    let head = text.get(..prefix.len());
    head.is_some_and(|head| {
        if ignore_case {
            head.eq_ignore_ascii_case(prefix)
        } else {
            head == prefix
        }
    })
}

/// Whether two literals exclude each other, so that nothing needs to be walked.
fn contradict(demands: &[Demand<'_>]) -> bool {
    let stem = |demand: &Demand<'_>| match demand.text {
        TextMatch::Exact(text) | TextMatch::Prefix(text) if demand.holds => Some(text.clone()),
        _ => None,
    };
    let Some(longest) = demands.iter().filter_map(stem).max_by_key(|text| text.len()) else {
        return false;
    };
    let longest = longest.as_bytes();
    let case = demands.iter().any(|demand| demand.holds && demand.ignore_case);
    demands.iter().any(|demand| match (demand.text, demand.holds) {
        // Every text that begins as the longest does begins as a shorter one does, or none does.
        (TextMatch::Prefix(text), true) => !begins(longest, text.as_bytes(), case || demand.ignore_case),
        (TextMatch::Prefix(text), false) => {
            begins(longest, text.as_bytes(), demand.ignore_case) && (demand.ignore_case || !case)
        }
        _ => false,
    })
}

struct Walk<'w, 'a> {
    space: &'w Space,
    parts: &'w mut [Part<'a>],
    /// No branch was given up.
    complete: bool,
}

impl Walk<'_, '_> {
    fn run(mut self, work: &mut u64) -> Found {
        let Some(start) = self.start() else {
            return Found::Unknown;
        };
        let bytes = self.representatives();
        // Visited states with the one before each and the byte between.
        let mut visited: Vec<(Joint, usize, u8)> = vec![(start.clone(), usize::MAX, 0)];
        let mut known: HashSet<Joint> = HashSet::from([start]);
        let mut at = 0;
        while let Some((here, ..)) = visited.get(at) {
            let here = here.clone();
            match self.accepts(&here) {
                Some(true) => return Found::Text(spell(&visited, at)),
                Some(false) => {}
                None => self.complete = false,
            }
            let cost = (bytes.len() * (1 + self.parts.len())) as u64;
            if *work < cost || visited.len() > WALK_STATES_MAX {
                *work = work.saturating_sub(cost);
                return Found::Unknown;
            }
            *work -= cost;
            for &byte in &bytes {
                if let Some(next) = self.step(&here, byte)
                    && known.insert(next.clone())
                {
                    visited.push((next, at, byte));
                }
            }
            at += 1;
        }
        if self.complete {
            Found::Nothing
        } else {
            Found::Unknown
        }
    }

    fn start(&mut self) -> Option<Joint> {
        let mut joint = Joint {
            space: Space::START,
            literals: Vec::new(),
            patterns: Vec::new(),
        };
        for part in self.parts.iter_mut() {
            match part {
                Part::Literal { .. } => joint.literals.push(0),
                Part::Pattern { automaton, .. } => joint.patterns.push(automaton.start()?),
            }
        }
        Some(joint)
    }

    /// Where a byte leads; None when nothing that goes on so can be found.
    fn step(&mut self, from: &Joint, byte: u8) -> Option<Joint> {
        let mut next = from.clone();
        next.space = self.space.step(from.space, byte)?;
        let (mut literals, mut patterns) = (next.literals.iter_mut(), next.patterns.iter_mut());
        for part in self.parts.iter_mut() {
            match part {
                Part::Literal {
                    text,
                    ignore_case,
                    prefix,
                    holds,
                } => {
                    let at = literals.next()?;
                    let length = text.len() as u16;
                    *at = match text.get(usize::from(*at)) {
                        Some(wanted) if wanted == &byte => *at + 1,
                        Some(wanted) if *ignore_case && wanted.eq_ignore_ascii_case(&byte) => *at + 1,
                        // A prefix that was met stays met.
                        None if *prefix && *at == length => length,
                        _ => length + 1,
                    };
                    let missed = *at > length;
                    if (*holds && missed) || (!*holds && *prefix && *at == length) {
                        return None;
                    }
                }
                Part::Pattern { automaton, holds, .. } => {
                    let at = patterns.next()?;
                    if at.is_dead() {
                        continue;
                    }
                    match automaton.step(*at, byte) {
                        Some(state) if *holds && state.is_dead() => return None,
                        Some(state) => *at = state,
                        None => {
                            self.complete = false;
                            return None;
                        }
                    }
                }
            }
        }
        Some(next)
    }

    fn accepts(&mut self, joint: &Joint) -> Option<bool> {
        if !self.space.ends(joint.space) {
            return Some(false);
        }
        let (mut literals, mut patterns) = (joint.literals.iter(), joint.patterns.iter());
        for part in self.parts.iter_mut() {
            let (looks_so, holds) = match part {
                Part::Literal { text, holds, .. } => (usize::from(*literals.next()?) == text.len(), *holds),
                Part::Pattern { automaton, holds, .. } => {
                    let state = *patterns.next()?;
                    (!state.is_dead() && automaton.accepts(state)?, *holds)
                }
            };
            if looks_so != holds {
                return Some(false);
            }
        }
        Some(true)
    }

    /// One byte of each class that nothing tells apart.
    fn representatives(&self) -> Vec<u8> {
        let mut single = [false; 256];
        let mut mark = |byte: u8| {
            if let Some(place) = single.get_mut(usize::from(byte)) {
                *place = true;
            }
        };
        self.space.special().iter().for_each(|byte| mark(*byte));
        for part in self.parts.iter() {
            if let Part::Literal {
                text, ignore_case, ..
            } = part
            {
                for byte in text.iter() {
                    mark(*byte);
                    if *ignore_case {
                        mark(byte.to_ascii_lowercase());
                        mark(byte.to_ascii_uppercase());
                    }
                }
            }
        }
        let classes: Vec<_> = self
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::Pattern { automaton, .. } => Some(automaton.dfa.byte_classes()),
                Part::Literal { .. } => None,
            })
            .collect();
        let mut seen: HashSet<Vec<u8>> = HashSet::new();
        preferred()
            .filter(|&byte| {
                // What may not come at all in any state is no class of its own.
                if !(0..=4).any(|state| self.space.step(state, byte).is_some()) {
                    return false;
                }
                if single.get(usize::from(byte)) == Some(&true) {
                    return true;
                }
                seen.insert(classes.iter().map(|classes| classes.get(byte)).collect())
            })
            .collect()
    }
}

/// The text that leads to a visited state.
fn spell(visited: &[(Joint, usize, u8)], mut at: usize) -> Vec<u8> {
    let mut text = Vec::new();
    while let Some((_, before, byte)) = visited.get(at)
        && *before != usize::MAX
    {
        text.push(*byte);
        at = *before;
    }
    text.reverse();
    text
}
