//! The admin API behind mutual TLS: who has a certificate of the right authority may write from anywhere.
//!
//! Nobody else gets as far as HTTP, not even to read. What the server shows and whom it trusts are files, and the store
//! of keys looks after them as it does after those of Gateways ([`Store::pin`]): a new one counts for the connections
//! that come after it, and a broken one changes nothing but what is told. A connection that is open serves its client as
//! long as a new one would: not when an authority is gone, nor beyond its certificate's time ([`guard`]). Handshakes
//! are tasks, so that a peer that is slow or silent keeps nobody else waiting, and the silent make room for others.

use super::Options;
use super::servers::UntilStopped;
use crate::io::clock;
use crate::tls::{MaterialError, PeerCertificate, Pinned, Store, classify, describe_peer};
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use isthmus_core::tls::{CaSource, ClientAuth, HandshakeFailure, KeySource, Parameters, ServerTls};
use rustls::ServerConfig;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Handshakes that are under way at a time; for one more the oldest is given up.
const HANDSHAKES_MAX: usize = 64;
/// How long one may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long one is not given up: others wait meanwhile.
const GRACE: Duration = Duration::from_secs(2);
/// How long a peer that was refused may go on talking, and how much it may say. A socket that is closed with something
/// unread in it takes the alert that says why out of the peer's hands.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 << 10;
/// The log has one refusal in this time, and the number of the others.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// The files that the admin API's TLS is made of, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminTls {
    /// `--admin-tls-cert`: the chain that it shows, leaf first.
    pub certificate: String,
    /// `--admin-tls-key`: the key of the leaf.
    pub key: String,
    /// `--admin-client-ca`: the authorities that sign certificates of clients.
    pub client_ca: String,
}

impl AdminTls {
    fn policy(&self) -> ServerTls {
        ServerTls {
            keys: vec![KeySource::Files {
                certificate: self.certificate.as_str().into(),
                key: self.key.as_str().into(),
            }],
            client_auth: ClientAuth::Required,
            ca: Some(CaSource::File(self.client_ca.as_str().into())),
            crl: None,
            subject_alt_names: Vec::new(),
            spki: Vec::new(),
            hashes: Vec::new(),
            skip_verify: false,
            parameters: Parameters::default(),
            alpn: vec!["http/1.1".into()],
        }
    }

    /// What is wrong, with the option that names the file.
    fn explain(&self, error: &MaterialError) -> String {
        let options = [
            ("--admin-tls-cert", &self.certificate),
            ("--admin-tls-key", &self.key),
            ("--admin-client-ca", &self.client_ca),
        ];
        let place = error.place();
        let mut found = options.iter().filter(|(_, path)| place == Some(path.as_str()));
        match found.next() {
            Some((option, _)) => format!("{option}: {error}"),
            None => format!("{}: {error}", options.map(|(option, _)| option).join(", ")),
        }
    }
}

impl Options {
    /// Has the store load the keys of the admin API, if it is to have any, and look after them. Answers what is wrong
    /// with them, and what mends it.
    pub fn load_admin_keys(&self, store: &mut Store) -> Result<(), String> {
        let Some(tls) = &self.admin_tls else {
            return Ok(());
        };
        if !self.admin.is_tcp() {
            return Err(format!(
                "--admin-tls-cert: {} is its owner's alone and speaks no TLS: leave the option out, or give --admin an \
                 address",
                self.admin
            ));
        }
        store.pin(tls.policy(), clock::wall()).map_err(|errors| {
            let errors = errors.iter().map(|error| tls.explain(error));
            errors.collect::<Vec<_>>().join("; ")
        })
    }
}

/// A handshake that has ended.
struct Ended {
    peer: SocketAddr,
    result: Result<(TlsStream<TcpStream>, Caller), Refusal>,
}

/// Why a peer was not let in.
struct Refusal {
    failure: HandshakeFailure,
    error: String,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        let of_tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        Self {
            failure: of_tls.map_or(HandshakeFailure::Closed, classify),
            error: error.to_string(),
        }
    }
}

/// What connections are met with.
pub(super) struct Met {
    config: Arc<ServerConfig>,
    authorities: Vec<[u8; 32]>,
    /// Counts how often an authority has gone.
    trust: u64,
}

impl Met {
    pub(super) fn new(keys: Pinned<'_>) -> Self {
        Self {
            authorities: keys.authorities.iter().map(|info| info.hash).collect(),
            config: keys.config,
            trust: 0,
        }
    }

