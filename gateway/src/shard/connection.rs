//! A client's connection from accept to close: the loop that asks the codec for requests and hands them to the proxy.

use super::accept::Counted;
use crate::downstream::Drain;
use crate::downstream::h1::{Connection, Next};
use crate::io::stream::Stream;
use crate::proxy::http::{self, After, Exchange};
use crate::proxy::{Context, ListenerState};
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

/// Serves a connection until it ends.
pub(super) async fn serve(
    context: Rc<Context>,
    listener: Rc<ListenerState>,
    stream: Stream,
    peer: SocketAddr,
    drain: Rc<Cell<Drain>>,
    _counted: Counted,
) {
    let mut conn = Connection::new(stream, peer, &context.pool, context.limits, &context.wheel, drain);
    while conn.wait(&context.settings).await == Next::Request {
        // Boxed, so that a connection which waits does not carry the room of one that works.
        match Box::pin(serve_while_warm(&context, &listener, &mut conn)).await {
            Warm::Quiet => {}
            Warm::Closed => return,
            Warm::Close { asked: true } if conn.reader.is_body_done() && !conn.reader.has_unread() => {
                // The client has nothing under way that a reset could answer.
                return conn.stream.shutdown_write();
            }
            Warm::Close { .. } => return conn.linger(&context.settings).await,
            Warm::Abort => return conn.stream.reset_on_close(),
        }
    }
}

enum Warm {
    /// No request for a moment.
    Quiet,
    /// The client has closed.
    Closed,
    /// The gateway closes; whether the client asked for it, and so sends no more requests.
    Close {
        /// See above.
        asked: bool,
    },
    /// The gateway breaks off.
    Abort,
}

/// Serves requests as long as they follow each other closely.
async fn serve_while_warm(context: &Context, listener: &ListenerState, conn: &mut Connection) -> Warm {
    let mut exchange = Exchange::new(context);
    loop {
        let mut asked = false;
        let after = match conn.next(&mut exchange.request, &context.settings).await {
            Next::Request => {
                asked = !exchange.request.keep_alive;
                http::serve(context, listener, conn, &mut exchange).await
            }
            Next::Refused(cause) => http::refuse(context, conn, &mut exchange, cause).await,
            Next::Quiet => return Warm::Quiet,
            Next::Closed => return Warm::Closed,
        };
        match after {
            After::KeepAlive => {}
            After::Close => return Warm::Close { asked },
            After::Abort => return Warm::Abort,
        }
    }
}
