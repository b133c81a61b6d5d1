//! Overload of the gateway itself: what a shard takes on at a time, and what it refuses rather than collapse.
//!
//! Three things are bounded: connections, which wait in the kernel's queue and are refused when that is full (the setting
//! `connectionsPerShard`); requests in flight; and the bytes of buffers, which grow with clients and upstreams that are
//! slow. A request above a bound is answered at once with 503 and the flag OM, for next to nothing, so that those which
//! were taken on are served as well as ever. While buffers are at their bound no connection is accepted either. The admin,
//! metrics and health ports are another thread's, and stay out of this.

/// The bounds of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most requests in flight; `u64::MAX` for no bound.
    pub requests: u64,
    /// Bytes of buffers from which nothing new is taken on; `u64::MAX` for no bound.
    pub buffer_bytes: u64,
}

/// What a shard has taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Requests in flight, the one that is asked about among them.
    pub requests: u64,
    /// Bytes of its buffers.
    pub buffer_bytes: u64,
}

/// The bound that a request was above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shed {
    /// [`Bounds::requests`].
    Requests,
    /// [`Bounds::buffer_bytes`].
    Buffers,
}

/// Seconds after which a client that was refused may come again, as `retry-after` says it (RFC 9110, 10.2.3). Short:
/// what is shed is a peak.
pub const RETRY_AFTER_S: &[u8] = b"1";

/// Of the memory that the process may use, the part that buffers may have: the rest is for connections, their TLS and
/// the configuration.
const BUFFERS_PART: u64 = 2;
/// Buffers of a shard may have so much however little memory there is: less serves nobody.
const BUFFER_BYTES_MIN: u64 = 64 * 1024 * 1024;

impl Bounds {
    /// Bounds as the settings say them: 0 requests for no bound, and 0 bytes for half of the process's `memory`, divided
    /// among its shards; no bound when neither is known.
    pub fn new(requests: u64, buffer_bytes: u64, memory: Option<u64>, shards: u64) -> Self {
        let share = memory.map(|memory| (memory / BUFFERS_PART / shards.max(1)).max(BUFFER_BYTES_MIN));
        Self {
            requests: if requests == 0 { u64::MAX } else { requests },
            buffer_bytes: match (buffer_bytes, share) {
                (0, share) => share.unwrap_or(u64::MAX),
                (written, _) => written,
            },
        }
    }

    /// Whether a request is served.
    pub fn admit(&self, load: Load) -> Result<(), Shed> {
        if load.requests > self.requests {
            return Err(Shed::Requests);
        }
        if load.buffer_bytes >= self.buffer_bytes {
            return Err(Shed::Buffers);
        }
        Ok(())
    }

    /// Whether connections are accepted, as far as buffers are concerned.
    pub fn accepts(&self, load: Load) -> bool {
        load.buffer_bytes < self.buffer_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn load(requests: u64, buffer_bytes: u64) -> Load {
        Load {
            requests,
            buffer_bytes,
        }
    }

    #[test]
    fn a_request_above_a_bound_is_shed() {
        let bounds = Bounds::new(10, 1_000, None, 1);
        assert_eq!(bounds.admit(load(10, 999)), Ok(()), "the tenth is served");
        assert_eq!(bounds.admit(load(11, 0)), Err(Shed::Requests));
        assert_eq!(bounds.admit(load(1, 1_000)), Err(Shed::Buffers));
        assert!(bounds.accepts(load(11, 999)), "who comes may be told");
        assert!(!bounds.accepts(load(0, 1_000)));
    }

    #[test]
    fn what_is_not_written_follows_from_the_memory() {
        const GIB: u64 = 1 << 30;
        let bytes = |written, memory, shards| Bounds::new(0, written, memory, shards).buffer_bytes;
        assert_eq!(bytes(0, Some(8 * GIB), 4), GIB);
        assert_eq!(bytes(5, Some(8 * GIB), 4), 5);
        assert_eq!(bytes(0, Some(GIB), 64), BUFFER_BYTES_MIN);
        assert_eq!(bytes(0, None, 4), u64::MAX);
        let none = Bounds::new(0, 0, None, 1);
        assert_eq!(none.admit(load(u64::MAX, u64::MAX - 1)), Ok(()));
    }
}
