//! Where the process's own HTTP servers listen: opened anew, or taken over from an older process or a supervisor.
//!
//! Opening and serving are apart. A process that takes another one's place has its sockets from the beginning, and must
//! not answer on them before it serves: health would flap. The older one stops when the new one begins.
//!
//! Two of them are reached by anybody, so connections are bounded in number and in how long they may be silent. At the
//! end of the process what is asked is answered first: whoever ordered an upgrade wants to hear of it.

use super::admin::{self, AdminAddress};
use super::admin_tls::{self, Caller, Handshaking, Met};
use super::upgrade::Inherited;
use super::{Event, Options, StartError};
use crate::tls::Pinned;
use axum::Router;
use axum::extract::Request as Asking;
use axum::http::{HeaderValue, Request, header};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::fs::{self, Permissions};
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, Semaphore, mpsc, watch};

/// What they are called, as their options and as sockets that a supervisor passes.
pub(super) const NAMES: [&str; 3] = ["admin", "status", "metrics"];

/// Connections that each has at a time; one more waits until another has ended.
const CONNECTIONS_MAX: u32 = 4096;
/// How long the head of a request may take from when the connection is free for it.
const HEAD_TIME: Duration = Duration::from_secs(20);
/// How long a peer may take none of an answer.
const TAKE_TIME: Duration = Duration::from_secs(20);
/// How long answers may take that are under way when the process ends.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// All of them.
pub(super) struct Servers {
    all: [Server; 3],
    /// Whether another process answers for this one; what is still asked here ends its connection.
    is_replaced: Arc<AtomicBool>,
    /// What connections to the admin server are met with, if it speaks TLS.
    admin_keys: Option<watch::Sender<Met>>,
    /// Whether connections are to end with the answers that are under way.
    is_over: watch::Sender<bool>,
}

impl Servers {
    /// Opens them; with keys the admin server speaks mutual TLS only.
    pub(super) fn open(
        options: &Options,
        admin_keys: Option<Pinned<'_>>,
        inherited: &mut Inherited,
        events: &mpsc::Sender<Event>,
    ) -> Result<Self, StartError> {
        let (status, metrics) = (
            AdminAddress::Tcp(options.status),
            AdminAddress::Tcp(options.metrics),
        );
        let [admin_name, status_name, metrics_name] = NAMES;
        let is_replaced = Arc::new(AtomicBool::new(false));
        let is_over = watch::Sender::new(false);
        let mut open = |what, address: &AdminAddress, router: Router| {
            let replaced = Arc::clone(&is_replaced);
            let router = router.layer(map_response(move |response: Response| {
                let close = replaced.load(Ordering::Relaxed);
                async move { if close { closing(response) } else { response } }
            }));
            let desk = Desk {
                router,
                room: Arc::new(Semaphore::new(CONNECTIONS_MAX as usize)),
                is_over: is_over.subscribe(),
            };
            Server::open(what, address, inherited.server(what), desk)
        };
        let admin_keys = admin_keys.map(|keys| watch::Sender::new(Met::new(keys)));
        let is_writable = options.admin.is_private() || admin_keys.is_some();
        let mut router = admin::admin_router(events.clone(), &options.admin, is_writable);
        let met = admin_keys.as_ref().map(watch::Sender::subscribe);
        if let Some(met) = met.clone() {
            router = router.layer(from_fn(move |request: Asking, next: Next| {
                admin_tls::guard(request, next, met.borrow().trust())
            }));
        }
        let mut admin = open(admin_name, &options.admin, router)?;
        admin.keys = met;
        let all = [
            admin,
            open(status_name, &status, admin::status_router(events.clone()))?,
            open(metrics_name, &metrics, admin::metrics_router(events.clone()))?,
        ];
        Ok(Self {
            all,
            is_replaced,
            admin_keys,
            is_over,
        })
    }

    /// Connections to the admin server that come from now on are met with these.
    pub(super) fn renew_admin_keys(&self, keys: Option<Pinned<'_>>) {
        if let (Some(met), Some(keys)) = (&self.admin_keys, keys) {
            met.send_modify(|met| met.renew(keys));
        }
    }

    /// Ends all connections, each with the answer that is under way; to be waited for when nothing is left that would
    /// have to answer.
    pub(super) fn last_answers(&self) -> impl Future<Output = ()> + use<> {
        self.is_over.send_replace(true);
        let rooms = self.all.each_ref().map(|server| Arc::clone(&server.desk.room));
        async move {
            let all_gone = async {
                for room in rooms {
                    let _never_closed = room.acquire_many(CONNECTIONS_MAX).await;
                }
            };
            let _or_cut = tokio::time::timeout(LAST_ANSWERS, all_gone).await;
        }
    }

