//! Names that requests bring, on a shard: control resolves them, and the shard remembers what it was told.
//!
//! Requests that ask for one name share one question to control. What was told is used as long as it is good, and a
//! moment longer while it is asked for anew, so that no request waits for a name that is in use. When there are too many,
//! those that were asked for longest ago make room.

use crate::io::clock;
use crate::mailbox::NameAnswer;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Most names that a shard remembers.
const NAMES_MAX: usize = 10_000;
/// Which part of them makes room at once, so that each new name does not look at all that are there.
const ROOM: usize = 8;
/// Most lines about refused names and addresses in [`LINES_TIME`]: a client can make up as many names as it likes.
const LINES_MAX: u32 = 10;
const LINES_TIME: Duration = Duration::from_secs(10);
/// Most addresses that are remembered to have been told.
const WRITTEN_MAX: usize = 1000;
/// How long an answer is used at least: requests in a burst are not to ask one after the other.
const GOOD_MIN: Duration = Duration::from_secs(1);

/// What a shard knows of names.
#[derive(Debug, Default)]
pub struct Names {
    known: RefCell<HashMap<Arc<str>, Known>>,
    /// Those that control is to be asked for.
    wanted: RefCell<Vec<Arc<str>>>,
    refusals: RefCell<Refusals>,
    asker: RefCell<Option<Waker>>,
}

/// What the log was told of addresses that no connection may go to.
#[derive(Debug, Default)]
struct Refusals {
    /// Addresses that requests had in the place of names.
    written: HashSet<Box<str>>,
    /// When the present time for lines began, and how many there were.
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Refusals {
    fn is_new(&mut self, address: &str) -> bool {
        if self.written.contains(address) {
            return false;
        }
        if self.written.len() >= WRITTEN_MAX {
            self.written.clear();
        }
        self.written.insert(address.into())
    }

    fn line(&mut self, now: Instant) -> Option<u64> {
        if self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= LINES_TIME)
        {
            (self.since, self.lines) = (Some(now), 0);
        }
        self.lines += 1;
        if self.lines > LINES_MAX {
            self.left_out += 1;
            return None;
        }
        Some(std::mem::take(&mut self.left_out))
    }
}

#[derive(Debug, Default)]
struct Known {
    answer: Option<(Arc<[IpAddr]>, Instant)>,
    is_asked: bool,
    /// When a request has last asked for it.
    used: Option<Instant>,
    /// Whether the log says that no connection may go where the answer leads.
    is_refused: bool,
    waiting: Vec<Waker>,
}

