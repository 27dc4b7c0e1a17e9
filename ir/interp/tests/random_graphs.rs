//! The interpreter runs what the generator of random graphs makes, and every executed shape is the
//! inferred one.

use interp::Interp;
use ir::testing::{Options, random_graph};
use kernelsmith_interp as interp;

#[test]
fn random_graphs_run() {
    let mut failed = Vec::new();
    for seed in 0..400 {
        let options = Options { symbolic: seed % 2 == 1, ops: 16, ..Options::default() };
        let case = random_graph(seed, &options);
        for which in 0..case.sizes.len() {
            if let Err(e) = Interp::new(&case.module).run(&case.inputs(which)) {
                failed.push(format!("seed {seed}, sizes {which}: {e}"));
            }
        }
    }
    assert!(failed.is_empty(), "{} failures:\n{}", failed.len(), failed[..failed.len().min(12)].join("\n"));
}
