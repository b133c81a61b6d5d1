//! Other endpoints for one cluster, between two versions of the configuration.

use super::{ClusterHandle, Clusters, Lease};
use crate::io::clock;
use crate::mailbox::EndpointUpdate;
use isthmus_core::endpoint::{Targets, is_socket};
use isthmus_core::random::Random;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

impl Clusters {
    /// Takes other endpoints of one cluster over. Those that stay keep their connections, limits and ejections; those
    /// that go get nothing new, and what is under way on them ends by itself. Answers whether any of them are or were
    /// checked.
    pub fn update(&self, update: &EndpointUpdate, random: &RefCell<Random>) -> bool {
        let Some(handle) = self.get(&update.key) else {
            return false;
        };
        let was_checked = handle.cluster.borrow().spec().is_checked();
        handle.update(update, random);
        was_checked || update.spec.is_checked()
    }
}

impl ClusterHandle {
    /// The path of the unix socket that is known by an address.
    pub fn socket_of(&self, address: &SocketAddr) -> Option<Arc<str>> {
        if !is_socket(address) {
            return None;
        }
        let cluster = self.cluster.borrow();
        let mut all = cluster.spec().endpoints.endpoints.iter();
        let found = all.find(|endpoint| endpoint.address == *address)?;
        found.socket().cloned()
    }

    fn update(self: &Rc<Self>, update: &EndpointUpdate, random: &RefCell<Random>) {
        let orphans = {
            let mut cluster = self.cluster.borrow_mut();
            cluster.share_counts(Arc::clone(&update.shared));
            cluster.reconcile(Arc::clone(&update.spec), clock::now(), &mut random.borrow_mut())
        };
        self.close(orphans);
        self.retire_unshared();
        self.stir();
    }
}

impl Lease {
    /// How near the endpoint is: 0 for the nearest.
    pub fn level(&self) -> u32 {
        self.handle.cluster.borrow().level(self.endpoint)
    }

    /// Where new connections to the endpoint go, the first first; None for the one address that it has.
    pub fn targets(&self) -> Option<Targets> {
        self.handle.cluster.borrow().targets(self.endpoint).cloned()
    }
}
