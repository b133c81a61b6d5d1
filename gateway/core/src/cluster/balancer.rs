//! Balancers.
/// How a cluster picks endpoints (Istio `loadBalancer.simple`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BalancerKind {
    /// Smooth weighted round robin.
    #[default]
    RoundRobin,
    /// Each endpoint with a chance in proportion to its weight.
    Random,
    /// Of two at random, the one with fewer requests in flight.
    LeastRequest,
}
