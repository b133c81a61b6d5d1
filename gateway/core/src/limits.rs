//! Every bound and time-out of the downstream side, named once, with its default and its reason.
//!
//! The settings file (`--settings`) sets them by these names; `isthmus help settings` prints this table.

use crate::attempt::OverrideLimits;
use crate::dns::Times;
use crate::egress::AllowedRanges;
use crate::forwarded::ForwardClientCert;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A setting's value, as the settings file may write it.
#[derive(Debug, Clone, PartialEq)]
pub enum SettingValue {
    /// `true` or `false`.
    Flag(bool),
    /// A whole number: bytes or a count.
    Number(u64),
    /// A duration; zero turns the limit off where the documentation says so.
    Duration(Duration),
    /// A word.
    Text(String),
}

/// Types that a setting can have.
pub trait SettingType: Sized {
    /// What the settings file may write, in words.
    const EXPECTS: &'static str;
    /// Takes a written value, or says what is wrong with it.
    fn from_value(value: &SettingValue) -> Result<Self, String>;
    /// The value as the settings file would write it.
    fn show(&self) -> String;
    /// The value as a number, if it is one.
    fn as_number(&self) -> Option<u64> {
        None
    }
}

/// Bounds of settings for which zero does not mean that there is no limit.
fn check_range(key: &str, number: Option<u64>) -> Result<(), String> {
    let max = match key {
        "headerBytes" => HEADER_BYTES_MAX,
        "headerCount" => HEADER_COUNT_MAX,
        "requestLineBytes" | "trailerBytes" | "chunkLineBytes" => HEADER_BYTES_MAX,
        _ => return Ok(()),
    };
    match number {
        Some(number) if number == 0 || number > max as u64 => Err(format!("must be from 1 to {max}")),
        _ => Ok(()),
    }
}

impl SettingType for bool {
    const EXPECTS: &'static str = "true or false";
    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Flag(flag) => Ok(*flag),
            _ => Err(format!("expected {}", Self::EXPECTS)),
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

macro_rules! number_setting {
    ($($type:ty),*) => {$(
        impl SettingType for $type {
            const EXPECTS: &'static str = "a whole number";
            fn from_value(value: &SettingValue) -> Result<Self, String> {
                match value {
                    SettingValue::Number(number) => {
                        Self::try_from(*number).map_err(|_| format!("must be at most {}", Self::MAX))
                    }
                    _ => Err(format!("expected {}", Self::EXPECTS)),
                }
            }
            fn show(&self) -> String {
                self.to_string()
            }
            fn as_number(&self) -> Option<u64> {
                Some(*self as u64)
            }
        }
    )*};
}
number_setting!(usize, u64, u32);

impl SettingType for Duration {
    const EXPECTS: &'static str = "a duration such as 500ms, 10s or 1h";
    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Duration(duration) => Ok(*duration),
            SettingValue::Number(0) => Ok(Self::ZERO),
            _ => Err(format!("expected {}", Self::EXPECTS)),
        }
    }
    fn show(&self) -> String {
        let ms = self.as_millis();
        if ms.is_multiple_of(1000) {
            format!("{}s", ms / 1000)
        } else {
            format!("{ms}ms")
        }
    }
}

/// The algorithm by which the kernel paces what is sent on a connection; none for the system's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CongestionControl(pub Option<Box<str>>);

impl SettingType for CongestionControl {
    const EXPECTS: &'static str = "the name of an algorithm, such as cubic, or system";
    fn from_value(value: &SettingValue) -> Result<Self, String> {
        let is_name = |text: &str| {
            // The kernel's TCP_CA_NAME_MAX, with the end of the text.
            (1..16).contains(&text.len())
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        match value {
            SettingValue::Text(text) if text == "system" => Ok(Self(None)),
            SettingValue::Text(text) if is_name(text) => Ok(Self(Some(text.as_str().into()))),
            _ => Err(format!("expected {}", Self::EXPECTS)),
        }
    }
    fn show(&self) -> String {
        self.0.as_deref().unwrap_or("system").to_owned()
    }
}

/// Ranges of addresses whose word about their clients is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedRanges(pub Vec<IpNet>);

impl Default for TrustedRanges {
    /// Loopback.
    fn default() -> Self {
        let ranges = ["127.0.0.0/8", "::1/128"];
        Self(ranges.iter().filter_map(|range| range.parse().ok()).collect())
    }
}

impl TrustedRanges {
    /// Whether an address is in one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(&address.to_canonical()))
    }
}

