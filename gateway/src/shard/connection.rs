//! A client's connection from accept to close: what is inside of it is found out, and then it is either carried as
//! bytes, or asked for requests, which are handed to the proxy.

use super::accept::Counted;
use crate::downstream::h1::{Connection, Next};
use crate::downstream::h2::{self, PREFACE};
use crate::downstream::tls::{self, Secured};
use crate::downstream::{Downstream, proxy_header};
use crate::io::buffer::ReadBuffer;
use crate::io::spawn;
use crate::io::stream::Stream;
use crate::proxy::exchange::{After, Exchange};
use crate::proxy::http;
use crate::proxy::side::{Connect, Socket};
use crate::proxy::{Context, ListenerState, tcp};
use isthmus_core::drain::Drain;
use isthmus_core::h2::frame::code;
use isthmus_core::limits::MessageLimits;
use isthmus_core::listener::{Accepts, ChainAction, ProxyProtocol, TcpRoute, auto_passthrough};
use isthmus_core::name::ClusterKey;
use isthmus_core::reply::Cause;
use isthmus_core::route::split_port;
use isthmus_core::tls::HandshakeFailure;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

/// HTTP/2 as TLS names it (RFC 9113, 3.2).
const HTTP2_ALPN: &[u8] = b"h2";

/// Serves a connection until it ends.
pub(super) async fn serve(
    context: Rc<Context>,
    listener: Rc<ListenerState>,
    stream: Stream,
    peer: SocketAddr,
    drain: Rc<Cell<Drain>>,
    _counted: Counted,
) {
    let plain = {
        let serving = listener.serving.borrow();
        matches!(serving.accepts(), Accepts::Http) && serving.proxy_protocol() == ProxyProtocol::Off
    };
    let http = |stream, begun, secured: Option<Rc<Secured>>, peer| {
        let limits = limits(&context, &listener, secured.as_deref());
        Connection::new(stream, begun, secured, peer, limits, &context.wheel, drain)
    };
    if plain {
        let conn = http(stream, ReadBuffer::new(&context.pool), None, peer);
        return serve_http(&context, &listener, conn).await;
    }
    // Boxed, so that a connection of HTTP, which is the usual one, does not carry the room of this.
    match Box::pin(begin(&context, &listener, stream, peer)).await {
        Begun::Http(client) => {
            let Socket { stream, begun, .. } = client.side;
            let chosen = stream
                .with_tls(|tls| tls.alpn_protocol() == Some(HTTP2_ALPN))
                .unwrap_or(false);
            let conn = http(stream, begun, client.secured, client.peer);
            if chosen {
                Box::pin(serve_http2(&context, &listener, conn)).await;
            } else {
                serve_http(&context, &listener, conn).await;
            }
        }
        Begun::Bytes(client, route) => Box::pin(tcp::serve(&context, client, &route)).await,
        Begun::Cluster(client, key) => Box::pin(tcp::serve_cluster(&context, client, &key)).await,
        Begun::Over => {}
    }
}

/// What heads of a connection's requests may be.
fn limits(context: &Context, listener: &ListenerState, secured: Option<&Secured>) -> MessageLimits {
    MessageLimits {
        connect: !listener.serving.borrow().forward(secured).is_none(),
        ..context.limits
    }
}

/// What is inside of a connection.
enum Begun {
    Http(tcp::Client),
    Bytes(tcp::Client, Arc<TcpRoute>),
    Cluster(tcp::Client, ClusterKey),
    /// Nothing: it was refused.
    Over,
}

