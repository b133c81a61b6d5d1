//! What the proxies are asked to do: the table of scenarios.

/// How many rules lead to the upstream, of which the last one is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Routes {
    /// One for everything.
    One,
    /// So many path prefixes.
    Prefixes(usize),
    /// So many virtual hosts.
    Hosts(usize),
}

/// What is TLS about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    /// Nothing.
    None,
    /// The proxy ends it, and connections are kept.
    Kept,
    /// The proxy ends it, and each request has a connection and a whole handshake of its own.
    Full(Key),
    /// The same, with a handshake that resumes a session.
    Resumed,
    /// The proxy passes it through, by the name that is asked for.
    Pass,
    /// Clients speak plaintext, and the proxy secures what leaves: its connections to the upstream are kept, and the
    /// upstream's certificate is verified.
    Originated,
}

/// The kind of a server's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// ECDSA P-256.
    Ecdsa,
    /// RSA, 2048 bits.
    Rsa,
}

impl Tls {
    /// Whether clients speak it.
    pub(crate) fn is_downstream(self) -> bool {
        !matches!(self, Self::None | Self::Originated)
    }

    /// The key of a proxy that ends it.
    pub(crate) fn key(self) -> Option<Key> {
        match self {
            Self::None | Self::Pass | Self::Originated => None,
            Self::Kept | Self::Resumed => Some(Key::Ecdsa),
            Self::Full(key) => Some(key),
        }
    }
}

/// What is HTTP/2 about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Http2 {
    /// Streams at a time on each connection.
    pub(crate) streams: usize,
    /// Whether the upstream is spoken to in HTTP/2, too, in cleartext.
    pub(crate) upstream: bool,
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    /// Its name on the command line.
    pub(crate) key: &'static str,
    /// What a reader is told of it.
    pub(crate) title: &'static str,
    /// Rules.
    pub(crate) routes: Routes,
    /// Whether answers are 1 MiB instead of 48 bytes.
    pub(crate) bulk: bool,
    /// Whether everything is on that a production edge has on: access log, metrics, header rules.
    pub(crate) features: bool,
    /// TLS.
    pub(crate) tls: Tls,
    /// HTTP/2; None for HTTP/1.1.
    pub(crate) http2: Option<Http2>,
    /// Whether requests are calls of gRPC, whose message comes back with trailers.
    pub(crate) grpc: bool,
    /// Connections of clients.
    pub(crate) connections: usize,
    /// Connections that do nothing while memory is read; 0: not measured.
    pub(crate) idle: usize,
    /// Requests in a second when latency is measured; 0: not measured.
    pub(crate) rate: u32,
}

const PLAIN: Scenario = Scenario {
    key: "",
    title: "",
    routes: Routes::One,
    bulk: false,
    features: false,
    tls: Tls::None,
    http2: None,
    grpc: false,
    connections: 64,
    idle: 0,
    rate: 0,
};

