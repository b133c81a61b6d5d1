//! Substitutions in header values: `%DOWNSTREAM_REMOTE_ADDRESS%`, `%REQ(x-user)%` and their like (Envoy access log
//! commands, which Istio allows in `headers.request` and `headers.response`).
//!
//! A value is read once, when the configuration is compiled ([`Template::parse`]); what depends on the request is
//! filled in from the [`Facts`] of the exchange. What is not known then gives nothing, as in Envoy, and a field whose
//! value is empty is not written.

use crate::header::{FieldName, HeaderId, HeaderList};
use crate::message::Version;
use crate::reply::Flags;
use http::{Method, StatusCode};
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

/// What an exchange knows at the moment at which its fields are changed.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Method of the request.
    pub method: &'a Method,
    /// Path and query as they go upstream.
    pub path: &'a str,
    /// Path and query as they came, when they were rewritten.
    pub original_path: Option<&'a str>,
    /// Authority of the request.
    pub authority: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Version of the request.
    pub version: Version,
    /// Fields of the request; None while those are what is being changed.
    pub request: Option<&'a HeaderList>,
    /// Status of the response; None before there is one.
    pub status: Option<StatusCode>,
    /// Response flags so far.
    pub flags: Flags,
    /// Response code details so far.
    pub detail: &'a str,
    /// The client, as far as proxies in front are trusted to tell it.
    pub client: SocketAddr,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// This end of the connection.
    pub local: SocketAddr,
    /// The endpoint that answered or is tried.
    pub upstream: Option<SocketAddr>,
    /// This end of the connection to it.
    pub upstream_local: Option<SocketAddr>,
    /// The cluster.
    pub cluster: &'a str,
    /// The route.
    pub route: &'a str,
    /// When the request began.
    pub start: SystemTime,
    /// Since then.
    pub duration: Duration,
    /// Bytes of the request's body so far.
    pub bytes_received: u64,
    /// The name that the client asked TLS for.
    pub server_name: Option<&'a str>,
    /// What is known of the client's connection when its TLS ends here.
    pub tls: Option<&'a TlsFacts>,
}

/// What is known of a connection whose TLS ends here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFacts {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite, as OpenSSL names it.
    pub cipher: &'static str,
    /// The client's certificate, when it showed one.
    pub client: Option<Box<ClientCertificate>>,
}

/// What a client's certificate says. Every text is free of control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Whose it is, as RFC 2253 writes it.
    pub subject: Box<str>,
    /// Who signed it, likewise.
    pub issuer: Box<str>,
    /// Its number, in lower-case hexadecimal digits.
    pub serial: Box<str>,
    /// Its SHA-256, in lower-case hexadecimal digits.
    pub fingerprint: Box<str>,
    /// URIs among its names, with commas between them.
    pub uris: Box<str>,
    /// DNS names, likewise.
    pub dns_names: Box<str>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

/// What does not change while the process runs.
#[derive(Debug, Clone, Copy)]
pub struct Constants<'a> {
    /// Name of this machine (`%HOSTNAME%`).
    pub hostname: &'a str,
}

/// A value with substitutions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template {
    parts: Vec<Part>,
    /// As it was written.
    written: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Part {
    Text(Box<str>),
    Variable(Variable),
}

/// Which part of an address is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Form {
    Whole,
    Host,
    Port,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Address {
    Client,
    Peer,
    Local,
    Upstream,
    UpstreamLocal,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Variable {
    Address(Address, Form),
    /// A field of the request, another one in its place, and the most bytes that are taken.
    Request(Subject, Option<Subject>, Option<usize>),
    /// A field of the response.
    Response(FieldName, Option<FieldName>, Option<usize>),
    Protocol,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    UpstreamCluster,
    RouteName,
    BytesReceived,
    /// Bytes of the answer's body: none while its fields are changed.
    BytesSent,
    Duration,
    /// With the format of strftime, or None for ISO 8601 with milliseconds.
    StartTime(Option<Box<str>>),
    /// The present, likewise.
    EmitTime(Option<Box<str>>),
    /// A parameter of the query, and the most bytes that are taken.
    QueryParameter(Box<str>, Option<usize>),
    ServerName,
    Tls(TlsPart),
    /// A variable of Envoy that has no value in this gateway.
    Nothing,
}

/// What of TLS a variable names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum TlsPart {
    Version,
    Cipher,
    Subject,
    Issuer,
    Serial,
    Fingerprint,
    Uris,
    DnsNames,
    NotBefore(Option<Box<str>>),
    NotAfter(Option<Box<str>>),
}

