//! Files of resources, live: watched, read, compiled, and handed to control as a whole.
//!
//! A thread of its own does what takes long, so that neither shards nor the admin API wait for a compile. It looks when
//! the kernel says that something has changed, when it is asked to, and from time to time by itself, because some file
//! systems say nothing (NFS). A burst of changes is one look; what reads as it did before is not compiled. What control
//! gets is the effective set ([`keep`]): documents without errors, and the last good versions of the others.

use super::Event;
use super::resources::{Ask, Effective};
use crate::io::{clock, heap};
use axum::http::StatusCode;
use isthmus_config::diagnostic::{Diagnostic, Severity};
use isthmus_config::keep::{self, LastGood, Outcome};
use isthmus_config::{Cache, Options, Reader, Source};
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc as events, oneshot};

/// How long files must be quiet before they are read: an editor or a volume writes several at a time.
const QUIET: Duration = Duration::from_millis(100);
/// How long they are waited for at most.
const QUIET_MAX: Duration = Duration::from_secs(1);
/// How often files are looked at without being told that they changed.
const POLL: Duration = Duration::from_secs(5);
/// How often a file that vanished while it was read is tried again.
const READS_MAX: usize = 3;
/// The last good set, in the folder of `--state-dir`.
const STATE_FILE: &str = ".last-good.json";
/// What came by the admin API, in the same folder.
const WRITTEN_FILE: &str = ".resources.yaml";
/// How diagnostics name it.
const WRITTEN: &str = "/v1/resources";

/// What a load has brought.
#[derive(Debug)]
pub(super) enum Loaded {
    /// A set to apply.
    Set(Box<Set>),
    /// The files say what they said before.
    Unchanged,
    /// The files cannot be read.
    Unreadable(String),
}

/// A set to apply.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) outcome: Outcome,
    pub(super) times: Times,
}

/// How long the stages of a load took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    pub(super) read: Duration,
    pub(super) compile: Duration,
}

/// Another text of what comes by the admin API.
pub(super) struct Writing {
    /// The text; nothing of the one before it is kept.
    pub(super) text: String,
    /// Only says what would come of it.
    pub(super) dry_run: bool,
    /// What is to be said about it.
    pub(super) verdict: oneshot::Sender<Verdict>,
    /// Answered once every shard serves it, when it is taken.
    pub(super) applied: Answer,
}

/// What is said about a text.
pub(super) enum Verdict {
    /// It was not looked at.
    Refused(StatusCode, String),
    /// It was.
    Judged {
        /// What `check` says about it, with all files beside it.
        found: Vec<Diagnostic>,
        /// Whether it is on its way to the shards.
        is_taken: bool,
    },
}

impl Verdict {
    pub(super) fn has_errors(found: &[Diagnostic]) -> bool {
        found.iter().any(|found| found.severity == Severity::Error)
    }
}

/// The text that came by the admin API; a process that takes this one's place gets it from control.
type Written = Arc<Mutex<String>>;

/// Why the state folder has not what is served, if it has not.
pub(super) type Unkept = Arc<Mutex<Option<String>>>;

/// Who wants to hear what became of a load.
pub(super) type Answer = oneshot::Sender<String>;

enum Command {
    /// Something may have changed.
    Look,
    /// Load whether or not anything has changed.
    Reload(Option<Answer>),
    /// The admin API asks.
    Ask(Ask),
    /// Nothing that files say is applied any more.
    Release,
}

/// Files of resources, and what was last applied of them.
#[derive(Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    options: Options,
    state_dir: Option<PathBuf>,
    last: LastGood,
    /// What is remembered of the documents, so that a change costs what it changes.
    cache: Cache,
    written: Written,
    /// What the files said at the last look, and how they were found then: the same texts are the same parts.
    reader: Reader,
    sources: Vec<Source>,
    stamps: u64,
    /// Whether another process looks after them.
    is_over: Arc<AtomicBool>,
    unkept: Unkept,
}

impl Files {
    /// Files that have not been read yet. With a folder for the state, the last good set is taken from there, and what
    /// came by the admin API, unless an older process has passed that on.
    pub fn new(
        paths: Vec<PathBuf>,
        options: Options,
        state_dir: Option<PathBuf>,
        passed: Option<String>,
    ) -> Self {
        let last = state_dir.as_deref().map(read_state).unwrap_or_default();
        let kept = || state_dir.as_deref().map(read_written).unwrap_or_default();
        let written = passed.unwrap_or_else(kept);
        Self {
            paths,
            options,
            state_dir,
            last,
            cache: Cache::default(),
            written: Arc::new(Mutex::new(written)),
            reader: Reader::default(),
            sources: Vec::new(),
            stamps: 0,
            is_over: Arc::default(),
            unkept: Unkept::default(),
        }
    }

