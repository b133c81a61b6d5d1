//! `isthmus reload`: has a running gateway load its files again, and says what became of them.

use super::admin;
use super::print;
use anyhow::Result;
use isthmus_config::diagnostic::printable_lines;
use isthmus_config::keep::Quarantined;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

/// A hundred thousand routes take a while to compile.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn run(args: &admin::Args) -> ExitCode {
    let answered = args.ask_status("POST", "/reload", PATIENCE);
    // A gateway that answers that it loads nothing is there.
    if let Ok((503, why)) = &answered {
        let why = printable_lines(&format!("isthmus: {}\n", why.trim_end()));
        let _closed = std::io::stderr().write_all(why.as_bytes());
        return ExitCode::from(1);
    }
    let shown = answered
        .and_then(|answer| args.expect(answer, "/reload"))
        .and_then(|text| {
            let (shown, is_whole) = tell(&serde_json::from_str(&text)?)?;
            Ok(match args.output {
                super::FormatArg::Json => (text + "\n", is_whole),
                super::FormatArg::Text => (shown, is_whole),
            })
        });
    match shown {
        Ok((text, is_whole)) => {
            print(&text);
            ExitCode::from(u8::from(!is_whole))
        }
        Err(error) => admin::failed(&error),
    }
}

/// The answer in words, and whether everything is served as it is written.
fn tell(status: &Value) -> Result<(String, bool)> {
    let mut out = String::new();
    let (mut served, last) = (&status["served"], &status["last_change"]);
    writeln!(out, "version {} is served", served["version"])?;
    if last["version"].as_u64() < served["version"].as_u64() && !last.is_null() {
        // The files are watched: who asks after a change may come second.
        let since = last["since"].as_str().unwrap_or("");
        writeln!(out, "nothing new since version {}, at {since}:", last["version"])?;
        served = last;
    }
    for kind in ["listeners", "hosts", "clusters"] {
        let changes = &served["changes"][kind];
        writeln!(
            out,
            "{kind}: {} added, {} changed, {} removed",
            changes["added"], changes["changed"], changes["removed"]
        )?;
    }
    let quarantined: Vec<Quarantined> = serde_json::from_value(status["quarantined"].clone())?;
    let mut is_whole = quarantined.is_empty();
    for held in &quarantined {
        writeln!(out, "{held}")?;
    }
    let problems = ["failed_ports", "failed_keys"].map(|what| status[what].as_array());
    for problem in problems
        .into_iter()
        .flatten()
        .flatten()
        .chain([&status["unreadable"], &status["unkept"]])
        .filter_map(Value::as_str)
    {
        is_whole = false;
        writeln!(out, "{problem}")?;
    }
    Ok((printable_lines(&out), is_whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_behind_is_told_with_its_place() {
        let none = serde_json::json!({"added": 0, "changed": 0, "removed": 0});
        let status = serde_json::json!({
            "served": {"version": 7, "changes": {"listeners": none, "hosts": {"added": 1, "changed": 2, "removed": 3}, "clusters": none}},
            "quarantined": [{"resources": ["Gateway a/b"], "file": "x.yaml", "line": 3, "column": 5, "reason": "syntax: no", "serves_last": true}],
            "failed_ports": [], "failed_keys": ["a.pem: no such file"], "unreadable": null,
        });
        let (text, is_whole) = tell(&status).unwrap();
        assert!(!is_whole);
        assert_eq!(
            text,
            "version 7 is served\nlisteners: 0 added, 0 changed, 0 removed\nhosts: 1 added, 2 changed, 3 removed\n\
             clusters: 0 added, 0 changed, 0 removed\n\
             x.yaml:3:5: Gateway a/b: syntax: no; its last good version is served\na.pem: no such file\n"
        );
    }

    #[test]
    fn a_load_that_the_watcher_has_done_already_is_told() {
        let changes = |hosts| {
            let none = serde_json::json!({"added": 0, "changed": 0, "removed": 0});
            serde_json::json!({"listeners": none, "hosts": {"added": hosts, "changed": 0, "removed": 0}, "clusters": none})
        };
        let status = serde_json::json!({
            "served": {"version": 8, "changes": changes(0)},
            "last_change": {"version": 7, "since": "2026-11-26T05:00:00.000Z", "changes": changes(3)},
            "quarantined": [], "failed_ports": [], "failed_keys": [], "unreadable": null,
        });
        let (text, is_whole) = tell(&status).unwrap();
        assert!(is_whole);
        assert!(
            text.starts_with(
                "version 8 is served\nnothing new since version 7, at 2026-11-26T05:00:00.000Z:\n"
            ),
            "{text}"
        );
        assert!(text.contains("hosts: 3 added"), "{text}");
    }
}
