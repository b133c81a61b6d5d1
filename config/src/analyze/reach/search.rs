//! The search for a request that some rules take and others do not.
//!
//! A rule is a conjunction of [`Atom`]s, each about one variable: the path, the method, a field, a parameter, and so on.
//! A request is a value for each variable. [`Search`] looks for values that meet all atoms of some rules, and for each
//! of others break at least one. Which others count is not known before: a candidate is shown to the caller, who asks
//! the data path itself and names the rule that takes it; that rule then has to be broken as well. So only rules that
//! come in the way cost anything, every request that is found has been confirmed by the look-up that runs in
//! production, and when the search ends without one, the rules that came in the way are the proof.

use super::language::{Demand, Found, Languages, Space};
use isthmus_core::header::FieldName;
use isthmus_core::message::RequestHead;
use isthmus_core::route::{
    HeaderMatch, HeaderSubject, PathMatch, QueryMatch, RouteMatch, TextMatch, split_port,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

/// Most rules that may come in the way of one question.
const CLAUSES_MAX: usize = 256;
/// Most steps of one search.
const NODES_MAX: usize = 4_000;
/// What one step costs, in transitions of automata.
const NODE_WORK: u64 = 50;
/// Most rules of a proof of which each is tested whether it is needed.
const MINIMIZED_MAX: usize = 48;

/// What an atom is about. The first are there in every model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variable<'a> {
    Path,
    Method,
    Scheme,
    Authority,
    /// Path and query together: known to the search, and not reasoned about.
    Target,
    Header(&'a FieldName),
    Query(&'a str),
}

const PATH: usize = 0;
const METHOD: usize = 1;
const SCHEME: usize = 2;
const AUTHORITY: usize = 3;
const TARGET: usize = 4;
const FIXED: [Variable<'static>; 5] = [
    Variable::Path,
    Variable::Method,
    Variable::Scheme,
    Variable::Authority,
    Variable::Target,
];

/// What no method is.
static NOBODY: LazyLock<TextMatch> = LazyLock::new(|| TextMatch::Exact("".into()));

/// A demand on one variable.
#[derive(Debug, Clone, Copy)]
struct Atom<'a> {
    variable: usize,
    text: &'a TextMatch,
    ignore_case: bool,
    /// Whether the value must not look so.
    inverted: bool,
    /// Whether it is met by a value that is not there.
    absent: bool,
}

/// Rules as conjunctions of atoms, by position.
#[derive(Debug)]
pub(crate) struct Model<'a> {
    variables: Vec<Variable<'a>>,
    headers: HashMap<&'a FieldName, usize>,
    queries: HashMap<&'a str, usize>,
    rules: Vec<Vec<Atom<'a>>>,
}

impl<'a> Model<'a> {
    pub(crate) fn new() -> Self {
        Self {
            variables: FIXED.to_vec(),
            headers: HashMap::new(),
            queries: HashMap::new(),
            rules: Vec::new(),
        }
    }

    /// Adds a rule; answers its position.
    pub(crate) fn add(&mut self, matches: &'a RouteMatch) -> usize {
        // Whatever a match may ask for must be known here, or what is said about it would be wrong.
        let RouteMatch {
            path: PathMatch { text, ignore_case },
            method,
            scheme,
            authority,
            headers,
            query,
            source,
        } = matches;
        let mut atoms = Vec::new();
        let atom = |variable, text, ignore_case| Atom {
            variable,
            text,
            ignore_case,
            inverted: false,
            absent: false,
        };
        if *text != TextMatch::Present {
            atoms.push(atom(PATH, text, *ignore_case));
        }
        for (variable, text) in [(METHOD, method), (SCHEME, scheme), (AUTHORITY, authority)] {
            atoms.extend(text.as_ref().map(|text| atom(variable, text, false)));
        }
        for HeaderMatch {
            subject,
            text,
            inverted,
        } in headers
        {
            let variable = match subject {
                HeaderSubject::Field(name) => self.header(name),
                HeaderSubject::Authority => AUTHORITY,
                HeaderSubject::Method => METHOD,
                HeaderSubject::Path => TARGET,
                HeaderSubject::Scheme => SCHEME,
            };
            let empty = match text {
                TextMatch::Present => false,
                other => other.matches(b"", &mut isthmus_core::route::Scratch::default()),
            };
            atoms.push(Atom {
                variable,
                text,
                ignore_case: false,
                inverted: *inverted,
                absent: *inverted && !empty,
            });
        }
        for QueryMatch { name, text } in query {
            atoms.push(atom(self.query(name), text, false));
        }
        if source.is_some() {
            // Searches are for requests of clients of whom nothing is known, which such a rule does not take.
            atoms.push(atom(METHOD, &NOBODY, false));
        }
        self.rules.push(atoms);
        self.rules.len() - 1
    }

