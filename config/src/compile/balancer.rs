//! How the endpoints of a cluster are chosen: `loadBalancer` of a DestinationRule, and where endpoints are beside this
//! gateway.

use super::Context;
use crate::Defaults;
use crate::resource::destination_rule::Blocks;
use crate::resource::load_balancer::{ConsistentHash, HttpCookie, LoadBalancer, LocalitySetting};
use crate::services::Level;
use isthmus_core::cluster::balancer::{BalancerKind, BalancerSpec};
use isthmus_core::cluster::hash::{
    HashCookie, HashKey, Hashing, MAGLEV_SIZE, RING_SIZE, RING_SIZE_MAX, TableKind,
};
use isthmus_core::cluster::locality::{Spread, ZONE_AWARE_ENDPOINTS};
use isthmus_core::cluster::warmup::{MINIMUM_PERCENT, Warmup};
use isthmus_core::header::FieldName;

/// Compiles how a cluster with these blocks chooses among endpoints, and how near each of them is. `own` is what the
/// rule's annotation asks for. `fails_over` says whether anything finds out that an endpoint is not available: without
/// it, load would stay where nobody answers.
pub(super) fn compile(
    blocks: &Blocks,
    own: Option<BalancerKind>,
    fails_over: bool,
    context: &Context<'_>,
) -> (BalancerSpec, Level) {
    let options = context.options;
    let (spread, level) = place(blocks.load_balancer.as_deref(), fails_over, context);
    let none = LoadBalancer::default();
    let written = blocks.load_balancer.as_deref().unwrap_or(&none);
    let spec = BalancerSpec {
        kind: match &written.consistent_hash {
            // What has no key goes anywhere.
            Some(_) => BalancerKind::Random,
            None => own.unwrap_or_else(|| kind(written.simple.as_deref(), options.defaults)),
        },
        hashing: written.consistent_hash.as_ref().and_then(hashing),
        warmup: written.warmup.map(|warmup| {
            let percent = warmup.minimum_percent.unwrap_or(MINIMUM_PERCENT);
            Warmup::new(warmup.duration, percent, warmup.aggression.unwrap_or(1.0))
        }),
        spread,
        panic_percent: blocks.min_health_percent.unwrap_or(0),
        ..BalancerSpec::default()
    };
    (spec, level)
}

/// How load is divided among localities, and the level of each endpoint.
fn place(written: Option<&LoadBalancer>, fails_over: bool, context: &Context<'_>) -> (Spread, Level) {
    let options = context.options;
    let levels = |failover: &[(String, String)], priority: &[String]| {
        Level::by_nearness(&options.locality, &options.labels, failover, priority)
    };
    if let Some(setting) = written.and_then(|written| written.zone_aware.as_ref())
        && setting.enabled != Some(false)
    {
        let spread = match options.locality.is_unknown() {
            true => Spread::Even,
            false => Spread::ZoneAware {
                own: options.locality.clone(),
                endpoints_min: setting.cluster_size_min.unwrap_or(ZONE_AWARE_ENDPOINTS),
            },
        };
        let asked = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
        return match asked && fails_over {
            true => (spread, levels(&setting.failover, &setting.failover_priority)),
            false => (spread, Level::default()),
        };
    }
    // A rule's setting replaces the mesh's as a whole.
    let setting = written.and_then(|written| written.locality.as_ref());
    let setting = setting.unwrap_or(&options.mesh.locality);
    if !setting.is_on() {
        return (Spread::Even, Level::default());
    }
    let LocalitySetting {
        distribute,
        failover,
        failover_priority,
        ..
    } = setting;
    if !distribute.is_empty() {
        let rules = distribute.iter().map(|(from, to)| (from.as_str(), &to[..]));
        return (Spread::distribute(&options.locality, rules), Level::default());
    }
    match fails_over {
        true => (Spread::Even, levels(failover, failover_priority)),
        false => (Spread::Even, Level::default()),
    }
}

/// `consistentHash`; None when it names nothing to hash.
fn hashing(written: &ConsistentHash) -> Option<Hashing> {
    let key = if let Some(name) = &written.header {
        match name.to_ascii_lowercase().as_str() {
            ":authority" | "host" => HashKey::Authority,
            ":path" => HashKey::Path,
            name => HashKey::Header(FieldName::parse(name)?),
        }
    } else if let Some(cookie) = &written.cookie {
        let HttpCookie {
            name,
            path,
            ttl,
            attributes,
        } = cookie;
        HashKey::Cookie(HashCookie::new(name, *ttl, path, attributes))
    } else if written.source_ip {
        HashKey::SourceIp
    } else {
        HashKey::Query(written.query.as_deref()?.into())
    };
    let size = |written: i128, default: u32| match u32::try_from(written) {
        Ok(0) => default,
        Ok(size) => size,
        Err(_) => u32::MAX,
    };
    let table = match written.maglev {
        Some(slots) => TableKind::Maglev(size(slots, MAGLEV_SIZE)),
        None => TableKind::Ring(size(written.ring_size, RING_SIZE).min(RING_SIZE_MAX)),
    };
    Some(Hashing { key, table })
}

/// `loadBalancer.simple`; LEAST_CONN is the old name of LEAST_REQUEST.
fn kind(simple: Option<&str>, defaults: Defaults) -> BalancerKind {
    match (simple, defaults) {
        (Some("ROUND_ROBIN"), _) => BalancerKind::RoundRobin,
        (Some("RANDOM"), _) => BalancerKind::Random,
        (Some("LEAST_REQUEST" | "LEAST_CONN"), _) => BalancerKind::LeastRequest,
        (_, Defaults::Seed) => BalancerKind::RoundRobin,
        (_, Defaults::Current) => BalancerKind::LeastRequest,
    }
}
