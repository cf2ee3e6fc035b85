//! The checkpoint of a ring whose segments are sound.
#![no_main]

libfuzzer_sys::fuzz_target!(init: alibi_fuzz::seed("checkpoint"), |data: &[u8]| {
    if let Some(files) = alibi_fuzz::with_checkpoint(data) {
        alibi_fuzz::check(&files);
    }
});