    pub(super) fn renew(&mut self, keys: Pinned<'_>) {
        let new = Self::new(keys);
        let is_there = |known| new.authorities.contains(known);
        let trust = self.trust + u64::from(!self.authorities.iter().all(is_there));
        *self = Self { trust, ..new };
    }

    pub(super) fn trust(&self) -> u64 {
        self.trust
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    peer: SocketAddr,
    /// What its certificate calls it.
    name: Arc<str>,
    /// When that ends to be valid.
    expires: SystemTime,
    /// Which authorities were asked.
    trust: u64,
}

impl Caller {
    fn new(peer: SocketAddr, certificate: &PeerCertificate, trust: u64) -> Self {
        let names = [&certificate.uris, &certificate.dns_names];
        let name = names.into_iter().flatten().next();
        let expires = u64::try_from(certificate.valid.1).unwrap_or(0);
        Self {
            peer,
            name: name.unwrap_or(&certificate.subject).as_str().into(),
            expires: SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_secs(expires))
                .unwrap_or(SystemTime::UNIX_EPOCH),
            trust,
        }
    }

    /// Why it would not be let in now.
    fn objection(&self, trust: u64, now: SystemTime) -> Option<&'static str> {
        if self.trust != trust {
            Some("an authority of --admin-client-ca is gone since this connection began: connect again")
        } else if now > self.expires {
            Some("the certificate that was shown has expired: connect again with another one")
        } else {
            None
        }
    }
}

/// Lets a request pass whose client would be let in now, and logs what changes something.
pub(super) async fn guard(request: Request, next: Next, trust: u64) -> Response {
    let Some(caller) = request.extensions().get::<Caller>().cloned() else {
        return (StatusCode::FORBIDDEN, "refused: there is no certificate\n").into_response();
    };
    if let Some(why) = caller.objection(trust, clock::wall()) {
        let mut response = (StatusCode::MISDIRECTED_REQUEST, format!("refused: {why}\n")).into_response();
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        return response;
    }
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    tracing::info!(
        peer = %caller.peer,
        client = &*caller.name,
        %method,
        path,
        status = response.status().as_u16(),
        "the admin API was told something by who has a certificate"
    );
    response
}

/// A listener whose connections have been through a handshake.
pub(super) struct Handshaking {
    inner: UntilStopped<TcpListener>,
    /// What the next connection is met with.
    met: watch::Receiver<Met>,
    under_way: JoinSet<Ended>,
    /// The same, oldest first, with when each began.
    queue: VecDeque<(Instant, SocketAddr, AbortHandle)>,
    refusals: Refusals,
}

impl Handshaking {
    pub(super) fn new(inner: UntilStopped<TcpListener>, met: watch::Receiver<Met>) -> Self {
        Self {
            inner,
            met,
            under_way: JoinSet::new(),
            queue: VecDeque::new(),
            refusals: Refusals::default(),
        }
    }

    /// The next one whose client may speak.
    pub(super) async fn accept(&mut self) -> (TlsStream<TcpStream>, Caller) {
        loop {
            self.queue.retain(|(_, _, task)| !task.is_finished());
            let oldest = self.queue.front().filter(|_| self.queue.len() >= HANDSHAKES_MAX);
            let wait = oldest.map(|(began, _, _)| GRACE.saturating_sub(clock::now() - *began));
            let is_open = wait.is_none_or(|wait| wait.is_zero());
            tokio::select! {
                (stream, peer) = self.inner.accept(), if is_open => self.begin(stream, peer),
                Some(ended) = self.under_way.join_next() => match ended {
                    Ok(Ended { result: Ok((stream, caller)), .. }) => return (stream, caller),
                    Ok(Ended { peer, result: Err(refusal) }) => {
                        self.refusals.tell(peer, &refusal, clock::now());
                    }
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => tracing::error!(%error, "a handshake of the admin API failed"),
                },
                () = tokio::time::sleep(wait.unwrap_or_default()), if !is_open => {}
            }
        }
    }

    fn begin(&mut self, stream: TcpStream, peer: SocketAddr) {
        let now = clock::now();
        if self.queue.len() >= HANDSHAKES_MAX
            && let Some((_, peer, task)) = self.queue.pop_front()
        {
            task.abort();
            let refusal = Refusal {
                failure: HandshakeFailure::Timeout,
                error: "others were waiting for its place".to_owned(),
            };
            self.refusals.tell(peer, &refusal, now);
        }
        let (config, trust) = {
            let met = self.met.borrow();
            (Arc::clone(&met.config), met.trust)
        };
        let task = self.under_way.spawn(async move {
            let result = handshake(stream, peer, config, trust).await;
            Ended { peer, result }
        });
        self.queue.push_back((now, peer, task));
    }
}

