//! `isthmus explain`: which rule takes a request, with file and line, and why the others do not.

use super::admin::{self, pair};
use super::screen::{has_color, show};
use super::{ResourceArgs, print};
use anyhow::Result;
use isthmus_config::diagnostic;
use isthmus_config::explain::{AskError, Asked, Explanation, Known, render};
use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::process::ExitCode;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    resources: ResourceArgs,
    /// Ask a running gateway instead of reading files: what it executes, and the state of its endpoints now.
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    admin: admin::Args,
    /// The Gateway that the request comes to; without one the port alone says where.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    gateway: Option<String>,
    /// The Gateway's port [default: the URL's, else 80 or 443].
    #[arg(long)]
    port: Option<u16>,
    /// A header field of the request; Host replaces the URL's authority.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The name that the client asks TLS for [default: the URL's host]; empty for none.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// The client's address.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    source_ip: IpAddr,
    /// The SPIFFE URI of the client's certificate, such as spiffe://cluster.local/ns/shop/sa/cart.
    #[arg(long, value_name = "URI")]
    source_identity: Option<String>,
    /// The method, GET if it is left out, and the URL: http, https, tcp or tls.
    #[arg(value_name = "METHOD URL", required = true, num_args = 1..=2)]
    request: Vec<String>,
}

impl Args {
    fn method_and_url(&self) -> (&str, &str) {
        match &self.request[..] {
            [method, url] => (method, url),
            [url] => ("GET", url),
            _ => ("GET", ""),
        }
    }

    fn asked(&self) -> Result<Asked, AskError> {
        let (method, url) = self.method_and_url();
        let mut asked = Asked::new(method, url)?;
        asked.port = self.port.or(asked.port);
        asked.source = self.source_ip;
        asked.identity.clone_from(&self.source_identity);
        for line in &self.headers {
            asked.add_header(line)?;
        }
        if let Some(name) = &self.sni {
            asked.sni = Some(name.clone());
        }
        if let Some(gateway) = &self.gateway {
            asked.set_gateway(gateway)?;
        }
        Ok(asked)
    }

    fn query(&self) -> String {
        let (method, url) = self.method_and_url();
        let mut query = String::new();
        pair(&mut query, "method", method);
        pair(&mut query, "url", url);
        pair(&mut query, "source", &self.source_ip.to_string());
        if let Some(identity) = &self.source_identity {
            pair(&mut query, "identity", identity);
        }
        for line in &self.headers {
            pair(&mut query, "header", line);
        }
        if let Some(port) = self.port {
            pair(&mut query, "port", &port.to_string());
        }
        if let Some(gateway) = &self.gateway {
            pair(&mut query, "gateway", gateway);
        }
        if let Some(name) = &self.sni {
            pair(&mut query, "sni", name);
        }
        format!("/explain{query}")
    }
}

fn complain(text: &str) {
    let _closed = writeln!(std::io::stderr().lock(), "isthmus: {text}");
}

pub(super) fn run(args: &Args) -> ExitCode {
    let asked = match args.asked() {
        Ok(asked) => asked,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(2);
        }
    };
    let found = if args.live {
        match ask(args) {
            Ok(found) => found,
            Err(error) => return admin::failed(&error),
        }
    } else if args.resources.files.is_empty() {
        complain("--file or --live is needed");
        return ExitCode::from(2);
    } else {
        match read(args, &asked) {
            Ok(found) => found,
            Err(exit) => return exit,
        }
    };
    match args.admin.output {
        super::FormatArg::Json => match serde_json::to_string_pretty(&found) {
            Ok(text) => print(&(text + "\n")),
            Err(error) => return admin::failed(&error.into()),
        },
        super::FormatArg::Text => show(&render(&found, has_color())),
    }
    ExitCode::from(u8::from(!found.outcome.routed))
}

/// What a running gateway says.
fn ask(args: &Args) -> Result<Explanation> {
    let text = args.admin.get(&args.query())?;
    Ok(serde_json::from_str(&text)?)
}

/// What files say. Those with errors no gateway would run.
fn read(args: &Args, asked: &Asked) -> Result<Explanation, ExitCode> {
    let resources = &args.resources;
    let sources = isthmus_config::read_paths(&resources.files).map_err(|error| {
        complain(&format!("--file: {error}"));
        ExitCode::from(1)
    })?;
    let process = crate::run::load_process(resources.mesh_config.as_ref(), resources.settings.as_ref());
    let (mesh, settings) = process.map_err(|exit| {
        complain(exit.status().1.unwrap_or(""));
        ExitCode::from(exit.status().0)
    })?;
    let mut options = resources.compile_options();
    options.mesh = mesh;
    let compiled = isthmus_config::compile(&sources, &options);
    if compiled.has_errors() {
        let mut errors = compiled.diagnostics;
        errors.retain(|found| found.severity == diagnostic::Severity::Error);
        let color = std::io::stderr().is_terminal();
        let text = diagnostic::render(&errors, &sources, color);
        let _closed = std::io::stderr().write_all(text.as_bytes());
        complain("no gateway runs these resources until their errors are mended");
        return Err(ExitCode::from(1));
    }
    let known = Known {
        snapshot: &compiled.snapshot,
        origins: &compiled.origins,
        sources: &sources,
        diagnostics: &compiled.diagnostics,
        settings: &settings,
    };
    Ok(known.explain(asked))
}
