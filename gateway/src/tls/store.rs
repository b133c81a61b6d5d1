//! The keys of everything that a snapshot asks for: loaded once, looked after, and loaded again when a file changes.
//!
//! What cannot be loaded is missing from the [`TlsSet`], and only its own hosts suffer. What could be loaded once stays
//! until something better can: a broken replacement changes nothing but what is told.

use super::{CertificateInfo, Credentials, MaterialError, MaterialWarning, build_client, build_server};
use crate::mailbox::{ClientConfigs, TlsSet};
use isthmus_core::listener::Accepts;
use isthmus_core::snapshot::Snapshot;
use isthmus_core::tls::{CaSource, ClientTls, CredentialName, KeySource, ServerTls};
use rustls::ServerConfig;
use rustls::server::ProducesTickets;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// The files that a credential's folder may have.
const CREDENTIAL_FILES: [&str; 9] = [
    "tls.crt",
    "cert",
    "tls.key",
    "key",
    "ca.crt",
    "cacert",
    "ca.crl",
    "crl",
    "tls.ocsp-staple",
];

/// What tells whether a file is the one that was read: its identity, size, and times.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.size(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ))
}

/// One policy and what was made of it.
struct Entry<C> {
    config: Option<Arc<C>>,
    certificates: Vec<CertificateInfo>,
    authorities: Vec<CertificateInfo>,
    errors: Vec<MaterialError>,
    warnings: Vec<MaterialWarning>,
    /// What was looked at for it. Taken before it was read, so that a change meanwhile is seen as one.
    watched: Vec<(PathBuf, Stamp)>,
}

impl<C> Entry<C> {
    fn has_changed(&self) -> bool {
        self.watched.iter().any(|(path, known)| stamp(path) != *known)
    }
}

/// What was made of a policy, or why nothing could be.
struct Built<C> {
    config: Arc<C>,
    certificates: Vec<CertificateInfo>,
    authorities: Vec<CertificateInfo>,
    warnings: Vec<MaterialWarning>,
}

/// See the module.
pub struct Store {
    credentials: Credentials,
    folder: Option<PathBuf>,
    ticketer: Arc<dyn ProducesTickets>,
    servers: HashMap<Arc<ServerTls>, Entry<ServerConfig>>,
    clients: HashMap<Arc<ClientTls>, Entry<ClientConfigs>>,
    /// The policy of a server that belongs to no snapshot.
    pinned: Option<Arc<ServerTls>>,
}

/// One certificate that is served, shown or trusted.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// Whether clients of this gateway see it; else upstreams do.
    pub is_server: bool,
    /// Whether it is an authority's.
    pub is_authority: bool,
    /// What it says.
    pub info: &'a CertificateInfo,
}

/// A server that belongs to no snapshot.
#[derive(Clone)]
pub struct Pinned<'a> {
    /// What its connections are met with.
    pub config: Arc<ServerConfig>,
    /// Whose clients it lets in.
    pub authorities: &'a [CertificateInfo],
}

/// What a look at the files has brought.
#[derive(Debug, Default)]
pub struct Refreshed {
    /// Whether there are new configurations.
    pub is_new: bool,
    /// Certificates that become live.
    pub live: Vec<CertificateInfo>,
    /// What is wrong with the rest, which stays as it was.
    pub errors: Vec<MaterialError>,
}

impl Store {
    /// An empty store over Secrets and a folder of credentials.
    pub fn new(
        secrets: isthmus_config::Secrets,
        folder: Option<PathBuf>,
        ticketer: Arc<dyn ProducesTickets>,
    ) -> Self {
        Self {
            credentials: Credentials::new(by_name(secrets), folder.clone()),
            folder,
            ticketer,
            servers: HashMap::new(),
            clients: HashMap::new(),
            pinned: None,
        }
    }

    /// Loads the keys of a server that belongs to no snapshot, and looks after them whatever is loaded later; all that
    /// is wrong with them if anything is.
    pub fn pin(&mut self, policy: ServerTls, now: SystemTime) -> Result<(), Vec<MaterialError>> {
        let entry = self.server(&policy, None, now);
        if !entry.errors.is_empty() {
            return Err(entry.errors);
        }
        let policy = Arc::new(policy);
        self.servers.insert(Arc::clone(&policy), entry);
        self.pinned = Some(policy);
        Ok(())
    }

