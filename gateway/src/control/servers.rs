//! Where the process's own HTTP servers listen: opened anew, or taken over from an older process or a supervisor.
//!
//! Opening and serving are apart. A process that takes another one's place has its sockets from the beginning, and must
//! not answer on them before it serves: health would flap. The older one stops when the new one begins.

use super::admin::{self, AdminAddress};
use super::admin_tls::Handshaking;
use super::upgrade::Inherited;
use super::{Event, Options, StartError};
use axum::Router;
use axum::http::{HeaderValue, header};
use axum::middleware::map_response;
use axum::response::Response;
use rustls::ServerConfig;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Notify, mpsc, watch};

/// What they are called, as their options and as sockets that a supervisor passes.
pub(super) const NAMES: [&str; 3] = ["admin", "status", "metrics"];

/// All of them.
pub(super) struct Servers {
    all: [Server; 3],
    /// Whether another process answers for this one; what is still asked here ends its connection.
    is_replaced: Arc<AtomicBool>,
    /// What new connections to the admin server are met with, if it speaks TLS.
    admin_keys: Option<watch::Sender<Arc<ServerConfig>>>,
}

impl Servers {
    /// Opens them; with keys the admin server speaks mutual TLS only.
    pub(super) fn open(
        options: &Options,
        admin_keys: Option<Arc<ServerConfig>>,
        inherited: &mut Inherited,
        events: &mpsc::Sender<Event>,
    ) -> Result<Self, StartError> {
        let (status, metrics) = (
            AdminAddress::Tcp(options.status),
            AdminAddress::Tcp(options.metrics),
        );
        let [admin_name, status_name, metrics_name] = NAMES;
        let is_replaced = Arc::new(AtomicBool::new(false));
        let mut open = |what, address: &AdminAddress, router: Router| {
            let replaced = Arc::clone(&is_replaced);
            let router = router.layer(map_response(move |response: Response| {
                let close = replaced.load(Ordering::Relaxed);
                async move { if close { closing(response) } else { response } }
            }));
            Server::open(what, address, inherited.server(what), router)
        };
        let admin_keys = admin_keys.map(watch::Sender::new);
        let is_writable = options.admin.is_private() || admin_keys.is_some();
        let mut admin = open(
            admin_name,
            &options.admin,
            admin::admin_router(events.clone(), &options.admin, is_writable),
        )?;
        admin.keys = admin_keys.as_ref().map(watch::Sender::subscribe);
        let all = [
            admin,
            open(status_name, &status, admin::status_router(events.clone()))?,
            open(metrics_name, &metrics, admin::metrics_router(events.clone()))?,
        ];
        Ok(Self {
            all,
            is_replaced,
            admin_keys,
        })
    }

    /// Connections to the admin server that come from now on are met with these.
    pub(super) fn renew_admin_keys(&self, config: Option<Arc<ServerConfig>>) {
        if let (Some(keys), Some(config)) = (&self.admin_keys, config) {
            keys.send_replace(config);
        }
    }

    /// Whether those who get as far as the admin API may change something: only this machine does, or they have shown
    /// a certificate.
    pub(super) fn is_admin_writable(&self) -> bool {
        self.admin().address.is_private() || self.admin_keys.is_some()
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
struct UntilStopped<L> {
    inner: Option<L>,
    stop: Arc<Notify>,
}

impl<L: axum::serve::Listener> axum::serve::Listener for UntilStopped<L> {
    type Io = L::Io;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (L::Io, L::Addr) {
        if let Some(inner) = &mut self.inner {
            tokio::select! {
                accepted = inner.accept() => return accepted,
                () = self.stop.notified() => {}
            }
        }
        self.inner = None;
        std::future::pending().await
    }

    fn local_addr(&self) -> std::io::Result<L::Addr> {
        let gone = || std::io::ErrorKind::NotConnected.into();
        self.inner.as_ref().map_or_else(|| Err(gone()), L::local_addr)
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
    router: Option<Router>,
    /// What connections are met with, where they are to speak TLS.
    keys: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// Ends the accepting.
    stop: Arc<Notify>,
}

impl Server {
    /// Listens; a socket that was passed on takes the place of one that would be opened.
    fn open(
        what: &'static str,
        address: &AdminAddress,
        passed: Option<OwnedFd>,
        router: Router,
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
            router: Some(router),
            keys: None,
            stop: Arc::default(),
        })
    }

    /// Begins to answer.
    fn serve(&mut self) -> Result<(), StartError> {
        let Some(router) = self.router.take() else {
            return Ok(());
        };
        let what = self.what;
        let ended = move |result: std::io::Result<()>| {
            if let Err(error) = result {
                tracing::error!(%error, "the {what} server ended");
            }
        };
        let stop = Arc::clone(&self.stop);
        match &self.listener {
            Listener::Tcp(tcp) => {
                let inner = Some(tokio::net::TcpListener::from_std(tcp.try_clone()?)?);
                let listener = UntilStopped { inner, stop };
                match self.keys.take() {
                    Some(keys) => {
                        let listener = Handshaking::new(listener, keys);
                        tokio::task::spawn_local(async move { ended(axum::serve(listener, router).await) })
                    }
                    None => {
                        tokio::task::spawn_local(async move { ended(axum::serve(listener, router).await) })
                    }
                };
            }
            Listener::Unix(unix) => {
                let inner = Some(tokio::net::UnixListener::from_std(unix.try_clone()?)?);
                let listener = UntilStopped { inner, stop };
                tokio::task::spawn_local(async move { ended(axum::serve(listener, router).await) });
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
