//! The pure parts of the request path, one by one, in instructions.
//!
//! Time on a shared machine says nothing about a few nanoseconds; the number of instructions is the same wherever the
//! same binary runs. Each case is run under callgrind with two numbers of repetitions, and the difference is what one
//! repetition costs. The figures that the tree had last are in `instructions.tsv`; a case that costs much more than it
//! says is an error, so that nobody makes the path slower without knowing.

use crate::channel::NAME;
use crate::scenario::Scenario;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use isthmus_core::attempt::{Answer, Attempts, Judged, RetryPolicy};
use isthmus_core::cluster::balancer::{BalancerKind, BalancerSpec};
use isthmus_core::cluster::hash::{HashKey, Hashing, MAGLEV_SIZE, TableKind};
use isthmus_core::cluster::locality::Levels;
use isthmus_core::cluster::locality::{Locality, Spread};
use isthmus_core::cluster::outlier::{OutlierPolicy, Signal};
use isthmus_core::cluster::pool::Group;
use isthmus_core::cluster::retry_budget::{
    BUDGET_INTERVAL, BUDGET_MIN, BUDGET_PER_MILLION, RetryBudget, RetryLimits,
};
use isthmus_core::cluster::{Acquired, Choice, Cluster, ClusterSpec, ConnId};
use isthmus_core::endpoint::{Endpoint, EndpointSet};
use isthmus_core::forwarded::{self, Downstream};
use isthmus_core::h1::encode::{self, ResponseContext};
use isthmus_core::h1::{HeadParser, Parsed};
use isthmus_core::header::{HeaderId, HeaderList};
use isthmus_core::hello::{self, Peek};
use isthmus_core::limits::{MessageLimits, Settings, TrustedRanges};
use isthmus_core::listener::{Chain, ChainAction, SniTable};
use isthmus_core::message::{RequestHead, ResponseHead};
use isthmus_core::name::{ClusterKey, ClusterMap, HostPattern};
use isthmus_core::path;
use isthmus_core::protocol::{Protocol, UpstreamHttp};
use isthmus_core::random::Random;
use isthmus_core::route::{
    Action, DirectResponse, PathMatch, Route, RouteMatch, RouteTable, Scratch, TextMatch, VirtualHost,
};
use isthmus_core::shared::{Bell, ClusterShared, Limits};
use isthmus_core::tls::{ClientAuth, KeySource, Parameters, ServerTls};
use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a case may cost more than it did before it is an error.
const TOLERANCE: f64 = 1.1;
const REPETITIONS: [usize; 2] = [500, 1_500];
/// What a request may cost with every policy configured, beside one with none.
const POLICY_COST: f64 = 1.05;
const WITHOUT_POLICY: &str = "all of a tiny exchange through a cluster, without I/O: no policy";
const WITH_POLICY: &str = "all of a tiny exchange through a cluster, without I/O: every policy";

/// What a request to one of many external hosts may cost beside one to the only one.
const HOSTS_COST: f64 = 1.03;
const ONE_HOST: &str = "all of an exchange with an external host, without I/O: the only one";
const MANY_HOSTS: &str = "all of an exchange with an external host, without I/O: each of 500";
const ONE_NAME: &str = "all of an exchange with a host of a wildcard, without I/O: the only one";
const MANY_NAMES: &str = "all of an exchange with a host of a wildcard, without I/O: each of 500";
const HOSTS: usize = 500;

/// A request as a browser sends it.
const REQUEST: &[u8] = b"GET /service-00000/items?page=2 HTTP/1.1\r\nHost: host-00000.example.com\r\nUser-Agent: \
Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: text/html,application/xhtml+xml,\
application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nCookie: \
session=0123456789abcdef0123456789abcdef; theme=dark\r\nConnection: keep-alive\r\nCache-Control: max-age=0\r\n\r\n";
/// The load's request.
const TINY_REQUEST: &[u8] =
    b"GET /small HTTP/1.1\r\nhost: bench.example.com\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 01 Jun 2026 12:00:00 GMT\r\nContent-Type: \
text/plain\r\nContent-Length: 48\r\nConnection: keep-alive\r\n\r\n";

