//! A panic in a connection's task ends that connection and nothing else.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use isthmus::io::executor::{self, Heartbeat, Settings};
use isthmus::io::socket;
use isthmus::io::spawn::{self, Tasks};
use isthmus::io::stream::Stream;
use std::future::poll_fn;
use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Echoes; panics when it is told to.
async fn serve(stream: Stream) {
    let mut room = [0; 64];
    loop {
        let got = poll_fn(|cx| stream.poll_read(cx, &mut room)).await.unwrap_or(0);
        let bytes = &room[..got];
        assert!(!bytes.starts_with(b"panic"), "planted");
        if got == 0
            || poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(bytes)]))
                .await
                .is_err()
        {
            return;
        }
    }
}

async fn accept(listening: OwnedFd, tasks: Rc<Tasks>) {
    let mut accepted = Vec::new();
    loop {
        socket::accept(&listening, 8, &mut accepted).await.unwrap();
        for (fd, _) in accepted.drain(..) {
            spawn::spawn(&tasks, serve(Stream::from_fd(fd)));
        }
    }
}

fn ask(client: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
    client.write_all(text)?;
    let mut room = [0; 64];
    client.read(&mut room).map(|got| room[..got].to_vec())
}

#[test]
fn a_panic_closes_its_own_connection_only() {
    let (address, mut sockets) = socket::bind_all(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap();
    let listening = sockets.pop().unwrap();
    socket::listen(&listening).unwrap();
    let (report, reported) = channel();
    let (stop, stopped) = isthmus::mailbox::channel::<()>(1);
    let mut stopped = stopped;
    let core = executor::granted_cores()[0];
    let shard = executor::spawn_shard(
        "panic",
        core,
        Settings::default(),
        Heartbeat::default(),
        move |_| async move {
            let tasks = Rc::new(Tasks::default());
            spawn::spawn(&tasks, accept(listening, Rc::clone(&tasks)));
            let _end = stopped.recv().await;
            report.send((tasks.live(), tasks.take_panics())).unwrap();
        },
    )
    .unwrap();
    let connect = || {
        let client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client
    };
    let (mut bystander, mut victim) = (connect(), connect());
    assert_eq!(ask(&mut bystander, b"one").unwrap(), b"one");
    assert_eq!(ask(&mut victim, b"two").unwrap(), b"two");
    let after = ask(&mut victim, b"panic").unwrap_or_default();
    assert_eq!(after, b"", "the victim's connection must be closed");
    assert_eq!(ask(&mut bystander, b"three").unwrap(), b"three");
    assert_eq!(ask(&mut connect(), b"four").unwrap(), b"four");
    drop(victim);
    drop(stop);
    let (live, panics) = reported.recv().unwrap();
    assert_eq!(panics, 1);
    assert!(live >= 2, "the acceptor and the bystander live on, {live} tasks");
    shard.join().unwrap().unwrap();
}