impl std::str::FromStr for TrustedRanges {
    type Err = String;

    /// Ranges with commas between them; an address alone is a range of one.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let range = |part: &str| {
            let alone = part.parse::<IpAddr>().map(IpNet::from);
            alone
                .or_else(|_| part.parse::<IpNet>())
                .map_err(|_| format!("`{part}` is not a range of addresses such as 10.0.0.0/8"))
        };
        parts.map(range).collect::<Result<_, _>>().map(Self)
    }
}

impl SettingType for TrustedRanges {
    const EXPECTS: &'static str = "ranges of addresses such as 10.0.0.0/8,192.168.0.0/16";
    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Text(text) => text.parse(),
            _ => Err(format!("expected {}", Self::EXPECTS)),
        }
    }
    fn show(&self) -> String {
        let ranges: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        ranges.join(",")
    }
}

impl SettingType for AllowedRanges {
    const EXPECTS: &'static str = TrustedRanges::EXPECTS;
    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Text(text) if text == "none" => Ok(Self::default()),
            _ => TrustedRanges::from_value(value).map(|ranges| Self(ranges.0)),
        }
    }
    fn show(&self) -> String {
        match self.0.is_empty() {
            true => "none".to_owned(),
            false => TrustedRanges(self.0.clone()).show(),
        }
    }
}

impl std::str::FromStr for AllowedRanges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(|TrustedRanges(ranges)| Self(ranges))
    }
}

/// Servers of DNS; none for those that the system's file names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsServers(pub Vec<SocketAddr>);

impl std::str::FromStr for DnsServers {
    type Err = String;

    /// Addresses with commas between them; without a port it is 53.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "system" {
            return Ok(Self::default());
        }
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let server = |part: &str| {
            let alone = part.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
            alone
                .or_else(|_| part.parse::<SocketAddr>())
                .map_err(|_| format!("`{part}` is not an address such as 10.0.0.2 or 10.0.0.2:5353"))
        };
        parts.map(server).collect::<Result<_, _>>().map(Self)
    }
}

impl SettingType for DnsServers {
    const EXPECTS: &'static str = "addresses such as 10.0.0.2,10.0.0.3:5353, or system";
    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Text(text) => text.parse(),
            _ => Err(format!("expected {}", Self::EXPECTS)),
        }
    }
    fn show(&self) -> String {
        let servers: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        match servers.is_empty() {
            true => "system".to_owned(),
            false => servers.join(","),
        }
    }
}

/// A file's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePath(pub Box<str>);

impl SettingType for FilePath {
    const EXPECTS: &'static str = "the path of a file";
    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Text(text) if !text.is_empty() => Ok(Self(text.as_str().into())),
            _ => Err(format!("expected {}", Self::EXPECTS)),
        }
    }
    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// How paths are normalized before they are routed (MeshConfig `pathNormalization.normalization`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PathNormalization {
    /// As they came.
    None,
    /// Dot segments are resolved and `\` becomes `/` (RFC 3986, 6.2.2.3): Istio's default.
    #[default]
    Base,
    /// Also, several slashes become one.
    MergeSlashes,
    /// Also, `%2F` and `%5C` in any case are decoded before.
    DecodeAndMergeSlashes,
}

