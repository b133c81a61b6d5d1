//! Discovery: which endpoints a cluster has whose resources name them instead of listing them.
//!
//! A [`Discovery`] is what the resources say; with the addresses that DNS knows at a moment it becomes an [`EndpointSet`].
//! It stays a part of that set, so that the next answer makes another set without the resources being looked at again.

use crate::cluster::health::HealthPolicy;
use crate::cluster::locality::close_ranks;
use crate::egress::Reach;
use crate::endpoint::{Endpoint, EndpointSet, Targets};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Most addresses that one connection is tried on.
const TARGETS_MAX: usize = 6;

/// How the endpoints of a cluster are found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Discovery {
    /// Those that are written with an address. Levels may have gaps.
    pub fixed: Vec<Endpoint>,
    /// Those that are written with a name.
    pub names: Vec<NamedEndpoint>,
    /// Each name is one endpoint, whose new connections go to the first of its addresses that can be reached (Istio
    /// DNS_ROUND_ROBIN, Envoy LOGICAL_DNS); otherwise each address is an endpoint (Istio DNS, Envoy STRICT_DNS).
    pub is_logical: bool,
    /// Where the addresses of names may be.
    pub reach: Reach,
}

/// An endpoint that is known by a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamedEndpoint {
    /// The name, in lower case.
    pub host: Box<str>,
    /// The port at each of its addresses.
    pub port: u16,
    /// The weight of each of its addresses, at least 1.
    pub weight: u32,
    /// `region/zone/subzone`, empty when unknown.
    pub locality: Box<str>,
    /// How near it is, as of [`Endpoint::level`]; levels may have gaps.
    pub level: u32,
    /// How each of its addresses is checked, unless its cluster says ([`Endpoint::health`]).
    pub health: Option<Arc<HealthPolicy>>,
}

impl Discovery {
    /// How the endpoints of a set are found: one that is known as a whole may get others beside those that it has.
    pub fn of(set: &EndpointSet) -> Arc<Self> {
        let fixed = || {
            Arc::new(Self {
                fixed: set.endpoints.clone(),
                ..Self::default()
            })
        };
        set.discovery.as_ref().map_or_else(fixed, Arc::clone)
    }

    /// The endpoints when the names have these addresses, each in the order of its answer, and `registered` have come by
    /// themselves, whose levels may have gaps. `before` is the cluster's present set: an endpoint that is a name stays the
    /// same one whatever its addresses are.
    pub fn endpoints<'a>(
        self: &Arc<Self>,
        addresses_of: impl Fn(&str) -> Vec<IpAddr> + 'a,
        registered: &[Endpoint],
        before: &EndpointSet,
    ) -> EndpointSet {
        let mut all = self.fixed.clone();
        for named in &self.names {
            let addresses = addresses_of(&named.host);
            if self.is_logical {
                all.extend(named.as_one(&addresses, before));
            } else {
                named.add_each(addresses, &mut all);
            }
        }
        all.extend_from_slice(registered);
        close_ranks(&mut all);
        EndpointSet {
            discovery: Some(Arc::clone(self)),
            ..EndpointSet::new(all)
        }
    }
}

impl NamedEndpoint {
    fn endpoint(&self, address: SocketAddr, targets: Option<Arc<[SocketAddr]>>) -> Endpoint {
        Endpoint {
            address,
            weight: self.weight,
            locality: self.locality.clone(),
            level: self.level,
            targets: targets.map(Targets::Addresses),
            health: self.health.clone(),
        }
    }

    fn as_one(&self, addresses: &[IpAddr], before: &EndpointSet) -> Option<Endpoint> {
        let targets: Arc<[SocketAddr]> = in_turn(addresses)
            .take(TARGETS_MAX)
            .map(|ip| SocketAddr::new(ip, self.port))
            .collect();
        let first = *targets.first()?;
        let known = before
            .endpoints
            .iter()
            .find(|endpoint| endpoint.targets.is_some() && endpoint.address.port() == self.port);
        let address = known.map_or(first, |known| known.address);
        Some(self.endpoint(address, Some(targets)))
    }

    /// Each address, in an order that does not depend on the answer's; beside it those of the other family, which are
    /// tried when it does not answer.
    fn add_each(&self, mut addresses: Vec<IpAddr>, into: &mut Vec<Endpoint>) {
        addresses.sort_unstable();
        addresses.dedup();
        let at = |ip: &IpAddr| SocketAddr::new(*ip, self.port);
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|ip| ip.is_ipv4());
        for (own, others) in [(&v4, &v6), (&v6, &v4)] {
            for (nth, ip) in own.iter().enumerate() {
                let targets = (!others.is_empty()).then(|| {
                    // Each has another of them first: together they are not to fall on one.
                    let others = others.iter().cycle().skip(nth % others.len()).take(others.len());
                    let all = std::iter::once(ip).chain(others).take(TARGETS_MAX);
                    all.map(at).collect()
                });
                into.push(self.endpoint(at(ip), targets));
            }
        }
    }
}

