//! `isthmus listeners`, `routes`, `clusters`, `endpoints` and `status`: what a running gateway has, as tables.
//!
//! Each asks the admin API and shows its answer; with `-o json` the same for programs, in the form of `/config_dump`
//! with what is known now under `live`.

use super::admin;
use super::print;
use super::screen::{Table, has_color, show};
use anyhow::Result;
use isthmus_config::diagnostic::printable;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::process::ExitCode;

/// Which table.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    Listeners,
    Clusters,
    Status,
}

#[derive(Debug, Clone, clap::Args)]
pub(super) struct RouteArgs {
    #[command(flatten)]
    admin: admin::Args,
    /// Only virtual hosts that have a domain with this in it.
    #[arg(long, value_name = "TEXT")]
    host: Option<String>,
    /// Only the listener of this Gateway's port.
    #[arg(long)]
    port: Option<u16>,
}

#[derive(Debug, Clone, clap::Args)]
pub(super) struct EndpointArgs {
    #[command(flatten)]
    admin: admin::Args,
    /// Only clusters that have this in their names.
    #[arg(long, value_name = "TEXT")]
    cluster: Option<String>,
}

/// What is printed: a table, and the same for programs.
struct Shown {
    text: String,
    json: Value,
}

fn finish(args: &admin::Args, shown: Result<Shown>) -> ExitCode {
    match (shown, args.output) {
        (Ok(shown), super::FormatArg::Json) => print(&format!("{:#}\n", shown.json)),
        (Ok(shown), super::FormatArg::Text) => show(&shown.text),
        (Err(error), _) => return admin::failed(&error),
    }
    ExitCode::SUCCESS
}

pub(super) fn run(args: &admin::Args, what: What) -> ExitCode {
    let shown = match what {
        What::Listeners => listeners(args),
        What::Clusters => clusters(args),
        What::Status => status(args),
    };
    finish(args, shown)
}

pub(super) fn run_routes(args: &RouteArgs) -> ExitCode {
    finish(&args.admin, routes(args))
}

