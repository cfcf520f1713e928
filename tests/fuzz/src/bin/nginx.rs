//! libFuzzer on [`fuzz::properties::nginx`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::properties::nginx(data));
