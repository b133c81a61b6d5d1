//! Sources: which workload a client is, so that rules can be about it (Istio `sourceLabels`, `sourceNamespace`,
//! `sourceSubnet`).
//!
//! A client is known by the address of its socket, which the registry may list as that of a workload, or by the identity
//! (a SPIFFE URI) in a certificate that was verified; nothing that it says in a header counts. Istio compares the labels
//! of the proxy itself, because there every client has one; here that holds for clients that nobody knows.

use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

/// What metrics call a workload (Istio's `source_*` labels). `unknown` stands for what is not known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceName {
    /// The resource that describes it.
    pub workload: Box<str>,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its label `app`, or `app.kubernetes.io/name`.
    pub app: Box<str>,
    /// Its label `version`, or `app.kubernetes.io/version`.
    pub version: Box<str>,
}

impl SourceName {
    const UNKNOWN: &str = "unknown";

    /// That of a client that nobody knows.
    pub fn unknown() -> Self {
        Self::of(&Workload::default())
    }

    /// That of a workload.
    pub fn of(workload: &Workload) -> Self {
        let or_unknown = |text: &str| if text.is_empty() { Self::UNKNOWN } else { text }.into();
        let label = |keys: [&str; 2]| {
            let found = keys.iter().find_map(|key| workload.labels.get(*key));
            or_unknown(found.map_or("", |value| value))
        };
        Self {
            workload: or_unknown(&workload.name),
            namespace: or_unknown(&workload.namespace),
            app: label(["app", "app.kubernetes.io/name"]),
            version: label(["version", "app.kubernetes.io/version"]),
        }
    }
}

/// One workload, or what several that cannot be told apart have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Workload {
    /// Its namespace; empty when it is not known.
    pub namespace: Box<str>,
    /// The resource that describes it; empty when there are several.
    pub name: Box<str>,
    /// Its labels.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// The account that its certificate names (`serviceAccount`); empty when none is written.
    pub service_account: Box<str>,
}

impl Workload {
    /// Leaves what another one has, too.
    fn intersect(&mut self, other: &Self) {
        for (own, other) in [
            (&mut self.namespace, &other.namespace),
            (&mut self.name, &other.name),
            (&mut self.service_account, &other.service_account),
        ] {
            if own != other {
                *own = "".into();
            }
        }
        self.labels
            .retain(|key, value| other.labels.get(key) == Some(value));
    }
}

/// All workloads that clients can be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources {
    by_address: HashMap<IpAddr, Known>,
    /// By namespace, then by account.
    by_identity: HashMap<Box<str>, HashMap<Box<str>, Known>>,
    /// Trust domains whose identities mean workloads of the registry; empty for all.
    trust_domains: Box<[Box<str>]>,
}

/// A workload with its name, made once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    workload: Workload,
    name: SourceName,
}

impl Known {
    fn new(workload: &Workload) -> Self {
        Self {
            workload: workload.clone(),
            name: SourceName::of(workload),
        }
    }

    fn intersect(&mut self, other: &Workload) {
        self.workload.intersect(other);
        self.name = SourceName::of(&self.workload);
    }

    fn source(&self) -> Source<'_> {
        Source {
            namespace: &self.workload.namespace,
            workload: Some(&self.workload),
            name: Some(&self.name),
        }
    }
}

/// A client that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source<'a> {
    /// Its namespace; empty when it is not known.
    pub namespace: &'a str,
    /// What the registry says of it; None of an identity that the registry does not have.
    pub workload: Option<&'a Workload>,
    /// What metrics call it, likewise.
    pub name: Option<&'a SourceName>,
}

/// Who asks, as far as the connection says. A scheme alone is a caller of whom nothing is known, whom no condition about
/// sources takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller<'a> {
    /// The scheme of the listener.
    pub scheme: &'a str,
    /// The address of the client's socket.
    pub address: Option<IpAddr>,
    /// Which workload it is; None when nobody knows.
    pub source: Option<Source<'a>>,
}

impl<'a> From<&'a str> for Caller<'a> {
    fn from(scheme: &'a str) -> Self {
        Self {
            scheme,
            address: None,
            source: None,
        }
    }
}

impl Sources {
    /// Adds a workload with its addresses. Several with one address, or one account, count as what they have in common.
    pub fn add(&mut self, workload: &Workload, addresses: impl Iterator<Item = IpAddr>) {
        for address in addresses {
            self.by_address
                .entry(address.to_canonical())
                .and_modify(|known| known.intersect(workload))
                .or_insert_with(|| Known::new(workload));
        }
        if !workload.service_account.is_empty() {
            self.by_identity
                .entry(workload.namespace.clone())
                .or_default()
                .entry(workload.service_account.clone())
                .and_modify(|known| known.intersect(workload))
                .or_insert_with(|| Known::new(workload));
        }
    }

    /// Takes identities of these trust domains only for those of workloads; without any, all that a client's certificate
    /// was verified with (Istio MeshConfig `trustDomain`, `trustDomainAliases`).
    pub fn trust(&mut self, domains: &[String]) {
        self.trust_domains = domains.iter().map(|domain| domain.as_str().into()).collect();
    }

