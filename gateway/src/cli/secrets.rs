//! `isthmus secrets`: which certificates a running gateway serves, shows and trusts, and what is wrong with them.

use super::admin;
use super::print;
use super::screen::{Table, has_color, show};
use anyhow::{Context, Result};
use isthmus_config::diagnostic::printable;
use serde_json::Value;
use std::fmt::Write as _;
use std::process::ExitCode;

pub(super) fn run(args: &admin::Args) -> ExitCode {
    let found = args.get("/certs");
    match args.output {
        super::FormatArg::Json => match found {
            Ok(text) => print(&(text + "\n")),
            Err(error) => return admin::failed(&error),
        },
        super::FormatArg::Text => {
            match found.and_then(|text| table(&serde_json::from_str(&text)?, has_color())) {
                Ok(text) => show(&text),
                Err(error) => return admin::failed(&error),
            }
        }
    }
    ExitCode::SUCCESS
}

fn table(found: &Value, color: bool) -> Result<String> {
    let certificates = found["certificates"].as_array().context("no certificates")?;
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let mut rows = Table::new(&["USED AS", "NAMES", "SERIAL", "EXPIRES", "SOURCE"]);
    for one in certificates {
        let names: Vec<String> = one["names"].as_array().into_iter().flatten().map(text).collect();
        let names = if names.is_empty() {
            text(&one["subject"])
        } else {
            names.join(",")
        };
        let used_as = text(&one["used_as"]);
        rows.push(vec![
            used_as,
            names,
            text(&one["serial"]),
            text(&one["not_after"]),
            text(&one["source"]),
        ]);
    }
    rows.sort();
    let mut out = rows.render(color);
    for (key, word) in [("errors", "error"), ("warnings", "warning")] {
        for fault in found[key].as_array().into_iter().flatten() {
            writeln!(out, "{word}: {}", printable(&text(fault)))?;
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
            table(&found, false).unwrap(),
            "USED AS  NAMES          SERIAL  EXPIRES               SOURCE\n\
             server   a              0A      2027-01-01T00:00:00Z  /a\n\
             server   b.com,*.b.com  0A      2027-01-01T00:00:00Z  /b\n\
             error: no credential x\n"
        );
    }
}