    /// Whether a folder for the state can be used. One that cannot be is noticed before anybody relies on it.
    pub fn try_state_dir(folder: Option<&Path>) -> Result<(), String> {
        let Some(folder) = folder else {
            return Ok(());
        };
        let name = format!(".tried-{}", std::process::id());
        write_state(folder, &name, || Ok(Vec::new()))
            .and_then(|()| std::fs::remove_file(folder.join(name)))
            .map_err(|error| format!("--state-dir: {} cannot be used: {error}", folder.display()))
    }

    /// Whether an earlier run has left a set that can stand in for what has errors.
    pub fn has_last_good(&self) -> bool {
        !self.last.is_empty()
    }

    /// Reads and compiles the files; answers also what was read.
    pub fn load(&mut self) -> std::io::Result<(Outcome, Vec<Source>)> {
        let (sources, stamps) = self.sources(true)?;
        if self.lost_files(&sources) {
            let text =
                "no file of resources has anything in it, and the state folder has some that were served";
            return Err(std::io::Error::new(std::io::ErrorKind::NotFound, text));
        }
        self.stamps = stamps;
        self.sources.clone_from(&sources);
        Ok((self.compile(sources.clone()), sources))
    }

    /// The files, and what came by the admin API behind them; beside them what the file system says of the files.
    fn sources(&mut self, trust: bool) -> std::io::Result<(Vec<Source>, u64)> {
        let text = self
            .written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        self.sources_with(&text, trust)
    }

    fn sources_with(&mut self, written: &str, trust: bool) -> std::io::Result<(Vec<Source>, u64)> {
        let (mut sources, stamps) = self.read(trust)?;
        if !written.trim().is_empty() {
            let mut known = self.sources.iter().filter(|source| source.name == WRITTEN);
            let same = known.find(|source| *source.text == *written);
            sources.push(Source {
                name: WRITTEN.to_owned(),
                text: same.map_or_else(|| written.into(), |source| Arc::clone(&source.text)),
            });
        }
        Ok((sources, stamps))
    }

