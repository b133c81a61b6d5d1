//! Questions to servers of DNS, one at a time: what the files of the system say about them, and what an answer means.
//!
//! Names without a dot, or with fewer than the system's `ndots`, are looked for in the search domains as resolv.conf(5)
//! says; a name that the hosts file has is not asked for. UDP is asked first, and TCP when an answer was cut.

use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};
use isthmus_core::dns::{Answer, Family};
use isthmus_core::limits::Settings;
use std::cell::RefCell;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// How long a name of the hosts file is good for.
const HOSTS_TTL: Duration = Duration::from_secs(5);
/// Most search domains (resolv.conf(5) has no limit any more; a question for each is asked one after the other).
const SEARCH_MAX: usize = 32;
/// Most rounds through the servers for one question, as resolv.conf(5) caps it.
const ATTEMPTS_MAX: usize = 5;

/// An answer, and what there is to say when it is a failure.
pub(super) type Said = (Answer, Option<String>);

/// Asks servers of DNS.
pub(super) struct Resolver {
    settings: Settings,
    present: RefCell<Rc<System>>,
}

/// What the files say at one time.
struct System {
    stamp: Stamp,
    hosts: Hosts,
    search: Vec<Name>,
    ndots: usize,
    client: Option<TokioResolver>,
}

/// What tells that a file is another one.
type Stamp = [Option<(u64, u64, i64, i64)>; 2];

impl Resolver {
    /// One with the servers and files that the settings name.
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            present: RefCell::new(Rc::new(System::read(settings))),
        }
    }

    /// Looks whether the files say something else by now.
    pub(super) fn look(&self) {
        let is_same = self.present.borrow().stamp == stamp(&self.settings);
        if !is_same {
            tracing::info!("the system's files about DNS have changed");
            *self.present.borrow_mut() = Rc::new(System::read(&self.settings));
        }
    }

    /// Asks for one family of a name's addresses.
    pub(super) async fn ask(&self, name: &str, family: Family) -> Said {
        let system = Rc::clone(&self.present.borrow());
        system.ask(name, family).await
    }
}

impl System {
    fn read(settings: &Settings) -> Self {
        let stamp = stamp(settings);
        let mut hosts = Hosts::default();
        let path = &*settings.dns_hosts_file.0;
        if let Ok(file) = fs::File::open(path)
            && let Err(error) = hosts.read_hosts_conf(file)
        {
            tracing::warn!(path, %error, "the hosts file cannot be read");
        }
        let path = &*settings.dns_config_file.0;
        let written = fs::read(path).ok();
        let parsed = written.map(system_conf::parse_resolv_conf);
        let (config, mut options) = match parsed {
            Some(Ok(parsed)) => parsed,
            Some(Err(error)) => {
                if settings.dns_servers.0.is_empty() {
                    tracing::warn!(path, %error, "the file names no server of DNS that can be used");
                }
                <(ResolverConfig, ResolverOpts)>::default()
            }
            None => <(ResolverConfig, ResolverOpts)>::default(),
        };
        let mut servers: Vec<NameServerConfig> = settings.dns_servers.0.iter().map(server).collect();
        if servers.is_empty() {
            servers = config.name_servers().to_vec();
        }
        if servers.is_empty() {
            // resolv.conf(5): without a server the one on this machine is asked.
            servers.push(server(&SocketAddr::from((Ipv4Addr::LOCALHOST, 53))));
        }
        let search = config
            .search()
            .iter()
            .chain(config.domain().filter(|_| config.search().is_empty()));
        let search = search.take(SEARCH_MAX).cloned().collect();
        let ndots = options.ndots;
        options.timeout = settings.dns_timeout;
        options.attempts = options.attempts.clamp(1, ATTEMPTS_MAX);
        // Who asks remembers.
        options.cache_size = 0;
        let config = ResolverConfig::from_name_servers(servers);
        let client = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build();
        Self {
            stamp,
            hosts,
            search,
            ndots,
            client: client
                .inspect_err(|error| tracing::error!(%error, "DNS cannot be asked"))
                .ok(),
        }
    }

