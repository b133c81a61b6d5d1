//! `isthmus check`: what is wrong with resources, without running them.

use super::{ResourceArgs, print};
use crate::io::clock;
use crate::run::Exit;
use clap::ValueEnum;
use isthmus_config::diagnostic::{self, Severity};
use isthmus_config::{Compiled, Source};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    resources: ResourceArgs,
    /// How findings are printed.
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    output: Output,
    /// Take warnings as errors.
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let sources = match isthmus_config::read_paths(&args.resources.files) {
        Ok(sources) => sources,
        Err(error) => {
            let _closed = writeln!(std::io::stderr().lock(), "isthmus: {error}");
            return ExitCode::from(1);
        }
    };
    let resources = &args.resources;
    let process = crate::run::load_process(resources.mesh_config.as_ref(), resources.settings.as_ref());
    let mut options = resources.compile_options();
    match process {
        Ok((mesh, _)) => options.mesh = mesh,
        Err(exit) => {
            let (status, text) = exit.status();
            let _closed = writeln!(std::io::stderr().lock(), "isthmus: {}", text.unwrap_or(""));
            return ExitCode::from(status);
        }
    }
    let mut compiled = isthmus_config::compile(&sources, &options);
    if let Err(exit) = check_keys(&sources, &mut compiled, resources.credentials.clone()) {
        let (status, text) = exit.status();
        let _closed = writeln!(std::io::stderr().lock(), "isthmus: {}", text.unwrap_or(""));
        return ExitCode::from(status);
    }
    let count = |severity| {
        compiled
            .diagnostics
            .iter()
            .filter(|found| found.severity == severity)
            .count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    match args.output {
        Output::Json => print(&format!("{:#}\n", diagnostic::to_json(&compiled.diagnostics))),
        Output::Text => {
            let color = std::io::stdout().is_terminal();
            print(&diagnostic::render(&compiled.diagnostics, &sources, color));
            for (kind, number) in &compiled.passed_over {
                print(&format!(
                    "passed over: {number} of kind {kind}, which a gateway does not execute\n"
                ));
            }
            print(&format!(
                "{}, {}, {}\n",
                counted(compiled.resources, "resource"),
                counted(errors, "error"),
                counted(warnings, "warning")
            ));
        }
    }
    let failed = errors > 0 || (args.strict && warnings > 0);
    ExitCode::from(u8::from(failed))
}

/// Loads the keys that servers name. What is wrong with them are warnings: the keys may be on another machine than the
/// one that checks, and one that is missing stops its own hosts only.
fn check_keys(sources: &[Source], compiled: &mut Compiled, credentials: Option<PathBuf>) -> Result<(), Exit> {
    let mut store = crate::run::new_store(std::mem::take(&mut compiled.secrets), credentials)?;
    store.load(&compiled.snapshot, clock::wall());
    let servers: Vec<_> = compiled.origins.servers().cloned().collect();
    for (at, policy) in servers.iter().enumerate() {
        let (errors, warnings) = store.server_faults(policy);
        let errors = errors.iter().map(|error| ("keys-unusable", error.to_string()));
        let warnings = warnings
            .iter()
            .map(|warning| ("keys-doubtful", warning.to_string()));
        for (code, message) in errors.chain(warnings) {
            let found = compiled
                .origins
                .server_problem(sources, at, Severity::Warning, code, message);
            compiled.diagnostics.extend(found);
        }
    }
    compiled
        .diagnostics
        .sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    Ok(())
}

/// `1 error`, `2 errors`.
fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
