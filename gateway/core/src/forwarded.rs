//! What the gateway tells the upstream about the client: x-forwarded-*, x-request-id, x-envoy-external-address.
//!
//! The peer of the connection is the only thing that is known for certain. What the fields say is believed only as far
//! as `numTrustedProxies` names proxies in front of this gateway (Istio `gatewayTopology`, Envoy `xff_num_trusted_hops`
//! with `use_remote_address`).

use crate::header::{HeaderId, HeaderList};
use crate::message::RequestHead;
use crate::random::Random;
use std::io::Write;
use std::net::IpAddr;

/// What is known about the connection that a request came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Downstream {
    /// The peer's address.
    pub peer: IpAddr,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The port of the listener, as the Gateway names it.
    pub port: u16,
    /// Proxies in front of this gateway that are trusted.
    pub trusted_proxies: u32,
}

/// Writes the fields, and answers the client's address as far as it can be trusted.
pub fn apply(head: &mut RequestHead, downstream: Downstream, random: &mut Random) -> IpAddr {
    let trusted = downstream.trusted_proxies as usize;
    let headers = &mut head.headers;
    let client = client_address(headers, downstream.peer, trusted);

    let mut peer = Text::new();
    let _fits = write!(peer, "{}", downstream.peer);
    match headers.get_all(HeaderId::XForwardedFor).count() {
        0 => headers.append_known(HeaderId::XForwardedFor, peer.as_bytes()),
        _ => {
            let mut list = headers
                .get_all(HeaderId::XForwardedFor)
                .collect::<Vec<_>>()
                .join(&b","[..]);
            list.push(b',');
            list.extend_from_slice(peer.as_bytes());
            headers.set(HeaderId::XForwardedFor, &list);
        }
    }
    let keeps = |headers: &HeaderList, id| trusted > 0 && headers.get(id).is_some();
    if !keeps(headers, HeaderId::XForwardedProto) {
        headers.set(HeaderId::XForwardedProto, downstream.scheme.as_bytes());
    }
    if !keeps(headers, HeaderId::XForwardedHost) {
        headers.remove(HeaderId::XForwardedHost);
        headers.append_known(HeaderId::XForwardedHost, head.authority.as_bytes());
    }
    if !keeps(headers, HeaderId::XForwardedPort) {
        headers.set(
            HeaderId::XForwardedPort,
            itoa::Buffer::new().format(downstream.port).as_bytes(),
        );
    }
    let mut external = Text::new();
    let _fits = write!(external, "{client}");
    headers.set(HeaderId::XEnvoyExternalAddress, external.as_bytes());
    request_id(headers, random);
    // Fields by which Envoy lets trusted callers steer it; from the edge they are nobody's to send.
    headers.retain(|_, name, _| !is_internal(name));
    client
}

/// `x-envoy-` fields of a client that would steer this gateway or another one behind it.
fn is_internal(name: &[u8]) -> bool {
    const INTERNAL: [&[u8]; 12] = [
        b"x-envoy-upstream-rq-timeout-ms",
        b"x-envoy-upstream-rq-per-try-timeout-ms",
        b"x-envoy-max-retries",
        b"x-envoy-retry-on",
        b"x-envoy-retry-grpc-on",
        b"x-envoy-retriable-status-codes",
        b"x-envoy-retriable-header-names",
        b"x-envoy-internal",
        b"x-envoy-expected-rq-timeout-ms",
        b"x-envoy-attempt-count",
        b"x-envoy-decorator-operation",
        b"x-envoy-original-path",
    ];
    name.len() > 8
        && name
            .get(..8)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"x-envoy-"))
        && INTERNAL.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// The address of the client: the peer, or with N trusted proxies the N-th entry of x-forwarded-for from the right.
fn client_address(headers: &HeaderList, peer: IpAddr, trusted: usize) -> IpAddr {
    if trusted == 0 {
        return peer;
    }
    let entries: Vec<&[u8]> = headers
        .get_all(HeaderId::XForwardedFor)
        .flat_map(|value| value.split(|&byte| byte == b','))
        .collect();
    let entry = entries.len().checked_sub(trusted).and_then(|at| entries.get(at));
    entry
        .and_then(|text| std::str::from_utf8(text.trim_ascii()).ok())
        .and_then(|text| text.trim_matches(['[', ']']).parse().ok())
        .unwrap_or(peer)
}

