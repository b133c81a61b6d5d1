//! Defects that are planted at the seam between the shards and the core, to see that what is looked at finds them. The
//! product has none of them: each is a way in which the shell of the simulation does, or tells, something wrong.

use super::oracle::Rule;

macro_rules! defects {
    ($($(#[doc = $doc:literal])+ $name:ident => [$($rule:ident),+];)*) => {
        /// A planted defect.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Defect {
            $($(#[doc = $doc])+ $name,)*
        }

        impl Defect {
            /// All of them.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The rules that it breaks: whatever else is found does not count.
            pub(crate) fn breaks(self) -> &'static [Rule] {
                match self {
                    $(Self::$name => &[$(Rule::$rule),+],)*
                }
            }
        }
    };
}

defects! {
    /// One connection more than may be.
    LimitOffByOne => [ConnectionsWithinLimit];
    /// A connection that could not be made keeps its permit.
    PermitKeptOnConnectFailure => [PermitsAreConnections];
    /// A client that goes away keeps the permit of its connection.
    PermitKeptOnAbort => [PermitsAreConnections];
    /// A request whose time is over keeps the permit of its connection.
    PermitKeptOnTimeout => [PermitsAreConnections];
    /// With a connection's permit goes that of another.
    PermitReleasedTwice => [PermitsAreConnections, ConnectionsWithinLimit];
    /// An endpoint is given back twice.
    EndpointReleasedTwice => [EveryAcquireIsReleasedOnce];
    /// An endpoint is not given back.
    EndpointNotReleased => [EveryAcquireIsReleasedOnce];
    /// Idle connections are kept whoever wants them.
    IdleNeverReclaimed => [NobodyWaitsBesideRoom, EverybodyIsServed];
    /// A shard does not hear that it was handed something.
    BellNotHeard => [NobodyWaitsBesideRoom, EverybodyIsServed];
    /// A version takes those that wait with it.
    WaiterLostOnSwap => [EverybodyIsServed];
    /// What is ejected is picked all the same.
    EjectedIsPicked => [PicksAreAvailable];
    /// A shard goes on with the endpoints of the version before.
    RemovedIsPicked => [PicksAreInTheSet];
    /// A connection that its upstream ends gets more requests.
    DrainingIsPicked => [PicksDoNotDrain];
    /// More are ejected than may be.
    EjectionAboveMaximum => [EjectionsFollowThePolicy];
    /// Each ejection is as long as the first.
    BaseTimeNotMultiplied => [EjectionsEndInTime];
    /// A success leaves the failures before it in the count.
    SuccessDoesNotReset => [EjectionsFollowThePolicy];
    /// A gateway error counts as two failures.
    GatewayErrorCountsTwice => [EjectionsFollowThePolicy];
    /// All endpoints are taken where enough are available, and only those that are where too few are.
    PanicInverted => [PicksAreAvailable, PanicTakesAll];
    /// A request is sent again although a part of an answer went to the client.
    RetryAfterBytes => [NoRetryAfterBytes];
    /// A retry goes to the endpoint that failed.
    RetryOnSameEndpoint => [RetriesGoElsewhere];
    /// A retry goes to the localities that it is to leave out.
    LocalitiesNotLeftOut => [RetriesLeaveLocalities];
    /// An attempt has as much time as the whole, or more.
    PerTryAboveTotal => [AttemptsHaveLessThanTheWhole];
    /// A retry that has ended still counts.
    BudgetNotGivenBack => [RetriesAreCounted];
    /// Retries are not asked for.
    BudgetNotAsked => [RetriesWithinBudget, RetriesAreCounted];
    /// A level takes only as much of the load as it has endpoints left.
    SpillWithoutOverprovisioning => [LevelsTakeWhatTheyCan];
    /// An endpoint that warms up gets more than its share.
    WarmupAboveOne => [WarmupIsAtMostTheWhole];
    /// Where a key leads depends on how many endpoints there are.
    HashMovedByOthers => [KeysStay];
    /// A retry begins the time of the whole anew.
    DeadlineExtendedByRetry => [DeadlinesHold];
    /// A connection carries more requests than it may.
    ConnectionUsedTooOften => [ConnectionsAreUsedUp];
}
