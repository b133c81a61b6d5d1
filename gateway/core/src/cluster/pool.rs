//! The idle connections to one endpoint: last in, first out, so that the ones in use stay warm and the others age.

use super::ConnId;
use std::time::{Duration, Instant};

/// An idle connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idle {
    /// Which one.
    pub conn: ConnId,
    /// Since when it idles.
    pub since: Instant,
}

/// The idle connections to one endpoint.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    idle: Vec<Idle>,
}

impl Pool {
    /// Puts a connection back.
    pub fn put(&mut self, conn: ConnId, now: Instant) {
        self.idle.push(Idle { conn, since: now });
    }

    /// Takes the one that was used last.
    pub fn take(&mut self) -> Option<Idle> {
        self.idle.pop()
    }

    /// Forgets one, which has closed; answers whether it was here.
    pub fn remove(&mut self, conn: ConnId) -> bool {
        let before = self.idle.len();
        self.idle.retain(|idle| idle.conn != conn);
        self.idle.len() != before
    }

    /// Takes out those that have idled for `limit`, oldest first; a limit of zero takes none.
    pub fn expire(&mut self, now: Instant, limit: Duration, expired: &mut Vec<ConnId>) {
        if limit.is_zero() {
            return;
        }
        let is_old = |idle: &Idle| now.saturating_duration_since(idle.since) >= limit;
        let count = self.idle.iter().take_while(|idle| is_old(idle)).count();
        expired.extend(self.idle.drain(..count).map(|idle| idle.conn));
    }

    /// Takes out all.
    pub fn drain(&mut self, all: &mut Vec<ConnId>) {
        all.extend(self.idle.drain(..).map(|idle| idle.conn));
    }

    /// The idle connections, the longest idle first.
    pub fn iter(&self) -> impl Iterator<Item = &Idle> {
        self.idle.iter()
    }

    /// How many idle.
    pub fn len(&self) -> usize {
        self.idle.len()
    }

    /// Whether none idles.
    pub fn is_empty(&self) -> bool {
        self.idle.is_empty()
    }
}