pub(super) fn run_endpoints(args: &EndpointArgs) -> ExitCode {
    finish(&args.admin, endpoints(args))
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A value as a cell.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn listeners(args: &admin::Args) -> Result<Shown> {
    let mut dump = args.get_json("/config_dump")?;
    let open = args.get_json("/listeners")?;
    let mut table = Table::new(&["PORT", "ADDRESS", "ACCEPTS", "HOSTS", "ROUTES", "SERVERS"]);
    let mut list = Vec::new();
    for listener in dump["listeners"].as_array_mut().into_iter().flatten() {
        let address = items(&open["listeners"]).iter().find(|known| {
            known["port"] == listener["port"]
                && (known["bind"] == listener["bind"] || known.get("bind").is_none())
        });
        listener["address"] = address.map_or(Value::Null, |known| known["address"].clone());
        let hosts = items(&listener["virtual_hosts"]);
        let domains: usize = hosts.iter().map(|host| items(&host["domains"]).len()).sum();
        let routes: usize = hosts.iter().map(|host| items(&host["routes"]).len()).sum();
        let servers: Vec<String> = items(&listener["tls"])
            .iter()
            .map(|chain| format!("{} ({})", cell(&chain["server"]), cell(&chain["action"])))
            .collect();
        table.push(vec![
            cell(&listener["port"]),
            cell(&listener["address"]),
            cell(&listener["accepts"]),
            domains.to_string(),
            routes.to_string(),
            servers.join(", "),
        ]);
        let mut short = listener.clone();
        short["virtual_hosts"] = json!(domains);
        short["routes"] = json!(routes);
        list.push(short);
    }
    Ok(Shown {
        text: table.render(has_color()),
        json: json!({ "listeners": list }),
    })
}

fn routes(args: &RouteArgs) -> Result<Shown> {
    let dump = args.admin.get_json("/config_dump")?;
    let mut table = Table::new(&["PORT", "HOSTS", "MATCH", "ACTION", "VIRTUALSERVICE", "NAME"]);
    let mut list = Vec::new();
    for listener in items(&dump["listeners"]) {
        if args.port.is_some_and(|port| listener["port"] != port) {
            continue;
        }
        for host in items(&listener["virtual_hosts"]) {
            let domains = cell(&host["domains"]);
            if args
                .host
                .as_ref()
                .is_some_and(|wanted| !domains.contains(wanted.as_str()))
            {
                continue;
            }
            let port = cell(&listener["port"]);
            let all = host["https_redirect"] == true;
            if all {
                let row = [&port, &domains, "", "301 to https", "", ""];
                table.push(row.map(str::to_owned).to_vec());
                list.push(json!({
                    "port": listener["port"], "domains": host["domains"], "https_redirect": true,
                }));
                continue;
            }
            for route in items(&host["routes"]) {
                table.push(vec![
                    port.clone(),
                    domains.clone(),
                    condition(&route["match"]),
                    action(route),
                    cell(&route["virtual_service"]),
                    cell(&route["name"]),
                ]);
                let mut route = route.clone();
                route["port"] = listener["port"].clone();
                route["domains"] = host["domains"].clone();
                list.push(route);
            }
        }
        for route in std::iter::once(&listener["tcp"])
            .chain(items(&listener["tls"]).iter().map(|chain| &chain["route"]))
        {
            if route["destinations"].is_null() || args.host.is_some() {
                continue;
            }
            table.push(vec![
                cell(&listener["port"]),
                String::new(),
                "bytes".to_owned(),
                destinations(&route["destinations"]),
                cell(&route["virtual_service"]),
                String::new(),
            ]);
            let mut route = route.clone();
            route["port"] = listener["port"].clone();
            list.push(route);
        }
    }
    Ok(Shown {
        text: table.render(has_color()),
        json: json!({ "routes": list }),
    })
}

fn condition(matches: &Value) -> String {
    match items(matches) {
        [] => "every request".to_owned(),
        several => several.iter().map(cell).collect::<Vec<_>>().join("; "),
    }
}

fn destinations(list: &Value) -> String {
    match items(list) {
        [only] => cell(&only["cluster"]),
        several => {
            let one = |one: &Value| format!("{} x{}", cell(&one["cluster"]), cell(&one["weight"]));
            several.iter().map(one).collect::<Vec<_>>().join(", ")
        }
    }
}

fn action(route: &Value) -> String {
    let kind = cell(&route["action"]);
    match kind.as_str() {
        "forward" => destinations(&route["forward"]["destinations"]),
        kind => format!("{kind} {}", cell(&route[kind]["status"])),
    }
}

/// The clusters of the dump, each endpoint with what the shards know of it under `live`.
fn with_live(args: &admin::Args) -> Result<Vec<Value>> {
    let mut dump = args.get_json("/config_dump")?;
    let mut live = args.get_json("/clusters?format=json")?;
    let clusters = match dump["clusters"].take() {
        Value::Array(clusters) => clusters,
        _ => Vec::new(),
    };
    let mut known: std::collections::HashMap<String, Value> = live["clusters"]
        .as_array_mut()
        .into_iter()
        .flatten()
        .map(|cluster| (cell(&cluster["name"]), cluster.take()))
        .collect();
    let join = |mut cluster: Value| {
        if let Some(mut live) = known.remove(&cell(&cluster["name"])) {
            for endpoint in cluster["endpoints"].as_array_mut().into_iter().flatten() {
                let found = live["endpoints"].as_array_mut().into_iter().flatten();
                let mut found = found.filter(|live| live["address"] == endpoint["address"]);
                if let Some(mut state) = found.next().map(Value::take) {
                    if let Some(fields) = state.as_object_mut() {
                        fields.retain(|name, _| name != "address" && name != "weight");
                    }
                    endpoint["live"] = state;
                }
            }
            // What is known of the cluster itself.
            if let Some(fields) = live.as_object_mut() {
                fields.retain(|name, _| name != "name" && name != "endpoints");
                if !fields.is_empty() {
                    cluster["live"] = live;
                }
            }
        }
        cluster
    };
    Ok(clusters.into_iter().map(join).collect())
}

fn clusters(args: &admin::Args) -> Result<Shown> {
    let clusters = with_live(args)?;
    let mut table = Table::new(&[
        "CLUSTER",
        "PROTOCOL",
        "SPOKEN",
        "BALANCER",
        "TLS",
        "ENDPOINTS",
        "ACTIVE",
        "IDLE",
    ]);
    for cluster in &clusters {
        let sum = |name: &str| -> u64 {
            let live = items(&cluster["endpoints"])
                .iter()
                .map(|endpoint| &endpoint["live"][name]);
            live.filter_map(Value::as_u64).sum()
        };
        let tls = match &cluster["tls"] {
            Value::Null => "",
            tls if tls["key"].is_null() => "SIMPLE",
            _ => "MUTUAL",
        };
        table.push(vec![
            cell(&cluster["name"]),
            cell(&cluster["protocol"]),
            cell(&cluster["http_version"]),
            cell(&cluster["balancer"]),
            tls.to_owned(),
            items(&cluster["endpoints"]).len().to_string(),
            sum("requests_active").to_string(),
            sum("connections_idle").to_string(),
        ]);
    }
    Ok(Shown {
        text: table.render(has_color()),
        json: json!({ "clusters": clusters }),
    })
}

fn endpoints(args: &EndpointArgs) -> Result<Shown> {
    let mut clusters = with_live(&args.admin)?;
    let wanted = args.cluster.as_deref().unwrap_or("");
    clusters.retain(|cluster| cell(&cluster["name"]).contains(wanted));
    let mut table = Table::new(&[
        "CLUSTER", "ADDRESS", "WEIGHT", "LOCALITY", "ACTIVE", "IDLE", "STATE",
    ]);
    let mut list = Vec::new();
    let names = args.admin.get_json("/dns")?;
    for cluster in &clusters {
        // Names that have no addresses yet, or have no more.
        for named in items(&cluster["discovery"]["names"]) {
            let known = items(&names["names"])
                .iter()
                .find(|known| known["name"] == named["name"]);
            let Some(known) = known.filter(|known| items(&known["addresses"]).is_empty()) else {
                continue;
            };
            let why = [cell(&known["state"]), cell(&known["error"])].join(" ");
            table.push(vec![
                cell(&cluster["name"]),
                format!("{}:{}", cell(&named["name"]), cell(&named["port"])),
                cell(&named["weight"]),
                cell(&named["locality"]),
                String::new(),
                String::new(),
                format!("dns={}", why.trim_end()),
            ]);
        }
        for endpoint in items(&cluster["endpoints"]) {
            let live = &endpoint["live"];
            // Whatever else the gateway knows of it.
            let state: Vec<String> = live
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(name, _)| !matches!(name.as_str(), "requests_active" | "connections_idle"))
                .map(|(name, value)| format!("{name}={}", cell(value)))
                .collect();
            table.push(vec![
                cell(&cluster["name"]),
                cell(&endpoint["address"]),
                cell(&endpoint["weight"]),
                cell(&endpoint["locality"]),
                cell(&live["requests_active"]),
                cell(&live["connections_idle"]),
                state.join(" "),
            ]);
            let mut endpoint = endpoint.clone();
            endpoint["cluster"] = cluster["name"].clone();
            list.push(endpoint);
        }
    }
    Ok(Shown {
        text: table.render(has_color()),
        json: json!({ "endpoints": list }),
    })
}

