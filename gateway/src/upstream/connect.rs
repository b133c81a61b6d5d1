//! Making a connection to an endpoint.

use super::{Connection, Open, race};
use crate::io::buffer::Pool;
use crate::io::clock;
use crate::io::h1::MessageReader;
use crate::io::stream::Stream;
use crate::io::timer::Wheel;
use crate::io::tls::HandshakeError;
use crate::tls::classify;
use isthmus_core::cluster::{ProxyVersion, TcpKeepalive};
use isthmus_core::endpoint::Targets;
use isthmus_core::limits::MessageLimits;
use isthmus_core::proxy_protocol::{self, Addresses};
use isthmus_core::reply::Cause;
use isthmus_core::shared::Permit;
use isthmus_core::tls::HandshakeFailure;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use std::future::poll_fn;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// How a connection is secured.
#[derive(Clone)]
pub struct Secure {
    /// What is shown and demanded.
    pub config: Arc<ClientConfig>,
    /// The name that is asked for, and that the upstream's certificate must have.
    pub name: Box<str>,
}

/// What a connection is to be like.
#[derive(Clone)]
pub struct Wanted {
    /// Where it may lead; None for one address.
    pub targets: Option<Targets>,
    /// How long making it may take.
    pub timeout: Duration,
    /// How the kernel probes it when it is silent.
    pub keepalive: Option<TcpKeepalive>,
    /// The PROXY header that it begins with, and what that says.
    pub proxy_header: Option<(ProxyVersion, Addresses)>,
    /// How it is secured; None for plaintext.
    pub secure: Option<Secure>,
}

/// Connects a socket, and shakes hands on it. Answers also where it leads.
pub async fn open(
    address: SocketAddr,
    wanted: &Wanted,
    pool: &Pool,
    wheel: &Wheel,
) -> Result<(Stream, SocketAddr), Cause> {
    let timeout = wanted.timeout;
    let before = clock::now();
    let connected = match &wanted.targets {
        Some(Targets::Addresses(targets)) if targets.len() > 1 => {
            race::connect(targets, timeout, wheel).await
        }
        Some(Targets::Socket(path)) => {
            let connected = Stream::connect_to_socket(path, timeout).await;
            connected.map(|stream| (stream, address))
        }
        _ => Stream::connect(address, timeout)
            .await
            .map(|stream| (stream, address)),
    };
    let (mut stream, address) = match connected {
        Ok(connected) => connected,
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return Err(Cause::ConnectTimeout),
        Err(_) => return Err(Cause::ConnectFailed),
    };
    if let Some(keepalive) = &wanted.keepalive {
        stream.set_keepalive(keepalive);
    }
    if let Some((version, addresses)) = &wanted.proxy_header {
        let mut header = Vec::with_capacity(proxy_protocol::V1_BYTES_MAX);
        match version {
            ProxyVersion::V1 => proxy_protocol::encode_v1(addresses, &mut header),
            ProxyVersion::V2 => proxy_protocol::encode_v2(addresses, &mut header),
        }
        // The first bytes of a connection always fit into its buffer.
        let written = poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(&header)])).await;
        if !matches!(written, Ok(written) if written == header.len()) {
            return Err(Cause::ConnectFailed);
        }
    }
    let Some(Secure { config, name }) = &wanted.secure else {
        return Ok((stream, address));
    };
    let name = ServerName::try_from(&**name).map_err(|_| Cause::UpstreamTls(HandshakeFailure::Other))?;
    let connection = ClientConnection::new(Arc::clone(config), name.to_owned())
        .map_err(|_| Cause::UpstreamTls(HandshakeFailure::Other))?;
    stream.begin_tls(connection, pool);
    let left = timeout.saturating_sub(clock::now().saturating_duration_since(before));
    let deadline = wheel.timer();
    deadline.set(left.max(Duration::from_millis(1)));
    let shaken = poll_fn(|cx| match stream.poll_handshake(&mut &[][..], cx) {
        Poll::Pending => deadline.poll(cx).map(|()| Err(Cause::ConnectTimeout)),
        shaken => shaken.map_err(|error| {
            tracing::debug!(%address, %error, "the upstream's handshake failed");
            Cause::UpstreamTls(match &error {
                HandshakeError::Tls(error) => classify(error),
                HandshakeError::Closed | HandshakeError::Io(_) => HandshakeFailure::Closed,
            })
        }),
    });
    shaken.await?;
    Ok((stream, address))
}

/// Connects. The permit is given back when it fails or is given up, after its socket is gone.
pub async fn connect(
    address: SocketAddr,
    wanted: Wanted,
    permit: Permit,
    pool: &Pool,
    wheel: &Wheel,
    limits: MessageLimits,
    open: Open,
) -> Result<Box<Connection>, Cause> {
    let (stream, address) = self::open(address, &wanted, pool, wheel).await?;
    Ok(Box::new(Connection {
        stream,
        reader: MessageReader::new(pool, limits),
        address,
        is_for_one: wanted.proxy_header.is_some(),
        config: wanted.secure.as_ref().map(|secure| Arc::clone(&secure.config)),
        name: wanted.secure.map(|secure| secure.name),
        born: clock::now(),
        requests: 0,
        is_doubtful: false,
        is_tunnel: false,
        permit,
        open,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::executor::{self, Heartbeat, Settings};
    use isthmus_core::shared::Budget;
    use std::future::Future;
    use std::io::{ErrorKind, Read};
    use std::net::TcpListener;
    use std::rc::Rc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    /// Accepts connections until `over`; answers the most that were open at the same time.
    fn most_open(listener: &TcpListener, over: &AtomicBool) -> usize {
        listener.set_nonblocking(true).unwrap();
        let (mut open, mut most) = (Vec::new(), 0);
        while !over.load(SeqCst) {
            let Ok((stream, _)) = listener.accept() else {
                std::thread::yield_now();
                continue;
            };
            // What has ended before the new one began is known to have ended.
            open.retain_mut(|stream: &mut std::net::TcpStream| {
                matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
            });
            stream.set_nonblocking(true).unwrap();
            open.push(stream);
            most = most.max(open.len());
        }
        most
    }

    #[test]
    fn a_connection_that_is_given_up_half_made_is_gone_before_its_permit_is_free() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&over);
        let counting = std::thread::spawn(move || most_open(&listener, &theirs));
        let core = executor::granted_cores().first().copied();
        let shard = executor::spawn_shard(
            "given-up",
            core,
            Settings::default(),
            Heartbeat::default(),
            move |wheel| async move {
                let (budget, pool) = (Budget::new(1), Pool::default());
                for round in 0..100u32 {
                    let permit = budget.acquire().expect("nobody else has it");
                    let wanted = Wanted {
                        targets: None,
                        timeout: Duration::from_secs(30),
                        keepalive: None,
                        proxy_header: None,
                        secure: None,
                    };
                    let limits = isthmus_core::limits::Settings::default().message_limits();
                    let mut making = Box::pin(connect(
                        address,
                        wanted,
                        permit,
                        &pool,
                        &wheel,
                        limits,
                        Open::new(&Rc::default()),
                    ));
                    poll_fn(|cx| Poll::Ready(making.as_mut().poll(cx).is_ready())).await;
                    if round % 2 == 0 {
                        // So that the ring has seen it.
                        executor::turn().await;
                    }
                    drop(making);
                }
            },
        );
        shard.unwrap().join().unwrap().unwrap();
        over.store(true, SeqCst);
        assert_eq!(counting.join().unwrap(), 1);
    }
}