    fn header(&mut self, name: &'a FieldName) -> usize {
        *self.headers.entry(name).or_insert_with(|| {
            self.variables.push(Variable::Header(name));
            self.variables.len() - 1
        })
    }

    fn query(&mut self, name: &'a str) -> usize {
        *self.queries.entry(name).or_insert_with(|| {
            self.variables.push(Variable::Query(name));
            self.variables.len() - 1
        })
    }

    fn atoms(&self, rule: usize) -> &[Atom<'a>] {
        self.rules.get(rule).map_or(&[], |atoms| atoms)
    }

    /// Whether any rule is about the authority.
    pub(crate) fn asks_for_authority(&self) -> bool {
        self.rules.iter().flatten().any(|atom| atom.variable == AUTHORITY)
    }

    /// Whether a look shows already that two rules take no request together.
    pub(crate) fn exclude(&self, a: usize, b: usize) -> bool {
        self.atoms(a).iter().any(|one| {
            let mut others = self.atoms(b).iter();
            others.any(|other| other.variable == one.variable && excludes(one, other))
        })
    }

    /// Whether two rules ask for the same.
    pub(crate) fn same(&self, a: usize, b: usize) -> bool {
        let (a, b) = (self.atoms(a), self.atoms(b));
        let equal = |one: &Atom<'_>, other: &Atom<'_>| {
            one.variable == other.variable
                && one.text == other.text
                && one.ignore_case == other.ignore_case
                && one.inverted == other.inverted
        };
        let within =
            |a: &[Atom<'_>], b: &[Atom<'_>]| a.iter().all(|one| b.iter().any(|other| equal(one, other)));
        within(a, b) && within(b, a)
    }
}

fn excludes(one: &Atom<'_>, other: &Atom<'_>) -> bool {
    if one.inverted || other.inverted {
        return false;
    }
    let case = one.ignore_case || other.ignore_case;
    let begins = |text: &str, prefix: &str| {
        let head = text.as_bytes().get(..prefix.len());
        head.is_some_and(|head| {
            if case {
                head.eq_ignore_ascii_case(prefix.as_bytes())
            } else {
                head == prefix.as_bytes()
            }
        })
    };
    match (one.text, other.text) {
        (TextMatch::Exact(a), TextMatch::Exact(b)) => a.len() != b.len() || !begins(a, b),
        (TextMatch::Exact(text), TextMatch::Prefix(prefix))
        | (TextMatch::Prefix(prefix), TextMatch::Exact(text)) => !begins(text, prefix),
        (TextMatch::Prefix(a), TextMatch::Prefix(b)) => !begins(a, b) && !begins(b, a),
        _ => false,
    }
}

/// What requests can look like where the rules are.
#[derive(Debug, Clone)]
pub(crate) struct Universe {
    pub(crate) path: Space,
    pub(crate) method: Space,
    pub(crate) scheme: Space,
    pub(crate) authority: Space,
}

/// What the caller says about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It is one of those that are looked for.
    Accepted,
    /// This rule of the model takes it, and must not.
    Taken(usize),
    /// It cannot be taken further: it is none of those looked for, and for no reason that the search understands.
    Stuck,
}

/// What came out.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The caller has accepted this request.
    Found(Box<RequestHead>),
    /// There is none: these rules take everything. They are as few as could be found.
    Nothing(Vec<usize>),
    /// Too much work.
    Unknown,
}

