//! The process's own HTTP servers: admin (15000), health (15021), metrics (15020).
//!
//! Health is on a port of its own because load balancers see it: it says nothing else. Admin listens on loopback, or
//! demands certificates of its clients; what changes something refuses requests that a browser was lured to send.

use super::upgrade::Order;
use super::{Collected, Event, Request, explain as live, registration_api, report, resources};
use axum::Router;
use axum::extract::{Query, Request as Asking, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use isthmus_config::explain::Asked;
use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::str::FromStr;
use tokio::sync::{mpsc, oneshot};

pub(super) type Events = mpsc::Sender<Event>;

/// Where the admin API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// At an address, which should be of loopback, or speak mutual TLS.
    Tcp(SocketAddr),
    /// At a socket of the file system, `unix:PATH`, which only its owner may use.
    Unix(PathBuf),
}

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("a path must follow `unix:`".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => {
                let bad = |_| format!("`{text}` is not IP:PORT or unix:PATH");
                text.parse().map(Self::Tcp).map_err(bad)
            }
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl AdminAddress {
    pub(super) fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    /// Whether nobody but this machine can reach it.
    pub(super) fn is_private(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// Takes a socket out of the file system that a process has left there, and nothing else of that name.
    pub(super) fn remove(&self) {
        if let Self::Unix(path) = self
            && fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        {
            let _gone_already = fs::remove_file(path);
        }
    }
}

const FOREIGN: &str = "refused: Host must be localhost or an address, and there may be no Origin\n";

pub(super) fn status_router(events: Events) -> Router {
    Router::new()
        .route("/healthz/ready", get(healthz))
        .route("/healthz/live", get(|| async { "live\n" }))
        .with_state(events)
}

pub(super) fn metrics_router(events: Events) -> Router {
    Router::new()
        .route("/stats/prometheus", get(prometheus))
        .with_state(events)
}

/// `is_writable` says whether whoever gets here may change something.
pub(super) fn admin_router(events: Events, address: &AdminAddress, is_writable: bool) -> Router {
    let is_loopback = address.is_private() && address.is_tcp();
    let owned = |call: MethodRouter<Events>| if is_writable { call } else { post(refuse_others) };
    Router::new()
        .route("/", get(index))
        .route("/listeners", get(listeners))
        .route("/clusters", get(clusters))
        .route("/config_dump", get(config_dump))
        .route("/dns", get(dns))
        .route("/certs", get(certs))
        .route("/explain", get(explain))
        .route("/status", get(status))
        .route("/stats", get(prometheus))
        .route("/stats/prometheus", get(prometheus))
        .route("/ready", get(ready))
        .route("/configuration", get(configuration))
        .route("/reload", owned(post(reload)))
        .route("/drain_listeners", owned(post(drain_listeners)))
        .route("/upgrade", owned(post(upgrade)))
        .merge(registration_api::routes(is_writable))
        .merge(resources::routes(is_writable))
        // A page that has made its own name lead to loopback may not even read.
        .layer(from_fn(move |request: Asking, next: Next| async move {
            match is_loopback && !is_local(request.headers()) {
                true => (StatusCode::FORBIDDEN, FOREIGN).into_response(),
                false => next.run(request).await,
            }
        }))
        .with_state(events)
}

async fn index() -> &'static str {
    "GET  /listeners\nGET  /clusters[?format=json]\nGET  /config_dump\nGET  /dns\nGET  /certs\nGET  /stats/prometheus\nGET  /ready\n\
     GET  /status\nGET  /explain?url=URL[&method=METHOD][&header=NAME: VALUE]...[&port=PORT][&gateway=NAMESPACE/NAME]\
     [&sni=NAME][&source=IP][&identity=URI]\nGET  /configuration\nPOST /reload\nPOST /drain_listeners\n\
     POST /upgrade[?binary=PATH][&timeout=DURATION]\n\
     GET  /v1/endpoints[/SERVICE[/INSTANCE]]\nPUT, DELETE /v1/endpoints/SERVICE/INSTANCE\n\
     GET  /v1/resources[?format=yaml]\nPUT  /v1/resources[?dryRun=true]\nDELETE /v1/resources[?dryRun=true]\n"
}

async fn text(events: &Events, request: Request) -> Option<String> {
    let (answer, answered) = oneshot::channel();
    events.send(Event::Text(request, answer)).await.ok()?;
    answered.await.ok()
}

async fn collect(events: &Events) -> Option<Collected> {
    let (answer, answered) = oneshot::channel();
    events.send(Event::Collect(answer)).await.ok()?;
    answered.await.ok()
}

pub(super) fn ending() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the process is ending\n").into_response()
}

