//! Which rules of a virtual host take any request at all: for each a request that it takes, or the rules before it that
//! take everything that it asks for.
//!
//! Both answers are certain. A request counts only when the data path's own look-up gives it to the rule, and a rule
//! counts as shadowed only when a search over all requests has ended without one: `search` looks for values of path,
//! method, fields and parameters, `language` decides what texts there are. What would cost too much is
//! [`Verdict::Unknown`], and nothing is said about it. `finding` turns verdicts into what `check` shows.

pub(crate) mod finding;
pub(crate) mod language;
pub(crate) mod search;

use isthmus_core::limits::PathNormalization;
use isthmus_core::message::RequestHead;
use isthmus_core::name::HostPattern;
use isthmus_core::route::{Route, RouteTable, Scratch, VirtualHost};
use language::{AuthoritySpace, Languages, Space};
use search::{Model, Outcome, Reply, Search, Universe};
use std::collections::BTreeSet;

/// Transitions and comparisons that one question may cost.
const WORK_MAX: u64 = 2_000_000;
/// Those that all questions of one run may cost.
const WORK_ALL_MAX: u64 = 200_000_000;
/// Most hosts of a virtual host, and of those that are more specific, that are looked at one by one.
const PATTERNS_MAX: usize = 32;

/// What is known about a rule.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It takes this request.
    Reached(Box<RequestHead>),
    /// The rules at these positions, each of them before it, take all that it asks for; none are named when nobody can
    /// ask for it.
    Shadowed {
        /// In order.
        by: Vec<usize>,
        /// It does take `OPTIONS *`.
        but_asterisk: bool,
    },
    /// Too much work to say.
    Unknown,
}

/// Answers questions about virtual hosts, with a limit to the work for all of them.
pub(crate) struct Analyzer {
    languages: Languages,
    scratch: Scratch,
    pub(crate) normalization: PathNormalization,
    left: u64,
}

impl Analyzer {
    pub(crate) fn new(normalization: PathNormalization) -> Self {
        Self {
            languages: Languages::default(),
            scratch: Scratch::default(),
            normalization,
            left: WORK_ALL_MAX,
        }
    }

    /// Asks one question, and counts what it costs.
    pub(crate) fn ask(&mut self, question: impl FnOnce(&mut Languages, &mut Scratch) -> Outcome) -> Outcome {
        let granted = WORK_MAX.min(self.left);
        self.languages.work = granted;
        let outcome = question(&mut self.languages, &mut self.scratch);
        self.left -= granted - self.languages.work;
        outcome
    }

    /// What is known about each rule of a virtual host of a table.
    pub(crate) fn host(&mut self, table: &RouteTable, at: usize, scheme: &str) -> Vec<Verdict> {
        let Some(host) = table.virtual_hosts().get(at) else {
            return Vec::new();
        };
        let mut model = Model::new();
        for route in host.routes() {
            model.add(&route.matches);
        }
        let universes = self.universes(table, at, scheme, &model);
        (0..host.routes().len())
            .map(|rule| self.rule((table, at, host), scheme, &model, &universes, rule))
            .collect()
    }

    /// A request that one rule takes, if there is one and it is found.
    pub(crate) fn witness(
        &mut self,
        table: &RouteTable,
        at: usize,
        scheme: &str,
        rule: usize,
    ) -> Option<Box<RequestHead>> {
        let host = table.virtual_hosts().get(at)?;
        let mut model = Model::new();
        for route in host.routes() {
            model.add(&route.matches);
        }
        let universes = self.universes(table, at, scheme, &model);
        match self.rule((table, at, host), scheme, &model, &universes, rule) {
            Verdict::Reached(head) => Some(head),
            _ => None,
        }
    }

    fn universes(&self, table: &RouteTable, at: usize, scheme: &str, model: &Model<'_>) -> Vec<Universe> {
        authorities(table, at, model)
            .into_iter()
            .map(|authority| universe(authority, scheme, self.normalization))
            .collect()
    }