/// One question; see the module.
pub(crate) struct Search<'s, 'a> {
    model: &'s Model<'a>,
    languages: &'s mut Languages,
    universe: &'s Universe,
    /// Demands by variable: an atom, and whether it must be met or broken.
    demands: Vec<(usize, Atom<'a>, bool)>,
    /// Values of the variables that have demands; one that is None is absent.
    values: BTreeMap<usize, Option<Vec<u8>>>,
    clauses: Vec<usize>,
    used: Vec<bool>,
    nodes: usize,
    found: Option<Box<RequestHead>>,
}

enum Step {
    Found,
    Nothing,
    Unknown,
}

type Ask<'f> = &'f mut dyn FnMut(&RequestHead) -> Reply;

impl<'s, 'a> Search<'s, 'a> {
    pub(crate) fn new(model: &'s Model<'a>, languages: &'s mut Languages, universe: &'s Universe) -> Self {
        Self {
            model,
            languages,
            universe,
            demands: Vec::new(),
            values: BTreeMap::new(),
            clauses: Vec::new(),
            used: Vec::new(),
            nodes: NODES_MAX,
            found: None,
        }
    }

    /// Looks for a request that all rules of `taken` take, none of `broken` does, and `ask` accepts.
    pub(crate) fn run(mut self, taken: &[usize], broken: &[usize], ask: Ask<'_>) -> Outcome {
        self.clauses = broken.to_vec();
        self.used = vec![false; broken.len()];
        match self.begin(taken, ask) {
            Step::Found => self.found.map_or(Outcome::Unknown, Outcome::Found),
            Step::Unknown => Outcome::Unknown,
            Step::Nothing => {
                let proof = self.clauses.iter().zip(&self.used);
                let proof = proof
                    .filter(|(_, used)| **used)
                    .map(|(clause, _)| *clause)
                    .collect();
                Outcome::Nothing(self.minimize(taken, proof))
            }
        }
    }

    fn begin(&mut self, taken: &[usize], ask: Ask<'_>) -> Step {
        self.demands.clear();
        self.values.clear();
        let mut variables = Vec::new();
        for atom in taken.iter().flat_map(|rule| self.model.atoms(*rule)) {
            // Without it the requests are more: none of more is none, and what is found is confirmed anyway.
            if !self.is_opaque(atom.variable) {
                self.demands.push((atom.variable, *atom, true));
                variables.push(atom.variable);
            }
        }
        variables.sort_unstable();
        variables.dedup();
        let mut unknown = false;
        for variable in variables {
            match self.solve(variable) {
                Solved::Value(value) => {
                    self.values.insert(variable, value);
                }
                Solved::Nothing => return Step::Nothing,
                Solved::Unknown => unknown = true,
            }
        }
        if unknown {
            return Step::Unknown;
        }
        self.descend(ask)
    }

    /// Goes on from values that meet all demands.
    fn descend(&mut self, ask: Ask<'_>) -> Step {
        self.nodes = self.nodes.saturating_sub(1);
        let cost = NODE_WORK + self.clauses.len() as u64;
        self.languages.work = self.languages.work.saturating_sub(cost);
        if self.nodes == 0 || self.languages.work == 0 {
            return Step::Unknown;
        }
        let mut met: Option<(usize, usize)> = None;
        let model = self.model;
        for at in 0..self.clauses.len() {
            let atoms = self
                .clauses
                .get(at)
                .map_or(&[][..], |clause| model.atoms(*clause));
            if met.is_none_or(|(_, fewest)| atoms.len() < fewest)
                && atoms.iter().all(|atom| self.is_met(atom))
            {
                met = Some((at, atoms.len()));
            }
        }
        let at = match met {
            Some((at, _)) => at,
            None => {
                let Some(head) = self.request() else {
                    return Step::Unknown;
                };
                match ask(&head) {
                    Reply::Accepted => {
                        self.found = Some(Box::new(head));
                        return Step::Found;
                    }
                    Reply::Taken(rule)
                        if !self.clauses.contains(&rule) && self.clauses.len() < CLAUSES_MAX =>
                    {
                        self.clauses.push(rule);
                        self.used.push(false);
                        self.clauses.len() - 1
                    }
                    Reply::Taken(_) | Reply::Stuck => return Step::Unknown,
                }
            }
        };
        if let Some(used) = self.used.get_mut(at) {
            *used = true;
        }
        let Some(clause) = self.clauses.get(at).copied() else {
            return Step::Unknown;
        };
        self.break_rule(clause, ask)
    }

