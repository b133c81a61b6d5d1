//! How a process leaves: what its connections are told, and when.
//!
//! First nothing changes but the readiness, so that load balancers send new clients elsewhere. Then answers announce
//! their connection's end, and connections that wait for a request are closed, each at a moment of its own: thousands
//! of clients that come back in one moment would be a load of their own. In the second half of the time tunnels are
//! asked to end, and what is left when it is over is cut.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Steps of a spread: each looks at every connection.
const STEPS: u128 = 16;
/// All connections.
const ALL: u8 = u8::MAX;

/// How far the process, or a listener, is on its way out, as its connections see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Drain {
    /// It stays.
    #[default]
    No,
    /// It is about to leave: answers announce their connection's end, and connections that wait are left alone, so
    /// that a client does not lose a request which crosses a close.
    Announced,
    /// It leaves.
    Going {
        /// Connections that wait are closed when their [`slot`] is below this; 255 means all.
        waiting: u8,
        /// The same for tunnels, which are asked to end.
        tunnels: u8,
    },
    /// Its time is over: everything ends now.
    Cut,
}

impl Drain {
    /// Connections that wait are all closed; tunnels go on.
    pub const CLOSING: Self = Self::Going {
        waiting: ALL,
        tunnels: 0,
    };

    /// Whether answers announce the end of their connection.
    pub fn is_announced(self) -> bool {
        self != Self::No
    }

    /// Whether a connection that waits for a request is closed.
    pub fn closes_waiting(self, slot: u8) -> bool {
        match self {
            Self::No | Self::Announced => false,
            Self::Going { waiting, .. } => is_reached(waiting, slot),
            Self::Cut => true,
        }
    }

    /// Whether a client that may open more streams is told not to. A listener that goes alone says so at once.
    pub fn closes_streams(self, slot: u8) -> bool {
        self == Self::Announced || self.closes_waiting(slot)
    }

    /// Whether no connection may wait for a request any more.
    pub fn closes_all_waiting(self) -> bool {
        matches!(self, Self::Going { waiting: ALL, .. } | Self::Cut)
    }

    /// Whether a tunnel is asked to end.
    pub fn ends_tunnel(self, slot: u8) -> bool {
        match self {
            Self::No | Self::Announced => false,
            Self::Going { tunnels, .. } => is_reached(tunnels, slot),
            Self::Cut => true,
        }
    }
}

fn is_reached(mark: u8, slot: u8) -> bool {
    mark == ALL || slot < mark
}

