//! The corpus of raw HTTP/1.1 requests with verdicts, played by its own runner.

use isthmus_tests::{corpus, gateway};
use std::process::Command;

#[test]
fn every_raw_request_gets_the_verdict_of_the_rfc() {
    let Some(corpus) = corpus::find() else { return };
    let run = Command::new("python3")
        .arg(corpus.join("h1/run.py"))
        .arg("--binary")
        .arg(gateway::binary())
        .output()
        .expect("python3 with PyYAML runs");
    let said = String::from_utf8_lossy(&run.stdout);
    let last = said.trim_end().lines().last().unwrap_or_default();
    let passed = last
        .strip_suffix(" passed, 0 failed")
        .and_then(|count| count.parse::<u32>().ok());
    assert!(
        passed.is_some_and(|count| count > 0),
        "{said}\n{}",
        String::from_utf8_lossy(&run.stderr)
    );
    assert!(run.status.success(), "{}", run.status);
}
