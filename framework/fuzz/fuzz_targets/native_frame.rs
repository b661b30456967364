#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nestling::transport::fuzz::native_frame(bytes));