/// What `%REQ(...)%` can name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    Method,
    Path,
    OriginalPath,
    /// The path without its query.
    PathOnly,
    OriginalPathOnly,
    Authority,
    Scheme,
    Field(FieldName),
}

/// Why a value is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `%` that begins nothing that ends.
    #[error("`%` at byte {0} begins no variable; write `%%` for a percent sign")]
    Unbalanced(usize),
    /// An argument that the variable does not take.
    #[error("`{0}` cannot be read")]
    Argument(String),
}

/// A value that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The value.
    pub template: Template,
    /// Variables that nobody knows; they give nothing.
    pub unknown: Vec<String>,
}

/// Variables that Envoy has and that have no value here; some end in an argument.
const WITHOUT_VALUE: [&str; 31] = [
    "CEL",
    "CLUSTER_METADATA",
    "COMMON_DURATION",
    "CONNECTION_",
    "DOWNSTREAM_HEADER_",
    "DOWNSTREAM_LOCAL_",
    "DOWNSTREAM_PEER_",
    "DOWNSTREAM_TLS_",
    "DOWNSTREAM_TRANSPORT_",
    "DOWNSTREAM_WIRE_",
    "DYNAMIC_METADATA",
    "ENVIRONMENT",
    "FILTER_",
    "GRPC_STATUS",
    "METADATA",
    "PER_REQUEST_STATE",
    "REQUEST_DURATION",
    "REQUEST_HEADERS_BYTES",
    "REQUEST_TX_DURATION",
    "RESPONSE_DURATION",
    "RESPONSE_FLAGS_LONG",
    "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES",
    "RESPONSE_TX_DURATION",
    "ROUNDTRIP_DURATION",
    "TRACE_ID",
    "TRAILER",
    "UNIQUE_ID",
    "UPSTREAM_",
    "VIRTUAL_CLUSTER_NAME",
    "VIRTUAL_HOST_",
];

impl Template {
    /// Reads a value: `%NAME%`, `%NAME(argument)%` or `%NAME(argument):length%`, and `%%` for a percent sign.
    pub fn parse(text: &str, constants: Constants<'_>) -> Result<Parsed, TemplateError> {
        let mut parts = Vec::new();
        let mut unknown = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(found) = text.get(at..).and_then(|rest| rest.find('%')) {
            literal.push_str(text.get(at..at + found).unwrap_or(""));
            let start = at + found;
            let rest = text.get(start + 1..).unwrap_or("");
            if rest.starts_with('%') {
                literal.push('%');
                at = start + 2;
                continue;
            }
            let (name, argument, length, used) = command(rest).ok_or(TemplateError::Unbalanced(start))?;
            at = start + 1 + used;
            if name == "HOSTNAME" {
                literal.push_str(constants.hostname);
                continue;
            }
            let variable = match Variable::of(name, argument, length)? {
                Some(variable) => variable,
                None => {
                    unknown.push(name.to_owned());
                    Variable::Nothing
                }
            };
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal).into()));
            }
            parts.push(Part::Variable(variable));
        }
        literal.push_str(text.get(at..).unwrap_or(""));
        if !literal.is_empty() {
            parts.push(Part::Text(literal.into()));
        }
        let template = Self {
            parts,
            written: text.into(),
        };
        Ok(Parsed { template, unknown })
    }

    /// The value as it was written.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// The value, when it depends on nothing.
    pub fn constant(&self) -> Option<&str> {
        match &self.parts[..] {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Appends the value. `changing` are the fields that are being changed: of the request, as long as the facts have
    /// none of it, else of the response.
    pub fn write(&self, facts: &Facts<'_>, changing: &HeaderList, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Variable(variable) => variable.write(facts, changing, out),
            }
        }
    }
}

