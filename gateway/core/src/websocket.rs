//! Frames of WebSocket (RFC 6455, 5.2), as far as somebody in the middle needs them: where one ends, so that a process
//! which leaves can say so between two of them.

/// Going away: the server is going down (RFC 6455, 7.4.1).
pub const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

/// The opcode of a close.
const CLOSE: u8 = 8;
/// The longest head: two bytes, a length of eight, a mask of four.
const HEAD_MAX: usize = 14;

/// Follows the frames of one direction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Frames {
    head: [u8; HEAD_MAX],
    /// Bytes of the present frame's head that have come.
    have: usize,
    /// Bytes of its payload that are to come.
    left: u64,
    is_closing: bool,
}

impl Frames {
    /// Whether no frame is under way.
    pub fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// Whether this side has said that it closes.
    pub fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// Follows bytes that were passed on.
    pub fn follow(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let used = self.step(data);
            data = data.get(used..).unwrap_or_default();
        }
    }

    /// How many of these bytes belong to the present frame.
    pub fn in_frame(&self, data: &[u8]) -> usize {
        let mut ahead = *self;
        ahead.step(data)
    }

    /// Goes on to the end of the present frame, or of the bytes; answers how many of them that took.
    fn step(&mut self, data: &[u8]) -> usize {
        let mut used = 0;
        while self.left == 0 {
            let Some(&byte) = data.get(used) else { return used };
            used += 1;
            if let Some(at) = self.head.get_mut(self.have) {
                *at = byte;
            }
            self.have += 1;
            if self.have == head_length(&self.head, self.have) {
                let [first, ..] = self.head;
                self.is_closing |= first & 0x0f == CLOSE;
                self.left = payload_length(&self.head);
                self.have = 0;
                if self.left == 0 {
                    return used;
                }
            }
        }
        let rest = data.len().saturating_sub(used);
        let taken = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
        self.left -= taken as u64;
        used + taken
    }
}

/// How long a head is of which so many bytes are there; beyond them as long as it may yet be.
fn head_length(head: &[u8; HEAD_MAX], have: usize) -> usize {
    if have < 2 {
        return HEAD_MAX;
    }
    let [_, second, ..] = *head;
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + length + if second & 0x80 != 0 { 4 } else { 0 }
}

fn payload_length(head: &[u8; HEAD_MAX]) -> u64 {
    let [_, second, a, b, c, d, e, f, g, h, ..] = *head;
    match second & 0x7f {
        126 => u64::from(u16::from_be_bytes([a, b])),
        127 => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        short => u64::from(short),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, length: usize, masked: bool) -> Vec<u8> {
        let bit = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x80 | opcode];
        match length {
            0..126 => bytes.push(bit | length as u8),
            126..65_536 => {
                bytes.push(bit | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(bit | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        if masked {
            bytes.extend([0x88; 4]);
        }
        // A payload that looks like the head of a close.
        bytes.extend(std::iter::repeat_n(0x88, length));
        bytes
    }

    #[test]
    fn the_ends_of_frames_are_found_however_the_bytes_are_cut() {
        let (mut all, mut ends) = (vec![], vec![]);
        for (at, length) in [0, 1, 125, 126, 127, 65_535, 65_536, 3, 0]
            .into_iter()
            .enumerate()
        {
            for masked in [false, true] {
                all.extend(frame((at % 3) as u8, length, masked));
                ends.push(all.len());
            }
        }
        for cut in [1, 2, 3, 7, 13, 14, 15, 100, 1_000, 65_537, all.len()] {
            let (mut frames, mut seen, mut at) = (Frames::default(), vec![], 0);
            for piece in all.chunks(cut) {
                let mut rest = piece;
                while !rest.is_empty() {
                    let used = frames.in_frame(rest);
                    assert!(used > 0, "in pieces of {cut}");
                    frames.follow(&rest[..used]);
                    at += used;
                    if frames.is_between() {
                        seen.push(at);
                    }
                    rest = &rest[used..];
                }
            }
            assert_eq!(seen, ends, "in pieces of {cut}");
            assert!(!frames.is_closing());
            frames.follow(&GOING_AWAY);
            assert!(frames.is_closing() && frames.is_between());
        }
    }
}
