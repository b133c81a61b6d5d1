//! Everything that can stop a request on its way, and what then happens: one table from cause to status, response flag,
//! log detail and text.
//!
//! Response flags and details are Envoy's, because operators search their logs for them.

use crate::grpc;
use crate::h1::{BodyError, HeadError};
use crate::h2::Misbehaviour;
use crate::overload::Shed;
use crate::tls::HandshakeFailure;
use http::StatusCode;
use std::fmt;

/// A set of Envoy's response flags, as the access log writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Flags(u32);

macro_rules! flags {
    ($($(#[doc = $doc:literal])+ $name:ident = $bit:literal;)*) => {
        impl Flags {
            $($(#[doc = $doc])+ pub const $name: Self = Self(1 << $bit);)*
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, stringify!($name))),*];
        }
    };
}

flags! {
    /// No route.
    NR = 0;
    /// No such cluster.
    NC = 1;
    /// No healthy upstream endpoint.
    UH = 2;
    /// Connecting to the upstream failed.
    UF = 3;
    /// A limit of the upstream cluster was reached.
    UO = 4;
    /// The upstream did not answer in time.
    UT = 5;
    /// The upstream closed the connection.
    UC = 6;
    /// The upstream broke the protocol.
    UPE = 7;
    /// Retries were spent.
    URX = 8;
    /// The client went away.
    DC = 9;
    /// The client broke the protocol.
    DPE = 10;
    /// The exchange stood still for too long.
    SI = 11;
    /// The client was too slow.
    DT = 12;
    /// No server of the port has the name that the client asked for.
    NFCF = 13;
    /// The request was held up on purpose.
    DI = 14;
    /// The request was aborted on purpose.
    FI = 15;
    /// The gateway itself has too much to do.
    OM = 16;
}

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there is no flag.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all flags of `other` are in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut names = Self::ALL
            .iter()
            .filter(|(flag, _)| self.contains(*flag))
            .map(|(_, name)| name);
        if let Some(first) = names.next() {
            f.write_str(first)?;
        }
        names.try_for_each(|name| write!(f, ",{name}"))
    }
}

/// Why the gateway itself answered, or broke an exchange off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// No virtual host has this authority.
    NoVirtualHost,
    /// No rule takes this request.
    NoRoute,
    /// The route's cluster is not known.
    NoCluster,
    /// The cluster has no endpoint to use.
    NoEndpoint,
    /// No connection to the upstream could be made.
    ConnectFailed,
    /// Connecting took too long.
    ConnectTimeout,
    /// The upstream closed before its answer's head was complete.
    UpstreamReset,
    /// The upstream closed in the middle of its answer.
    UpstreamBrokeOff,
    /// The upstream's answer is not HTTP, or is ambiguous.
    UpstreamHead(HeadError),
    /// The upstream's body is broken.
    UpstreamBody(BodyError),
    /// More interim responses than allowed.
    UpstreamInterim,
    /// The upstream's answer did not come, or not end, in time.
    UpstreamTimeout,
    /// The time of one attempt is over, and it is not made again.
    PerTryTimeout,
    /// A limit of the cluster is reached.
    Overflow,
    /// The shard has as much to do as it may.
    Overload(Shed),
    /// The request's head is refused.
    RequestHead(HeadError),
    /// The request's path cannot be normalized.
    RequestPath,
    /// The request's body is refused.
    RequestBody(BodyError),
    /// The request's body is larger than allowed.
    RequestTooLarge,
    /// The request's head did not arrive in time.
    HeaderTimeout,
    /// The request's body paused for too long.
    BodyTimeout,
    /// Neither side moved for too long.
    StreamIdle,
    /// The client went away before its answer was complete.
    ClientGone,
    /// The process ends, and the time for it is over.
    Drained,
    /// The authority is that of a server with another certificate or policy than this connection's.
    Misdirected,
    /// No server of the port has the name that the client asked TLS for.
    NoChain,
    /// The server's keys could not be loaded.
    NoKeys,
    /// The client's TLS handshake failed.
    Handshake(HandshakeFailure),
    /// The upstream's TLS handshake failed, or its certificate is not the right one.
    UpstreamTls(HandshakeFailure),
    /// The name of the upstream has no addresses, or nobody can be asked for them.
    NameUnknown,
    /// The name of the upstream leads where no connection may go.
    AddressRefused,
    /// The host is none of those that the route's destination stands for.
    HostNotCovered,
    /// The proxy that the upstream is behind refuses a tunnel to it.
    TunnelRefused,
    /// A connection of bytes was silent for too long.
    ConnectionIdle,
    /// A connection of bytes lasted as long as it may.
    ConnectionTooOld,
    /// The client's PROXY header is missing or broken.
    ProxyHeader,
    /// The client floods its HTTP/2 connection, or breaks the rules of the protocol on it.
    Http2(Misbehaviour),
    /// The route aborts some requests on purpose (`fault.abort`): with a status of gRPC, or with one of HTTP that comes
    /// with the reply.
    FaultAbort(Option<grpc::Status>),
    /// The route breaks some requests' connections on purpose.
    FaultReset,
}