/// Name, argument, length, and bytes used of a command, without the percent sign that begins it.
type Command<'a> = (&'a str, Option<&'a str>, Option<usize>, usize);

fn command(text: &str) -> Option<Command<'_>> {
    let name_end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))?;
    let name = text.get(..name_end).filter(|name| !name.is_empty())?;
    let rest = text.get(name_end..)?;
    let (argument, rest, used) = match rest.strip_prefix('(') {
        Some(inner) => {
            let close = inner.find(')')?;
            (
                Some(inner.get(..close)?),
                inner.get(close + 1..)?,
                name_end + close + 2,
            )
        }
        None => (None, rest, name_end),
    };
    let (length, rest, used) = match rest.strip_prefix(':') {
        Some(inner) => {
            let end = inner.find('%')?;
            let length = inner.get(..end)?.parse().ok()?;
            (Some(length), inner.get(end..)?, used + 1 + end)
        }
        None => (None, rest, used),
    };
    rest.starts_with('%')
        .then_some((name, argument, length, used + 1))
}

impl Variable {
    /// The variable of a name; None when nobody knows it.
    fn of(name: &str, argument: Option<&str>, length: Option<usize>) -> Result<Option<Self>, TemplateError> {
        let wrong = || TemplateError::Argument(format!("{name}({})", argument.unwrap_or("")));
        if let Some(found) = address(name) {
            return Ok(Some(found));
        }
        Ok(Some(match name {
            "REQ" | "REQUEST_HEADER" => {
                let (first, second) = alternatives(argument).ok_or_else(wrong)?;
                let second = second
                    .map(|name| Subject::of(name).ok_or_else(wrong))
                    .transpose()?;
                Self::Request(Subject::of(first).ok_or_else(wrong)?, second, length)
            }
            "RESP" | "RESPONSE_HEADER" => {
                let (first, second) = alternatives(argument).ok_or_else(wrong)?;
                let second = second
                    .map(|name| FieldName::parse(name).ok_or_else(wrong))
                    .transpose()?;
                Self::Response(FieldName::parse(first).ok_or_else(wrong)?, second, length)
            }
            "REQ_WITHOUT_QUERY" => {
                let (first, second) = alternatives(argument).ok_or_else(wrong)?;
                let second = second
                    .map(|name| Subject::of(name).ok_or_else(wrong))
                    .transpose()?;
                let first = Subject::of(first).ok_or_else(wrong)?;
                Self::Request(first.without_query(), second.map(Subject::without_query), length)
            }
            "START_TIME" => Self::StartTime(time_format(argument).ok_or_else(wrong)?),
            "EMIT_TIME" => Self::EmitTime(time_format(argument).ok_or_else(wrong)?),
            "QUERY_PARAM" => {
                let name = argument.filter(|name| !name.is_empty()).ok_or_else(wrong)?;
                Self::QueryParameter(name.into(), length)
            }
            // The identity of a request is what x-request-id says.
            "STREAM_ID" => Self::Request(
                Subject::of(HeaderId::XRequestId.name()).ok_or_else(wrong)?,
                None,
                None,
            ),
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Self::Request(
                Subject::of(HeaderId::XEnvoyAttemptCount.name()).ok_or_else(wrong)?,
                None,
                None,
            ),
            "REQUESTED_SERVER_NAME" => Self::ServerName,
            "DOWNSTREAM_TLS_VERSION" => Self::Tls(TlsPart::Version),
            "DOWNSTREAM_TLS_CIPHER" => Self::Tls(TlsPart::Cipher),
            "DOWNSTREAM_PEER_SUBJECT" => Self::Tls(TlsPart::Subject),
            "DOWNSTREAM_PEER_ISSUER" => Self::Tls(TlsPart::Issuer),
            "DOWNSTREAM_PEER_SERIAL" => Self::Tls(TlsPart::Serial),
            "DOWNSTREAM_PEER_FINGERPRINT_256" => Self::Tls(TlsPart::Fingerprint),
            "DOWNSTREAM_PEER_URI_SAN" => Self::Tls(TlsPart::Uris),
            "DOWNSTREAM_PEER_DNS_SAN" => Self::Tls(TlsPart::DnsNames),
            "DOWNSTREAM_PEER_CERT_V_START" => {
                Self::Tls(TlsPart::NotBefore(time_format(argument).ok_or_else(wrong)?))
            }
            "DOWNSTREAM_PEER_CERT_V_END" => {
                Self::Tls(TlsPart::NotAfter(time_format(argument).ok_or_else(wrong)?))
            }
            "BYTES_SENT" => Self::BytesSent,
            "PROTOCOL" => Self::Protocol,
            "RESPONSE_CODE" => Self::ResponseCode,
            "RESPONSE_CODE_DETAILS" => Self::ResponseCodeDetails,
            "RESPONSE_FLAGS" => Self::ResponseFlags,
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Self::UpstreamCluster,
            "ROUTE_NAME" => Self::RouteName,
            "BYTES_RECEIVED" => Self::BytesReceived,
            "DURATION" => Self::Duration,
            _ if WITHOUT_VALUE.iter().any(|known| name.starts_with(known)) => Self::Nothing,
            _ => return Ok(None),
        }))
    }

