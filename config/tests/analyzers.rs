//! The analyzers' cases of the acceptance corpus: what Istio finds across resources is found here too, with Istio's
//! code where it means the same, and what Istio does not warn of is not warned of here.
//!
//! The corpus is no part of the project. Where it is missing this test says so loudly, and fails when CI is set.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers as well"
)]

mod common;

use common::corpus;
use isthmus_config::diagnostic::Diagnostic;
use isthmus_config::{Options, compile, read_paths};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Istio's messages that mean here what they mean there.
const SAME: [(&str, &str); 19] = [
    ("Deprecated", "IST0002"),
    ("ReferencedResourceNotFound", "IST0101"),
    ("ConflictingMeshGatewayVirtualServiceHosts", "IST0109"),
    ("VirtualServiceDestinationPortSelectorRequired", "IST0112"),
    ("PortNameIsNotUnderNamingConvention", "IST0118"),
    ("NoServerCertificateVerificationDestinationLevel", "IST0128"),
    ("NoServerCertificateVerificationPortLevel", "IST0129"),
    ("VirtualServiceUnreachableRule", "IST0130"),
    ("VirtualServiceIneffectiveMatch", "IST0131"),
    ("VirtualServiceHostNotFoundInGateway", "IST0132"),
    ("IngressRouteRulesNotAffected", "IST0140"),
    ("ConflictingGateways", "IST0145"),
    ("JwtClaimBasedRoutingWithoutRequestAuthN", "IST0149"),
    ("InvalidGatewayCredential", "IST0161"),
    ("GatewayPortNotDefinedOnService", "IST0162"),
    ("DestinationRuleSubsetNotSelectPods", "IST0173"),
    ("UnknownDestinationRuleHost", "IST0174"),
    ("ConflictingServiceEntryProtocol", "protocol-conflict"),
    ("GatewayDuplicateCertificate", "IST0138"),
];

/// Messages that say nothing of a gateway that runs by itself.
const APART: [(&str, &str); 38] = [
    (
        "AlphaAnnotation",
        "annotations of Istio's proxies and its control plane are not read",
    ),
    ("ConflictingSidecarWorkloadSelectors", "there are no sidecars"),
    (
        "ConflictingTelemetryWorkloadSelectors",
        "Telemetry is not executed",
    ),
    (
        "DeploymentAssociatedToMultipleServices",
        "how sidecars tell the protocols of what comes in",
    ),
    (
        "DeploymentConflictingPorts",
        "how sidecars tell the ports of what comes in",
    ),
    (
        "DeprecatedAnnotation",
        "annotations of Istio's proxies and its control plane are not read",
    ),
    ("EnvoyFilterUsesAddOperationIncorrectly", "there is no Envoy"),
    ("EnvoyFilterUsesRelativeOperation", "there is no Envoy"),
    (
        "EnvoyFilterUsesRelativeOperationWithProxyVersion",
        "there is no Envoy",
    ),
    ("EnvoyFilterUsesRemoveOperationIncorrectly", "there is no Envoy"),
    ("EnvoyFilterUsesReplaceOperationIncorrectly", "there is no Envoy"),
    (
        "ExternalControlPlaneAddressIsNotAHostname",
        "there is no control plane elsewhere",
    ),
    (
        "ExternalNameServiceTypeInvalidPortName",
        "how sidecars catch what goes out",
    ),
    (
        "GatewayAPICRDVersionBelowMinimum",
        "the Kubernetes Gateway API is not executed",
    ),
    ("ImageAutoWithoutInjectionError", "nothing is injected"),
    ("ImageAutoWithoutInjectionWarning", "nothing is injected"),
    ("IneffectivePolicy", "policies of ambient meshes"),
    (
        "IneffectiveSelector",
        "policies for Gateways of the Kubernetes Gateway API, which is not executed",
    ),
    (
        "InvalidAnnotation",
        "annotations of Istio's proxies and its control plane are not read",
    ),
    ("InvalidApplicationUID", "nothing is injected"),
    (
        "InvalidExternalControlPlaneConfig",
        "there is no control plane elsewhere",
    ),
    ("InvalidTelemetryProvider", "Telemetry is not executed"),
    ("InvalidWebhook", "there are no webhooks"),
    ("JwksUriFetchUnrestricted", "there is no istiod"),
    (
        "MisplacedAnnotation",
        "annotations of Istio's proxies and its control plane are not read",
    ),
    (
        "MultipleSidecarsWithoutWorkloadSelectors",
        "there are no sidecars",
    ),
    (
        "MultipleTelemetriesWithoutWorkloadSelectors",
        "Telemetry is not executed",
    ),
    ("NamespaceInjectionEnabledByDefault", "nothing is injected"),
    ("NamespaceMultipleInjectionLabels", "nothing is injected"),
    ("NamespaceNotInjected", "nothing is injected"),
    (
        "NegativeConditionStatus",
        "what controllers say of a resource in a cluster is not read from files",
    ),
    ("NoMatchingWorkloadsFound", "AuthorizationPolicy is not executed"),
    ("PodMissingProxy", "nothing is injected"),
    ("PodsIstioProxyImageMismatchInNamespace", "nothing is injected"),
    (
        "ReferencedInternalGateway",
        "such a name is refused by its grammar, with an error at its place",
    ),
    (
        "ServiceEntryAddressesRequired",
        "virtual addresses are for sidecars, which catch what goes out",
    ),
    (
        "UnknownAnnotation",
        "annotations of Istio's proxies and its control plane are not read",
    ),
    (
        "UnknownMeshNetworksServiceRegistry",
        "one gateway has no networks of meshes",
    ),
];

