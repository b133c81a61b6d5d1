//! A small closed-loop load generator: some connections that each send one request after the other.

use crate::client::Client;
use crate::upstream::SERVED_BY;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What to send.
#[derive(Debug, Clone)]
pub struct Load {
    address: SocketAddr,
    request: Vec<u8>,
    connections: usize,
    pace: Duration,
}

/// What came back.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Answers by the name of the upstream that gave them.
    pub served_by: BTreeMap<String, u64>,
    /// Requests without a whole answer, by what went wrong.
    pub errors: BTreeMap<String, u64>,
    /// How long it took.
    pub elapsed: Duration,
}

impl Report {
    /// All requests.
    pub fn total(&self) -> u64 {
        self.statuses.values().sum::<u64>() + self.errors.values().sum::<u64>()
    }

    /// Answers with this status.
    pub fn status(&self, status: u16) -> u64 {
        self.statuses.get(&status).copied().unwrap_or(0)
    }

    /// The share of answers that this upstream gave, in percent.
    pub fn percent_from(&self, name: &str) -> f64 {
        let all: u64 = self.served_by.values().sum();
        100.0 * self.served_by.get(name).copied().unwrap_or(0) as f64 / all.max(1) as f64
    }

    /// Adds another one's counts.
    pub fn merge(&mut self, other: &Self) {
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (name, count) in &other.served_by {
            *self.served_by.entry(name.clone()).or_default() += count;
        }
        for (error, count) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += count;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.total() as f64 / self.elapsed.as_secs_f64().max(0.001);
        write!(
            f,
            "{} requests at {rate:.0}/s: {:?}, errors {:?}",
            self.total(),
            self.statuses,
            self.errors
        )
    }
}

impl Load {
    /// GET of this path on eight connections.
    pub fn get(address: SocketAddr, host: &str, path: &str) -> Self {
        Self::raw(address, format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"))
    }

    /// These bytes, which must be one request.
    pub fn raw(address: SocketAddr, request: impl Into<Vec<u8>>) -> Self {
        Self {
            address,
            request: request.into(),
            connections: 8,
            pace: Duration::ZERO,
        }
    }

    /// On so many connections.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// Lets each connection rest for so long behind each answer: clients that are there, and not all that a machine can do.
    #[must_use]
    pub fn pace(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    /// Sends so many requests in all.
    pub fn run(&self, requests: u64) -> Report {
        let left = AtomicU64::new(requests);
        let take = |left: u64| left.checked_sub(1);
        self.drive(|| {
            left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
                .is_ok()
        })
    }

    /// Sends requests while `body` runs, then ends; answers what `body` answered too.
    pub fn run_during<T>(&self, body: impl FnOnce(&AtomicU64) -> T) -> (Report, T) {
        let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let load = scope.spawn(|| {
                self.drive(|| {
                    sent.fetch_add(1, Ordering::SeqCst);
                    !over.load(Ordering::SeqCst)
                })
            });
            let ends = EndsOnDrop(&over);
            let answer = body(&sent);
            drop(ends);
            (load.join().expect("the load ends"), answer)
        })
    }

    fn drive(&self, more: impl Fn() -> bool + Sync) -> Report {
        let start = Instant::now();
        let mut whole = Report::default();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.connections)
                .map(|_| scope.spawn(|| self.worker(&more)))
                .collect();
            for worker in workers {
                whole.merge(&worker.join().expect("a worker ends"));
            }
        });
        whole.elapsed = start.elapsed();
        whole
    }

    fn worker(&self, more: impl Fn() -> bool) -> Report {
        let (mut report, mut client) = (Report::default(), None);
        while more() {
            match self.exchange(&mut client) {
                Ok((status, name)) => {
                    *report.statuses.entry(status).or_default() += 1;
                    if let Some(name) = name {
                        *report.served_by.entry(name).or_default() += 1;
                    }
                }
                Err(error) => {
                    *report.errors.entry(error).or_default() += 1;
                    client = None;
                }
            }
            if !self.pace.is_zero() {
                thread::sleep(self.pace);
            }
        }
        report
    }

    fn exchange(&self, client: &mut Option<Client>) -> Result<(u16, Option<String>), String> {
        let open = match client {
            Some(open) => open,
            None => {
                client.insert(Client::try_connect(self.address).map_err(|error| format!("connect: {error}"))?)
            }
        };
        open.try_send(&self.request)
            .map_err(|error| format!("send: {error}"))?;
        let response = open
            .try_response(self.request.starts_with(b"HEAD "))
            .map_err(|error| format!("read: {error}"))?;
        let name = response.field(SERVED_BY).map(str::to_owned);
        if response
            .field("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
        {
            *client = None;
        }
        Ok((response.status, name))
    }
}

/// Sets a flag when dropped, so that load ends when what it runs beside fails, too: otherwise a scope would wait for
/// it for ever.
#[derive(Debug)]
pub struct EndsOnDrop<'a>(pub &'a AtomicBool);

impl Drop for EndsOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A turn at the machine: tests that send much or measure memory hold it one after the other.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed while it had its turn has broken nothing of the others.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::{SOON, eventually};
    use crate::fault::{Fault, FaultPeer};
    use crate::nginx::Nginx;
    use crate::upstream::{Answer, Upstream};

    #[test]
    fn every_request_is_counted_once() {
        let upstream = Upstream::echo_for_load("v1");
        let report = Load::get(upstream.address(), "h", "/").run(5_000);
        assert_eq!(
            (report.total(), report.status(200), upstream.served()),
            (5_000, 5_000, 5_000),
            "{report}"
        );
        assert_eq!(report.percent_from("v1").round() as u64, 100);
    }

    #[test]
    fn connections_that_are_closed_after_an_answer_are_opened_again() {
        let upstream = Upstream::start(|_| {
            Answer::ok("x")
                .field("connection", "close")
                .then(crate::upstream::Then::Close)
        });
        let report = Load::get(upstream.address(), "h", "/").run(200);
        assert_eq!((report.status(200), report.errors.len()), (200, 0), "{report}");
    }

    #[test]
    fn errors_are_counted_apart() {
        let peer = FaultPeer::start(Fault::ClosesInBody);
        let report = Load::get(peer.address(), "h", "/").connections(2).run(10);
        assert_eq!(
            report.errors,
            BTreeMap::from([("read: closed inside the body".to_owned(), 10)])
        );
    }

    #[test]
    fn load_on_a_real_nginx_runs_as_long_as_the_test_wants() {
        let nginx = Nginx::start(&[("/x", b"content")]);
        let wait =
            |sent: &AtomicU64| eventually(SOON, "1,000 requests", || sent.load(Ordering::SeqCst) > 1_000);
        let (report, ()) = Load::get(nginx.address(), "h", "/x").run_during(wait);
        assert!(report.status(200) >= 900 && report.errors.is_empty(), "{report}");
    }
}