impl SettingType for PathNormalization {
    const EXPECTS: &'static str = "NONE, BASE, DEFAULT, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES";
    fn from_value(value: &SettingValue) -> Result<Self, String> {
        match value {
            SettingValue::Text(text) => match text.as_str() {
                "NONE" => Ok(Self::None),
                "BASE" | "DEFAULT" => Ok(Self::Base),
                "MERGE_SLASHES" => Ok(Self::MergeSlashes),
                "DECODE_AND_MERGE_SLASHES" => Ok(Self::DecodeAndMergeSlashes),
                _ => Err(format!("expected {}", Self::EXPECTS)),
            },
            _ => Err(format!("expected {}", Self::EXPECTS)),
        }
    }
    fn show(&self) -> String {
        match self {
            Self::None => "NONE",
            Self::Base => "BASE",
            Self::MergeSlashes => "MERGE_SLASHES",
            Self::DecodeAndMergeSlashes => "DECODE_AND_MERGE_SLASHES",
        }
        .into()
    }
}

impl SettingType for ForwardClientCert {
    const EXPECTS: &'static str =
        "SANITIZE, FORWARD_ONLY, APPEND_FORWARD, SANITIZE_SET or ALWAYS_FORWARD_ONLY";
    fn from_value(value: &SettingValue) -> Result<Self, String> {
        let known = match value {
            SettingValue::Text(text) => Self::parse(text),
            _ => None,
        };
        known.ok_or_else(|| format!("expected {}", Self::EXPECTS))
    }
    fn show(&self) -> String {
        match self {
            Self::Sanitize => "SANITIZE",
            Self::ForwardOnly => "FORWARD_ONLY",
            Self::AppendForward => "APPEND_FORWARD",
            Self::SanitizeSet => "SANITIZE_SET",
            Self::AlwaysForwardOnly => "ALWAYS_FORWARD_ONLY",
        }
        .to_owned()
    }
}

/// One line of the documentation of settings.
#[derive(Debug, Clone)]
pub struct SettingInfo {
    /// Key in the settings file.
    pub name: &'static str,
    /// What may be written.
    pub expects: &'static str,
    /// The default, as it would be written.
    pub default: String,
    /// Meaning, unit and reason.
    pub help: &'static str,
}