type Case = (&'static str, fn(usize));

const CASES: &[Case] = &[
    ("request head, 9 fields: parse", |times| {
        let (mut head, limits) = (RequestHead::default(), limits());
        for _ in 0..times {
            parse_request(black_box(REQUEST), &limits, &mut head);
        }
    }),
    ("request head, 9 fields: write", |times| {
        let (mut head, mut out) = (RequestHead::default(), Vec::new());
        parse_request(REQUEST, &limits(), &mut head);
        for _ in 0..times {
            out.clear();
            encode::request_head(black_box(&head), false, &mut out);
        }
    }),
    ("response head, 5 fields: parse", |times| {
        let (mut head, limits) = (ResponseHead::default(), limits());
        for _ in 0..times {
            parse_response(black_box(RESPONSE), &limits, &mut head);
        }
    }),
    ("response head, 5 fields: write", |times| {
        let (mut head, mut out) = (ResponseHead::default(), Vec::new());
        parse_response(RESPONSE, &limits(), &mut head);
        for _ in 0..times {
            out.clear();
            encode::response_head(black_box(&head), form(), &mut out);
        }
    }),
    ("header list: get, set, remove", |times| {
        let mut head = RequestHead::default();
        parse_request(REQUEST, &limits(), &mut head);
        let mut list = HeaderList::default();
        for (_, name, value) in head.headers.iter() {
            list.append(name, value);
        }
        for _ in 0..times {
            black_box(list.get(black_box(HeaderId::UserAgent)));
            list.set(HeaderId::XForwardedProto, b"http");
            list.remove(HeaderId::XForwardedProto);
        }
    }),
    ("forwarding fields: set", |times| {
        let (mut head, limits, mut random) = (RequestHead::default(), limits(), Random::from_seed(1));
        let trusted = TrustedRanges::default();
        for _ in 0..times {
            parse_request(TINY_REQUEST, &limits, &mut head);
            black_box(forwarded::apply(
                &mut head,
                downstream(&trusted),
                &mut random,
                &mut None,
            ));
        }
    }),
    ("route: prefix, 1 route", |times| look_up(&prefixes(1), 0, times)),
    ("route: prefix, the last of 10,000 routes", |times| {
        look_up(&prefixes(10_000), 9_999, times);
    }),
    ("route: host, the last of 10,000 hosts", |times| {
        look_up(&hosts(10_000), 9_999, times);
    }),
    ("hello: its name among 1", |times| choose(&names(1), times)),
    ("hello: the last of 1,000 names", |times| {
        choose(&names(1_000), times)
    }),
    ("pool: acquire and release", |times| {
        let (mut random, now) = (Random::from_seed(1), Instant::now());
        let mut cluster = Cluster::new(
            Arc::new(cluster()),
            Arc::new(ClusterShared::new(u32::MAX)),
            now,
            &mut random,
        );
        let choice = Choice {
            hash: None,
            avoid: &[],
            group: Group::ALL,
            without: Levels::NONE,
            now,
        };
        if let Acquired::Open { endpoint, .. } = cluster.acquire(choice, true, &mut random) {
            cluster.release(endpoint, Some(ConnId(0)), now);
        }
        for _ in 0..times {
            if let Acquired::Use { conn, endpoint, .. } = cluster.acquire(choice, false, &mut random) {
                black_box(cluster.release(endpoint, Some(conn), now));
            }
        }
    }),
    ("balancer: the only endpoint", |times| {
        acquire_among(cluster(), times)
    }),
    ("balancer: in turn among 1,000 in 3 localities", |times| {
        let near = Spread::Even;
        acquire_among(placed(BalancerKind::RoundRobin, near, None), times);
    }),
    ("balancer: by load among 1,000 in 3 localities", |times| {
        acquire_among(placed(BalancerKind::LeastRequest, shares(), None), times);
    }),
    (
        "balancer: in turn by weight among 1,000 in 3 localities",
        |times| {
            let mut spec = placed(BalancerKind::RoundRobin, shares(), None);
            let mut endpoints = spec.endpoints.endpoints.clone();
            for (endpoint, weight) in endpoints.iter_mut().zip((1..=7).cycle()) {
                endpoint.weight = weight;
            }
            spec.endpoints = Arc::new(EndpointSet::new(endpoints));
            acquire_among(spec, times);
        },
    ),
    ("balancer: by latency among 1,000 in 3 localities", |times| {
        acquire_among(placed(BalancerKind::PeakEwma, shares(), None), times);
    }),
    ("balancer: by a key's ring among 1,000 in 3 localities", |times| {
        acquire_among(
            placed(BalancerKind::Random, shares(), Some(TableKind::Ring(1024))),
            times,
        );
    }),
    (
        "balancer: by a key's table among 1,000 in 3 localities",
        |times| {
            let table = TableKind::Maglev(MAGLEV_SIZE);
            acquire_among(placed(BalancerKind::Random, shares(), Some(table)), times);
        },
    ),
    ("all of a tiny exchange, without I/O", |times| {
        exchange(&prefixes(1), &[TINY_REQUEST], times, |_, _| {})
    }),
    ("all of a browser's exchange, without I/O", |times| {
        exchange(&prefixes(1), &[REQUEST], times, |_, _| {})
    }),
    (WITHOUT_POLICY, |times| {
        exchange_through(cluster(), &RetryPolicy::off(), times)
    }),
    (WITH_POLICY, |times| {
        exchange_through(guarded(), &RetryPolicy::default(), times)
    }),
    (ONE_HOST, |times| exchange_with_hosts(1, false, times)),
    (MANY_HOSTS, |times| exchange_with_hosts(HOSTS, false, times)),
    (ONE_NAME, |times| exchange_with_hosts(1, true, times)),
    (MANY_NAMES, |times| exchange_with_hosts(HOSTS, true, times)),
];

fn limits() -> MessageLimits {
    Settings::default().message_limits()
}

fn form() -> ResponseContext {
    ResponseContext {
        version: isthmus_core::message::Version::Http11,
        head_request: false,
        keep_alive: true,
    }
}

fn downstream(trusted: &TrustedRanges) -> Downstream<'_> {
    Downstream {
        peer: [127, 0, 0, 1].into(),
        scheme: "http",
        port: 80,
        trusted_proxies: 0,
        trusted,
    }
}

