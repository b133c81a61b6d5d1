//! The beginning of a client's TLS connection: its hello is read and looked at, unopened; then, where TLS ends here,
//! hands are shaken.

use crate::io::buffer::{Filled, Pool, ReadBuffer};
use crate::io::stream::Stream;
use crate::io::timer::Timer;
use crate::io::tls::HandshakeError;
use crate::tls::{PeerCertificate, classify, describe_peer};
use isthmus_core::hello::{self, ClientHello, Peek};
use isthmus_core::reply::Cause;
use isthmus_core::source::Identity;
use isthmus_core::substitution::{ClientCertificate, TlsFacts};
use isthmus_core::tls::{HandshakeFailure, ServerTls};
use rustls::server::Acceptor;
use rustls::{CipherSuite, ProtocolVersion, ServerConfig};
use std::fmt::Write;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

/// A fatal alert that says `unrecognized_name` (RFC 8446, 6.2), in a record of its own.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
/// The same for `internal_error`: the server has no keys.
const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];
/// The same for `protocol_version`, which the TLS library would call otherwise (RFC 5246, E.1).
const PROTOCOL_VERSION: [u8; 7] = [21, 3, 1, 0, 2, 2, 70];
/// The same for `decode_error`, for what the TLS library would have let pass.
const DECODE_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];

/// How long, and for how many bytes, a client whose handshake failed is listened to.
const PART: Duration = Duration::from_secs(1);
/// See above.
const PART_BYTES: usize = 256 * 1024;

/// What is known about a client whose TLS ends here.
pub struct Secured {
    /// What it was shown, and what was asked of it.
    pub policy: Arc<ServerTls>,
    /// The name that it asked for.
    pub server_name: Option<Box<str>>,
    /// What x-forwarded-client-cert says of its certificate; None when it showed none.
    pub client_cert: Option<Box<str>>,
    /// The SPIFFE URI of its certificate, when that was verified.
    pub identity: Option<Box<str>>,
    /// What substitutions can name.
    pub facts: TlsFacts,
}

/// Reads a whole hello into `buffer`, which keeps its bytes, until `deadline` is over.
pub async fn read_hello(
    stream: &Stream,
    buffer: &mut ReadBuffer,
    deadline: &mut Timer,
) -> Result<ClientHello, Cause> {
    poll_fn(|cx| {
        loop {
            match hello::peek(buffer.data()) {
                Ok(Peek::Hello(found)) => return Poll::Ready(Ok(found)),
                Ok(Peek::Incomplete) => {}
                Err(_) => return Poll::Ready(Err(Cause::Handshake(HandshakeFailure::NotTls))),
            }
            match buffer.poll_fill(stream, cx) {
                Poll::Ready(Ok(Filled::Bytes(_))) => {}
                Poll::Ready(Ok(Filled::Full)) => {
                    return Poll::Ready(Err(Cause::Handshake(HandshakeFailure::NotTls)));
                }
                Poll::Ready(Ok(Filled::End) | Err(_)) => {
                    return Poll::Ready(Err(Cause::Handshake(HandshakeFailure::Closed)));
                }
                Poll::Pending => {
                    return deadline
                        .poll(cx)
                        .map(|()| Err(Cause::Handshake(HandshakeFailure::Timeout)));
                }
            }
        }
    })
    .await
}

/// Tells a client why its hello, as far as it has come in `begun`, leads nowhere; as far as its kernel takes it at once.
pub async fn refuse(stream: &Stream, begun: &ReadBuffer, cause: Cause) {
    let alert = match cause {
        Cause::NoChain => UNRECOGNIZED_NAME.to_vec(),
        Cause::NoKeys => INTERNAL_ERROR.to_vec(),
        Cause::Handshake(HandshakeFailure::NoSharedParameters) => PROTOCOL_VERSION.to_vec(),
        Cause::Handshake(HandshakeFailure::NotTls) => fault_alert(begun.data()),
        _ => return,
    };
    poll_fn(|cx| {
        let _as_far_as_it_goes = stream.poll_write(cx, &[std::io::IoSlice::new(&alert)]);
        Poll::Ready(())
    })
    .await;
}

/// Ends a connection whose client was told why: closing at once would answer what it still sends with a reset, and a
/// reset makes its kernel drop the alert.
pub async fn part(stream: &Stream, deadline: &mut Timer) {
    stream.shutdown_write();
    deadline.set(PART);
    let mut left = PART_BYTES;
    let mut room = [0; 1024];
    poll_fn(|cx| {
        loop {
            match stream.poll_read_raw(cx, &mut room) {
                Poll::Ready(Ok(read)) if read > 0 && left > 0 => left = left.saturating_sub(read),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return deadline.poll(cx),
            }
        }
    })
    .await;
}

/// The alert that the TLS library has for a hello that is none: it knows which fault is called what.
fn fault_alert(mut bytes: &[u8]) -> Vec<u8> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() && acceptor.read_tls(&mut bytes).is_ok_and(|read| read > 0) {
        if let Err((_, mut alert)) = acceptor.accept() {
            let mut out = Vec::new();
            // Writing to a Vec cannot fail.
            let _infallible = alert.write_all(&mut out);
            if !out.is_empty() {
                return out;
            }
            break;
        }
    }
    DECODE_ERROR.to_vec()
}

