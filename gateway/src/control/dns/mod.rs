//! Names of DNS, on the control thread: whoever needs the addresses of a name gets them here, and no request ever waits
//! for a resolver while an address is known.
//!
//! Names that the configuration has are kept ([`Names::keep`]): each family of each is a task that asks, takes what
//! `core::dns` makes of the answer, and sleeps until the next question is due. Names that a request brings are resolved
//! when they are asked for ([`Names::resolve`]): askers of one name share its question, and it is remembered as long as
//! it is good, and for as long again whenever somebody has asked for it meanwhile. The two kinds take nothing from each
//! other: each has questions of its own, and of those that requests bring the ones that were asked for longest ago make
//! room for others.

mod resolver;

use super::Event;
use crate::io::clock;
use crate::mailbox::NameAnswer;
use isthmus_core::discovery::in_turn;
use isthmus_core::dns::{Family, Records, Times};
use isthmus_core::limits::Settings;
use isthmus_core::random::Random;
use resolver::Resolver;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{sleep_until, timeout, timeout_at};

/// Most questions of each kind of names that are under way at a time; more wait for their turn.
const QUESTIONS_MAX: usize = 256;
/// Most names that requests have brought and that are remembered.
const BROUGHT_MAX: usize = 10_000;
/// Which part of them makes room at once, so that each new name does not look at all that are there.
const ROOM: usize = 8;
/// Longest time for a question with all its search domains and servers.
const QUESTION_MAX: Duration = Duration::from_secs(30);

/// What can be known of a name.
pub(super) const NAME_STATES: [&str; 5] = ["pending", "resolved", "stale", "none", "failed"];

/// A name, as reports show it.
#[derive(Debug)]
pub(super) struct NameView {
    pub(super) name: Arc<str>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) state: &'static str,
    /// Why the last question was not answered.
    pub(super) error: Option<String>,
    /// Whether it is of the configuration, and not of a request.
    pub(super) is_kept: bool,
}

/// Counts of questions by what came of them.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) answered: Cell<u64>,
    pub(super) none: Cell<u64>,
    pub(super) failed: Cell<u64>,
}

/// All names that are known. Handles are cheap to copy.
#[derive(Clone)]
pub(super) struct Names(Rc<State>);

struct State {
    resolver: Resolver,
    times: Times,
    start_timeout: Duration,
    table: RefCell<HashMap<Arc<str>, Rc<Known>>>,
    /// How many of them requests have brought.
    brought: Cell<usize>,
    /// For names that are kept, and for the others.
    questions: [Semaphore; 2],
    random: RefCell<Random>,
    counts: Counts,
    events: mpsc::Sender<Event>,
}

struct Known {
    records: [RefCell<Records>; 2],
    error: RefCell<Option<String>>,
    /// Whether it was told that there is no such name.
    is_nowhere: Cell<bool>,
    is_kept: Cell<bool>,
    /// How many loads of the configuration wait for it.
    awaited: Cell<u32>,
    /// When a request has last asked for it.
    used: Cell<Instant>,
    is_gone: Cell<bool>,
    told: Notify,
}

impl Known {
    fn new(is_kept: bool) -> Self {
        let records = || RefCell::new(Records::new(clock::now()));
        Self {
            records: [records(), records()],
            error: RefCell::default(),
            is_nowhere: Cell::new(false),
            is_kept: Cell::new(is_kept),
            awaited: Cell::new(0),
            used: Cell::new(clock::now()),
            is_gone: Cell::new(false),
            told: Notify::new(),
        }
    }

    /// As answered, one family after the other.
    fn addresses(&self) -> Vec<IpAddr> {
        let all = self.records.iter();
        all.flat_map(|records| records.borrow().addresses().to_vec())
            .collect()
    }

    /// Whether there are addresses, or it is known that there are none.
    fn is_settled(&self) -> bool {
        let has_any = |records: &RefCell<Records>| !records.borrow().addresses().is_empty();
        self.records.iter().any(has_any) || self.records.iter().all(|records| records.borrow().is_settled())
    }

    async fn settled(&self) {
        while !self.is_settled() && !self.is_gone.get() {
            self.told.notified().await;
        }
    }
}

