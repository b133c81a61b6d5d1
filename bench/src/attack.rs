//! What a neighbour on the same shard feels of a client that attacks it over HTTP/2.
//!
//! The neighbour sends requests of HTTP/1.1 at a fixed rate, so that none that a stall kept waiting is hidden. The
//! attacker has one connection at a time, and the next one as soon as the gateway has ended it. It runs on the core of the
//! load with the lowest priority, so that what the neighbour feels is the gateway.

use crate::channel::Dialer;
use crate::load::{Load, Pace};
use crate::proxy::{PROXIES, upstream};
use crate::scenario::SCENARIOS;
use anyhow::{Context, Result, ensure};
use isthmus_tests::h2::Target;
use isthmus_tests::h2::client::Connection;
use isthmus_tests::h2::frame::{Code, Frame, flag, kind};
use isthmus_tests::h2::hpack::{Block, Indexing};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Requests of the neighbour in a second.
const RATE: u32 = 500;
const CONNECTIONS: usize = 4;
/// Steps of an attack between two looks at what the gateway says.
const STEPS: u32 = 20;
/// The neighbour's slowest hundredth may take so many times what it takes in quiet.
const FACTOR_MAX: f64 = 3.0;
/// What is not told apart from quiet: one turn of the machine's scheduler, in microseconds.
const NOISE: u64 = 1000;
const LOWEST_PRIORITY: i32 = 19;

struct Attack {
    name: &'static str,
    begin: fn(&mut Connection),
    step: fn(&mut Connection, u32),
}

fn nothing(_: &mut Connection) {}

fn upload(client: &mut Connection) {
    client.post("/small");
}

fn head(client: &mut Connection) {
    let (stream, head) = (client.next_stream(), client.head("GET", "/small"));
    client.send(&Frame::headers(flag::END_STREAM, stream, head));
}

/// A request whose head names so many times one large entry of the table.
fn grown(client: &mut Connection, times: usize) {
    let stream = client.next_stream();
    let large = "v".repeat(3900);
    let mut head = client
        .head("GET", "/small")
        .literal(Indexing::Incremental, "x-bomb", large);
    for _ in 0..times {
        head = head.indexed(62);
    }
    client.send(&Frame::headers(flag::WHOLE, stream, head));
}

const ATTACKS: &[Attack] = &[
    Attack {
        name: "rapid reset",
        begin: nothing,
        step: |client, _| {
            let stream = client.get("/small");
            client.send(&Frame::rst_stream(stream, Code::CANCEL));
        },
    },
    Attack {
        name: "CONTINUATION",
        begin: head,
        step: |client, number| {
            let field = Block::new().field(format!("x-{number}"), "v");
            client.send(&Frame::continuation(flag::NONE, 1, field));
        },
    },
    Attack {
        name: "heads that grow by the table",
        begin: nothing,
        step: |client, _| grown(client, 10_000),
    },
    Attack {
        name: "heads that are too large",
        begin: nothing,
        step: |client, _| grown(client, 50),
    },
    Attack {
        name: "SETTINGS",
        begin: nothing,
        step: |client, _| client.send(&Frame::settings(&[])),
    },
    Attack {
        name: "PING",
        begin: nothing,
        step: |client, number| client.send(&Frame::ping(flag::NONE, u64::from(number).to_be_bytes())),
    },
    Attack {
        name: "PRIORITY",
        begin: nothing,
        step: |client, number| client.send(&Frame::priority(2 * (number % 1000) + 1, 0, 5)),
    },
    Attack {
        name: "unknown frames",
        begin: nothing,
        step: |client, _| client.send(&Frame::new(kind::UNKNOWN, flag::NONE, 0, [0; 100])),
    },
    Attack {
        name: "empty DATA",
        begin: upload,
        step: |client, _| client.send(&Frame::data(flag::NONE, 1, [])),
    },
    Attack {
        name: "tiny DATA",
        begin: upload,
        step: |client, _| client.send(&Frame::data(flag::NONE, 1, *b"x")),
    },
    Attack {
        name: "WINDOW_UPDATE",
        begin: nothing,
        step: |client, _| client.send(&Frame::window_update(0, 1)),
    },
];

impl Attack {
    /// Goes on until it is over; counts the connections.
    fn play(&self, address: SocketAddr, over: &AtomicBool, connections: &AtomicU64) {
        // Without it the attack only takes more of the neighbour's core.
        let _as_it_is = rustix::process::setpriority_process(Some(rustix::thread::gettid()), LOWEST_PRIORITY);
        while !over.load(Ordering::SeqCst) {
            let Ok(mut client) = Connection::open(Target::cleartext(address)) else {
                continue;
            };
            if client.handshake(&[]).is_err() {
                continue;
            }
            connections.fetch_add(1, Ordering::SeqCst);
            (self.begin)(&mut client);
            let mut done = 0;
            while !over.load(Ordering::SeqCst) && client.goaway.is_none() && !client.closed {
                for _ in 0..STEPS {
                    (self.step)(&mut client, done);
                    done += 1;
                }
                client.exchange();
            }
        }
    }
}

/// Measures the neighbour in quiet and under each attack, for so long each; `judged` is whether too slow is an error.
pub(crate) fn measure(gateway: &Path, out: &Path, time: Duration, judged: bool) -> Result<()> {
    let scenario = SCENARIOS.first().context("a scenario")?;
    let ours = PROXIES.first().context("the gateway")?;
    let folder = tempfile::tempdir()?;
    let origin = upstream(&folder.path().join("upstream"), &folder.path().join("keys"))?;
    let running = ours.start(scenario, (origin.plain(), origin.http2()), folder.path(), gateway)?;
    let neighbour = || -> Result<(u64, u64)> {
        let load = Load {
            address: running.address,
            request: scenario.request(),
            dialer: Dialer::new(scenario)?,
            fresh: false,
            connections: CONNECTIONS,
            pace: Pace::Open(RATE),
            time,
        };
        let outcome = load.run()?;
        ensure!(outcome.errors.is_empty(), "{:?}", outcome.errors);
        Ok((
            outcome.latency.value_at_quantile(0.5),
            outcome.latency.value_at_quantile(0.99),
        ))
    };
    neighbour()?;
    let quiet = neighbour()?;
    let mut table = format!(
        "| attack | p50, us | p99, us | beside quiet | connections of the attacker |\n|---|---|---|---|---|\n\
         | none | {} | {} | 1 | |\n",
        quiet.0, quiet.1
    );
    let mut slow = Vec::new();
    for attack in ATTACKS {
        let (over, connections) = (AtomicBool::new(false), AtomicU64::new(0));
        let (half, most) = thread::scope(|scope| {
            scope.spawn(|| attack.play(running.address, &over, &connections));
            let felt = neighbour();
            over.store(true, Ordering::SeqCst);
            felt
        })
        .with_context(|| attack.name)?;
        let count = connections.load(Ordering::SeqCst);
        ensure!(count > 0, "{}: the attacker got no connection", attack.name);
        let factor = most as f64 / quiet.1.max(1) as f64;
        writeln!(
            table,
            "| {} | {half} | {most} | {factor:.1} | {count} |",
            attack.name
        )?;
        if factor > FACTOR_MAX && most > NOISE {
            slow.push(attack.name);
        }
    }
    fs::create_dir_all(out)?;
    fs::write(out.join("attacks.md"), &table)?;
    println!("{table}");
    ensure!(!judged || slow.is_empty(), "a neighbour waits too long: {slow:?}");
    Ok(())
}
