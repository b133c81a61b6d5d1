//! `isthmus diff`: what would change for requests between two sets of resources.

use super::FormatArg;
use super::{ResourceArgs, print};
use isthmus_config::diagnostic::{self, Severity};
use isthmus_config::diff::{self, Side};
use isthmus_config::{Compiled, Options, Source};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// What holds now: a file, or a directory that is read recursively.
    old: PathBuf,
    /// What is to hold.
    new: PathBuf,
    #[command(flatten)]
    resources: ResourceArgs,
    /// How the changes are printed.
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    output: FormatArg,
}

/// Nothing changes; something does, or it could not be decided; the sets cannot be compared.
const NONE: u8 = 0;
const SOME: u8 = 1;
const FAILED: u8 = 2;

pub(super) fn run(args: &Args) -> ExitCode {
    match compare(args) {
        Ok(status) => ExitCode::from(status),
        Err(text) => {
            let _closed = writeln!(std::io::stderr().lock(), "isthmus: {text}");
            ExitCode::from(FAILED)
        }
    }
}

fn compare(args: &Args) -> Result<u8, String> {
    let resources = &args.resources;
    let mut options = resources.compile_options();
    let process = crate::run::load_process(resources.mesh_config.as_ref(), resources.settings.as_ref());
    let (mesh, settings) = process.map_err(|exit| exit.status().1.unwrap_or_default().to_owned())?;
    options.mesh = mesh;
    // What is wrong with a set is for `check` to say.
    options.proofs = false;
    let (old_sources, old) = load(&args.old, resources, &options)?;
    let (new_sources, new) = load(&args.new, resources, &options)?;
    let old = Side {
        compiled: &old,
        sources: &old_sources,
    };
    let new = Side {
        compiled: &new,
        sources: &new_sources,
    };
    let difference = diff::diff(old, new, settings.path_normalization);
    match args.output {
        FormatArg::Text => print(&diagnostic::printable_lines(&diff::render(&difference))),
        FormatArg::Json => print(&format!("{:#}\n", diff::to_json(&difference))),
    }
    Ok(if difference.is_none() { NONE } else { SOME })
}

/// One set, with the files that both have. A set that `run` would refuse is no set to compare.
fn load(
    path: &PathBuf,
    resources: &ResourceArgs,
    options: &Options,
) -> Result<(Vec<Source>, Compiled), String> {
    let paths: Vec<PathBuf> = std::iter::once(path).chain(&resources.files).cloned().collect();
    let sources = isthmus_config::read_paths(&paths).map_err(|error| error.to_string())?;
    let compiled = isthmus_config::compile(&sources, options);
    if compiled.has_errors() {
        let errors = compiled.diagnostics.iter();
        let errors: Vec<_> = errors
            .filter(|found| found.severity == Severity::Error)
            .cloned()
            .collect();
        let color = crate::run::colored(std::io::stderr().is_terminal());
        let text = diagnostic::render(&errors, &sources, color);
        let _closed = std::io::stderr().lock().write_all(text.as_bytes());
        return Err(format!("{} has errors", path.display()));
    }
    Ok((sources, compiled))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    const GATEWAY: &str = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: front}\nspec:\n  \
                           selector: {app: edge}\n  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: \
                           [\"*\"]}]\n";

    fn rule(status: u16) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec:\n  hosts: \
             [a.test]\n  gateways: [front]\n  http: [{{directResponse: {{status: {status}}}}}]\n"
        )
    }

    #[test]
    fn exit_status_says_whether_anything_changes() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let common = file("common.yaml", GATEWAY);
        let (old, new) = (file("old.yaml", &rule(200)), file("new.yaml", &rule(201)));
        let faulty = file("faulty.yaml", &rule(200).replace("gateways", "gatways"));
        let status = |arguments: &[&str]| {
            let all = ["isthmus", "diff"].iter().chain(arguments);
            match Cli::try_parse_from(all).unwrap().command {
                Command::Diff(args) => compare(&args).unwrap_or(FAILED),
                _ => panic!("another command"),
            }
        };
        assert_eq!(status(&[&old, &old, "-f", &common]), NONE);
        assert_eq!(status(&[&old, &new, "-f", &common, "-o", "json"]), SOME);
        // Without the Gateway, or with one that is another's, neither is served.
        assert_eq!(status(&[&old, &new]), NONE);
        assert_eq!(
            status(&[&old, &new, "-f", &common, "--labels", "app=other"]),
            NONE
        );
        assert_eq!(status(&[&old, &faulty, "-f", &common]), FAILED);
        assert_eq!(status(&[&old, &faulty, "-f", &common, "--lenient"]), SOME);
        assert_eq!(status(&[&old, "/nowhere", "-f", &common]), FAILED);
        assert!(Cli::try_parse_from(["isthmus", "diff", &old]).is_err());
    }
}