/// Where in a spread the connection of a client is: clients are spread evenly.
pub fn slot(peer: SocketAddr) -> u8 {
    let address = match peer.ip() {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let folded = (address ^ (address >> 64)) as u64 ^ u64::from(peer.port()).rotate_left(32);
    // Fibonacci hashing: neighbouring ports are far from each other.
    (folded.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

/// The way out of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// New connections are accepted until then.
    from: Instant,
    /// How long the closing of connections that wait is spread.
    spread: Duration,
    /// How long after `from` what is left is cut; None for never.
    timeout: Option<Duration>,
}

impl Plan {
    /// A process that is to end: it accepts for `delay` more, and ends at most `timeout` after that. What waits is
    /// told over as long as the delay was.
    pub fn leaving(now: Instant, delay: Duration, timeout: Duration) -> Self {
        Self {
            from: now + delay,
            spread: delay.min(timeout / 2),
            timeout: Some(timeout),
        }
    }

    /// A process whose place another one has taken: it accepts no more, and ends at most `timeout` later.
    pub fn replaced(now: Instant, timeout: Duration) -> Self {
        Self {
            from: now,
            spread: timeout / 4 * 3,
            timeout: Some(timeout),
        }
    }

    /// A process that ends at once.
    pub fn now(now: Instant) -> Self {
        Self {
            from: now,
            spread: Duration::ZERO,
            timeout: Some(Duration::ZERO),
        }
    }

    /// A process that stays, without its ports.
    pub fn staying(now: Instant, spread: Duration) -> Self {
        Self {
            from: now,
            spread,
            timeout: None,
        }
    }

    /// Whether new connections are accepted.
    pub fn accepts(&self, now: Instant) -> bool {
        now < self.from
    }

    /// What holds at a moment.
    pub fn at(&self, now: Instant) -> Drain {
        let Some(since) = now.checked_duration_since(self.from) else {
            return Drain::No;
        };
        if self.timeout.is_some_and(|timeout| since >= timeout) {
            return Drain::Cut;
        }
        let tunnels = self.timeout.map_or(0, |timeout| {
            ramp(since, self.spread.max(timeout / 2), timeout / 10 * 9)
        });
        Drain::Going {
            // Those that are busy hear of it by an answer first.
            waiting: ramp(since, self.spread / 2, self.spread),
            tunnels,
        }
    }

    /// How long everything has been cut; None as long as it is not.
    pub fn over_for(&self, now: Instant) -> Option<Duration> {
        now.checked_duration_since(self.from + self.timeout?)
    }
}

/// From 0 until `begin` to [`ALL`] from `end` on.
fn ramp(since: Duration, begin: Duration, end: Duration) -> u8 {
    if since >= end {
        return ALL;
    }
    let (done, whole) = (since.saturating_sub(begin).as_nanos(), (end - begin).as_nanos());
    let step = done * STEPS / whole.max(1);
    u8::try_from(step * (256 / STEPS)).unwrap_or(ALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn first_nothing_then_who_waits_then_tunnels_then_all() {
        let now = Instant::now();
        let plan = Plan::leaving(now, 5 * S, 20 * S);
        assert!(plan.accepts(now + 4 * S) && !plan.accepts(now + 5 * S));
        assert_eq!(plan.at(now + 4 * S), Drain::No);
        assert_eq!(Plan::now(now).at(now), Drain::Cut);
        assert_eq!(Plan::now(now).over_for(now + S), Some(S));
        let told = |at: Duration| match plan.at(now + 5 * S + at) {
            Drain::Going { waiting, tunnels } => (waiting, tunnels),
            other => panic!("{other:?}"),
        };
        assert_eq!(told(2 * S), (0, 0));
        let (waiting, tunnels) = told(4 * S);
        assert!((1..=254).contains(&waiting) && tunnels == 0, "{waiting}");
        assert_eq!(told(5 * S), (ALL, 0));
        assert_eq!(told(10 * S), (ALL, 0));
        let (_, tunnels) = told(14 * S);
        assert!((1..=254).contains(&tunnels), "{tunnels}");
        assert_eq!(told(18 * S), (ALL, ALL));
        assert_eq!(plan.at(now + 25 * S), Drain::Cut);
        assert_eq!(plan.over_for(now + 24 * S), None);
        assert_eq!(plan.over_for(now + 26 * S), Some(S));
    }

    #[test]
    fn without_a_delay_everybody_is_told_at_once() {
        let now = Instant::now();
        let plan = Plan::leaving(now, Duration::ZERO, 20 * S);
        assert_eq!(plan.at(now), Drain::CLOSING);
        let nothing = Plan::leaving(now, Duration::ZERO, Duration::ZERO);
        assert_eq!(nothing.at(now), Drain::Cut);
    }

    #[test]
    fn a_process_that_stays_cuts_nothing() {
        let now = Instant::now();
        let plan = Plan::staying(now, S);
        assert_eq!(plan.at(now + 1000 * S), Drain::CLOSING);
        assert_eq!(plan.over_for(now + 1000 * S), None);
    }

    #[test]
    fn clients_are_spread_evenly() {
        let mut quarters = [0; 4];
        for port in 32_768..60_000 {
            let slot = slot(SocketAddr::from(([127, 0, 0, 1], port)));
            quarters[usize::from(slot / 64)] += 1;
        }
        assert!(quarters.iter().all(|&count| count > 6_000), "{quarters:?}");
        // The mark passes each of them, and the last one reaches all.
        for slot in 0..=u8::MAX {
            assert!(
                !Drain::Going {
                    waiting: 0,
                    tunnels: 0
                }
                .closes_waiting(slot)
            );
            assert!(Drain::CLOSING.closes_waiting(slot));
        }
    }
}
