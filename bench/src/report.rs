//! What was measured, as JSON for machines, as a table in Markdown, and as a plot.

use crate::measure::Spread;
use crate::scenario::SCENARIOS;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Whose figures are 1.
pub(crate) const REFERENCE: &str = "haproxy";
const OURS: &str = "isthmus";

/// A whole run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// When it began.
    pub(crate) date: String,
    /// Processor, cores and kernel.
    pub(crate) machine: String,
    /// The command that repeats it.
    pub(crate) command: String,
    /// Rounds of each scenario.
    pub(crate) rounds: usize,
    /// How long each proxy was loaded in each.
    pub(crate) seconds: f64,
    /// What the proxies say of themselves.
    pub(crate) versions: BTreeMap<String, String>,
    /// What was found.
    pub(crate) scenarios: Vec<Measured>,
}

/// One scenario.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Its name on the command line.
    pub(crate) key: String,
    /// What a reader is told of it.
    pub(crate) title: String,
    /// When, if not with the others of the report.
    #[serde(default)]
    pub(crate) measured: Option<String>,
    /// The proxies in it.
    pub(crate) rows: Vec<Row>,
}

/// One proxy in one scenario.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Which.
    pub(crate) proxy: String,
    /// CPU-microseconds of a request, user and system; absent where only memory is measured.
    pub(crate) cpu: Option<Spread>,
    /// The part of it in user space (median).
    pub(crate) user: f64,
    /// The part in the kernel (median).
    pub(crate) system: f64,
    /// The CPU time of a request beside each other proxy's in the same round.
    pub(crate) ratios: BTreeMap<String, Spread>,
    /// Answers per second in a closed loop.
    pub(crate) rate: Spread,
    /// Answers that were errors, by what went wrong.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Answers in all.
    pub(crate) answers: u64,
    /// Resident memory at the end, in KiB.
    pub(crate) resident: u64,
    /// Resident memory that an idle connection adds, in bytes.
    pub(crate) idle_bytes: Option<f64>,
    /// At a fixed rate, in microseconds.
    pub(crate) latency: Option<Latency>,
}

/// Latency in an open loop, corrected for coordinated omission.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Requests per second.
    pub(crate) rate: u32,
    /// Half of the requests had their answer by then.
    pub(crate) p50: u64,
    /// 99 in 100.
    pub(crate) p99: u64,
    /// 999 in 1,000.
    pub(crate) p999: u64,
}

impl Report {
    /// Takes over what an earlier report has of scenarios that this one has not.
    pub(crate) fn add_missing(&mut self, earlier: &Path) -> Result<()> {
        let text = fs::read(earlier).with_context(|| earlier.display().to_string())?;
        let earlier: Self = serde_json::from_slice(&text).with_context(|| earlier.display().to_string())?;
        for scenario in earlier.scenarios {
            if self.scenarios.iter().all(|other| other.key != scenario.key) {
                self.scenarios.push(Measured {
                    measured: scenario.measured.or(Some(earlier.date.clone())),
                    ..scenario
                });
            }
        }
        let place = |scenario: &Measured| SCENARIOS.iter().position(|other| other.key == scenario.key);
        self.scenarios.sort_by_key(place);
        for (name, version) in earlier.versions {
            self.versions.entry(name).or_insert(version);
        }
        Ok(())
    }

    /// The table.
    pub(crate) fn markdown(&self) -> String {
        let mut out = format!(
            "{}; {}. {} rounds of {} s for each proxy, in rotating order, each proxy with one worker on a core of its \
             own; medians, with quartiles in brackets. `{}`\n",
            self.date, self.machine, self.rounds, self.seconds, self.command
        );
        for scenario in &self.scenarios {
            let _infallible = write!(
                out,
                "\n**{}: {}**{}\n\n{}",
                scenario.key,
                scenario.title,
                scenario
                    .measured
                    .as_ref()
                    .map_or(String::new(), |date| format!(" ({date})")),
                scenario.table()
            );
        }
        out.push('\n');
        for (name, version) in &self.versions {
            let _infallible = writeln!(out, "- {name}: {version}");
        }
        out
    }