/// Finds out what a connection that is not plaintext HTTP from its first byte is for.
async fn begin(
    context: &Context,
    listener: &ListenerState,
    mut stream: Stream,
    mut peer: SocketAddr,
) -> Begun {
    let serving = Rc::clone(&listener.serving.borrow());
    let mut begun = ReadBuffer::new(&context.pool);
    let mut deadline = context.wheel.timer();
    deadline.set(context.settings.tls_handshake_timeout);
    let mode = serving.proxy_protocol();
    if mode != ProxyProtocol::Off && context.settings.trusted.contains(peer.ip()) {
        match proxy_header::read(&stream, &mut begun, mode, &mut deadline).await {
            Ok(addresses) => {
                // An IPv4 client under its IPv4 address, however the header spells it.
                let source = addresses.map_or(peer, |addresses| addresses.source);
                peer = SocketAddr::new(source.ip().to_canonical(), source.port());
            }
            Err(_) if begun.is_empty() => return Begun::Over,
            Err(cause) => return refuse(context, &stream, &begun, peer, None, cause).await,
        }
    } else if mode == ProxyProtocol::Require {
        return refuse(context, &stream, &begun, peer, None, Cause::ProxyHeader).await;
    }
    let client = |stream, begun, secured: Option<_>, server_name| tcp::Client {
        side: Socket::new(stream, begun),
        peer,
        secured,
        server_name,
        asked: None,
        drain: Rc::clone(&listener.drain),
    };
    let names = match serving.accepts() {
        Accepts::Http => return Begun::Http(client(stream, begun, None, None)),
        Accepts::Tcp(None) => return Begun::Over,
        Accepts::Tcp(Some(route)) => {
            return Begun::Bytes(client(stream, begun, None, None), Arc::clone(route));
        }
        Accepts::Tls(names) => names,
    };
    let hello = match tls::read_hello(&stream, &mut begun, &mut deadline).await {
        Ok(hello) => hello,
        // Scanners and health checks open connections and close them: that is nobody's fault.
        Err(Cause::Handshake(HandshakeFailure::Closed)) if begun.is_empty() => return Begun::Over,
        Err(cause) => return refuse(context, &stream, &begun, peer, None, cause).await,
    };
    let server_name = hello.server_name;
    let chain = names.find(server_name.as_deref());
    let Some((at, chain)) = chain.and_then(|at| Some((at, names.chains().get(at)?))) else {
        return refuse(
            context,
            &stream,
            &begun,
            peer,
            server_name.as_deref(),
            Cause::NoChain,
        )
        .await;
    };
    let policy = match &chain.action {
        ChainAction::Pass(route) => {
            return Begun::Bytes(client(stream, begun, None, server_name), Arc::clone(route));
        }
        ChainAction::AutoPass(hosts) => {
            let key = server_name
                .as_deref()
                .and_then(|name| auto_passthrough(name, hosts));
            return match key {
                Some(key) => Begun::Cluster(client(stream, begun, None, server_name), key),
                None => {
                    refuse(
                        context,
                        &stream,
                        &begun,
                        peer,
                        server_name.as_deref(),
                        Cause::NoChain,
                    )
                    .await
                }
            };
        }
        ChainAction::Http { tls, .. } | ChainAction::Tcp { tls, .. } => Arc::clone(tls),
    };
    if hello.is_too_old {
        let cause = Cause::Handshake(HandshakeFailure::NoSharedParameters);
        return refuse(context, &stream, &begun, peer, server_name.as_deref(), cause).await;
    }
    let Some(config) = serving.config(at) else {
        return refuse(
            context,
            &stream,
            &begun,
            peer,
            server_name.as_deref(),
            Cause::NoKeys,
        )
        .await;
    };
    let shaken = tls::shake_hands(&mut stream, config, begun, &context.pool, &mut deadline).await;
    if let Err(cause) = shaken {
        tcp::refused(context, stream.local_addr(), peer, server_name.as_deref(), cause);
        tls::part(&stream, &mut deadline).await;
        return Begun::Over;
    }
    context.stats.borrow_mut().counters.tls_handshakes += 1;
    let secured = tls::secured(&stream, policy, server_name);
    match &chain.action {
        ChainAction::Tcp {
            route: Some(route), ..
        } => {
            let begun = ReadBuffer::new(&context.pool);
            let server_name = secured.server_name.clone();
            Begun::Bytes(
                client(stream, begun, Some(Rc::new(secured)), server_name),
                Arc::clone(route),
            )
        }
        ChainAction::Tcp { route: None, .. } => {
            tcp::refused(
                context,
                stream.local_addr(),
                peer,
                secured.server_name.as_deref(),
                Cause::NoRoute,
            );
            Begun::Over
        }
        _ => {
            let begun = ReadBuffer::new(&context.pool);
            Begun::Http(client(stream, begun, Some(Rc::new(secured)), None))
        }
    }
}

async fn refuse(
    context: &Context,
    stream: &Stream,
    begun: &ReadBuffer,
    peer: SocketAddr,
    server_name: Option<&str>,
    cause: Cause,
) -> Begun {
    tcp::refused(context, stream.local_addr(), peer, server_name, cause);
    tls::refuse(stream, begun, cause).await;
    tls::part(stream, &mut context.wheel.timer()).await;
    Begun::Over
}

