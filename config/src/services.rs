//! Services, as instances that register themselves see them: which clusters an instance belongs to, and where in them.
//!
//! An instance says what a WorkloadEntry says. The compiler leaves behind what turns that into endpoints of clusters,
//! so that instances come and go without anything being compiled again.

use isthmus_core::cluster::locality::{Locality, Nearness};
use isthmus_core::endpoint::Endpoint;
use isthmus_core::name::ClusterKey;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Labels of a workload.
pub type Labels = BTreeMap<String, String>;

/// An instance of a service, by the fields of a WorkloadEntry.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Instance {
    /// Its address.
    pub address: IpAddr,
    /// Ports by the names of the service's ports; one that is not there is the port's `targetPort`.
    pub ports: BTreeMap<String, u16>,
    /// Its labels, by which subsets select it.
    pub labels: Labels,
    /// `region/zone/subzone`; what is empty follows from the labels.
    pub locality: String,
    /// Its share of the load; 0 is 1.
    pub weight: u32,
}

/// All services, by their whole names in lower case.
#[derive(Debug, Default)]
pub struct Services {
    by_host: HashMap<Box<str>, Service>,
}

/// What a service is made of.
#[derive(Debug, Default)]
struct Service {
    ports: Vec<Port>,
    clusters: Vec<Member>,
}

#[derive(Debug)]
struct Port {
    name: Box<str>,
    target: u16,
}

/// One cluster of a service.
#[derive(Debug)]
struct Member {
    key: ClusterKey,
    /// Position of its port.
    port: usize,
    /// The labels of its subset.
    subset: Labels,
    level: Level,
}

/// How near endpoints of a cluster are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Level(Option<Arc<Placing>>);

#[derive(Debug)]
struct Placing {
    own: Locality,
    labels: Labels,
    failover: Vec<(String, String)>,
    priority: Vec<String>,
}

impl Level {
    /// By where the gateway is, and by its labels (Istio `failover`, `failoverPriority`).
    pub(crate) fn by_nearness(
        own: &Locality,
        labels: &Labels,
        failover: &[(String, String)],
        priority: &[String],
    ) -> Self {
        Self(Some(Arc::new(Placing {
            own: own.clone(),
            labels: labels.clone(),
            failover: failover.to_vec(),
            priority: priority.to_vec(),
        })))
    }

    /// Whether endpoints can be on different levels.
    pub(crate) fn differs(&self) -> bool {
        self.0.is_some()
    }

    /// The level of an endpoint that has these labels and is there; between levels there may be gaps.
    pub(crate) fn of(&self, labels: &Labels, locality: &str) -> u32 {
        self.0.as_ref().map_or(0, |placing| {
            let nearness = Nearness {
                own: &placing.own,
                labels: &placing.labels,
                failover: &placing.failover,
                priority: &placing.priority,
            };
            nearness.level(labels, locality)
        })
    }
}

impl Services {
    /// Adds a cluster of a host's port; the first of its name counts.
    pub(crate) fn add(&mut self, key: &ClusterKey, port: (&str, u16), subset: Option<&Labels>, level: Level) {
        let (name, target) = port;
        let service = self.by_host.entry(key.host().into()).or_default();
        let known = service.ports.iter().position(|port| *port.name == *name);
        let port = known.unwrap_or_else(|| {
            service.ports.push(Port {
                name: name.into(),
                target,
            });
            service.ports.len() - 1
        });
        service.clusters.push(Member {
            key: key.clone(),
            port,
            subset: subset.cloned().unwrap_or_default(),
            level,
        });
    }

    /// Whether there is such a service.
    pub fn has(&self, host: &str) -> bool {
        self.by_host.contains_key(host)
    }

    /// The first name of a port that the service does not have.
    pub fn unknown_port<'i>(&self, host: &str, instance: &'i Instance) -> Option<&'i str> {
        let service = self.by_host.get(host)?;
        let knows = |name: &str| service.ports.iter().any(|port| *port.name == *name);
        instance
            .ports
            .keys()
            .map(String::as_str)
            .find(|name| !knows(name))
    }

    /// The clusters of a service.
    pub fn clusters(&self, host: &str) -> impl Iterator<Item = &ClusterKey> {
        let service = self.by_host.get(host);
        service
            .into_iter()
            .flat_map(|service| service.clusters.iter().map(|member| &member.key))
    }

    /// The endpoint that an instance of a service is in one of its clusters; None when the cluster is none of the
    /// service's, or its subset does not select the instance. Levels may have gaps.
    pub fn endpoint(&self, key: &ClusterKey, instance: &Instance) -> Option<Endpoint> {
        let service = self.by_host.get(key.host())?;
        let member = service.clusters.iter().find(|member| member.key == *key)?;
        if !crate::index::selects(&member.subset, &instance.labels) {
            return None;
        }
        let port = service.ports.get(member.port)?;
        let number = instance.ports.get(&*port.name).copied().unwrap_or(port.target);
        let locality = crate::registry::locality(&instance.locality, &instance.labels);
        Some(Endpoint {
            weight: instance.weight.max(1),
            level: member.level.of(&instance.labels, &locality),
            locality,
            ..Endpoint::new(SocketAddr::new(instance.address, number))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Source, compile};

    const TEXT: &str = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop}
spec:
  hosts: [Shop.internal]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8000}, {number: 81, name: admin, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.0.0.1, locality: r2}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop}
spec:
  host: shop.internal
  trafficPolicy: {outlierDetection: {consecutive5xxErrors: 5}}
  subsets: [{name: v1, labels: {version: v1}}]
";

    #[test]
    fn an_instance_is_an_endpoint_of_each_cluster_that_selects_it() {
        let source = Source {
            name: "a.yaml".to_owned(),
            text: TEXT.into(),
        };
        let options = Options {
            locality: Locality::parse("r1/z1"),
            ..Options::default()
        };
        let services = compile(&[source], &options).services;
        assert!(services.has("shop.internal") && !services.has("other.internal"));
        let mut instance = Instance {
            address: [10, 0, 0, 9].into(),
            ports: BTreeMap::from([("admin".to_owned(), 9000)]),
            labels: Labels::new(),
            locality: "r1/z2".to_owned(),
            weight: 0,
        };
        let shown = |instance: &Instance| -> Vec<String> {
            let mut all: Vec<String> = services
                .clusters("shop.internal")
                .filter_map(|key| {
                    let endpoint = services.endpoint(key, instance)?;
                    Some(format!("{key} {endpoint} level {}", endpoint.level))
                })
                .collect();
            all.sort();
            all
        };
        let both = [
            "outbound|80||shop.internal 10.0.0.9:8000 level 2",
            "outbound|81||shop.internal 10.0.0.9:9000 level 2",
        ];
        assert_eq!(shown(&instance), both);
        instance.labels.insert("version".to_owned(), "v1".to_owned());
        assert_eq!(shown(&instance).len(), 4);
        assert_eq!(services.unknown_port("shop.internal", &instance), None);
        instance.ports.insert("htpp".to_owned(), 1);
        assert_eq!(services.unknown_port("shop.internal", &instance), Some("htpp"));
    }
}
