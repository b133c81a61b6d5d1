//! The two ends of a connection that carries bytes: sockets, and streams of HTTP/2 that asked for one.
//!
//! What carries the bytes ([`tcp`](super::tcp)) sees of either what has come, room for what goes, and the end of each
//! direction by itself.

use crate::downstream::{Downstream, h2};
use crate::io::buffer::{Filled, ReadBuffer};
use crate::io::h1::Chunk;
use crate::io::stream::Stream;
use http::StatusCode;
use isthmus_core::h1::encode::ResponseContext;
use isthmus_core::h2::frame::code;
use isthmus_core::header::HeaderList;
use isthmus_core::message::{BodyLength, ResponseHead, Version};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

/// One end of the bytes: a socket, or a stream of HTTP/2.
pub trait Side {
    /// The version that a client asks for the connection in.
    const VERSION: Version;
    /// This end's address.
    fn local_addr(&self) -> Option<SocketAddr>;
    /// Finds bytes that the peer has sent, waiting when there are none; false when no more will come.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ()>>;
    /// The bytes that were found.
    fn data(&self) -> &[u8];
    /// Notes that so many of them were passed on.
    fn take(&mut self, used: usize);
    /// Takes some of `data`, at least a byte, and answers how much.
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>>;
    /// Writes what was taken.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ready when the peer has gone, also where neither a read nor a write would notice: it has sent all, or what it sent
    /// was not taken. A socket never is: who uses it notices.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// Tells the peer that no more comes.
    fn end(&mut self);
    /// Has the peer see that this is no proper end.
    fn break_off(&mut self);
    /// Queues what a client is told that asked for the connection (CONNECT): that there it is, or why not.
    fn answer(&mut self, status: StatusCode, text: &'static str);
}

/// A socket, and what has been read of it.
pub struct Socket {
    /// The socket.
    pub stream: Stream,
    /// What has been read of it already.
    pub begun: ReadBuffer,
    /// What is to be written before anything else.
    head: String,
}

impl Socket {
    /// A socket from which `begun` was read.
    pub fn new(stream: Stream, begun: ReadBuffer) -> Self {
        Self {
            stream,
            begun,
            head: String::new(),
        }
    }
}

impl Side for Socket {
    const VERSION: Version = Version::Http11;

    fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.local_addr()
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ()>> {
        if !self.begun.is_empty() {
            return Poll::Ready(Ok(true));
        }
        self.begun.poll_fill(&self.stream, cx).map(|filled| match filled {
            Ok(Filled::Bytes(_) | Filled::Full) => Ok(true),
            Ok(Filled::End) => Ok(false),
            Err(_) => Err(()),
        })
    }

    fn data(&self) -> &[u8] {
        self.begun.data()
    }

    fn take(&mut self, used: usize) {
        self.begun.consume(used);
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.poll_write(cx, &[IoSlice::new(data)])
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.head.is_empty() {
            let written = ready!(self.stream.poll_write(cx, &[IoSlice::new(self.head.as_bytes())]))?;
            self.head.drain(..written);
        }
        self.stream.poll_flush(cx)
    }

    fn poll_gone(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn end(&mut self) {
        self.stream.shutdown_write();
    }

    fn break_off(&mut self) {
        self.stream.reset_on_close();
    }

    fn answer(&mut self, status: StatusCode, text: &'static str) {
        self.head = match status {
            StatusCode::OK => "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
            other => {
                let length = text.len();
                format!(
                    "HTTP/1.1 {other}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
                )
            }
        };
    }
}

/// A stream of HTTP/2 that asked for a connection (RFC 9113, 8.5).
pub struct Connect {
    stream: h2::Stream,
    /// What is to be written before anything else, and how much of it is.
    text: (&'static str, usize),
}

impl From<h2::Stream> for Connect {
    fn from(stream: h2::Stream) -> Self {
        Self {
            stream,
            text: ("", 0),
        }
    }
}

impl Side for Connect {
    const VERSION: Version = Version::Http2;

    fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.local_addr()
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ()>> {
        self.stream.poll_data(cx).map(|found| match found {
            Ok(Chunk::Data(_)) => Ok(true),
            Ok(Chunk::End) => Ok(false),
            Err(_) => Err(()),
        })
    }

    fn data(&self) -> &[u8] {
        self.stream.data()
    }

    fn take(&mut self, used: usize) {
        self.stream.take(used);
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.poll_write(cx, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (text, at) = &mut self.text;
        ready!(self.stream.poll_write_all(cx, text.as_bytes(), at))?;
        self.stream.poll_flush(cx)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_reset(cx)
    }

    fn end(&mut self) {
        self.stream.finish(&HeaderList::default());
    }

    fn break_off(&mut self) {
        self.stream.reset(code::CONNECT_ERROR);
    }

    fn answer(&mut self, status: StatusCode, text: &'static str) {
        let mut head = ResponseHead {
            status,
            ..ResponseHead::default()
        };
        if status == StatusCode::OK {
            head.body = BodyLength::Chunked;
        } else {
            head.headers.append(b"content-type", b"text/plain");
            head.body = BodyLength::Known(text.len() as u64);
            self.text = (text, 0);
        }
        let context = ResponseContext {
            version: Self::VERSION,
            head_request: false,
            keep_alive: true,
        };
        self.stream.response_head(&head, context);
    }
}
