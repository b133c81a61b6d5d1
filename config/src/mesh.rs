//! MeshConfig: what holds for a whole mesh, as far as it concerns a gateway (Istio `MeshConfig`).
//!
//! The file is MeshConfig itself, or the ConfigMap that Kubernetes keeps it in (`data.mesh`). What concerns sidecars and
//! control planes is passed over with a hint; what is one letter away from something known is told.

use crate::Source;
use crate::diagnostic::{Diagnostic, Severity};
use crate::report::{Origin, Report};
use crate::resource::destination_rule::keepalive;
pub use crate::resource::load_balancer::LocalitySetting;
use crate::resource::retries::Retries;
use crate::resource::{duration_of, schema};
use crate::yaml::{Node, Path};
use isthmus_core::attempt::RetryPolicy;
use isthmus_core::cluster::CONNECT_TIMEOUT;
use isthmus_core::cluster::TcpKeepalive;
use isthmus_core::limits::{PathNormalization, SettingValue, Settings};
use std::time::Duration;

/// What of MeshConfig the compiler needs; the rest goes into the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// How long a connect may take when no DestinationRule says (`connectTimeout`).
    pub connect_timeout: Duration,
    /// `tcpKeepalive` of upstream connections whose rule gives none.
    pub keepalive: Option<TcpKeepalive>,
    /// Whether upstreams are spoken to in HTTP/2 when no DestinationRule says (`h2UpgradePolicy`).
    pub h2_upgrade: bool,
    /// Retries of rules that have no word about them (`defaultHttpRetryPolicy`).
    pub retry: RetryPolicy,
    /// How load is balanced among localities when no DestinationRule says (`localityLbSetting`).
    pub locality: LocalitySetting,
    /// Namespace of mesh-wide defaults (`rootNamespace`).
    pub root_namespace: String,
    /// Trust domains of the mesh's identities (`trustDomain`, `trustDomainAliases`); empty for all.
    pub trust_domains: Vec<String>,
    /// `exportTo` of services that have none (`defaultServiceExportTo`).
    pub service_export_to: Vec<String>,
    /// The same of VirtualServices (`defaultVirtualServiceExportTo`).
    pub virtual_service_export_to: Vec<String>,
    /// The same of DestinationRules (`defaultDestinationRuleExportTo`).
    pub destination_rule_export_to: Vec<String>,
    /// How the process normalizes paths before rules see them (`pathNormalization`), for what is said about rules.
    pub path_normalization: PathNormalization,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            connect_timeout: CONNECT_TIMEOUT,
            keepalive: None,
            h2_upgrade: false,
            retry: RetryPolicy::default(),
            locality: LocalitySetting::default(),
            root_namespace: "istio-system".to_owned(),
            trust_domains: Vec::new(),
            service_export_to: Vec::new(),
            virtual_service_export_to: Vec::new(),
            destination_rule_export_to: Vec::new(),
            path_normalization: PathNormalization::default(),
        }
    }
}

