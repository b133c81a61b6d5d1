//! Choices drawn from the fuzzer's bytes: the beginning steers, the rest is content.

use isthmus_core::limits::{MessageLimits, Settings};

/// A reader of choices; when the bytes are spent, every choice is the first one.
#[derive(Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// Choices from these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((first, rest)) => {
                self.rest = rest;
                *first
            }
            None => 0,
        }
    }

    /// A number below `bound`, which is at most 65,536; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let number = if bound > 256 {
            usize::from(self.byte()) << 8 | usize::from(self.byte())
        } else {
            usize::from(self.byte())
        };
        number.checked_rem(bound).unwrap_or(0)
    }

    /// Yes in one of `of` cases.
    pub fn once_in(&mut self, of: usize) -> bool {
        self.below(of) == 0 && of > 0
    }

    /// One of a list that is not empty.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// At most so many bytes.
    pub fn take(&mut self, at_most: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(at_most.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// Whether there are no more bytes.
    pub fn is_spent(&self) -> bool {
        self.rest.is_empty()
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// The default limits, or such small ones that short inputs reach them.
    pub fn limits(&mut self) -> MessageLimits {
        let settings = if self.once_in(2) {
            Settings::default()
        } else {
            Settings {
                request_line_bytes: 16 + self.below(120),
                header_bytes: 32 + self.below(400),
                header_count: 1 + self.below(12),
                trailer_bytes: 8 + self.below(80),
                chunk_line_bytes: 8 + self.below(40),
                ..Settings::default()
            }
        };
        settings.message_limits()
    }
}
