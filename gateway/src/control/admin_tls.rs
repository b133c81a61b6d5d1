//! The admin API behind mutual TLS: who has a certificate of the right authority may write from anywhere.
//!
//! Nobody else gets as far as HTTP, not even to read. What the server shows and whom it trusts are files, and the store
//! of keys looks after them as it does after those of Gateways ([`Store::pin`]): a new one counts for the connections
//! that come after it, and a broken one changes nothing but what is told. Handshakes are tasks, so that a peer that is
//! slow or silent keeps nobody else waiting.

use super::Options;
use crate::io::clock;
use crate::tls::{MaterialError, Store, classify};
use isthmus_core::tls::{CaSource, ClientAuth, HandshakeFailure, KeySource, Parameters, ServerTls};
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Handshakes that are under way at a time; further connections wait until one has ended.
const HANDSHAKES_MAX: usize = 64;
/// How long one may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
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
    result: Result<TlsStream<TcpStream>, Refusal>,
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

/// A listener whose connections have been through a handshake.
pub(super) struct Handshaking<L> {
    inner: L,
    /// What the next connection is met with.
    config: watch::Receiver<Arc<ServerConfig>>,
    under_way: JoinSet<Ended>,
    refusals: Refusals,
}

impl<L> Handshaking<L> {
    pub(super) fn new(inner: L, config: watch::Receiver<Arc<ServerConfig>>) -> Self {
        Self {
            inner,
            config,
            under_way: JoinSet::new(),
            refusals: Refusals::default(),
        }
    }

    fn begin(&mut self, stream: TcpStream, peer: SocketAddr) {
        let acceptor = TlsAcceptor::from(self.config.borrow().clone());
        self.under_way.spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(stream));
            let result = match handshake.await {
                Ok(accepted) => accepted.map_err(Refusal::from),
                Err(elapsed) => Err(Refusal {
                    failure: HandshakeFailure::Timeout,
                    error: elapsed.to_string(),
                }),
            };
            Ended { peer, result }
        });
    }
}

impl<L> axum::serve::Listener for Handshaking<L>
where
    L: axum::serve::Listener<Io = TcpStream, Addr = SocketAddr>,
{
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            tokio::select! {
                (stream, peer) = self.inner.accept(), if self.under_way.len() < HANDSHAKES_MAX => {
                    self.begin(stream, peer);
                }
                Some(ended) = self.under_way.join_next() => match ended {
                    Ok(Ended { peer, result: Ok(stream) }) => return (stream, peer),
                    Ok(Ended { peer, result: Err(refusal) }) => self.refusals.tell(peer, &refusal, clock::now()),
                    Err(error) => tracing::error!(%error, "a handshake of the admin API failed"),
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
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
