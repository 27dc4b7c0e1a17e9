//! The corpus of the fuzz targets, replayed: what they found once stays mended.

#[path = "../fuzz/src/checks.rs"]
mod checks;

use std::path::Path;

fn replay(name: &str, least: usize, check: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut count = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        check(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= least, "{count} inputs in {}", dir.display());
}

#[test]
fn importer() {
    replay("import", 20, checks::import);
}

#[test]
fn text_parsers() {
    replay("text", 20, checks::text);
}
