//! End-to-end tests: the real binary between real clients and real upstreams.
