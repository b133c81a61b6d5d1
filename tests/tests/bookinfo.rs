//! Istio's own Bookinfo resources, as Istio ships them.

use isthmus_tests::corpus;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::load::{Load, turn};
use isthmus_tests::resources::{Endpoint, service};
use isthmus_tests::upstream::Upstream;
use std::fs;

const PORT: u16 = 9080;

/// The host of a VirtualService is a short name of its namespace; on a gateway it means the full name.
const REVIEWS: &str = "reviews.default.svc.cluster.local";

struct Bookinfo {
    upstreams: Vec<Upstream>,
    services: String,
}

impl Bookinfo {
    /// Productpage, details and ratings in one version each, and three versions of reviews.
    fn start() -> Self {
        let mut bookinfo = Self {
            upstreams: Vec::new(),
            services: String::new(),
        };
        for (name, versions) in [
            ("productpage", &["v1"][..]),
            ("details", &["v1"]),
            ("ratings", &["v1"]),
            ("reviews", &["v1", "v2", "v3"]),
        ] {
            let endpoints: Vec<_> = versions
                .iter()
                .map(|version| {
                    let upstream = Upstream::echo_for_load(&format!("{name}-{version}"));
                    let endpoint = Endpoint::new(version, upstream.address());
                    bookinfo.upstreams.push(upstream);
                    endpoint
                })
                .collect();
            bookinfo.services += &service(&format!("{name}.default.svc.cluster.local"), PORT, &endpoints);
        }
        bookinfo
    }
}

#[test]
fn twenty_thousand_requests_to_reviews_split_90_to_10_without_an_error() {
    let Some(corpus) = corpus::find() else { return };
    let sample =
        |name: &str| fs::read_to_string(corpus.join("samples-bookinfo").join(name)).expect("a sample");
    // The sample is for the mesh; bound to the gateway, it serves clients from outside.
    let reviews = sample("virtual-service-reviews-90-10.yaml")
        .replace("  http:", "  gateways: [bookinfo-gateway]\n  http:");
    let bookinfo = Bookinfo::start();
    let gateway = Gateway::builder()
        .resources("bookinfo-gateway", &sample("bookinfo-gateway.yaml"))
        .resources("destination-rule-all", &sample("destination-rule-all.yaml"))
        .resources("virtual-service-reviews-90-10", &reviews)
        .resources("services", &bookinfo.services)
        .port(8080)
        .shards(2)
        .without_access_log()
        .start();

    let page = isthmus_tests::client::get(gateway.listener(8080), "shop.example.com", "/productpage");
    assert_eq!((page.status, page.text()), (200, "productpage-v1\n"));

    let turn = turn();
    let report = Load::get(gateway.listener(8080), REVIEWS, "/reviews/0").run(20_000);
    drop(turn);
    assert_eq!((report.status(200), report.errors.len()), (20_000, 0), "{report}");
    let (v1, v2) = (
        report.percent_from("reviews-v1"),
        report.percent_from("reviews-v2"),
    );
    assert!(
        (v1 - 90.0).abs() <= 1.5 && (v2 - 10.0).abs() <= 1.5,
        "v1 {v1:.2} %, v2 {v2:.2} %"
    );
    assert_eq!(
        report.served_by.values().sum::<u64>(),
        20_000,
        "{:?}",
        report.served_by
    );
    assert_eq!(report.served_by.len(), 2, "{:?}", report.served_by);
    gateway.stop();
}
