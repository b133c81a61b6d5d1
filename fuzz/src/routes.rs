//! The route table: a table and requests from the input; what the index finds must be what reading the rules in order
//! finds.

use crate::input::Input;
use bytes::Bytes;
use http::{Method, StatusCode};
use isthmus_core::header::FieldName;
use isthmus_core::message::RequestHead;
use isthmus_core::name::HostPattern;
use isthmus_core::route::{
    Action, DirectResponse, HeaderMatch, HeaderSubject, PathMatch, QueryMatch, Regex, Route, RouteMatch,
    RouteTable, Scratch, TextMatch, VirtualHost,
};
use std::sync::Arc;

const HOSTS: [&str; 6] = ["*", "*.foo.com", "*.a.foo.com", "a.foo.com", "foo.com", "*.com"];
const ASKED: [&str; 6] = ["foo.com", "a.foo.com", "b.a.foo.com", "x.com", "com", ""];
const ROUTES_MAX: usize = 200;
const REQUESTS_MAX: usize = 50;

/// Builds a table and asks it.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let action = Arc::new(Action::Respond(DirectResponse {
        status: StatusCode::OK,
        body: Bytes::new(),
    }));
    let hosts = (0..=input.below(3)).map(|_| host(&mut input, &action)).collect();
    let table = RouteTable::new(hosts);
    let mut scratch = Scratch::default();
    let mut head = RequestHead::default();
    for _ in 0..REQUESTS_MAX {
        if input.is_spent() {
            return;
        }
        request(&mut input, &mut head);
        let found = table.find_host(&head.host);
        assert_eq!(
            found,
            table.read_host(&head.host).map(|(at, _)| at),
            "{}",
            head.host
        );
        let Some(host) = found.and_then(|at| table.virtual_hosts().get(at)) else {
            continue;
        };
        let expected = host.read(&head, "http", &mut scratch, |_, _| {});
        let actual = host.position(&head, "http", &mut scratch);
        assert_eq!(actual, expected, "{} in {:#?}", head.path, host.routes());
    }
}

fn host(input: &mut Input<'_>, action: &Arc<Action>) -> Arc<VirtualHost> {
    let domains = (0..=input.below(2)).map(|_| HostPattern::parse(input.pick(&HOSTS)));
    let domains = domains.collect();
    let count = input.below(ROUTES_MAX);
    let mut routes = Vec::new();
    while routes.len() < count && !input.is_spent() {
        routes.push(Route {
            name: "".into(),
            virtual_service: "ns/name".into(),
            stat_prefix: "".into(),
            matches: matches(input),
            action: Arc::clone(action),
            response_headers: Vec::new(),
        });
    }
    Arc::new(VirtualHost::new("host", domains, false, routes))
}

/// A short text from the input: a slash and whatever bytes follow.
fn path(input: &mut Input<'_>) -> String {
    let length = input.below(12);
    format!("/{}", String::from_utf8_lossy(input.take(length)))
}

fn text(input: &mut Input<'_>) -> TextMatch {
    match input.below(4) {
        0 => TextMatch::Exact(path(input).into()),
        1 => TextMatch::Prefix(path(input).into()),
        2 => Regex::new(&path(input)).map_or(TextMatch::Present, TextMatch::Regex),
        _ => TextMatch::Present,
    }
}

fn matches(input: &mut Input<'_>) -> RouteMatch {
    let mut found = RouteMatch {
        path: PathMatch {
            text: text(input),
            ignore_case: input.once_in(4),
        },
        ..RouteMatch::ANY
    };
    let more = input.byte();
    if more & 1 != 0 {
        found.headers.push(HeaderMatch {
            subject: HeaderSubject::Field(FieldName::parse("x").unwrap()),
            text: text(input),
            inverted: more & 8 != 0,
        });
    }
    if more & 2 != 0 {
        found.query.push(QueryMatch {
            name: "q".into(),
            text: text(input),
        });
    }
    if more & 4 != 0 {
        found.method = Some(TextMatch::Exact("GET".into()));
    }
    found
}

fn request(input: &mut Input<'_>, head: &mut RequestHead) {
    head.clear();
    head.method = if input.once_in(2) {
        Method::GET
    } else {
        Method::POST
    };
    let authority = input.pick(&ASKED);
    head.set_authority(authority);
    authority.clone_into(&mut head.host);
    let target = path(input);
    head.set_path(&target);
    if input.once_in(2) {
        head.headers.append(b"X", b"/1");
    }
}
