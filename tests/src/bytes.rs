//! Peers and clients of plain bytes, for connections that are carried and not understood.

use crate::deadline::SOON;
use crate::upstream::LiveStreams;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

type Serve = dyn Fn(&mut TcpStream) + Send + Sync;

struct Shared {
    serve: Box<Serve>,
    accepted: AtomicUsize,
    stopping: AtomicBool,
    live: LiveStreams,
}

/// A listening peer that does with each connection what a function says; it ends when dropped.
pub struct BytePeer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for BytePeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BytePeer({})", self.address)
    }
}

impl BytePeer {
    /// Serves each connection by the function, and closes it behind it.
    pub fn start(serve: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = listener.local_addr().expect("a local address");
        let shared = Arc::new(Shared {
            serve: Box::new(serve),
            accepted: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            live: LiveStreams::default(),
        });
        let state = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &state));
        Self { address, shared }
    }

    /// Sends everything back, and ends when the client has.
    pub fn echo() -> Self {
        Self::start(|stream| {
            let mut block = [0; 16 * 1024];
            while let Ok(got) = stream.read(&mut block) {
                if got == 0 || stream.write_all(&block[..got]).is_err() {
                    return;
                }
            }
        })
    }

    /// Says its name and ends.
    pub fn naming(name: &'static str) -> Self {
        Self::start(move |stream| {
            let _may_be_gone = stream.write_all(name.as_bytes());
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it took.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for BytePeer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _wake = TcpStream::connect(self.address);
        self.shared.live.shut_down();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((mut stream, _)) = listener.accept() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
        shared.live.add(number, &stream);
        let state = Arc::clone(shared);
        thread::spawn(move || {
            (state.serve)(&mut stream);
            state.live.remove(number);
        });
    }
}

/// Connects, with time-outs.
pub fn connect(address: SocketAddr) -> TcpStream {
    try_connect(address).expect("a connection")
}

/// Connects, with time-outs, or says why not: a reset may overtake the connect itself.
pub fn try_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Everything until the peer ends; panics on a reset or when it does not end.
pub fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("an orderly end");
    all
}

/// Bytes that no part of a buffer repeats, the same each time.
pub fn pattern(length: usize) -> Vec<u8> {
    let byte = |at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
    (0..length).map(byte).collect()
}

/// Carries connections to an address; what the client says first goes through a function that sends it on.
///
/// Between a real client and a gateway it makes hellos of TLS arrive in forms in which no client sends them.
pub fn relay(to: SocketAddr, hello: impl Fn(&[u8], &mut TcpStream) + Send + Sync + 'static) -> BytePeer {
    BytePeer::start(move |client| {
        let mut server = connect(to);
        let record = read_record(client);
        hello(&record, &mut server);
        let (mut back, mut forth) = (
            server.try_clone().expect("a handle"),
            client.try_clone().expect("a handle"),
        );
        let answers = thread::spawn(move || {
            let _ended = io::copy(&mut back, &mut forth);
            let _gone = forth.shutdown(Shutdown::Write);
        });
        let _ended = io::copy(client, &mut server);
        let _gone = server.shutdown(Shutdown::Write);
        let _done = answers.join();
    })
}

/// The next TLS record of a stream, its header included.
fn read_record(stream: &mut TcpStream) -> Vec<u8> {
    let mut record = vec![0; 5];
    if stream.read_exact(&mut record).is_err() {
        return Vec::new();
    }
    let length = usize::from(record[3]) << 8 | usize::from(record[4]);
    record.resize(5 + length, 0);
    let _as_far_as_it_came = stream.read_exact(&mut record[5..]);
    record
}

/// The first record that openssl sends when it asks for this name: its hello.
pub fn hello_of_openssl(name: &str) -> Vec<u8> {
    let (sender, hellos) = std::sync::mpsc::channel();
    let peer = BytePeer::start(move |stream| {
        let _nobody_waits = sender.send(read_record(stream));
    });
    let _refused = crate::openssl::Client::new(peer.address(), name).refused();
    hellos.recv_timeout(SOON).expect("a hello")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_through_a_relay() {
        let echo = BytePeer::echo();
        let relay = relay(echo.address(), |record, server| {
            server.write_all(record).expect("the first record is taken");
        });
        let mut client = connect(relay.address());
        client.write_all(b"\x16\x03\x01\x00\x02abcd").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut client), b"\x16\x03\x01\x00\x02abcd");
        assert_eq!((echo.accepted(), relay.accepted()), (1, 1));
    }

    #[test]
    fn a_hello_of_openssl_is_one_record_with_the_name() {
        let hello = hello_of_openssl("a.example");
        assert_eq!(hello[..3], [22, 3, 1]);
        assert!(hello.windows(9).any(|part| part == b"a.example"));
        assert_eq!(
            hello.len(),
            5 + usize::from(hello[4]) + 256 * usize::from(hello[3])
        );
    }
}