/// Kinds whose messages say nothing of a gateway, whatever they say.
const OTHER_KINDS: [(&str, &str); 4] = [
    ("AuthorizationPolicy", "not executed, and a warning says so"),
    ("EnvoyFilter", "there is no Envoy"),
    ("Sidecar", "there are no sidecars"),
    ("Telemetry", "not executed"),
];

/// Messages of one case that do not apply: case, message, resource, and why.
const EXCUSED: [(&str, &str, &str, &str); 14] = [
    (
        "gatewayBadPort",
        "GatewayPortNotDefinedOnService",
        "Gateway default/httpbin-gateway",
        "the Service of Istio's own installation is meant, which is not among the documents; here the port is opened",
    ),
    (
        "virtualServiceGateways",
        "VirtualServiceHostNotFoundInGateway",
        "VirtualService default/httpbin-bogus",
        "its Gateway is not there at all, which is told: it cannot lack a host besides",
    ),
    (
        "virtualServiceKubernetesGateways",
        "VirtualServiceHostNotFoundInGateway",
        "VirtualService default/my-vs-host-mismatch",
        "the Kubernetes Gateway API is not executed, which is told of this VirtualService",
    ),
    (
        "destinationrule with credentialname, simple at destinationlevel, no workloadSelector",
        "NoServerCertificateVerificationDestinationLevel",
        "DestinationRule default/db-tls",
        "at a gateway a credential counts, and its authority verifies",
    ),
    (
        "destinationrule with credentialname, simple at portlevel, no workloadSelector",
        "NoServerCertificateVerificationPortLevel",
        "DestinationRule default/db-tls",
        "at a gateway a credential counts, and its authority verifies",
    ),
    (
        "gatewaySecret",
        "ReferencedResourceNotFound",
        "Gateway default/defaultgateway-bogusCredentialName",
        "found where keys are loaded: the tests of the command `check` have this case",
    ),
    (
        "gatewaySecretValidations",
        "InvalidGatewayCredential",
        "Gateway default/defaultgateway-invalid-keys",
        "found where keys are loaded: the tests of the command `check` have this case",
    ),
    (
        "gatewaySecretValidations",
        "InvalidGatewayCredential",
        "Gateway default/defaultgateway-missing-keys",
        "found where keys are loaded: the tests of the command `check` have this case",
    ),
    (
        "gatewaySecretValidations",
        "InvalidGatewayCredential",
        "Gateway default/defaultgateway-invalid-cert",
        "found where keys are loaded: the tests of the command `check` have this case",
    ),
    (
        "gatewaySecretValidations",
        "InvalidGatewayCredential",
        "Gateway default/defaultgateway-expired",
        "found where keys are loaded: the tests of the command `check` have this case",
    ),
    (
        "certificate duplication in Gateway",
        "GatewayDuplicateCertificate",
        "Gateway istio-system/gateway-01-test-01",
        "requests over a connection for another host are routed by their authority: there is no 404",
    ),
    (
        "certificate duplication in Gateway",
        "GatewayDuplicateCertificate",
        "Gateway istio-system/gateway-02-test-01",
        "requests over a connection for another host are routed by their authority: there is no 404",
    ),
    (
        "certificate duplication in Gateway",
        "GatewayDuplicateCertificate",
        "Gateway istio-system/gateway-01-test-02",
        "requests over a connection for another host are routed by their authority: there is no 404",
    ),
    (
        "certificate duplication in Gateway",
        "GatewayDuplicateCertificate",
        "Gateway default/gateway-01-test-03",
        "requests over a connection for another host are routed by their authority: there is no 404",
    ),
];

