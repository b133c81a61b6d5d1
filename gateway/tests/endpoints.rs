//! Endpoints that change ten thousand times a second: no shard stands still, and the last value is what all have.
//!
//! Control's room for updates is used as control uses it, with real shards at the other end of real mailboxes, one of
//! which serves requests meanwhile.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use isthmus::access_log::{self, Format, Target};
use isthmus::control::endpoints::Updates;
use isthmus::io::executor::{self, Heartbeat, Settings};
use isthmus::io::{clock, socket};
use isthmus::mailbox::{self, Bells, Inbox, Outbox, Publication, TlsSet, ToControl, ToShard};
use isthmus::shard;
use isthmus_config::{Options, Source};
use isthmus_core::endpoint::{Endpoint, EndpointSet};
use isthmus_core::name::ClusterKey;
use isthmus_core::overload::Bounds;
use isthmus_core::shared::ClusterShared;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const SHARDS: usize = 2;
/// Changes of one second.
const RATE: u32 = 10_000;
/// Endpoints of a set.
const ENDPOINTS: u16 = 50;
/// A request that takes longer shows a shard that stands still, and not a machine that is busy.
const SLOW: Duration = Duration::from_secs(2);

struct Shard {
    outbox: Outbox<ToShard>,
    inbox: Inbox<ToControl>,
    heartbeat: Heartbeat,
    thread: JoinHandle<thread::Result<()>>,
}

fn start(index: usize, bells: &Arc<Bells>, log: &access_log::Writer) -> Shard {
    let (to_shard, from_control) = mailbox::channel(64);
    let (to_control, from_shard) = mailbox::channel(64);
    let heartbeat = Heartbeat::default();
    let start = shard::Start {
        index,
        bells: Arc::clone(bells),
        settings: isthmus_core::limits::Settings::default(),
        connections_max: 1000,
        bounds: Bounds {
            requests: u64::MAX,
            buffer_bytes: u64::MAX,
        },
        seed: index as u64,
        inbox: from_control,
        outbox: to_control,
        log: log.shard_log(),
    };
    let cores = executor::granted_cores();
    let thread = executor::spawn_shard(
        &format!("shard-{index}"),
        cores[index % cores.len()],
        Settings::default(),
        heartbeat.clone(),
        move |wheel| shard::run(start, wheel),
    )
    .unwrap();
    Shard {
        outbox: to_shard,
        inbox: from_shard,
        heartbeat,
        thread,
    }
}

fn publication(upstream: SocketAddr, bells: &Arc<Bells>) -> (Arc<Publication>, ClusterKey) {
    let text = format!(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: g}}
spec: {{servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [\"*\"]}}]}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: a}}
spec:
  hosts: [a.example]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: {}, ports: {{http: {}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: a}}
spec:
  hosts: [\"*\"]
  gateways: [g]
  http: [{{route: [{{destination: {{host: a.example}}}}]}}]
",
        upstream.ip(),
        upstream.port()
    );
    let source = Source {
        name: "all.yaml".to_owned(),
        text: text.into(),
    };
    let snapshot = isthmus_config::compile(&[source], &Options::default()).snapshot;
    let mut shared = isthmus_core::name::ClusterMap::default();
    for (key, spec) in &snapshot.clusters {
        let counts = ClusterShared::for_shards(spec.limits, SHARDS, Arc::clone(bells) as _, clock::now());
        let addresses = spec.endpoints.endpoints.iter().map(|endpoint| endpoint.address);
        shared.insert(key.clone(), Arc::new(counts.with_endpoints(addresses)));
    }
    let key = snapshot.clusters.keys().next().unwrap().clone();
    (Arc::new(Publication { snapshot, shared }), key)
}

/// An upstream that answers everything.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(mut stream: TcpStream) {
    let mut room = [0; 4096];
    while stream.read(&mut room).is_ok_and(|got| got > 0) {
        if stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .is_err()
        {
            return;
        }
    }
}

/// Sends one request after the other until it is told to stop; answers how many, and the longest that one has taken.
fn ask(address: SocketAddr, over: &AtomicBool) -> (u64, Duration) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SLOW * 5)).unwrap();
    let (mut count, mut longest, mut room) = (0, Duration::ZERO, [0; 4096]);
    while !over.load(Ordering::SeqCst) {
        let begun = clock::now();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n")
            .unwrap();
        let got = stream.read(&mut room).unwrap();
        let answer = String::from_utf8_lossy(&room[..got]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        longest = longest.max(begun.elapsed());
        count += 1;
    }
    (count, longest)
}

/// A set that always has the upstream, and others that change; most of them do not answer and are of no weight beside
/// it, because nobody is to be sent there.
fn set(number: u32, upstream: SocketAddr) -> EndpointSet {
    let ports = 1 + number % 100;
    let others = (0..ENDPOINTS).map(|at| {
        let port = 1 + ports as u16 + at;
        Endpoint {
            level: 1,
            ..Endpoint::new(([127, 0, 0, 1], port).into())
        }
    });
    EndpointSet::new(std::iter::once(Endpoint::new(upstream)).chain(others))
}

