//! `isthmus check`: what is wrong with resources, without running them.

use super::screen::{has_color, show};
use super::{ResourceArgs, print};
use crate::io::clock;
use crate::run::Exit;
use crate::tls::MaterialError;
use clap::ValueEnum;
use isthmus_config::diagnostic::{self, Severity};
use isthmus_config::{Compiled, KeyProblem, Source, TlsAsked};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    resources: ResourceArgs,
    /// How findings are printed: for people, as a JSON list, or as SARIF 2.1.0 for code scanning.
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
    Sarif,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let sources = match isthmus_config::read_paths(&args.resources.files) {
        Ok(sources) => sources,
        Err(error) => {
            let _closed = writeln!(std::io::stderr().lock(), "isthmus: --file: {error}");
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
    let found = &compiled.diagnostics;
    match args.output {
        Output::Json => print(&format!("{:#}\n", diagnostic::to_json(found))),
        Output::Sarif => {
            let log = isthmus_config::to_sarif(found, env!("CARGO_PKG_VERSION"));
            print(&format!("{log:#}\n"));
        }
        Output::Text => {
            let mut text = diagnostic::render(found, &sources, has_color());
            for (kind, number) in &compiled.passed_over {
                text.push_str(&format!(
                    "passed over: {number} of {}, which a gateway does not execute\n",
                    diagnostic::printable(kind)
                ));
            }
            if compiled.resources == 0 && errors == 0 {
                text.push_str(&format!("{}\n", isthmus_config::no_resource(&sources)));
            }
            text.push_str(&format!(
                "{}, {}, {}",
                counted(compiled.resources, "resource"),
                counted(errors, "error"),
                counted(warnings, "warning")
            ));
            let hints = count(Severity::Hint);
            if hints > 0 {
                text.push_str(&format!(", {}", counted(hints, "hint")));
            }
            text.push('\n');
            show(&text);
        }
    }
    // A job that checks the wrong folder must not pass.
    let failed = errors > 0 || (args.strict && (warnings > 0 || compiled.resources == 0));
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
            let kind = match error {
                MaterialError::NotFound { .. } => KeyProblem::NotFound,
                _ => KeyProblem::Unusable,
            };
            let message = error.to_string();
            let problem = compiled.origins.tls_problem(sources, at, kind, message, help);
            found.extend(problem);
        }
        for warning in warnings {
            let (message, help) = (warning.to_string(), "it is used nonetheless");
            let problem = compiled
                .origins
                .tls_problem(sources, at, KeyProblem::Doubtful, message, help);
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

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_config::diagnostic::Diagnostic;

    /// Everything that is found in a file of the corpus' analyzers, at a gateway in `istio-system`, where Istio's own is.
    fn found(name: &str) -> Option<Vec<Diagnostic>> {
        let given = std::env::var_os("ISTHMUS_CORPUS").map(PathBuf::from);
        let corpus =
            given.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"));
        if !corpus.is_dir() {
            eprintln!("NOT RUN: there is no corpus at {}", corpus.display());
            assert!(std::env::var_os("CI").is_none(), "the corpus must be there in CI");
            return None;
        }
        let sources = isthmus_config::read_paths(&[corpus.join("analyzers").join(name)]).unwrap();
        let options = isthmus_config::Options {
            namespace: "istio-system".to_owned(),
            ..isthmus_config::Options::default()
        };
        let mut compiled = isthmus_config::compile(&sources, &options);
        check_keys(&sources, &mut compiled, None).unwrap();
        Some(compiled.diagnostics)
    }

    fn of(found: &[Diagnostic], code: &str) -> Vec<(String, String)> {
        let with = found.iter().filter(|found| found.code == code);
        with.map(|found| (found.resource.clone(), found.field.clone()))
            .collect()
    }

    #[test]
    fn credentials_that_are_not_there_are_told_where_they_are_named() {
        let Some(found) = found("gateway-secrets.yaml") else {
            return;
        };
        let missing = of(&found, "IST0101");
        let named = (
            "Gateway default/defaultgateway-bogusCredentialName".to_owned(),
            "spec.servers[0].tls.credentialName".to_owned(),
        );
        assert!(missing.contains(&named), "{missing:?}");
        let good = |(resource, _): &(String, String)| resource.ends_with("/defaultgateway-noerrors");
        assert!(!missing.iter().any(good), "{missing:?}");
    }

    #[test]
    fn credentials_that_cannot_be_used_are_told_where_they_are_named() {
        let Some(found) = found("gateway-secrets-validation.yaml") else {
            return;
        };
        let bad = of(&found, "IST0161");
        for name in ["invalid-keys", "missing-keys", "invalid-cert", "expired"] {
            let named = (
                format!("Gateway default/defaultgateway-{name}"),
                "spec.servers[0].tls.credentialName".to_owned(),
            );
            assert!(bad.contains(&named), "{name}: {bad:?}");
        }
    }
}