    /// Whether no client is known by its address or account.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty() && self.by_identity.is_empty()
    }

    /// All workloads that are known, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        let accounts = self.by_identity.values().flat_map(HashMap::values);
        let all = self.by_address.values().chain(accounts);
        all.map(|known| &known.workload)
    }

    /// Which workload a client is. A verified identity counts for more than the address, which then only says which of
    /// its workloads it is. One of a trust domain that is not the mesh's is of no namespace of the mesh.
    pub fn find<'a>(&'a self, address: IpAddr, identity: Option<Identity<'a>>) -> Option<Source<'a>> {
        let here = self.by_address.get(&address.to_canonical());
        let Some(identity) = identity else {
            return here.map(Known::source);
        };
        let trusted = &self.trust_domains;
        if !trusted.is_empty() && !trusted.iter().any(|domain| **domain == *identity.trust_domain) {
            return Some(Source {
                namespace: "",
                workload: None,
                name: None,
            });
        }
        let is_it = |known: &&Known| {
            let workload = &known.workload;
            *workload.namespace == *identity.namespace
                && *workload.service_account == *identity.service_account
        };
        let of_account = || {
            let accounts = self.by_identity.get(identity.namespace)?;
            accounts.get(identity.service_account)
        };
        let known = here.filter(is_it).or_else(of_account);
        Some(known.map_or(
            Source {
                namespace: identity.namespace,
                workload: None,
                name: None,
            },
            Known::source,
        ))
    }
}

/// Who a certificate says that a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Where the identity comes from.
    pub trust_domain: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its account.
    pub service_account: &'a str,
}

impl<'a> Identity<'a> {
    /// Reads a SPIFFE URI as Istio writes them, `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`; None for any other.
    pub fn parse(uri: &'a str) -> Option<Self> {
        let path = uri.strip_prefix("spiffe://")?;
        let mut parts = path.split('/');
        let mut next = || parts.next().filter(|part| !part.is_empty());
        let trust_domain = next()?;
        let (ns, namespace, sa, service_account) = (next()?, next()?, next()?, next()?);
        (ns == "ns" && sa == "sa" && parts.next().is_none()).then_some(Self {
            trust_domain,
            namespace,
            service_account,
        })
    }
}

/// What a match asks of the client: every part must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceMatch {
    /// Labels that it must have.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// The namespace that it must be in; empty for any.
    pub namespace: Box<str>,
    /// Where its address must be.
    pub subnet: Option<IpNet>,
    /// Whether labels and namespace are the gateway's own, which stand for those of a client that nobody knows.
    pub is_own: bool,
}

impl SourceMatch {
    /// Whether a client meets every part.
    pub fn matches(&self, caller: &Caller<'_>) -> bool {
        let Some(address) = caller.address else {
            return false;
        };
        if let Some(subnet) = &self.subnet
            && !subnet.contains(&address.to_canonical())
        {
            return false;
        }
        let Some(source) = &caller.source else {
            return self.is_own;
        };
        let namespace = self.namespace.is_empty() || *self.namespace == *source.namespace;
        let labels = self.labels.iter().all(|(key, value)| {
            let workload = source.workload.as_ref();
            workload.and_then(|workload| workload.labels.get(key)) == Some(value)
        });
        namespace && labels
    }
}

/// Labels as people read them: `app=reviews,version=v2`.
struct Labels<'a>(&'a BTreeMap<Box<str>, Box<str>>);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (key, value)) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

