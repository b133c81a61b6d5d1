//! What the gateway tells the upstream about the client: x-forwarded-*, x-request-id, x-envoy-external-address.
//!
//! The peer of the connection is the only thing that is known for certain. What the fields say is believed only as far
//! as `numTrustedProxies` names proxies in front of this gateway (Istio `gatewayTopology`, Envoy `xff_num_trusted_hops`
//! with `use_remote_address`).

use crate::attempt::Overrides;
use crate::header::{HeaderId, HeaderList};
use crate::limits::TrustedRanges;
use crate::message::RequestHead;
use crate::random::Random;
use std::io::Write;
use std::net::IpAddr;

/// What becomes of x-forwarded-client-cert (Istio `gatewayTopology.forwardClientCertDetails`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardClientCert {
    /// It is removed.
    Sanitize,
    /// What a client with a certificate sends is passed on; what others send is removed.
    ForwardOnly,
    /// The same, with the client's own certificate behind it.
    AppendForward,
    /// It says what the client's certificate says, and nothing else: Istio's default for gateways.
    #[default]
    SanitizeSet,
    /// What anybody sends is passed on.
    AlwaysForwardOnly,
}

impl ForwardClientCert {
    /// The form that Istio names so.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "SANITIZE" => Self::Sanitize,
            "FORWARD_ONLY" => Self::ForwardOnly,
            "APPEND_FORWARD" => Self::AppendForward,
            "SANITIZE_SET" | "UNDEFINED" => Self::SanitizeSet,
            "ALWAYS_FORWARD_ONLY" => Self::AlwaysForwardOnly,
            _ => return None,
        })
    }

    /// Writes the field; `own` is what the client's certificate says, None when it has shown none.
    pub fn apply(self, headers: &mut HeaderList, own: Option<&str>) {
        const NAME: HeaderId = HeaderId::XForwardedClientCert;
        match (self, own) {
            (Self::AlwaysForwardOnly, _) | (Self::ForwardOnly, Some(_)) => {}
            (Self::SanitizeSet, Some(own)) => headers.set(NAME, own.as_bytes()),
            (Self::AppendForward, Some(own)) => {
                let mut list = headers.get_all(NAME).collect::<Vec<_>>().join(&b","[..]);
                if !list.is_empty() {
                    list.push(b',');
                }
                list.extend_from_slice(own.as_bytes());
                headers.set(NAME, &list);
            }
            _ => headers.remove(NAME),
        }
    }
}

/// What is known about the connection that a request came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Downstream<'t> {
    /// The peer's address.
    pub peer: IpAddr,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The port of the listener, as the Gateway names it.
    pub port: u16,
    /// Proxies in front of this gateway that are trusted.
    pub trusted_proxies: u32,
    /// Clients that may steer their own requests.
    pub trusted: &'t TrustedRanges,
}

/// Writes the fields, and answers the client's address as far as it can be trusted. What a trusted client asks for its
/// request is put into `overrides`; one behind a trusted proxy is none, only because the proxy is.
pub fn apply(
    head: &mut RequestHead,
    downstream: Downstream<'_>,
    random: &mut Random,
    overrides: &mut Option<Box<Overrides>>,
) -> IpAddr {
    let trusted = downstream.trusted_proxies as usize;
    let headers = &mut head.headers;
    let client = client_address(headers, downstream.peer, trusted);

    let peer = Text::of_address(downstream.peer);
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
    let external = if client == downstream.peer {
        peer
    } else {
        Text::of_address(client)
    };
    headers.set(HeaderId::XEnvoyExternalAddress, external.as_bytes());
    request_id(headers, random);
    // Fields by which Envoy lets trusted callers steer it; they go no further, and from others they mean nothing.
    let mut is_trusted = None;
    headers.retain(|_, name, value| {
        let is_internal = is_internal(name);
        if is_internal && *is_trusted.get_or_insert_with(|| downstream.trusted.contains(client)) {
            overrides.get_or_insert_default().read(name, value);
        }
        !is_internal
    });
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
    headers.set(HeaderId::XRequestId, &uuid(high, low));
}