    /// Tries to break each atom of a rule that takes the values at hand.
    fn break_rule(&mut self, rule: usize, ask: Ask<'_>) -> Step {
        let mut atoms = self.model.atoms(rule).to_vec();
        atoms.sort_by_key(|atom| match (atom.variable, atom.text) {
            (PATH, TextMatch::Exact(_)) => 1,
            (PATH, _) => 2,
            (METHOD | SCHEME | AUTHORITY | TARGET, _) => 3,
            _ => 0,
        });
        let depth = self.demands.len();
        let mut unknown = false;
        for atom in atoms {
            if self.is_opaque(atom.variable) {
                unknown = true;
                continue;
            }
            let here = self.demands.len();
            self.demands.push((atom.variable, atom, false));
            match self.solve(atom.variable) {
                Solved::Value(value) => {
                    let before = self.values.insert(atom.variable, value);
                    match self.descend(ask) {
                        Step::Found => return Step::Found,
                        Step::Nothing => {}
                        Step::Unknown => unknown = true,
                    }
                    match before {
                        Some(before) => self.values.insert(atom.variable, before),
                        None => self.values.remove(&atom.variable),
                    };
                }
                Solved::Nothing => {}
                Solved::Unknown => unknown = true,
            }
            self.demands.truncate(here);
            // What is left has it met, as it is by the values at hand.
            if !matches!(atom.text, TextMatch::Regex(_)) {
                self.demands.push((atom.variable, atom, true));
            }
            if self.nodes == 0 {
                unknown = true;
                break;
            }
        }
        self.demands.truncate(depth);
        if unknown { Step::Unknown } else { Step::Nothing }
    }

    /// Leaves rules out of a proof as long as it holds without them.
    fn minimize(&mut self, taken: &[usize], mut proof: Vec<usize>) -> Vec<usize> {
        let nobody = &mut |_: &RequestHead| Reply::Accepted;
        let mut at = 0;
        while proof.len() > 1 && proof.len() <= MINIMIZED_MAX && at < proof.len() {
            let mut fewer = proof.clone();
            fewer.remove(at);
            self.nodes = NODES_MAX;
            self.used = vec![false; fewer.len()];
            self.clauses = fewer.clone();
            match self.begin(taken, nobody) {
                Step::Nothing => {
                    let needed = fewer.iter().zip(&self.used);
                    let (before, after): (Vec<_>, Vec<_>) = needed
                        .enumerate()
                        .filter(|(_, (_, used))| **used)
                        .map(|(place, (rule, _))| (place, *rule))
                        .partition(|(place, _)| *place < at);
                    // Those before were needed in a larger proof, so they are in this one.
                    at = before.len();
                    proof = before.into_iter().chain(after).map(|(_, rule)| rule).collect();
                }
                _ => at += 1,
            }
        }
        proof.sort_unstable();
        proof
    }

    fn is_opaque(&self, variable: usize) -> bool {
        match self.model.variables.get(variable) {
            None | Some(Variable::Target) => true,
            // A query that is empty has a parameter without a name.
            Some(Variable::Query(name)) => name.is_empty(),
            Some(_) => false,
        }
    }