    fn write(&self, facts: &Facts<'_>, changing: &HeaderList, out: &mut Vec<u8>) {
        match self {
            Self::Address(which, form) => {
                let found = match which {
                    Address::Client => Some(facts.client),
                    Address::Peer => Some(facts.peer),
                    Address::Local => Some(facts.local),
                    Address::Upstream => facts.upstream,
                    Address::UpstreamLocal => facts.upstream_local,
                };
                if let Some(found) = found {
                    write_address(found, *form, out);
                }
            }
            Self::Request(first, second, length) => {
                let fields = facts.request.unwrap_or(changing);
                let value = first.value(facts, fields);
                let value = value.or_else(|| second.as_ref()?.value(facts, fields));
                out.extend_from_slice(cut(value.unwrap_or(b""), *length));
            }
            Self::Response(first, second, length) => {
                // Before there is a response, what is being changed are the request's fields.
                if facts.request.is_some() {
                    let value = changing.get_named(first).next();
                    let value = value.or_else(|| changing.get_named(second.as_ref()?).next());
                    out.extend_from_slice(cut(value.unwrap_or(b""), *length));
                }
            }
            Self::Protocol => out.extend_from_slice(facts.version.as_str().as_bytes()),
            Self::ResponseCode => write_number(facts.status.map_or(0, |status| status.as_u16().into()), out),
            Self::ResponseCodeDetails => out.extend_from_slice(facts.detail.as_bytes()),
            Self::ResponseFlags => {
                let _in_memory = write!(out, "{}", facts.flags);
            }
            Self::UpstreamCluster => out.extend_from_slice(facts.cluster.as_bytes()),
            Self::RouteName => out.extend_from_slice(facts.route.as_bytes()),
            Self::BytesReceived => write_number(facts.bytes_received, out),
            Self::BytesSent => write_number(0, out),
            Self::QueryParameter(name, length) => {
                let query = facts.path.split_once('?').map_or("", |(_, query)| query);
                let mut pairs = query
                    .split('&')
                    .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                let value = pairs.find(|(found, _)| *found == &**name);
                let value = value.map_or("", |(_, value)| value);
                out.extend_from_slice(cut(value.as_bytes(), *length));
            }
            Self::ServerName => out.extend_from_slice(facts.server_name.unwrap_or("").as_bytes()),
            Self::Tls(part) => {
                if let Some(tls) = facts.tls {
                    part.write(tls, out);
                }
            }
            Self::Duration => {
                write_number(u64::try_from(facts.duration.as_millis()).unwrap_or(u64::MAX), out)
            }
            Self::StartTime(format) => write_formatted(format, facts.start, out),
            Self::EmitTime(format) => {
                let now = facts.start.checked_add(facts.duration).unwrap_or(facts.start);
                write_formatted(format, now, out);
            }
            Self::Nothing => {}
        }
    }
}

