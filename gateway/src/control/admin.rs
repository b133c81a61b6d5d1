//! The process's own HTTP servers: admin (15000), health (15021), metrics (15020).
//!
//! Health is on a port of its own because load balancers see it: it says nothing else. Admin listens on loopback; what
//! changes something is POST, and refuses requests that a browser was lured to send.

use super::{Collected, Event, Request, StartError, report};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::collections::HashMap;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

type Events = mpsc::Sender<Event>;

async fn serve(what: &'static str, address: SocketAddr, router: Router) -> Result<SocketAddr, StartError> {
    let refused = |error| StartError::Server { what, address, error };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    tokio::task::spawn_local(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the {what} server ended");
        }
    });
    Ok(bound)
}

pub(super) async fn serve_status(address: SocketAddr, events: Events) -> Result<SocketAddr, StartError> {
    let router = Router::new()
        .route("/healthz/ready", get(healthz))
        .route("/healthz/live", get(|| async { "live\n" }))
        .with_state(events);
    serve("status", address, router).await
}

pub(super) async fn serve_metrics(address: SocketAddr, events: Events) -> Result<SocketAddr, StartError> {
    let router = Router::new()
        .route("/stats/prometheus", get(prometheus))
        .with_state(events);
    serve("metrics", address, router).await
}

pub(super) async fn serve_admin(address: SocketAddr, events: Events) -> Result<SocketAddr, StartError> {
    let router = Router::new()
        .route("/", get(index))
        .route("/listeners", get(listeners))
        .route("/clusters", get(clusters))
        .route("/config_dump", get(config_dump))
        .route("/certs", get(certs))
        .route("/stats", get(prometheus))
        .route("/stats/prometheus", get(prometheus))
        .route("/ready", get(ready))
        .route("/configuration", get(configuration))
        .route("/reload", post(reload))
        .route("/drain_listeners", post(drain_listeners))
        .with_state(events);
    serve("admin", address, router).await
}

async fn index() -> &'static str {
    "GET  /listeners\nGET  /clusters[?format=json]\nGET  /config_dump\nGET  /certs\nGET  /stats/prometheus\nGET  /ready\n\
     GET  /configuration\nPOST /reload\nPOST /drain_listeners\n"
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

fn ending() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the process is ending\n").into_response()
}

fn json(text: String) -> Response {
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
    let (answer, answered) = oneshot::channel();
    if events.send(Event::Reload(answer)).await.is_err() {
        return ending();
    }
    answered.await.map_or_else(|_| ending(), json)
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
        Some("json") => json(report::clusters(&collected.clusters).to_string()),
        _ => report::clusters_text(&collected.clusters).into_response(),
    }
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

/// A page in an operator's browser may send a POST to loopback; it cannot hide its Origin, nor (by DNS rebinding) make
/// Host an address.
fn refuse_browsers(headers: &HeaderMap) -> Option<Response> {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or("");
    let name = isthmus_core::route::split_port(host).0.trim_matches(['[', ']']);
    let is_local = name == "localhost" || name.parse::<std::net::IpAddr>().is_ok();
    let foreign = headers.contains_key(header::ORIGIN);
    (foreign || !is_local)
        .then(|| (StatusCode::FORBIDDEN, "refused: Host or Origin is foreign\n").into_response())
}
