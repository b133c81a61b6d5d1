//! The client of a running gateway's admin API.

use crate::control::AdminAddress;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

/// Which gateway is asked, and how its answer is printed.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// The gateway's admin API: IP:PORT or unix:PATH.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ISTHMUS_ADMIN",
        default_value = "127.0.0.1:15000"
    )]
    pub(super) admin: AdminAddress,
    /// How it is printed.
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    pub(super) output: super::FormatArg,
}

/// GET.
pub(super) fn get(admin: &AdminAddress, path: &str) -> Result<String> {
    ask("GET", admin, path, PATIENCE)
}

/// Asks the admin API, which answers in HTTP/1.0 when it is asked in it: a body that ends with the connection.
pub(super) fn ask(method: &str, admin: &AdminAddress, path: &str, patience: Duration) -> Result<String> {
    match ask_status(method, admin, path, patience)? {
        (200, body) => Ok(body),
        (400 | 503, body) if !body.is_empty() => bail!("{}", body.trim_end()),
        (status, _) => bail!("{admin}{path}: status {status}: is it the admin address?"),
    }
}

/// The same, whatever the status of the answer is.
pub(super) fn ask_status(
    method: &str,
    admin: &AdminAddress,
    path: &str,
    patience: Duration,
) -> Result<(u16, String)> {
    let nobody = || format!("no gateway answers at {admin}: name its admin address with --admin");
    match admin {
        AdminAddress::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, PATIENCE).with_context(nobody)?;
            stream.set_read_timeout(Some(patience))?;
            exchange(stream, method, &address.to_string(), admin, path)
        }
        AdminAddress::Unix(socket) => {
            let stream = UnixStream::connect(socket).with_context(nobody)?;
            stream.set_read_timeout(Some(patience))?;
            exchange(stream, method, "localhost", admin, path)
        }
    }
}

fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    host: &str,
    admin: &AdminAddress,
    path: &str,
) -> Result<(u16, String)> {
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| format!("{admin} does not answer"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let line = head.lines().next().unwrap_or("");
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("the answer is no HTTP")?, body.to_owned()))
}

/// The same as JSON.
pub(super) fn get_json(admin: &AdminAddress, path: &str) -> Result<Value> {
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
    fn admin_addresses_have_two_forms() {
        for text in ["127.0.0.1:15000", "[::1]:1", "unix:/run/isthmus/admin.sock"] {
            let address: AdminAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for bad in ["", "unix:", "localhost:1", "127.0.0.1"] {
            assert!(bad.parse::<AdminAddress>().is_err(), "{bad}");
        }
    }
}
