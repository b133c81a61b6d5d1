//! The shell's floor: sockets, buffers, timers and tasks on a shard.
//!
//! Only this room (with `shard` and `mailbox`) names the runtime, and only this room holds unsafe code, so that the
//! runtime can be replaced and the unsafe code be read in one sitting. [`executor`] builds a shard's thread,
//! [`spawn`] starts tasks on it, [`clock`] and [`timer`] tell it the time, [`buffer`] lends it memory, [`heap`] gives
//! memory back, [`socket`] and [`stream`] are the network, with [`readiness`] below them, and [`tls`] between a stream and its user; [`h1`] and [`h2`] move messages of
//! HTTP/1.1 and HTTP/2 over a stream. [`inherit`] and [`handover`] are about sockets of other processes.

pub mod buffer;
pub mod clock;
pub mod executor;
pub mod h1;
pub mod h2;
pub mod handover;
pub mod heap;
pub mod inherit;
mod readiness;
pub mod socket;
pub mod spawn;
pub mod stream;
pub mod timer;
pub mod tls;
pub mod uring;