/// `Kind namespace/name`, as here everything has a namespace.
fn whole(resource: &str) -> String {
    let (kind, name) = resource.split_once(' ').unwrap();
    let namespace = if name.contains('/') { "" } else { "default/" };
    format!("{kind} {namespace}{name}")
}

/// Everything that a finding names.
fn named(found: &Diagnostic) -> impl Iterator<Item = &str> {
    let related = found.related.iter().map(|related| related.resource.as_str());
    std::iter::once(found.resource.as_str()).chain(related)
}

/// Names of our findings that an analyzer of Istio is about, to tell false alarms in its cases.
fn names_of(analyzer: &str) -> &'static [&'static str] {
    match analyzer {
        "gateway.IngressGatewayPortAnalyzer" => &["port-not-on-service"],
        "gateway.ConflictingGatewayAnalyzer" => &["gateway-conflict"],
        "virtualservice.ConflictingMeshGatewayHostsAnalyzer" => &["mesh-host-conflict"],
        "virtualservice.DestinationHostAnalyzer" => &[
            "unknown-host",
            "unknown-port",
            "port-required",
            "subset-without-effect",
        ],
        "virtualservice.DestinationRuleAnalyzer" => &["unknown-subset"],
        "virtualservice.GatewayAnalyzer" => &["unserved-host"],
        "virtualservice.JWTClaimRouteAnalyzer" => &["claims-unauthenticated"],
        "schemaValidation.CollectionValidationAnalyzer(collections.VirtualService)" => {
            &["unreachable-rule", "ineffective-match"]
        }
        "destinationrule.PodNotSelectedAnalyzer" => &["unknown-rule-host", "subset-selects-nothing"],
        "serviceentry.ConflictingServiceEntryProtocolAnalyzer" => &["protocol-conflict"],
        "service.PortNameAnalyzer" => &["port-name"],
        _ => &[],
    }
}

#[test]
fn what_istio_finds_is_found_and_what_it_does_not_is_not() {
    let Some(corpus) = corpus() else { return };
    let folder = corpus.join("analyzers");
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let same: BTreeMap<&str, &str> = SAME.into_iter().collect();
    let (mut found_all, mut excused) = (0, BTreeSet::new());
    let (mut missed, mut unknown, mut alarms) = (Vec::new(), BTreeSet::new(), Vec::new());
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let files = case["files"].as_array().unwrap().iter();
        let paths: Vec<PathBuf> = files.map(|file| folder.join(file.as_str().unwrap())).collect();
        let sources = read_paths(&paths).unwrap();
        let compiled = compile(&sources, &Options::default());
        let mut expected = BTreeSet::new();
        for message in case["expected"].as_array().unwrap() {
            let (code, resource) = (
                message["code"].as_str().unwrap(),
                message["resource"].as_str().unwrap(),
            );
            let kind = resource.split(' ').next().unwrap();
            if OTHER_KINDS.iter().any(|(known, _)| *known == kind) {
                continue;
            }
            let Some(ours) = same.get(code) else {
                if !APART.iter().any(|(known, _)| *known == code) {
                    unknown.insert(code.to_owned());
                }
                continue;
            };
            let resource = whole(resource);
            let told = compiled
                .diagnostics
                .iter()
                .any(|found| found.code == *ours && named(found).any(|named| named == resource));
            let reason = EXCUSED
                .iter()
                .position(|(in_case, of, who, _)| (*in_case, *of, *who) == (name, code, resource.as_str()));
            match (told, reason) {
                (true, None) => found_all += 1,
                (false, Some(at)) => _ = excused.insert(at),
                _ => missed.push(format!("{name}: {code} {resource}, found: {told}")),
            }
            expected.insert((*ours, resource));
        }
        for found in &compiled.diagnostics {
            let about = names_of(case["analyzer"].as_str().unwrap()).contains(&found.name);
            if about && !named(found).any(|named| expected.contains(&(found.code, named.to_owned()))) {
                alarms.push(format!("{name}: {found}"));
            }
        }
    }
    eprintln!(
        "{found_all} messages are found, {} are excused one by one",
        excused.len()
    );
    assert!(
        unknown.is_empty(),
        "messages that this test does not know: {unknown:#?}"
    );
    assert!(missed.is_empty(), "not as it should be: {missed:#?}");
    assert!(alarms.is_empty(), "Istio does not say this: {alarms:#?}");
    assert_eq!(excused.len(), EXCUSED.len(), "an excuse that no case needs");
    assert!(found_all >= 83, "{found_all}");
}
