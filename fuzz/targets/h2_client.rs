//! The door `h2_client`, for a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| isthmus_fuzz::h2_client::run(bytes));
