//! Registration: instances of services that say themselves that they are there, and for how long.
//!
//! An instance is put, and put again before its time is over; one that is not goes. A service must be one of the
//! resources', which say its ports and policies; an instance says what a WorkloadEntry says, and is an endpoint of each
//! cluster that selects it, beside those that are written or found in DNS. An upgrade takes them along
//! ([`Handed`]); otherwise nothing of it outlives the process.

use isthmus_config::services::{Instance, Services};
use isthmus_core::endpoint::Endpoint;
use isthmus_core::name::ClusterKey;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an instance is there when it does not say.
const TTL: Duration = Duration::from_secs(30);
/// Shortest time that it may ask for.
const TTL_MIN: Duration = Duration::from_secs(1);
/// Longest time that it may ask for: one that is forgotten is to go.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Most instances of all services.
const INSTANCES_MAX: usize = 100_000;
/// Longest name of an instance, in bytes.
const NAME_MAX: usize = 253;
/// Most labels or ports of an instance.
const ENTRIES_MAX: usize = 256;

/// An instance as it is put: the fields of a WorkloadEntry, and how long it is there.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Put {
    address: IpAddr,
    #[serde(default)]
    ports: BTreeMap<String, u16>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    locality: String,
    #[serde(default)]
    weight: u32,
    #[serde(default, with = "humantime_text")]
    ttl: Option<Duration>,
}

mod humantime_text {
    use serde::{Deserialize, Deserializer};
    use std::time::Duration;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        let parse = |text: String| humantime::parse_duration(&text).map_err(serde::de::Error::custom);
        text.map(parse).transpose()
    }
}

/// Which instance of which service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id {
    /// The service's whole name, in lower case.
    pub(super) service: String,
    /// What the instance calls itself.
    pub(super) instance: String,
}

/// An instance as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    service: String,
    instance: String,
    address: IpAddr,
    ports: BTreeMap<String, u16>,
    labels: BTreeMap<String, String>,
    locality: String,
    weight: u32,
    /// What it asked for, in seconds.
    ttl_seconds: f64,
    /// What is left of it.
    expires_in_seconds: f64,
    /// The clusters that it is an endpoint of.
    clusters: Vec<String>,
}

/// An instance as it is handed to a process that takes this one's place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Handed {
    service: String,
    name: String,
    instance: Instance,
    ttl: Duration,
    left: Duration,
}

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no such service or instance.
    Unknown(String),
    /// What is said makes no sense.
    Bad(String),
    /// There is no room.
    Full,
}

#[derive(Debug)]
struct Held {
    instance: Instance,
    ttl: Duration,
    until: Instant,
}

/// All instances that are there.
#[derive(Debug, Default)]
pub(super) struct Registration {
    services: Arc<Services>,
    held: BTreeMap<Id, Held>,
    ends: BTreeSet<(Instant, Id)>,
}

impl Registration {
    /// Another version has other services. Instances of those that it does not have stay for when they come back.
    pub(super) fn set_services(&mut self, services: Arc<Services>) {
        self.services = services;
    }

