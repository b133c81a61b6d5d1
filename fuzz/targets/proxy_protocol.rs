//! The door `proxy_protocol`, for a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| isthmus_fuzz::proxy_protocol::run(bytes));
