//! `isthmus check`: what is wrong with resources, without running them.

use super::{ResourceArgs, print};
use crate::io::clock;
use crate::run::Exit;
use clap::ValueEnum;
use isthmus_config::diagnostic::{self, Severity};
use isthmus_config::{Compiled, Source, TlsAsked};
use std::io::Write;
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
pub(super) enum Output {
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
            let color = super::screen::has_color();
            print(&diagnostic::render(&compiled.diagnostics, &sources, color));
            for (kind, number) in &compiled.passed_over {
                print(&format!(
                    "passed over: {number} of kind {kind}, which a gateway does not execute\n"
                ));
            }
            if compiled.resources == 0 {
                print(
                    "no resource was found: of a directory, files that end in .yaml, .yml or .json are read\n",
                );
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
    let store = crate::run::new_store(std::mem::take(&mut compiled.secrets), credentials)?;
    let now = clock::wall();
    let mut found = Vec::new();
    for (at, asked) in compiled.origins.tls().enumerate() {
        let (errors, warnings, help) = match asked {
            TlsAsked::Server(policy) => {
                let (errors, warnings) = store.check_server(policy, now);
                (
                    errors,
                    warnings,
                    "until it can be loaded, the hosts of this server are refused",
                )
            }
            TlsAsked::Client(policy) => {
                let (errors, warnings) = store.check_client(policy, now);
                (
                    errors,
                    warnings,
                    "until it can be loaded, these upstreams are not connected to",
                )
            }
        };
        for error in errors {
            let message = error.to_string();
            let problem = compiled
                .origins
                .tls_problem(sources, at, "keys-unusable", message, help);
            found.extend(problem);
        }
        for warning in warnings {
            let (message, help) = (warning.to_string(), "it is used nonetheless");
            let problem = compiled
                .origins
                .tls_problem(sources, at, "keys-doubtful", message, help);
            found.extend(problem);
        }
    }
    compiled.diagnostics.extend(found);
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
