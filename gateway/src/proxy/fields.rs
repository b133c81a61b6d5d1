//! Changes the fields of requests and responses as routes say, with what the exchange knows for their substitutions.

use super::exchange::Exchange;
use crate::downstream::Downstream;
use crate::io::clock;
use isthmus_core::endpoint::is_socket;
use isthmus_core::header::HeaderOperations;
use isthmus_core::message::RequestHead;
use isthmus_core::substitution::Facts;
use std::net::SocketAddr;

/// What every substitution can name but method, path, authority and version, which the caller lends.
struct Known {
    client: SocketAddr,
    peer: SocketAddr,
    local: SocketAddr,
}

fn known(conn: &impl Downstream, x: &Exchange) -> Known {
    let peer = conn.peer();
    // A client that a proxy in front told of has an address and no port.
    let port = if x.client == peer.ip() { peer.port() } else { 0 };
    Known {
        client: SocketAddr::new(x.client, port),
        peer,
        local: conn.local_addr().unwrap_or(peer),
    }
}

/// Changes the request's fields: each step in turn.
pub(super) fn change_request(
    conn: &impl Downstream,
    x: &mut Exchange,
    scheme: &str,
    steps: &[HeaderOperations],
) {
    if steps.is_empty() {
        return;
    }
    let Known { client, peer, local } = known(conn, x);
    let duration = clock::now().saturating_duration_since(x.started);
    let wall = clock::wall();
    let cluster = x.outcome.cluster_key().clone();
    let RequestHead {
        method,
        path,
        authority,
        version,
        headers,
        ..
    } = &mut x.request;
    let facts = Facts {
        method,
        path,
        original_path: (!x.original_path.is_empty()).then_some(x.original_path.as_str()),
        authority,
        scheme,
        version: *version,
        request: None,
        status: None,
        flags: x.outcome.flags,
        detail: x.outcome.detail,
        client,
        peer,
        local,
        upstream: x.outcome.upstream_host.filter(|address| !is_socket(address)),
        upstream_local: x.outcome.upstream_local,
        cluster: cluster.as_ref().map_or("", |key| key.as_str()),
        route: &x.route_name,
        start: wall.checked_sub(duration).unwrap_or(wall),
        duration,
        bytes_received: conn.body_bytes(),
        server_name: conn.secured().and_then(|secured| secured.server_name.as_deref()),
        tls: conn.secured().map(|secured| &secured.facts),
    };
    for step in steps {
        step.apply(headers, &facts);
    }
}

/// Changes the response's fields: each step in turn.
pub(super) fn change_response(
    conn: &impl Downstream,
    x: &mut Exchange,
    scheme: &str,
    steps: &[HeaderOperations],
) {
    if steps.is_empty() {
        return;
    }
    let Known { client, peer, local } = known(conn, x);
    let duration = clock::now().saturating_duration_since(x.started);
    let wall = clock::wall();
    let facts = Facts {
        method: &x.request.method,
        path: &x.request.path,
        original_path: (!x.original_path.is_empty()).then_some(x.original_path.as_str()),
        authority: &x.request.authority,
        scheme,
        version: x.request.version,
        request: Some(&x.request.headers),
        status: Some(x.response.status),
        flags: x.outcome.flags,
        detail: x.outcome.detail,
        client,
        peer,
        local,
        upstream: x.outcome.upstream_host.filter(|address| !is_socket(address)),
        upstream_local: x.outcome.upstream_local,
        cluster: x.outcome.cluster_key().as_ref().map_or("", |key| key.as_str()),
        route: &x.route_name,
        start: wall.checked_sub(duration).unwrap_or(wall),
        duration,
        bytes_received: conn.body_bytes(),
        server_name: conn.secured().and_then(|secured| secured.server_name.as_deref()),
        tls: conn.secured().map(|secured| &secured.facts),
    };
    for step in steps {
        step.apply(&mut x.response.headers, &facts);
    }
}