    /// Begin to answer.
    pub(super) fn serve(&mut self) -> Result<(), StartError> {
        self.all.iter_mut().try_for_each(Server::serve)
    }

    /// Each.
    pub(super) fn all(&self) -> impl Iterator<Item = &Server> {
        self.all.iter()
    }

    /// Accept no more: another process does, on the same sockets. What was accepted is answered.
    pub(super) fn stand_back(&self) {
        self.is_replaced.store(true, Ordering::Relaxed);
        self.all.iter().for_each(Server::stop);
    }

    /// Those whose sockets were passed on to this process.
    pub(super) fn taken(&self) -> impl Iterator<Item = &'static str> {
        let taken = self.all.iter().filter(|server| server.is_taken);
        taken.map(|server| server.what)
    }

    pub(super) fn admin(&self) -> &Server {
        let [admin, _, _] = &self.all;
        admin
    }

    pub(super) fn status(&self) -> &Server {
        let [_, status, _] = &self.all;
        status
    }

    pub(super) fn metrics(&self) -> &Server {
        let [_, _, metrics] = &self.all;
        metrics
    }
}

/// A listener that accepts until it is told to stop. Ending the server instead would close connections that wait for
/// their next request, and one may be on its way.
pub(super) struct UntilStopped<L> {
    inner: Option<L>,
    stop: Arc<Notify>,
}

impl<L: axum::serve::Listener> UntilStopped<L> {
    /// The next connection; to drop the future loses none.
    pub(super) async fn accept(&mut self) -> (L::Io, L::Addr) {
        if let Some(inner) = &mut self.inner {
            tokio::select! {
                accepted = inner.accept() => return accepted,
                () = self.stop.notified() => {}
            }
        }
        self.inner = None;
        std::future::pending().await
    }
}

/// A stream that fails when its peer takes nothing for too long: a connection must not keep its place for ever.
struct Taken<S> {
    inner: S,
    patience: Duration,
    /// Runs while there is something that the peer does not take.
    silence: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<S> Taken<S> {
    fn new(inner: S, patience: Duration) -> Self {
        Self {
            inner,
            patience,
            silence: None,
        }
    }

    fn within<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.silence = None;
            return result;
        }
        let patience = self.patience;
        let begin = || Box::pin(tokio::time::sleep(patience));
        let silence = self.silence.get_or_insert_with(begin);
        silence
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taken<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, room)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taken<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, data);
        self.within(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        self.within(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.within(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.within(cx, shut)
    }
}

/// Where the connections of one server are answered.
#[derive(Clone)]
struct Desk {
    router: Router,
    room: Arc<Semaphore>,
    is_over: watch::Receiver<bool>,
}

impl Desk {
    async fn serve<L: axum::serve::Listener>(self, mut listener: UntilStopped<L>) {
        loop {
            let (stream, _) = listener.accept().await;
            self.answer(stream, None).await;
        }
    }

    async fn serve_tls(self, mut listener: Handshaking) {
        loop {
            let (stream, caller) = listener.accept().await;
            self.answer(stream, Some(caller)).await;
        }
    }

    /// Answers one connection, once there is room for it.
    async fn answer<S>(&self, stream: S, caller: Option<Caller>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let Ok(place) = Arc::clone(&self.room).acquire_owned().await else {
            return;
        };
        let routes = TowerToHyperService::new(self.router.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(caller) = &caller {
                request.extensions_mut().insert(caller.clone());
            }
            routes.call(request)
        });
        let mut is_over = self.is_over.clone();
        tokio::task::spawn_local(async move {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
            let mut connection =
                pin!(http.serve_connection(TokioIo::new(Taken::new(stream, TAKE_TIME)), service));
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                _ = is_over.wait_for(|is_over| *is_over) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to a server of the process ended early");
            }
            drop(place);
        });
    }
}

