//! What connections of a cluster are secured with, and the names that they ask their upstreams for.

use crate::mailbox::ClientConfigs;
use isthmus_core::cluster::pool::Group;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

/// What a cluster's connections are secured with.
pub(super) struct Keys {
    /// The name to ask for; None for the host of each request.
    pub(super) sni: Option<Rc<str>>,
    /// None when the keys could not be loaded.
    pub(super) config: Option<Arc<ClientConfigs>>,
}

/// The name that TLS is asked for.
pub enum TlsName<'h> {
    /// The rule says it.
    Fixed(Rc<str>),
    /// The request's host.
    Host(&'h str),
}

impl TlsName<'_> {
    /// The connections that have asked for it.
    pub fn group(&self) -> Group {
        match self {
            Self::Fixed(_) => Group::ALL,
            Self::Host(name) => Group::of_name(name),
        }
    }
}

impl Deref for TlsName<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Fixed(name) => name,
            Self::Host(name) => name,
        }
    }
}

/// Whether a connection that asked for one name can carry a request that asks for another.
pub(super) fn has_name(asked: Option<&str>, name: Option<&str>) -> bool {
    match (asked, name) {
        (Some(asked), Some(name)) => asked.eq_ignore_ascii_case(name),
        (None, None) => true,
        _ => false,
    }
}
