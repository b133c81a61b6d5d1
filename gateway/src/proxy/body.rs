//! Bodies on their way: the request's towards the upstream, the response's towards the client.
//!
//! Both directions are polled by the one task of the exchange. Each moves what it can, and stops after [`TURN_BYTES`],
//! so that two fast peers cannot keep a shard from everybody else.

use super::tee::Tee;
use crate::downstream::Downstream;
use crate::io::h1::{Chunk, MessageWriter, ReadError};
use crate::upstream::Upstream;
use isthmus_core::drain;
use isthmus_core::h1::BodyError;
use isthmus_core::header::HeaderList;
use isthmus_core::reply::{Cause, LocalReply};
use isthmus_core::websocket::{Frames, GOING_AWAY};
use std::task::{Context as TaskContext, Poll};

/// How far the request is on its way to one upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    /// All of the body has arrived already; it stays in the buffer until the answer comes, so that it can be sent
    /// again. So many bytes of it are sent.
    Whole(usize),
    /// What an earlier attempt took of the body is sent again; so many bytes of it are sent.
    Replaying(usize),
    /// The body is passed on as it arrives.
    Streaming,
    /// Everything is sent.
    Done,
    /// The upstream takes no more of it; what it answers still counts.
    Stopped,
}

impl Sending {
    /// Whether a look is due that notices a client which has gone. While the body streams, its own reads notice that; of
    /// HTTP/2 they do not while they have no room to go on, and a look costs no read.
    pub(super) fn looks_for_client(self, conn: &impl Downstream, is_http2: bool) -> bool {
        self != Self::Streaming || (is_http2 && conn.has_unread())
    }
}

/// Why no upstream answered.
pub(super) enum End {
    Reply(LocalReply),
    ClientGone,
}

/// How a response broke off after its head was on its way.
pub(super) enum Broken {
    Upstream(Cause),
    ClientGone,
}

/// How many bytes of a body one connection may move before the others have a turn.
pub(super) const TURN_BYTES: usize = 512 * 1024;

/// What became of a body for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    /// All of it is written.
    All,
    /// It could go on, but others must have their turn: the ring is not looked at while a task is busy.
    Turn,
}

