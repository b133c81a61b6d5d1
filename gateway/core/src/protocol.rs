//! Protocols as resources name them: of Gateway servers, ServiceEntry ports, and Kubernetes Service ports; and what is
//! spoken to upstreams because of them.

use crate::message::Version;
use std::fmt;
use std::time::Duration;

/// What is spoken on a port (Istio `protocol.Instance`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2, in cleartext with prior knowledge.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// gRPC-Web, over HTTP/1.1 or HTTP/2.
    GrpcWeb,
    /// HTTP with the request form of proxies.
    HttpProxy,
    /// HTTP over TLS.
    Https,
    /// TLS around anything.
    Tls,
    /// Bytes.
    Tcp,
    /// Datagrams, which a gateway does not route.
    Udp,
    /// MongoDB, carried as bytes.
    Mongo,
    /// Redis, carried as bytes.
    Redis,
    /// MySQL, carried as bytes.
    MySql,
    /// Not said, or nothing known: found out by looking, where that is possible.
    #[default]
    Unsupported,
}

impl Protocol {
    /// Reads a name, whatever its case; what is no protocol is [`Self::Unsupported`].
    pub fn parse(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "http" => Self::Http,
            "http2" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "http_proxy" => Self::HttpProxy,
            "https" => Self::Https,
            "tls" => Self::Tls,
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "mongo" => Self::Mongo,
            "redis" => Self::Redis,
            "mysql" => Self::MySql,
            _ => Self::Unsupported,
        }
    }

    /// What a port of a Kubernetes Service speaks: `app_protocol` if it is given, else the name up to its first dash
    /// (`http-web`, `grpc-web-x`), else the transport.
    pub fn of_service_port(name: &str, app_protocol: &str, transport: &str) -> Self {
        if transport.eq_ignore_ascii_case("UDP") {
            return Self::Udp;
        }
        if !app_protocol.is_empty() {
            return match app_protocol.to_ascii_lowercase().as_str() {
                "kubernetes.io/h2c" => Self::Http2,
                "kubernetes.io/ws" => Self::Http,
                "kubernetes.io/wss" => Self::Https,
                text => Self::parse(text),
            };
        }
        let name = name.to_ascii_lowercase();
        if name == "grpc-web" || name.starts_with("grpc-web-") {
            return Self::GrpcWeb;
        }
        Self::parse(name.split('-').next().unwrap_or(""))
    }

    /// Whether requests are routed one by one.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// Whether requests are spoken in HTTP/2 (Istio `IsHTTP2`, but for gRPC-Web, which is passed on as it comes here and
    /// not made gRPC of: its servers take HTTP/1.1).
    pub const fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }

    /// Whether it begins with a TLS handshake.
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTP",
            Self::Http2 => "HTTP2",
            Self::Grpc => "GRPC",
            Self::GrpcWeb => "GRPC-Web",
            Self::HttpProxy => "HTTP_PROXY",
            Self::Https => "HTTPS",
            Self::Tls => "TLS",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Mongo => "Mongo",
            Self::Redis => "Redis",
            Self::MySql => "MySQL",
            Self::Unsupported => "UnsupportedProtocol",
        })
    }
}

/// How requests are spoken to the endpoints of a cluster (`connectionPool.http`, and the protocol of its port).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct UpstreamHttp {
    /// In which version.
    pub version: UpstreamVersion,
    /// Most requests at a time on one HTTP/2 connection, whatever more the upstream allows (`maxConcurrentStreams`);
    /// None leaves it to the upstream. Never 0.
    pub max_concurrent_streams: Option<u32>,
    /// How HTTP/2 connections find out that their peer is gone (`http2KeepAlive`).
    pub keepalive: Option<Http2Keepalive>,
}

/// Which version of HTTP an upstream is spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum UpstreamVersion {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2: by ALPN over TLS, else with prior knowledge (RFC 9113, 3.3).
    Http2,
    /// The one that the client speaks (`useClientProtocol`).
    SameAsClient,
}

impl UpstreamVersion {
    /// The version that a request is sent in, given the client's.
    pub const fn for_client(self, client: Version) -> Version {
        match (self, client) {
            (Self::Http2, _) | (Self::SameAsClient, Version::Http2) => Version::Http2,
            (Self::Http1 | Self::SameAsClient, _) => Version::Http11,
        }
    }
}

/// `http2KeepAlive`: PING frames on every HTTP/2 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Http2Keepalive {
    /// Time between two.
    pub interval: Duration,
    /// Time without an answer after which the connection is dead.
    pub timeout: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_sent_in_the_clusters_version_or_the_clients() {
        use Version::{Http2, Http10, Http11};
        for (version, client, sent) in [
            (UpstreamVersion::Http1, Http2, Http11),
            (UpstreamVersion::Http1, Http10, Http11),
            (UpstreamVersion::Http2, Http10, Http2),
            (UpstreamVersion::Http2, Http2, Http2),
            (UpstreamVersion::SameAsClient, Http10, Http11),
            (UpstreamVersion::SameAsClient, Http11, Http11),
            (UpstreamVersion::SameAsClient, Http2, Http2),
        ] {
            assert_eq!(version.for_client(client), sent, "{version:?} {client:?}");
        }
    }

    #[test]
    fn service_ports_say_their_protocol_by_name_or_app_protocol() {
        for (name, app_protocol, transport, expected) in [
            ("http", "", "TCP", Protocol::Http),
            ("http-web", "", "TCP", Protocol::Http),
            ("HTTP2-x", "", "", Protocol::Http2),
            ("grpc-web-x", "", "", Protocol::GrpcWeb),
            ("grpc-webx", "", "", Protocol::Grpc),
            ("web", "", "", Protocol::Unsupported),
            ("", "", "", Protocol::Unsupported),
            ("http", "grpc", "TCP", Protocol::Grpc),
            ("tcp", "kubernetes.io/h2c", "TCP", Protocol::Http2),
            ("http", "example.com/x", "TCP", Protocol::Unsupported),
            ("http", "", "UDP", Protocol::Udp),
        ] {
            assert_eq!(
                Protocol::of_service_port(name, app_protocol, transport),
                expected,
                "{name} {app_protocol}"
            );
        }
    }
}
