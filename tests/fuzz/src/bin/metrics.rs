//! libFuzzer on [`fuzz::properties::metrics`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::properties::metrics(data));
