//! Who has to wait, and who goes next: the limits of `connectionPool` as one shard keeps them.
//!
//! How many connections and requests there may be is exact for the process and counted in [`crate::shared`]; this room
//! keeps the order. A request that finds no permit for a connection joins the queue of its shard; from then on nobody
//! passes it by: only the first of the queue may look whether there is a connection for it, and every change that could
//! help (a connection falls idle or ends, a permit is handed to the shard, endpoints or limits change) lets it look.
//!
//! No shard starves either. An idle connection holds its permit, so it is closed when others want one; and while other
//! shards wait, a shard whose own requests would use every connection again and again gives one up each [`TURN`].

use super::{Cluster, ConnId, SharedId};
use crate::shared::{Limit, Permit, Waiting};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a shard keeps its connections busy with its own requests while others wait, before it gives one up. Long
/// enough to carry several quick requests, since each new connection costs a handshake; short beside any time-out.
pub const TURN: Duration = Duration::from_millis(20);

/// Names a request that waits on this shard; later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(u64);

/// A connection that nobody uses, to be closed because its permit is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// One that carries one request at a time.
    Idle(ConnId),
    /// One that carries several; its permit comes back when it has ended.
    Shared(SharedId),
}

#[derive(Debug)]
struct Waiter {
    id: WaiterId,
    /// Whether it has a claim to a permit, and with that one of the places of those that wait. It has none from the
    /// moment that there is a connection for it, so that the next request finds room even before this one has gone.
    has_claim: bool,
}

/// The requests of one cluster that wait on one shard.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiters: VecDeque<Waiter>,
    next: u64,
    /// Permits that were handed to this shard, for the first of the queue.
    granted: Vec<Permit>,
    /// Permits on their way to requests that wait no more.
    late: usize,
    /// Since when other shards wait while this one goes on.
    turn: Option<Instant>,
}

impl Queue {
    fn find(&self, id: WaiterId) -> Option<usize> {
        self.waiters.binary_search_by_key(&id, |waiter| waiter.id).ok()
    }

    /// A permit that others have handed over.
    pub(super) fn take_granted(&mut self) -> Option<Permit> {
        self.granted.pop()
    }
}

impl Cluster {
    /// Whether a request may look for a connection: those that wait go first, in their order.
    pub fn is_turn(&self, place: Option<WaiterId>) -> bool {
        match (self.queue.waiters.front(), place) {
            (None, _) => true,
            (Some(first), Some(place)) => first.id == place,
            (Some(_), None) => false,
        }
    }

    /// The request that may look for a connection now.
    pub fn first_waiter(&self) -> Option<WaiterId> {
        self.queue.waiters.front().map(|first| first.id)
    }

    /// Takes the right to one request under way (`http2MaxRequests`); None inside when they are not limited.
    pub fn admit(&self) -> Result<Option<Permit>, Limit> {
        // Asked of the specification, which is this shard's: what all shards write is looked at only for a limit.
        if self.spec.limits.requests == u32::MAX {
            return Ok(None);
        }
        let admitted = self.shared.requests.acquire();
        admitted.map(Some).ok_or(Limit::Requests)
    }

    /// Joins the queue. The answer is given back by one [`Self::leave`].
    pub fn wait(&mut self) -> Result<WaiterId, Limit> {
        let waiting = self.shared.connections.wait(self.shard);
        let has_claim = match waiting {
            Waiting::Full => return Err(Limit::Pending),
            Waiting::Yes => true,
            // It has just come back, and is for the first of the queue.
            Waiting::Not(permit) => {
                self.queue.granted.push(permit);
                false
            }
        };
        let id = WaiterId(self.queue.next);
        self.queue.next += 1;
        self.queue.waiters.push_back(Waiter { id, has_claim });
        Ok(id)
    }