    /// Bars of the CPU time beside the reference's.
    pub(crate) fn plot(&self) -> String {
        const LEFT: f64 = 150.0;
        const WIDTH: f64 = 560.0;
        const BAR: f64 = 15.0;
        const LIMIT: f64 = 5.0;
        let shown: Vec<&Measured> = self
            .scenarios
            .iter()
            .filter(|scenario| scenario.rows.iter().any(|row| row.cpu.is_some()))
            .collect();
        let lines: usize = shown.iter().map(|scenario| scenario.rows.len() + 2).sum();
        let height = 40.0 + lines as f64 * BAR;
        let x = |ratio: f64| LEFT + ratio.min(LIMIT) / LIMIT * WIDTH;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 {height}\" font-family=\"sans-serif\" \
             font-size=\"11\"><rect width=\"800\" height=\"{height}\" fill=\"white\"/><text x=\"8\" y=\"16\" \
             font-size=\"13\">CPU time of a request, HAProxy in the same round = 1 (shorter is better)</text>\n"
        );
        let mut y = 30.0;
        for scenario in shown {
            let _infallible = writeln!(
                out,
                "<text x=\"8\" y=\"{}\" font-weight=\"bold\">{}: {}</text>",
                y + 11.0,
                scenario.key,
                scenario.title
            );
            y += BAR;
            for row in &scenario.rows {
                let one = Spread {
                    low: 1.0,
                    median: 1.0,
                    high: 1.0,
                };
                let ratio = row.ratios.get(REFERENCE).copied().unwrap_or(one);
                let colour = if row.proxy == OURS { "#c2410c" } else { "#94a3b8" };
                let beyond = if ratio.median > LIMIT { " \u{2192}" } else { "" };
                let _infallible = writeln!(
                    out,
                    "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"{LEFT}\" y=\"{}\" width=\"{:.1}\" \
                     height=\"11\" fill=\"{colour}\"/><line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{}\" y2=\"{}\" \
                     stroke=\"black\"/><text x=\"{:.1}\" y=\"{}\">{:.2}{beyond}</text>",
                    LEFT - 6.0,
                    y + 10.0,
                    row.proxy,
                    y,
                    x(ratio.median) - LEFT,
                    x(ratio.low),
                    x(ratio.high),
                    y + 5.5,
                    y + 5.5,
                    x(ratio.high) + 6.0,
                    y + 10.0,
                    ratio.median
                );
                y += BAR;
            }
            y += BAR;
        }
        let _infallible = writeln!(
            out,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"24\" y2=\"{height}\" stroke=\"black\" stroke-dasharray=\"3\"/></svg>",
            x(1.0)
        );
        out
    }

    /// Whatever went wrong, one line each.
    pub(crate) fn errors(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for scenario in &self.scenarios {
            for row in &scenario.rows {
                for (fault, count) in &row.errors {
                    lines.push(format!("{}, {}: {count} x {fault}", scenario.key, row.proxy));
                }
                if row.answers == 0 {
                    lines.push(format!("{}, {}: no answer at all", scenario.key, row.proxy));
                }
            }
        }
        lines
    }
}

impl Measured {
    fn table(&self) -> String {
        let ratio = |spread: &Spread| format!("{:.2} [{:.2}..{:.2}]", spread.median, spread.low, spread.high);
        if self.rows.iter().any(|row| row.idle_bytes.is_some()) {
            let mut out = "| proxy | bytes per idle connection | RSS, MiB |\n|---|---|---|\n".to_owned();
            for row in &self.rows {
                let bytes = row.idle_bytes.unwrap_or(0.0);
                let mib = row.resident as f64 / 1024.0;
                let _infallible = writeln!(out, "| {} | {bytes:.0} | {mib:.0} |", row.proxy);
            }
            return out;
        }
        let mut out =
            "| proxy | CPU us/request (user + system) | beside HAProxy | Isthmus beside it | requests/s | \
                       p50 / p99 / p99.9, us | RSS, MiB | errors |\n|---|---|---|---|---|---|---|---|\n"
                .to_owned();
        let ours = self.rows.iter().find(|row| row.proxy == OURS);
        for row in &self.rows {
            let cpu = row.cpu.unwrap_or_default().median;
            let to_reference = row.ratios.get(REFERENCE).map_or("1".to_owned(), ratio);
            let from_ours = ours
                .and_then(|ours| ours.ratios.get(&row.proxy))
                .map_or(String::new(), ratio);
            let latency = row.latency.as_ref().map_or(String::new(), |latency| {
                format!("{} / {} / {}", latency.p50, latency.p99, latency.p999)
            });
            let errors: u64 = row.errors.values().sum();
            let _infallible = writeln!(
                out,
                "| {} | {cpu:.1} ({:.1} + {:.1}) | {to_reference} | {from_ours} | {:.0} | {latency} | {:.0} | {errors} |",
                row.proxy,
                row.user,
                row.system,
                row.rate.median,
                row.resident as f64 / 1024.0
            );
        }
        if let Some(rate) = self.rows.iter().find_map(|row| row.latency.as_ref()) {
            let _infallible = writeln!(out, "\nLatency at {} requests/s in an open loop.", rate.rate);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(proxy: &str, cpu: f64) -> Row {
        let spread = Spread::of([cpu]);
        Row {
            proxy: proxy.to_owned(),
            cpu: Some(spread),
            user: 1.0,
            system: cpu - 1.0,
            ratios: BTreeMap::from([("haproxy".to_owned(), Spread::of([cpu / 20.0]))]),
            rate: Spread::of([1000.0]),
            errors: BTreeMap::new(),
            answers: 10,
            resident: 2048,
            idle_bytes: None,
            latency: None,
        }
    }

    #[test]
    fn a_report_shows_every_proxy_and_tells_errors() {
        let mut report = Report {
            date: "2026-01-01".to_owned(),
            machine: "a machine".to_owned(),
            command: "cargo xtask bench".to_owned(),
            rounds: 1,
            seconds: 1.0,
            versions: BTreeMap::from([("haproxy".to_owned(), "2.6".to_owned())]),
            scenarios: vec![Measured {
                key: "a".to_owned(),
                title: "t".to_owned(),
                measured: None,
                rows: vec![row("isthmus", 18.0), row("haproxy", 20.0), row("envoy", 120.0)],
            }],
        };
        let table = report.markdown();
        assert!(
            table.contains("| isthmus | 18.0 (1.0 + 17.0) | 0.90 [0.90..0.90] | "),
            "{table}"
        );
        assert!(table.contains("- haproxy: 2.6"));
        let plot = report.plot();
        assert!(plot.starts_with("<svg") && plot.trim_end().ends_with("</svg>"));
        assert_eq!(plot.matches("<text").count(), 1 + 1 + 2 * 3, "{plot}");
        assert!(report.errors().is_empty());
        report.scenarios[0].rows[2].errors.insert("closed".to_owned(), 3);
        report.scenarios[0].rows[1].answers = 0;
        assert_eq!(
            report.errors(),
            ["a, haproxy: no answer at all", "a, envoy: 3 x closed"]
        );
    }
}