impl Cause {
    /// The status that a client gets, if an answer can still be given.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::NoVirtualHost | Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoCluster
            | Self::NoEndpoint
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::UpstreamReset
            | Self::UpstreamBrokeOff
            | Self::Overflow
            | Self::Overload(_)
            | Self::Drained => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamHead(_) | Self::UpstreamBody(_) | Self::UpstreamInterim => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout | Self::PerTryTimeout | Self::StreamIdle => StatusCode::GATEWAY_TIMEOUT,
            Self::RequestHead(error) => error.status(),
            Self::RequestPath | Self::RequestBody(_) | Self::ClientGone => StatusCode::BAD_REQUEST,
            Self::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeaderTimeout | Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::UpstreamTls(_)
            | Self::TunnelRefused
            | Self::NameUnknown
            | Self::AddressRefused
            | Self::HostNotCovered => StatusCode::SERVICE_UNAVAILABLE,
            Self::FaultAbort(_) => StatusCode::OK,
            // These concern whole connections: nothing is answered.
            Self::NoChain
            | Self::NoKeys
            | Self::Handshake(_)
            | Self::ConnectionIdle
            | Self::ConnectionTooOld
            | Self::ProxyHeader
            | Self::FaultReset
            | Self::Http2(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// The response flag.
    pub const fn flag(self) -> Flags {
        match self {
            Self::NoVirtualHost | Self::NoRoute => Flags::NR,
            Self::NoCluster => Flags::NC,
            Self::NoEndpoint => Flags::UH,
            Self::ConnectFailed | Self::ConnectTimeout => Flags::UF,
            Self::UpstreamReset | Self::UpstreamBrokeOff => Flags::UC,
            Self::UpstreamHead(_) | Self::UpstreamBody(_) | Self::UpstreamInterim => Flags::UPE,
            Self::UpstreamTimeout | Self::PerTryTimeout => Flags::UT,
            Self::Overflow => Flags::UO,
            Self::Overload(_) => Flags::OM,
            Self::RequestHead(_) | Self::RequestPath | Self::RequestBody(_) | Self::RequestTooLarge => {
                Flags::DPE
            }
            Self::HeaderTimeout | Self::BodyTimeout => Flags::DT,
            Self::StreamIdle => Flags::SI,
            Self::ClientGone | Self::Drained => Flags::DC,
            Self::Misdirected => Flags::NR,
            Self::NoChain => Flags::NFCF,
            Self::UpstreamTls(_) | Self::TunnelRefused | Self::NameUnknown | Self::AddressRefused => {
                Flags::UF
            }
            Self::HostNotCovered => Flags::NC,
            Self::ConnectionIdle => Flags::SI,
            Self::Handshake(HandshakeFailure::Timeout) => Flags::DT,
            Self::Handshake(_) | Self::ProxyHeader | Self::Http2(_) => Flags::DPE,
            Self::NoKeys | Self::ConnectionTooOld => Flags::NONE,
            Self::FaultAbort(_) | Self::FaultReset => Flags::FI,
        }
    }

    /// What `%RESPONSE_CODE_DETAILS%` says: Envoy's word where the meaning is equal, else our own.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::NoVirtualHost => "route_not_found{no_virtual_host}",
            Self::NoRoute => "route_not_found",
            Self::NoCluster => "cluster_not_found",
            Self::NoEndpoint => "no_healthy_upstream",
            Self::ConnectFailed => "upstream_reset_before_response_started{connection_failure}",
            Self::ConnectTimeout => "upstream_reset_before_response_started{connection_timeout}",
            Self::UpstreamReset => "upstream_reset_before_response_started{connection_termination}",
            Self::UpstreamBrokeOff => "upstream_reset_after_response_started{connection_termination}",
            Self::UpstreamHead(_) => "upstream_reset_before_response_started{protocol_error}",
            Self::UpstreamBody(_) => "upstream_reset_after_response_started{protocol_error}",
            Self::UpstreamInterim => "upstream_reset_before_response_started{too_many_interim_responses}",
            Self::UpstreamTimeout => "upstream_response_timeout",
            Self::PerTryTimeout => "upstream_per_try_timeout",
            Self::Overflow => "upstream_reset_before_response_started{overflow}",
            Self::Overload(_) => "overload",
            Self::RequestHead(error) => error.detail(),
            Self::RequestPath => "path_normalization_failed",
            Self::RequestBody(_) => "http1.body_error",
            Self::RequestTooLarge => "request_payload_too_large",
            Self::HeaderTimeout => "request_header_timeout",
            Self::BodyTimeout => "request_body_timeout",
            Self::StreamIdle => "stream_idle_timeout",
            Self::ClientGone => "downstream_remote_disconnect",
            Self::Drained => "drain_timeout",
            Self::Misdirected => "misdirected_request",
            Self::NoChain => "filter_chain_not_found",
            Self::NoKeys => "downstream_transport_failure{no_certificate}",
            Self::Handshake(failure) => failure.detail(),
            Self::UpstreamTls(failure) => failure.upstream_detail(),
            Self::TunnelRefused => "upstream_reset_before_response_started{tunnel_refused}",
            Self::NameUnknown => "dns_resolution_failure",
            Self::AddressRefused => "egress_address_refused",
            Self::HostNotCovered => "egress_host_not_covered",
            Self::ConnectionIdle => "idle_timeout",
            Self::ConnectionTooOld => "max_connection_duration_reached",
            Self::ProxyHeader => "proxy_protocol_error",
            Self::Http2(misbehaviour) => misbehaviour.detail(),
            Self::FaultAbort(_) => "fault_filter_abort",
            Self::FaultReset => "fault_filter_reset",
        }
    }

    /// The text of the answer's body: for a person at the client, without internals.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoVirtualHost => "no virtual host serves this authority (NR)\n",
            Self::NoRoute => "no rule of this host takes the request (NR)\n",
            Self::NoCluster => "the route's destination is not known (NC)\n",
            Self::NoEndpoint => "no healthy upstream (UH)\n",
            Self::ConnectFailed | Self::ConnectTimeout => "the upstream could not be reached (UF)\n",
            Self::UpstreamReset | Self::UpstreamBrokeOff => "the upstream closed the connection (UC)\n",
            Self::UpstreamHead(_) | Self::UpstreamBody(_) | Self::UpstreamInterim => {
                "the upstream's answer is not valid HTTP (UPE)\n"
            }
            Self::UpstreamTimeout | Self::PerTryTimeout => "the upstream did not answer in time (UT)\n",
            Self::Overflow => "the upstream is overloaded (UO)\n",
            Self::Overload(_) => "the gateway is overloaded (OM)\n",
            Self::RequestHead(_) => "the request is not valid (DPE)\n",
            Self::RequestPath => "the request's path is not valid (DPE)\n",
            Self::RequestBody(_) => "the request's body is not valid (DPE)\n",
            Self::RequestTooLarge => "the request's body is too large (DPE)\n",
            Self::HeaderTimeout | Self::BodyTimeout => "the request did not arrive in time (DT)\n",
            Self::StreamIdle => "the exchange stood still for too long (SI)\n",
            Self::ClientGone => "the client went away (DC)\n",
            Self::Drained => "the gateway ends (DC)\n",
            Self::Misdirected => "this connection is not for this authority: open another (NR)\n",
            Self::UpstreamTls(_) => "the upstream could not be reached securely (UF)\n",
            Self::NameUnknown => "the upstream's name cannot be resolved (UF)\n",
            Self::AddressRefused => "the upstream's name leads where no connection may go (UF)\n",
            Self::HostNotCovered => "the route's destination does not have this host (NC)\n",
            Self::TunnelRefused => "the upstream's proxy refuses to lead there (UF)\n",
            Self::NoChain
            | Self::NoKeys
            | Self::Handshake(_)
            | Self::ConnectionIdle
            | Self::ConnectionTooOld
            | Self::ProxyHeader
            | Self::FaultReset
            | Self::Http2(_) => "",
            // Envoy's words, which scripts of tests look for.
            Self::FaultAbort(_) => "fault filter abort",
        }
    }

    /// The cause as x-isthmus-cause and metrics name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::RequestHead(error) | Self::UpstreamHead(error) => error.label(),
            Self::RequestBody(error) | Self::UpstreamBody(error) => error.label(),
            Self::NoVirtualHost => "no_virtual_host",
            Self::NoRoute => "no_route",
            Self::NoCluster => "no_cluster",
            Self::NoEndpoint => "no_endpoint",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamBrokeOff => "upstream_broke_off",
            Self::UpstreamInterim => "interim_responses",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::PerTryTimeout => "per_try_timeout",
            Self::Overflow => "overflow",
            Self::Overload(Shed::Requests) => "overload_requests",
            Self::Overload(Shed::Buffers) => "overload_buffers",
            Self::RequestPath => "path",
            Self::RequestTooLarge => "request_too_large",
            Self::HeaderTimeout => "header_timeout",
            Self::BodyTimeout => "body_timeout",
            Self::StreamIdle => "stream_idle",
            Self::ClientGone => "client_gone",
            Self::Drained => "drained",
            Self::Misdirected => "misdirected",
            Self::NoChain => "no_filter_chain",
            Self::NoKeys => "no_keys",
            Self::Handshake(failure) => failure.label(),
            Self::UpstreamTls(_) => "upstream_tls",
            Self::TunnelRefused => "tunnel_refused",
            Self::NameUnknown => "dns_resolution_failed",
            Self::AddressRefused => "egress_address_refused",
            Self::HostNotCovered => "egress_host_not_covered",
            Self::ConnectionIdle => "connection_idle",
            Self::ConnectionTooOld => "connection_too_old",
            Self::ProxyHeader => "proxy_header",
            Self::Http2(misbehaviour) => misbehaviour.label(),
            Self::FaultAbort(_) => "fault_abort",
            Self::FaultReset => "fault_reset",
        }
    }
}

/// An answer that the gateway gives itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalReply {
    /// The status.
    pub status: StatusCode,
    /// The flags for the log; more than the cause's own when retries were spent.
    pub flags: Flags,
    /// Why.
    pub cause: Cause,
}

impl From<Cause> for LocalReply {
    fn from(cause: Cause) -> Self {
        Self {
            status: cause.status(),
            flags: cause.flag(),
            cause,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_listed_with_commas() {
        assert_eq!(Flags::NONE.to_string(), "-");
        assert_eq!(Flags::UF.to_string(), "UF");
        assert_eq!(Flags::URX.with(Flags::UF).to_string(), "UF,URX");
    }
}
