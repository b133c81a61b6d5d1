//! What a process hands to the one that takes its place: messages with open files in them (SCM_RIGHTS, unix(7)), over a
//! pair of sockets of which the child finds its end as standard input.
//!
//! A descriptor that is passed stands for the same socket, not for a copy: connections that wait in its queue are
//! whoever accepts first, and closing one end takes nothing away from the other.

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Most open files of one message; the kernel takes 253 (SCM_MAX_FD).
pub const FILES_MAX: usize = 128;
/// Most bytes of one message.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// A message.
#[derive(Debug, Default)]
pub struct Message {
    /// What it says; empty when the other end is gone.
    pub text: Vec<u8>,
    /// Its open files.
    pub files: Vec<OwnedFd>,
}

impl Channel {
    /// Two ends; neither is inherited by children unless it is given to one.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(ours), theirs))
    }

    /// An end of a pair.
    pub fn from_end(end: OwnedFd) -> Self {
        Self(end)
    }

    /// The end that the process was given as standard input, which is nobody's any more then.
    pub fn from_stdin() -> io::Result<Self> {
        let end = io::stdin().as_fd().try_clone_to_owned()?;
        if sockopt::socket_type(&end).is_ok_and(|kind| kind == SocketType::SEQPACKET) {
            rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
            return Ok(Self(end));
        }
        let text = "standard input is not what an older process hands over";
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }

    /// How long [`Self::receive`] and [`Self::send`] wait at most.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        // Zero would be for ever.
        let patience = patience.max(Duration::from_millis(1));
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, Some(patience))?;
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Send, Some(patience)).map_err(Into::into)
    }

    /// Sends one message.
    pub fn send(&self, text: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many files"));
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next message; [`io::ErrorKind::WouldBlock`] when there is none in time.
    pub fn receive(&self) -> io::Result<Message> {
        let mut text = vec![0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let received = loop {
            match rustix::net::recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                received => break received?,
            }
        };
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                files.extend(passed);
            }
        }
        let cut = received.flags.contains(rustix::net::ReturnFlags::TRUNC)
            || received.flags.contains(rustix::net::ReturnFlags::CTRUNC);
        if cut {
            let text = "a message is too large, or has more files than this process may open";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        text.truncate(received.bytes);
        Ok(Message { text, files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_keep_their_ends_and_their_files() {
        let (here, there) = Channel::pair().unwrap();
        let there = Channel::from_end(there);
        let (mut kept, passed) = UnixStream::pair().unwrap();
        here.send(b"one", &[passed.as_fd()]).unwrap();
        here.send(b"two", &[]).unwrap();
        drop(passed);
        let mut first = there.receive().unwrap();
        assert_eq!((first.text.as_slice(), first.files.len()), (&b"one"[..], 1));
        UnixStream::from(first.files.remove(0)).write_all(b"x").unwrap();
        let mut got = [0];
        kept.read_exact(&mut got).unwrap();
        assert_eq!(got, *b"x");
        assert_eq!(there.receive().unwrap().text, b"two");
        here.set_patience(Duration::ZERO).unwrap();
        let refused = (0..).find_map(|_| here.send(&[0; 1024], &[]).err()).unwrap();
        assert_eq!(
            refused.kind(),
            io::ErrorKind::WouldBlock,
            "the other end takes nothing"
        );
        while there.receive().is_ok_and(|message| message.text.len() == 1024) {
            there.set_patience(Duration::ZERO).unwrap();
        }
        there.set_patience(Duration::ZERO).unwrap();
        assert_eq!(there.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(here);
        assert!(there.receive().unwrap().text.is_empty());
    }
}
