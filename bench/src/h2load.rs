//! The load over HTTP/2: h2load, which speaks it, on the core of the load.

use crate::load::Outcome;
use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

/// A message of gRPC: not compressed, and its length (of the specification of gRPC over HTTP/2).
const MESSAGE: &[u8] = b"\0\0\0\0\x0chello, bench";

/// Sends requests for `path` on so many connections, each with so many streams at a time; `grpc` makes them calls.
pub(crate) fn run(
    address: SocketAddr,
    path: &str,
    (connections, streams): (usize, usize),
    grpc: bool,
    time: Duration,
) -> Result<Outcome> {
    let mut message = tempfile::NamedTempFile::new()?;
    message.write_all(MESSAGE)?;
    // It knows whole seconds only when it is told a time, so it is told a number of requests, in portions.
    let portion = connections * streams * 40;
    let mut outcome = Outcome {
        answers: 0,
        errors: BTreeMap::new(),
        latency: Histogram::new_with_bounds(1, 60_000_000, 3)?,
        elapsed: Duration::ZERO,
    };
    let start = std::time::Instant::now();
    while outcome.elapsed < time {
        let mut command = Command::new("h2load");
        if grpc {
            command.arg("-d").arg(message.path()).args([
                "-H",
                "content-type: application/grpc",
                "-H",
                "te: trailers",
            ]);
        }
        let output = command
            .args(["-n", &portion.to_string(), "-c", &connections.to_string()])
            .args(["-m", &streams.to_string()])
            .arg(format!("https://{address}{path}"))
            .output()
            .context("h2load")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "h2load: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let (succeeded, wrong) = counts(&text).context("h2load counts its requests")?;
        outcome.answers += succeeded;
        if wrong > 0 {
            *outcome.errors.entry("h2load".to_owned()).or_default() += wrong;
        }
        outcome.elapsed = start.elapsed();
    }
    Ok(outcome)
}

/// Requests that were answered with a success, and the others.
fn counts(text: &str) -> Option<(u64, u64)> {
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
    let number = |line: &str, name: &str| -> Option<u64> {
        let part = line.split(',').find(|part| part.trim_end().ends_with(name))?;
        part.split_whitespace().next()?.parse().ok()
    };
    let total = number(line("requests:")?, "total")?;
    let succeeded = number(line("status codes:")?, "2xx")?;
    Some((succeeded, total.saturating_sub(succeeded)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_failures_are_counted() {
        let text = "finished in 1.19s, 42009.64 req/s, 3.13MB/s\n\
                    requests: 500 total, 500 started, 500 done, 490 succeeded, 10 failed, 0 errored, 0 timeout\n\
                    status codes: 490 2xx, 0 3xx, 0 4xx, 10 5xx\n";
        assert_eq!(counts(text), Some((490, 10)));
        assert_eq!(counts("nothing"), None);
    }
}
