//! Keys on control: loaded with each version, looked after while it is served.

use crate::io::clock;
use crate::mailbox::TlsSet;
use crate::tls::{CertificateInfo, Refreshed, Store};
use isthmus_config::Secrets;
use isthmus_core::snapshot::Snapshot;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often files are looked at: a new certificate is to be served within a second.
const LOOK: Duration = Duration::from_millis(300);

/// See the module.
pub(super) struct Keys {
    store: Store,
    looked: Option<Instant>,
    /// Counts changes of keys that shards were told of.
    number: u64,
    /// Certificates that are on their way to the shards, with the change that brings them.
    coming: Vec<(u64, CertificateInfo)>,
}

impl Keys {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            looked: None,
            number: 0,
            coming: Vec::new(),
        }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// The keys of a version; what is wrong with them is logged. A Secret whose new values cannot be used keeps those
    /// before them.
    pub(super) fn load(&mut self, snapshot: &Snapshot, secrets: Option<Secrets>) -> Arc<TlsSet> {
        let now = clock::wall();
        if let Some(secrets) = secrets {
            let found = self.store.replace_secrets(secrets, now);
            self.take(found);
        }
        self.store.load(snapshot, now);
        for error in self.store.errors() {
            tracing::error!(%error, "keys cannot be loaded: the hosts that need them are refused, unless there were others before");
        }
        for warning in self.store.warnings() {
            tracing::warn!(%warning, "keys are used nonetheless");
        }
        Arc::new(self.store.set())
    }

    /// Notes what a look has brought; answers whether shards must be told.
    fn take(&mut self, found: Refreshed) -> bool {
        for error in &found.errors {
            tracing::error!(%error, "changed keys cannot be loaded: those before them are kept");
        }
        if found.is_new {
            self.number += 1;
            let number = self.number;
            self.coming
                .extend(found.live.into_iter().map(|info| (number, info)));
        }
        found.is_new
    }

    /// What cannot be used, whether there was something before it or not.
    pub(super) fn problems(&self) -> Vec<String> {
        self.store.errors().map(ToString::to_string).collect()
    }

    /// Counts changes.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The number of the last change, and its keys: what shards are told.
    pub(super) fn last_change(&self) -> (u64, Arc<TlsSet>) {
        (self.number, Arc::new(self.store.set()))
    }

    /// Looks at the files, if it is time to; answers keys that are new.
    pub(super) fn refresh(&mut self) -> Option<(u64, Arc<TlsSet>)> {
        let now = clock::now();
        let is_due = self
            .looked
            .is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK);
        if !is_due {
            return None;
        }
        self.looked = Some(now);
        let found = self.store.refresh(clock::wall());
        self.take(found).then(|| self.last_change())
    }

    /// All shards have taken this change over.
    pub(super) fn secured(&mut self, number: u64) {
        for (_, info) in self.coming.extract_if(.., |(change, _)| *change <= number) {
            tracing::info!(
                serial = info.serial,
                names = info.names.join(","),
                source = info.source,
                "a certificate is live"
            );
        }
    }
}