    async fn ask(&self, name: &str, family: Family) -> Said {
        let Ok(whole) = Name::from_utf8(name) else {
            return (Answer::Failed, Some("it is no name of DNS".to_owned()));
        };
        if let Some(answer) = self.in_hosts(&whole, family) {
            return (answer, None);
        }
        let mut failed = None;
        let mut none = None;
        for candidate in self.candidates(&whole) {
            match self.ask_exactly(&candidate, family).await {
                (Answer::Failed, why) => failed = Some(why),
                (Answer::None { ttl }, _) => none = Some(ttl),
                (found, _) => return (found, None),
            }
        }
        match (failed, none) {
            // Where one could not be asked, it is not known that there is nothing.
            (Some(why), _) => (Answer::Failed, why),
            (None, ttl) => (Answer::None { ttl: ttl.flatten() }, None),
        }
    }

    /// A name that the file has in either family is not asked for in the other.
    fn in_hosts(&self, name: &Name, family: Family) -> Option<Answer> {
        let of = |family| {
            let found = self
                .hosts
                .lookup_static_host(&Query::query(name.clone(), record(family)))?;
            let addresses: Vec<IpAddr> = found
                .answers()
                .iter()
                .filter_map(|found| found.data.ip_addr())
                .collect();
            (!addresses.is_empty()).then_some(addresses)
        };
        match of(family) {
            Some(addresses) => Some(Answer::Addresses {
                addresses,
                ttl: HOSTS_TTL,
            }),
            None => Family::ALL
                .into_iter()
                .any(|other| of(other).is_some())
                .then_some(Answer::None { ttl: Some(HOSTS_TTL) }),
        }
    }

    /// The whole names that a written one may stand for, in the order in which they are asked.
    fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut itself = name.clone();
        itself.set_fqdn(true);
        if name.is_fqdn() {
            return vec![itself];
        }
        let searched = self.search.iter().filter_map(|domain| {
            let mut whole = name.clone().append_domain(domain).ok()?;
            whole.set_fqdn(true);
            Some(whole)
        });
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let mut all: Vec<Name> = searched.collect();
        match dots >= self.ndots {
            true => all.insert(0, itself),
            false => all.push(itself),
        }
        all
    }

    async fn ask_exactly(&self, name: &Name, family: Family) -> Said {
        let Some(client) = &self.client else {
            return (Answer::Failed, None);
        };
        let found = match client.lookup(name.clone(), record(family)).await {
            Ok(found) => found,
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let ttl = none.negative_ttl.map(|ttl| Duration::from_secs(ttl.into()));
                return match none.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => (Answer::None { ttl }, None),
                    code => (Answer::Failed, Some(format!("{name}: the server answers {code}"))),
                };
            }
            Err(error) => return (Answer::Failed, Some(format!("{name}: {error}"))),
        };
        // What the name stands for (CNAME) may change as well.
        let ttl = found.answers().iter().map(|record| record.ttl).min();
        let addresses: Vec<IpAddr> = found
            .answers()
            .iter()
            .filter_map(|record| record.data.ip_addr())
            .collect();
        let ttl = Duration::from_secs(ttl.unwrap_or(0).into());
        match addresses.is_empty() {
            true => (Answer::None { ttl: None }, None),
            false => (Answer::Addresses { addresses, ttl }, None),
        }
    }
}

fn record(family: Family) -> RecordType {
    match family {
        Family::V4 => RecordType::A,
        Family::V6 => RecordType::AAAA,
    }
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

fn stamp(settings: &Settings) -> Stamp {
    [&settings.dns_config_file, &settings.dns_hosts_file].map(|path| {
        let data = fs::metadata(Path::new(&*path.0)).ok()?;
        Some((data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
    })
}