impl TlsPart {
    fn write(&self, tls: &TlsFacts, out: &mut Vec<u8>) {
        let text = match (self, &tls.client) {
            (Self::Version, _) => tls.version,
            (Self::Cipher, _) => tls.cipher,
            (_, None) => "",
            (Self::Subject, Some(client)) => &client.subject,
            (Self::Issuer, Some(client)) => &client.issuer,
            (Self::Serial, Some(client)) => &client.serial,
            (Self::Fingerprint, Some(client)) => &client.fingerprint,
            (Self::Uris, Some(client)) => &client.uris,
            (Self::DnsNames, Some(client)) => &client.dns_names,
            (Self::NotBefore(format), Some(client)) => {
                return write_formatted(format, client.not_before, out);
            }
            (Self::NotAfter(format), Some(client)) => return write_formatted(format, client.not_after, out),
        };
        out.extend_from_slice(text.as_bytes());
    }
}

impl Subject {
    fn without_query(self) -> Self {
        match self {
            Self::Path => Self::PathOnly,
            Self::OriginalPath => Self::OriginalPathOnly,
            other => other,
        }
    }

    fn of(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            "x-envoy-original-path" => Self::OriginalPath,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            name => Self::Field(FieldName::parse(name)?),
        })
    }

    fn value<'a>(&'a self, facts: &Facts<'a>, fields: &'a HeaderList) -> Option<&'a [u8]> {
        match self {
            Self::Method => Some(facts.method.as_str().as_bytes()),
            Self::Path => Some(facts.path.as_bytes()),
            Self::OriginalPath => facts.original_path.map(str::as_bytes),
            Self::PathOnly => Some(path_only(facts.path)),
            Self::OriginalPathOnly => facts.original_path.map(path_only),
            Self::Authority => Some(facts.authority.as_bytes()),
            Self::Scheme => Some(facts.scheme.as_bytes()),
            Self::Field(name) => fields.get_named(name).next(),
        }
    }
}

fn path_only(path: &str) -> &[u8] {
    path.split_once('?').map_or(path, |(path, _)| path).as_bytes()
}

/// `X`, or `X?Y`.
fn alternatives(argument: Option<&str>) -> Option<(&str, Option<&str>)> {
    let argument = argument?;
    Some(match argument.split_once('?') {
        Some((first, second)) => (first, Some(second)),
        None => (argument, None),
    })
}

fn address(name: &str) -> Option<Variable> {
    let of = |stem: &str, which| {
        let form = match name.strip_prefix(stem)? {
            "_ADDRESS" => Form::Whole,
            "_ADDRESS_WITHOUT_PORT" => Form::Host,
            "_PORT" => Form::Port,
            _ => return None,
        };
        Some(Variable::Address(which, form))
    };
    if name == "UPSTREAM_HOST" {
        return Some(Variable::Address(Address::Upstream, Form::Whole));
    }
    of("DOWNSTREAM_REMOTE", Address::Client)
        .or_else(|| of("DOWNSTREAM_DIRECT_REMOTE", Address::Peer))
        .or_else(|| of("DOWNSTREAM_LOCAL", Address::Local))
        .or_else(|| of("DOWNSTREAM_DIRECT_LOCAL", Address::Local))
        .or_else(|| of("UPSTREAM_REMOTE", Address::Upstream))
        .or_else(|| of("UPSTREAM_LOCAL", Address::UpstreamLocal))
}

fn cut(value: &[u8], length: Option<usize>) -> &[u8] {
    length.and_then(|length| value.get(..length)).unwrap_or(value)
}

