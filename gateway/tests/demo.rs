//! The demo keeps its word: what `isthmus demo` prints is run, line by line, and the answers are what it says.
//!
//! The grammar of an expectation, behind `-> `, is `STATUS FACT, FACT...` with these facts:
//! - `SERVICE VERSION`: which upstream answered;
//! - `got NAME VALUE`, `got no NAME`: what that upstream was sent, by its own account;
//! - `"words"`: part of the body;
//! - `NAME: VALUE`: a field of the answer's head;
//!
//! or, for many requests at once, `N% SERVICE VERSION, N% SERVICE VERSION...`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// No step takes so long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// How far a share of 400 random draws may be from its weight: 4.6 standard deviations.
const POINTS: f64 = 10.0;

/// A running demo; killed when dropped.
struct Demo {
    child: Child,
    lines: Receiver<String>,
    text: Vec<String>,
}

impl Demo {
    /// Starts the demo and waits until it has said everything.
    fn start(arguments: &[&str]) -> Self {
        let mut child = command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut demo = Self {
            child,
            lines,
            text: Vec::new(),
        };
        demo.text = demo.lines_until("Ctrl-C ends it.");
        demo
    }

    /// The lines up to the one that contains `end`.
    fn lines_until(&self, end: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("no line with {end:?} ({error}) after {lines:#?}"));
            let last = line.contains(end);
            lines.push(line);
            if last {
                return lines;
            }
        }
    }

    /// Each command with what the demo says about its answer.
    fn trials(&self) -> Vec<(&str, &str)> {
        let pairs = self.text.windows(2);
        let trials: Vec<_> = pairs
            .filter_map(|pair| Some((pair[1].trim(), pair[0].split_once("  -> ")?.1)))
            .collect();
        let commands = self
            .text
            .iter()
            .filter(|line| line.trim_start().starts_with("curl "))
            .count();
        assert_eq!(trials.len(), commands, "{:#?}", self.text);
        trials
    }

    /// The address behind this word, such as `admin`.
    fn address(&self, name: &str) -> SocketAddr {
        let mut lines = self.text.iter().filter_map(|line| line.trim().strip_prefix(name));
        let url = lines.next().unwrap().trim().strip_prefix("http://").unwrap();
        url.split('/').next().unwrap().parse().unwrap()
    }

    /// Sends a signal and waits for the end.
    fn end(mut self, signal: rustix::process::Signal) -> ExitStatus {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
        // Standard output closes with the process; only then is there nothing left to wait for.
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(_) => {}
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(error) => panic!("the demo does not end: {error}"),
            }
        }
        self.child.wait().unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus"));
    command.arg("demo").args(arguments).stdin(Stdio::null());
    command
}

/// Runs a printed line as a reader would: by a shell.
fn shell(line: &str) -> String {
    // A proxy of the environment must not come between.
    let output = Command::new("sh")
        .args(["-c", line])
        .env("NO_PROXY", "*")
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn check(line: &str, answer: &str, expects: &str) {
    let told = || format!("\n{line}\nexpected {expects}\nanswered {answer}");
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{}", told()));
    let mut facts = expects.split(", ");
    let first = facts.next().unwrap();
    let (status, rest) = first.split_once(' ').unwrap_or((first, ""));
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{}", told());
    let facts = (!rest.is_empty()).then_some(rest).into_iter().chain(facts);
    for fact in facts {
        let words: Vec<&str> = fact.split(' ').collect();
        let holds = match words[..] {
            ["got", "no", name] => body.contains("\"headers\":{") && !body.contains(&format!("\"{name}\":")),
            ["got", name, value] => body.contains(&format!("\"{name}\":\"{value}\"")),
            _ if fact.starts_with('"') && fact.ends_with('"') => body.contains(fact.trim_matches('"')),
            [name, value] if name.ends_with(':') => {
                head.lines().any(|line| line == format!("{name} {value}"))
            }
            [service, version] => {
                body.starts_with(&format!("{{\"service\":\"{service}\",\"version\":\"{version}\","))
            }
            _ => panic!("not a fact: {fact}{}", told()),
        };
        assert!(holds, "{fact}{}", told());
    }
}

/// `uniq -c` has counted the versions.
fn check_shares(line: &str, answer: &str, expects: &str) {
    let count = |version: &str| -> f64 {
        let version = format!("\"version\":\"{version}\"");
        let mut counts = answer.lines().filter_map(|line| line.trim().split_once(' '));
        let (count, _) = counts.find(|(_, of)| *of == version).unwrap_or(("0", ""));
        count.parse().unwrap()
    };
    let mut sum = 0.0;
    for share in expects.split(", ") {
        let (percent, version) = share.split_once('%').unwrap();
        let version = version.rsplit(' ').next().unwrap();
        sum += count(version);
        let (percent, got) = (percent.parse::<f64>().unwrap(), count(version) / 4.0);
        assert!(
            (got - percent).abs() <= POINTS,
            "{line}\n{expects}, but {got}% for {version}\n{answer}"
        );
    }
    assert!((sum - 400.0).abs() < 0.5, "{line}\n{answer}");
}

#[test]
fn every_line_that_the_demo_prints_does_what_it_says_and_ctrl_c_ends_it() {
    let demo = Demo::start(&[]);
    let trials = demo.trials();
    assert!(trials.len() >= 8, "{trials:?}");
    for &(line, expects) in &trials {
        let answer = shell(line);
        if expects.contains('%') {
            check_shares(line, &answer, expects);
        } else {
            check(line, &answer, expects);
        }
    }
    // The addresses that it names answer, too.
    for (name, path, words) in [
        (
            "admin",
            "/config_dump",
            "outbound|9080|v2|reviews.bookinfo.svc.cluster.local",
        ),
        ("metrics", "/stats/prometheus", "istio_requests_total{"),
        ("health", "/healthz/ready", "ready"),
    ] {
        let answer = shell(&format!("curl -s http://{}{path}", demo.address(name)));
        assert!(answer.contains(words), "{name}: {answer}");
    }
    assert_eq!(demo.end(rustix::process::Signal::INT).code(), Some(0));
}

#[test]
fn the_access_log_is_printed_when_asked_for_and_term_ends_it_although_a_client_stays() {
    let demo = Demo::start(&["--access-log"]);
    let idle = TcpStream::connect(demo.address("gateway")).unwrap();
    let (line, _) = demo.trials()[0];
    shell(line);
    let logged = demo.lines_until("\"GET /productpage HTTP/1.1\" 200");
    assert!(
        logged
            .last()
            .unwrap()
            .contains("outbound|9080||productpage.bookinfo.svc.cluster.local"),
        "{logged:?}"
    );
    assert_eq!(demo.end(rustix::process::Signal::TERM).code(), Some(0));
    drop(idle);
}

#[test]
fn a_port_that_is_taken_ends_with_status_3_and_the_flag_that_mends_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (flag, what) in [
        ("--port", "give another port with --port\n"),
        (
            "--upstream-base-port",
            "give other ports with --upstream-base-port",
        ),
    ] {
        let mut child = command(&[flag, &port])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut said, mut reason) = (String::new(), String::new());
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut reason).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3), "{reason}");
        assert_eq!(said, "");
        assert!(reason.contains(what) && reason.contains(&port), "{reason}");
    }
}

#[test]
fn the_example_is_clean_even_for_the_strict() {
    let output = Command::new(env!("CARGO_BIN_EXE_isthmus"))
        .args(["check", "--strict", "-f"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/examples/bookinfo"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.ends_with(" resources, 0 errors, 0 warnings\n"), "{text}");
}
