//! The client of a running gateway's admin API.

use crate::control::AdminAddress;
use crate::io::clock;
use crate::tls::{Credentials, build_client};
use anyhow::{Context, Result, bail};
use isthmus_core::tls::{CaSource, ClientTls, KeySource, Offer};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);
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

/// Which gateway is asked, and how its answer is printed.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) admin: Door,
    /// How it is printed.
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    pub(super) output: super::FormatArg,
}

/// GET.
pub(super) fn get(admin: &Door, path: &str) -> Result<String> {
    ask("GET", admin, path, PATIENCE)
}

/// Asks the admin API, which answers in HTTP/1.0 when it is asked in it: a body that ends with the connection.
pub(super) fn ask(method: &str, admin: &Door, path: &str, patience: Duration) -> Result<String> {
    match ask_status(method, admin, path, patience)? {
        (200, body) => Ok(body),
        (400 | 503, body) if !body.is_empty() => bail!("{}", body.trim_end()),
        (status, _) => bail!("{admin}{path}: status {status}: is it the admin address?"),
    }
}

/// The same, whatever the status of the answer is.
pub(super) fn ask_status(
    method: &str,
    admin: &Door,
    path: &str,
    patience: Duration,
) -> Result<(u16, String)> {
    let nobody = || format!("no gateway answers at {admin}: name its admin address with --admin");
    match &admin.address {
        Address::Plain(AdminAddress::Tcp(address)) => {
            let stream = TcpStream::connect_timeout(address, PATIENCE).with_context(nobody)?;
            stream.set_read_timeout(Some(patience))?;
            exchange(stream, method, &address.to_string(), admin, path)
        }
        Address::Plain(AdminAddress::Unix(socket)) => {
            let stream = UnixStream::connect(socket).with_context(nobody)?;
            stream.set_read_timeout(Some(patience))?;
            exchange(stream, method, "localhost", admin, path)
        }
        Address::Tls { host, port } => {
            let config = admin.client_config()?;
            let (stream, address) = connect(&host.to_str(), *port).with_context(nobody)?;
            stream.set_read_timeout(Some(patience))?;
            let connection = ClientConnection::new(config, host.clone())?;
            // What changes something takes addresses in Host only; the name was TLS's to verify.
            let host = address.to_string();
            exchange(StreamOwned::new(connection, stream), method, &host, admin, path)
        }
    }
}

/// Connects to the first address of a host that answers.
fn connect(host: &str, port: u16) -> std::io::Result<(TcpStream, SocketAddr)> {
    let mut last = std::io::ErrorKind::NotFound.into();
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok((stream, address)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    host: &str,
    admin: &Door,
    path: &str,
) -> Result<(u16, String)> {
    let silent = || format!("{admin} does not answer");
    let request = format!("{method} {path} HTTP/1.0\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(silent)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(silent)?;
    if answer.first() == Some(&TLS_ALERT) {
        bail!("{admin} speaks TLS: name it as https://HOST:PORT");
    }
    let answer = String::from_utf8(answer).context("the answer is no text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let line = head.lines().next().unwrap_or("");
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("the answer is no HTTP")?, body.to_owned()))
}

/// The same as JSON.
pub(super) fn get_json(admin: &Door, path: &str) -> Result<Value> {
    let text = get(admin, path)?;
    serde_json::from_str(&text).with_context(|| format!("{admin}{path} is no JSON"))
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
