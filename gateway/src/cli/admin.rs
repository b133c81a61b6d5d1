//! The client of a running gateway's admin API.
//!
//! A command has one deadline for everything, from the connection to the last byte, and says what it waited for when
//! that is over.

use crate::control::AdminAddress;
use crate::io::clock;
use crate::tls::{Credentials, build_client};
use anyhow::{Context, Result, anyhow, bail};
use isthmus_core::tls::{CaSource, ClientTls, KeySource, Offer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, InvalidMessage, StreamOwned};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a gateway may take to say what it knows, if nothing else is asked for: with a hundred thousand routes, and
/// on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How long one address of a host may take to connect, so that another one gets its turn.
const CONNECT: Duration = Duration::from_secs(5);
/// What a server of TLS says to who does not speak it: a record of this type (RFC 8446, 5.1).
const TLS_ALERT: u8 = 21;

/// Where the admin API of a running gateway is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Plain(AdminAddress),
    /// `https://HOST:PORT`: the host must be a name, or an address, of the certificate.
    Tls {
        host: ServerName<'static>,
        port: u16,
    },
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix("https://") else {
            return text.parse().map(Self::Plain);
        };
        let bad = || format!("`{text}` is not https://HOST:PORT");
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().map_err(|_| bad())?;
        let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
            Some(host) => host.ok_or_else(bad)?,
            None if host.contains(':') => return Err(bad()),
            None => host,
        };
        let host = ServerName::try_from(host.to_owned()).map_err(|_| bad())?;
        Ok(Self::Tls { host, port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(address) => address.fmt(f),
            Self::Tls { host, port } => match &*host.to_str() {
                v6 if v6.contains(':') => write!(f, "https://[{v6}]:{port}"),
                name => write!(f, "https://{name}:{port}"),
            },
        }
    }
}

/// Which gateway is asked, and what it takes to be let in.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Door {
    /// The gateway's admin API: IP:PORT, unix:PATH, or https://HOST:PORT if it speaks mutual TLS (--admin-tls-cert),
    /// which takes the three options below.
    #[arg(
        long = "admin",
        value_name = "ADDRESS",
        env = "ISTHMUS_ADMIN",
        default_value = "127.0.0.1:15000"
    )]
    address: Address,
    /// For https: the authority of the gateway's certificate.
    #[arg(long, value_name = "FILE", env = "ISTHMUS_ADMIN_CA")]
    admin_ca: Option<String>,
    /// For https: the certificate that the gateway is shown, with its chain.
    #[arg(long, value_name = "FILE", env = "ISTHMUS_ADMIN_CERT")]
    admin_cert: Option<String>,
    /// For https: the key of that certificate.
    #[arg(long, value_name = "FILE", env = "ISTHMUS_ADMIN_KEY")]
    admin_key: Option<String>,
}

impl Door {
    /// How connections are secured.
    fn client_config(&self) -> Result<Arc<ClientConfig>> {
        let (Some(ca), Some(certificate), Some(key)) = (&self.admin_ca, &self.admin_cert, &self.admin_key)
        else {
            bail!("{self} takes --admin-ca, --admin-cert and --admin-key");
        };
        let policy = ClientTls {
            key: Some(KeySource::Files {
                certificate: certificate.as_str().into(),
                key: key.as_str().into(),
            }),
            ca: CaSource::File(ca.as_str().into()),
            crl: None,
            subject_alt_names: Vec::new(),
            sni: None,
            skip_verify: false,
        };
        match build_client(&policy, &Credentials::new(BTreeMap::new(), None), clock::wall()) {
            Ok(built) => Ok(Arc::clone(built.config.offering(Offer::Http1))),
            Err(errors) => {
                let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                bail!("{}", errors.join("; "))
            }
        }
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// Which gateway is asked, how long it may take, and how its answer is printed.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Door,
    /// How long the answer may take [default: 30s; of reload 2m, of healthcheck 5s].
    #[arg(long, value_name = "DURATION", value_parser = super::parse_duration)]
    timeout: Option<Duration>,
    /// How it is printed.
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    pub(super) output: super::FormatArg,
}

impl Args {
    /// GET.
    pub(super) fn get(&self, path: &str) -> Result<String> {
        self.expect(self.ask_status("GET", path, PATIENCE)?, path)
    }

    /// The same as JSON.
    pub(super) fn get_json(&self, path: &str) -> Result<Value> {
        let text = self.get(path)?;
        serde_json::from_str(&text).with_context(|| format!("{}{path} is no JSON", self.admin))
    }