/// All of them.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        key: "a",
        title: "keep-alive, 48 bytes",
        rate: 2_000,
        ..PLAIN
    },
    Scenario {
        key: "b-1k-routes",
        title: "1,000 prefix routes, the last one hit",
        routes: Routes::Prefixes(1_000),
        ..PLAIN
    },
    Scenario {
        key: "b-10k-routes",
        title: "10,000 prefix routes, the last one hit",
        routes: Routes::Prefixes(10_000),
        ..PLAIN
    },
    Scenario {
        key: "b-1k-hosts",
        title: "1,000 virtual hosts, the last one hit",
        routes: Routes::Hosts(1_000),
        ..PLAIN
    },
    Scenario {
        key: "b-10k-hosts",
        title: "10,000 virtual hosts, the last one hit",
        routes: Routes::Hosts(10_000),
        ..PLAIN
    },
    Scenario {
        key: "c",
        title: "1 MiB bodies, 16 connections",
        bulk: true,
        connections: 16,
        ..PLAIN
    },
    Scenario {
        key: "d",
        title: "5,000 idle connections",
        idle: 5_000,
        ..PLAIN
    },
    Scenario {
        key: "e",
        title: "access log, metrics, 100 routes, header rules",
        routes: Routes::Prefixes(100),
        features: true,
        rate: 2_000,
        ..PLAIN
    },
    Scenario {
        key: "tls-kept",
        title: "TLS 1.3, keep-alive, 48 bytes",
        tls: Tls::Kept,
        ..PLAIN
    },
    Scenario {
        key: "tls-full",
        title: "a TLS 1.3 handshake for each request, ECDSA P-256",
        tls: Tls::Full(Key::Ecdsa),
        connections: 16,
        ..PLAIN
    },
    Scenario {
        key: "tls-rsa",
        title: "a TLS 1.3 handshake for each request, RSA 2048",
        tls: Tls::Full(Key::Rsa),
        connections: 16,
        ..PLAIN
    },
    Scenario {
        key: "tls-resumed",
        title: "a resumed TLS 1.3 handshake for each request",
        tls: Tls::Resumed,
        connections: 16,
        ..PLAIN
    },
    Scenario {
        key: "tls-bulk",
        title: "1 MiB bodies over TLS 1.3, 16 connections",
        tls: Tls::Kept,
        bulk: true,
        connections: 16,
        ..PLAIN
    },
    Scenario {
        key: "tls-idle",
        title: "5,000 idle TLS 1.3 connections",
        tls: Tls::Kept,
        idle: 5_000,
        ..PLAIN
    },
    Scenario {
        key: "tls-pass",
        title: "TLS passed through by its name, 1 MiB answers, 16 connections",
        tls: Tls::Pass,
        bulk: true,
        connections: 16,
        ..PLAIN
    },
    Scenario {
        key: "egress",
        title: "HTTP in, TLS 1.3 out, keep-alive, 48 bytes",
        tls: Tls::Originated,
        ..PLAIN
    },
    Scenario {
        key: "h2",
        title: "HTTP/2 over TLS 1.3, 8 connections of 32 streams, 48 bytes",
        tls: Tls::Kept,
        http2: Some(Http2 {
            streams: 32,
            upstream: false,
        }),
        connections: 8,
        ..PLAIN
    },
    Scenario {
        key: "h2-h2c",
        title: "the same, with HTTP/2 to the upstream in cleartext",
        tls: Tls::Kept,
        http2: Some(Http2 {
            streams: 32,
            upstream: true,
        }),
        connections: 8,
        ..PLAIN
    },
    Scenario {
        key: "grpc",
        title: "unary calls of gRPC over TLS 1.3, 8 connections of 32 streams, HTTP/2 to the upstream in cleartext",
        tls: Tls::Kept,
        http2: Some(Http2 {
            streams: 32,
            upstream: true,
        }),
        grpc: true,
        connections: 8,
        ..PLAIN
    },
    Scenario {
        key: "h2-bulk",
        title: "1 MiB bodies over HTTP/2 over TLS 1.3, 4 connections of 4 streams",
        tls: Tls::Kept,
        http2: Some(Http2 {
            streams: 4,
            upstream: false,
        }),
        bulk: true,
        connections: 4,
        ..PLAIN
    },
];

impl Scenario {
    /// The path prefix of a rule.
    pub(crate) fn prefix(rule: usize) -> String {
        format!("/service-{rule:05}/")
    }

    /// The name of a virtual host.
    pub(crate) fn host(rule: usize) -> String {
        format!("host-{rule:05}.example.com")
    }

    /// The path of the answer, without what rules are about.
    pub(crate) fn file(&self) -> &'static str {
        if self.bulk { "mib" } else { "small" }
    }

    /// Whether the upstream is spoken to in HTTP/2.
    pub(crate) fn is_http2_upstream(&self) -> bool {
        self.http2.is_some_and(|http2| http2.upstream)
    }

    /// The bytes of a request that hits the last rule.
    pub(crate) fn request(&self) -> Vec<u8> {
        let file = self.file();
        let (host, path) = match self.routes {
            Routes::One => ("bench.example.com".to_owned(), format!("/{file}")),
            Routes::Prefixes(count) => {
                let prefix = Self::prefix(count - 1);
                ("bench.example.com".to_owned(), format!("{prefix}{file}"))
            }
            Routes::Hosts(count) => (Self::host(count - 1), format!("/{file}")),
        };
        format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: bench\r\naccept: */*\r\n\r\n")
            .into_bytes()
    }

    /// The rules: which host, and which prefix.
    pub(crate) fn rules(&self) -> Vec<(String, String)> {
        match self.routes {
            Routes::One => vec![("*".to_owned(), "/".to_owned())],
            Routes::Prefixes(count) => (0..count)
                .map(|rule| ("*".to_owned(), Self::prefix(rule)))
                .collect(),
            Routes::Hosts(count) => (0..count)
                .map(|rule| (Self::host(rule), "/".to_owned()))
                .collect(),
        }
    }
}
