//! A segment on disk, and the frames in it: opened, read, written on, opened again.
#![no_main]

libfuzzer_sys::fuzz_target!(init: alibi_fuzz::seed("segment"), |data: &[u8]| {
    if let Some(files) = alibi_fuzz::with_segment(data) {
        alibi_fuzz::check(&files);
    }
});