fn write_number(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn write_address(address: SocketAddr, form: Form, out: &mut Vec<u8>) {
    // A dual-stack socket shows IPv4 peers as mapped addresses; people know them by their own form.
    let ip = address.ip().to_canonical();
    let _in_memory = match form {
        Form::Whole => write!(out, "{}", SocketAddr::new(ip, address.port())),
        Form::Host => write!(out, "{ip}"),
        Form::Port => write!(out, "{}", address.port()),
    };
}

/// The format of a time that an argument gives, None in it for the usual one; None for one that cannot be read.
fn time_format(argument: Option<&str>) -> Option<Option<Box<str>>> {
    let format = argument.filter(|text| !text.is_empty());
    if let Some(format) = format {
        write_time(format, SystemTime::UNIX_EPOCH)?;
    }
    Some(format.map(Into::into))
}

fn write_formatted(format: &Option<Box<str>>, time: SystemTime, out: &mut Vec<u8>) {
    let format = format.as_deref().unwrap_or("%Y-%m-%dT%H:%M:%S.%3fZ");
    out.extend_from_slice(write_time(format, time).unwrap_or_default().as_bytes());
}

/// A time in UTC; None for a format that cannot be read.
fn write_time(format: &str, time: SystemTime) -> Option<String> {
    let timestamp = jiff::Timestamp::try_from(time).ok()?;
    let time = timestamp.to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &time).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Parsed, TemplateError> {
        Template::parse(text, Constants { hostname: "edge-1" })
    }

    /// An exchange.
    pub(crate) fn facts() -> Facts<'static> {
        Facts {
            method: &Method::GET,
            path: "/new?q",
            original_path: Some("/old?q"),
            authority: "a.com:80",
            scheme: "http",
            version: Version::Http11,
            request: None,
            status: Some(StatusCode::NOT_FOUND),
            flags: Flags::UF,
            detail: "via_upstream",
            client: "[::ffff:10.0.0.1]:5000".parse().unwrap(),
            peer: "10.0.0.2:6000".parse().unwrap(),
            local: "[2001:db8::1]:80".parse().unwrap(),
            upstream: None,
            upstream_local: None,
            cluster: "outbound|80||h",
            route: "r.m",
            start: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            duration: Duration::from_millis(12),
            bytes_received: 34,
            server_name: Some("a.com"),
            tls: None,
        }
    }

    fn written(text: &str) -> String {
        let mut request = HeaderList::default();
        request.append(b"X-User", b"jason");
        let mut response = HeaderList::default();
        response.append(b"Age", b"7");
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let tls = TlsFacts {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            client: Some(Box::new(ClientCertificate {
                subject: "CN=c".into(),
                issuer: "CN=ca".into(),
                serial: "0a".into(),
                fingerprint: "ff".into(),
                uris: "spiffe://a/ns/b/sa/c".into(),
                dns_names: "a,b".into(),
                not_before: at(0),
                not_after: at(86_400),
            })),
        };
        request.append(b"x-request-id", b"id-1");
        let facts = Facts {
            request: Some(&request),
            tls: Some(&tls),
            ..facts()
        };
        let mut out = Vec::new();
        parse(text).unwrap().template.write(&facts, &response, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn variables_are_filled_in_from_the_exchange() {
        for (text, expected) in [
            ("plain", "plain"),
            ("100%% of %HOSTNAME%", "100% of edge-1"),
            ("%DOWNSTREAM_REMOTE_ADDRESS%", "10.0.0.1:5000"),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.1"),
            ("%DOWNSTREAM_DIRECT_REMOTE_PORT%", "6000"),
            ("%DOWNSTREAM_LOCAL_ADDRESS%", "[2001:db8::1]:80"),
            ("<%UPSTREAM_HOST%>", "<>"),
            ("%REQ(X-USER)%/%REQ(x-none?x-user):3%", "jason/jas"),
            (
                "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ(:AUTHORITY)%",
                "GET /old?q a.com:80",
            ),
            ("%RESP(age)%%RESP(none?AGE)%%RESP(x)%", "77"),
            ("%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS%", "HTTP/1.1 404 UF"),
            ("%UPSTREAM_CLUSTER% %ROUTE_NAME%", "outbound|80||h r.m"),
            ("%START_TIME%", "1970-01-01T00:00:01.500Z"),
            ("%START_TIME(%Y/%m/%d %s)%", "1970/01/01 1"),
            ("%BYTES_RECEIVED% %DURATION%", "34 12"),
            ("[%DYNAMIC_METADATA(com.test.my_filter)%]", "[]"),
            (
                "%DOWNSTREAM_PEER_CERT_V_END(%b %d %H:%M:%S %Y %Z)%",
                "Jan 02 00:00:00 1970 UTC",
            ),
            ("%DOWNSTREAM_PEER_CERT_V_START%", "1970-01-01T00:00:00.000Z"),
            ("%EMIT_TIME%", "1970-01-01T00:00:01.512Z"),
            (
                "%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER% %REQUESTED_SERVER_NAME%",
                "TLSv1.3 TLS_AES_128_GCM_SHA256 a.com",
            ),
            (
                "%DOWNSTREAM_PEER_SUBJECT% %DOWNSTREAM_PEER_ISSUER% %DOWNSTREAM_PEER_SERIAL%",
                "CN=c CN=ca 0a",
            ),
            (
                "%DOWNSTREAM_PEER_FINGERPRINT_256% %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_DNS_SAN%",
                "ff spiffe://a/ns/b/sa/c a,b",
            ),
            (
                "%STREAM_ID% %BYTES_SENT% [%UPSTREAM_REQUEST_ATTEMPT_COUNT%]",
                "id-1 0 []",
            ),
            ("%DOWNSTREAM_DIRECT_LOCAL_PORT%", "80"),
            (
                "%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ_WITHOUT_QUERY(:PATH):3%",
                "/old /ne",
            ),
            ("[%QUERY_PARAM(q)%%QUERY_PARAM(r)%]", "[]"),
            (
                "[%DOWNSTREAM_PEER_CERT%%UPSTREAM_TLS_VERSION%%CEL(request.id)%]",
                "[]",
            ),
        ] {
            assert_eq!(written(text), expected, "{text}");
        }
    }

    #[test]
    fn parameters_of_the_query_are_taken_as_written() {
        let facts = Facts {
            path: "/p?a=1&b=x%20y&a=2&c",
            ..facts()
        };
        for (text, expected) in [
            ("%QUERY_PARAM(a)%", "1"),
            ("%QUERY_PARAM(b)%", "x%20y"),
            ("%QUERY_PARAM(b):1%", "x"),
            ("<%QUERY_PARAM(c)%%QUERY_PARAM(d)%>", "<>"),
        ] {
            let mut out = Vec::new();
            let template = parse(text).unwrap().template;
            template.write(&facts, &HeaderList::default(), &mut out);
            assert_eq!(out, expected.as_bytes(), "{text}");
        }
    }

    #[test]
    fn without_tls_its_variables_are_empty() {
        let mut out = Vec::new();
        let text = "[%DOWNSTREAM_TLS_VERSION%%DOWNSTREAM_PEER_SUBJECT%%DOWNSTREAM_PEER_CERT_V_START%]";
        let template = parse(text).unwrap().template;
        template.write(&facts(), &HeaderList::default(), &mut out);
        assert_eq!(out, b"[]");
    }

    #[test]
    fn what_is_no_template_is_refused_and_what_nobody_knows_is_told() {
        for bad in [
            "%",
            "50%",
            "%HOSTNAME",
            "% HOSTNAME%",
            "%REQ(x%",
            "%REQ(x)",
            "%REQ(x):y%",
            "a%%%",
        ] {
            assert!(matches!(parse(bad), Err(TemplateError::Unbalanced(_))), "{bad}");
        }
        assert!(matches!(parse("%REQ%"), Err(TemplateError::Argument(_))));
        assert!(matches!(parse("%REQ(a b)%"), Err(TemplateError::Argument(_))));
        assert_eq!(parse("a%WHATEVER%").unwrap().unknown, ["WHATEVER"]);
        assert_eq!(
            parse("100%% sure").unwrap().template.constant(),
            Some("100% sure")
        );
        assert_eq!(parse("%HOSTNAME%!").unwrap().template.constant(), Some("edge-1!"));
        assert_eq!(parse("%PROTOCOL%").unwrap().template.constant(), None);
    }
}
