//! How long a change of endpoints takes until every shard has it, on a machine that does nothing else.
//!
//! An instance registers itself at one address and then at another, over and over. What the gateway measures itself is
//! from the change until all shards have answered (`isthmus_endpoint_update_seconds`); what a client feels is from
//! before it asks for the change until a request is answered by the new address, the HTTP of both included.

use crate::measure::{Process, Spread};
use crate::proxy::{READY, sharded_command};
use anyhow::{Context, Result, ensure};
use isthmus_tests::client::{self, Client};
use isthmus_tests::upstream::{SERVED_BY, Upstream};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const CHANGES: usize = 2_000;
/// Changes before any counts: connections are opened, and memory grows.
const WARM: usize = 200;
/// What the median must stay below.
const BOUND: Duration = Duration::from_millis(2);
const METRIC: &str = "isthmus_endpoint_update_seconds";
const RESOURCES: &str = r#"apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: default}
spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: default}
spec:
  hosts: ["*"]
  gateways: [edge]
  http: [{route: [{destination: {host: up.example}}]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: up, namespace: default}
spec:
  hosts: [up.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: []
"#;

/// Measures, and writes `endpoints.md`.
pub(crate) fn measure(gateway: &Path, out: &Path, smoke: bool) -> Result<()> {
    let changes = if smoke { CHANGES / 20 } else { CHANGES };
    let folder = tempfile::tempdir()?;
    let resources = folder.path().join("resources");
    fs::create_dir_all(&resources)?;
    fs::write(resources.join("all.yaml"), RESOURCES)?;
    let ready = folder.path().join(READY);
    let mut command = sharded_command(gateway, &resources, &ready);
    command.args(["--access-log", "off"]);
    let mut process = Process::anywhere(command, folder.path())?;
    let said: Value = process.wait_for(|| serde_json::from_slice(&fs::read(&ready).ok()?).ok())?;
    let address =
        |value: &Value| -> Result<SocketAddr> { Ok(value.as_str().context("an address")?.parse()?) };
    let (admin, metrics) = (address(&said["admin"])?, address(&said["metrics"])?);
    let edge = address(&said["listeners"][0]["address"])?;
    let upstreams = [Upstream::echo_for_load("a"), Upstream::echo_for_load("b")];
    let (mut writer, mut asker) = (Client::connect(admin), Client::connect(edge));
    let mut change = |number: usize| -> Result<f64> {
        let at = number % upstreams.len();
        let upstream = upstreams.get(at).context("one of two")?.address();
        let body =
            json!({"address": upstream.ip(), "ports": {"http": upstream.port()}, "ttl": "1h"}).to_string();
        let begun = Instant::now();
        writer.send(format!(
            "PUT /v1/endpoints/up.example/i HTTP/1.1\r\nhost: {admin}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ));
        let answer = writer.response();
        ensure!(answer.status < 300, "{}", answer.text());
        let name = ["a", "b"].get(at).copied();
        while asker.get("any.example", "/").field(SERVED_BY) != name {
            ensure!(
                begun.elapsed() < Duration::from_secs(10),
                "the new address is not asked"
            );
        }
        Ok(begun.elapsed().as_secs_f64())
    };
    for number in 0..WARM {
        change(number)?;
    }
    let before = buckets(metrics)?;
    let felt = (WARM..WARM + changes)
        .map(&mut change)
        .collect::<Result<Vec<f64>>>()?;
    let after = buckets(metrics)?;
    let counted: Vec<(f64, f64)> = after
        .iter()
        .zip(&before)
        .map(|((bound, after), (_, before))| (*bound, after - before))
        .collect();
    let median = median(&counted).context("no change was measured")?;
    let felt = Spread::of(felt);
    let mut text = String::new();
    writeln!(
        text,
        "| of {changes} changes of endpoints | median | quartiles |\n|---|---|---|\n| until every shard has it | {:.0} us | |\n\
         | from before the PUT until a request is answered there | {:.0} us | {:.0}..{:.0} us |",
        median * 1e6,
        felt.median * 1e6,
        felt.low * 1e6,
        felt.high * 1e6
    )?;
    fs::create_dir_all(out)?;
    fs::write(out.join("endpoints.md"), &text)?;
    println!("{text}");
    ensure!(
        smoke || median < BOUND.as_secs_f64(),
        "half of the changes took more than {:.0} us, and may take {BOUND:?}",
        median * 1e6
    );
    Ok(())
}

/// The buckets of the metric: the upper bound of each, and how many changes took no longer.
fn buckets(metrics: SocketAddr) -> Result<Vec<(f64, f64)>> {
    let page = client::get(metrics, "metrics", "/stats/prometheus");
    let start = format!("{METRIC}_bucket{{le=\"");
    let lines = page.text().lines().filter_map(|line| line.strip_prefix(&start));
    let buckets = lines.map(|line| {
        let (bound, count) = line.split_once("\"} ").context("a bucket")?;
        let bound = if bound == "+Inf" {
            f64::INFINITY
        } else {
            bound.parse()?
        };
        Ok((bound, count.trim().parse()?))
    });
    let found: Result<Vec<(f64, f64)>> = buckets.collect();
    found.and_then(|found| {
        ensure!(!found.is_empty(), "the gateway does not export {METRIC}");
        Ok(found)
    })
}

/// The median, taken to lie in its bucket as if its figures were spread evenly there.
fn median(buckets: &[(f64, f64)]) -> Option<f64> {
    let half = buckets.last()?.1 / 2.0;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in buckets {
        if *count >= half && *count > below {
            return Some(if bound.is_finite() {
                low + (bound - low) * (half - below) / (count - below)
            } else {
                *bound
            });
        }
        (low, below) = (*bound, *count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_lies_in_its_bucket() {
        let buckets = [(0.1, 0.0), (0.2, 10.0), (0.4, 10.0), (f64::INFINITY, 10.0)];
        assert!((median(&buckets).unwrap() - 0.15).abs() < 1e-9);
        assert_eq!(median(&[(0.1, 0.0), (f64::INFINITY, 4.0)]), Some(f64::INFINITY));
        assert_eq!(median(&[(0.1, 0.0)]), None);
    }
}
