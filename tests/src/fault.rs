//! Upstreams that are ill: each does one of the things that upstreams do when they fail.

use crate::upstream::LiveStreams;
use crate::wire::{Wire, WireError, declared_length};
use rustix::net::sockopt::set_socket_linger;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

pub use crate::port::HeldPort as RefusingPort;

/// The answer that is broken off or drawn out: 64 bytes of body.
pub const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 64\r\n\r\n\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

const STACK_BYTES: usize = 256 * 1024;
const BYTE_PACE: Duration = Duration::from_millis(1);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Reads requests and never answers.
    NeverAnswers,
    /// Closes as soon as a connection is there.
    ClosesAfterAccept,
    /// Resets as soon as a connection is there.
    ResetsAfterAccept,
    /// Closes when a request's head was read.
    ClosesAfterHead,
    /// Resets when a request's head was read.
    ResetsAfterHead,
    /// Sends half of an answer's head, then closes.
    ClosesInHead,
    /// Sends half of an answer's head, then resets.
    ResetsInHead,
    /// Sends an answer's head and half of its body, then closes.
    ClosesInBody,
    /// Sends an answer's head and half of its body, then resets.
    ResetsInBody,
    /// Sends an answer's head and half of its body, then nothing.
    StallsInBody,
    /// Answers rightly, one byte at a time.
    OneByteAtATime,
}

struct Shared {
    fault: Fault,
    accepted: AtomicUsize,
    open: AtomicUsize,
    stopping: AtomicBool,
    live: LiveStreams,
}

/// A listening peer with a fault; it ends when dropped.
pub struct FaultPeer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for FaultPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FaultPeer({:?} at {})", self.shared.fault, self.address)
    }
}

impl FaultPeer {
    /// Starts one.
    pub fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            fault,
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            live: LiveStreams::default(),
        });
        let state = shared.clone();
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || accept(&listener, &state))
            .expect("a thread");
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it took.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }
}

impl Drop for FaultPeer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _wake = TcpStream::connect(self.address);
        self.shared.live.shut_down();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
        match shared.fault {
            Fault::ClosesAfterAccept => {}
            Fault::ResetsAfterAccept => reset(&stream),
            _ => {
                shared.open.fetch_add(1, Ordering::SeqCst);
                shared.live.add(number, &stream);
                let state = shared.clone();
                let serve = move || {
                    let _end = serve_connection(stream, number, &state);
                    state.open.fetch_sub(1, Ordering::SeqCst);
                };
                thread::Builder::new()
                    .stack_size(STACK_BYTES)
                    .spawn(serve)
                    .expect("a thread");
            }
        }
    }
}

fn reset(stream: &TcpStream) {
    set_socket_linger(stream, Some(Duration::ZERO)).expect("SO_LINGER");
}

fn serve_connection(stream: TcpStream, number: usize, shared: &Shared) -> Result<(), WireError> {
    stream.set_nodelay(true)?;
    let mut wire = Wire::new(stream);
    let ended = act(&mut wire, shared.fault);
    shared.live.remove(number);
    ended
}

fn act(wire: &mut Wire, fault: Fault) -> Result<(), WireError> {
    let (half_head, half_body) = (30, ANSWER.len() - 32);
    loop {
        wire.start_line()?;
        let fields = wire.fields("head")?;
        if fault == Fault::ResetsAfterHead {
            reset(wire.stream());
            return Ok(());
        }
        if fault == Fault::ClosesAfterHead {
            return Ok(());
        }
        if let Some(length) = declared_length(&fields)? {
            wire.body(length)?;
        }
        let sent = match fault {
            Fault::NeverAnswers => 0,
            Fault::ClosesInHead | Fault::ResetsInHead => half_head,
            Fault::ClosesInBody | Fault::ResetsInBody | Fault::StallsInBody => half_body,
            _ => ANSWER.len(),
        };
        if fault == Fault::OneByteAtATime {
            one_byte_at_a_time(wire.stream_mut())?;
            continue;
        }
        wire.stream_mut().write_all(&ANSWER.as_bytes()[..sent])?;
        match fault {
            Fault::NeverAnswers | Fault::StallsInBody => while wire.fill()? > 0 {},
            // On loopback the bytes are with the peer before the reset, and Linux lets it read them first.
            Fault::ResetsInHead | Fault::ResetsInBody => reset(wire.stream()),
            _ => {}
        }
        return Ok(());
    }
}

fn one_byte_at_a_time(stream: &mut TcpStream) -> io::Result<()> {
    for byte in ANSWER.as_bytes() {
        stream.write_all(std::slice::from_ref(byte))?;
        thread::sleep(BYTE_PACE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::deadline::{SOON, eventually};

    fn outcome(fault: Fault) -> Result<usize, WireError> {
        let peer = FaultPeer::start(fault);
        // A reset may overtake the connect itself.
        let mut client = Client::try_connect(peer.address())?.patience(Duration::from_millis(400));
        let _may_be_gone = client.try_send("GET / HTTP/1.1\r\nhost: h\r\n\r\n");
        client.try_response(false).map(|response| response.body.len())
    }

    #[test]
    fn each_fault_is_seen_as_what_it_is() {
        assert_eq!(outcome(Fault::NeverAnswers), Err(WireError::TimedOut));
        assert_eq!(outcome(Fault::ResetsAfterAccept), Err(WireError::Reset));
        assert_eq!(outcome(Fault::ClosesAfterHead), Err(WireError::Closed));
        assert_eq!(outcome(Fault::ResetsAfterHead), Err(WireError::Reset));
        assert_eq!(outcome(Fault::ClosesInHead), Err(WireError::Truncated("head")));
        assert_eq!(outcome(Fault::ResetsInHead), Err(WireError::Reset));
        assert_eq!(outcome(Fault::ClosesInBody), Err(WireError::Truncated("body")));
        assert_eq!(outcome(Fault::ResetsInBody), Err(WireError::Reset));
        assert_eq!(outcome(Fault::StallsInBody), Err(WireError::TimedOut));
        assert_eq!(outcome(Fault::OneByteAtATime), Ok(64));
        let closed = outcome(Fault::ClosesAfterAccept);
        assert!(
            matches!(closed, Err(WireError::Closed | WireError::Reset)),
            "{closed:?}"
        );
    }

    #[test]
    fn connections_are_counted() {
        let peer = FaultPeer::start(Fault::NeverAnswers);
        let client = Client::connect(peer.address());
        eventually(SOON, "one open connection", || {
            (peer.accepted(), peer.open()) == (1, 1)
        });
        drop(client);
        eventually(SOON, "no open connection", || peer.open() == 0);
    }
}
