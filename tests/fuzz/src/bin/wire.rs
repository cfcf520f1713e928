//! libFuzzer on [`fuzz::properties::wire`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::properties::wire(data));