pub(super) fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn ready(State(events): State<Events>) -> Response {
    match text(&events, Request::Ready).await {
        Some(detail) if !detail.is_empty() => format!("{detail}\n").into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response(),
    }
}

/// The same for load balancers, who are told no details.
async fn healthz(State(events): State<Events>) -> Response {
    match text(&events, Request::Ready).await {
        Some(detail) if !detail.is_empty() => "ready\n".into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response(),
    }
}

async fn configuration(State(events): State<Events>) -> Response {
    text(&events, Request::Status).await.map_or_else(ending, json)
}

async fn reload(State(events): State<Events>, headers: HeaderMap) -> Response {
    if let Some(refused) = refuse_browsers(&headers) {
        return refused;
    }
    let refused =
        |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("not loaded: {why}\n")).into_response();
    let (answer, answered) = oneshot::channel();
    if events.send(Event::Reload(answer)).await.is_err() {
        return ending();
    }
    match answered.await {
        Ok(Ok(applied)) => applied.await.map_or_else(
            |_| refused("this process has begun to end, or a newer one to take its place"),
            json,
        ),
        Ok(Err(why)) => refused(why),
        Err(_) => ending(),
    }
}

async fn prometheus(State(events): State<Events>) -> Response {
    let Some(collected) = collect(&events).await else {
        return ending();
    };
    match text(&events, Request::Metrics(collected.gauges)).await {
        Some(text) => (
            [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
            text,
        )
            .into_response(),
        None => ending(),
    }
}

async fn listeners(State(events): State<Events>) -> Response {
    text(&events, Request::Listeners).await.map_or_else(ending, json)
}

async fn config_dump(State(events): State<Events>) -> Response {
    text(&events, Request::ConfigDump).await.map_or_else(ending, json)
}

async fn dns(State(events): State<Events>) -> Response {
    text(&events, Request::Dns).await.map_or_else(ending, json)
}

async fn certs(State(events): State<Events>) -> Response {
    text(&events, Request::Certificates)
        .await
        .map_or_else(ending, json)
}

async fn clusters(State(events): State<Events>, Query(query): Query<HashMap<String, String>>) -> Response {
    let Some(collected) = collect(&events).await else {
        return ending();
    };
    match query.get("format").map(String::as_str) {
        Some("json") => json(report::clusters(&collected).to_string()),
        _ => report::clusters_text(&collected).into_response(),
    }
}

async fn status(State(events): State<Events>) -> Response {
    let Some(collected) = collect(&events).await else {
        return ending();
    };
    text(&events, Request::Process(collected.gauges))
        .await
        .map_or_else(ending, json)
}

/// `/explain`: a request as pairs of a query, each as often as it may be there.
async fn explain(State(events): State<Events>, Query(query): Query<Vec<(String, String)>>) -> Response {
    let asked = match asked(&query) {
        Ok(asked) => asked,
        Err(why) => return (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    };
    let Some(collected) = collect(&events).await else {
        return ending();
    };
    let (answer, answered) = oneshot::channel();
    if events
        .send(Event::Explain(Box::new(asked), answer))
        .await
        .is_err()
    {
        return ending();
    }
    let Ok(mut found) = answered.await else {
        return ending();
    };
    live::add_live(&mut found, &collected);
    match serde_json::to_string(&found) {
        Ok(text) => json(text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn asked(query: &[(String, String)]) -> Result<Asked, String> {
    let one = |name: &str| {
        let mut found = query.iter().filter(|(key, _)| key == name);
        found.next().map(|(_, value)| value.as_str())
    };
    const KNOWN: [&str; 8] = [
        "method", "url", "header", "port", "gateway", "sni", "source", "identity",
    ];
    if let Some((key, _)) = query.iter().find(|(key, _)| !KNOWN.contains(&key.as_str())) {
        return Err(format!("`{key}` is not one of {}", KNOWN.join(", ")));
    }
    let url = one("url").ok_or("`url` is missing")?;
    let mut asked = Asked::new(one("method").unwrap_or("GET"), url).map_err(|error| error.to_string())?;
    for (_, line) in query.iter().filter(|(key, _)| key == "header") {
        asked.add_header(line).map_err(|error| error.to_string())?;
    }
    if let Some(port) = one("port") {
        let port = port.parse().map_err(|_| format!("`{port}` is not a port"))?;
        asked.port = Some(port);
    }
    if let Some(gateway) = one("gateway") {
        asked.set_gateway(gateway).map_err(|error| error.to_string())?;
    }
    if let Some(name) = one("sni") {
        asked.sni = Some(name.to_owned());
    }
    asked.identity = one("identity").map(ToOwned::to_owned);
    if let Some(source) = one("source") {
        asked.source = source
            .parse()
            .map_err(|_| format!("`{source}` is not an address"))?;
    }
    Ok(asked)
}

async fn drain_listeners(State(events): State<Events>, headers: HeaderMap) -> Response {
    if let Some(refused) = refuse_browsers(&headers) {
        return refused;
    }
    let (answer, answered) = oneshot::channel();
    if events.send(Event::DrainListeners(answer)).await.is_err() || answered.await.is_err() {
        return ending();
    }
    "draining\n".into_response()
}

/// Starts a newer process, and answers once it serves or has failed.
async fn upgrade(
    State(events): State<Events>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = refuse_browsers(&headers) {
        return refused;
    }
    let mut order = Order::default();
    for (key, value) in query {
        match (key.as_str(), humantime::parse_duration(&value)) {
            ("binary", _) => order.binary = Some(value.into()),
            ("timeout", Ok(patience)) => order.patience = patience,
            ("timeout", Err(error)) => {
                return (StatusCode::BAD_REQUEST, format!("timeout: {error}\n")).into_response();
            }
            _ => {
                let text = format!("`{key}` is not one of binary, timeout\n");
                return (StatusCode::BAD_REQUEST, text).into_response();
            }
        }
    }
    let (answer, answered) = oneshot::channel();
    if events.send(Event::Upgrade(order, answer)).await.is_err() {
        return ending();
    }
    match answered.await {
        Ok(Ok(told)) => json(told),
        Ok(Err(why)) => (StatusCode::CONFLICT, format!("{why}\n")).into_response(),
        Err(_) => ending(),
    }
}

/// A page in an operator's browser may send a POST to loopback; it cannot hide its Origin, nor (by DNS rebinding) make
/// Host an address.
pub(super) fn refuse_browsers(headers: &HeaderMap) -> Option<Response> {
    let foreign = headers.contains_key(header::ORIGIN);
    (foreign || !is_local(headers)).then(|| (StatusCode::FORBIDDEN, FOREIGN).into_response())
}

fn is_local(headers: &HeaderMap) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or("");
    let name = isthmus_core::route::split_port(host).0.trim_matches(['[', ']']);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok()
}

/// What whoever may only read is told. Their text is not even read.
pub(super) async fn refuse_others() -> Response {
    let text = "refused: what changes something is taken over loopback, a unix socket or mutual TLS only; see --admin \
                and --admin-client-ca\n";
    (StatusCode::FORBIDDEN, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_and_a_sockets_owner_are_private() {
        for (address, is_private) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("unix:/run/a", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.0.0.1:1", false),
        ] {
            let parsed: AdminAddress = address.parse().unwrap();
            assert_eq!(parsed.is_private(), is_private, "{address}");
        }
    }
}
