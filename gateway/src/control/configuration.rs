//! What control knows about the configuration that is served: its version, what stays behind, and who waits to hear.

use super::source::{Answer, Times, Unkept};
use crate::io::clock;
use isthmus_config::keep::Quarantined;
use isthmus_core::snapshot::{Changes, Difference};
use serde_json::{Value, json};
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};

/// How often a port that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Default)]
pub(super) struct Configuration {
    quarantined: Vec<Quarantined>,
    /// Why the files could not be read at the last look.
    unreadable: Option<String>,
    unkept: Unkept,
    /// Ports that could not be opened, and why.
    ports: Vec<String>,
    /// Keys and certificates that cannot be used, and why.
    keys: Vec<String>,
    tried: Option<Instant>,
    times: Times,
    /// The version that every shard serves.
    served: Option<Applied>,
    /// The last version that changed anything, and since when it is served.
    changed: Option<(Applied, SystemTime)>,
    coming: Option<(Applied, Instant)>,
    /// Who asked for a load, until its version is served.
    waiting: Vec<Answer>,
}

/// A version on its way to the shards, or served.
#[derive(Debug, Clone, Copy)]
pub(super) struct Applied {
    version: u64,
    /// What it changed.
    pub(super) difference: Difference,
    /// The change of keys that it brought.
    pub(super) keys: u64,
    /// How long it took until it was compiled.
    pub(super) times: Times,
    /// How long it took then until every shard served it.
    pub(super) publish: Duration,
}

impl Applied {
    /// `+1 ~2 -3`.
    pub(super) fn counts(&self, changes: Changes) -> String {
        format!("+{} ~{} -{}", changes.added, changes.changed, changes.removed)
    }
}

impl Configuration {
    /// A load has brought a set.
    pub(super) fn loaded(&mut self, times: Times, answers: Vec<Answer>) {
        self.unreadable = None;
        self.times = times;
        self.waiting.extend(answers);
    }

    /// The files could be read, and say what they said before.
    pub(super) fn readable(&mut self) {
        self.unreadable = None;
    }

    /// The files could not be read; answers whether that is news.
    pub(super) fn unreadable(&mut self, error: &str) -> bool {
        let is_known = self.unreadable.as_deref() == Some(error);
        self.unreadable = Some(error.to_owned());
        !is_known
    }

    /// Where it stands why what is served is not kept.
    pub(super) fn keeps(&mut self, unkept: Unkept) {
        self.unkept = unkept;
    }

    fn unkept(&self) -> Option<String> {
        let unkept = self.unkept.lock();
        unkept.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What stays behind now.
    pub(super) fn quarantine(&mut self, quarantined: Vec<Quarantined>) {
        self.quarantined = quarantined;
    }

    /// Which ports could not be opened.
    pub(super) fn ports(&mut self, failed: Vec<String>) {
        self.ports = failed;
    }

    /// Which keys and certificates cannot be used.
    pub(super) fn keys(&mut self, failed: Vec<String>) {
        self.keys = failed;
    }

    /// Whether it is time to try the ports again that could not be opened.
    pub(super) fn is_retry_due(&mut self, now: Instant) -> bool {
        let since = |tried: Instant| now.saturating_duration_since(tried);
        let is_due = !self.ports.is_empty() && self.tried.is_none_or(|tried| since(tried) >= RETRY);
        if is_due {
            self.tried = Some(now);
        }
        is_due
    }

    /// A version was handed to the shards.
    pub(super) fn published(&mut self, version: u64, difference: Difference, keys: u64, now: Instant) {
        let coming = Applied {
            version,
            difference,
            keys,
            times: self.times,
            publish: Duration::ZERO,
        };
        self.coming = Some((coming, now));
    }

    /// Every shard serves a version. None when that is known already.
    pub(super) fn applied(&mut self, version: u64, now: Instant) -> Option<Applied> {
        let (mut applied, sent) = self.coming.take_if(|(coming, _)| coming.version == version)?;
        applied.publish = now.saturating_duration_since(sent);
        self.served = Some(applied);
        if applied.difference != Difference::default() {
            self.changed = Some((applied, clock::wall()));
        }
        let waiting = std::mem::take(&mut self.waiting);
        self.answer(waiting);
        Some(applied)
    }

    /// Tells those who asked.
    pub(super) fn answer(&self, answers: Vec<Answer>) {
        let status = self.status().to_string();
        for answer in answers {
            let _asker_gone = answer.send(status.clone());
        }
    }

    /// Documents that stay behind, and ports that could not be opened.
    pub(super) fn left_behind(&self) -> (usize, usize) {
        (self.quarantined.len(), self.ports.len())
    }

    /// `ready`, and what is not as the files say.
    pub(super) fn readiness(&self) -> String {
        let mut text = "ready".to_owned();
        for line in self.degraded() {
            text.push_str("\ndegraded: ");
            text.push_str(&line);
        }
        text
    }

    /// What is not served as the files say, and why.
    pub(super) fn degraded(&self) -> Vec<String> {
        let held = self.quarantined.iter().map(ToString::to_string);
        let others = self
            .ports
            .iter()
            .chain(&self.keys)
            .chain(&self.unreadable)
            .cloned()
            .chain(self.unkept());
        held.chain(others).collect()
    }

    /// `/configuration`.
    pub(super) fn status(&self) -> Value {
        let counts = |changes: Changes| json!({"added": changes.added, "changed": changes.changed, "removed": changes.removed});
        let changes = |of: Difference| {
            json!({
                "listeners": counts(of.listeners),
                "hosts": counts(of.hosts),
                "clusters": counts(of.clusters),
            })
        };
        let changed = self.changed.map(|(changed, since)| {
            json!({
                "version": changed.version,
                "since": humantime::format_rfc3339_millis(since).to_string(),
                "changes": changes(changed.difference),
            })
        });
        let served = self.served.map(|served| {
            json!({
                "version": served.version,
                "changes": changes(served.difference),
                "seconds": {
                    "read": served.times.read.as_secs_f64(),
                    "compile": served.times.compile.as_secs_f64(),
                    "publish": served.publish.as_secs_f64(),
                },
            })
        });
        json!({
            "served": served,
            "last_change": changed,
            "quarantined": self.quarantined,
            "failed_ports": self.ports,
            "failed_keys": self.keys,
            "unreadable": self.unreadable,
            "unkept": self.unkept(),
        })
    }
}
