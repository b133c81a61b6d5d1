//! What a process costs, as the kernel counts it, and what the figures of many rounds say together.

use anyhow::{Context, Result, bail};
use isthmus_tests::deadline::within;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a process may take until it listens. Envoy needs some seconds for 10,000 routes.
const START_MAX: Duration = Duration::from_secs(60);

/// A process that is pinned to one core, and killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

/// Time that a process has spent, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cpu {
    /// In its own code.
    pub(crate) user: f64,
    /// In the kernel.
    pub(crate) system: f64,
}

impl Cpu {
    /// Both together.
    pub(crate) fn total(self) -> f64 {
        self.user + self.system
    }

    /// What each of so many requests has taken of what was spent since.
    pub(crate) fn per_request(self, before: Self, requests: u64) -> Self {
        let requests = requests.max(1) as f64;
        Self {
            user: (self.user - before.user) / requests,
            system: (self.system - before.system) / requests,
        }
    }
}

/// Pins the calling thread, and the processes that it starts, to one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("core {core}: two cores are needed"))
}

impl Process {
    /// Starts a process on a core. What it prints goes to files in `folder`.
    pub(crate) fn start(command: Command, core: usize, folder: &Path) -> Result<Self> {
        // A child has its parent's affinity.
        pin(core)?;
        let started = Self::anywhere(command, folder);
        pin(1)?;
        started
    }

    /// Starts a process on whatever cores the calling thread may use.
    pub(crate) fn anywhere(mut command: Command, folder: &Path) -> Result<Self> {
        let log = folder.join("stderr");
        command
            .stdin(Stdio::null())
            .stdout(File::create(folder.join("stdout"))?)
            .stderr(File::create(&log)?);
        let child = command.spawn();
        let child = child.with_context(|| format!("{}", command.get_program().display()))?;
        Ok(Self { child, log })
    }

    /// Waits until `look` finds that it listens.
    pub(crate) fn wait_for<T>(&mut self, mut look: impl FnMut() -> Option<T>) -> Result<T> {
        let child = &mut self.child;
        let found = within(START_MAX, || match look() {
            Some(found) => Some(Some(found)),
            None => child.try_wait().ok().flatten().map(|_ended| None),
        });
        if let Some(Some(found)) = found {
            return Ok(found);
        }
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        bail!("it does not listen; it says: {said}")
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn status(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.id());
        fs::read_to_string(&path).context(path)
    }

    /// What all its threads have spent so far.
    pub(crate) fn cpu(&self) -> Result<Cpu> {
        let stat = self.status("stat")?;
        let (_, fields) = stat.rsplit_once(')').context("stat has a name")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let micros = |at: usize| -> Result<f64> {
            let ticks: f64 = fields.get(at).context("stat has 52 fields")?.parse()?;
            Ok(ticks * 1e6 / rustix::param::clock_ticks_per_second() as f64)
        };
        Ok(Cpu {
            user: micros(11)?,
            system: micros(12)?,
        })
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> Result<u64> {
        let status = self.status("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let text = line.context("status has VmRSS")?;
        Ok(text.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// The middle of some figures, and its quartiles.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// A quarter of the figures is below.
    pub(crate) low: f64,
    /// Half of them.
    pub(crate) median: f64,
    /// Three quarters.
    pub(crate) high: f64,
}

impl Spread {
    /// Of these figures; zeros without any.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * figures.len().saturating_sub(1) as f64;
            let below = figures.get(place.floor() as usize).copied().unwrap_or(0.0);
            let above = figures.get(place.ceil() as usize).copied().unwrap_or(0.0);
            below + (above - below) * place.fract()
        };
        Self {
            low: at(0.25),
            median: at(0.5),
            high: at(0.75),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_their_neighbours() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.low, spread.median, spread.high), (1.75, 2.5, 3.25));
        let one = Spread::of([7.0]);
        assert_eq!((one.low, one.median, one.high), (7.0, 7.0, 7.0));
        assert_eq!(Spread::of([]).median, 0.0);
    }

    #[test]
    fn what_a_process_spends_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]);
        let process = Process::start(command, 0, folder.path()).unwrap();
        let spent = within(START_MAX, || {
            process.cpu().ok().filter(|cpu| cpu.total() >= 50_000.0)
        });
        assert!(spent.is_some_and(|cpu| cpu.user > cpu.system));
        assert!(process.resident().unwrap() > 100);
    }
}