    /// The server that was pinned, as it is now.
    pub fn pinned(&self) -> Option<Pinned<'_>> {
        let entry = self.servers.get(self.pinned.as_ref()?)?;
        Some(Pinned {
            config: entry.config.clone()?,
            authorities: &entry.authorities,
        })
    }

    /// Loads what a snapshot asks for and is not there yet, and forgets what it does not ask for.
    pub fn load(&mut self, snapshot: &Snapshot, now: SystemTime) {
        let mut before = (
            std::mem::take(&mut self.servers),
            std::mem::take(&mut self.clients),
        );
        if let Some(policy) = &self.pinned
            && let Some(entry) = before.0.remove(policy)
        {
            self.servers.insert(Arc::clone(policy), entry);
        }
        for listener in &snapshot.listeners {
            let Accepts::Tls(names) = &listener.accepts else {
                continue;
            };
            for policy in names.chains().iter().filter_map(|chain| chain.action.tls()) {
                if self.servers.contains_key(policy) {
                    continue;
                }
                let known = before.0.remove(policy);
                let entry = known.unwrap_or_else(|| self.server(policy, None, now));
                self.servers.insert(Arc::clone(policy), entry);
            }
        }
        for policy in snapshot.clusters.values().flat_map(|spec| spec.client_tls()) {
            if self.clients.contains_key(&policy) {
                continue;
            }
            let known = before.1.remove(&policy);
            let entry = known.unwrap_or_else(|| self.client(&policy, None, now));
            self.clients.insert(policy, entry);
        }
    }

    /// Takes the Secrets of another version, and loads again what depends on those that changed.
    pub fn replace_secrets(&mut self, secrets: isthmus_config::Secrets, now: SystemTime) -> Refreshed {
        let secrets = by_name(secrets);
        let before = &self.credentials.secrets;
        let changed: HashSet<CredentialName> = before
            .iter()
            .filter(|(name, data)| secrets.get(*name) != Some(*data))
            .chain(secrets.iter().filter(|(name, _)| !before.contains_key(*name)))
            .map(|(name, _)| name.clone())
            .collect();
        if changed.is_empty() {
            return Refreshed::default();
        }
        self.credentials = Credentials::new(secrets, self.folder.clone());
        let asks = |name: &CredentialName| changed.contains(name) || changed.contains(&name.of_authorities());
        let concerns = |keys: &[KeySource], ca: Option<&CaSource>| {
            let key = |key: &KeySource| matches!(key, KeySource::Credential(name) if asks(name));
            keys.iter().any(key) || matches!(ca, Some(CaSource::Credential(name)) if asks(name))
        };
        let servers: Vec<Arc<ServerTls>> = self
            .servers
            .keys()
            .filter(|policy| concerns(&policy.keys, policy.ca.as_ref()))
            .cloned()
            .collect();
        let clients: Vec<Arc<ClientTls>> = self
            .clients
            .keys()
            .filter(|policy| concerns(policy.key.as_slice(), Some(&policy.ca)))
            .cloned()
            .collect();
        self.reload(servers, clients, now)
    }

    /// Looks whether files have changed, and loads again what depends on them.
    pub fn refresh(&mut self, now: SystemTime) -> Refreshed {
        let (servers, clients) = (changed(&self.servers), changed(&self.clients));
        self.reload(servers, clients, now)
    }

    fn reload(
        &mut self,
        servers: Vec<Arc<ServerTls>>,
        clients: Vec<Arc<ClientTls>>,
        now: SystemTime,
    ) -> Refreshed {
        let mut found = Refreshed::default();
        for policy in servers {
            let before = self.servers.remove(&policy);
            let entry = self.server(&policy, before, now);
            found.take(&entry);
            self.servers.insert(policy, entry);
        }
        for policy in clients {
            let before = self.clients.remove(&policy);
            let entry = self.client(&policy, before, now);
            found.take(&entry);
            self.clients.insert(policy, entry);
        }
        found
    }

    /// The configurations that there are.
    pub fn set(&self) -> TlsSet {
        TlsSet {
            servers: ready(&self.servers),
            clients: ready(&self.clients),
        }
    }

    /// What is wrong with the keys of a server, and what is doubtful about them.
    pub fn check_server(
        &self,
        policy: &ServerTls,
        now: SystemTime,
    ) -> (Vec<MaterialError>, Vec<MaterialWarning>) {
        let entry = self.server(policy, None, now);
        (entry.errors, entry.warnings)
    }

    /// The same for connections to upstreams.
    pub fn check_client(
        &self,
        policy: &ClientTls,
        now: SystemTime,
    ) -> (Vec<MaterialError>, Vec<MaterialWarning>) {
        let entry = self.client(policy, None, now);
        (entry.errors, entry.warnings)
    }

    /// Everything that is wrong.
    pub fn errors(&self) -> impl Iterator<Item = &MaterialError> {
        let servers = self.servers.values().flat_map(|entry| &entry.errors);
        servers.chain(self.clients.values().flat_map(|entry| &entry.errors))
    }

    /// Everything that is doubtful.
    pub fn warnings(&self) -> impl Iterator<Item = &MaterialWarning> {
        let servers = self.servers.values().flat_map(|entry| &entry.warnings);
        servers.chain(self.clients.values().flat_map(|entry| &entry.warnings))
    }

    /// Every certificate.
    pub fn certificates(&self) -> impl Iterator<Item = Shown<'_>> {
        let servers = self.servers.values().flat_map(|entry| shown(entry, true));
        servers.chain(self.clients.values().flat_map(|entry| shown(entry, false)))
    }

    fn server(
        &self,
        policy: &ServerTls,
        before: Option<Entry<ServerConfig>>,
        now: SystemTime,
    ) -> Entry<ServerConfig> {
        let watched = self.watched(&policy.keys, policy.ca.as_ref(), policy.crl.as_deref());
        let built = build_server(policy, &self.credentials, &self.ticketer, now).map(|built| Built {
            config: built.config,
            certificates: built.certificates,
            authorities: built.authorities,
            warnings: built.warnings,
        });
        entry(watched, built, before)
    }

    fn client(
        &self,
        policy: &ClientTls,
        before: Option<Entry<ClientConfigs>>,
        now: SystemTime,
    ) -> Entry<ClientConfigs> {
        let watched = self.watched(policy.key.as_slice(), Some(&policy.ca), policy.crl.as_deref());
        let built = build_client(policy, &self.credentials, now).map(|built| Built {
            config: built.config,
            certificates: built.certificate.into_iter().collect(),
            authorities: built.authorities,
            warnings: built.warnings,
        });
        entry(watched, built, before)
    }

    /// The files that a policy depends on, with their stamps; of a credential also its folders, which change when a
    /// file comes or goes.
    fn watched(&self, keys: &[KeySource], ca: Option<&CaSource>, crl: Option<&str>) -> Vec<(PathBuf, Stamp)> {
        let mut paths: Vec<PathBuf> = crl.map(PathBuf::from).into_iter().collect();
        for key in keys {
            match key {
                KeySource::Files { certificate, key } => {
                    paths.extend([certificate, key].map(|path| PathBuf::from(&**path)));
                }
                KeySource::Credential(name) => self.watch_credential(name, &mut paths),
            }
        }
        match ca {
            Some(CaSource::File(path)) => paths.push(PathBuf::from(&**path)),
            Some(CaSource::Credential(name)) => self.watch_credential(name, &mut paths),
            Some(CaSource::System) | None => {}
        }
        paths.sort_unstable();
        paths.dedup();
        paths
            .into_iter()
            .map(|path| {
                let stamp = stamp(&path);
                (path, stamp)
            })
            .collect()
    }

    fn watch_credential(&self, name: &CredentialName, paths: &mut Vec<PathBuf>) {
        let Some(folder) = &self.folder else { return };
        for name in [name, &name.of_authorities()] {
            let folder = folder.join(&*name.name);
            let files = CREDENTIAL_FILES.map(|file| folder.join(file));
            paths.extend(files.into_iter().filter(|file| file.exists()));
            paths.push(folder);
        }
    }
}