macro_rules! settings {
    ($( $(#[doc = $help:literal])+ $key:literal $field:ident : $type:ty = $default:expr; )*) => {
        /// All settings of one process.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Settings { $( $(#[doc = $help])+ pub $field: $type, )* }

        impl Default for Settings {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl Settings {
            /// The keys of all settings, in order.
            pub const NAMES: &'static [&'static str] = &[$($key),*];

            /// Sets one by its key. An unknown key is answered by None, a bad value by the reason.
            pub fn set(&mut self, key: &str, value: &SettingValue) -> Option<Result<(), String>> {
                match key {
                    $( $key => Some(<$type as SettingType>::from_value(value).and_then(|value| {
                        check_range(key, value.as_number())?;
                        self.$field = value;
                        Ok(())
                    })), )*
                    _ => None,
                }
            }

            /// The documentation of all settings.
            pub fn documentation() -> Vec<SettingInfo> {
                let defaults = Self::default();
                vec![$( SettingInfo {
                    name: $key,
                    expects: <$type as SettingType>::EXPECTS,
                    default: defaults.$field.show(),
                    help: concat!($($help),+).trim_ascii(),
                } ),*]
            }
        }
    };
}

settings! {
    /// Longest request line in bytes; longer is 414. Browsers stay below 8 KiB.
    "requestLineBytes" request_line_bytes: usize = 16 * 1024;
    /// Largest header section of a request or response in bytes, its first line included; larger is 431 (502 from an upstream). Envoy's default. At most 65536.
    "headerBytes" header_bytes: usize = 60 * 1024;
    /// Most header fields of a request or response; more is 431 (502 from an upstream). Envoy's default. At most 256.
    "headerCount" header_count: usize = 100;
    /// Largest trailer section in bytes; larger is 400 (502 from an upstream).
    "trailerBytes" trailer_bytes: usize = 8 * 1024;
    /// Longest line that gives a chunk's size, extensions included; longer is 400. Extensions carry nothing that is used.
    "chunkLineBytes" chunk_line_bytes: usize = 1024;
    /// Largest request body in bytes; larger is 413. 0 for no limit, as in Envoy.
    "requestBodyBytes" request_body_bytes: u64 = 0;
    /// Most interim (1xx) responses before the final one; more is 502.
    "interimResponses" interim_responses: u32 = 16;
    /// Time from the first byte of a request head to its last; then 408 and the connection closes. Ends slow-header attacks; 0 for no limit.
    "headerTimeout" header_timeout: Duration = Duration::from_secs(15);
    /// Time from accepting a TLS connection to the end of its handshake; then it is closed. Istio's default. 0 for no limit.
    "tlsHandshakeTimeout" tls_handshake_timeout: Duration = Duration::from_secs(15);
    /// Time that a connection may wait for its next request. Envoy's default. 0 for no limit.
    "idleTimeout" idle_timeout: Duration = Duration::from_secs(3600);
    /// Time that a client may pause while it sends a request body; then 408. 0 for no limit.
    "bodyTimeout" body_timeout: Duration = Duration::from_secs(60);
    /// Time that an exchange may pass no byte in either direction once its response began; then both sides are closed. 0 for no limit.
    "streamIdleTimeout" stream_idle_timeout: Duration = Duration::from_secs(300);
    /// Time that a connection which is being closed still reads, so that the client sees the answer and not a reset. 0 to close at once.
    "lingerTimeout" linger_timeout: Duration = Duration::from_secs(5);
    /// Bytes that a connection which is being closed still reads and throws away.
    "lingerBytes" linger_bytes: u64 = 1024 * 1024;
    /// Most downstream connections of one shard; above it new ones wait in the kernel's queue. 0 derives it from the limit of open files.
    "connectionsPerShard" connections_per_shard: usize = 0;
    /// Most requests that one shard has in flight, upgraded connections and tunnels among them; more are answered with 503 and the flag OM. 0 for no limit.
    "requestsPerShard" requests_per_shard: u64 = 100_000;
    /// Bytes of one shard's buffers (what has been read and not passed on, what waits for clients and upstreams of HTTP/2 to take it, and bodies that are kept to be sent again) from which requests are answered with 503 and the flag OM and connections wait in the kernel's queue. 0 for half of the memory that the machine or the cgroup grants, divided among the shards.
    "bufferBytesPerShard" buffer_bytes_per_shard: u64 = 0;
    /// Requests after which a downstream connection is closed; 0 for no limit.
    "requestsPerConnection" requests_per_connection: u32 = 0;
    /// Streams that an HTTP/2 client may have under way at once on one connection; it waits with more. Envoy's advice for edges.
    "http2ConcurrentStreams" http2_concurrent_streams: u32 = 100;
    /// Requests that an HTTP/2 client may cancel within a second or two of sending them, beyond as many as were answered (rapid reset, CVE-2023-44487); a tenth of it is given back each second, as with all that follows. Above any of these numbers the connection ends with ENHANCE_YOUR_CALM. Envoy's number. 0 for no limit, as with all that follows.
    "http2RapidResets" http2_rapid_resets: u32 = 500;
    /// Requests that an HTTP/2 client may make the gateway reset by breaking the protocol on their streams, beyond as many as were answered ("MadeYouReset", CVE-2025-8671). Clients that keep to it do that by race only.
    "http2StreamErrors" http2_stream_errors: u32 = 100;
    /// Requests of an HTTP/2 client that may be refused because it has as many open as it may. Before it has read how many that are, it may have sent any number.
    "http2RefusedStreams" http2_refused_streams: u32 = 1000;
    /// CONTINUATION frames of one header block of an HTTP/2 client (CVE-2024-27316). Four full ones hold the largest headerBytes; smaller ones are legal, and are joined. Nothing is given back.
    "http2Continuations" http2_continuations: u32 = 100;
    /// Bytes of one header block of an HTTP/2 client, as sent. Up to here too large a block is answered with 431. No limit means 1 MiB. Nothing is given back.
    "http2HeaderBlockBytes" http2_header_block_bytes: u32 = 96 * 1024;
    /// SETTINGS frames of an HTTP/2 client, each of which must be acknowledged. Clients send one, and a few more when they measure what the network can carry.
    "http2Settings" http2_settings: u32 = 100;
    /// PING frames of an HTTP/2 client, each of which must be answered, beyond one for each DATA frame that it gets: gRPC measures the network with each.
    "http2Pings" http2_pings: u32 = 200;
    /// Frames of an HTTP/2 client that mean little or nothing here (PRIORITY, GOAWAY, those of extensions, RST_STREAM of streams that are not new), beyond ten for each request.
    "http2ControlFrames" http2_control_frames: u32 = 1000;
    /// DATA frames of an HTTP/2 client with nothing in them that end nothing (CVE-2019-9518), beyond one for each that has something.
    "http2EmptyData" http2_empty_data: u32 = 100;
    /// DATA frames of an HTTP/2 client with less than five bytes in them, which is less than the head of a gRPC message, beyond one for each larger one.
    "http2TinyData" http2_tiny_data: u32 = 2000;
    /// WINDOW_UPDATE frames of an HTTP/2 client, beyond twenty for each DATA frame that it gets. Envoy's proportion, for clients that give leave in small steps.
    "http2WindowUpdates" http2_window_updates: u32 = 1000;
    /// Bytes of a request's body that are kept while it streams, when it may have to be sent again; a longer one is sent once. Envoy's size.
    "retryBufferBytes" retry_buffer_bytes: usize = 1024 * 1024;
    /// The same for all requests of one shard together: beyond it bodies are sent once.
    "retryBufferTotalBytes" retry_buffer_total_bytes: usize = 64 * 1024 * 1024;
    /// Longest wait that an upstream may ask for with Retry-After and its like before a request is sent again; an answer that asks for more goes to the client.
    "retryAfterMax" retry_after_max: Duration = Duration::from_secs(10);
    /// Longest time that a trusted caller may ask for its request with x-envoy-upstream-rq-timeout-ms. 0 for no limit.
    "overrideTimeoutMax" override_timeout_max: Duration = Duration::from_secs(3600);
    /// Most retries that a trusted caller may ask for its request with x-envoy-max-retries.
    "overrideRetriesMax" override_retries_max: u32 = 10;
    /// Bytes of a body that wait for a slow mirror; one that falls behind further gets no more, and the request that is copied never waits.
    "mirrorBufferBytes" mirror_buffer_bytes: usize = 1024 * 1024;
    /// Copies of requests that one shard has under way to one cluster; more are not made.
    "mirrorsInFlight" mirrors_in_flight: u32 = 100;
    /// The TCP congestion control of clients' connections, when it is not to be the system's. net.ipv4.tcp_allowed_congestion_control lists what may be chosen.
    "congestionControl" congestion_control: CongestionControl = CongestionControl(None);
    /// Servers of DNS that names of services are asked of; `--dns-server` sets them, too. By default those that dnsConfigFile names.
    "dnsServers" dns_servers: DnsServers = DnsServers::default();
    /// Names the servers of DNS, the search domains and ndots; read again when it changes.
    "dnsConfigFile" dns_config_file: FilePath = FilePath("/etc/resolv.conf".into());
    /// Names with addresses that no server is asked for; read again when it changes.
    "dnsHostsFile" dns_hosts_file: FilePath = FilePath("/etc/hosts".into());
    /// Time that a server of DNS has for its answer before the next one is asked, or the same one once more.
    "dnsTimeout" dns_timeout: Duration = Duration::from_secs(2);
    /// Addresses are used for so long before they are asked for again, even if their time to live is shorter.
    "dnsTtlMin" dns_ttl_min: Duration = Duration::from_secs(1);
    /// Addresses are asked for again after so long, even if their time to live is longer.
    "dnsTtlMax" dns_ttl_max: Duration = Duration::from_secs(3600);
    /// Longest wait before a name is asked for again that could not be resolved, or has no addresses (MeshConfig dnsRefreshRate). The first is a second, and it doubles.
    "dnsRefreshRate" dns_refresh_rate: Duration = Duration::from_secs(60);
    /// How long addresses are used beyond their time to live while no server answers (RFC 8767).
    "dnsStaleMax" dns_stale_max: Duration = Duration::from_secs(24 * 3600);
    /// How long a configuration waits at most for the first addresses of its names, so that no route leads nowhere that could lead somewhere a moment later.
    "dnsStartTimeout" dns_start_timeout: Duration = Duration::from_secs(5);
    /// How paths are normalized before routing (MeshConfig pathNormalization).
    "pathNormalization" path_normalization: PathNormalization = PathNormalization::Base;
    /// Proxies in front of this gateway whose X-Forwarded-For entries are trusted (MeshConfig gatewayTopology.numTrustedProxies).
    "numTrustedProxies" trusted_proxies: u32 = 0;
    /// What becomes of x-forwarded-client-cert (MeshConfig gatewayTopology.forwardClientCertDetails).
    "forwardClientCertDetails" forward_client_cert: ForwardClientCert = ForwardClientCert::SanitizeSet;
    /// Peers that are believed when they say who their client is (PROXY protocol); `--trusted-cidr` sets it, too.
    "trustedCidr" trusted: TrustedRanges = TrustedRanges::default();
    /// Ranges that names of upstreams may lead to although clients choose them, or they are link-local; `--egress-allow-cidr` sets it, too.
    "egressAllowCidr" egress_allowed: AllowedRanges = AllowedRanges::default();
    /// Pass the upstream's Server field through instead of writing `server: isthmus`.
    "passServerHeader" pass_server_header: bool = false;
    /// Answer with x-isthmus-cause, which names why the gateway itself answered.
    "debugCause" debug_cause: bool = false;
}

/// What the codecs need to know of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageLimits {
    /// See [`Settings::request_line_bytes`].
    pub request_line_bytes: usize,
    /// See [`Settings::header_bytes`].
    pub header_bytes: usize,
    /// See [`Settings::header_count`].
    pub header_count: usize,
    /// See [`Settings::trailer_bytes`].
    pub trailer_bytes: usize,
    /// See [`Settings::chunk_line_bytes`].
    pub chunk_line_bytes: usize,
    /// Whether requests may be CONNECT, as they may at a forward proxy.
    pub connect: bool,
}

/// What an HTTP/2 client may send that costs it little and the gateway more; each is the setting of its name, and
/// `u32::MAX` where there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Http2Limits {
    /// See [`Settings::http2_rapid_resets`].
    pub rapid_resets: u32,
    /// See [`Settings::http2_stream_errors`].
    pub stream_errors: u32,
    /// See [`Settings::http2_refused_streams`].
    pub refused_streams: u32,
    /// See [`Settings::http2_continuations`].
    pub continuations: u32,
    /// See [`Settings::http2_header_block_bytes`].
    pub header_block_bytes: u32,
    /// See [`Settings::http2_settings`].
    pub settings: u32,
    /// See [`Settings::http2_pings`].
    pub pings: u32,
    /// See [`Settings::http2_control_frames`].
    pub control_frames: u32,
    /// See [`Settings::http2_empty_data`].
    pub empty_data: u32,
    /// See [`Settings::http2_tiny_data`].
    pub tiny_data: u32,
    /// See [`Settings::http2_window_updates`].
    pub window_updates: u32,
}