/// Shakes hands with a client whose hello is in `buffer`, until `deadline` is over.
pub async fn shake_hands(
    stream: &mut Stream,
    config: &Arc<ServerConfig>,
    mut buffer: ReadBuffer,
    pool: &Pool,
    deadline: &mut Timer,
) -> Result<(), Cause> {
    let connection = rustls::ServerConnection::new(Arc::clone(config))
        .map_err(|_| Cause::Handshake(HandshakeFailure::Other))?;
    stream.begin_tls(connection, pool);
    let shaken = poll_fn(|cx| {
        let mut begun = buffer.data();
        let there = begun.len();
        let shaken = stream.poll_handshake(&mut begun, cx);
        let used = there - begun.len();
        if used > 0 {
            buffer.consume(used);
        }
        if shaken.is_pending() {
            return deadline.poll(cx).map(|()| None);
        }
        shaken.map(Some)
    })
    .await;
    let failure = match shaken {
        Some(Ok(())) => return Ok(()),
        None => HandshakeFailure::Timeout,
        Some(Err(HandshakeError::Tls(error))) => classify(&error),
        Some(Err(HandshakeError::Closed | HandshakeError::Io(_))) => HandshakeFailure::Closed,
    };
    Err(Cause::Handshake(failure))
}

/// What is known about a client with which hands were shaken.
pub fn secured(stream: &Stream, policy: Arc<ServerTls>, server_name: Option<Box<str>>) -> Secured {
    let described = stream.with_tls(|connection| {
        let peer = connection.peer_certificates().and_then(describe_peer);
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "",
        };
        let suite = connection.negotiated_cipher_suite();
        let cipher = suite.map_or("", |suite| openssl_name(suite.suite()));
        let client_cert = peer.as_ref().map(forwarded_client_cert);
        let uris = peer
            .as_ref()
            .filter(|_| !policy.skip_verify)
            .map(|peer| &peer.uris);
        let identity = uris.and_then(|uris| uris.iter().find(|uri| Identity::parse(uri).is_some()));
        let identity: Option<Box<str>> = identity.map(|uri| uri.as_str().into());
        let facts = TlsFacts {
            version,
            cipher,
            client: peer.as_ref().map(|peer| Box::new(client_certificate(peer))),
        };
        (client_cert, identity, facts)
    });
    let (client_cert, identity, facts) = described.unwrap_or((
        None,
        None,
        TlsFacts {
            version: "",
            cipher: "",
            client: None,
        },
    ));
    Secured {
        policy,
        server_name,
        client_cert,
        identity,
        facts,
    }
}

/// A cipher suite as OpenSSL, and so Envoy, names it.
fn openssl_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => "",
    }
}

fn client_certificate(peer: &PeerCertificate) -> ClientCertificate {
    let clean = |text: &str| {
        let mut out = String::with_capacity(text.len());
        push_printable(text, &mut out);
        out.into()
    };
    let time = |seconds: i64| {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    };
    ClientCertificate {
        subject: clean(&peer.subject),
        issuer: clean(&peer.issuer),
        serial: clean(&peer.serial_hex),
        fingerprint: clean(&peer.hash_hex),
        uris: clean(&peer.uris.join(",")),
        dns_names: clean(&peer.dns_names.join(",")),
        not_before: time(peer.valid.0),
        not_after: time(peer.valid.1),
    }
}

/// Text of a certificate, which may be anything, as it can stand in a field.
fn push_printable(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' => out.push(byte as char),
            _ => {
                // Writing to a String cannot fail.
                let _infallible = write!(out, "%{byte:02X}");
            }
        }
    }
}

/// An element of x-forwarded-client-cert, as Envoy writes it.
fn forwarded_client_cert(peer: &PeerCertificate) -> Box<str> {
    let mut out = format!("Hash={}", peer.hash_hex);
    out.push_str(";Cert=\"");
    for byte in peer.pem.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => {
                // Writing to a String cannot fail.
                let _infallible = write!(out, "%{byte:02X}");
            }
        }
    }
    out.push_str("\";Subject=\"");
    push_quoted(&peer.subject, &mut out);
    out.push('"');
    for (key, names) in [("URI", &peer.uris), ("DNS", &peer.dns_names)] {
        for name in names {
            let needs_quotes = name.contains([',', ';', '=', '"', '\\']);
            let quote = if needs_quotes { "\"" } else { "" };
            let _infallible = write!(out, ";{key}={quote}");
            push_quoted(name, &mut out);
            out.push_str(quote);
        }
    }
    out.into()
}

/// Text of a certificate, which may be anything, as it can stand between quotes and in a field.
fn push_quoted(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', byte as char]),
            b' '..=b'~' => out.push(byte as char),
            _ => {
                // Writing to a String cannot fail.
                let _infallible = write!(out, "%{byte:02X}");
            }
        }
    }
}
