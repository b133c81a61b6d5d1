//! One health check of one endpoint: connects, asks, and says what was found.
//!
//! A check has a connection of its own, which no request ever uses and no limit of the cluster counts. What is asked and
//! what an answer means is core's ([`isthmus_core::cluster::health`]); when it is asked is the shard's.

use super::connect::{self, Wanted};
use super::{Open, Upstream, h2};
use crate::io::buffer::Pool;
use crate::io::h1::{Chunk, MessageWriter};
use crate::io::timer::Wheel;
use http::Method;
use isthmus_core::cluster::health::{
    Check, Failure, Finding, HealthPolicy, HttpCheck, grpc_answer, grpc_question,
};
use isthmus_core::grpc;
use isthmus_core::header::{HeaderId, HeaderList};
use isthmus_core::limits::MessageLimits;
use isthmus_core::message::{BodyLength, RequestHead, ResponseHead};
use isthmus_core::reply::Cause;
use isthmus_core::shared::Budget;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// What a check's GET says that it is.
const USER_AGENT: &[u8] = b"isthmus-health-check";
/// Most of an answer's body that is read.
const BODY_MAX: usize = 64 * 1024;
/// How long an HTTP/2 connection may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(200);

/// A check to be made.
pub struct Question<'a> {
    /// What to ask.
    pub policy: &'a HealthPolicy,
    /// Whom.
    pub address: SocketAddr,
    /// For which authority, unless the policy names one.
    pub host: &'a str,
    /// Whether a GET is spoken in HTTP/2.
    pub is_http2: bool,
    /// What the connection is to be like.
    pub wanted: Wanted,
}

/// Makes a check, which ends within the policy's timeout.
pub async fn check(question: Question<'_>, pool: &Pool, wheel: &Wheel, limits: MessageLimits) -> Finding {
    let deadline = wheel.timer();
    deadline.set(question.policy.timeout.max(Duration::from_millis(1)));
    // Boxed: most of the time an endpoint waits for its next check, and nothing is to be kept for this one.
    let mut asking = Box::pin(ask(question, pool, wheel, limits));
    poll_fn(|cx| match asking.as_mut().poll(cx) {
        Poll::Ready(found) => Poll::Ready(found.unwrap_or_else(Finding::Failed)),
        Poll::Pending => deadline.poll(cx).map(|()| Finding::Failed(Failure::TooLate)),
    })
    .await
}

async fn ask(
    question: Question<'_>,
    pool: &Pool,
    wheel: &Wheel,
    limits: MessageLimits,
) -> Result<Finding, Failure> {
    let (head, body) = match &question.policy.check {
        Check::Tcp => {
            let wanted = &question.wanted;
            let _closed_at_once = connect::open(question.address, wanted, pool, wheel)
                .await
                .map_err(failure_of)?;
            return Ok(Finding::Passed);
        }
        Check::Http(http) => (get(http, question.host), Vec::new()),
        Check::Grpc { service } => {
            let body = grpc_question(service);
            (call(question.host, body.len()), body)
        }
    };
    let answer = if question.is_http2 {
        over_http2(
            question.address,
            question.wanted,
            &head,
            &body,
            (pool, wheel),
            limits,
        )
        .await?
    } else {
        let permit = Budget::new(1).acquire().ok_or(Failure::NoAnswer)?;
        let open = Open::new(&Rc::default());
        let connection = connect::connect(
            question.address,
            question.wanted,
            permit,
            pool,
            wheel,
            limits,
            open,
        );
        let mut upstream = Upstream::H1(connection.await.map_err(failure_of)?);
        exchange(&mut upstream, &head, &body).await?
    };
    Ok(match &question.policy.check {
        Check::Http(http) => http.judge(answer.head.status.as_u16()),
        Check::Tcp | Check::Grpc { .. } => answer.serving(),
    })
}

fn failure_of(cause: Cause) -> Failure {
    match cause {
        Cause::ConnectTimeout => Failure::TooLate,
        Cause::UpstreamTls(_) => Failure::Handshake,
        Cause::ConnectFailed => Failure::NotConnected,
        _ => Failure::NoAnswer,
    }
}

fn get(http: &HttpCheck, host: &str) -> RequestHead {
    let mut head = RequestHead::default();
    head.set_path(&http.path);
    head.set_authority(http.host.as_deref().unwrap_or(host));
    let names_itself = http.fields.iter().any(|(name, _)| &**name == "user-agent");
    if !names_itself {
        head.headers.append(b"user-agent", USER_AGENT);
    }
    for (name, value) in &http.fields {
        head.headers.append(name.as_bytes(), value.as_bytes());
    }
    head
}