async fn handshake(
    stream: TcpStream,
    peer: SocketAddr,
    config: Arc<ServerConfig>,
    trust: u64,
) -> Result<(TlsStream<TcpStream>, Caller), Refusal> {
    let accept = TlsAcceptor::from(config).accept(stream).into_fallible();
    match tokio::time::timeout(HANDSHAKE_TIME, accept).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().and_then(describe_peer);
            // There is always one: who shows none has not come so far.
            let shown = shown.ok_or_else(|| Refusal::from(io::Error::other("no certificate")))?;
            let caller = Caller::new(peer, &shown, trust);
            Ok((stream, caller))
        }
        Ok(Err((error, stream))) => {
            let _gone = tokio::time::timeout(LINGER, linger(stream)).await;
            Err(error.into())
        }
        Err(elapsed) => Err(Refusal {
            failure: HandshakeFailure::Timeout,
            error: elapsed.to_string(),
        }),
    }
}

/// Says that nothing more comes, and hears a peer out.
async fn linger(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

/// What is told of refusals: whoever is refused must not be able to fill the log.
#[derive(Debug, Default)]
struct Refusals {
    told: Option<Instant>,
    untold: u64,
}

impl Refusals {
    fn tell(&mut self, peer: SocketAddr, refusal: &Refusal, now: Instant) {
        if let Some(others) = self.count(now) {
            tracing::warn!(
                %peer,
                cause = refusal.failure.label(),
                error = refusal.error,
                others,
                "the admin API lets nobody in without a certificate of --admin-client-ca: a handshake failed"
            );
        }
    }

    /// The number of those before it that were not told, if this one is to be.
    fn count(&mut self, now: Instant) -> Option<u64> {
        let is_recent = |told| now.saturating_duration_since(told) < TOLD_EVERY;
        if self.told.is_some_and(is_recent) {
            self.untold += 1;
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_refusal_in_a_second_is_told_with_the_number_of_the_others() {
        let mut refusals = Refusals::default();
        let began = clock::now();
        let after = |millis| began + Duration::from_millis(millis);
        assert_eq!(refusals.count(began), Some(0));
        assert_eq!(refusals.count(after(1)), None);
        assert_eq!(refusals.count(after(999)), None);
        assert_eq!(refusals.count(after(1000)), Some(2));
        assert_eq!(refusals.count(after(1500)), None);
        assert_eq!(refusals.count(after(9000)), Some(1));
    }

    #[test]
    fn a_connection_serves_its_client_as_long_as_a_new_one_would() {
        let shown = PeerCertificate {
            hash_hex: String::new(),
            subject: "CN=operator".to_owned(),
            issuer: String::new(),
            serial_hex: String::new(),
            valid: (0, 1000),
            uris: Vec::new(),
            dns_names: Vec::new(),
            pem: String::new(),
        };
        let caller = Caller::new(([10, 0, 0, 1], 1).into(), &shown, 3);
        assert_eq!(&*caller.name, "CN=operator");
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(caller.objection(3, at(1000)), None);
        assert!(caller.objection(3, at(1001)).unwrap().contains("expired"));
        assert!(caller.objection(4, at(1000)).unwrap().contains("gone"));
    }

    #[test]
    fn mistakes_are_told_with_their_option() {
        let tls = AdminTls {
            certificate: "/a/cert.pem".to_owned(),
            key: "/a/key.pem".to_owned(),
            client_ca: "/a/ca.pem".to_owned(),
        };
        for (error, told) in [
            (
                MaterialError::Absent {
                    path: "/a/ca.pem".to_owned(),
                },
                "--admin-client-ca: /a/ca.pem: no such file",
            ),
            (
                MaterialError::KeyMismatch {
                    certificate: "/a/cert.pem".to_owned(),
                    key: "/a/key.pem".to_owned(),
                },
                "--admin-tls-key: /a/key.pem: not the key of the first certificate of /a/cert.pem",
            ),
            (
                MaterialError::NoCertificate {
                    place: "/a/cert.pem".to_owned(),
                },
                "--admin-tls-cert: /a/cert.pem: no certificate in it",
            ),
            (
                MaterialError::Refused("no".to_owned()),
                "--admin-tls-cert, --admin-tls-key, --admin-client-ca: TLS configuration: no",
            ),
        ] {
            assert_eq!(tls.explain(&error), told);
        }
    }
}