    /// A request that had its turn and found nothing stays where it is in the queue.
    pub fn wait_on(&mut self, id: WaiterId) {
        let Some(at) = self.queue.find(id) else { return };
        let Some(waiter) = self.queue.waiters.get_mut(at).filter(|waiter| !waiter.has_claim) else {
            return;
        };
        let permit = self.shared.connections.wait_on(self.shard);
        waiter.has_claim = permit.is_none();
        self.queue.granted.extend(permit);
    }

    /// There is a connection for the first of the queue: it needs no permit.
    pub fn call_first(&mut self) {
        if let Some(first) = self.queue.waiters.front_mut()
            && std::mem::take(&mut first.has_claim)
        {
            self.withdraw();
        }
    }

    fn withdraw(&mut self) {
        let left = self.shared.connections.leave(self.shard);
        self.queue.late += usize::from(!left);
    }

    /// Whether a permit is at hand for the first of the queue.
    pub fn has_granted(&self) -> bool {
        !self.queue.granted.is_empty()
    }

    /// Leaves the queue: with a connection, or because the client is gone or the time over. The next one may then look.
    pub fn leave(&mut self, id: WaiterId) {
        let Some(waiter) = self.queue.find(id).and_then(|at| {
            if at == 0 {
                self.picked = None;
            }
            self.queue.waiters.remove(at)
        }) else {
            return;
        };
        if waiter.has_claim {
            self.withdraw();
        }
        if self.queue.waiters.is_empty() {
            self.queue.turn = None;
            // Nobody is here to use them: they go to others that wait.
            self.queue.granted.clear();
        }
    }

    /// The request that found no permit is refused: the endpoint that was picked for it is not for another. One that was
    /// picked for the first of the queue stays.
    pub fn forget_pick(&mut self) {
        if self.queue.waiters.is_empty() {
            self.picked = None;
        }
    }

    /// Takes the permits that other shards have handed to this one; those that nobody waits for are given back.
    pub fn take_grants(&mut self) {
        let granted: Vec<Permit> = self.shared.connections.take_grants(self.shard).collect();
        for permit in granted {
            let is_late = self.queue.late > 0;
            self.queue.late -= usize::from(is_late);
            let mut waiters = self.queue.waiters.iter_mut();
            if let Some(waiter) = waiters.find(|waiter| waiter.has_claim) {
                waiter.has_claim = false;
                if is_late {
                    // It was for one that has left. Who gets it in its place still counts as one that waits.
                    self.withdraw();
                }
            }
            if !self.queue.waiters.is_empty() {
                self.queue.granted.push(permit);
            }
        }
    }

    /// The connection that has idled longest, to be closed because a permit is wanted; it is known here no more.
    pub fn give_up_idle(&mut self) -> Option<Victim> {
        let idle = self
            .endpoints
            .iter()
            .filter_map(|state| state.idle.oldest())
            .map(|idle| (idle.since, Victim::Idle(idle.conn)));
        let shared = self
            .endpoints
            .iter()
            .flat_map(|state| &state.shared)
            .filter(|shared| shared.streams == 0)
            .map(|shared| (shared.since, Victim::Shared(shared.conn)));
        let (_, victim) = idle.chain(shared).min_by_key(|(since, _)| *since)?;
        match victim {
            Victim::Idle(conn) => self.forget(conn),
            Victim::Shared(conn) => self.unshare(conn),
        }
        Some(victim)
    }

    /// The idle connections to close because other shards wait: as many as they want, unless requests of this shard wait
    /// for them, too.
    pub fn reclaim(&mut self) -> Vec<Victim> {
        let mut victims = Vec::new();
        if self.queue.waiters.is_empty() {
            let wanted = self.shared.connections.wanted_by_others(self.shard);
            victims.extend((0..wanted).map_while(|_| self.give_up_idle()));
        }
        victims
    }

