//! Buffers: blocks that a shard lends to connections while they hold unread bytes, and takes back when they do not.
//!
//! An idle connection holds none. A buffer never grows with a body's size: what has not been passed on is not read.

use super::stream::Stream;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// Size of the usual block: a request or a small answer.
pub const SMALL: usize = 16 * 1024;
/// Size of the large block: bulk data, and the largest message head.
pub const LARGE: usize = 64 * 1024;
/// Free blocks that a shard keeps, of each size.
const FREE_MAX: (usize, usize) = (256, 32);

#[derive(Default)]
struct Free {
    small: RefCell<Vec<Box<[u8]>>>,
    large: RefCell<Vec<Box<[u8]>>>,
    lent: Cell<u64>,
    lent_bytes: Cell<u64>,
    held_bytes: Cell<u64>,
}

/// A shard's blocks.
#[derive(Clone, Default)]
pub struct Pool {
    free: Rc<Free>,
}

impl Pool {
    /// Blocks that are lent.
    pub fn lent(&self) -> u64 {
        self.free.lent.get()
    }

    /// Bytes of the blocks that are lent, and of what connections hold beside them.
    pub fn bytes(&self) -> u64 {
        self.free.lent_bytes.get() + self.free.held_bytes.get()
    }

    /// Notes that a connection holds so many bytes beside its blocks, where it held so many.
    pub(super) fn holds(&self, before: usize, now: usize) {
        let held = &self.free.held_bytes;
        held.set((held.get() + now as u64).saturating_sub(before as u64));
    }

    /// Lends a block, large or usual.
    pub(super) fn lend(&self, large: bool) -> Block {
        let (list, size) = if large {
            (&self.free.large, LARGE)
        } else {
            (&self.free.small, SMALL)
        };
        let reused = list.borrow_mut().pop();
        // Zeroed once; a block that comes back is not cleared, because only bytes that were read into it are shown.
        let bytes = reused.unwrap_or_else(|| vec![0; size].into_boxed_slice());
        self.free.lent.set(self.free.lent.get() + 1);
        let lent_bytes = &self.free.lent_bytes;
        lent_bytes.set(lent_bytes.get() + size as u64);
        Block {
            bytes,
            pool: self.clone(),
        }
    }
}

/// A block that is lent; it goes back when dropped.
pub(super) struct Block {
    pub(super) bytes: Box<[u8]>,
    pool: Pool,
}

impl Drop for Block {
    fn drop(&mut self) {
        let free = &self.pool.free;
        free.lent.set(free.lent.get().saturating_sub(1));
        let bytes = std::mem::take(&mut self.bytes);
        let left = free.lent_bytes.get().saturating_sub(bytes.len() as u64);
        free.lent_bytes.set(left);
        let (list, max) = if bytes.len() == LARGE {
            (&free.large, FREE_MAX.1)
        } else {
            (&free.small, FREE_MAX.0)
        };
        let mut list = list.borrow_mut();
        if list.len() < max {
            list.push(bytes);
        }
    }
}

/// What one read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes more.
    Bytes(usize),
    /// The peer has closed its side.
    End,
    /// There is no room: use some bytes first.
    Full,
}

/// The unread bytes of one stream.
pub struct ReadBuffer {
    pool: Pool,
    block: Option<Block>,
    start: usize,
    end: usize,
    bulk: bool,
}

impl ReadBuffer {
    /// An empty buffer, which holds no block.
    pub fn new(pool: &Pool) -> Self {
        Self {
            pool: pool.clone(),
            block: None,
            start: 0,
            end: 0,
            bulk: false,
        }
    }

    /// Where its blocks come from.
    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The unread bytes.
    pub fn data(&self) -> &[u8] {
        self.block
            .as_ref()
            .and_then(|block| block.bytes.get(self.start..self.end))
            .unwrap_or(&[])
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops bytes from the front. The block goes back with the last of them.
    pub fn consume(&mut self, used: usize) {
        self.start = (self.start + used).min(self.end);
        if self.is_empty() {
            self.release();
        }
    }

    fn release(&mut self) {
        self.start = 0;
        self.end = 0;
        self.block = None;
    }

    /// Reads what there is, once. While nothing comes and nothing is held, no block is held either.
    pub fn poll_fill(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<io::Result<Filled>> {
        let needs_room = self
            .block
            .as_ref()
            .is_some_and(|block| self.end == block.bytes.len());
        if needs_room && !self.make_room() {
            return Poll::Ready(Ok(Filled::Full));
        }
        // No block is lent for nothing.
        ready!(stream.poll_readable(cx));
        let block = self.block.get_or_insert_with(|| self.pool.lend(self.bulk));
        let room = block.bytes.get_mut(self.end..).unwrap_or(&mut []);
        let offered = room.len();
        match stream.poll_read(cx, room) {
            Poll::Ready(Ok(0)) => {
                if self.is_empty() {
                    self.release();
                }
                Poll::Ready(Ok(Filled::End))
            }
            Poll::Ready(Ok(read)) => {
                // A read that fills nearly all it was offered (TLS keeps a part of it for itself) announces bulk data:
                // fewer, larger reads from now on.
                self.bulk = read >= offered / 8 * 7 && offered >= SMALL / 2;
                self.end += read;
                Poll::Ready(Ok(Filled::Bytes(read)))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                if self.is_empty() {
                    self.release();
                }
                Poll::Pending
            }
        }
    }

    /// Moves the bytes to the front, or into a large block; false when they fill that too.
    fn make_room(&mut self) -> bool {
        let Some(block) = &mut self.block else { return true };
        if self.start > 0 {
            block.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            return true;
        }
        if block.bytes.len() >= LARGE {
            return false;
        }
        let mut larger = self.pool.lend(true);
        if let (Some(to), Some(from)) = (larger.bytes.get_mut(..self.end), block.bytes.get(..self.end)) {
            to.copy_from_slice(from);
        }
        self.block = Some(larger);
        true
    }

    /// Waits until there is something to read or the peer has closed.
    pub fn poll_ready(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if !self.is_empty() {
            return Poll::Ready(Ok(true));
        }
        Poll::Ready(Ok(!matches!(ready!(self.poll_fill(stream, cx))?, Filled::End)))
    }
}