fn parse_request(bytes: &[u8], limits: &MessageLimits, head: &mut RequestHead) {
    let parsed = HeadParser::default().parse_request(bytes, limits, head);
    assert_eq!(parsed, Ok(Parsed::Complete(bytes.len())));
}

fn parse_response(bytes: &[u8], limits: &MessageLimits, head: &mut ResponseHead) {
    let parsed = HeadParser::default().parse_response(bytes, limits, &Method::GET, head);
    assert_eq!(parsed, Ok(Parsed::Complete(bytes.len())));
}

fn route(path: String) -> Route {
    let body = DirectResponse {
        status: StatusCode::OK,
        body: Bytes::new(),
    };
    Route {
        name: "".into(),
        virtual_service: "default/bench".into(),
        stat_prefix: "".into(),
        matches: RouteMatch {
            path: PathMatch {
                text: TextMatch::Prefix(path.into()),
                ignore_case: false,
            },
            ..RouteMatch::ANY
        },
        action: Arc::new(Action::Respond(body)),
        response_headers: Vec::new(),
    }
}

fn host(at: usize, routes: Vec<Route>) -> Arc<VirtualHost> {
    let name = format!("host-{at:05}.example.com");
    Arc::new(VirtualHost::new(
        &name,
        vec![HostPattern::parse(&name)],
        false,
        routes,
    ))
}

fn prefixes(count: usize) -> RouteTable {
    // The first one catches nothing else, so that one table serves the exchange, too.
    let mut routes: Vec<Route> = (0..count).map(|at| route(format!("/service-{at:05}/"))).collect();
    if count == 1 {
        routes.push(route("/".to_owned()));
    }
    RouteTable::new(vec![host(0, routes)])
}

fn hosts(count: usize) -> RouteTable {
    RouteTable::new(
        (0..count)
            .map(|at| host(at, vec![route("/".to_owned())]))
            .collect(),
    )
}

fn look_up(table: &RouteTable, at: usize, times: usize) {
    let mut head = RequestHead {
        method: Method::GET,
        ..RequestHead::default()
    };
    let many_hosts = table.virtual_hosts().len() > 1;
    let name = format!("host-{:05}.example.com", if many_hosts { at } else { 0 });
    head.set_authority(&name);
    head.host = name;
    head.set_path(&format!("/service-{at:05}/items"));
    let mut scratch = Scratch::default();
    for _ in 0..times {
        let found = table
            .find_host(black_box(&head.host))
            .and_then(|host| table.virtual_hosts().get(host))
            .and_then(|host| host.find(black_box(&head), "http", &mut scratch));
        assert!(found.is_some());
    }
}