impl Names {
    /// The addresses of a name in the order in which they are to be tried; none when it has none, or nobody knows.
    /// Dropping the future gives the question up for this request only.
    pub async fn resolve(&self, name: &str) -> Arc<[IpAddr]> {
        poll_fn(|cx| {
            let now = clock::now();
            let mut known = self.known.borrow_mut();
            let has = known.get_key_value(name).map(|(name, _)| Arc::clone(name));
            let name = match has {
                Some(name) => name,
                None => {
                    make_room(&mut known, now);
                    if known.len() >= NAMES_MAX {
                        // As many questions are under way.
                        return Poll::Ready(Arc::default());
                    }
                    name.into()
                }
            };
            let found = known.entry(Arc::clone(&name)).or_default();
            found.used = Some(now);
            if !found.is_good(now) && !found.is_asked {
                found.is_asked = true;
                self.wanted.borrow_mut().push(name);
                if let Some(asker) = self.asker.take() {
                    asker.wake();
                }
            }
            match &found.answer {
                // Old addresses are better than a wait; that there were none may be over.
                Some((addresses, _)) if found.is_good(now) || !addresses.is_empty() => {
                    Poll::Ready(Arc::clone(addresses))
                }
                _ => {
                    found.waiting.push(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Whether the log is to have a line of it that no connection may go where a name leads, or to an address that is
    /// written in the place of one: the first time since its addresses were others, and not more often than
    /// [`LINES_MAX`]. Answers how many lines were left out before.
    pub fn tells_refusal(&self, name: &str, now: Instant) -> Option<u64> {
        let mut refusals = self.refusals.borrow_mut();
        let is_new = match self.known.borrow_mut().get_mut(name) {
            Some(known) => !std::mem::replace(&mut known.is_refused, true),
            None => refusals.is_new(name),
        };
        is_new.then(|| refusals.line(now)).flatten()
    }

    /// The names that control is to be asked for next.
    pub async fn wanted(&self) -> Vec<Arc<str>> {
        poll_fn(|cx| {
            let wanted = self.wanted.take();
            if wanted.is_empty() {
                *self.asker.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(wanted)
        })
        .await
    }

    /// Takes an answer of control's.
    pub fn answered(&self, answer: &NameAnswer) {
        let waiting = {
            let mut known = self.known.borrow_mut();
            let Some(found) = known.get_mut(&*answer.name) else {
                return;
            };
            let until = answer.until.max(clock::now() + GOOD_MIN);
            let before = found.answer.as_ref().map(|(addresses, _)| addresses);
            found.is_refused &= before.is_some_and(|before| **before == *answer.addresses);
            found.answer = Some((Arc::clone(&answer.addresses), until));
            found.is_asked = false;
            std::mem::take(&mut found.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// Forgets what is old when there are as many as there may be: first what is not good any more, then what was asked for
/// longest ago. Somebody waits for those that are asked for.
fn make_room(known: &mut HashMap<Arc<str>, Known>, now: Instant) {
    if known.len() < NAMES_MAX {
        return;
    }
    known.retain(|_, known| known.is_asked || known.is_good(now));
    if known.len() < NAMES_MAX {
        return;
    }
    let idle = known.values().filter(|known| !known.is_asked);
    let mut used: Vec<Option<Instant>> = idle.map(|known| known.used).collect();
    let at = (used.len() / ROOM).min(used.len().saturating_sub(1));
    if used.is_empty() {
        return;
    }
    let (_, last, _) = used.select_nth_unstable(at);
    let last = *last;
    known.retain(|_, known| known.is_asked || known.used > last);
}

impl Known {
    fn is_good(&self, now: Instant) -> bool {
        self.answer.as_ref().is_some_and(|(_, until)| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_once};
    use std::pin::pin;

    fn answer(name: &str, list: &[[u8; 4]], good: Duration) -> NameAnswer {
        NameAnswer {
            name: name.into(),
            addresses: list.iter().map(|ip| IpAddr::from(*ip)).collect(),
            until: clock::now() + good,
        }
    }

    #[test]
    fn requests_share_a_question_and_what_is_known_is_used_at_once() {
        block_on(async {
            let names = Names::default();
            let (mut first, mut second) = (pin!(names.resolve("a")), pin!(names.resolve("a")));
            assert_eq!(poll_once(first.as_mut()).await, None);
            assert_eq!(poll_once(second.as_mut()).await, None);
            assert_eq!(names.wanted().await, ["a".into()]);
            names.answered(&answer("a", &[[10, 0, 0, 1]], Duration::from_secs(60)));
            assert_eq!((first.await.len(), second.await.len()), (1, 1));
            assert_eq!(names.resolve("a").await.len(), 1);
            assert_eq!(poll_once(names.wanted()).await, None, "nothing more is asked");
        });
    }

    #[test]
    fn old_addresses_are_used_while_they_are_asked_for_and_old_absence_is_not() {
        block_on(async {
            let names = Names::default();
            for name in ["a", "b"] {
                assert_eq!(poll_once(names.resolve(name)).await, None);
            }
            assert_eq!(names.wanted().await.len(), 2);
            names.answered(&answer("a", &[[10, 0, 0, 1]], Duration::ZERO));
            names.answered(&answer("b", &[], Duration::ZERO));
            assert_eq!(names.resolve("b").await.len(), 0, "for a moment");
            for known in names.known.borrow_mut().values_mut() {
                known.answer.as_mut().unwrap().1 = clock::now();
            }
            assert_eq!(names.resolve("a").await.len(), 1);
            assert_eq!(poll_once(names.resolve("b")).await, None);
            assert_eq!(names.wanted().await.len(), 2);
        });
    }

    #[test]
    fn refusals_are_told_once_each_and_not_too_often() {
        let (names, now) = (Names::default(), clock::now());
        assert_eq!(names.tells_refusal("127.0.0.1", now), Some(0));
        assert_eq!(names.tells_refusal("127.0.0.1", now), None, "it was told");
        let told = |from: usize, now| {
            let more = (from..from + 20).map(|at| names.tells_refusal(&format!("10.0.0.{at}"), now));
            more.flatten().count()
        };
        assert_eq!(told(0, now), LINES_MAX as usize - 1);
        let later = now + LINES_TIME;
        assert_eq!(
            names.tells_refusal("127.0.0.2", later),
            Some(11),
            "so many were left out"
        );
        assert_eq!(told(0, later), 0, "they are known");
    }

    #[test]
    fn names_make_room_for_others_when_there_are_too_many() {
        block_on(async {
            let names = Names::default();
            let start = clock::now();
            for at in 0..NAMES_MAX {
                let name = format!("n{at}");
                assert_eq!(poll_once(names.resolve(&name)).await, None);
                names.answered(&answer(&name, &[[10, 0, 0, 1]], Duration::from_secs(600)));
                let mut known = names.known.borrow_mut();
                known.get_mut(&*name).unwrap().used = Some(start + Duration::from_micros(at as u64));
            }
            assert_eq!(names.wanted().await.len(), NAMES_MAX);
            assert_eq!(poll_once(names.resolve("another")).await, None);
            assert_eq!(names.wanted().await, ["another".into()]);
            let has = |name: &str| names.known.borrow().contains_key(name);
            assert!(!has("n0") && has(&format!("n{}", NAMES_MAX - 1)));
            assert!(names.known.borrow().len() > NAMES_MAX / 2);
        });
    }

    #[test]
    fn as_many_questions_as_there_may_be_names_are_enough() {
        block_on(async {
            let names = Names::default();
            for at in 0..NAMES_MAX {
                assert_eq!(poll_once(names.resolve(&format!("n{at}"))).await, None);
            }
            assert_eq!(names.resolve("another").await.len(), 0);
            assert_eq!(names.known.borrow().len(), NAMES_MAX);
        });
    }
}
