//! Gateway as written: which ports are opened, and for which hosts.

use crate::yaml::Node;
use std::collections::BTreeMap;

/// `Gateway.spec`.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) servers: Vec<Server>,
}

/// `servers[]`.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) port: i128,
    pub(crate) port_name: String,
    pub(crate) protocol: String,
    pub(crate) has_target_port: bool,
    pub(crate) bind: String,
    pub(crate) hosts: Vec<String>,
    pub(crate) tls: Option<ServerTls>,
}

/// `servers[].tls`, as far as it is executed.
#[derive(Debug)]
pub(crate) struct ServerTls {
    pub(crate) https_redirect: bool,
    pub(crate) mode: Option<String>,
}

impl Gateway {
    pub(crate) fn read(spec: &Node) -> Self {
        let servers = spec.list("servers").iter().map(Server::read).collect();
        Self {
            selector: spec.text_map("selector"),
            servers,
        }
    }
}

impl Server {
    fn read(node: &Node) -> Self {
        let port = node.get("port").unwrap_or(&Node::Null);
        Self {
            port: port.int("number").unwrap_or(0),
            port_name: port.text("name").unwrap_or("").to_owned(),
            protocol: port.text("protocol").unwrap_or("").to_owned(),
            has_target_port: port.int("targetPort").is_some_and(|number| number != 0),
            bind: node.text("bind").unwrap_or("").to_owned(),
            hosts: node.texts("hosts"),
            tls: node.get("tls").map(|tls| ServerTls {
                https_redirect: tls.flag("httpsRedirect"),
                mode: tls.text("mode").map(str::to_owned),
            }),
        }
    }
}
