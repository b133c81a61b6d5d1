//! The indexed look-up of routes against the plain reading of the rules: over random tables and requests, both find
//! the same route. Tables are small and built of few words, so that prefixes nest, rules collide, and most requests
//! meet several of them.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers as well"
)]

use http::StatusCode;
use isthmus_core::header::FieldName;
use isthmus_core::message::RequestHead;
use isthmus_core::name::HostPattern;
use isthmus_core::random::Random;
use isthmus_core::route::{
    Action, DirectResponse, HeaderMatch, HeaderSubject, PathMatch, QueryMatch, Regex, Route, RouteMatch,
    RouteTable, Scratch, TextMatch, VirtualHost,
};
use std::sync::Arc;

const TABLES: usize = 20_000;
const REQUESTS: usize = 50;
const WORDS: [&str; 9] = ["", "/", "/a", "/b", "a", "b", "/aB", "/é", "A/"];
const PATTERNS: [&str; 10] = [
    ".*", "/a.*", "/(a|b)", "/a(/b)?", "(?i)/AB", "^/a/b$", "/ab?.*", "a|/b", "/a{2}b*", "/é.+",
];
const HOSTS: [&str; 7] = [
    "*",
    "*.foo.com",
    "*.a.foo.com",
    "a.foo.com",
    "b.a.foo.com",
    "foo.com",
    "*.com",
];
const ASKED: [&str; 8] = [
    "foo.com",
    "a.foo.com",
    "b.a.foo.com",
    "c.a.foo.com",
    "x.com",
    "com",
    "",
    "c.b.a.foo.com",
];

fn pick<'a, T: ?Sized>(random: &mut Random, list: &[&'a T]) -> &'a T {
    list[random.below(list.len() as u64) as usize]
}

fn path(random: &mut Random) -> String {
    let mut path: String = (0..=random.below(3)).map(|_| pick(random, &WORDS)).collect();
    if random.below(8) == 0 {
        path.push_str(&random.below(300).to_string());
    }
    path
}

fn text(random: &mut Random) -> TextMatch {
    match random.below(4) {
        0 => TextMatch::Exact(pick(random, &["1", "12", ""]).into()),
        1 => TextMatch::Prefix(pick(random, &["1", ""]).into()),
        2 => TextMatch::Regex(Regex::new("1+").unwrap()),
        _ => TextMatch::Present,
    }
}

struct Patterns(Vec<Regex>);

fn matches(random: &mut Random, patterns: &Patterns) -> RouteMatch {
    let text_of_path = match random.below(8) {
        0..3 => TextMatch::Exact(path(random).into()),
        3..6 => TextMatch::Prefix(path(random).into()),
        6 => TextMatch::Regex(patterns.0[random.below(patterns.0.len() as u64) as usize].clone()),
        _ => TextMatch::Present,
    };
    let mut found = RouteMatch {
        path: PathMatch {
            text: text_of_path,
            ignore_case: random.below(4) == 0,
        },
        ..RouteMatch::ANY
    };
    if random.below(3) == 0 {
        found.headers.push(HeaderMatch {
            subject: HeaderSubject::Field(FieldName::parse("x").unwrap()),
            text: text(random),
            inverted: random.below(2) == 0,
        });
    }
    if random.below(6) == 0 {
        found.query.push(QueryMatch {
            name: "q".into(),
            text: text(random),
        });
    }
    if random.below(6) == 0 {
        found.method = Some(TextMatch::Exact("GET".into()));
    }
    found
}

fn host(random: &mut Random, at: usize, patterns: &Patterns, action: &Arc<Action>) -> Arc<VirtualHost> {
    let length = match random.below(1000) {
        0 => 3000,
        1..50 => 60,
        _ => random.below(8),
    };
    let routes = (0..length).map(|_| Route {
        name: "".into(),
        virtual_service: "ns/name".into(),
        stat_prefix: "".into(),
        matches: matches(random, patterns),
        action: action.clone(),
        response_headers: Vec::new(),
    });
    let routes = routes.collect();
    let domains: Vec<HostPattern> = (0..=random.below(2))
        .map(|_| HostPattern::parse(pick(random, &HOSTS)))
        .collect();
    Arc::new(VirtualHost::new(&format!("host-{at}"), domains, false, routes))
}

fn request(random: &mut Random, head: &mut RequestHead) {
    head.clear();
    head.method = if random.below(2) == 0 {
        http::Method::GET
    } else {
        http::Method::POST
    };
    let authority = pick(random, &ASKED);
    head.set_authority(authority);
    head.host = authority.to_owned();
    let mut target = path(random);
    if random.below(3) == 0 {
        target.push_str(pick(random, &["?q=1", "?q=", "?p&q=12", "?"]));
    }
    head.set_path(&target);
    if random.below(2) == 0 {
        head.headers
            .append(b"X", pick(random, &["1", "2", "11", ""]).as_bytes());
    }
}

#[test]
fn the_index_finds_what_reading_the_rules_in_order_finds() {
    let action = Arc::new(Action::Respond(DirectResponse {
        status: StatusCode::OK,
        body: bytes::Bytes::new(),
    }));
    let patterns = Patterns(
        PATTERNS
            .iter()
            .map(|pattern| Regex::new(pattern).unwrap())
            .collect(),
    );
    let mut random = Random::from_seed(0x15_7400);
    let mut scratch = Scratch::default();
    let mut head = RequestHead::default();
    let (mut pairs, mut found, mut behind_others) = (0_usize, 0_usize, 0_usize);
    for _ in 0..TABLES {
        let hosts = (0..=random.below(3)).map(|at| host(&mut random, at as usize, &patterns, &action));
        let table = RouteTable::new(hosts.collect());
        for _ in 0..REQUESTS {
            request(&mut random, &mut head);
            pairs += 1;
            let at = table.find_host(&head.host);
            let read = table.read_host(&head.host).map(|(at, _)| at);
            assert_eq!(at, read, "{}", head.host);
            let Some(host) = at.and_then(|at| table.virtual_hosts().get(at)) else {
                continue;
            };
            let expected = host.read(&head, "http", &mut scratch, |_, _| {});
            let actual = host.position(&head, "http", &mut scratch);
            assert_eq!(
                actual,
                expected,
                "{} {:?}\n{:#?}",
                head.path,
                head.headers,
                host.routes()
            );
            found += usize::from(actual.is_some());
            behind_others += usize::from(actual.is_some_and(|at| at > 0));
        }
    }
    assert_eq!(pairs, 1_000_000);
    // Else the tables would say little.
    assert!(
        found > pairs / 4 && behind_others > pairs / 10,
        "{found} {behind_others}"
    );
}
