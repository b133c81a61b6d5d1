//! The door `h1_differential`, for a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| isthmus_fuzz::h1_differential::run(bytes));