/// Keeps a client's x-request-id when it is one harmless word, else makes a random UUID (version 4).
fn request_id(headers: &mut HeaderList, random: &mut Random) {
    let is_harmless = |id: &[u8]| (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
    let is_kept = {
        let mut given = headers.get_all(HeaderId::XRequestId);
        given.next().is_some_and(is_harmless) && given.next().is_none()
    };
    if is_kept {
        return;
    }
    let (high, low) = (random.next_u64(), random.next_u64());
    let high = (high & !0xF000) | 0x4000;
    let low = (low & !(0b11 << 62)) | (0b10 << 62);
    let mut id = Text::new();
    let _fits = write!(
        id,
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xFFFF,
        high & 0xFFFF,
        low >> 48,
        low & 0xFFFF_FFFF_FFFF
    );
    headers.set(HeaderId::XRequestId, id.as_bytes());
}

/// A short text on the stack.
struct Text {
    bytes: [u8; 64],
    len: usize,
}

impl Text {
    fn new() -> Self {
        Self {
            bytes: [0; 64],
            len: 0,
        }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl Write for Text {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        let room = self.bytes.get_mut(self.len..).unwrap_or(&mut []);
        let fits = part.len().min(room.len());
        for (to, from) in room.iter_mut().zip(part) {
            *to = *from;
        }
        self.len += fits;
        Ok(fits)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(fields: &[(&str, &str)], trusted_proxies: u32) -> (RequestHead, IpAddr) {
        let mut head = RequestHead::default();
        head.set_authority("a.example:8080");
        for (name, value) in fields {
            head.headers.append(name.as_bytes(), value.as_bytes());
        }
        let downstream = Downstream {
            peer: [10, 0, 0, 9].into(),
            scheme: "http",
            port: 80,
            trusted_proxies,
        };
        let client = apply(&mut head, downstream, &mut Random::from_seed(1));
        (head, client)
    }

    fn value(head: &RequestHead, id: HeaderId) -> String {
        head.headers
            .get_all(id)
            .map(|value| String::from_utf8_lossy(value).into_owned())
            .collect::<Vec<_>>()
            .join("|")
    }

    #[test]
    fn untrusted_fields_are_replaced_and_the_peer_is_appended() {
        let fields = [
            ("X-Forwarded-For", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "evil"),
            ("X-Envoy-External-Address", "9.9.9.9"),
            ("x-envoy-max-retries", "50"),
        ];
        let (head, client) = run(&fields, 0);
        assert_eq!(client, IpAddr::from([10, 0, 0, 9]));
        assert_eq!(value(&head, HeaderId::XForwardedFor), "1.1.1.1,2.2.2.2,10.0.0.9");
        assert_eq!(value(&head, HeaderId::XForwardedProto), "http");
        assert_eq!(value(&head, HeaderId::XForwardedHost), "a.example:8080");
        assert_eq!(value(&head, HeaderId::XForwardedPort), "80");
        assert_eq!(value(&head, HeaderId::XEnvoyExternalAddress), "10.0.0.9");
        assert!(!head.headers.to_string().contains("max-retries"));
    }

    #[test]
    fn one_trusted_proxy_is_believed_for_one_hop() {
        let (head, client) = run(
            &[
                ("X-Forwarded-For", "6.6.6.6, 1.1.1.1"),
                ("X-Forwarded-Proto", "https"),
            ],
            1,
        );
        assert_eq!(client, IpAddr::from([1, 1, 1, 1]));
        assert_eq!(value(&head, HeaderId::XForwardedProto), "https");
        assert_eq!(
            run(&[("X-Forwarded-For", "nonsense")], 1).1,
            IpAddr::from([10, 0, 0, 9])
        );
        assert_eq!(
            run(&[("X-Forwarded-For", "1.1.1.1")], 3).1,
            IpAddr::from([10, 0, 0, 9])
        );
    }

    #[test]
    fn request_ids_are_kept_or_made() {
        assert_eq!(
            value(&run(&[("x-request-id", "abc")], 0).0, HeaderId::XRequestId),
            "abc"
        );
        let made = value(&run(&[("x-request-id", "a b")], 0).0, HeaderId::XRequestId);
        assert_eq!((made.len(), made.as_bytes()[14]), (36, b'4'), "{made}");
        assert_eq!(value(&run(&[], 0).0, HeaderId::XRequestId).len(), 36);
    }
}