/// A TLS port with so many names, each with keys of its own.
fn names(count: usize) -> SniTable {
    let chain = |at: usize| Chain {
        server: "default/edge/https".into(),
        action: ChainAction::Http {
            tls: Arc::new(ServerTls {
                keys: vec![KeySource::Files {
                    certificate: format!("/certs/{at}.crt").into(),
                    key: format!("/certs/{at}.key").into(),
                }],
                client_auth: ClientAuth::None,
                ca: None,
                crl: None,
                subject_alt_names: Vec::new(),
                spki: Vec::new(),
                hashes: Vec::new(),
                skip_verify: false,
                parameters: Parameters::default(),
                alpn: Vec::new(),
            }),
            table: at,
        },
    };
    // The one that is asked for is the last.
    let name = |at: usize| match at + 1 == count {
        true => HostPattern::parse(NAME),
        false => HostPattern::parse(&Scenario::host(at)),
    };
    SniTable::new(
        (0..count).map(chain).collect(),
        (0..count).map(|at| (name(at), at)).collect(),
    )
}

/// A hello that asks for [`NAME`], always the same: a TLS library shuffles its extensions.
fn hello_bytes() -> Vec<u8> {
    let sized = |bytes: &[u8], width: usize| {
        let length = (bytes.len() as u32).to_be_bytes();
        [length.get(4 - width..).unwrap_or_default(), bytes].concat()
    };
    let extension = |kind: u16, value: &[u8]| [&kind.to_be_bytes()[..], &sized(value, 2)].concat();
    let name = [&[0][..], &sized(NAME.as_bytes(), 2)].concat();
    let extensions = [
        extension(0x0a0a, &[]),
        extension(23, &[]),
        extension(10, &sized(&[0, 29, 0, 23], 2)),
        extension(51, &[7; 38]),
        extension(43, &[4, 3, 4, 3, 3]),
        extension(13, &sized(&[4, 3, 8, 4], 2)),
        extension(16, &sized(b"\x02h2\x08http/1.1", 2)),
        extension(0, &sized(&name, 2)),
    ]
    .concat();
    let body = [
        &[3, 3][..],
        &[9; 32],
        &sized(&[5; 32], 1),
        &sized(&[0x13, 1, 0x13, 2, 0xc0, 0x2b], 2),
        &[1, 0],
        &sized(&extensions, 2),
    ]
    .concat();
    let message = [&[1][..], &sized(&body, 3)].concat();
    [&[22, 3, 1][..], &sized(&message, 2)].concat()
}

/// What a handshake costs before there is one: the hello is read, and its name finds what to present.
fn choose(names: &SniTable, times: usize) {
    let hello = hello_bytes();
    for _ in 0..times {
        let peeked = hello::peek(black_box(&hello));
        assert!(
            matches!(&peeked, Ok(Peek::Hello(hello)) if names.find(hello.server_name.as_deref()).is_some())
        );
    }
}

fn cluster() -> ClusterSpec {
    ClusterSpec {
        key: ClusterKey::outbound(80, "", "up.example"),
        endpoints: Arc::new(EndpointSet::new([Endpoint::new(([127, 0, 0, 1], 1).into())])),
        protocol: Protocol::Http,
        http: UpstreamHttp::default(),
        balancer: BalancerKind::RoundRobin.into(),
        connect_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
        max_requests_per_connection: 0,
        namespace: "default".into(),
        tls: None,
        tcp_idle_timeout: Duration::ZERO,
        max_connection_duration: Duration::ZERO,
        keepalive: None,
        proxy_protocol: None,
        tunnel: None,
        dynamic: None,
        limits: isthmus_core::shared::Limits::default(),
        health: None,
        outlier: None,
        retries: RetryLimits::default(),
    }
}

/// A thousand endpoints in three localities of one region, the nearest of which has a third of them.
fn placed(kind: BalancerKind, spread: Spread, table: Option<TableKind>) -> ClusterSpec {
    let levels = matches!(spread, Spread::Even);
    let endpoints = (0..1000u16).map(|at| Endpoint {
        locality: format!("r/z{}", at % 3).into(),
        level: if levels { u32::from(at % 3) } else { 0 },
        ..Endpoint::new(([10, 0, 0, 1], at + 1).into())
    });
    ClusterSpec {
        endpoints: Arc::new(EndpointSet::new(endpoints)),
        balancer: BalancerSpec {
            kind,
            spread,
            hashing: table.map(|table| Hashing {
                key: HashKey::SourceIp,
                table,
            }),
            ..BalancerSpec::default()
        },
        ..cluster()
    }
}