    fn read(&mut self, trust: bool) -> std::io::Result<(Vec<Source>, u64)> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.reader.read(&self.paths, clock::wall(), trust) {
                // Replaced between the listing of its folder and its reading.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && tries < READS_MAX => {}
                done => return done,
            }
        }
    }

    /// Whether no file is there any more of those that something was served from, or nothing in any: a volume that is gone
    /// for a moment, or a file that is being written.
    fn lost_files(&self, sources: &[Source]) -> bool {
        let is_nothing = |source: &Source| source.name == WRITTEN || source.text.trim().is_empty();
        sources.iter().all(is_nothing) && self.last.documents().any(|(_, file, _)| file != WRITTEN)
    }

    /// Answers the admin API; what control is to be told comes out.
    fn answer(&mut self, ask: Ask) -> Option<Event> {
        match ask {
            Ask::Effective(answer) => {
                let documents = self.last.documents().map(|(resources, file, text)| Effective {
                    resources: resources.to_vec(),
                    file: file.to_owned(),
                    text: text.to_owned(),
                });
                let _asker_gone = answer.send(documents.collect());
                None
            }
            Ask::Write(write) => self.write(write),
        }
    }

    fn write(&mut self, write: Writing) -> Option<Event> {
        let begun = clock::now();
        let (sources, stamps) = match self.sources_with(&write.text, true) {
            Ok(read) => read,
            Err(error) => {
                let why = format!("the files cannot be read: {error}");
                let refused = Verdict::Refused(StatusCode::SERVICE_UNAVAILABLE, why);
                let _asker_gone = write.verdict.send(refused);
                return None;
            }
        };
        let read = clock::now();
        let options = Options {
            proofs: true,
            ..self.options.clone()
        };
        let judged = isthmus_config::compile_known(&sources, &options, &mut self.cache).diagnostics;
        let found: Vec<Diagnostic> = judged.into_iter().filter(|found| found.file == WRITTEN).collect();
        let is_taken = !write.dry_run && !Verdict::has_errors(&found);
        if is_taken {
            *self.written.lock().unwrap_or_else(PoisonError::into_inner) = write.text;
        }
        let _asker_gone = write.verdict.send(Verdict::Judged { found, is_taken });
        if !is_taken {
            return None;
        }
        self.stamps = stamps;
        self.sources.clone_from(&sources);
        let outcome = self.compile(sources);
        let times = Times {
            read: read - begun,
            compile: clock::now() - read,
        };
        let set = Set { outcome, times };
        Some(Event::Loaded(Loaded::Set(Box::new(set)), vec![write.applied]))
    }

    fn compile(&mut self, sources: Vec<Source>) -> Outcome {
        let outcome = keep::compile_known(sources, &self.options, &self.last, &mut self.cache);
        // Large rings take a while, too; those of clusters that stay as they were are thrown away when it is published.
        for spec in outcome.compiled.snapshot.clusters.values() {
            spec.balancer.prepare(&spec.endpoints.endpoints);
        }
        // Also when it says the same: it holds the texts that there are now.
        self.last = outcome.last.clone();
        outcome
    }

    /// Keeps the set that is applied for a later start.
    pub fn save(&self) {
        let Some(folder) = &self.state_dir else { return };
        if self.is_over.load(Ordering::Acquire) {
            // The folder is another process's now.
            return;
        }
        let written = self
            .written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let kept = write_state(folder, STATE_FILE, || Ok(serde_json::to_vec(&self.last)?))
            .and_then(|()| write_state(folder, WRITTEN_FILE, || Ok(written.into_bytes())));
        let why = |error| format!("{}: what is served cannot be kept: {error}", folder.display());
        let problem = kept.err().map(why);
        let mut known = self.unkept.lock().unwrap_or_else(PoisonError::into_inner);
        // It is tried again and again.
        if let Some(problem) = problem.as_ref().filter(|_| problem != *known) {
            tracing::error!("{problem}");
        }
        *known = problem;
    }

    fn is_unkept(&self) -> bool {
        self.unkept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    fn look(&mut self, forced: bool) -> Loaded {
        let begun = clock::now();
        let (sources, stamps) = match self.sources(!forced) {
            Ok(read) => read,
            Err(error) => {
                // Nobody knows what they say, so that they are looked at until somebody does.
                self.stamps = 0;
                return Loaded::Unreadable(error.to_string());
            }
        };
        self.stamps = stamps;
        if self.lost_files(&sources) {
            // Who means it ends the process.
            return Loaded::Unreadable("no file of resources has anything in it any more".to_owned());
        }
        if is_same(&sources, &self.sources) && !forced {
            return Loaded::Unchanged;
        }
        self.sources.clone_from(&sources);
        let read = clock::now();
        let outcome = self.compile(sources);
        Loaded::Set(Box::new(Set {
            outcome,
            times: Times {
                read: read - begun,
                compile: clock::now() - read,
            },
        }))
    }
}

/// Whether both are the same files with the same words in them.
fn is_same(sources: &[Source], known: &[Source]) -> bool {
    let is_one =
        |(a, b): (&Source, &Source)| a.name == b.name && (Arc::ptr_eq(&a.text, &b.text) || a.text == b.text);
    sources.len() == known.len() && sources.iter().zip(known).all(is_one)
}

fn read_state(folder: &Path) -> LastGood {
    let path = folder.join(STATE_FILE);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return LastGood::default(),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the last good configuration cannot be read");
            return LastGood::default();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "the last good configuration cannot be read");
        LastGood::default()
    })
}

fn read_written(folder: &Path) -> String {
    let path = folder.join(WRITTEN_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::error!(path = %path.display(), %error, "what came by the admin API cannot be read");
            }
            String::new()
        }
    }
}

/// Secrets are among the documents, so only the owner may read the file; a crash leaves the old one or the new one.
fn write_state(
    folder: &Path,
    name: &str,
    content: impl FnOnce() -> std::io::Result<Vec<u8>>,
) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let new = folder.join(format!("{name}.new"));
    // One that a crash has left may be readable by others.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&content()?)?;
    file.sync_all()?;
    std::fs::rename(&new, folder.join(name))
}

/// The thread that looks after the files.
pub(super) struct Watch {
    commands: mpsc::Sender<Command>,
    written: Written,
    is_over: Arc<AtomicBool>,
    unkept: Unkept,
}