    fn rule(
        &mut self,
        (table, at, host): (&RouteTable, usize, &VirtualHost),
        scheme: &str,
        model: &Model<'_>,
        universes: &[Universe],
        rule: usize,
    ) -> Verdict {
        // Searches know no clients.
        let asks_who = |route: &Route| route.matches.source.is_some();
        if host.routes().get(rule).is_some_and(asks_who) {
            return Verdict::Unknown;
        }
        let mut by = BTreeSet::new();
        let mut asterisk = false;
        let mut unknown = false;
        // Paths first; `OPTIONS *` has none.
        let others: Vec<Universe> = universes.iter().map(asterisk_only).collect();
        for (universe, is_path) in universes
            .iter()
            .map(|one| (one, true))
            .chain(others.iter().map(|one| (one, false)))
        {
            if unknown || (asterisk && !is_path) {
                continue;
            }
            let normalization = self.normalization;
            let outcome = self.ask(|languages, scratch| {
                let ask = &mut |head: &RequestHead| {
                    if table.find_host(&head.host) != Some(at) || !is_normal(head, normalization) {
                        return Reply::Stuck;
                    }
                    match host.position(head, scheme, scratch) {
                        Some(taken) if taken == rule => Reply::Accepted,
                        Some(taken) if taken < rule => Reply::Taken(taken),
                        _ => Reply::Stuck,
                    }
                };
                Search::new(model, languages, universe).run(&[rule], &[], ask)
            });
            match outcome {
                Outcome::Found(head) if is_path => return Verdict::Reached(head),
                Outcome::Found(_) => asterisk = true,
                Outcome::Nothing(rules) if is_path => by.extend(rules),
                Outcome::Nothing(_) => {}
                Outcome::Unknown if is_path => unknown = true,
                Outcome::Unknown => asterisk = true,
            }
        }
        if unknown || universes.is_empty() {
            return Verdict::Unknown;
        }
        Verdict::Shadowed {
            by: by.into_iter().collect(),
            but_asterisk: asterisk,
        }
    }
}

/// Whether a path is one that rules get to see.
pub(crate) fn is_normal(head: &RequestHead, mode: PathNormalization) -> bool {
    let mut other = RequestHead::default();
    other.set_path(&head.path);
    isthmus_core::path::normalize(&mut other, mode).is_ok() && other.path == head.path
}

/// All requests with a path to some authorities.
pub(crate) fn universe(authority: Space, scheme: &str, normalization: PathNormalization) -> Universe {
    Universe {
        path: Space::Path(normalization),
        method: Space::Token,
        scheme: Space::Only(scheme.into()),
        authority,
    }
}

/// The one request without a path to the same.
pub(crate) fn asterisk_only(universe: &Universe) -> Universe {
    Universe {
        path: Space::Only("*".into()),
        method: Space::Only("OPTIONS".into()),
        ..universe.clone()
    }
}

/// The authorities that lead to a virtual host, one space for each of its hosts. Where no rule asks for the authority,
/// one example stands for all.
fn authorities(table: &RouteTable, at: usize, model: &Model<'_>) -> Vec<Space> {
    let hosts = table.virtual_hosts();
    let own = hosts.get(at).map_or(&[][..], |host| &host.domains);
    let leads_here = |sample: &String| table.find_host(sample) == Some(at);
    let samples = |pattern: &HostPattern| samples(pattern).into_iter().find(leads_here);
    let example = || own.iter().find_map(samples).unwrap_or_default();
    if !model.asks_for_authority() {
        return vec![Space::Only(example().into())];
    }
    let all: Vec<&HostPattern> = hosts.iter().flat_map(|host| &host.domains).collect();
    let of = |pattern: &HostPattern| {
        let narrower: Vec<&HostPattern> = all
            .iter()
            .copied()
            .filter(|other| *other != pattern && other.subset_of(pattern))
            .take(PATTERNS_MAX)
            .collect();
        AuthoritySpace::new(pattern, &narrower, samples(pattern).unwrap_or_default())
    };
    let spaces: Option<Vec<AuthoritySpace>> = own.iter().take(PATTERNS_MAX).map(of).collect();
    match spaces {
        Some(spaces) if own.len() <= PATTERNS_MAX => spaces.into_iter().map(Space::Authority).collect(),
        // More than there are: what is found is asked for its host anyway.
        _ => AuthoritySpace::new(&HostPattern::Any, &[], example())
            .map(Space::Authority)
            .into_iter()
            .collect(),
    }
}

/// Hosts that a pattern may stand for.
pub(crate) fn samples(pattern: &HostPattern) -> Vec<String> {
    const LABELS: [&str; 4] = ["x", "www", "isthmus-example", "x.isthmus-example"];
    match pattern {
        HostPattern::Exact(name) => vec![name.to_string()],
        HostPattern::Suffix(suffix) => LABELS.iter().map(|label| format!("{label}{suffix}")).collect(),
        HostPattern::Any => LABELS
            .iter()
            .map(|label| format!("{label}.example.com"))
            .collect(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