fn shares() -> Spread {
    let share = |(zone, share): (&str, u32)| (Locality::parse(zone), share);
    Spread::Shares([("r/z0", 80), ("r/z1", 10), ("r/z2", 10)].map(share).to_vec())
}

/// A request's way to an endpoint and back.
fn acquire_among(spec: ClusterSpec, times: usize) {
    let (mut random, now) = (Random::from_seed(1), Instant::now());
    let key = spec.balancer.hashing.as_ref().map(|hashing| hashing.key.clone());
    let mut cluster = Cluster::new(
        Arc::new(spec),
        Arc::new(ClusterShared::new(u32::MAX)),
        now,
        &mut random,
    );
    let mut head = RequestHead::default();
    parse_request(TINY_REQUEST, &limits(), &mut head);
    let peer = ([192, 0, 2, 1], 1).into();
    for at in 0..times as u32 {
        let client = std::net::IpAddr::from((at.wrapping_mul(0x9E37_79B9)).to_be_bytes());
        let choice = Choice {
            hash: key
                .as_ref()
                .and_then(|key| key.of(black_box(&head), client, peer, None).hash()),
            avoid: &[],
            group: Group::ALL,
            without: Levels::NONE,
            now,
        };
        // A connection for each: what a pool costs is another case's affair.
        if let Acquired::Open { endpoint, .. } = cluster.acquire(choice, true, &mut random) {
            cluster.observe(endpoint, Some(Duration::from_micros(500)), now);
            black_box(cluster.release(endpoint, None, now));
        }
    }
}

/// A thousand endpoints in three localities with everything that a DestinationRule can say to protect them.
fn guarded() -> ClusterSpec {
    ClusterSpec {
        limits: Limits {
            connections: 10_000,
            pending: 1_000,
            requests: 10_000,
        },
        outlier: Some(OutlierPolicy {
            consecutive_5xx: 5,
            consecutive_gateway: 5,
            consecutive_local: 5,
            split: true,
            codes: Box::default(),
            interval: Duration::from_secs(10),
            base: Duration::from_secs(30),
            max_percent: 10,
        }),
        retries: RetryLimits {
            budget: Some(RetryBudget {
                per_million: BUDGET_PER_MILLION,
                min: BUDGET_MIN,
                interval: BUDGET_INTERVAL,
            }),
            ..RetryLimits::default()
        },
        ..placed(BalancerKind::LeastRequest, Spread::Even, None)
    }
}

#[derive(Debug)]
struct Silent;

impl Bell for Silent {
    fn ring(&self, _shard: usize) {}
}

/// A request and its answer, with what decides where it goes, whether it may, and what its answer says about its
/// endpoint. Connections to the endpoints are there already.
fn exchange_through(spec: ClusterSpec, policy: &RetryPolicy, times: usize) {
    let (mut random, now) = (Random::from_seed(1), Instant::now());
    let addresses = spec.endpoints.endpoints.iter().map(|endpoint| endpoint.address);
    let shared = ClusterShared::for_shards(spec.limits, 4, Arc::new(Silent), now);
    let shared = Arc::new(shared.with_endpoints(addresses));
    let mut cluster = Cluster::new(Arc::new(spec), shared, now, &mut random);
    let choice = Choice {
        hash: None,
        avoid: &[],
        group: Group::ALL,
        without: Levels::NONE,
        now,
    };
    let mut permits = Vec::new();
    for at in 0..4_000 {
        if let Acquired::Open { endpoint, permit, .. } = cluster.acquire(choice, true, &mut random) {
            permits.push(permit);
            cluster.release(endpoint, Some(ConnId(at)), now);
        }
    }
    let mut draws = Random::from_seed(2);
    exchange(&prefixes(1), &[TINY_REQUEST], times, |request, response| {
        let counts = &cluster.shared().retries;
        let counted = counts.begin_request(&cluster.spec().retries, now);
        let mut attempts = Attempts::new(policy, None, &request.method, request.is_call());
        black_box((attempts.replays_bodies(false), attempts.start()));
        assert!(cluster.is_turn(None));
        let admitted = cluster.admit();
        let fresh = attempts.needs_fresh_connection();
        let Acquired::Use { conn, endpoint, .. } = cluster.acquire(choice, fresh, &mut random) else {
            return;
        };
        black_box(cluster.record(endpoint, Signal::Status(response.status.as_u16()), now));
        let answer = Answer {
            status: response.status,
            headers: &response.headers,
            replayable: true,
            left: None,
            wait_max: Duration::from_secs(10),
        };
        let judged = attempts.answered(answer, &mut draws, || false);
        assert!(matches!(judged, Judged::PassOn(_)));
        let conn = (!cluster.is_turn_over(now)).then_some(conn);
        black_box(cluster.release(endpoint, conn, now));
        cluster.call_first();
        drop((admitted, counted));
    });
}

