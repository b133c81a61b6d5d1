//! The idle connections to one endpoint: last in, first out, so that the ones in use stay warm and the others age.
//!
//! Where connections are not alike, because each has asked its upstream for the name of its first request, each [`Group`]
//! has a stack of its own: a request never looks at connections that cannot carry it.

use super::ConnId;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Connections that can carry the same requests. Two names may have the same one: whoever takes a connection looks at its
/// name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Group(u64);

impl Group {
    /// Of all connections of a cluster, where each can carry each request.
    pub const ALL: Self = Self(0);

    /// Those that have asked for this name, whichever way its letters are written (FNV-1a).
    pub fn of_name(name: &str) -> Self {
        let fold = |hash: u64, byte: u8| {
            (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x0000_0100_0000_01b3)
        };
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325, fold))
    }
}

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
    /// Those of [`Group::ALL`].
    idle: Vec<Idle>,
    /// The others. One that falls empty is kept until connections expire, so that a name in use allocates nothing.
    grouped: HashMap<Group, Vec<Idle>, foldhash::fast::FixedState>,
}

impl Pool {
    /// Puts a connection back.
    pub fn put(&mut self, conn: ConnId, group: Group, now: Instant) {
        let stack = match group {
            Group::ALL => &mut self.idle,
            group => self.grouped.entry(group).or_default(),
        };
        stack.push(Idle { conn, since: now });
    }

    /// Takes the one of a group that was used last.
    pub fn take(&mut self, group: Group) -> Option<Idle> {
        match group {
            Group::ALL => self.idle.pop(),
            group => self.grouped.get_mut(&group)?.pop(),
        }
    }

    /// Forgets one, which has closed; answers whether it was here.
    pub fn remove(&mut self, conn: ConnId) -> bool {
        self.stacks_mut().any(|stack| {
            let before = stack.len();
            stack.retain(|idle| idle.conn != conn);
            stack.len() != before
        })
    }

    /// Takes out those that have idled for `limit`, of each group the oldest first; a limit of zero takes none.
    pub fn expire(&mut self, now: Instant, limit: Duration, expired: &mut Vec<ConnId>) {
        if !limit.is_zero() {
            let is_old = |idle: &Idle| now.saturating_duration_since(idle.since) >= limit;
            for stack in self.stacks_mut() {
                let count = stack.iter().take_while(|idle| is_old(idle)).count();
                expired.extend(stack.drain(..count).map(|idle| idle.conn));
            }
        }
        self.grouped.retain(|_, stack| !stack.is_empty());
    }

    /// Takes out all.
    pub fn drain(&mut self, all: &mut Vec<ConnId>) {
        for stack in self.stacks_mut() {
            all.extend(stack.drain(..).map(|idle| idle.conn));
        }
        self.grouped.clear();
    }

    /// The idle connections.
    pub fn iter(&self) -> impl Iterator<Item = &Idle> {
        self.stacks().flatten()
    }

    /// The one that has idled longest.
    pub fn oldest(&self) -> Option<&Idle> {
        let firsts = self.stacks().filter_map(|stack| stack.first());
        firsts.min_by_key(|idle| idle.since)
    }

    /// How many idle.
    pub fn len(&self) -> usize {
        self.stacks().map(Vec::len).sum()
    }

    /// Whether none idles.
    pub fn is_empty(&self) -> bool {
        self.stacks().all(Vec::is_empty)
    }

    fn stacks(&self) -> impl Iterator<Item = &Vec<Idle>> {
        std::iter::once(&self.idle).chain(self.grouped.values())
    }

    fn stacks_mut(&mut self) -> impl Iterator<Item = &mut Vec<Idle>> {
        std::iter::once(&mut self.idle).chain(self.grouped.values_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_takes_its_own_connections_only_the_last_first() {
        let (mut pool, start) = (Pool::default(), Instant::now());
        let [one, other] = ["a.example", "b.example"].map(Group::of_name);
        assert_eq!(one, Group::of_name("A.Example"));
        assert_ne!(one, other);
        for (at, group) in [one, other, one, Group::ALL].into_iter().enumerate() {
            let now = start + Duration::from_secs(at as u64);
            pool.put(ConnId(at as u32), group, now);
        }
        assert_eq!((pool.len(), pool.is_empty()), (4, false));
        assert_eq!(pool.oldest().map(|idle| idle.conn), Some(ConnId(0)));
        let mut taken = |group| pool.take(group).map(|idle| idle.conn.0);
        assert_eq!([taken(one), taken(one), taken(one)], [Some(2), Some(0), None]);
        assert_eq!([taken(Group::ALL), taken(Group::ALL)], [Some(3), None]);
        assert_eq!([taken(other), taken(other)], [Some(1), None]);
        assert!(pool.is_empty());
    }

    #[test]
    fn each_group_ages_and_one_that_is_empty_goes() {
        let (mut pool, start) = (Pool::default(), Instant::now());
        let groups = ["a", "b", "c"].map(Group::of_name);
        for (at, group) in groups.into_iter().enumerate() {
            let now = start + Duration::from_secs(at as u64);
            pool.put(ConnId(at as u32), group, now);
        }
        assert!(pool.remove(ConnId(2)) && !pool.remove(ConnId(2)));
        let mut expired = Vec::new();
        pool.expire(
            start + Duration::from_secs(10),
            Duration::from_secs(10),
            &mut expired,
        );
        assert_eq!(expired, [ConnId(0)]);
        assert_eq!((pool.len(), pool.grouped.len()), (1, 1));
        pool.drain(&mut expired);
        assert_eq!((expired.len(), pool.grouped.len()), (2, 0));
    }
}
