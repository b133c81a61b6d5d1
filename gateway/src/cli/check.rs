//! `isthmus check`: what is wrong with resources, without running them.

use super::{ResourceArgs, print};
use clap::ValueEnum;
use isthmus_config::diagnostic::{self, Severity};
use std::io::{IsTerminal, Write};
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
    let compiled = isthmus_config::compile(&sources, &options);
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

/// `1 error`, `2 errors`.
fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
