//! A shard must never sleep while it has work. glommio 0.9 can: a preempt timer that expires before a task has run makes
//! its loop believe that nothing is to do. The first test seeks a recipe that stalls a shard whose sleeps have no
//! bound, which shows that the bug is there, and holds the bound to it; the second holds production's settings to a
//! core that others want, too, for as long as ISTHMUS_STALL_SECONDS says.
#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

use isthmus::io::executor::{self, Heartbeat, Settings};
use isthmus::io::spawn::{self, Tasks};
use isthmus::io::stream::Stream;
use isthmus::io::{clock, socket, uring};
use isthmus::mailbox::{self, Inbox};
use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

/// A message that is not answered for so long shows a shard that stands still: a thousand times what contention costs.
const STALL: Duration = Duration::from_secs(5);
/// Threads that compete for the shard's core.
const HOGS: usize = 5;
/// Connections that echo within the shard, so that its ring is never quiet.
const ECHOES: usize = 4;

async fn read(stream: &Stream, room: &mut [u8]) -> usize {
    poll_fn(|cx| stream.poll_read(cx, room)).await.unwrap_or(0)
}

async fn write(stream: &Stream, bytes: &[u8]) {
    let _peer_gone = poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(bytes)])).await;
}

/// Echoes between two connections of the shard for ever.
async fn echo(tasks: Rc<Tasks>) {
    let (address, mut sockets) = socket::bind_all(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap();
    let listening = sockets.pop().unwrap();
    socket::listen(&listening).unwrap();
    spawn::spawn(&tasks, async move {
        let mut accepted = Vec::new();
        socket::accept(&listening, 1, &mut accepted).await.unwrap();
        let stream = Stream::from_fd(accepted.pop().unwrap().0);
        let mut room = [0; 64];
        loop {
            match read(&stream, &mut room).await {
                0 => return,
                got => write(&stream, &room[..got]).await,
            }
        }
    });
    let stream = Stream::connect(address, Duration::from_secs(10)).await.unwrap();
    let mut room = [0; 64];
    loop {
        write(&stream, &[1; 64]).await;
        if read(&stream, &mut room).await == 0 {
            return;
        }
    }
}

/// Opens connections for ever that end in every way: before they are open, by a reset, and by a close of either side.
async fn churn(tasks: Rc<Tasks>) {
    let (address, mut sockets) = socket::bind_all(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap();
    let listening = sockets.pop().unwrap();
    socket::listen(&listening).unwrap();
    spawn::spawn(&tasks, async move {
        loop {
            let mut accepted = Vec::new();
            socket::accept(&listening, 16, &mut accepted).await.unwrap();
            for (number, (fd, _)) in accepted.into_iter().enumerate() {
                let stream = Stream::from_fd(fd);
                if number % 2 == 0 {
                    stream.reset_on_close();
                }
            }
        }
    });
    for number in 0u64.. {
        let mut connecting = Box::pin(Stream::connect(address, Duration::from_secs(10)));
        if number % 3 == 0 {
            // Given up before or after it is known to the kernel.
            let _too_early = poll_fn(|cx| Poll::Ready(connecting.as_mut().poll(cx).is_ready())).await;
            if number % 2 == 0 {
                executor::turn().await;
            }
            continue;
        }
        let Ok(stream) = connecting.await else { continue };
        match number % 4 {
            0 => drop(stream),
            1 => stream.reset_on_close(),
            _ => drop(read(&stream, &mut [0; 8]).await),
        }
    }
}

async fn answer(mut inbox: Inbox<u64>, answered: Arc<AtomicU64>) {
    while let Some(number) = inbox.recv().await {
        answered.store(number, Relaxed);
    }
}

/// Loads a shard and sends it messages from outside for `duration`; answers how many were answered, and whether it
/// stood still.
fn load(settings: Settings, duration: Duration) -> (u64, bool) {
    let core = executor::granted_cores()[0];
    let stop = Arc::new(AtomicBool::new(false));
    let hogs: Vec<_> = (0..HOGS)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut set = rustix::thread::CpuSet::new();
                set.set(core);
                rustix::thread::sched_setaffinity(None, &set).unwrap();
                let mut work = 0u64;
                while !stop.load(Relaxed) {
                    work = std::hint::black_box(work.wrapping_add(1));
                }
            })
        })
        .collect();
    let (mut outbox, inbox) = mailbox::channel(64);
    let answered = Arc::new(AtomicU64::new(0));
    let theirs = Arc::clone(&answered);
    let shard = executor::spawn_shard(
        "stall",
        core,
        settings,
        Heartbeat::default(),
        move |_| async move {
            let tasks = Rc::new(Tasks::default());
            for _ in 0..ECHOES {
                spawn::spawn(&tasks, echo(Rc::clone(&tasks)));
            }
            for _ in 0..2 {
                spawn::spawn(&tasks, churn(Rc::clone(&tasks)));
            }
            answer(inbox, theirs).await;
        },
    )
    .unwrap();

    let begin = clock::now();
    let (mut sent, mut stalled) = (0, false);
    while !stalled && begin.elapsed() < duration {
        sent += 1;
        outbox.send(sent);
        let asked = clock::now();
        while answered.load(Relaxed) < sent && !stalled {
            std::thread::yield_now();
            stalled = asked.elapsed() > STALL;
        }
    }
    stop.store(true, Relaxed);
    for hog in hogs {
        hog.join().unwrap();
    }
    if stalled {
        // It sleeps for ever and cannot be joined; it ends with the process.
        drop(outbox);
    } else {
        drop(outbox);
        shard.join().unwrap().unwrap();
    }
    (sent, stalled)
}