/// Moves the request towards the upstream. Ready with [`Moved::All`] once, and Pending ever after.
#[allow(
    clippy::too_many_arguments,
    reason = "each is a part of the exchange that moves"
)]
pub(super) fn poll_request(
    conn: &mut impl Downstream,
    upstream: &mut Upstream,
    writer: &mut MessageWriter,
    trailers: &mut HeaderList,
    sending: &mut Sending,
    limit: u64,
    tee: &mut Tee,
    turn: &mut usize,
    cx: &mut TaskContext<'_>,
) -> Poll<Result<Moved, End>> {
    loop {
        match sending {
            Sending::Done | Sending::Stopped => return Poll::Pending,
            Sending::Whole(at) => {
                let body = conn.whole_body().unwrap_or(&[]);
                match upstream.poll_write_all(writer, cx, body, at) {
                    Poll::Ready(Ok(())) => {
                        *sending = Sending::Done;
                        return Poll::Ready(Ok(Moved::All));
                    }
                    // An upstream that no longer reads may have answered; reading decides.
                    Poll::Ready(Err(_)) => *sending = Sending::Stopped,
                    Poll::Pending => return Poll::Pending,
                }
            }
            Sending::Replaying(at) => {
                let rest = tee.kept().get(*at..).unwrap_or(&[]);
                if rest.is_empty() {
                    *sending = Sending::Streaming;
                    continue;
                }
                if *turn == 0 {
                    return Poll::Ready(Ok(Moved::Turn));
                }
                match upstream.poll_write(writer, cx, rest) {
                    Poll::Ready(Ok(used)) => {
                        *at += used;
                        *turn = turn.saturating_sub(used);
                        conn.phase().extend();
                    }
                    Poll::Ready(Err(_)) => *sending = Sending::Stopped,
                    Poll::Pending => return Poll::Pending,
                }
            }
            Sending::Streaming => match conn.poll_data(cx) {
                Poll::Ready(Ok(Chunk::Data(_))) if *turn == 0 => return Poll::Ready(Ok(Moved::Turn)),
                Poll::Ready(Ok(Chunk::Data(there))) => {
                    if limit > 0 && conn.body_bytes() + there as u64 > limit {
                        return Poll::Ready(Err(End::Reply(Cause::RequestTooLarge.into())));
                    }
                    let data = conn.data().get(..there).unwrap_or(&[]);
                    match upstream.poll_write(writer, cx, data) {
                        Poll::Ready(Ok(used)) => {
                            tee.record(data.get(..used).unwrap_or(data));
                            conn.take(used);
                            *turn = turn.saturating_sub(used);
                            // Progress: the pause is measured from here.
                            conn.phase().extend();
                        }
                        Poll::Ready(Err(_)) => *sending = Sending::Stopped,
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Poll::Ready(Ok(Chunk::End)) => {
                    conn.trailers(trailers);
                    tee.end(trailers);
                    upstream.finish(writer, trailers);
                    // What is queued goes out as if the body had been at hand all along.
                    *sending = Sending::Whole(0);
                }
                Poll::Ready(Err(ReadError::Body(error))) if error != BodyError::Truncated => {
                    return Poll::Ready(Err(End::Reply(Cause::RequestBody(error).into())));
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::ClientGone)),
                Poll::Pending => {
                    if let Poll::Ready(Err(_)) = upstream.poll_flush(writer, cx) {
                        *sending = Sending::Stopped;
                    }
                    return Poll::Pending;
                }
            },
        }
    }
}

/// Gives the buffer of a body back that was kept in order to be sent again.
pub(super) fn drop_whole_body(conn: &mut impl Downstream) {
    if let Some(length) = conn.whole_body().map(<[u8]>::len) {
        conn.take(length);
    }
}

/// A tunnel of WebSocket, which can be told that the process ends.
pub(super) struct Farewell {
    frames: Frames,
    slot: u8,
    /// Bytes of the word that are on their way.
    said: usize,
}

impl Farewell {
    pub(super) fn new(conn: &impl Downstream) -> Self {
        Self {
            frames: Frames::default(),
            slot: drain::slot(conn.peer()),
            said: 0,
        }
    }

    fn is_due(&self, conn: &impl Downstream) -> bool {
        self.said > 0 || (conn.drain().ends_tunnel(self.slot) && !self.frames.is_closing())
    }
}

/// The same for a tunnel of WebSocket. When it is to end, the client is told so between two frames, as a server would
/// that goes away: its answer goes to the upstream, and both sides close.
pub(super) fn poll_websocket(
    conn: &mut impl Downstream,
    upstream: &mut Upstream,
    trailers: &mut HeaderList,
    finished: &mut bool,
    turn: &mut usize,
    farewell: &mut Farewell,
    cx: &mut TaskContext<'_>,
) -> Poll<Result<Moved, Broken>> {
    loop {
        if !*finished && farewell.is_due(conn) && farewell.frames.is_between() {
            while let Some(rest) = GOING_AWAY.get(farewell.said..).filter(|rest| !rest.is_empty()) {
                match conn.poll_write(cx, rest) {
                    Poll::Ready(Ok(used)) => farewell.said += used,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::ClientGone)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            conn.finish(trailers);
            *finished = true;
        }
        let was_between = farewell.frames.is_between();
        let moved = poll_response(conn, upstream, trailers, finished, turn, Some(&mut *farewell), cx);
        // A frame may have ended that the word waited for.
        let may_speak = !*finished && farewell.is_due(conn) && farewell.frames.is_between() && !was_between;
        if !may_speak {
            return moved;
        }
    }
}

/// Moves the response's body towards the client; Ready when all of it is written, or broken off.
pub(super) fn poll_response_body(
    conn: &mut impl Downstream,
    upstream: &mut Upstream,
    trailers: &mut HeaderList,
    finished: &mut bool,
    turn: &mut usize,
    cx: &mut TaskContext<'_>,
) -> Poll<Result<Moved, Broken>> {
    poll_response(conn, upstream, trailers, finished, turn, None, cx)
}

fn poll_response(
    conn: &mut impl Downstream,
    upstream: &mut Upstream,
    trailers: &mut HeaderList,
    finished: &mut bool,
    turn: &mut usize,
    mut farewell: Option<&mut Farewell>,
    cx: &mut TaskContext<'_>,
) -> Poll<Result<Moved, Broken>> {
    loop {
        if *finished {
            return conn
                .poll_flush(cx)
                .map_ok(|()| Moved::All)
                .map_err(|_| Broken::ClientGone);
        }
        match upstream.poll_data(cx) {
            Poll::Ready(Ok(Chunk::Data(_))) if *turn == 0 => return Poll::Ready(Ok(Moved::Turn)),
            Poll::Ready(Ok(Chunk::Data(there))) => {
                let mut data = upstream.data().get(..there).unwrap_or(&[]);
                if let Some(farewell) = farewell.as_deref().filter(|farewell| farewell.is_due(conn)) {
                    if farewell.frames.is_between() {
                        return Poll::Ready(Ok(Moved::Turn));
                    }
                    data = data.get(..farewell.frames.in_frame(data)).unwrap_or(data);
                }
                match conn.poll_write(cx, data) {
                    Poll::Ready(Ok(used)) => {
                        if let Some(farewell) = &mut farewell {
                            farewell.frames.follow(data.get(..used).unwrap_or(data));
                        }
                        upstream.take(used);
                        *turn = turn.saturating_sub(used);
                        conn.phase().extend();
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::ClientGone)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(Ok(Chunk::End)) => {
                upstream.trailers(trailers);
                conn.finish(trailers);
                *finished = true;
            }
            Poll::Ready(Err(ReadError::Body(error))) if error != BodyError::Truncated => {
                return Poll::Ready(Err(Broken::Upstream(Cause::UpstreamBody(error))));
            }
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Upstream(Cause::UpstreamBrokeOff))),
            Poll::Pending => {
                return match conn.poll_flush(cx) {
                    Poll::Ready(Err(_)) => Poll::Ready(Err(Broken::ClientGone)),
                    _ => Poll::Pending,
                };
            }
        }
    }
}