impl Names {
    /// None yet. Changes of kept ones are told as events.
    pub(super) fn new(settings: &Settings, seed: u64, events: mpsc::Sender<Event>) -> Self {
        Self(Rc::new(State {
            resolver: Resolver::new(settings),
            times: settings.dns_times(),
            start_timeout: settings.dns_start_timeout,
            table: RefCell::default(),
            brought: Cell::new(0),
            questions: [Semaphore::new(QUESTIONS_MAX), Semaphore::new(QUESTIONS_MAX)],
            random: RefCell::new(Random::from_seed(seed)),
            counts: Counts::default(),
            events,
        }))
    }

    /// Keeps these names, too, from now on.
    pub(super) fn keep<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            let known = self.0.table.borrow().get(name).cloned();
            match known {
                Some(known) => {
                    let was_kept = known.is_kept.replace(true);
                    self.0.count_brought(-isize::from(!was_kept));
                }
                None => {
                    self.begin(name, true);
                }
            }
        }
    }

    /// Keeps these names only, and those that a load waits for.
    pub(super) fn keep_only(&self, names: &HashSet<&str>) {
        self.keep(names.iter().copied());
        self.0.table.borrow_mut().retain(|name, known| {
            let is_left = known.is_kept.get() && known.awaited.get() == 0 && !names.contains(&**name);
            if is_left {
                known.is_gone.set(true);
                known.told.notify_waiters();
            }
            !is_left
        });
    }

    fn begin(&self, name: &str, is_kept: bool) -> Rc<Known> {
        self.begin_with(name, Known::new(is_kept))
    }

    fn begin_with(&self, name: &str, known: Known) -> Rc<Known> {
        let name: Arc<str> = name.into();
        self.0.count_brought(isize::from(!known.is_kept.get()));
        let known = Rc::new(known);
        self.0
            .table
            .borrow_mut()
            .insert(Arc::clone(&name), Rc::clone(&known));
        for family in Family::ALL {
            let (state, name, known) = (Rc::clone(&self.0), Arc::clone(&name), Rc::clone(&known));
            tokio::task::spawn_local(async move { state.follow(name, known, family).await });
        }
        known
    }

    /// The addresses of the kept names, for a process that takes this one's place.
    pub(super) fn handed(&self) -> Vec<(String, [Vec<IpAddr>; 2])> {
        let table = self.0.table.borrow();
        let kept = table.iter().filter(|(_, known)| known.is_kept.get());
        let addresses = |records: &RefCell<Records>| records.borrow().addresses().to_vec();
        kept.map(|(name, known)| {
            (
                name.to_string(),
                [0, 1].map(|at| known.records.get(at).map_or_else(Vec::new, addresses)),
            )
        })
        .collect()
    }

    /// Uses the addresses that another process knew until better ones are known.
    pub(super) fn take_over(&self, handed: Vec<(String, [Vec<IpAddr>; 2])>) {
        for (name, families) in handed {
            if families.iter().all(Vec::is_empty) {
                continue;
            }
            let now = clock::now();
            let records = families.map(|addresses| RefCell::new(Records::known_before(addresses, now)));
            self.begin_with(
                &name,
                Known {
                    records,
                    ..Known::new(true)
                },
            );
        }
    }

    /// The addresses of a kept name, as answered, one family after the other.
    pub(super) fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let table = self.0.table.borrow();
        table.get(name).map_or_else(Vec::new, |known| known.addresses())
    }

    /// Keeps these names, and waits until it is known of each whether it has addresses, but no longer than the settings
    /// say. What is not known then comes later.
    pub(super) async fn settle(self, names: Vec<Box<str>>) {
        self.keep(names.iter().map(|name| &**name));
        let end = (clock::now() + self.0.start_timeout).into();
        let awaited: Vec<(Box<str>, Rc<Known>)> = {
            let table = self.0.table.borrow();
            let found = |name: Box<str>| {
                let known = Rc::clone(table.get(&*name)?);
                Some((name, known))
            };
            names.into_iter().filter_map(found).collect()
        };
        for (_, known) in &awaited {
            known.awaited.set(known.awaited.get() + 1);
        }
        for (name, known) in &awaited {
            if timeout_at(end, known.settled()).await.is_err() {
                tracing::warn!(%name, waited = ?self.0.start_timeout, "no server of DNS has answered yet: the configuration is served without addresses of this name");
            }
        }
        for (_, known) in &awaited {
            known.awaited.set(known.awaited.get().saturating_sub(1));
        }
    }

    /// Whether all of these names are settled.
    pub(super) fn are_settled<'a>(&self, mut names: impl Iterator<Item = &'a str>) -> bool {
        let table = self.0.table.borrow();
        names.all(|name| table.get(name).is_some_and(|known| known.is_settled()))
    }

    /// The addresses of a name that a request brings: at once when they are known, even if they are old, because then
    /// they are being looked for anew.
    pub(super) async fn resolve(&self, name: Arc<str>) -> NameAnswer {
        let found = self.0.table.borrow().get(&name).cloned();
        let known = match found {
            Some(known) => known,
            None => {
                self.0.make_room();
                if self.0.brought.get() >= BROUGHT_MAX {
                    // As many questions are under way.
                    tracing::warn!(
                        name = &*name,
                        most = BROUGHT_MAX,
                        "too many names are asked for by requests"
                    );
                    return NameAnswer {
                        name,
                        addresses: Arc::default(),
                        until: clock::now(),
                    };
                }
                self.begin(&name, false)
            }
        };
        known.used.set(clock::now());
        let _late = timeout(QUESTION_MAX, known.settled()).await;
        let records = known.records.iter().map(RefCell::borrow);
        let next = records.filter_map(|records| match records.addresses().is_empty() {
            true => records.due(),
            false => Some(records.until()),
        });
        NameAnswer {
            until: next.min().unwrap_or_else(clock::now),
            addresses: in_turn(&known.addresses()).collect(),
            name,
        }
    }

    /// Looks whether the system's files about DNS have changed.
    pub(super) fn look(&self) {
        self.0.resolver.look();
    }

    /// What came of questions so far.
    pub(super) fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// All names that are known.
    pub(super) fn view(&self) -> Vec<NameView> {
        let now = clock::now();
        let table = self.0.table.borrow();
        let view = |(name, known): (&Arc<str>, &Rc<Known>)| {
            let addresses = known.addresses();
            let is_stale = known.records.iter().any(|records| records.borrow().is_stale(now));
            let state = match (known.is_settled(), addresses.is_empty(), is_stale) {
                (false, ..) => "pending",
                (true, true, _) if known.error.borrow().is_some() => "failed",
                (true, true, _) => "none",
                (true, false, true) => "stale",
                (true, false, false) => "resolved",
            };
            NameView {
                name: Arc::clone(name),
                addresses,
                state,
                error: known.error.borrow().clone(),
                is_kept: known.is_kept.get(),
            }
        };
        let mut all: Vec<NameView> = table.iter().map(view).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

impl State {
    fn count_brought(&self, change: isize) {
        self.brought.set(self.brought.get().saturating_add_signed(change));
    }

    /// Forgets those names that requests have brought longest ago, when there are as many as there may be. Somebody
    /// waits for those of which nothing is known yet.
    fn make_room(&self) {
        if self.brought.get() < BROUGHT_MAX {
            return;
        }
        let is_idle = |known: &Known| !known.is_kept.get() && known.is_settled();
        let mut table = self.table.borrow_mut();
        let idle = table.values().filter(|known| is_idle(known));
        let mut used: Vec<Instant> = idle.map(|known| known.used.get()).collect();
        if used.is_empty() {
            return;
        }
        let at = used.len() / ROOM;
        let (_, last, _) = used.select_nth_unstable(at);
        let last = *last;
        table.retain(|_, known| {
            let goes = is_idle(known) && known.used.get() <= last;
            if goes {
                known.is_gone.set(true);
                known.told.notify_waiters();
                self.count_brought(-1);
            }
            !goes
        });
    }

    /// Asks for one family of a name's addresses as long as somebody wants to know.
    async fn follow(self: Rc<Self>, name: Arc<str>, known: Rc<Known>, family: Family) {
        let records = match family {
            Family::V4 => &known.records[0],
            Family::V6 => &known.records[1],
        };
        let mut last = None;
        loop {
            let due = records.borrow().due().unwrap_or_else(clock::now);
            let mut is_due = false;
            while !is_due && !known.is_gone.get() {
                tokio::select! {
                    () = sleep_until(due.into()) => is_due = true,
                    () = known.told.notified() => {}
                }
            }
            if known.is_gone.get() || self.forgets(&name, &known, last) {
                return;
            }
            last = Some(clock::now());
            let [kept, brought] = &self.questions;
            let turns = if known.is_kept.get() { kept } else { brought };
            let Ok(_turn) = turns.acquire().await else {
                return;
            };
            records.borrow_mut().asked();
            let asked = timeout(QUESTION_MAX, self.resolver.ask(&name, family)).await;
            let late = || {
                (
                    isthmus_core::dns::Answer::Failed,
                    Some("no answer in time".to_owned()),
                )
            };
            self.take(&name, &known, records, asked.unwrap_or_else(|_| late()))
                .await;
        }
    }

    /// Whether a name that a request has brought was not asked for since the last question about it.
    fn forgets(&self, name: &str, known: &Known, last: Option<Instant>) -> bool {
        let is_unused = !known.is_kept.get() && last.is_some_and(|last| known.used.get() < last);
        if is_unused {
            known.is_gone.set(true);
            known.told.notify_waiters();
            self.table.borrow_mut().remove(name);
            self.count_brought(-1);
        }
        is_unused
    }

    async fn take(
        &self,
        name: &Arc<str>,
        known: &Known,
        records: &RefCell<Records>,
        (answer, why): resolver::Said,
    ) {
        use isthmus_core::dns::Answer;
        let count = match &answer {
            Answer::Addresses { .. } => &self.counts.answered,
            Answer::None { .. } => &self.counts.none,
            Answer::Failed => &self.counts.failed,
        };
        count.set(count.get() + 1);
        let failed = matches!(answer, Answer::Failed);
        let (is_other, failures) = {
            let mut records = records.borrow_mut();
            let before = records.failures();
            let is_other = records.answered(answer, clock::now(), &self.times, &mut self.random.borrow_mut());
            (is_other, (before, records.failures()))
        };
        // The questions for both families are one name's: what is said of one is not said again of the other.
        let others = known
            .records
            .iter()
            .filter(|other| !std::ptr::eq(*other, records));
        let is_said = others.map(RefCell::borrow).any(|other| other.failures() > 0);
        if failed {
            let why = why.unwrap_or_else(|| "no server can be asked".to_owned());
            if failures.1 == 1 && !is_said {
                let left = records.borrow().addresses().len();
                tracing::warn!(
                    name = &**name,
                    reason = why,
                    addresses_kept = left,
                    "a name cannot be resolved"
                );
            }
            *known.error.borrow_mut() = Some(why);
        } else if failures.0 > 0 && !is_said {
            tracing::info!(
                name = &**name,
                failures = failures.0,
                "a name can be resolved again"
            );
            known.error.take();
        } else {
            known.error.take();
        }
        if !failed {
            let is_nowhere = known.is_kept.get() && known.is_settled() && known.addresses().is_empty();
            if is_nowhere && !known.is_nowhere.get() {
                tracing::warn!(name = &**name, "a name does not exist, or has no address");
            }
            known.is_nowhere.set(is_nowhere);
        }
        known.told.notify_waiters();
        if is_other && known.is_kept.get() {
            let _ended = self.events.send(Event::Resolved(Arc::clone(name))).await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    /// Whether nothing is known at once.
    async fn waits(names: &Names, name: &str) -> bool {
        let mut asking = pin!(names.resolve(name.into()));
        poll_fn(|cx| Poll::Ready(asking.as_mut().poll(cx).is_pending())).await
    }

    #[test]
    fn names_that_requests_bring_make_room_for_each_other_and_take_none_of_the_kept() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // Nothing is asked: no question has its turn before the end.
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let (events, _told) = mpsc::channel(1);
            let names = Names::new(&Settings::default(), 1, events);
            let start = clock::now();
            for at in 0..BROUGHT_MAX {
                let addresses = [vec![[10, 0, 0, 1].into()], Vec::new()];
                let known = Known {
                    records: addresses.map(|list| RefCell::new(Records::known_before(list, start))),
                    used: Cell::new(start + Duration::from_micros(at as u64)),
                    ..Known::new(false)
                };
                names.begin_with(&format!("n{at}"), known);
            }
            let last = format!("n{}", BROUGHT_MAX - 1);
            names.keep(["kept"]);
            assert_eq!(names.0.brought.get(), BROUGHT_MAX, "the kept one is none of them");
            names.keep(["n1"]);
            assert_eq!(names.0.brought.get(), BROUGHT_MAX - 1);
            assert!(waits(&names, "other").await && waits(&names, "another").await);
            let has = |name: &str| names.0.table.borrow().contains_key(name);
            assert!(has("kept") && has("n1") && has("other") && has("another") && has(&last));
            assert!(!has("n0") && !has("n2"));
            let table = names.0.table.borrow();
            let brought = table.values().filter(|known| !known.is_kept.get()).count();
            assert_eq!(brought, names.0.brought.get());
        });
    }
}
