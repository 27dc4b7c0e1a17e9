//! The properties that hold for any bytes. `tests/tests/fuzz_corpus.rs` checks them on the corpus.

use frontend::{ImportOptions, MissingWeights, onnx};
use ir::text;

/// Largest input of a target in bytes.
pub const MAX_BYTES: usize = 64 << 10;

/// Bytes as an ONNX model: an error or a valid module, whose text is one that reads back as itself.
///
/// The first byte chooses the options, so that the bytes of one model meet all of them.
pub fn import(data: &[u8]) {
    let Some((&choice, model)) = data.split_first() else { return };
    let options = ImportOptions {
        all_dims_symbolic: choice & 1 != 0,
        initializers_are_inputs: choice & 2 != 0,
        smallest_dim: i64::from(choice & 4 == 0),
        missing_weights: MissingWeights::Random { seed: 1 },
        max_model_bytes: MAX_BYTES as u64,
        max_nodes: 2_000,
        max_depth: 8,
        ..ImportOptions::default()
    };
    let Ok(imported) = onnx::load_bytes(model.to_vec(), None, &options) else { return };
    ir::verify::graph::verify(&imported.module).expect("an imported module is valid");
    if imported.module.consts.iter().all(|c| c.elems() <= 4_096) {
        same_text(&text::graph::print(&imported.module), |t| {
            text::graph::parse(t).map(|m| text::graph::print(&m))
        });
    }
}

/// Text as each of the three IRs: an error, or something whose text is one that reads back as itself.
/// Verifiers take whatever the parsers let through.
pub fn text(data: &[u8]) {
    let Some((&form, bytes)) = data.split_first() else { return };
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    match form % 3 {
        0 => {
            let Ok(m) = text::graph::parse(source) else { return };
            if ir::verify::graph::verify(&m).is_ok() {
                same_text(&text::graph::print(&m), |t| text::graph::parse(t).map(|m| text::graph::print(&m)));
            }
        }
        1 => {
            let Ok(k) = text::kernel::parse(source) else { return };
            if ir::verify::kernel::verify(&k).is_ok() {
                same_text(&k.to_string(), |t| text::kernel::parse(t).map(|k| k.to_string()));
            }
        }
        _ => {
            let Ok(f) = text::loops::parse(source) else { return };
            if ir::verify::loops::verify(&f).is_ok() {
                same_text(&f.to_string(), |t| text::loops::parse(t).map(|f| f.to_string()));
            }
        }
    }
}

fn same_text(printed: &str, again: impl Fn(&str) -> ir::Result<String>) {
    match again(printed) {
        Ok(second) => assert_eq!(printed, second, "text that changes when it is read and printed"),
        Err(e) => panic!("printed text is not read back: {e}\n{printed}"),
    }
}
