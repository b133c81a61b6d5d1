//! The door `upgrade`, for a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| isthmus_fuzz::upgrade::run(bytes));