async fn serve_http(context: &Rc<Context>, listener: &Rc<ListenerState>, mut conn: Connection) {
    while conn.wait(&context.settings).await == Next::Request {
        // No request of HTTP/1 begins as the preface of HTTP/2 does.
        if conn.requests == 0
            && conn.reader.data().first() == PREFACE.first()
            && conn.is_http2(&context.settings).await
        {
            return Box::pin(serve_http2(context, listener, conn)).await;
        }
        // Boxed, so that a connection which waits does not carry the room of one that works.
        match Box::pin(serve_while_warm(context, listener, &mut conn)).await {
            Warm::Quiet => {}
            Warm::Closed => return,
            Warm::Close { asked: true } if conn.reader.is_body_done() && !conn.reader.has_unread() => {
                // The client has nothing under way that a reset could answer.
                return conn.stream.shutdown_write();
            }
            Warm::Close { .. } => return conn.linger(&context.settings).await,
            Warm::Abort => return conn.stream.reset_on_close(),
            // Boxed as a whole, for the same reason.
            Warm::Tunnel(route, target) => {
                let peer = conn.peer;
                let (stream, begun, secured, _drain) = conn.into_parts();
                let side = Socket::new(stream, begun);
                let drain = Rc::clone(&listener.drain);
                let client = tunnel(side, peer, secured, target, drain);
                let _active = http::Active::new(context);
                return Box::pin(tcp::serve(context, client, &route)).await;
            }
        }
    }
}

/// The client of a CONNECT.
fn tunnel<S>(
    side: S,
    peer: SocketAddr,
    secured: Option<Rc<Secured>>,
    target: Box<str>,
    drain: Rc<Cell<Drain>>,
) -> tcp::Client<S> {
    tcp::Client {
        side,
        peer,
        secured,
        server_name: Some(split_port(&target).0.into()),
        asked: Some(target),
        drain,
    }
}

/// Serves the streams of an HTTP/2 connection, each in a task of its own.
async fn serve_http2(context: &Rc<Context>, listener: &Rc<ListenerState>, conn: Connection) {
    let peer = conn.peer;
    let (socket, begun, secured, drain) = conn.into_parts();
    let settings = (&*context.settings, limits(context, listener, secured.as_deref()));
    let mut conn = h2::Connection::open(socket, begun, secured, peer, settings, &context.wheel, drain);
    while let Some(stream) = conn.next(&context.settings).await {
        let serving = spawn::boxed(|| serve_stream(Rc::clone(context), Rc::clone(listener), stream));
        spawn::spawn(&context.tasks, serving);
    }
    if let Some(found) = conn.misbehaviour() {
        let (local, name) = (conn.local_addr(), conn.server_name());
        tcp::refused(context, local, peer, name, Cause::Http2(found));
    }
    conn.part().await;
}

async fn serve_stream(context: Rc<Context>, listener: Rc<ListenerState>, mut stream: h2::Stream) {
    let mut exchange = Exchange::take(&context);
    let after = match stream.read_head(&mut exchange.request) {
        Ok(()) => http::serve(&context, &listener, &mut stream, &mut exchange).await,
        Err(cause) => http::refuse(&context, &mut stream, &mut exchange, cause).await,
    };
    let asked = exchange.tunnel.take();
    let asked = asked.map(|route| (route, exchange.request.authority.as_str().into()));
    exchange.give_back(&context);
    match (after, asked) {
        (After::Tunnel, Some((route, target))) => {
            let _active = http::Active::new(&context);
            let (peer, secured) = (stream.peer(), stream.secured_shared());
            let drain = Rc::clone(&listener.drain);
            let client = tunnel(Connect::from(stream), peer, secured, target, drain);
            // Boxed: its state would make every stream's larger.
            Box::pin(tcp::serve(&context, client, &route)).await;
        }
        (After::Tunnel | After::Abort, _) => stream.reset(code::INTERNAL_ERROR),
        _ => {}
    }
}

enum Warm {
    /// No request for a moment.
    Quiet,
    /// The client has closed.
    Closed,
    /// The gateway closes; whether the client asked for it, and so sends no more requests.
    Close {
        /// See above.
        asked: bool,
    },
    /// The gateway breaks off.
    Abort,
    /// Bytes follow, to this target.
    Tunnel(Arc<TcpRoute>, Box<str>),
}

/// Serves requests as long as they follow each other closely.
async fn serve_while_warm(context: &Rc<Context>, listener: &ListenerState, conn: &mut Connection) -> Warm {
    let mut exchange = Exchange::new(context);
    loop {
        let mut asked = false;
        let after = match conn.next(&mut exchange.request, &context.settings).await {
            Next::Request => {
                asked = !exchange.request.keep_alive;
                http::serve(context, listener, conn, &mut exchange).await
            }
            Next::Refused(cause) => http::refuse(context, conn, &mut exchange, cause).await,
            Next::Quiet => return Warm::Quiet,
            Next::Closed => return Warm::Closed,
        };
        match after {
            After::KeepAlive => {}
            After::Close => return Warm::Close { asked },
            After::Abort => return Warm::Abort,
            After::Tunnel => {
                let target = exchange.request.authority.as_str().into();
                return match exchange.tunnel.take() {
                    Some(route) => Warm::Tunnel(route, target),
                    None => Warm::Abort,
                };
            }
        }
    }
}
