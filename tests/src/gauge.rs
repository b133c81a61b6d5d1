//! An upstream that counts what it has at a time: connections that the gateway keeps open, and requests under way.

use rustix::net::{RecvFlags, recv};
use std::io::{Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const STACK_BYTES: usize = 128 * 1024;

#[derive(Debug)]
struct Counts {
    open: Mutex<Vec<TcpStream>>,
    connections: AtomicUsize,
    connections_max: AtomicUsize,
    requests: AtomicUsize,
    requests_max: AtomicUsize,
    served: AtomicU64,
    status: AtomicU16,
    ending: AtomicBool,
}

/// The upstream; it ends with this.
#[derive(Debug)]
pub struct Gauge {
    address: SocketAddr,
    counts: Arc<Counts>,
}

impl Gauge {
    /// Answers each GET with 200 after `work`.
    pub fn start(work: Duration) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let counts = Arc::new(Counts {
            open: Mutex::default(),
            connections: AtomicUsize::new(0),
            connections_max: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            requests_max: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            status: AtomicU16::new(200),
            ending: AtomicBool::new(false),
        });
        let shared = Arc::clone(&counts);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.ending.load(Ordering::Acquire) {
                    return;
                }
                shared.note(&stream);
                let counts = Arc::clone(&shared);
                let serve = move || serve(stream, work, &counts);
                thread::Builder::new()
                    .stack_size(STACK_BYTES)
                    .spawn(serve)
                    .expect("a thread");
            }
        });
        Self { address, counts }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that it has accepted.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Acquire)
    }

    /// Most connections that the gateway had open at a time.
    pub fn connections_max(&self) -> usize {
        self.counts.connections_max.load(Ordering::Acquire)
    }

    /// Most requests that were under way at a time.
    pub fn requests_max(&self) -> usize {
        self.counts.requests_max.load(Ordering::Acquire)
    }

    /// Requests under way.
    pub fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::Acquire)
    }

    /// Requests that it has answered.
    pub fn served(&self) -> u64 {
        self.counts.served.load(Ordering::Acquire)
    }

    /// Answers with this status from now on.
    pub fn answer(&self, status: u16) {
        self.counts.status.store(status, Ordering::Release);
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.counts.ending.store(true, Ordering::Release);
        let _wakes_the_listener = TcpStream::connect(self.address);
    }
}

impl Counts {
    /// A connection has come. Those that the gateway has closed before count no more, whether or not their thread has
    /// noticed: the kernel knows.
    fn note(&self, stream: &TcpStream) {
        self.connections.fetch_add(1, Ordering::AcqRel);
        let mut open = self.open.lock().expect("nobody panics with it");
        open.retain(|other| {
            let mut byte = [MaybeUninit::<u8>::uninit(); 1];
            !matches!(
                recv(other, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT),
                Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET)
            )
        });
        open.push(stream.try_clone().expect("a descriptor"));
        self.connections_max.fetch_max(open.len(), Ordering::AcqRel);
    }
}

fn serve(mut stream: TcpStream, work: Duration, counts: &Counts) {
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(end) = got.windows(4).position(|window| window == b"\r\n\r\n") {
            got.drain(..end + 4);
            let now = counts.requests.fetch_add(1, Ordering::AcqRel) + 1;
            counts.requests_max.fetch_max(now, Ordering::AcqRel);
            // The time that its work takes.
            thread::sleep(work);
            counts.requests.fetch_sub(1, Ordering::AcqRel);
            counts.served.fetch_add(1, Ordering::AcqRel);
            let status = counts.status.load(Ordering::Acquire);
            let answer = format!("HTTP/1.1 {status} Said\r\ncontent-length: 2\r\n\r\nok");
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(read) => got.extend_from_slice(&buffer[..read]),
        }
    }
}