/// Largest value of `headerBytes`: heads are read into one block of this size.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Largest value of `headerCount`: the tokenizer's table has so many rows.
pub const HEADER_COUNT_MAX: usize = 256;

impl Settings {
    /// The bounds of message heads and bodies, with what the codecs can hold as their own upper bound.
    pub fn message_limits(&self) -> MessageLimits {
        MessageLimits {
            request_line_bytes: self.request_line_bytes,
            header_bytes: self.header_bytes.min(HEADER_BYTES_MAX),
            header_count: self.header_count.min(HEADER_COUNT_MAX),
            trailer_bytes: self.trailer_bytes.min(HEADER_BYTES_MAX),
            chunk_line_bytes: self.chunk_line_bytes.min(HEADER_BYTES_MAX),
            connect: false,
        }
    }

    /// When names are asked for again.
    pub fn dns_times(&self) -> Times {
        Times {
            ttl_min: self.dns_ttl_min,
            ttl_max: self.dns_ttl_max,
            refresh: self.dns_refresh_rate,
            stale_max: self.dns_stale_max,
        }
    }

    /// What trusted callers may ask for.
    pub fn override_limits(&self) -> OverrideLimits {
        OverrideLimits {
            timeout: Some(self.override_timeout_max).filter(|most| !most.is_zero()),
            retries: self.override_retries_max,
        }
    }

