//! The process's life: what it says when it serves, what signals do to it, and how it leaves.

use super::source::Answer;
use super::upgrade::Order;
use super::{Control, Ended, Event, LAST_WORDS, Life, Options, Signal, report};
use crate::io::clock;
use crate::mailbox::ToShard;
use isthmus_core::drain::{Drain, Plan};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

pub(super) fn spawn_signals(events: &mpsc::Sender<Event>) -> std::io::Result<()> {
    let signals = [
        (SignalKind::terminate(), Signal::Terminate),
        (SignalKind::interrupt(), Signal::Interrupt),
        (SignalKind::hangup(), Signal::Hangup),
        (SignalKind::user_defined1(), Signal::User1),
        (SignalKind::user_defined2(), Signal::User2),
    ];
    for (kind, meaning) in signals {
        let (mut stream, events) = (signal(kind)?, events.clone());
        tokio::task::spawn_local(async move {
            while stream.recv().await.is_some() {
                if events.send(Event::Signal(meaning)).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

impl Control {
    /// Traffic is accepted: says so.
    pub(super) fn announce(&mut self) {
        self.life = Life::Serving;
        let (rings, flagged) = crate::io::uring::flagged_rings();
        if flagged < rings {
            tracing::warn!(
                rings,
                flagged,
                "rings run without cooperative task running: kernel 5.19 or newer is faster"
            );
        }
        self.metrics.set_rings(rings, flagged);
        for port in self.listeners.unused_mappings() {
            tracing::warn!(port, "--port-map names a port that no Gateway has");
        }
        if let Some(name) = &self.settings.congestion_control.0 {
            tracing::info!("connections of clients use the congestion control {name}");
        }
        if self.listeners.iter().next().is_none() {
            tracing::warn!("no port is open: the resources have no Gateway with a server that can be served");
        }
        let listeners: Vec<String> = self
            .listeners
            .iter()
            .map(|(_, address)| address.to_string())
            .collect();
        tracing::info!(
            shards = self.shards.len(),
            rings,
            flagged,
            listeners = listeners.join(" "),
            admin = %self.servers.admin().address(),
            status = %self.servers.status().address(),
            metrics = %self.servers.metrics().address(),
            "serving"
        );
        if let Err(error) = self.servers.serve() {
            self.ended = Ended::Environment(error.to_string());
            self.life = Life::Over;
            return;
        }
        if !self.take_over() {
            self.speak_up();
        }
    }

    /// Says to those outside that this process serves.
    pub(super) fn speak_up(&mut self) {
        self.systemd.ready("serving");
        self.write_ready_file();
    }

    pub(super) fn write_ready_file(&mut self) {
        if let Some(path) = self.options.ready_file.clone() {
            let ready = report::ready_file(
                &self.listeners,
                self.servers.admin().address(),
                self.servers.status().address(),
                self.servers.metrics().address(),
            );
            // A busy disk may take its time, and the process must not wait for it.
            let before = self.ready_written.take();
            let events = self.events.clone();
            self.ready_written = Some(tokio::task::spawn_local(async move {
                if let Some(before) = before {
                    let _either_way = before.await;
                }
                let shown = path.clone();
                let written = tokio::task::spawn_blocking(move || write_whole(&path, &ready)).await;
                if let Ok(Err(error)) = written {
                    let text = format!("the ready file {} cannot be written: {error}", shown.display());
                    let _ended = events.send(Event::ReadyFailed(text)).await;
                }
            }));
        }
    }

    /// Takes the way out.
    pub(super) fn leave(&mut self, plan: Plan) {
        self.plan = Some(plan);
        self.cancel_upgrade();
        self.release_files();
        self.tick();
    }

    /// Goes on along the way out, if it is taken.
    pub(super) fn go_on(&mut self, now: Instant) {
        let Some(plan) = self.plan else { return };
        if !plan.accepts(now) && self.life == Life::Leaving {
            self.life = Life::Draining;
        }
        let drain = plan.at(now);
        if drain != self.drain {
            self.drain = drain;
            self.listeners.let_go();
            for shard in &mut self.shards {
                shard.outbox.send(ToShard::Drain(drain));
            }
        }
        if self.life == Life::Draining {
            let drained = self.shards.iter().all(|shard| shard.drained);
            if drained || plan.over_for(now).is_some_and(|over| over >= LAST_WORDS) {
                let cut: u64 = self.shards.iter().map(|shard| shard.cut).sum();
                tracing::info!(drained, cut, "ended");
                self.life = Life::Over;
            }
        }
    }

    pub(super) fn handle_signal(&mut self, signal: Signal) {
        match (signal, self.life) {
            (Signal::Terminate, Life::Starting | Life::Serving) => {
                let (delay, timeout) = (self.options.drain_delay, self.options.drain_timeout);
                tracing::info!(?delay, ?timeout, "draining");
                self.systemd.stopping();
                self.life = Life::Leaving;
                // Without ports there is nothing to wait for.
                let delay = if self.listeners_drained {
                    Duration::ZERO
                } else {
                    delay
                };
                self.leave(Plan::leaving(clock::now(), delay, timeout));
            }
            (Signal::Terminate | Signal::Interrupt, life) => {
                tracing::info!("ending now");
                let is_cut = self.drain == Drain::Cut;
                if life == Life::Starting || is_cut {
                    self.life = Life::Over;
                    return;
                }
                // What is under way leaves its lines in the access log.
                self.life = Life::Draining;
                self.leave(Plan::now(clock::now()));
            }
            (Signal::Hangup, _) => {
                self.log.reopen();
                match &self.watch {
                    Some(watch) => {
                        let answer = self.systemd.is_there().then(|| self.announce_reload());
                        watch.reload(answer);
                    }
                    None => {
                        tracing::warn!("the resources do not come from files: there is nothing to load again")
                    }
                }
            }
            (Signal::User1, _) => self.log.reopen(),
            (Signal::User2, _) => self.begin_upgrade(Order::default(), None),
        }
    }

    /// Tells the service manager of a load, and of its end when the answer comes.
    fn announce_reload(&self) -> Answer {
        self.systemd.reloading();
        let (answer, answered) = oneshot::channel();
        let events = self.events.clone();
        tokio::task::spawn_local(async move {
            let _either_way = answered.await;
            let _ended = events.send(Event::Reloaded).await;
        });
        answer
    }
}

impl Options {
    /// Whether the ready file can be written, before anybody is served.
    pub fn try_ready_file(&self) -> Result<(), String> {
        let tried = self.ready_file.as_deref().map_or(Ok(()), try_file);
        tried.map_err(|error| {
            let path = self.ready_file.clone().unwrap_or_default();
            format!("--ready-file: {} cannot be written: {error}", path.display())
        })
    }
}

/// Whether a file could be written, without writing it: a process that this one is to replace may be doing so.
fn try_file(path: &std::path::Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let tried = PathBuf::from(name);
    std::fs::write(&tried, "")?;
    std::fs::remove_file(&tried)
}

/// Writes a file so that a reader sees all of it or none.
fn write_whole(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    std::fs::write(&new, text)?;
    std::fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_tried_without_a_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready");
        try_file(&path).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        write_whole(&path, "what is there").unwrap();
        try_file(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "what is there");
        assert!(try_file(folder.path()).is_err());
        assert!(try_file(&path.join("below")).is_err());
    }
}