/// The text of a UUID (RFC 9562, 4).
fn uuid(high: u64, low: u64) -> [u8; 36] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; 36];
    let places = text.iter_mut().enumerate();
    let places = places.filter(|(at, _)| !matches!(at, 8 | 13 | 18 | 23));
    let mut value = (u128::from(high) << 64) | u128::from(low);
    for (_, place) in places {
        let digit = (value >> 124) as usize;
        *place = DIGITS.get(digit).copied().unwrap_or(b'0');
        value <<= 4;
    }
    text
}

/// A short text on the stack.
#[derive(Clone, Copy)]
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

    /// An address as it is written. Most are of version 4, which the standard library takes long to format.
    fn of_address(address: IpAddr) -> Self {
        let mut text = Self::new();
        let _fits = match address {
            IpAddr::V4(address) => address.octets().iter().enumerate().try_for_each(|(at, octet)| {
                let dot: &[u8] = if at == 0 { b"" } else { b"." };
                text.write_all(dot)?;
                text.write_all(itoa::Buffer::new().format(*octet).as_bytes())
            }),
            IpAddr::V6(address) => write!(text, "{address}"),
        };
        text
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
            trusted: &TrustedRanges::default(),
        };
        let mut asked = None;
        let client = apply(&mut head, downstream, &mut Random::from_seed(1), &mut asked);
        assert_eq!(asked, None, "its peer is not trusted");
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
    fn the_client_cert_field_is_only_believed_as_far_as_it_may_be() {
        let shown = |form: &str, sent: &str, own: Option<&str>| {
            let mut headers = HeaderList::default();
            headers.append(b"x-forwarded-client-cert", sent.as_bytes());
            ForwardClientCert::parse(form).unwrap().apply(&mut headers, own);
            let left: Vec<_> = headers
                .get_all(HeaderId::XForwardedClientCert)
                .map(|value| String::from_utf8_lossy(value).into_owned())
                .collect();
            left.join("|")
        };
        for (form, without, with) in [
            ("SANITIZE", "", ""),
            ("FORWARD_ONLY", "", "sent"),
            ("APPEND_FORWARD", "", "sent,own"),
            ("SANITIZE_SET", "", "own"),
            ("ALWAYS_FORWARD_ONLY", "sent", "sent"),
        ] {
            assert_eq!(shown(form, "sent", None), without, "{form}");
            assert_eq!(shown(form, "sent", Some("own")), with, "{form}");
        }
        assert_eq!(ForwardClientCert::parse("ALL"), None);
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
    fn a_trusted_peer_steers_its_own_request() {
        let mut head = RequestHead::default();
        head.headers.append(b"X-Envoy-Max-Retries", b"4");
        head.headers.append(b"x-envoy-attempt-count", b"4");
        let downstream = Downstream {
            peer: [127, 0, 0, 1].into(),
            scheme: "http",
            port: 80,
            trusted_proxies: 0,
            trusted: &TrustedRanges::default(),
        };
        let mut asked = None;
        apply(&mut head, downstream, &mut Random::from_seed(1), &mut asked);
        assert_eq!(asked.and_then(|asked| asked.retries), Some(4));
        let left = head.headers.to_string();
        assert!(
            !left.contains("max-retries") && !left.contains("attempt-count"),
            "{left}"
        );
        // A stranger behind a trusted proxy.
        let mut asked = None;
        head.headers.append(b"x-envoy-max-retries", b"4");
        head.headers.set(HeaderId::XForwardedFor, b"203.0.113.9");
        let behind = Downstream {
            trusted_proxies: 1,
            ..downstream
        };
        apply(&mut head, behind, &mut Random::from_seed(1), &mut asked);
        assert_eq!(asked, None);
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
        let (high, low) = (0x0123_4567_89ab_4cde, 0x8f01_2345_6789_abcd);
        assert_eq!(&uuid(high, low), b"01234567-89ab-4cde-8f01-23456789abcd");
    }

    #[test]
    fn addresses_are_written_as_the_standard_library_writes_them() {
        let mut random = Random::from_seed(5);
        for _ in 0..10_000 {
            let address = IpAddr::from((random.next_u64() as u32).to_be_bytes());
            assert_eq!(
                Text::of_address(address).as_bytes(),
                address.to_string().as_bytes()
            );
        }
        for text in ["0.0.0.0", "255.255.255.255", "::1", "2001:db8::ffff:7"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(Text::of_address(address).as_bytes(), text.as_bytes());
        }
    }
}