    /// The body of an answer that is a success.
    pub(super) fn expect(&self, answer: (u16, String), path: &str) -> Result<String> {
        match answer {
            (200, body) => Ok(body),
            (400 | 403 | 421 | 503, body) if !body.is_empty() => bail!("{}", body.trim_end()),
            (status, _) => bail!("{}{path}: status {status}: is it the admin address?", self.admin),
        }
    }

    /// Asks, and answers the status and the body. `patience` is for where none is asked for.
    pub(super) fn ask_status(&self, method: &str, path: &str, patience: Duration) -> Result<(u16, String)> {
        self.admin
            .ask(method, path, Patience::new(self.timeout.unwrap_or(patience)))
    }
}

impl Door {
    /// Asks, and answers the status and the body.
    pub(super) fn ask(&self, method: &str, path: &str, patience: Patience) -> Result<(u16, String)> {
        let nobody = || format!("no gateway answers at {self}: name its admin address with --admin");
        match &self.address {
            Address::Plain(AdminAddress::Tcp(address)) => {
                let stream =
                    TcpStream::connect_timeout(address, patience.left(CONNECT)).with_context(nobody)?;
                self.exchange(Bounded { stream, patience }, method, &address.to_string(), path)
            }
            Address::Plain(AdminAddress::Unix(socket)) => {
                let stream = UnixStream::connect(socket).with_context(nobody)?;
                self.exchange(Bounded { stream, patience }, method, "localhost", path)
            }
            Address::Tls { host, port } => {
                let mut connection = ClientConnection::new(self.client_config()?, host.clone())?;
                let (stream, address) = connect(&host.to_str(), *port, patience).with_context(nobody)?;
                let mut stream = Bounded { stream, patience };
                while connection.is_handshaking() {
                    connection
                        .complete_io(&mut stream)
                        .map_err(|error| self.explain(error, patience, "the TLS handshake"))?;
                }
                // What changes something takes addresses in Host only; the name was TLS's to verify.
                let host = address.to_string();
                self.exchange(StreamOwned::new(connection, stream), method, &host, path)
            }
        }
    }