fn closing(mut response: Response) -> Response {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

enum Listener {
    Tcp(std::net::TcpListener),
    Unix(UnixListener),
}

/// One of them.
pub(super) struct Server {
    what: &'static str,
    address: AdminAddress,
    listener: Listener,
    /// Whether the socket was passed on.
    is_taken: bool,
    desk: Desk,
    /// Whether it has begun to answer.
    is_serving: bool,
    /// What connections are met with, where they are to speak TLS.
    keys: Option<watch::Receiver<Met>>,
    /// Ends the accepting.
    stop: Arc<Notify>,
}

impl Server {
    /// Listens; a socket that was passed on takes the place of one that would be opened.
    fn open(
        what: &'static str,
        address: &AdminAddress,
        passed: Option<OwnedFd>,
        desk: Desk,
    ) -> Result<Self, StartError> {
        let refused = |error| StartError::Server {
            what,
            address: address.to_string(),
            error,
        };
        let (listener, is_taken) = listen(address, passed).map_err(refused)?;
        let address = match &listener {
            Listener::Tcp(tcp) => AdminAddress::Tcp(tcp.local_addr().map_err(refused)?),
            Listener::Unix(_) => address.clone(),
        };
        Ok(Self {
            what,
            address,
            listener,
            is_taken,
            desk,
            is_serving: false,
            keys: None,
            stop: Arc::default(),
        })
    }

    /// Begins to answer.
    fn serve(&mut self) -> Result<(), StartError> {
        if std::mem::replace(&mut self.is_serving, true) {
            return Ok(());
        }
        let (desk, stop) = (self.desk.clone(), Arc::clone(&self.stop));
        match &self.listener {
            Listener::Tcp(tcp) => {
                let inner = Some(tokio::net::TcpListener::from_std(tcp.try_clone()?)?);
                let listener = UntilStopped { inner, stop };
                match self.keys.take() {
                    Some(keys) => tokio::task::spawn_local(desk.serve_tls(Handshaking::new(listener, keys))),
                    None => tokio::task::spawn_local(desk.serve(listener)),
                };
            }
            Listener::Unix(unix) => {
                let inner = Some(tokio::net::UnixListener::from_std(unix.try_clone()?)?);
                tokio::task::spawn_local(desk.serve(UntilStopped { inner, stop }));
            }
        }
        Ok(())
    }

    fn stop(&self) {
        self.stop.notify_one();
    }

    /// `admin`, `status` or `metrics`.
    pub(super) fn what(&self) -> &'static str {
        self.what
    }

    /// Where it is.
    pub(super) fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// Where it is, when that is an address of TCP.
    pub(super) fn tcp(&self) -> Option<SocketAddr> {
        match self.address {
            AdminAddress::Tcp(address) => Some(address),
            AdminAddress::Unix(_) => None,
        }
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.listener {
            Listener::Tcp(tcp) => tcp.as_fd(),
            Listener::Unix(unix) => unix.as_fd(),
        }
    }
}

fn listen(address: &AdminAddress, passed: Option<OwnedFd>) -> std::io::Result<(Listener, bool)> {
    match address {
        AdminAddress::Tcp(wanted) => {
            let passed = passed.map(std::net::TcpListener::from);
            let fits = |tcp: &std::net::TcpListener| {
                tcp.local_addr().is_ok_and(|address| {
                    address.ip() == wanted.ip() && (wanted.port() == 0 || wanted.port() == address.port())
                })
            };
            let (listener, is_taken) = match passed.filter(fits) {
                Some(passed) => (passed, true),
                None => (std::net::TcpListener::bind(wanted)?, false),
            };
            listener.set_nonblocking(true)?;
            Ok((Listener::Tcp(listener), is_taken))
        }
        AdminAddress::Unix(path) => {
            let passed = passed.map(UnixListener::from);
            let fits = |unix: &UnixListener| {
                unix.local_addr()
                    .is_ok_and(|address| address.as_pathname() == Some(path))
            };
            let (listener, is_taken) = match passed.filter(fits) {
                Some(passed) => (passed, true),
                None => {
                    // Somebody who still answers there keeps it.
                    if UnixStream::connect(path).is_err() {
                        address.remove();
                    }
                    let listener = UnixListener::bind(path)?;
                    fs::set_permissions(path, Permissions::from_mode(0o600))?;
                    (listener, false)
                }
            };
            listener.set_nonblocking(true)?;
            Ok((Listener::Unix(listener), is_taken))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = Taken::new(near, Duration::from_millis(50));
        for _ in 0..4 {
            near.write_all(&[0; 16]).await.unwrap();
            far.read_exact(&mut [0; 16]).await.unwrap();
        }
        near.write_all(&[0; 16]).await.unwrap();
        let error = near.write_all(&[0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