struct Control {
    shards: Vec<Shard>,
    updates: Updates,
    published: Arc<Publication>,
    /// Of changes that have reached all shards.
    took: Vec<Duration>,
    seen: Vec<(u64, Instant)>,
    longest: Duration,
    views: Vec<Option<Vec<SocketAddr>>>,
}

impl Control {
    fn change(&mut self, key: &ClusterKey, set: EndpointSet) {
        let sent = self
            .updates
            .change(key, set, &self.published, SHARDS, clock::now());
        for (shard, update) in sent {
            self.shards[shard].outbox.send(ToShard::Endpoints(update));
        }
    }

    fn take_messages(&mut self, key: &ClusterKey) {
        for index in 0..SHARDS {
            while let Some(message) = self.shards[index].inbox.try_recv() {
                match message {
                    ToControl::EndpointsApplied(update) => {
                        let (next, since) = self.updates.applied(index, &update, &self.published);
                        if let Some(next) = next {
                            self.shards[index].outbox.send(ToShard::Endpoints(next));
                        }
                        self.took.extend(since.map(|since| since.elapsed()));
                    }
                    ToControl::Stats { clusters, .. } => {
                        let view = clusters
                            .into_iter()
                            .find(|view| view.name == key.to_string())
                            .unwrap();
                        self.views[index] =
                            Some(view.endpoints.iter().map(|endpoint| endpoint.address).collect());
                    }
                    _ => {}
                }
            }
            self.shards[index].outbox.flush();
            let ticks = self.shards[index].heartbeat.ticks();
            if ticks != self.seen[index].0 {
                self.seen[index] = (ticks, clock::now());
            }
            self.longest = self.longest.max(self.seen[index].1.elapsed());
        }
    }
}

#[test]
fn ten_thousand_changes_a_second_block_no_shard_and_the_last_is_never_lost() {
    let seconds = if std::env::var_os("CI").is_some() { 2 } else { 10 };
    let log = access_log::Writer::start(&Target::Off, Format::Text).unwrap();
    let bells = Bells::new(SHARDS);
    let upstream = upstream();
    let (published, key) = publication(upstream, &bells);
    let (address, sockets) = socket::bind_all(SocketAddr::from(([127, 0, 0, 1], 0)), SHARDS).unwrap();
    let listener = published.snapshot.listeners[0].key.clone();
    let mut control = Control {
        shards: (0..SHARDS).map(|index| start(index, &bells, &log)).collect(),
        updates: Updates::default(),
        published: Arc::clone(&published),
        took: Vec::new(),
        seen: vec![(0, clock::now()); SHARDS],
        longest: Duration::ZERO,
        views: vec![None; SHARDS],
    };
    for (shard, socket) in control.shards.iter_mut().zip(sockets) {
        shard.outbox.send(ToShard::Apply {
            publication: Arc::clone(&published),
            tls: Arc::new(TlsSet::default()),
            sockets: vec![(listener.clone(), socket)],
        });
    }
    for shard in &mut control.shards {
        let begun = clock::now();
        while !matches!(shard.inbox.try_recv(), Some(ToControl::Applied { .. })) {
            assert!(begun.elapsed() < SLOW * 5, "the version is not applied");
            thread::yield_now();
        }
    }
    let over = AtomicBool::new(false);
    let last = RATE * seconds;
    let (asked, slowest) = thread::scope(|scope| {
        let asking = scope.spawn(|| ask(address, &over));
        let begun = clock::now();
        control.seen.fill((0, begun));
        for number in 1..=last {
            control.change(&key, set(number, upstream));
            control.take_messages(&key);
            let due = begun + Duration::from_secs(1) * number / RATE;
            // Whoever is behind goes on at once, so that the rate holds.
            thread::sleep(due.saturating_duration_since(clock::now()));
        }
        println!("{last} changes in {:?}", begun.elapsed());
        let wanted: Vec<SocketAddr> = set(last, upstream)
            .endpoints
            .iter()
            .map(|endpoint| endpoint.address)
            .collect();
        let begun = clock::now();
        while control
            .views
            .iter()
            .any(|view| view.as_deref() != Some(&wanted[..]))
        {
            assert!(begun.elapsed() < SLOW * 5, "a shard does not have the last set");
            for shard in &mut control.shards {
                shard.outbox.send(ToShard::CollectStats);
            }
            control.take_messages(&key);
            thread::sleep(Duration::from_millis(5));
        }
        over.store(true, Ordering::SeqCst);
        asking.join().unwrap()
    });
    control.took.sort_unstable();
    let median = control
        .took
        .get(control.took.len() / 2)
        .copied()
        .unwrap_or_default();
    println!(
        "{asked} requests, the slowest {slowest:?}; the longest that a shard did not tick {:?}; {} sets reached all shards, {median:?} at the median",
        control.longest,
        control.took.len()
    );
    assert!(slowest < SLOW, "a request took {slowest:?}");
    assert!(
        control.longest < SLOW,
        "a shard stood still for {:?}",
        control.longest
    );
    assert!(asked > 100, "{asked} requests");
    for shard in &mut control.shards {
        shard.outbox.send(ToShard::Stop);
        shard.outbox.flush();
    }
    for shard in control.shards {
        shard.thread.join().unwrap().unwrap();
    }
}