/// Addresses in the order in which they are tried: as answered, the families in turn, IPv6 first (RFC 8305, 4).
pub fn in_turn(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let mut v6 = addresses.iter().copied().filter(IpAddr::is_ipv6);
    let mut v4 = addresses.iter().copied().filter(IpAddr::is_ipv4);
    let mut is_v6_next = true;
    std::iter::from_fn(move || {
        let next = match is_v6_next {
            true => v6.next().or_else(|| v4.next()),
            false => v4.next().or_else(|| v6.next()),
        };
        is_v6_next = !is_v6_next;
        next
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn named(host: &str, port: u16, level: u32) -> NamedEndpoint {
        NamedEndpoint {
            host: host.into(),
            port,
            weight: 3,
            locality: "r/z".into(),
            level,
            health: None,
        }
    }

    #[test]
    fn each_address_of_a_name_is_an_endpoint_with_its_port_and_weight() {
        let found = Arc::new(Discovery {
            fixed: vec![Endpoint::new(([10, 0, 0, 9], 1).into())],
            names: vec![named("a", 80, 5), named("b", 81, 2), named("none", 82, 1)],
            is_logical: false,
            reach: Reach::Written,
        });
        let answers = |name: &str| match name {
            "a" => ips(&["10.0.0.2", "10.0.0.1", "10.0.0.2"]),
            "b" => ips(&["10.0.0.3"]),
            _ => Vec::new(),
        };
        let set = found.endpoints(answers, &[], &EndpointSet::default());
        let all: Vec<_> = set
            .endpoints
            .iter()
            .map(|endpoint| (endpoint.to_string(), endpoint.weight, endpoint.level))
            .collect();
        let expected = [
            ("10.0.0.9:1", 1, 0),
            ("10.0.0.1:80", 3, 2),
            ("10.0.0.2:80", 3, 2),
            ("10.0.0.3:81", 3, 1),
        ];
        assert_eq!(
            all,
            expected.map(|(text, weight, level)| (text.to_owned(), weight, level))
        );
        assert!(set.endpoints.iter().all(|endpoint| endpoint.targets.is_none()));
        let turned = |name: &str| {
            let mut answer = answers(name);
            answer.reverse();
            answer
        };
        assert_eq!(
            found.endpoints(turned, &[], &set),
            set,
            "the order of an answer is nothing new"
        );
    }

    #[test]
    fn endpoints_that_come_by_themselves_stand_beside_those_that_are_written() {
        let written = EndpointSet::new([Endpoint::new(([10, 0, 0, 1], 80).into())]);
        let found = Discovery::of(&written);
        let come = [Endpoint::new(([10, 0, 0, 2], 80).into())];
        let both = found.endpoints(|_| Vec::new(), &come, &written);
        assert_eq!(both.endpoints.len(), 2);
        let again = Discovery::of(&both).endpoints(|_| Vec::new(), &[], &both);
        assert_eq!(again.endpoints, written.endpoints);
    }

    #[test]
    fn an_address_has_those_of_the_other_family_beside_it() {
        let found = Arc::new(Discovery {
            names: vec![named("a", 80, 0)],
            ..Discovery::default()
        });
        let answers = |_: &str| ips(&["fd00::1", "10.0.0.1", "fd00::2"]);
        let set = found.endpoints(answers, &[], &EndpointSet::default());
        let targets: Vec<String> = set
            .endpoints
            .iter()
            .map(|endpoint| format!("{:?}", endpoint.targets.as_ref().unwrap().addresses()))
            .collect();
        assert_eq!(
            targets,
            [
                "[10.0.0.1:80, [fd00::1]:80, [fd00::2]:80]",
                "[[fd00::1]:80, 10.0.0.1:80]",
                "[[fd00::2]:80, 10.0.0.1:80]",
            ]
        );
    }

    #[test]
    fn a_logical_name_is_one_endpoint_whatever_its_addresses_are() {
        let found = Arc::new(Discovery {
            names: vec![named("a", 80, 0)],
            is_logical: true,
            ..Discovery::default()
        });
        let none = found.endpoints(|_| Vec::new(), &[], &EndpointSet::default());
        assert_eq!(none.endpoints, []);
        let first = found.endpoints(|_| ips(&["10.0.0.2", "10.0.0.1"]), &[], &none);
        let second = found.endpoints(|_| ips(&["10.0.0.7", "fd00::7"]), &[], &first);
        let [one] = &second.endpoints[..] else {
            panic!("{second:?}")
        };
        assert_eq!(one.to_string(), "10.0.0.2:80");
        let targets = one.targets.as_ref().unwrap().addresses();
        assert_eq!(format!("{targets:?}"), "[[fd00::7]:80, 10.0.0.7:80]");
    }
}
