//! Making a connection to an endpoint.

use super::{Connection, Open};
use crate::io::buffer::Pool;
use crate::io::clock;
use crate::io::h1::MessageReader;
use crate::io::stream::Stream;
use crate::io::timer::Wheel;
use isthmus_core::cluster::TcpKeepalive;
use isthmus_core::limits::MessageLimits;
use isthmus_core::reply::Cause;
use isthmus_core::shared::Permit;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use std::future::poll_fn;
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

/// Connects a socket within `timeout`, and shakes hands on it.
pub async fn open(
    address: SocketAddr,
    timeout: Duration,
    keepalive: Option<&TcpKeepalive>,
    secure: Option<&Secure>,
    pool: &Pool,
    wheel: &Wheel,
) -> Result<Stream, Cause> {
    let before = clock::now();
    let mut stream = match Stream::connect(address, timeout).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return Err(Cause::ConnectTimeout),
        Err(_) => return Err(Cause::ConnectFailed),
    };
    if let Some(keepalive) = keepalive {
        stream.set_keepalive(keepalive);
    }
    let Some(Secure { config, name }) = secure else {
        return Ok(stream);
    };
    let name = ServerName::try_from(&**name).map_err(|_| Cause::UpstreamTls)?;
    let connection =
        ClientConnection::new(Arc::clone(config), name.to_owned()).map_err(|_| Cause::UpstreamTls)?;
    stream.begin_tls(connection, pool);
    let left = timeout.saturating_sub(clock::now().saturating_duration_since(before));
    let deadline = wheel.timer();
    deadline.set(left.max(Duration::from_millis(1)));
    let shaken = poll_fn(|cx| match stream.poll_handshake(&mut &[][..], cx) {
        Poll::Pending => deadline.poll(cx).map(|()| Err(Cause::ConnectTimeout)),
        shaken => shaken.map_err(|error| {
            tracing::debug!(%address, %error, "the upstream's handshake failed");
            Cause::UpstreamTls
        }),
    });
    shaken.await?;
    Ok(stream)
}

/// Connects within `timeout`. The permit is given back when it fails.
#[allow(
    clippy::too_many_arguments,
    reason = "each is a part of the connection that is made"
)]
pub async fn connect(
    address: SocketAddr,
    timeout: Duration,
    keepalive: Option<TcpKeepalive>,
    secure: Option<Secure>,
    permit: Permit,
    pool: &Pool,
    wheel: &Wheel,
    limits: MessageLimits,
    open: Open,
) -> Result<Box<Connection>, Cause> {
    let stream = self::open(address, timeout, keepalive.as_ref(), secure.as_ref(), pool, wheel).await?;
    Ok(Box::new(Connection {
        stream,
        reader: MessageReader::new(pool, limits),
        address,
        name: secure.map(|secure| secure.name),
        requests: 0,
        is_doubtful: false,
        permit,
        open,
    }))
}