fn by_name(secrets: isthmus_config::Secrets) -> BTreeMap<CredentialName, BTreeMap<String, Vec<u8>>> {
    let secrets = secrets.into_iter().map(|((namespace, name), data)| {
        let name = CredentialName {
            namespace: namespace.into(),
            name: name.into(),
        };
        (name, data)
    });
    secrets.collect()
}

fn entry<C>(
    watched: Vec<(PathBuf, Stamp)>,
    built: Result<Built<C>, Vec<MaterialError>>,
    before: Option<Entry<C>>,
) -> Entry<C> {
    match (built, before) {
        (Ok(built), _) => Entry {
            config: Some(built.config),
            certificates: built.certificates,
            authorities: built.authorities,
            errors: Vec::new(),
            warnings: built.warnings,
            watched,
        },
        (Err(errors), Some(before)) => Entry {
            errors,
            watched,
            ..before
        },
        (Err(errors), None) => Entry {
            config: None,
            certificates: Vec::new(),
            authorities: Vec::new(),
            errors,
            warnings: Vec::new(),
            watched,
        },
    }
}

fn changed<P, C>(entries: &HashMap<Arc<P>, Entry<C>>) -> Vec<Arc<P>> {
    let changed = entries.iter().filter(|(_, entry)| entry.has_changed());
    changed.map(|(policy, _)| Arc::clone(policy)).collect()
}

fn ready<P: Hash + Eq, C>(entries: &HashMap<Arc<P>, Entry<C>>) -> HashMap<Arc<P>, Arc<C>> {
    let ready = entries
        .iter()
        .filter_map(|(policy, entry)| Some((Arc::clone(policy), Arc::clone(entry.config.as_ref()?))));
    ready.collect()
}

fn shown<C>(entry: &Entry<C>, is_server: bool) -> impl Iterator<Item = Shown<'_>> {
    let of = move |is_authority| {
        move |info| Shown {
            is_server,
            is_authority,
            info,
        }
    };
    let certificates = entry.certificates.iter().map(of(false));
    certificates.chain(entry.authorities.iter().map(of(true)))
}

impl Refreshed {
    fn take<C>(&mut self, entry: &Entry<C>) {
        if entry.errors.is_empty() {
            self.is_new = true;
            self.live.extend(entry.certificates.iter().cloned());
        }
        self.errors.extend(entry.errors.iter().cloned());
    }
}
