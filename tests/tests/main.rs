//! End-to-end tests: the real binary between real clients and real upstreams, one module per feature.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail their test, and clippy knows only test functions as tests"
)]

mod admin_resources;
mod admin_tls;
mod balancing;
mod bookinfo;
mod browser;
mod corruption;
mod cors;
mod dns;
mod egress;
mod egress_hosts;
mod environment;
mod explain;
mod fault;
mod faults;
mod framing;
mod grpc;
mod h1_corpus;
mod h2_conformance;
mod h2_defences;
mod h2_matrix;
mod h2_pool;
mod health;
mod limits;
mod mirror;
mod nginx_upstream;
mod overload;
mod registration;
mod reload;
mod resilience;
mod retries;
mod routing;
mod seed_examples;
mod storm;
mod substitutions;
mod tcp;
mod tls;
mod tls_hello;
mod tls_keys;
mod tls_upstream;
mod unix_sockets;
mod upgrade;
mod websocket;