impl fmt::Display for SourceMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("source")?;
        if !self.labels.is_empty() {
            write!(f, " labels {}", Labels(&self.labels))?;
        }
        if !self.namespace.is_empty() {
            write!(f, " namespace {}", self.namespace)?;
        }
        if let Some(subnet) = &self.subnet {
            write!(f, " subnet {subnet}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Caller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address}")?,
            None => f.write_str("somebody")?,
        }
        let Some(source) = &self.source else {
            return f.write_str(", whom nobody knows");
        };
        write!(f, ", namespace {}", source.namespace)?;
        match source.workload {
            Some(workload) => write!(f, ", labels {}", Labels(&workload.labels)),
            None => f.write_str(", no workload of the registry"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(namespace: &str, account: &str, labels: &[(&str, &str)]) -> Workload {
        Workload {
            namespace: namespace.into(),
            name: "one".into(),
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect(),
            service_account: account.into(),
        }
    }

    fn wanted(labels: &[(&str, &str)], namespace: &str, is_own: bool) -> SourceMatch {
        SourceMatch {
            labels: workload("", "", labels).labels,
            namespace: namespace.into(),
            subnet: None,
            is_own,
        }
    }

    fn caller<'a>(sources: &'a Sources, address: &str, identity: Option<&'a str>) -> Caller<'a> {
        let address = address.parse().unwrap();
        Caller {
            scheme: "http",
            address: Some(address),
            source: sources.find(address, identity.and_then(Identity::parse)),
        }
    }

    #[test]
    fn identities_are_read_as_istio_writes_them() {
        let found = Identity::parse("spiffe://cluster.local/ns/shop/sa/cart").unwrap();
        assert_eq!(found.trust_domain, "cluster.local");
        assert_eq!((found.namespace, found.service_account), ("shop", "cart"));
        for other in [
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns//sa/cart",
            "spiffe://cluster.local/ns/shop/sa/cart/x",
            "spiffe://cluster.local/sa/cart/ns/shop",
            "https://cluster.local/ns/shop/sa/cart",
            "spiffe:///ns/shop/sa/cart",
            "spiffe://",
        ] {
            assert_eq!(Identity::parse(other), None, "{other}");
        }
    }

    #[test]
    fn addresses_and_verified_identities_say_who_a_client_is() {
        let mut sources = Sources::default();
        let v2 = workload("shop", "reviews", &[("app", "reviews"), ("version", "v2")]);
        sources.add(&v2, ["10.0.0.2".parse().unwrap()].into_iter());
        let v1 = workload("shop", "reviews", &[("app", "reviews"), ("version", "v1")]);
        sources.add(&v1, ["10.0.0.1".parse().unwrap()].into_iter());
        let both = wanted(&[("app", "reviews"), ("version", "v2")], "", false);
        let app = wanted(&[("app", "reviews")], "shop", false);
        let account = Some("spiffe://x/ns/shop/sa/reviews");
        let stranger = Some("spiffe://x/ns/other/sa/reviews");
        for (address, identity, is_both, is_app) in [
            ("10.0.0.2", None, true, true),
            ("::ffff:10.0.0.2", None, true, true),
            ("10.0.0.1", None, false, true),
            ("10.0.0.3", None, false, false),
            // The account alone does not say which of its workloads it is.
            ("10.0.0.3", account, false, true),
            ("10.0.0.2", account, true, true),
            // Who borrows an address is who the certificate says.
            ("10.0.0.2", stranger, false, false),
        ] {
            let caller = caller(&sources, address, identity);
            let found = (both.matches(&caller), app.matches(&caller));
            assert_eq!(found, (is_both, is_app), "{address} {identity:?}");
        }
        let other = wanted(&[], "other", false);
        assert!(other.matches(&caller(&sources, "10.0.0.2", stranger)));
    }

    #[test]
    fn identities_of_other_trust_domains_are_of_no_workload_of_the_mesh() {
        let mut sources = Sources::default();
        let cart = workload("shop", "cart", &[("app", "cart")]);
        sources.add(&cart, ["10.0.0.1".parse().unwrap()].into_iter());
        sources.trust(&["td1".to_owned(), "td2".to_owned()]);
        let (labels, namespace) = (wanted(&[("app", "cart")], "", true), wanted(&[], "shop", true));
        for (domain, expected) in [("td1", true), ("td2", true), ("td3", false), ("TD1", false)] {
            let uri = format!("spiffe://{domain}/ns/shop/sa/cart");
            for address in ["10.0.0.1", "10.0.0.9"] {
                let caller = caller(&sources, address, Some(&uri));
                let found = (labels.matches(&caller), namespace.matches(&caller));
                assert_eq!(found, (expected, expected), "{uri} {address}");
            }
        }
    }

    #[test]
    fn of_workloads_that_share_an_address_what_they_have_in_common_counts() {
        let mut sources = Sources::default();
        for version in ["v1", "v2"] {
            let one = workload("shop", "", &[("app", "reviews"), ("version", version)]);
            sources.add(&one, ["10.0.0.1".parse().unwrap()].into_iter());
        }
        let caller = caller(&sources, "10.0.0.1", None);
        assert!(wanted(&[("app", "reviews")], "shop", false).matches(&caller));
        assert!(!wanted(&[("version", "v2")], "", false).matches(&caller));
        assert!(!wanted(&[("version", "v1")], "", false).matches(&caller));
    }

    #[test]
    fn the_gateways_own_labels_stand_for_those_of_clients_that_nobody_knows() {
        let mut sources = Sources::default();
        let known = workload("shop", "", &[("app", "cart")]);
        sources.add(&known, ["10.0.0.1".parse().unwrap()].into_iter());
        let own = wanted(&[("app", "door")], "", true);
        assert!(own.matches(&caller(&sources, "10.0.0.9", None)));
        assert!(!own.matches(&caller(&sources, "10.0.0.1", None)));
        assert!(!own.matches(&Caller::from("http")));
    }

    #[test]
    fn subnets_are_about_the_sockets_address() {
        let sources = Sources::default();
        let subnet = SourceMatch {
            subnet: Some("10.1.0.0/16".parse().unwrap()),
            ..wanted(&[], "", true)
        };
        for (address, expected) in [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("10.2.0.1", false)] {
            assert_eq!(
                subnet.matches(&caller(&sources, address, None)),
                expected,
                "{address}"
            );
        }
    }
}
