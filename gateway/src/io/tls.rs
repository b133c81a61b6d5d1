//! TLS between a stream's bytes and its user: a thin layer over the TLS library's own connection.
//!
//! A [`Session`] belongs to one [`Stream`](super::stream::Stream), which asks it instead of the socket once TLS has
//! begun. It holds no buffer of its own while nothing is under way: encrypted bytes are read into a block of the shard's
//! pool, and what the socket does not take at once waits, encrypted, inside of the library's connection (64 KiB at
//! most). What keys there are is not known here.

use super::buffer::Pool;
use rustls::Connection;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::task::{Context, Poll, ready};

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer closed before the end.
    #[error("the peer closed the connection")]
    Closed,
    /// What the peer said is not acceptable, or it did not accept what it was told.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// The socket below a session, as far as a session needs it.
pub(super) trait Raw {
    /// Whether a read may bring something; without that, waits for it.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;
    fn poll_read(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>>;
    fn poll_write(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;
}

/// TLS on one stream.
pub(super) struct Session {
    connection: Connection,
    pool: Pool,
    /// Whether the library has something for its reader: bytes that there was no room for, or the end.
    has_unread: bool,
    /// Whether the socket did not take all of the last write: that must go before more is encrypted.
    stuck: bool,
    /// Whether an alert has said that all is over: nothing may follow it.
    failed: bool,
}

/// Gives the library's writer a socket that says when it is full.
struct Out<'a, 'b, R> {
    raw: &'a R,
    cx: &'a mut Context<'b>,
}

impl<R: Raw> Write for Out<'_, '_, R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.raw.poll_write(self.cx, parts) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Session {
    pub(super) fn new(connection: Connection, pool: &Pool) -> Self {
        Self {
            connection,
            pool: pool.clone(),
            has_unread: false,
            stuck: false,
            failed: false,
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Takes encrypted bytes, and puts what they say into `room` as far as it goes; answers how much.
    fn feed(&mut self, mut raw: &[u8], room: &mut [u8]) -> Result<usize, rustls::Error> {
        let mut filled = 0;
        while !raw.is_empty() {
            match self.connection.read_tls(&mut raw) {
                // The peer has said goodbye: what it sends behind that is not looked at, nor used up.
                Ok(0) => break,
                Ok(_) => {}
                // More than a record beyond what there is room for: the caller offers less than it reads.
                Err(_) => return Err(rustls::Error::General("plaintext is not taken".to_owned())),
            }
            let state = match self.connection.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    self.failed = true;
                    return Err(error);
                }
            };
            let there = state.plaintext_bytes_to_read();
            let taken = match there {
                0 => 0,
                _ => self.drain(room.get_mut(filled..).unwrap_or_default()),
            };
            self.has_unread = taken < there || state.peer_has_closed();
            filled += taken;
        }
        Ok(filled)
    }

    fn drain(&mut self, room: &mut [u8]) -> usize {
        if room.is_empty() {
            return 0;
        }
        self.connection.reader().read(room).unwrap_or(0)
    }

    /// Writes what waits encrypted.
    pub(super) fn poll_flush(&mut self, raw: &impl Raw, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Out { raw, cx }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Says what waits, as far as the socket takes it at once: nobody waits for it.
    fn try_flush(&mut self, raw: &impl Raw, cx: &mut Context<'_>) {
        let _later = self.poll_flush(raw, cx);
    }

    /// Shakes hands; `begun` are encrypted bytes that were read before.
    pub(super) fn poll_handshake(
        &mut self,
        begun: &mut &[u8],
        raw: &impl Raw,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), HandshakeError>> {
        if !begun.is_empty() {
            let bytes = std::mem::take(begun);
            self.hear(bytes, raw, cx)?;
        }
        loop {
            ready!(self.poll_flush(raw, cx))?;
            if !self.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let mut block = self.pool.lend(false);
            let read = ready!(raw.poll_read(cx, &mut block.bytes))?;
            if read == 0 {
                return Poll::Ready(Err(HandshakeError::Closed));
            }
            self.hear(block.bytes.get(..read).unwrap_or_default(), raw, cx)?;
        }
    }

    fn hear(&mut self, bytes: &[u8], raw: &impl Raw, cx: &mut Context<'_>) -> Result<(), rustls::Error> {
        let heard = self.feed(bytes, &mut []);
        if heard.is_err() {
            // The alert that says why.
            self.try_flush(raw, cx);
        }
        heard.map(|_| ())
    }

    /// Reads at least a byte, or 0 at the end. A stream that ends without saying so is an error: it may be cut.
    pub(super) fn poll_read(
        &mut self,
        raw: &impl Raw,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if room.is_empty() {
            return raw.poll_read(cx, room);
        }
        loop {
            if self.has_unread {
                match self.connection.reader().read(room) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.has_unread = false,
                    read => return Poll::Ready(read),
                }
            }
            // No block is lent for nothing.
            ready!(raw.poll_readable(cx));
            // Never more than there is room for, so that nothing but a broken record has to be kept.
            let mut block = self.pool.lend(room.len() > super::buffer::SMALL);
            let offered = block.bytes.len().min(room.len());
            let into = block.bytes.get_mut(..offered).unwrap_or_default();
            let read = ready!(raw.poll_read(cx, into))?;
            if read == 0 {
                // Noted, so that the reader tells an end from a cut.
                let _nothing = self.connection.read_tls(&mut io::empty())?;
                self.has_unread = true;
                continue;
            }
            let heard = self.feed(block.bytes.get(..read).unwrap_or_default(), room);
            if self.connection.wants_write() {
                self.try_flush(raw, cx);
            }
            match heard {
                Ok(0) => {}
                Ok(filled) => return Poll::Ready(Ok(filled)),
                Err(error) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error))),
            }
        }
    }

    /// Whether bytes that wait to be read, an end, or what the socket has may be read.
    pub(super) fn poll_readable(&self, raw: &impl Raw, cx: &mut Context<'_>) -> Poll<()> {
        match self.has_unread {
            true => Poll::Ready(()),
            false => raw.poll_readable(cx),
        }
    }

    /// Whether nothing waits to be read, and the peer has not said goodbye.
    pub(super) fn is_clean(&mut self) -> bool {
        !self.has_unread
            || matches!(self.connection.reader().fill_buf(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Takes bytes that came unasked on an idle connection; answers whether they said nothing to its user.
    pub(super) fn is_silent(&mut self, raw: &[u8]) -> bool {
        let mut room = [0u8; 1];
        let heard = self.feed(raw, &mut room);
        matches!(heard, Ok(0))
            && matches!(self.connection.reader().read(&mut room), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Takes as much as fits, encrypts it and writes what the socket takes; the rest goes with the next write or flush.
    pub(super) fn poll_write(
        &mut self,
        raw: &impl Raw,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.stuck {
            ready!(self.poll_flush(raw, cx))?;
            self.stuck = false;
        }
        let taken = self.connection.writer().write_vectored(parts)?;
        match self.poll_flush(raw, cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.stuck = true;
                if taken == 0 {
                    Poll::Pending
                } else {
                    Poll::Ready(Ok(taken))
                }
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(taken)),
        }
    }

    /// Says that nothing more will be said.
    pub(super) fn close(&mut self, raw: &impl Raw, cx: &mut Context<'_>) {
        if !self.failed {
            self.connection.send_close_notify();
            self.try_flush(raw, cx);
        }
    }
}