    /// Asks in HTTP/1.0, in which the answer ends with the connection.
    fn exchange(
        &self,
        mut stream: impl Read + Write + Timed,
        method: &str,
        host: &str,
        path: &str,
    ) -> Result<(u16, String)> {
        let patience = stream.patience();
        let target = path.split('?').next().unwrap_or(path);
        let failed = |error| self.explain(error, patience, &format!("the answer to {method} {target}"));
        let request = format!("{method} {path} HTTP/1.0\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut answer = Vec::new();
        // A gateway that ends may not come to say goodbye after its answer.
        while !is_whole(&answer) {
            let mut some = [0; 16 << 10];
            match stream.read(&mut some) {
                Ok(0) => break,
                Ok(length) => answer.extend_from_slice(some.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        if answer.first() == Some(&TLS_ALERT) {
            bail!("{self} speaks TLS: name it as https://HOST:PORT");
        }
        if answer.is_empty() {
            bail!("{self} closed the connection without the answer to {method} {target}");
        }
        let (status, length, body) = parts(&answer).context("the answer is no HTTP")?;
        if length.is_some_and(|length| length > body.len()) {
            bail!("{self} closed the connection in the middle of the answer to {method} {target}");
        }
        let body = String::from_utf8(body.to_vec()).context("the answer is no text")?;
        Ok((status, body))
    }

    /// What has become of a connection that there was, in the operator's words.
    fn explain(&self, error: io::Error, patience: Patience, awaited: &str) -> anyhow::Error {
        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
            let time = humantime::format_duration(patience.time);
            return anyhow!("{self}: {awaited} did not come within {time}: --timeout gives it more");
        }
        let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref());
        match of_tls {
            Some(rustls::Error::AlertReceived(alert)) => anyhow!(
                "{self} does not let --admin-cert in, says its TLS ({alert:?}): has it a certificate of its \
                 --admin-client-ca that is valid now?"
            ),
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
                anyhow!("{self} speaks no TLS: name it as IP:PORT")
            }
            _ => anyhow::Error::new(error).context(format!("{awaited} of {self}")),
        }
    }
}

/// The status, the length that is told of the body, and as much of it as is there.
fn parts(answer: &[u8]) -> Option<(u16, Option<usize>, &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = answer.split_at_checked(end + 4)?;
    let mut lines = std::str::from_utf8(head).ok()?.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok());
    Some((status, length, body))
}

/// Whether nothing more can come.
fn is_whole(answer: &[u8]) -> bool {
    parts(answer).is_some_and(|(_, length, body)| length.is_some_and(|length| body.len() >= length))
}

/// Connects to the first address of a host that answers.
fn connect(host: &str, port: u16, patience: Patience) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = ErrorKind::NotFound.into();
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience.left(CONNECT)) {
            Ok(stream) => return Ok((stream, address)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// How long a command waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    time: Duration,
    began: Instant,
}

impl Patience {
    /// From now on.
    pub(super) fn new(time: Duration) -> Self {
        Self {
            time,
            began: clock::now(),
        }
    }

    /// What is left of it, at most `max`; never nothing, which sockets take for no bound.
    fn left(self, max: Duration) -> Duration {
        let left = self.time.saturating_sub(clock::now() - self.began);
        left.min(max).max(Duration::from_millis(1))
    }

    fn is_over(self) -> bool {
        clock::now() - self.began >= self.time
    }
}

/// A socket whose operations can be bounded.
trait Socket: Read + Write {
    fn bound(&self, time: Duration) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn bound(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl Socket for UnixStream {
    fn bound(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

/// A socket with a deadline.
struct Bounded<S> {
    stream: S,
    patience: Patience,
}

impl<S: Socket> Bounded<S> {
    fn in_time(&self) -> io::Result<()> {
        if self.patience.is_over() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.bound(self.patience.left(Duration::MAX))
    }
}

impl<S: Socket> Read for Bounded<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.in_time()?;
        self.stream.read(into)
    }
}

impl<S: Socket> Write for Bounded<S> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.in_time()?;
        self.stream.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// What has a deadline.
trait Timed {
    fn patience(&self) -> Patience;
}

impl<S> Timed for Bounded<S> {
    fn patience(&self) -> Patience {
        self.patience
    }
}

impl<C, S: Timed + Read + Write> Timed for StreamOwned<C, S> {
    fn patience(&self) -> Patience {
        self.sock.patience()
    }
}

/// A pair of a query, escaped (RFC 3986, 2.1).
pub(super) fn pair(query: &mut String, name: &str, value: &str) {
    query.push(if query.is_empty() { '?' } else { '&' });
    query.push_str(name);
    query.push('=');
    for &byte in value.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            query.push(byte as char);
        } else {
            query.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// Ends a command that could not ask.
pub(super) fn failed(error: &anyhow::Error) -> ExitCode {
    let _closed = writeln!(std::io::stderr().lock(), "isthmus: {error:#}");
    ExitCode::from(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        let mut query = String::new();
        pair(&mut query, "url", "http://a/b?c=d&e");
        pair(&mut query, "header", "x: é");
        assert_eq!(query, "?url=http%3A%2F%2Fa%2Fb%3Fc%3Dd%26e&header=x%3A%20%C3%A9");
    }

    #[test]
    fn an_answer_is_whole_with_the_last_byte_of_its_length() {
        let whole = "HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody";
        for end in 0..whole.len() {
            assert!(!is_whole(&whole.as_bytes()[..end]), "{end}");
        }
        assert!(is_whole(whole.as_bytes()));
        assert_eq!(parts(whole.as_bytes()), Some((200, Some(4), &b"body"[..])));
        let unknown = b"HTTP/1.0 200 OK\r\n\r\nbody";
        assert!(!is_whole(unknown));
        assert_eq!(parts(unknown), Some((200, None, &b"body"[..])));
        assert_eq!(parts(b"SSH-2.0-x\r\n\r\n"), None);
    }

    #[test]
    fn admin_addresses_have_three_forms() {
        for text in [
            "127.0.0.1:15000",
            "[::1]:1",
            "unix:/run/isthmus/admin.sock",
            "https://edge.example:15000",
            "https://127.0.0.1:1",
            "https://[::1]:1",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for bad in [
            "",
            "unix:",
            "localhost:1",
            "127.0.0.1",
            "http://a:1",
            "https://",
            "https://a",
            "https://:1",
            "https://::1:1",
            "https://[::1:1",
            "https://a b:1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        // A gateway itself listens at an address.
        assert!("https://127.0.0.1:1".parse::<AdminAddress>().is_err());
    }
}