/// Requests to each of so many external hosts in turn, each with a cluster of its own, or all with that of a wildcard, and
/// each with a connection that has asked for its name.
fn exchange_with_hosts(count: usize, is_wildcard: bool, times: usize) {
    let (mut random, now) = (Random::from_seed(1), Instant::now());
    let names: Vec<String> = (0..count).map(Scenario::host).collect();
    let requests: Vec<Vec<u8>> = names
        .iter()
        .map(|name| {
            format!("GET /small HTTP/1.1\r\nhost: {name}\r\nuser-agent: bench\r\naccept: */*\r\n\r\n")
        })
        .map(String::into_bytes)
        .collect();
    let requests: Vec<&[u8]> = requests.iter().map(Vec::as_slice).collect();
    let wildcard = || {
        let routes = vec![route("/".to_owned())];
        let pattern = vec![HostPattern::parse("*.example.com")];
        RouteTable::new(vec![Arc::new(VirtualHost::new("any", pattern, false, routes))])
    };
    let (table, services) = match is_wildcard {
        true => (wildcard(), vec!["*.example.com".to_owned()]),
        false => (hosts(count), names.clone()),
    };
    let key_of = |service: &String| ClusterKey::outbound(443, "", service);
    let keys: Vec<ClusterKey> = services.iter().map(key_of).collect();
    let mut clusters: ClusterMap<Cluster> = ClusterMap::default();
    for key in &keys {
        let limits = Limits {
            connections: 1_000,
            pending: 1_000,
            requests: 1_000,
        };
        let spec = ClusterSpec {
            key: key.clone(),
            limits,
            ..cluster()
        };
        let shared = ClusterShared::for_shards(limits, 4, Arc::new(Silent), now);
        let cluster = Cluster::new(Arc::new(spec), Arc::new(shared), now, &mut random);
        clusters.insert(key.clone(), cluster);
    }
    let group_of = |name: &str| match is_wildcard {
        true => Group::of_name(name),
        false => Group::ALL,
    };
    let choice = Choice {
        hash: None,
        avoid: &[],
        group: Group::ALL,
        without: Levels::NONE,
        now,
    };
    let mut permits = Vec::new();
    for (at, name) in (0..).zip(&names) {
        let key = keys.get(at as usize).or(keys.first());
        let cluster = key.and_then(|key| clusters.get_mut(key));
        if let Some(cluster) = cluster
            && let Acquired::Open { endpoint, permit, .. } = cluster.acquire(choice, true, &mut random)
        {
            permits.push(permit);
            cluster.release_in(group_of(name), endpoint, Some(ConnId(at)), now);
        }
    }
    assert_eq!(permits.len(), count);
    let mut carried = 0;
    exchange(&table, &requests, times, |request, response| {
        let at = table.find_host(&request.host);
        let key = at.and_then(|at| keys.get(at));
        let Some(cluster) = key.and_then(|key| clusters.get_mut(key)) else {
            return;
        };
        let group = group_of(&request.host);
        let admitted = cluster.admit();
        let choice = Choice { group, ..choice };
        let Acquired::Use { conn, endpoint, .. } = cluster.acquire(choice, false, &mut random) else {
            return;
        };
        black_box(cluster.record(endpoint, Signal::Status(response.status.as_u16()), now));
        black_box(cluster.release_in(group, endpoint, Some(conn), now));
        drop(admitted);
        carried += 1;
    });
    assert_eq!(carried, times, "each has its connection");
}

