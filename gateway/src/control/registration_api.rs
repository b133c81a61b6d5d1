//! `/v1/endpoints` of the admin API: instances come, renew themselves and go.
//!
//! PUT with a body registers an instance, PUT without one renews it, DELETE takes it out, GET shows what is there. What
//! changes something is refused where others than this machine can reach the admin API and need show no certificate.

use super::admin::{ending, json, refuse_browsers, refuse_others};
use super::registration::{Id, Put, Refusal};
use super::{Control, Event};
use crate::io::clock;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

/// Largest body of a PUT.
const BODY_MAX: usize = 64 * 1024;

/// What is asked of the registration.
#[derive(Debug)]
pub(super) enum Call {
    /// Register, or renew when there is nothing to say.
    Put(Id, Option<Box<Put>>),
    /// Take out.
    Delete(Id),
    /// Show all, or those of a service.
    List(Option<String>),
    /// Show one.
    Get(Id),
}

/// What is answered.
pub(super) type Answer = (StatusCode, String);

/// The routes; `is_writable` says whether whoever reaches them may change something.
pub(super) fn routes(is_writable: bool) -> Router<mpsc::Sender<Event>> {
    let one = match is_writable {
        true => get(show).put(put).delete(remove),
        false => get(show).put(refuse_others).delete(refuse_others),
    };
    Router::new()
        .route("/v1/endpoints", get(list))
        .route("/v1/endpoints/{service}", get(list_service))
        .route("/v1/endpoints/{service}/{instance}", one)
        .layer(DefaultBodyLimit::max(BODY_MAX))
}

type Named = Path<(String, String)>;

fn id(Path((service, instance)): Named) -> Id {
    Id {
        service: service.to_ascii_lowercase(),
        instance,
    }
}

async fn ask(events: &mpsc::Sender<Event>, call: Call) -> Response {
    let (answer, answered) = oneshot::channel();
    if events.send(Event::Registration(call, answer)).await.is_err() {
        return ending();
    }
    match answered.await {
        Ok((status, text)) if text.is_empty() => status.into_response(),
        Ok((status, text)) => (status, json(text)).into_response(),
        Err(_) => ending(),
    }
}

async fn put(
    State(events): State<mpsc::Sender<Event>>,
    path: Named,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(refused) = refuse_browsers(&headers) {
        return refused;
    }
    let said = match body.is_empty() {
        true => None,
        false => match serde_json::from_slice::<Put>(&body) {
            Ok(said) => Some(Box::new(said)),
            Err(error) => {
                let (status, text) = refused(&Refusal::Bad(error.to_string()));
                return (status, json(text)).into_response();
            }
        },
    };
    ask(&events, Call::Put(id(path), said)).await
}

async fn remove(State(events): State<mpsc::Sender<Event>>, path: Named, headers: HeaderMap) -> Response {
    match refuse_browsers(&headers) {
        Some(refused) => refused,
        None => ask(&events, Call::Delete(id(path))).await,
    }
}

async fn show(State(events): State<mpsc::Sender<Event>>, path: Named) -> Response {
    ask(&events, Call::Get(id(path))).await
}

async fn list(State(events): State<mpsc::Sender<Event>>) -> Response {
    ask(&events, Call::List(None)).await
}

async fn list_service(State(events): State<mpsc::Sender<Event>>, Path(service): Path<String>) -> Response {
    ask(&events, Call::List(Some(service.to_ascii_lowercase()))).await
}

fn refused(why: &Refusal) -> Answer {
    let (status, text) = match why {
        Refusal::Unknown(text) => (StatusCode::NOT_FOUND, text.as_str()),
        Refusal::Bad(text) => (StatusCode::BAD_REQUEST, text.as_str()),
        Refusal::Full => (
            StatusCode::INSUFFICIENT_STORAGE,
            "there are as many instances as there may be",
        ),
    };
    (status, json!({ "error": text }).to_string())
}

impl Control {
    /// Does what is asked of the registration.
    pub(super) fn register(&mut self, call: Call) -> Answer {
        let now = clock::now();
        if self.upgrading.is_some() && matches!(call, Call::Put(..) | Call::Delete(_)) {
            let text = "another process takes this one's place: say it again in a moment";
            return (
                StatusCode::SERVICE_UNAVAILABLE,
                json!({ "error": text }).to_string(),
            );
        }
        match call {
            Call::Put(id, said) => {
                let was_there = self.discovery.registration.show(&id, now).is_some();
                let put = match said {
                    Some(said) => self.discovery.registration.put(&id, *said, now),
                    None => self.discovery.registration.renew(&id, now).map(|()| false),
                };
                match put {
                    Ok(is_other) => {
                        if is_other {
                            self.discovery.touch_service(&id.service);
                        }
                        let status = if was_there {
                            StatusCode::OK
                        } else {
                            StatusCode::CREATED
                        };
                        (status, self.shown(&id))
                    }
                    Err(why) => refused(&why),
                }
            }
            Call::Delete(id) => {
                if !self.discovery.registration.remove(&id) {
                    let text = format!("`{}` has no instance `{}`", id.service, id.instance);
                    return refused(&Refusal::Unknown(text));
                }
                self.discovery.touch_service(&id.service);
                (StatusCode::NO_CONTENT, String::new())
            }
            Call::List(service) => {
                let all = self.discovery.registration.list(service.as_deref(), now);
                (StatusCode::OK, json!({ "instances": all }).to_string())
            }
            Call::Get(id) => match self.shown(&id) {
                none if none == "null" => {
                    let text = format!("`{}` has no instance `{}`", id.service, id.instance);
                    refused(&Refusal::Unknown(text))
                }
                shown => (StatusCode::OK, shown),
            },
        }
    }

    fn shown(&self, id: &Id) -> String {
        json!(self.discovery.registration.show(id, clock::now())).to_string()
    }

    /// Lets instances go whose time is over.
    pub(super) fn expire_instances(&mut self) {
        let over = self.discovery.registration.expire(clock::now());
        if over.is_empty() {
            return;
        }
        self.metrics.count_expired(over.len());
        for id in &over {
            tracing::info!(
                service = id.service,
                instance = id.instance,
                "an instance did not renew itself: it is gone"
            );
            self.discovery.touch_service(&id.service);
        }
    }
}
