//! Upstreams: what becomes of a connection or a request, by how an endpoint behaves at the moment.

use isthmus_core::random::Random;
use std::fmt;

/// How an endpoint behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Quick and right.
    Well,
    /// Right, after a long time.
    Slow,
    /// It often answers with this status.
    Failing(u16),
    /// It takes requests and ends their connections.
    Resetting,
    /// Well and dead in turn, each for so long.
    Flapping(u64),
    /// It takes connections and never answers.
    HalfDead,
    /// It refuses connections.
    Dead,
    /// Nothing comes back from it.
    Gone,
    /// Dead until then, well afterwards.
    Recovering(u64),
}

/// What becomes of a connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connect {
    /// There is a connection after so many milliseconds.
    Made(u64),
    /// There is none after so many.
    Failed(u64),
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// An answer with this status begins.
    Answer(u16),
    /// The connection ends.
    Reset,
    /// The stream is refused.
    Refused,
    /// Nothing.
    Silence,
}

/// How long a connect may take.
const CONNECT_MS: u64 = 60;

impl Behaviour {
    pub(crate) fn any(random: &mut Random, now: u64) -> Self {
        match random.below(10) {
            0 | 1 => Self::Well,
            2 => Self::Slow,
            3 => Self::Failing(503),
            4 => Self::Failing([500, 502, 429][random.below(3) as usize]),
            5 => Self::Resetting,
            6 => Self::Flapping(50 + random.below(400)),
            7 => Self::HalfDead,
            8 => [Self::Dead, Self::Gone][random.below(2) as usize],
            _ => Self::Recovering(now + random.below(1_000)),
        }
    }

    fn is_dead(self, now: u64) -> bool {
        match self {
            Self::Dead => true,
            Self::Flapping(each) => (now / each) % 2 == 1,
            Self::Recovering(at) => now < at,
            _ => false,
        }
    }

    pub(crate) fn connect(self, now: u64, random: &mut Random) -> Connect {
        match self {
            Self::Gone => Connect::Failed(CONNECT_MS),
            _ if self.is_dead(now) => Connect::Failed(random.below(3)),
            _ => Connect::Made(random.below(4)),
        }
    }

    /// What becomes of a request, and after how many milliseconds.
    pub(crate) fn react(self, now: u64, random: &mut Random) -> (Reaction, u64) {
        let soon = 1 + random.below(12);
        match self {
            _ if self.is_dead(now) => (Reaction::Reset, random.below(3)),
            Self::Slow => (Reaction::Answer(200), 60 + random.below(300)),
            Self::Failing(status) if random.below(10) < 8 => (Reaction::Answer(status), soon),
            Self::Resetting if random.below(4) == 0 => (Reaction::Refused, soon),
            Self::Resetting if random.below(4) > 0 => (Reaction::Reset, soon),
            Self::HalfDead | Self::Gone => (Reaction::Silence, 0),
            _ => (
                Reaction::Answer([200, 200, 200, 404][random.below(4) as usize]),
                soon,
            ),
        }
    }
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