fn status(args: &admin::Args) -> Result<Shown> {
    let found = args.get_json("/status")?;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _infallible = writeln!(text, "{name:<22} {}", printable(value));
    };
    line("state", &cell(&found["state"]));
    for (name, key) in [
        ("program", "program_version"),
        ("process", "process"),
        ("configuration version", "version"),
        ("files", "files"),
        ("findings", "findings"),
        ("certificate errors", "certificate_errors"),
        ("listeners", "listeners"),
        ("routes", "routes"),
        ("clusters", "clusters"),
    ] {
        line(name, &cell(&found[key]));
    }
    for held in items(&found["left_behind"]) {
        line("not as written", &cell(held));
    }
    let uptime = std::time::Duration::from_secs(found["uptime_seconds"].as_u64().unwrap_or(0));
    line("up for", &humantime::format_duration(uptime).to_string());
    let shards = items(&found["shards"]);
    let stalled = shards.iter().filter(|shard| shard["stalled"] == true).count();
    line("shards", &format!("{}, {stalled} of them stalled", shards.len()));
    for (name, value) in found["now"].as_object().into_iter().flatten() {
        line(&name.replace('_', " "), &cell(value));
    }
    for (name, value) in found["addresses"].as_object().into_iter().flatten() {
        line(&format!("{name} address"), &cell(value));
    }
    Ok(Shown { text, json: found })
}