/// What requests go through on their way and back, one after the other, but for sockets, timers and logs. `through` is told
/// of both heads once they are there.
fn exchange(
    table: &RouteTable,
    requests: &[&[u8]],
    times: usize,
    mut through: impl FnMut(&RequestHead, &ResponseHead),
) {
    let (limits, mut random) = (limits(), Random::from_seed(1));
    let (mut request, mut response) = (RequestHead::default(), ResponseHead::default());
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    let normalization = Settings::default().path_normalization;
    let trusted = TrustedRanges::default();
    let host_of = |request: &RequestHead| table.find_host(&request.host).unwrap_or(0);
    for bytes in requests.iter().cycle().take(times) {
        parse_request(black_box(bytes), &limits, &mut request);
        assert!(path::normalize(&mut request, normalization).is_ok());
        request.headers.remove_connection_fields();
        forwarded::apply(&mut request, downstream(&trusted), &mut random, &mut None);
        let found = table
            .virtual_hosts()
            .get(host_of(&request))
            .and_then(|host| host.find(&request, "http", &mut scratch));
        assert!(found.is_some());
        request.headers.set(HeaderId::XEnvoyAttemptCount, b"1");
        out.clear();
        encode::request_head(&request, false, &mut out);
        parse_response(black_box(RESPONSE), &limits, &mut response);
        through(&request, &response);
        response.headers.set(HeaderId::Server, b"isthmus");
        response.headers.set(HeaderId::XEnvoyUpstreamServiceTime, b"0");
        out.clear();
        encode::response_head(&response, form(), &mut out);
    }
}

/// Runs one case: what callgrind looks at.
pub(crate) fn run_case(name: &str, times: usize) -> Result<()> {
    let (_, case) = CASES
        .iter()
        .find(|(known, _)| *known == name)
        .with_context(|| format!("there is no case {name:?}"))?;
    case(times);
    Ok(())
}

/// Counts the instructions of every case and compares them with those that are known; with `keep` they are the known
/// ones from now on.
pub(crate) fn measure(out: &Path, known: &Path, keep: bool) -> Result<()> {
    let text = fs::read_to_string(known).unwrap_or_default();
    let before: BTreeMap<&str, f64> = text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter_map(|(name, count)| Some((name, count.parse().ok()?)))
        .collect();
    let (mut table, mut worse) = (String::new(), Vec::new());
    let mut counted: BTreeMap<&str, f64> = BTreeMap::new();
    println!("| instructions of | now | before |\n|---|---|---|");
    for (name, _) in CASES {
        let [few, many] = REPETITIONS;
        let each = (instructions(name, many)? - instructions(name, few)?) as f64 / (many - few) as f64;
        let known = before.get(name).copied();
        let shown = known.map_or("-".to_owned(), |known| format!("{known:.0}"));
        println!("| {name} | {each:.0} | {shown} |");
        table.push_str(&format!("{name}\t{each:.0}\n"));
        counted.insert(*name, each);
        if known.is_some_and(|known| each > known * TOLERANCE) || (known.is_none() && !keep) {
            worse.push(format!("{name}: {each:.0} instructions, {shown} before"));
        }
    }
    if let (Some(without), Some(with)) = (counted.get(WITHOUT_POLICY), counted.get(WITH_POLICY)) {
        let cost = with / without;
        println!("\nEvery policy costs {:.1} % beside none.", (cost - 1.0) * 100.0);
        ensure!(
            cost <= POLICY_COST,
            "that is more than {POLICY_COST} times as much"
        );
    }
    for (one, many) in [(ONE_HOST, MANY_HOSTS), (ONE_NAME, MANY_NAMES)] {
        let (Some(one), Some(each)) = (counted.get(one), counted.get(many)) else {
            continue;
        };
        let cost = each / one;
        println!("{many}: {:+.1} % beside the only one.", (cost - 1.0) * 100.0);
        ensure!(cost <= HOSTS_COST, "that is more than {HOSTS_COST} times as much");
    }
    fs::create_dir_all(out)?;
    fs::write(out.join("instructions.tsv"), &table)?;
    if keep {
        fs::write(known, table)?;
    } else if !worse.is_empty() {
        bail!(
            "the path has become longer; if that is meant, keep the figures with `cargo xtask bench -- --micro --keep`:\n  {}",
            worse.join("\n  ")
        );
    }
    Ok(())
}

fn instructions(name: &str, times: usize) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!(
            "--callgrind-out-file={}",
            folder.path().join("out").display()
        ))
        .arg(std::env::current_exe()?)
        .args(["--case", name, "--times", &times.to_string()])
        .output()
        .context("valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {text}");
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    let (_, count) = line.with_context(|| format!("callgrind counted nothing: {text}"))?;
    Ok(count.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_can_be_run() {
        for (name, _) in CASES {
            run_case(name, 2).unwrap();
        }
        assert!(run_case("nothing", 1).is_err());
    }
}
