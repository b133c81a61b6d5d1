//! The door `h1_response`, for a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| isthmus_fuzz::h1_response::run(bytes));
