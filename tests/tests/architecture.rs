//! The directions of dependencies and other properties that ARCHITECTURE.md promises.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Which crates of ours each crate may use. A new edge is a decision: it is made here and in
/// ARCHITECTURE.md.
const ALLOWED: &[(&str, &[&str])] = &[
    ("kernelsmith-ir", &[]),
    ("kernelsmith-format", &[]),
    ("kernelsmith-images", &[]),
    ("kernelsmith-interp", &["kernelsmith-ir", "kernelsmith-images"]),
    ("kernelsmith-grad", &["kernelsmith-ir"]),
    ("kernelsmith-frontend", &["kernelsmith-ir", "kernelsmith-grad"]),
    ("kernelsmith-passes", &["kernelsmith-ir", "kernelsmith-interp"]),
    ("kernelsmith-codegen", &["kernelsmith-ir", "kernelsmith-format"]),
    ("kernelsmith-runtime", &["kernelsmith-format", "kernelsmith-images"]),
    ("kernelsmith-ptx-interp", &[]),
    ("kernelsmith-ptx-driver", &["kernelsmith-ptx-interp"]),
];

#[test]
fn dependencies_point_one_way() {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let mut edges: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for p in metadata["packages"].as_array().unwrap() {
        let uses = p["dependencies"].as_array().unwrap().iter();
        // tests may reach further than the code they test
        let uses = uses.filter(|d| d["kind"].as_str() != Some("dev")).map(|d| d["name"].as_str().unwrap());
        let ours = uses.filter(|n| n.starts_with("kernelsmith")).map(str::to_string).collect();
        edges.insert(p["name"].as_str().unwrap().to_string(), ours);
    }
    for (krate, allowed) in ALLOWED {
        let found = edges.get(*krate).unwrap_or_else(|| panic!("no crate {krate}"));
        for used in found {
            assert!(allowed.contains(&used.as_str()), "{krate} must not depend on {used}");
        }
    }
    for (krate, uses) in &edges {
        let leaf = ["kernelsmith", "kernelsmith-tests", "kernelsmith-benches"].contains(&krate.as_str());
        assert!(leaf || ALLOWED.iter().any(|a| a.0 == krate), "crate {krate} is not in the table ({uses:?})");
    }
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Below the kernels nobody knows what an operator of a model is called.
#[test]
fn no_graph_operation_is_known_below_the_kernels() {
    let names = [
        "\"Conv\"",
        "\"MatMul\"",
        "\"Gemm\"",
        "\"Softmax\"",
        "\"LSTM\"",
        "\"Attention\"",
        "\"softmax\"",
        "\"convolve\"",
        "\"contract\"",
        "Prim::Convolve",
        "Prim::Contract",
    ];
    let mut files = Vec::new();
    for dir in ["codegen/src", "runtime/src", "runtime/format/src"] {
        rust_files(&root().join(dir), &mut files);
    }
    assert!(files.len() > 10);
    for f in files {
        let text = std::fs::read_to_string(&f).unwrap();
        for name in names {
            assert!(!text.contains(name), "{} mentions {name}", f.display());
        }
    }
}

/// What must not be left in a landed tree.
#[test]
fn nothing_is_left_unfinished() {
    let mut files = Vec::new();
    for dir in ["ir", "frontend/src", "passes/src", "codegen/src", "runtime", "src"] {
        rust_files(&root().join(dir), &mut files);
    }
    // written apart, so that this file does not find itself
    let marks = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!(")];
    for f in files {
        let text = std::fs::read_to_string(&f).unwrap();
        for mark in marks {
            assert!(!text.contains(mark), "{} has {mark}", f.display());
        }
    }
}