/// A file of MeshConfig that was read.
#[derive(Debug)]
pub struct Loaded {
    /// For the compiler.
    pub mesh: MeshConfig,
    /// The settings with what MeshConfig says about them.
    pub settings: Settings,
    /// What there is to say about the file; the file is not to be used when there is an error among it.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads MeshConfig. `file` is its name in diagnostics.
pub fn load(text: &str, file: &str) -> Loaded {
    if let Some(inner) = inside_config_map(text) {
        return load(&inner, &format!("{file} (data.mesh)"));
    }
    let sources = [Source {
        name: file.to_owned(),
        text: text.into(),
    }];
    let mut report = Report::new(&sources, false);
    let mut loaded = Loaded {
        mesh: MeshConfig::default(),
        settings: Settings::default(),
        diagnostics: Vec::new(),
    };
    for document in 0..report.len() {
        let origin = Origin {
            document,
            item: None,
            resource: "MeshConfig".into(),
        };
        let mut node = report.take(document);
        schema::name_numbers("MeshConfig", &mut node);
        schema::check("MeshConfig", &node, &Path::Root, &origin, &mut report);
        read(&node, &mut loaded);
    }
    loaded.diagnostics = report.finish();
    for found in &mut loaded.diagnostics {
        if found.code == "unknown-field" {
            found.severity = if found.help.is_some() {
                Severity::Warning
            } else {
                found.message = format!("`{}` does not concern a gateway: passed over", found.field);
                Severity::Hint
            };
        }
    }
    loaded
}

/// The text of `data.mesh`, when the file is a ConfigMap.
fn inside_config_map(text: &str) -> Option<String> {
    let (documents, _) = crate::yaml::read(text, false);
    let [document] = &documents[..] else { return None };
    let data = document.node.get("data")?;
    (document.node.text("kind") == Some("ConfigMap")).then(|| data.text("mesh").unwrap_or("").to_owned())
}

fn read(node: &Node, loaded: &mut Loaded) {
    let mesh = &mut loaded.mesh;
    if let Some(timeout) = duration_of(node, "connectTimeout") {
        mesh.connect_timeout = timeout;
    }
    if let Some(namespace) = node.text("rootNamespace").filter(|text| !text.is_empty()) {
        mesh.root_namespace = namespace.to_owned();
    }
    mesh.trust_domains = match node.text("trustDomain").filter(|text| !text.is_empty()) {
        Some(domain) => {
            let aliases = node.texts("trustDomainAliases").into_iter();
            std::iter::once(domain.to_owned()).chain(aliases).collect()
        }
        // Aliases alone do not say which domain they stand beside.
        None => Vec::new(),
    };
    mesh.keepalive = node.get("tcpKeepalive").map(keepalive);
    if let Some(setting) = node.get("localityLbSetting") {
        mesh.locality = LocalitySetting::read(setting);
    }
    mesh.h2_upgrade = node.text("h2UpgradePolicy") == Some("UPGRADE");
    let retries = node.get("defaultHttpRetryPolicy").map(Retries::read);
    mesh.retry = crate::compile::retry::policy(retries.as_ref(), &RetryPolicy::default());
    mesh.service_export_to = node.texts("defaultServiceExportTo");
    mesh.virtual_service_export_to = node.texts("defaultVirtualServiceExportTo");
    mesh.destination_rule_export_to = node.texts("defaultDestinationRuleExportTo");
    let below = |outer: &str, inner: &str| node.get(outer).and_then(|node| node.get(inner));
    // The schema has refused what the settings would refuse.
    if let Some(Node::Text(form)) = below("pathNormalization", "normalization") {
        let _valid = loaded
            .settings
            .set("pathNormalization", &SettingValue::Text(form.clone()));
        loaded.mesh.path_normalization = loaded.settings.path_normalization;
    }
    let topology = below("defaultConfig", "gatewayTopology");
    if let Some(Node::Text(form)) = topology.and_then(|node| node.get("forwardClientCertDetails")) {
        let _valid = loaded
            .settings
            .set("forwardClientCertDetails", &SettingValue::Text(form.clone()));
    }
    if let Some(rate) = duration_of(node, "dnsRefreshRate") {
        let _valid = loaded
            .settings
            .set("dnsRefreshRate", &SettingValue::Duration(rate));
    }
    let proxies = topology.and_then(|node| node.int("numTrustedProxies"));
    if let Some(proxies) = proxies.and_then(|number| u64::try_from(number).ok()) {
        let _valid = loaded
            .settings
            .set("numTrustedProxies", &SettingValue::Number(proxies));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "connectTimeout: 3s\nrootNamespace: root\npathNormalization:\n  normalization: 3\n\
                        defaultConfig:\n  gatewayTopology: {numTrustedProxies: 2}\ndefaultServiceExportTo: [.]\n\
                        h2UpgradePolicy: 1\ndefaultHttpRetryPolicy: {attempts: 4, retryOn: \"503\"}\nenableTracing: true\nconectTimeout: 1s\ndnsRefreshRate: 30s\n\
                        trustDomain: td1\ntrustDomainAliases: [td2]\n";

    #[test]
    fn what_concerns_a_gateway_is_taken() {
        let check = |loaded: Loaded| {
            assert_eq!(loaded.mesh.connect_timeout, Duration::from_secs(3));
            assert_eq!(loaded.mesh.root_namespace, "root");
            assert_eq!(loaded.mesh.service_export_to, ["."]);
            assert!(loaded.mesh.h2_upgrade);
            assert_eq!(loaded.mesh.trust_domains, ["td1", "td2"]);
            assert_eq!(loaded.mesh.retry.retries, 4);
            assert_eq!(*loaded.mesh.retry.status_codes, [503]);
            assert_eq!(
                loaded.settings.path_normalization,
                PathNormalization::MergeSlashes
            );
            assert_eq!(loaded.settings.trusted_proxies, 2);
            assert_eq!(loaded.settings.dns_refresh_rate, Duration::from_secs(30));
            let told: Vec<_> = loaded
                .diagnostics
                .iter()
                .map(|found| (found.severity, found.line, found.help.is_some()))
                .collect();
            assert_eq!(told, [(Severity::Hint, 10, false), (Severity::Warning, 11, true)]);
        };
        check(load(TEXT, "mesh.yaml"));
        let inner = TEXT.replace('\n', "\n    ");
        check(load(
            &format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio}}\ndata:\n  mesh: |-\n    {inner}"
            ),
            "istio.yaml",
        ));
    }

    #[test]
    fn what_is_wrong_is_an_error() {
        for text in [
            "connectTimeout: soon",
            "pathNormalization: {normalization: ALL}",
            "- a",
            "a: [",
            "rootNamespace: [a]",
        ] {
            let loaded = load(text, "mesh.yaml");
            let errors = loaded
                .diagnostics
                .iter()
                .filter(|found| found.severity == Severity::Error);
            assert_eq!(errors.count(), 1, "{text}: {:?}", loaded.diagnostics);
        }
    }
}