fn call(host: &str, length: usize) -> RequestHead {
    let mut head = RequestHead {
        method: Method::POST,
        body: BodyLength::Known(length as u64),
        wants_trailers: true,
        ..RequestHead::default()
    };
    head.set_path("/grpc.health.v1.Health/Check");
    head.set_authority(host);
    head.headers.append(b"user-agent", USER_AGENT);
    head.headers
        .append_known(HeaderId::ContentType, grpc::CONTENT_TYPE.as_bytes());
    head
}

/// What an endpoint has answered.
struct Answer {
    head: ResponseHead,
    body: Vec<u8>,
    trailers: HeaderList,
}

impl Answer {
    /// What it means as the answer of gRPC's health service.
    fn serving(&self) -> Finding {
        if !self.head.status.is_success() {
            return Finding::Failed(Failure::Status(self.head.status.as_u16()));
        }
        // Without a body the status is in the head.
        let fields = [&self.trailers, &self.head.headers];
        let status = fields
            .iter()
            .find_map(|fields| fields.get(HeaderId::GrpcStatus))
            .and_then(grpc::Status::parse);
        match status {
            Some(grpc::Status::Ok) => grpc_answer(&self.body),
            Some(status) => Finding::Failed(Failure::Call(status)),
            None => Finding::Failed(Failure::NoAnswer),
        }
    }
}

async fn over_http2(
    address: SocketAddr,
    wanted: Wanted,
    head: &RequestHead,
    body: &[u8],
    (pool, wheel): (&Pool, &Wheel),
    limits: MessageLimits,
) -> Result<Answer, Failure> {
    let secure = wanted.secure.as_ref();
    let name = secure.map(|secure| secure.name.clone());
    let config = secure.map(|secure| secure.config.clone());
    let connection = Rc::new(h2::Connection::new(address, name, config));
    let means = h2::Means {
        wanted,
        permit: Budget::new(1).acquire().ok_or(Failure::NoAnswer)?,
        open: Open::new(&Rc::default()),
        keepalive: None,
    };
    let driving = h2::drive(Rc::clone(&connection), means, (pool, wheel), limits, |_| {});
    let mut driving = pin!(driving);
    let mut is_over = false;
    let answer = {
        let asking = async {
            poll_fn(|cx| connection.poll_ready(false, cx))
                .await
                .map_err(failure_of)?;
            let mut upstream = Upstream::H2(Box::new(h2::Stream::new(Rc::clone(&connection))));
            exchange(&mut upstream, head, body).await
        };
        let mut asking = pin!(asking);
        poll_fn(|cx| {
            if !is_over && driving.as_mut().poll(cx).is_ready() {
                is_over = true;
            }
            asking.as_mut().poll(cx)
        })
        .await
    };
    connection.retire();
    let patience = wheel.timer();
    patience.set(GOODBYE);
    poll_fn(|cx| {
        if is_over || driving.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        patience.poll(cx)
    })
    .await;
    answer
}

/// Sends a request and reads its answer: the head, and the body as far as it is worth it.
async fn exchange(upstream: &mut Upstream, request: &RequestHead, body: &[u8]) -> Result<Answer, Failure> {
    let mut writer = MessageWriter::default();
    upstream.begin(&mut writer, request, |_| true);
    let mut at = 0;
    let written = poll_fn(|cx| upstream.poll_write_all(&mut writer, cx, body, &mut at)).await;
    // An upstream that reads no more may have answered all the same.
    if written.is_ok() {
        upstream.finish(&mut writer, &HeaderList::default());
        let _answered_perhaps = poll_fn(|cx| upstream.poll_flush(&mut writer, cx)).await;
    }
    let mut answer = Answer {
        head: ResponseHead::default(),
        body: Vec::new(),
        trailers: HeaderList::default(),
    };
    loop {
        poll_fn(|cx| upstream.poll_response(cx, &request.method, &mut answer.head))
            .await
            .map_err(|_| Failure::NoAnswer)?;
        if !answer.head.status.is_informational() {
            break;
        }
        answer.head.clear();
    }
    // To its end, so that the upstream can close in peace; how it ends says nothing more.
    while answer.body.len() < BODY_MAX {
        match poll_fn(|cx| upstream.poll_data(cx)).await {
            Ok(Chunk::Data(there)) => {
                let data = upstream.data().get(..there).unwrap_or_default();
                answer.body.extend_from_slice(data);
                upstream.take(there);
            }
            Ok(Chunk::End) => {
                upstream.trailers(&mut answer.trailers);
                break;
            }
            Err(_) => break,
        }
    }
    Ok(answer)
}
