//! `isthmus secrets`: which certificates a running gateway serves, shows and trusts, and what is wrong with them.

use super::print;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Address of the gateway's admin API.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ISTHMUS_ADMIN",
        default_value = "127.0.0.1:15000"
    )]
    admin: SocketAddr,
    /// How they are printed.
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    output: super::FormatArg,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let shown = ask("GET", args.admin, "/certs", PATIENCE).and_then(|text| match args.output {
        super::FormatArg::Json => Ok(text + "\n"),
        super::FormatArg::Text => table(&serde_json::from_str(&text)?),
    });
    match shown {
        Ok(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _closed = writeln!(std::io::stderr().lock(), "isthmus: {error:#}");
            ExitCode::from(3)
        }
    }
}

/// Asks the admin API, which answers in HTTP/1.0 when it is asked in it: a body that ends with the connection.
pub(super) fn ask(method: &str, admin: SocketAddr, path: &str, patience: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)
        .with_context(|| format!("no gateway answers at {admin}: name its admin address with --admin"))?;
    stream.set_read_timeout(Some(patience))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nhost: {admin}\r\ncontent-length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| format!("{admin} does not answer"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let status = head.lines().next().unwrap_or("");
    ensure!(
        status.contains(" 200 "),
        "{admin}{path}: {status}: is it the admin address?"
    );
    Ok(body.to_owned())
}

fn table(found: &Value) -> Result<String> {
    let certificates = found["certificates"].as_array().context("no certificates")?;
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let mut rows = vec![["USED AS", "NAMES", "SERIAL", "EXPIRES", "SOURCE"].map(str::to_owned)];
    for one in certificates {
        let names: Vec<String> = one["names"].as_array().into_iter().flatten().map(text).collect();
        let names = if names.is_empty() {
            text(&one["subject"])
        } else {
            names.join(",")
        };
        let used_as = text(&one["used_as"]);
        rows.push([
            used_as,
            names,
            text(&one["serial"]),
            text(&one["not_after"]),
            text(&one["source"]),
        ]);
    }
    rows.get_mut(1..).unwrap_or_default().sort();
    rows.dedup();
    let width = |column: usize| {
        let widths = rows.iter().filter_map(|row| row.get(column)).map(String::len);
        widths.max().unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2), width(3)];
    let mut out = String::new();
    for [used_as, names, serial, expires, source] in &rows {
        writeln!(
            out,
            "{used_as:<0$}  {names:<1$}  {serial:<2$}  {expires:<3$}  {source}",
            widths[0], widths[1], widths[2], widths[3]
        )?;
    }
    for (key, word) in [("errors", "error"), ("warnings", "warning")] {
        for fault in found[key].as_array().into_iter().flatten() {
            writeln!(out, "{word}: {}", text(fault))?;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_a_table_and_faults_are_below_it() {
        let one = |names: &[&str], source: &str| {
            serde_json::json!({
                "used_as": "server", "subject": "a", "names": names, "serial": "0A",
                "not_before": "2026-01-01T00:00:00Z", "not_after": "2027-01-01T00:00:00Z", "source": source
            })
        };
        let found = serde_json::json!({
            "certificates": [one(&["b.com", "*.b.com"], "/b"), one(&[], "/a"), one(&[], "/a")],
            "errors": ["no credential x"], "warnings": []
        });
        assert_eq!(
            table(&found).unwrap(),
            "USED AS  NAMES          SERIAL  EXPIRES               SOURCE\n\
             server   a              0A      2027-01-01T00:00:00Z  /a\n\
             server   b.com,*.b.com  0A      2027-01-01T00:00:00Z  /b\n\
             error: no credential x\n"
        );
    }
}