/// How long production's settings are tried.
fn seconds() -> u64 {
    let asked = std::env::var("ISTHMUS_STALL_SECONDS").ok();
    asked.map_or(20, |seconds| seconds.parse().unwrap())
}

/// Lets a shard tick `wanted` times; answers whether it did before it stood still.
fn ticks(settings: Settings, wanted: u64) -> bool {
    let heartbeat = Heartbeat::default();
    let pulse = heartbeat.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&stop);
    let core = executor::granted_cores()[0];
    let shard = executor::spawn_shard("ticks", core, settings, heartbeat, move |_| async move {
        while !theirs.load(Relaxed) {
            executor::sleep(executor::TICK).await;
        }
    });
    let shard = shard.unwrap();
    let (mut seen, mut at) = (0, clock::now());
    while seen < wanted && at.elapsed() < STALL {
        if pulse.ticks() != seen {
            (seen, at) = (pulse.ticks(), clock::now());
        }
        std::thread::yield_now();
    }
    stop.store(true, Relaxed);
    // One that sleeps for ever cannot be joined; it ends with the process.
    if seen >= wanted && settings.longest_sleep > Duration::ZERO {
        shard.join().unwrap().unwrap();
    }
    seen >= wanted
}

/// Each test wants the first core for itself and for what it puts there.
static CORE: Mutex<()> = Mutex::new(());

#[test]
fn a_shard_that_sleeps_over_its_own_ticker_goes_on() {
    let _alone = CORE.lock();
    let mut settings = Settings {
        longest_sleep: Duration::ZERO,
        ..Settings::default()
    };
    // The shorter the timer of preemption, the more often the runtime finds it expired where it should begin to run
    // tasks; how short it must be depends on the machine. The first at which the ticker is slept over is taken.
    let preempt = [300, 100, 50, 30, 20, 15, 10, 7, 5, 4, 3, 2]
        .into_iter()
        .find(|&micros| {
            settings.preempt = Duration::from_micros(micros);
            !ticks(settings, 200)
        });
    let preempt = preempt.expect("a recipe that stalls");
    settings.longest_sleep = executor::LONGEST_SLEEP;
    let before = uring::overslept();
    assert!(ticks(settings, 600), "with a timer of {preempt} us");
    println!(
        "{preempt} us: {} sleeps were as long as they may be",
        uring::overslept() - before
    );
}

#[test]
fn a_loaded_shard_does_not_stand_still() {
    let _alone = CORE.lock();
    let (sent, stalled) = load(Settings::default(), Duration::from_secs(seconds()));
    println!("stalled {stalled} after {sent} messages");
    assert!(!stalled, "production's settings stalled (message {sent})");
    assert!(sent > 10, "only {sent} messages");
}
