//! A client's connection, plaintext or TLS, that never waits.
//!
//! The client's side of TLS is not what is measured: it verifies nothing, so that it takes as little as may be of the
//! core that it shares with the upstream.

use crate::scenario::{Scenario, Tls};
use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, Tls12Resumption};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

/// The name that clients ask for.
pub(crate) const NAME: &str = "bench.example.com";

/// How connections of a scenario are made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dialer {
    /// None for plaintext.
    config: Option<Arc<ClientConfig>>,
    /// Whether only a hello is sent, and bytes behind it.
    hello_only: bool,
}

impl Dialer {
    /// For a scenario.
    pub(crate) fn new(scenario: &Scenario) -> Result<Self> {
        if !scenario.tls.is_downstream() {
            return Ok(Self::default());
        }
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        // The group that all proxies have: the hybrid ones would measure who has them.
        let provider = rustls::crypto::CryptoProvider {
            kx_groups: vec![rustls::crypto::aws_lc_rs::kx_group::X25519],
            ..provider
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_no_client_auth();
        config.resumption = match scenario.tls {
            Tls::Resumed => Resumption::in_memory_sessions(256).tls12_resumption(Tls12Resumption::Disabled),
            _ => Resumption::disabled(),
        };
        Ok(Self {
            config: Some(Arc::new(config)),
            hello_only: scenario.tls == Tls::Pass,
        })
    }

    /// Opens a connection.
    pub(crate) fn open(&self, address: SocketAddr) -> Result<Channel> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        let mut tls = None;
        if let Some(config) = &self.config {
            let mut client = ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME)?)?;
            client.write_tls(&mut socket).context("the hello")?;
            tls = (!self.hello_only).then(|| Box::new(client));
        }
        socket.set_nonblocking(true)?;
        Ok(Channel {
            socket,
            tls,
            waiting: Vec::new(),
        })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Channel {
    /// For the poll.
    pub(crate) socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// What is sent once hands are shaken.
    waiting: Vec<u8>,
}

impl Channel {
    /// Sends bytes; what the socket does not take at once is an error.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            return match self.socket.write(bytes)? {
                written if written == bytes.len() => Ok(()),
                _ => Err(ErrorKind::WriteZero.into()),
            };
        };
        if tls.is_handshaking() {
            self.waiting.extend_from_slice(bytes);
            return Ok(());
        }
        tls.writer().write_all(bytes)?;
        Self::flush(tls, &mut self.socket)
    }

    fn flush(tls: &mut ClientConnection, socket: &mut TcpStream) -> io::Result<()> {
        while tls.wants_write() {
            tls.write_tls(socket)?;
        }
        Ok(())
    }

    /// Reads what there is: 0 at the end, `WouldBlock` when there is nothing.
    pub(crate) fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return self.socket.read(room);
        };
        loop {
            match tls.reader().read(room) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            if tls.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets()
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            if !tls.is_handshaking() && !self.waiting.is_empty() {
                let waiting = std::mem::take(&mut self.waiting);
                tls.writer().write_all(&waiting)?;
            }
            Self::flush(tls, &mut self.socket)?;
        }
    }
}

/// Takes whatever certificate there is.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::RSA_PSS_SHA256,
        ]
    }
}