    /// Takes an instance, or takes it again: its time begins anew. Answers whether its endpoints are others than before.
    pub(super) fn put(&mut self, id: &Id, put: Put, now: Instant) -> Result<bool, Refusal> {
        let ttl = put.ttl.unwrap_or(TTL);
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            let text = format!(
                "`ttl` must be from {TTL_MIN:?} to {} hours",
                TTL_MAX.as_secs() / 3600
            );
            return Err(Refusal::Bad(text));
        }
        if id.instance.is_empty() || id.instance.len() > NAME_MAX {
            return Err(Refusal::Bad(format!(
                "an instance's name has 1 to {NAME_MAX} bytes"
            )));
        }
        if put.labels.len() > ENTRIES_MAX || put.ports.len() > ENTRIES_MAX {
            return Err(Refusal::Bad(format!(
                "an instance has at most {ENTRIES_MAX} labels and ports"
            )));
        }
        if put.ports.values().any(|port| *port == 0) {
            return Err(Refusal::Bad("a port must be from 1 to 65535".to_owned()));
        }
        if put.address.is_unspecified() || put.address.is_multicast() {
            return Err(Refusal::Bad(format!("nobody can connect to {}", put.address)));
        }
        let instance = Instance {
            address: put.address,
            ports: put.ports,
            labels: put.labels,
            locality: put.locality,
            weight: put.weight,
        };
        self.check_service(&id.service)?;
        if let Some(name) = self.services.unknown_port(&id.service, &instance) {
            let text = format!("`{}` has no port named `{name}`", id.service);
            return Err(Refusal::Bad(text));
        }
        let before = self.held.get(id);
        if before.is_none() && self.held.len() >= INSTANCES_MAX {
            return Err(Refusal::Full);
        }
        let is_other = before.is_none_or(|before| before.instance != instance);
        self.hold(id, instance, ttl, now);
        Ok(is_other)
    }

    /// Begins the time of an instance anew that is there.
    pub(super) fn renew(&mut self, id: &Id, now: Instant) -> Result<(), Refusal> {
        self.check_service(&id.service)?;
        let Some(held) = self.held.get(id) else {
            return Err(Refusal::Unknown(format!(
                "`{}` has no instance `{}`: say its address",
                id.service, id.instance
            )));
        };
        let (instance, ttl) = (held.instance.clone(), held.ttl);
        self.hold(id, instance, ttl, now);
        Ok(())
    }

    fn check_service(&self, service: &str) -> Result<(), Refusal> {
        match self.services.has(service) {
            true => Ok(()),
            false => Err(Refusal::Unknown(format!(
                "no resource describes a service `{service}`"
            ))),
        }
    }

    fn hold(&mut self, id: &Id, instance: Instance, ttl: Duration, now: Instant) {
        self.hold_until(id, instance, ttl, now + ttl);
    }

    fn hold_until(&mut self, id: &Id, instance: Instance, ttl: Duration, until: Instant) {
        let held = Held { instance, ttl, until };
        if let Some(before) = self.held.insert(id.clone(), held) {
            self.ends.remove(&(before.until, id.clone()));
        }
        self.ends.insert((until, id.clone()));
    }

    /// All of them, for a process that takes this one's place.
    pub(super) fn handed(&self, now: Instant) -> Vec<Handed> {
        let handed = |(id, held): (&Id, &Held)| {
            let Held { instance, ttl, until } = held;
            Handed {
                service: id.service.clone(),
                name: id.instance.clone(),
                instance: instance.clone(),
                ttl: *ttl,
                left: until.saturating_duration_since(now),
            }
        };
        self.held.iter().map(handed).collect()
    }

    /// Takes those of another process. Each has at least the shortest time that it may ask for: it could not renew itself
    /// while they were on their way.
    pub(super) fn take_over(&mut self, handed: Vec<Handed>, now: Instant) {
        for one in handed.into_iter().take(INSTANCES_MAX) {
            let id = Id {
                service: one.service,
                instance: one.name,
            };
            let left = one.left.clamp(TTL_MIN, TTL_MAX);
            self.hold_until(&id, one.instance, one.ttl, now + left);
        }
    }

    /// Takes an instance out; answers whether it was there.
    pub(super) fn remove(&mut self, id: &Id) -> bool {
        let Some(held) = self.held.remove(id) else {
            return false;
        };
        self.ends.remove(&(held.until, id.clone()));
        true
    }

    /// Takes those out whose time is over.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Id> {
        let mut over = Vec::new();
        while self.ends.first().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, id)) = self.ends.pop_first() {
                self.held.remove(&id);
                over.push(id);
            }
        }
        over
    }

    fn of_service<'a>(&'a self, service: &str) -> impl Iterator<Item = (&'a Id, &'a Held)> {
        let first = Id {
            service: service.to_owned(),
            instance: String::new(),
        };
        let service = service.to_owned();
        let from = self.held.range(first..);
        from.take_while(move |(id, _)| id.service == service)
    }

    /// The endpoints of a cluster that have registered themselves; their levels may have gaps.
    pub(super) fn endpoints(&self, key: &ClusterKey) -> Vec<Endpoint> {
        if self.held.is_empty() {
            return Vec::new();
        }
        self.of_service(key.host())
            .filter_map(|(_, held)| self.services.endpoint(key, &held.instance))
            .collect()
    }

    /// The clusters of a service.
    pub(super) fn clusters<'a>(&'a self, service: &str) -> impl Iterator<Item = &'a ClusterKey> {
        self.services.clusters(service)
    }

    /// How many are there.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// One that is there.
    pub(super) fn show(&self, id: &Id, now: Instant) -> Option<Shown> {
        self.held.get(id).map(|held| self.shown(id, held, now))
    }

    /// Those of a service, or of all.
    pub(super) fn list(&self, service: Option<&str>, now: Instant) -> Vec<Shown> {
        match service {
            Some(service) => self
                .of_service(service)
                .map(|(id, held)| self.shown(id, held, now))
                .collect(),
            None => self
                .held
                .iter()
                .map(|(id, held)| self.shown(id, held, now))
                .collect(),
        }
    }

    fn shown(&self, id: &Id, held: &Held, now: Instant) -> Shown {
        let Instance {
            address,
            ports,
            labels,
            locality,
            weight,
        } = held.instance.clone();
        let clusters = self.services.clusters(&id.service);
        Shown {
            service: id.service.clone(),
            instance: id.instance.clone(),
            address,
            ports,
            labels,
            locality,
            weight: weight.max(1),
            ttl_seconds: held.ttl.as_secs_f64(),
            expires_in_seconds: held.until.saturating_duration_since(now).as_secs_f64(),
            clusters: clusters
                .filter(|key| self.services.endpoint(key, &held.instance).is_some())
                .map(ToString::to_string)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_config::{Options, Source};

    const TEXT: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [a.example], \
                        ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC}\n";

    fn registration() -> Registration {
        let source = Source {
            name: "a.yaml".to_owned(),
            text: TEXT.into(),
        };
        let mut registration = Registration::default();
        registration.set_services(isthmus_config::compile(&[source], &Options::default()).services);
        registration
    }

    fn id(instance: &str) -> Id {
        Id {
            service: "a.example".to_owned(),
            instance: instance.to_owned(),
        }
    }

    fn put(text: &str) -> Put {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn an_instance_that_is_not_put_again_goes_when_its_time_is_over() {
        let (mut all, begin) = (registration(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let two = r#"{"address": "10.0.0.1", "ttl": "2s"}"#;
        for name in ["stays", "goes"] {
            assert_eq!(all.put(&id(name), put(two), begin), Ok(true));
        }
        assert_eq!(
            all.put(&id("stays"), put(two), at(1)),
            Ok(false),
            "the same once more"
        );
        assert!(all.expire(at(1)).is_empty());
        assert_eq!(all.expire(at(2)), [id("goes")]);
        assert_eq!(all.renew(&id("stays"), at(2)), Ok(()));
        assert!(all.expire(at(3)).is_empty());
        assert!(matches!(all.renew(&id("goes"), at(3)), Err(Refusal::Unknown(_))));
        assert_eq!(all.list(Some("a.example"), at(3)).len(), 1);
        assert!(all.remove(&id("stays")) && !all.remove(&id("stays")));
        assert_eq!((all.len(), all.ends.len()), (0, 0));
    }

    #[test]
    fn instances_go_on_in_another_process_for_the_time_that_is_left() {
        let (mut all, begin) = (registration(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let text = r#"{"address": "10.0.0.1", "labels": {"app": "a"}, "ports": {"http": 1}, "ttl": "9s"}"#;
        assert_eq!(all.put(&id("one"), put(text), begin), Ok(true));
        let mut next = registration();
        next.take_over(all.handed(at(4)), at(4));
        assert_eq!(
            next.put(&id("one"), put(text), at(4)),
            Ok(false),
            "it is the same"
        );
        assert_eq!(next.expire(at(13)), [id("one")]);
        let mut late = registration();
        late.take_over(all.handed(at(9)), at(9));
        assert!(late.expire(at(9)).is_empty(), "it can still renew itself");
        assert_eq!(late.expire(at(10)), [id("one")]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let (mut all, now) = (registration(), Instant::now());
        for bad in [
            r#"{"address": "10.0.0.1", "ttl": "1ms"}"#,
            r#"{"address": "10.0.0.1", "ports": {"grpc": 1}}"#,
            r#"{"address": "10.0.0.1", "ports": {"http": 0}}"#,
            r#"{"address": "0.0.0.0"}"#,
        ] {
            assert!(
                matches!(all.put(&id("i"), put(bad), now), Err(Refusal::Bad(_))),
                "{bad}"
            );
        }
        for bad in [r#"{"address": "here"}"#, r#"{"adress": "10.0.0.1"}"#, "{}"] {
            assert!(serde_json::from_str::<Put>(bad).is_err(), "{bad}");
        }
        let other = Id {
            service: "b.example".to_owned(),
            ..id("i")
        };
        let good = put(r#"{"address": "10.0.0.1"}"#);
        assert!(matches!(all.put(&other, good, now), Err(Refusal::Unknown(_))));
        assert_eq!(all.len(), 0);
    }
}