    /// What an HTTP/2 client may send.
    pub fn http2_limits(&self) -> Http2Limits {
        let most = |number: u32| if number == 0 { u32::MAX } else { number };
        Http2Limits {
            rapid_resets: most(self.http2_rapid_resets),
            stream_errors: most(self.http2_stream_errors),
            refused_streams: most(self.http2_refused_streams),
            continuations: most(self.http2_continuations),
            header_block_bytes: most(self.http2_header_block_bytes),
            settings: most(self.http2_settings),
            pings: most(self.http2_pings),
            control_frames: most(self.http2_control_frames),
            empty_data: most(self.http2_empty_data),
            tiny_data: most(self.http2_tiny_data),
            window_updates: most(self.http2_window_updates),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_set_by_name() {
        let mut settings = Settings::default();
        let seconds = SettingValue::Duration(Duration::from_secs(3));
        assert_eq!(settings.set("idleTimeout", &seconds), Some(Ok(())));
        assert_eq!(settings.idle_timeout, Duration::from_secs(3));
        assert_eq!(settings.set("nothing", &seconds), None);
        assert!(settings.set("headerBytes", &seconds).unwrap().is_err());
        for (key, bad) in [("headerBytes", 65_537), ("headerCount", 0), ("chunkLineBytes", 0)] {
            assert!(
                settings.set(key, &SettingValue::Number(bad)).unwrap().is_err(),
                "{key}"
            );
        }
        assert!(
            settings
                .set("interimResponses", &SettingValue::Number(1 << 40))
                .unwrap()
                .is_err()
        );
        let merge = SettingValue::Text("MERGE_SLASHES".into());
        assert_eq!(settings.set("pathNormalization", &merge), Some(Ok(())));
    }

    #[test]
    fn trusted_ranges_are_read() {
        let ranges: TrustedRanges = "10.0.0.0/8, 192.168.1.7,fd00::/8".parse().unwrap();
        for (address, trusted) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("192.168.1.7", true),
            ("192.168.1.8", false),
            ("fd12::1", true),
            ("::1", false),
        ] {
            assert_eq!(ranges.contains(address.parse().unwrap()), trusted, "{address}");
        }
        assert!(TrustedRanges::default().contains("127.0.0.2".parse().unwrap()));
        for bad in ["10.0.0.0/33", "all", "10.0.0/8"] {
            assert!(bad.parse::<TrustedRanges>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_setting_is_documented() {
        let lines = Settings::documentation();
        assert_eq!(lines.len(), Settings::NAMES.len());
        assert!(
            lines
                .iter()
                .all(|line| !line.help.is_empty() && !line.default.is_empty())
        );
    }
}
