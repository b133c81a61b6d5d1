//! Plays the cases of HTTP/2 against a server by hand.
//!
//! `h2cases HOST:PORT [--tls]` prints each case and its outcome, and fails when one fails. The server must pass every
//! request on to `h2cases --upstream`, which prints where it listens and answers until its input ends.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a tool of the terminal")]

use anyhow::{Context, Result, bail};
use isthmus_tests::h2::{Target, cases};
use isthmus_tests::upstream::Upstream;
use std::io;
use std::net::ToSocketAddrs;

const USAGE: &str = "h2cases HOST:PORT [--tls] | h2cases --upstream";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (address, tls) = match words[..] {
        ["--upstream"] => return upstream(),
        [address] if !address.starts_with('-') => (address, false),
        [address, "--tls"] | ["--tls", address] => (address, true),
        _ => bail!(USAGE),
    };
    let mut found = address.to_socket_addrs().with_context(|| address.to_owned())?;
    let address = found.next().context(USAGE)?;
    let all = cases::all();
    let failures = cases::play(Target { address, tls }, &all, |case, result| {
        let outcome = if result.is_ok() { "ok    " } else { "FAILED" };
        println!("{outcome} {} {}", case.section, case.name);
    });
    for failure in &failures {
        println!("\n{failure}");
    }
    println!(
        "\n{} passed, {} failed",
        all.len() - failures.len(),
        failures.len()
    );
    if failures.is_empty() {
        Ok(())
    } else {
        bail!("not every case passes")
    }
}

fn upstream() -> Result<()> {
    let upstream = Upstream::start(cases::answer);
    println!("{}", upstream.address());
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