impl Watch {
    /// Starts looking after files that have been loaded once.
    pub(super) fn start(files: Files, events: events::Sender<Event>) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let tell = commands.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading is an event, too, and would lead to the next look.
            let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
            if event.is_ok_and(|event| event.kind.is_access() && event.kind != closed) {
                return;
            }
            let _ended = tell.send(Command::Look);
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, poll = ?POLL, "changes of files are not told: they are polled for"))
            .ok();
        let watch = Self {
            commands,
            written: Arc::clone(&files.written),
            is_over: Arc::clone(&files.is_over),
            unkept: Arc::clone(&files.unkept),
        };
        std::thread::Builder::new()
            .name("configuration".to_owned())
            .spawn(move || look_after(files, watcher, &inbox, &events))?;
        Ok(watch)
    }

    /// Another process looks after the files, and keeps what is served: this one writes no more.
    pub(super) fn stand_back(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// There is no other process after all.
    pub(super) fn come_back(&self) {
        self.is_over.store(false, Ordering::Release);
    }

    /// Nothing that files say is applied any more: they are not watched, and looked at only when somebody asks.
    ///
    /// A process that ends while it watches waits in the kernel, beyond anybody's reach, for work that the kernel leaves
    /// to a thread of its own (fsnotify's marks). On a busy machine that thread comes late, so the watch ends as soon as
    /// the process is on its way out.
    pub(super) fn release(&self) {
        let _ended = self.commands.send(Command::Release);
    }

    /// Where it stands why the state folder has not what is served.
    pub(super) fn unkept(&self) -> Unkept {
        Arc::clone(&self.unkept)
    }

    /// Passes on what the admin API asks.
    pub(super) fn ask(&self, ask: Ask) {
        let _ended = self.commands.send(Command::Ask(ask));
    }

    /// What came by the admin API.
    pub(super) fn written(&self) -> String {
        self.written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Loads the files again; who asks is answered once every shard has applied what came of it.
    pub(super) fn reload(&self, answer: Option<Answer>) {
        let _ended = self.commands.send(Command::Reload(answer));
    }
}

fn look_after(
    mut files: Files,
    watcher: Option<notify::RecommendedWatcher>,
    inbox: &mpsc::Receiver<Command>,
    events: &events::Sender<Event>,
) {
    let mut watched = Watched {
        watcher,
        folders: Vec::new(),
    };
    watched.watch(&files.paths);
    // A change between the first load and now.
    let mut next = Some(Command::Look);
    let mut is_released = false;
    loop {
        let command = match next.take() {
            Some(command) => Ok(command),
            None if is_released => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            None => inbox.recv_timeout(POLL),
        };
        let mut answers: Vec<Answer> = Vec::new();
        let mut forced = false;
        let mut asks = Vec::new();
        match command {
            Ok(Command::Release) => {
                watched.release();
                is_released = true;
                continue;
            }
            Ok(Command::Look) if is_released => continue,
            Ok(Command::Look) => {}
            Ok(Command::Ask(ask)) => {
                if !tell(files.answer(ask), &files, events) {
                    return;
                }
                continue;
            }
            Ok(Command::Reload(answer)) => {
                forced = true;
                answers.extend(answer);
            }
            Err(RecvTimeoutError::Timeout) => {
                if files.is_unkept() {
                    // The disk may be free again.
                    files.save();
                }
                if isthmus_config::stamps(&files.paths) == files.stamps {
                    continue;
                }
                // Nobody told: what is below a folder may be elsewhere now.
                watched.watch(&files.paths);
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let begun = clock::now();
        while !forced && clock::now() - begun < QUIET_MAX {
            match inbox.recv_timeout(QUIET) {
                Ok(Command::Look) => {}
                Ok(Command::Release) => {
                    watched.release();
                    is_released = true;
                    break;
                }
                Ok(Command::Ask(ask)) => asks.push(ask),
                Ok(Command::Reload(answer)) => {
                    forced = true;
                    answers.extend(answer);
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        // Those that are here already are answered by the same load.
        while let Ok(command) = inbox.try_recv() {
            match command {
                Command::Reload(answer) => {
                    forced = true;
                    answers.extend(answer);
                }
                Command::Ask(ask) => asks.push(ask),
                Command::Release => {
                    watched.release();
                    is_released = true;
                }
                Command::Look => {}
            }
        }
        watched.renew(&files.paths);
        let loaded = files.look(forced);
        let is_set = matches!(loaded, Loaded::Set(_));
        if events.blocking_send(Event::Loaded(loaded, answers)).is_err() {
            return;
        }
        if is_set {
            files.save();
            heap::give_back();
        }
        for ask in asks {
            if !tell(files.answer(ask), &files, events) {
                return;
            }
        }
    }
}

/// Hands over what an answer to the admin API has brought; answers whether anybody is there.
fn tell(brought: Option<Event>, files: &Files, events: &events::Sender<Event>) -> bool {
    let Some(event) = brought else { return true };
    if events.blocking_send(event).is_err() {
        return false;
    }
    files.save();
    true
}

/// What the kernel tells of.
struct Watched {
    watcher: Option<notify::RecommendedWatcher>,
    /// The folders, each with what it was when it was begun to be watched: another one of its name tells nobody.
    folders: Vec<(PathBuf, Option<(u64, u64)>)>,
}

impl Watched {
    fn watch(&mut self, paths: &[PathBuf]) {
        self.folders.clear();
        let Some(watcher) = &mut self.watcher else { return };
        for path in paths {
            let (folder, mode) = if path.is_dir() {
                (path.as_path(), RecursiveMode::Recursive)
            } else {
                // A file is replaced by another one of its name: only its folder hears of that.
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                (parent.unwrap_or(Path::new(".")), RecursiveMode::NonRecursive)
            };
            self.folders.push((folder.to_owned(), identity(folder)));
            if let Err(error) = watcher.watch(folder, mode) {
                tracing::warn!(folder = %folder.display(), %error, poll = ?POLL, "changes here are not told: they are polled for");
            }
        }
    }

    /// Watches folders that have come into the place of those that were watched.
    fn renew(&mut self, paths: &[PathBuf]) {
        let is_other = |(folder, was): &(PathBuf, Option<(u64, u64)>)| {
            let is = identity(folder);
            is.is_some() && is != *was
        };
        if self.folders.iter().any(is_other) {
            self.watch(paths);
        }
    }

    fn release(&mut self) {
        self.watcher = None;
        self.folders.clear();
    }
}

/// Which folder it is, beyond its name.
fn identity(folder: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(folder).ok()?;
    Some((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// More than a busy machine takes.
    const SOON: Duration = Duration::from_secs(30);

    #[test]
    fn files_that_could_not_be_read_are_looked_at_again() {
        let folder = tempfile::tempdir().unwrap();
        let paths = vec![folder.path().to_owned()];
        std::fs::write(folder.path().join("a.yaml"), "# nothing\n").unwrap();
        let mut files = Files::new(paths.clone(), Options::default(), None, None);
        files.load().unwrap();
        let is_known = |files: &Files| files.stamps == isthmus_config::stamps(&paths);
        assert!(is_known(&files));
        // A file that is there, and that nobody can read from its beginning, whoever it is.
        symlink("/proc/self/mem", folder.path().join("b.yaml")).unwrap();
        assert!(matches!(files.look(false), Loaded::Unreadable(_)));
        assert!(!is_known(&files), "nobody knows what it says");
        std::fs::remove_file(folder.path().join("b.yaml")).unwrap();
        assert!(matches!(files.look(false), Loaded::Unchanged));
        assert!(is_known(&files));
    }

    #[test]
    fn a_folder_in_the_place_of_another_is_watched() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("resources");
        std::fs::create_dir(&folder).unwrap();
        let (tell, told) = mpsc::channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let _over = tell.send(event.map(|event| event.paths));
        });
        let paths = [folder.clone()];
        let mut watched = Watched {
            watcher: Some(watcher.unwrap()),
            folders: Vec::new(),
        };
        watched.watch(&paths);
        // The place of the old one in the file system is not free for the new one.
        std::fs::rename(&folder, outer.path().join("old")).unwrap();
        std::fs::create_dir(&folder).unwrap();
        watched.renew(&paths);
        let file = folder.join("a.yaml");
        std::fs::write(&file, "").unwrap();
        loop {
            let paths = told
                .recv_timeout(SOON)
                .expect("the new folder tells")
                .unwrap_or_default();
            if paths.contains(&file) {
                break;
            }
        }
        watched.release();
    }

    #[test]
    fn a_folder_for_the_state_is_tried_without_a_trace() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        Files::try_state_dir(Some(&state)).unwrap();
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let why = Files::try_state_dir(Some(&file)).unwrap_err();
        assert!(why.starts_with("--state-dir: ") && why.contains("file"), "{why}");
    }

    #[test]
    fn what_cannot_be_kept_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let files = Files::new(Vec::new(), Options::default(), Some(state.clone()), None);
        let unkept = || files.unkept.lock().unwrap().clone();
        files.save();
        assert_eq!(unkept(), None);
        std::fs::remove_dir_all(&state).unwrap();
        std::fs::write(&state, "").unwrap();
        files.save();
        assert!(unkept().is_some_and(|why| why.contains("cannot be kept")));
        std::fs::remove_file(&state).unwrap();
        files.save();
        assert_eq!(unkept(), None);
    }
}
