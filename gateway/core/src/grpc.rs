//! What gRPC needs of a gateway beyond HTTP/2 (gRPC over HTTP/2, `PROTOCOL-HTTP2.md` of the gRPC project).
//!
//! A call is an HTTP request, and its status is a trailer of an answer with status 200. So an answer that the gateway
//! gives itself must be translated, or clients see a broken answer in place of its reason; deadlines come and go in a
//! field of their own; and resources name statuses by gRPC's names.

use http::StatusCode;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// The media type of calls, and of the answers that the gateway gives to them.
pub const CONTENT_TYPE: &str = "application/grpc";

/// Whether a request with this Content-Type is a call: `application/grpc`, or with a format as in
/// `application/grpc+proto`. That of gRPC-Web is none, because its status comes in the body (Envoy's
/// `hasGrpcContentType`).
pub fn is_call(content_type: &[u8]) -> bool {
    content_type
        .split_at_checked(CONTENT_TYPE.len())
        .is_some_and(|(start, rest)| {
            start.eq_ignore_ascii_case(CONTENT_TYPE.as_bytes()) && (rest.is_empty() || rest.starts_with(b"+"))
        })
}

macro_rules! statuses {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal $text:literal;)*) => {
        /// The status of a call (`google.rpc.Code`).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Status { $($(#[doc = $doc])+ $name = $number,)* }

        impl Status {
            /// All of them, each at the position of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
            /// Their names, likewise.
            pub const NAMES: &'static [&'static str] = &[$($text),*];
        }
    };
}

statuses! {
    /// The call succeeded.
    Ok = 0 "OK";
    /// Its caller gave it up.
    Cancelled = 1 "CANCELLED";
    /// Something failed of which no more is known.
    Unknown = 2 "UNKNOWN";
    /// An argument is wrong.
    InvalidArgument = 3 "INVALID_ARGUMENT";
    /// It took too long.
    DeadlineExceeded = 4 "DEADLINE_EXCEEDED";
    /// What was asked for is not there.
    NotFound = 5 "NOT_FOUND";
    /// What was to be made is there.
    AlreadyExists = 6 "ALREADY_EXISTS";
    /// The caller may not.
    PermissionDenied = 7 "PERMISSION_DENIED";
    /// A quota is spent.
    ResourceExhausted = 8 "RESOURCE_EXHAUSTED";
    /// It cannot be done as things are.
    FailedPrecondition = 9 "FAILED_PRECONDITION";
    /// It met another call.
    Aborted = 10 "ABORTED";
    /// It went beyond an end.
    OutOfRange = 11 "OUT_OF_RANGE";
    /// There is no such method.
    Unimplemented = 12 "UNIMPLEMENTED";
    /// Something is broken.
    Internal = 13 "INTERNAL";
    /// The service is not there for now.
    Unavailable = 14 "UNAVAILABLE";
    /// Data are lost.
    DataLoss = 15 "DATA_LOSS";
    /// The caller did not say who it is.
    Unauthenticated = 16 "UNAUTHENTICATED";
}

impl Status {
    /// The status of HTTP that says the same (Envoy's `grpcToHttpStatus`).
    pub const fn to_http(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::InvalidArgument | Self::FailedPrecondition | Self::OutOfRange => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Aborted => 409,
            Self::ResourceExhausted => 429,
            Self::Cancelled => 499,
            Self::Unknown | Self::Internal | Self::DataLoss => 500,
            Self::Unimplemented => 501,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its name, as in `UNAVAILABLE`.
    pub fn name(self) -> &'static str {
        Self::NAMES.get(usize::from(self.number())).copied().unwrap_or("")
    }

    /// The status of a number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The status of a name, as `fault.abort.grpcStatus` has it; in upper case only, as Istio takes it.
    pub fn from_name(name: &str) -> Option<Self> {
        let at = Self::NAMES.iter().position(|known| *known == name)?;
        Self::ALL.get(at).copied()
    }

    /// What `grpc-status` of an answer says; None when that is no status.
    pub fn parse(value: &[u8]) -> Option<Self> {
        match value {
            [digit @ b'0'..=b'9'] => Self::from_number(digit - b'0'),
            [b'1', digit @ b'0'..=b'9'] => Self::from_number(10 + (digit - b'0')),
            _ => None,
        }
    }

    /// What a call is answered with where another request gets an HTTP status (`http-grpc-status-mapping.md` of the
    /// gRPC project, and Envoy's `httpToGrpcStatus`).
    pub const fn of_http(status: StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502 | 503 | 504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text as `grpc-message` carries it: bytes that are no printable ASCII, and `%`, are written as `%` and two digits.
pub fn encode_message(text: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'%';
    if text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 15] {
                out.push(
                    char::from_digit(digit.into(), 16)
                        .unwrap_or('0')
                        .to_ascii_uppercase(),
                );
            }
        }
    }
    Cow::Owned(out)
}

/// What `grpc-timeout` says: one to eight digits and a unit. None when it is malformed, which means no deadline.
pub fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) {
        return None;
    }
    let mut number = 0;
    for digit in digits {
        number = number * 10 + u64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
    }
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_by_their_content_type() {
        for (content_type, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc+json", true),
            ("Application/gRPC", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpc-web-text", false),
            ("application/grpcx", false),
            ("application/json", false),
            ("application/grp", false),
            ("", false),
        ] {
            assert_eq!(is_call(content_type.as_bytes()), expected, "{content_type}");
        }
    }

    #[test]
    fn statuses_have_numbers_and_names() {
        for (number, status) in Status::ALL.iter().enumerate() {
            assert_eq!(usize::from(status.number()), number);
            assert_eq!(Status::from_number(number as u8), Some(*status));
            assert_eq!(Status::from_name(status.name()), Some(*status));
            assert_eq!(Status::parse(number.to_string().as_bytes()), Some(*status));
        }
        assert_eq!((Status::ALL.len(), Status::NAMES.len()), (17, 17));
        assert_eq!(Status::Unauthenticated.to_string(), "UNAUTHENTICATED");
        assert_eq!(Status::from_name("unavailable"), None);
        for bad in ["", "17", "-1", "01", "1 ", "100", "x"] {
            assert_eq!(Status::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn answers_of_the_gateway_are_translated() {
        for (http, grpc) in [
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 12),
            (408, 2),
            (413, 2),
            (421, 2),
            (429, 14),
            (431, 2),
            (500, 2),
            (502, 14),
            (503, 14),
            (504, 14),
        ] {
            let status = StatusCode::from_u16(http).unwrap();
            assert_eq!(Status::of_http(status).number(), grpc, "{http}");
        }
    }

    #[test]
    fn messages_are_encoded_where_they_must_be() {
        for (text, encoded) in [
            ("", ""),
            ("no healthy upstream (UH)", "no healthy upstream (UH)"),
            ("100 %", "100 %25"),
            ("a\nb", "a%0Ab"),
            ("gr\u{fc}n", "gr%C3%BCn"),
            ("~\u{7f}", "~%7F"),
        ] {
            assert_eq!(encode_message(text), encoded);
        }
        assert!(matches!(encode_message("plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn timeouts_are_read() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("100m", Some(Duration::from_millis(100))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("0S", Some(Duration::ZERO)),
            ("00000001S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("123456789n", None),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("+1S", None),
            ("1.5S", None),
            (" 1S", None),
        ] {
            assert_eq!(parse_timeout(text.as_bytes()), expected, "{text}");
        }
    }
}