    /// Whether a connection that could carry another request is to be given up instead, because other shards wait: at
    /// once when nobody waits here, else when this shard's turn is over.
    pub fn is_turn_over(&mut self, now: Instant) -> bool {
        if self.spec.limits.connections == u32::MAX
            || self.shared.connections.wanted_by_others(self.shard) == 0
        {
            self.queue.turn = None;
            return false;
        }
        let since = *self.queue.turn.get_or_insert(now);
        let is_over = self.queue.waiters.is_empty() || now.saturating_duration_since(since) >= TURN;
        if is_over {
            self.queue.turn = None;
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::Group;
    use super::super::tests::{any, spec};
    use super::super::{Acquired, AcquiredStream, ClusterSpec, EndpointId};
    use super::*;
    use crate::random::Random;
    use crate::shared::{Bell, ClusterShared, Limits};
    use std::sync::Arc;

    #[derive(Debug)]
    struct Silent;

    impl Bell for Silent {
        fn ring(&self, _shard: usize) {}
    }

    fn shards(limits: Limits, count: usize) -> (Vec<Cluster>, Random) {
        let mut random = Random::from_seed(7);
        let shared = Arc::new(ClusterShared::for_shards(
            limits,
            count,
            Arc::new(Silent),
            Instant::now(),
        ));
        let spec = Arc::new(ClusterSpec {
            limits,
            ..ClusterSpec::clone(&spec(&[1]))
        });
        let clusters = (0..count)
            .map(|shard| {
                let (spec, shared) = (Arc::clone(&spec), Arc::clone(&shared));
                Cluster::new(spec, shared, Instant::now(), &mut random).on_shard(shard)
            })
            .collect();
        (clusters, random)
    }

    fn connections(connections: u32) -> Limits {
        Limits {
            connections,
            ..Limits::default()
        }
    }

    fn open(cluster: &mut Cluster, random: &mut Random) -> Option<(EndpointId, Permit)> {
        match cluster.acquire(any(), false, random) {
            Acquired::Open { endpoint, permit, .. } => Some((endpoint, permit)),
            Acquired::Overflow => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn those_that_wait_go_first_and_in_their_order() {
        let (mut all, mut random) = shards(connections(1), 1);
        let cluster = &mut all[0];
        let (endpoint, _permit) = open(cluster, &mut random).unwrap();
        assert!(open(cluster, &mut random).is_none());
        let (a, b) = (cluster.wait().unwrap(), cluster.wait().unwrap());
        cluster.release(endpoint, Some(ConnId(3)), Instant::now());
        assert_eq!(cluster.shared().pending.held(), 2);
        cluster.call_first();
        assert_eq!(cluster.shared().pending.held(), 1, "the next request finds room");
        assert!(cluster.is_turn(Some(a)) && !cluster.is_turn(Some(b)) && !cluster.is_turn(None));
        assert!(matches!(
            cluster.acquire(any(), false, &mut random),
            Acquired::Use { conn: ConnId(3), .. }
        ));
        assert_eq!(cluster.first_waiter(), Some(a));
        let late = [cluster.wait().unwrap(), cluster.wait().unwrap()];
        late.into_iter().for_each(|place| cluster.leave(place));
        cluster.leave(late[0]);
        assert!(
            cluster.is_turn(Some(a)),
            "who gives up further behind takes nobody's place"
        );
        cluster.leave(a);
        assert_eq!(cluster.first_waiter(), Some(b));
        assert!(cluster.is_turn(Some(b)) && !cluster.is_turn(None));
        cluster.leave(b);
        assert!(cluster.is_turn(None));
        assert_eq!(
            (cluster.first_waiter(), cluster.shared().pending.held()),
            (None, 0)
        );
    }

    #[test]
    fn a_permit_on_its_way_to_one_that_has_left_takes_nobodys_place() {
        let limits = Limits {
            pending: 1,
            ..connections(1)
        };
        let (mut all, mut random) = shards(limits, 2);
        let (endpoint, held) = open(&mut all[1], &mut random).unwrap();
        let gone = all[0].wait().unwrap();
        drop(held);
        all[1].release(endpoint, None, Instant::now());
        all[0].leave(gone);
        let next = all[0].wait().unwrap();
        all[0].take_grants();
        assert!(all[0].has_granted(), "it is for the next");
        assert_eq!(all[0].shared().pending.held(), 0, "who waits no more");
        let _held = open(&mut all[0], &mut random).unwrap();
        all[0].leave(next);
        assert!(all[1].wait().is_ok());
    }

    #[test]
    fn a_permit_is_late_once() {
        let (mut all, mut random) = shards(connections(1), 2);
        let (endpoint, held) = open(&mut all[1], &mut random).unwrap();
        let gone = all[0].wait().unwrap();
        drop(held);
        all[1].release(endpoint, None, Instant::now());
        all[0].leave(gone);
        let mut waiting = [(); 3].map(|()| all[0].wait().unwrap()).into_iter();
        for left in [2, 1, 0] {
            all[0].take_grants();
            assert_eq!(all[0].shared().pending.held(), left, "the others wait on");
            let (_, held) = open(&mut all[0], &mut random).unwrap();
            all[0].leave(waiting.next().unwrap());
            drop(held);
        }
    }

    #[test]
    fn who_is_refused_leaves_the_pick_of_the_first_in_the_queue() {
        let (mut all, mut random) = shards(connections(1), 1);
        let cluster = &mut all[0];
        let _held = open(cluster, &mut random).unwrap();
        assert!(open(cluster, &mut random).is_none());
        let first = cluster.wait().unwrap();
        cluster.forget_pick();
        assert!(cluster.picked.is_some());
        cluster.leave(first);
        assert!(cluster.picked.is_none());
        assert!(open(cluster, &mut random).is_none());
        assert!(cluster.picked.is_some());
        cluster.forget_pick();
        assert!(cluster.picked.is_none(), "nobody else is to have it");
    }

    #[test]
    fn who_had_a_turn_and_found_nothing_waits_on() {
        let (mut all, mut random) = shards(connections(1), 1);
        let cluster = &mut all[0];
        let (endpoint, held) = open(cluster, &mut random).unwrap();
        assert!(open(cluster, &mut random).is_none());
        let (first, second) = (cluster.wait().unwrap(), cluster.wait().unwrap());
        cluster.call_first();
        assert_eq!(cluster.shared().pending.held(), 1);
        for _ in 0..2 {
            cluster.wait_on(first);
            assert_eq!(cluster.shared().pending.held(), 2, "one claim for each");
            assert!(cluster.is_turn(Some(first)) && !cluster.has_granted());
        }
        drop(held);
        cluster.release(endpoint, None, Instant::now());
        cluster.take_grants();
        assert!(cluster.has_granted());
        let (_, held) = open(cluster, &mut random).unwrap();
        cluster.leave(first);
        // The second is called for a connection that ends before it looks: there is a permit at once.
        cluster.call_first();
        drop(held);
        assert!(!cluster.has_granted());
        cluster.wait_on(second);
        assert!(cluster.has_granted() && cluster.shared().pending.held() == 0);
        cluster.leave(second);
        assert_eq!(cluster.shared().connections.held(), 0);
        cluster.wait_on(second);
        assert!(
            !cluster.has_granted() && cluster.shared().pending.held() == 0,
            "it has left"
        );
    }

    #[test]
    fn a_queue_has_as_many_places_as_the_limit_says() {
        let limits = Limits {
            pending: 2,
            ..connections(1)
        };
        let (mut all, mut random) = shards(limits, 2);
        let _held = open(&mut all[0], &mut random).unwrap();
        let first = all[0].wait().unwrap();
        assert!(all[1].wait().is_ok(), "one for both shards");
        assert_eq!(all[1].wait(), Err(Limit::Pending));
        all[0].leave(first);
        assert!(all[1].wait().is_ok());
    }

    #[test]
    fn requests_are_counted_when_they_are_limited() {
        let limits = Limits {
            requests: 1,
            ..Limits::default()
        };
        let (all, _) = shards(limits, 2);
        let held = all[0].admit().unwrap();
        assert!(held.is_some());
        assert_eq!(all[1].admit().unwrap_err(), Limit::Requests);
        drop(held);
        assert!(all[1].admit().is_ok());
        let (free, _) = shards(Limits::default(), 1);
        assert!(free[0].admit().unwrap().is_none());
        assert_eq!(free[0].shared().requests.held(), 0);
    }

    #[test]
    fn an_idle_connection_is_closed_when_another_shard_waits() {
        let (mut all, mut random) = shards(connections(2), 2);
        let now = Instant::now();
        let opened = [(); 2].map(|()| open(&mut all[0], &mut random).unwrap());
        for (conn, (endpoint, _)) in (5..).zip(&opened) {
            all[0].release(
                *endpoint,
                Some(ConnId(conn)),
                now + Duration::from_secs(u64::from(conn)),
            );
        }
        let mut permits: Vec<Permit> = opened.into_iter().map(|(_, permit)| permit).collect();
        assert!(open(&mut all[1], &mut random).is_none());
        let place = all[1].wait().unwrap();
        let (left, right) = all.split_at_mut(1);
        let victims = left[0].reclaim();
        assert_eq!(
            victims,
            [Victim::Idle(ConnId(5))],
            "the longest idle, and no more than are wanted"
        );
        permits.remove(0);
        right[0].take_grants();
        assert!(right[0].has_granted() && right[0].is_turn(Some(place)));
        let (_, permit) = open(&mut right[0], &mut random).unwrap();
        right[0].leave(place);
        assert_eq!(right[0].shared().connections.held(), 2);
        assert!(left[0].reclaim().is_empty());
        drop(permit);
    }

    #[test]
    fn a_shard_gives_a_connection_up_when_its_turn_is_over() {
        let (mut all, mut random) = shards(connections(1), 2);
        let now = Instant::now();
        let _held = open(&mut all[0], &mut random).unwrap();
        assert!(!all[0].is_turn_over(now), "nobody else waits");
        all[1].wait().unwrap();
        assert!(all[0].is_turn_over(now), "nobody waits here");
        let own = all[0].wait().unwrap();
        assert!(!all[0].is_turn_over(now) && !all[0].is_turn_over(now + TURN / 2));
        assert!(all[0].is_turn_over(now + TURN));
        assert!(!all[0].is_turn_over(now + TURN), "a new one begins");
        all[0].leave(own);
    }

    #[test]
    fn a_permit_that_nobody_waits_for_any_more_is_given_back() {
        let (mut all, mut random) = shards(connections(1), 2);
        let held = open(&mut all[0], &mut random).unwrap();
        let (a, b) = (all[1].wait().unwrap(), all[1].wait().unwrap());
        drop(held);
        all[1].leave(a);
        all[1].take_grants();
        assert!(
            all[1].has_granted(),
            "the second of the queue gets what was meant for the first"
        );
        all[1].leave(b);
        assert_eq!(all[1].shared().connections.held(), 0);
        let late = all[1].wait();
        assert!(
            late.is_ok() && all[1].has_granted(),
            "a permit that is free is not waited for"
        );
    }

    #[test]
    fn an_idle_shared_connection_is_given_up_too() {
        let (mut all, mut random) = shards(connections(1), 1);
        let cluster = &mut all[0];
        let now = Instant::now();
        let AcquiredStream::Open {
            endpoint,
            permit: _permit,
            ..
        } = cluster.acquire_stream(any(), |_| true, &mut random)
        else {
            panic!("nothing is open");
        };
        let conn = cluster.share(endpoint, Group::ALL, 100, now);
        let refused = cluster.acquire_stream(any(), |_| false, &mut random);
        assert!(matches!(refused, AcquiredStream::Overflow), "of another name");
        assert_eq!(cluster.give_up_idle(), None, "it has a stream");
        cluster.release_stream(endpoint, conn, now);
        assert_eq!(cluster.give_up_idle(), Some(Victim::Shared(conn)));
        assert!(!cluster.is_shared(conn));
    }
}
