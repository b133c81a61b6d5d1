//! Protocols as resources name them: of Gateway servers, ServiceEntry ports, and Kubernetes Service ports.

use std::fmt;

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

#[cfg(test)]
mod tests {
    use super::*;

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