    /// What a variable can be when it is there; None when it cannot.
    fn space(&self, variable: usize) -> Option<&'s Space> {
        static VALUE: Space = Space::Value;
        static QUERY_VALUE: Space = Space::QueryValue;
        Some(match self.model.variables.get(variable)? {
            Variable::Path => &self.universe.path,
            Variable::Method => &self.universe.method,
            Variable::Scheme => &self.universe.scheme,
            Variable::Authority => &self.universe.authority,
            Variable::Header(_) => &VALUE,
            Variable::Query(name) => {
                let sent = name
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && !b"#&=".contains(&byte));
                return sent.then_some(&QUERY_VALUE);
            }
            Variable::Target => return None,
        })
    }

    /// A value that meets all demands on a variable.
    fn solve(&mut self, variable: usize) -> Solved {
        let of_variable = self
            .demands
            .iter()
            .filter(|(of, ..)| *of == variable)
            .map(|(_, atom, met)| (*atom, *met));
        let demands: Vec<(Atom<'a>, bool)> = of_variable.collect();
        let may_be_absent = matches!(
            self.model.variables.get(variable),
            Some(Variable::Header(_) | Variable::Query(_))
        );
        if may_be_absent && demands.iter().all(|(atom, met)| atom.absent == *met) {
            return Solved::Value(None);
        }
        let Some(space) = self.space(variable) else {
            return Solved::Nothing;
        };
        let demands: Vec<Demand<'a>> = demands
            .iter()
            .map(|(atom, met)| Demand {
                text: atom.text,
                ignore_case: atom.ignore_case,
                holds: atom.inverted != *met,
            })
            .collect();
        match self.languages.find(space, &demands) {
            Found::Text(text) => Solved::Value(Some(text)),
            Found::Nothing => Solved::Nothing,
            Found::Unknown => Solved::Unknown,
        }
    }

    /// The value that a variable has in the request at hand.
    fn value(&self, variable: usize) -> Option<&[u8]> {
        value(&self.values, self.universe, variable)
    }

    fn is_met(&mut self, atom: &Atom<'a>) -> bool {
        let target;
        let value = if atom.variable == TARGET {
            target = self.target();
            target.as_deref()
        } else {
            value(&self.values, self.universe, atom.variable)
        };
        let demand = Demand {
            text: atom.text,
            ignore_case: atom.ignore_case,
            holds: !atom.inverted,
        };
        value.map_or(atom.absent, |text| self.languages.meets(demand, text))
    }

    fn target(&self) -> Option<Vec<u8>> {
        let mut target = self.value(PATH)?.to_vec();
        let mut separator = b'?';
        for (variable, value) in &self.values {
            if let (Some(Variable::Query(name)), Some(value)) = (self.model.variables.get(*variable), value) {
                target.push(separator);
                target.extend_from_slice(name.as_bytes());
                target.push(b'=');
                target.extend_from_slice(value);
                separator = b'&';
            }
        }
        Some(target)
    }

    /// The values as a request.
    fn request(&self) -> Option<RequestHead> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let mut head = RequestHead::default();
        head.clear();
        head.method = http::Method::from_bytes(self.value(METHOD)?).ok()?;
        head.set_path(&text(&self.target()?)?);
        let authority = text(self.value(AUTHORITY)?)?;
        let (host, _) = split_port(&authority);
        head.host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        head.set_authority(&authority);
        for (variable, value) in &self.values {
            if let (Some(Variable::Header(name)), Some(value)) = (self.model.variables.get(*variable), value)
            {
                head.headers.append(name.as_str().as_bytes(), value);
            }
        }
        Some(head)
    }
}

/// The value of a variable: what was found for it, else what is usual.
fn value<'v>(
    values: &'v BTreeMap<usize, Option<Vec<u8>>>,
    universe: &'v Universe,
    variable: usize,
) -> Option<&'v [u8]> {
    if let Some(value) = values.get(&variable) {
        return value.as_deref();
    }
    let usual = |space: &'v Space, otherwise: &'static str| match space {
        Space::Only(text) => text.as_bytes(),
        Space::Authority(space) => space.sample.as_bytes(),
        _ => otherwise.as_bytes(),
    };
    match variable {
        PATH => Some(usual(&universe.path, "/")),
        METHOD => Some(usual(&universe.method, "GET")),
        SCHEME => Some(usual(&universe.scheme, "http")),
        AUTHORITY => Some(usual(&universe.authority, "host.example")),
        _ => None,
    }
}

enum Solved {
    /// None: absent.
    Value(Option<Vec<u8>>),
    Nothing,
    Unknown,
}
