//! `/v1/resources`: documents that come by the admin API instead of a file.
//!
//! They are one more file beside the others, whose text a PUT replaces whole: what it does not say any more is gone.
//! A resource belongs to one place, so what a file defines is refused here. Whoever writes is there to hear what is
//! wrong, so nothing of a text with an error is taken; files, whose writer may be gone, keep their last good versions.
//! With a state folder the text outlives the process, and a process that takes this one's place gets it.

use super::admin::{Events, ending, json, refuse_browsers, refuse_others};
use super::source::{Verdict, Writing};
use super::{Control, Event};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use isthmus_config::diagnostic;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// The largest text: a hundred thousand routes.
const TEXT_MAX: usize = 64 << 20;

/// The routes; `is_writable` says whether whoever reaches them may change something.
pub(super) fn routes(is_writable: bool) -> Router<Events> {
    let all = match is_writable {
        true => get(effective).put(put).delete(delete),
        false => get(effective).put(refuse_others).delete(refuse_others),
    };
    Router::new()
        .route("/v1/resources", all)
        .layer(DefaultBodyLimit::max(TEXT_MAX))
}

/// What is asked of the thread that looks after the files.
pub(super) enum Ask {
    /// The set that is served.
    Effective(oneshot::Sender<Vec<Effective>>),
    /// Another text.
    Write(Writing),
}

/// One document of the set that is served.
pub(super) struct Effective {
    pub(super) resources: Vec<Arc<str>>,
    pub(super) file: String,
    pub(super) text: String,
}

impl Effective {
    /// Keys are shown to nobody.
    fn is_secret(&self) -> bool {
        self.resources
            .iter()
            .any(|resource| resource.starts_with("Secret "))
    }
}

fn unknown(key: &str, known: &str) -> Response {
    let text = format!("`{key}` is not one of {known}\n");
    (StatusCode::BAD_REQUEST, text).into_response()
}

async fn effective(State(events): State<Events>, Query(query): Query<HashMap<String, String>>) -> Response {
    if let Some(key) = query.keys().find(|key| *key != "format") {
        return unknown(key, "format");
    }
    let (answer, answered) = oneshot::channel();
    if events
        .send(Event::Resources(Ask::Effective(answer)))
        .await
        .is_err()
    {
        return ending();
    }
    let Ok(documents) = answered.await else {
        return no_files();
    };
    if query.get("format").is_some_and(|format| format == "yaml") {
        let shown = documents.iter().filter(|document| !document.is_secret());
        let texts = shown.map(|document| document.text.trim_matches('\n'));
        let text = texts.collect::<Vec<_>>().join("\n---\n") + "\n";
        return ([(header::CONTENT_TYPE, "application/yaml")], text).into_response();
    }
    let list: Vec<Value> = documents
        .iter()
        .map(|document| {
            json!({
                "resources": document.resources,
                "file": document.file,
                "text": (!document.is_secret()).then_some(&document.text),
            })
        })
        .collect();
    json(json!({ "documents": list }).to_string())
}

fn no_files() -> Response {
    let text = "this process has its resources in itself\n";
    (StatusCode::CONFLICT, text).into_response()
}

async fn put(
    State(events): State<Events>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    text: String,
) -> Response {
    if text.trim().is_empty() {
        let told = "refused: there is no document, and DELETE is what removes them all\n";
        return (StatusCode::BAD_REQUEST, told).into_response();
    }
    write(&events, &query, &headers, text).await
}

async fn delete(
    State(events): State<Events>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    write(&events, &query, &headers, String::new()).await
}

async fn write(
    events: &Events,
    query: &HashMap<String, String>,
    headers: &HeaderMap,
    text: String,
) -> Response {
    if let Some(refused) = refuse_browsers(headers) {
        return refused;
    }
    if let Some(key) = query.keys().find(|key| *key != "dryRun") {
        return unknown(key, "dryRun");
    }
    let dry_run = match query.get("dryRun").map(String::as_str) {
        None | Some("false") => false,
        // As Kubernetes spells it.
        Some("true" | "All" | "") => true,
        Some(other) => return unknown(other, "true, false"),
    };
    let (verdict, judged) = oneshot::channel();
    let (applied, served) = oneshot::channel();
    let order = Writing {
        text,
        dry_run,
        verdict,
        applied,
    };
    if events.send(Event::Resources(Ask::Write(order))).await.is_err() {
        return ending();
    }
    match judged.await {
        Err(_) => ending(),
        Ok(Verdict::Refused(status, why)) => (status, format!("{why}\n")).into_response(),
        Ok(Verdict::Judged { found, is_taken }) => {
            let mut told = json!({ "diagnostics": diagnostic::to_json(&found), "applied": false });
            if is_taken {
                let Ok(status) = served.await else {
                    return ending();
                };
                told["applied"] = json!(true);
                told["configuration"] = serde_json::from_str(&status).unwrap_or_default();
            }
            let is_good = is_taken || (dry_run && !Verdict::has_errors(&found));
            let status = if is_good {
                StatusCode::OK
            } else {
                StatusCode::UNPROCESSABLE_ENTITY
            };
            (status, json(told.to_string())).into_response()
        }
    }
}

impl Control {
    /// Hands what is asked to the thread that knows, if it may be.
    pub(super) fn ask_for_resources(&mut self, ask: Ask) {
        match ask {
            Ask::Write(write) if !self.takes_versions() => {
                let why = "no other version is taken: this process ends, or another one takes its place";
                let refused = Verdict::Refused(StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
                let _asker_gone = write.verdict.send(refused);
            }
            ask => {
                if let Some(watch) = &self.watch {
                    watch.ask(ask);
                }
            }
        }
    }
}
