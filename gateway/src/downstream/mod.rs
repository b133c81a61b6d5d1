//! Connections of clients: requests come out, answers go in. The codecs know nothing of routing or upstreams.

pub mod h1;
