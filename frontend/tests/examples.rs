//! The example models import.

use kernelsmith_frontend::{ImportOptions, load};

#[test]
fn examples_import() {
    for name in ["digits", "xor"] {
        let path = format!("{}/../examples/{name}/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
        let m = load(&path, &ImportOptions::default()).unwrap_or_else(|problems| {
            panic!("{name}: {}", problems.iter().map(|p| p.to_string()).collect::<Vec<_>>().join("\n"))
        });
        assert_eq!(m.inputs.len(), m.module.graph.inputs.len());
        assert_eq!(m.outputs.len(), m.module.graph.outputs.len());
        assert!(m.module.graph.order.len() > 3);
    }
}
