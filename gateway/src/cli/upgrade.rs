//! `isthmus upgrade`, `isthmus drain` and `isthmus healthcheck`: what a supervisor does with a running gateway.

use super::admin::{self, Patience};
use super::{FormatArg, parse_duration, print};
use anyhow::{Context, Result};
use isthmus_config::diagnostic::printable_lines;
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How long the answer may take beyond what it waits for: a newer process that fails is heard out, and reaped.
const MARGIN: Duration = Duration::from_secs(30);
/// Supervisors ask often, and take no answer for a bad one.
const HEALTH: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, clap::Args)]
pub(super) struct UpgradeArgs {
    #[command(flatten)]
    admin: admin::Door,
    /// The new binary, when it is not in the place of the old one; only over an admin API at `unix:PATH`.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// How long the new process may take until it serves.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    /// How the answer is printed.
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    output: FormatArg,
}

pub(super) fn run(args: &UpgradeArgs) -> ExitCode {
    let answered = path(args).and_then(|path| {
        let patience = Patience::new(args.timeout.saturating_add(MARGIN));
        args.admin.ask("POST", &path, patience)
    });
    end(answered, |body| {
        if matches!(args.output, FormatArg::Json) {
            return Ok(format!("{body}\n"));
        }
        let told: Value = serde_json::from_str(body)?;
        Ok(format!(
            "process {} serves; process {} drains\n",
            told["process"], told["replaced"]
        ))
    })
}

fn path(args: &UpgradeArgs) -> Result<String> {
    let mut query = String::new();
    admin::pair(
        &mut query,
        "timeout",
        &humantime::format_duration(args.timeout).to_string(),
    );
    if let Some(binary) = &args.binary {
        // The gateway's folder may be another one.
        let binary = std::path::absolute(binary)?;
        admin::pair(
            &mut query,
            "binary",
            binary.to_str().context("the path is no text")?,
        );
    }
    Ok(format!("/upgrade{query}"))
}

pub(super) fn drain(args: &admin::Args) -> ExitCode {
    let answered = args.ask_status("POST", "/drain_listeners", admin::PATIENCE);
    end(answered, |body| Ok(body.to_owned()))
}

pub(super) fn check_health(args: &admin::Args) -> ExitCode {
    let answered = args.ask_status("GET", "/ready", HEALTH);
    end(answered, |body| Ok(printable_lines(body)))
}

/// Prints an answer; one that is no success goes to standard error.
fn end(answered: Result<(u16, String)>, show: impl FnOnce(&str) -> Result<String>) -> ExitCode {
    let shown = answered.and_then(|(status, body)| {
        let body = body.trim_end();
        if status == 200 {
            return show(body).map(|text| (true, text));
        }
        Ok((false, printable_lines(&format!("isthmus: {body}\n"))))
    });
    match shown {
        Ok((true, mut text)) => {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            print(&text);
            ExitCode::SUCCESS
        }
        Ok((false, text)) => {
            let _closed = std::io::stderr().write_all(text.as_bytes());
            ExitCode::FAILURE
        }
        Err(error) => admin::failed(&error),
    }
}
