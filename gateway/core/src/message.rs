//! The head of a request or response, whatever HTTP version carried it.
//!
//! A codec fills a head in, the proxy routes and changes it, and a codec of either side writes it out. Heads are
//! reused from exchange to exchange, so their buffers are allocated once.

use crate::grpc;
use crate::header::{HeaderId, HeaderList};
use http::{Method, StatusCode};

/// The HTTP version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    #[default]
    Http11,
    /// HTTP/2
    Http2,
}

impl Version {
    /// As access logs and `%PROTOCOL%` write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// How a message's body ends, as the message itself declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyLength {
    /// There is no body.
    #[default]
    None,
    /// Exactly so many bytes.
    Known(u64),
    /// Chunks until the last one, then trailers.
    Chunked,
    /// Until the connection closes (responses only).
    UntilClose,
}

impl BodyLength {
    /// Whether no byte of a body follows.
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Known(0))
    }
}

/// A request's method, target and fields.
#[derive(Debug, Clone, Default)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// Path and query in origin form, or `*` for `OPTIONS *`.
    pub path: String,
    /// How many bytes of `path` come before the query's `?`.
    pub path_len: usize,
    /// The authority as the client wrote it, with its port: of the target in absolute form, else of Host.
    pub authority: String,
    /// The authority's host in lower case without its port: the key of virtual hosts.
    pub host: String,
    /// The version that the client speaks.
    pub version: Version,
    /// Everything but Host, which `authority` replaces. Framing and hop-by-hop fields are there, for routes to match,
    /// until the proxy removes them.
    pub headers: HeaderList,
    /// How long the body is.
    pub body: BodyLength,
    /// Whether the client waits for 100 (Continue) before it sends the body (RFC 9110, 10.1.1).
    pub expects_continue: bool,
    /// Whether the client has said that it takes trailers (`te: trailers`), without which gRPC refuses to answer.
    pub wants_trailers: bool,
    /// The protocol that the client wants to go on in, in lower case; empty when none (RFC 9110, 7.8; RFC 8441).
    pub upgrade: String,
    /// Whether the connection stays open after this exchange, as far as the client is concerned.
    pub keep_alive: bool,
    /// Whether the target says that it is `https` (RFC 9112, 3.2.2; RFC 9113, 8.3.1).
    pub is_https: bool,
}

impl RequestHead {
    /// Whether it is a call of gRPC ([`grpc::is_call`]).
    pub fn is_call(&self) -> bool {
        self.headers.get(HeaderId::ContentType).is_some_and(grpc::is_call)
    }

    /// Makes the head empty and keeps its buffers.
    pub fn clear(&mut self) {
        self.method = Method::GET;
        self.path.clear();
        self.path_len = 0;
        self.authority.clear();
        self.host.clear();
        self.version = Version::Http11;
        self.headers.clear();
        self.body = BodyLength::None;
        self.expects_continue = false;
        self.wants_trailers = false;
        self.upgrade.clear();
        self.keep_alive = true;
        self.is_https = false;
    }

    /// The path without its query.
    pub fn path_only(&self) -> &str {
        self.path.get(..self.path_len).unwrap_or(&self.path)
    }

    /// The query without its `?`, if there is one.
    pub fn query(&self) -> Option<&str> {
        self.path
            .get(self.path_len..)
            .and_then(|rest| rest.strip_prefix('?'))
    }

    /// Replaces path and query, and finds the query anew.
    pub fn set_path(&mut self, path: &str) {
        self.path.clear();
        self.path.push_str(path);
        self.path_len = self.path.find('?').unwrap_or(self.path.len());
    }

    /// Replaces the authority; the host that routes are looked up by stays.
    pub fn set_authority(&mut self, authority: &str) {
        self.authority.clear();
        self.authority.push_str(authority);
    }
}

/// A response's status and fields.
#[derive(Debug, Clone, Default)]
pub struct ResponseHead {
    /// The status code.
    pub status: StatusCode,
    /// The version that the upstream spoke.
    pub version: Version,
    /// The fields; framing fields are the codec's and not among them.
    pub headers: HeaderList,
    /// How long the body is.
    pub body: BodyLength,
    /// The Content-Length that describes a body which is not sent (HEAD, 304).
    pub declared_length: Option<u64>,
    /// The protocol that both sides go on in, with a status of 101; empty otherwise.
    pub upgrade: String,
    /// Whether the connection that it came on may carry another exchange.
    pub keep_alive: bool,
}

impl ResponseHead {
    /// Makes the head empty and keeps its buffers.
    pub fn clear(&mut self) {
        self.status = StatusCode::OK;
        self.version = Version::Http11;
        self.headers.clear();
        self.body = BodyLength::None;
        self.declared_length = None;
        self.upgrade.clear();
        self.keep_alive = true;
    }
}
