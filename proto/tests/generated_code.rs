//! The code in `src/gen` is what the schema in `schema/` generates. When this fails it has already mended the file:
//! look at the difference and commit it.

use std::{fs, path::Path};

#[test]
fn generated_code_is_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = root.join("schema");
    let files =
        ["event", "ledger", "answer", "recorder", "enrolment", "prevalence", "analyst", "clock", "search"]
            .map(|name| schema.join(format!("alibi/v1/{name}.proto")));
    let descriptors = protox::compile(files, [&schema]).expect("the schema compiles");
    let out = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure().out_dir(out.path()).compile_fds(descriptors).expect("code is generated");

    let fresh = fs::read_to_string(out.path().join("alibi.v1.rs")).expect("the generated file");
    let committed_path = root.join("src/gen/alibi.v1.rs");
    let committed = fs::read_to_string(&committed_path).unwrap_or_default();
    if fresh != committed {
        fs::write(&committed_path, fresh).expect("the committed file is writable");
        panic!("src/gen/alibi.v1.rs was stale and has been written anew: look at it and commit it");
    }
}
