//! No input makes the importer panic: cut and mutated models, hostile sizes, external data that points
//! elsewhere.
//!
//! `KERNELSMITH_FUZZ=DIR` mutates every `.onnx` file below DIR as well, `KERNELSMITH_FUZZ_ROUNDS` times each.

mod common;

use common::*;
use kernelsmith_frontend::onnx::load_bytes;
use kernelsmith_frontend::{Code, Diagnostic, ImportOptions, Kind, load};
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{
    FunctionProto, GraphProto, Message, ModelProto, OperatorSetIdProto, StringStringEntryProto, type_proto,
};
use std::path::{Path, PathBuf};

/// The one problem of a model that has exactly one.
fn problem(m: &ModelProto) -> Diagnostic {
    let mut all = import(m).err().unwrap_or_default();
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

/// A model with a bit of everything that recurses.
fn everything() -> ModelProto {
    let x = info("x", 1, &[None, Some(4)]);
    let mut then = GraphProto::new();
    then.node.push(node("Relu", &["x"], &["t"]));
    then.output.push(info("t", 1, &[None, Some(4)]));
    let mut other = GraphProto::new();
    other.node.push(node("Neg", &["x"], &["e"]));
    other.output.push(info("e", 1, &[None, Some(4)]));
    let branch =
        with_graph(with_graph(node("If", &["c"], &["y"]), "then_branch", then), "else_branch", other);
    let mut body = GraphProto::new();
    body.input = vec![info("i", 7, &[]), info("go", 9, &[]), info("s", 1, &[None, Some(4)])];
    body.node.push(node("Add", &["s", "y"], &["s2"]));
    body.node.push(node("Identity", &["go"], &["go2"]));
    body.node.push(node("ReduceSum", &["s2"], &["total"]));
    body.output = vec![info("go2", 9, &[]), info("s2", 1, &[None, Some(4)]), info("total", 1, &[])];
    let mut f = FunctionProto::new();
    f.name = "Twice".into();
    f.domain = "local".into();
    f.input = vec!["a".into()];
    f.output = vec!["b".into()];
    f.node.push(node("Add", &["a", "a"], &["b"]));
    let mut call = node("Twice", &["z"], &["w"]);
    call.domain = "local".into();
    let nodes = vec![
        branch,
        with_graph(node("Loop", &["trip", "", "y"], &["z", "sums"]), "body", body),
        call,
        with_ints(node("Transpose", &["w"], &["wt"]), "perm", &[1, 0]),
        node("Reshape", &["wt", "shape"], &["out"]),
    ];
    let mut m =
        model(&[x, info("c", 9, &[]), info("trip", 7, &[])], nodes, vec![ints("shape", &[-1])], "out");
    let mut opset = OperatorSetIdProto::new();
    opset.domain = "local".into();
    opset.version = 1;
    m.opset_import.push(opset);
    m.functions.push(f);
    m
}

#[test]
fn the_model_of_these_tests_is_good() {
    import(&everything()).unwrap_or_else(|e| panic!("{e:#?}"));
}

// ---- mutations -----------------------------------------------------------------------------

struct Rng(u64);
impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

fn onnx_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let p = e.path();
        if p.is_dir() {
            onnx_files(&p, out);
        } else if p.extension().is_some_and(|e| e == "onnx") && p.metadata().is_ok_and(|m| m.len() < 200_000)
        {
            out.push(p);
        }
    }
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = vec![("everything".to_string(), everything().write_to_bytes().unwrap())];
    let mut files = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/xor/xor.onnx"))];
    if let Some(dir) = std::env::var_os("KERNELSMITH_FUZZ") {
        onnx_files(Path::new(&dir), &mut files);
    }
    for f in files {
        seeds.push((f.display().to_string(), std::fs::read(&f).unwrap()));
    }
    seeds
}

/// Places that panicked, each with the first model that led there; and what took too long.
struct Panics {
    found: std::collections::BTreeMap<String, String>,
    trace: bool,
}

impl Panics {
    fn new() -> Panics {
        Panics { found: Default::default(), trace: std::env::var_os("KERNELSMITH_FUZZ_TRACE").is_some() }
    }
    fn try_import(&mut self, what: &str, bytes: &[u8]) {
        let copy = bytes.to_vec();
        if self.trace {
            // what hangs or exhausts the memory is found here
            let _ = std::fs::write(std::env::temp_dir().join("kernelsmith-trace.onnx"), bytes);
        }
        let start = std::time::Instant::now();
        let result = std::panic::catch_unwind(|| {
            let opts = ImportOptions { max_nodes: 10_000, ..ImportOptions::default() };
            let _ = load_bytes(copy, None, &opts);
        });
        let took = start.elapsed();
        if took.as_secs() >= 5 {
            let file = std::env::temp_dir().join("kernelsmith-slow.onnx");
            let _ = std::fs::write(&file, bytes);
            self.found.insert(format!("took {took:?}"), format!("{what} ({})", file.display()));
        }
        if result.is_err() {
            let place = LAST_PANIC.lock().map(|p| p.clone()).unwrap_or_default();
            self.found.entry(place).or_insert_with(|| {
                let file = std::env::temp_dir().join(format!("kernelsmith-panic-{}.onnx", bytes.len()));
                let _ = std::fs::write(&file, bytes);
                format!("{what} ({})", file.display())
            });
        }
    }
    fn check(self) {
        assert!(self.found.is_empty(), "{:#?}", self.found);
    }
}

static LAST_PANIC: std::sync::Mutex<String> = std::sync::Mutex::new(String::new());

fn note_panics() {
    std::panic::set_hook(Box::new(|info| {
        if let Ok(mut p) = LAST_PANIC.lock() {
            *p = format!("{info}");
        }
        eprintln!("{info}");
    }));
}

#[test]
fn cut_models_are_errors() {
    note_panics();
    let mut panics = Panics::new();
    for (name, bytes) in seeds() {
        let cuts = (0..bytes.len())
            .step_by(if bytes.len() > 20_000 { 997 } else { 97 })
            .chain(0..bytes.len().min(64));
        for n in cuts {
            panics.try_import(&format!("{name} cut at {n}"), &bytes[..n]);
        }
    }
    panics.check();
}

#[test]
fn mutated_models_do_not_panic() {
    note_panics();
    let mut panics = Panics::new();
    let mut rng = Rng(0x1234_5678_9abc_def1);
    let rounds = std::env::var("KERNELSMITH_FUZZ_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(200);
    for (name, bytes) in seeds() {
        for round in 0..rounds {
            let mut b = bytes.clone();
            for _ in 0..1 + rng.below(6) {
                let at = rng.below(b.len());
                match rng.below(5) {
                    0 => b[at] ^= 1 << rng.below(8),
                    1 => b[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5)],
                    2 => {
                        b.remove(at);
                    }
                    3 => b.insert(at, rng.below(256) as u8),
                    _ => {
                        let from = rng.below(b.len());
                        let n = rng.below(16).min(b.len() - from).min(b.len() - at);
                        b.copy_within(from..from + n, at);
                    }
                }
            }
            panics.try_import(&format!("{name}, mutation {round}"), &b);
        }
    }
    panics.check();
}

// ---- hostile sizes -------------------------------------------------------------------------

#[test]
fn huge_sizes_are_refused_without_being_allocated() {
    let x = info("x", 1, &[Some(2), Some(3)]);
    let big = [1i64 << 40, 1 << 40];
    let bombs = vec![
        node("ConstantOfShape", &["big"], &["y"]),
        node("Expand", &["x", "big"], &["y"]),
        node("Tile", &["x", "big"], &["y"]),
        node("Reshape", &["x", "big"], &["y"]),
        with_ints(node("MaxPool", &["image"], &["y"]), "kernel_shape", &[i64::MAX, i64::MAX]),
        with_ints(node("MaxPool", &["image"], &["y"]), "kernel_shape", &[0, -1]),
        with_int(node("Flatten", &["x"], &["y"]), "axis", i64::MIN),
        with_int(node("Concat", &["x", "x"], &["y"]), "axis", i64::MAX),
        with_ints(node("Transpose", &["x"], &["y"]), "perm", &[0, 0]),
        with_int(node("DepthToSpace", &["image"], &["y"]), "blocksize", i64::MAX),
        with_int(node("Split", &["x"], &["y", "z"]), "num_outputs", i64::MAX),
        node("Slice", &["x", "big", "big", "big", "big"], &["y"]),
        node("TopK", &["x", "big"], &["y", "i"]),
        node("Pad", &["x", "big"], &["y"]),
    ];
    for bomb in bombs {
        let op = bomb.op_type.clone();
        let image = info("image", 1, &[Some(1), Some(4), Some(8), Some(8)]);
        let m = model(&[x.clone(), image], vec![bomb], vec![ints("big", &big)], "y");
        let problems = import(&m).err().unwrap_or_else(|| panic!("{op} was accepted"));
        assert!(problems.iter().all(|p| p.node.is_some()), "{problems:#?}");
    }
}

#[test]
fn recursion_ends() {
    // a function that calls itself
    let mut m = everything();
    m.functions[0].node[0] = node("Twice", &["a"], &["b"]);
    m.functions[0].node[0].domain = "local".into();
    assert_eq!(problem(&m).kind, Kind::Limit);
    // functions that double the number of nodes at each level
    let mut m = model(&[info("x", 1, &[])], vec![], vec![], "y");
    for i in 0..31 {
        let mut f = FunctionProto::new();
        f.name = format!("F{i}");
        f.domain = "local".into();
        f.input = vec!["a".into()];
        f.output = vec!["c".into()];
        let inner = if i == 0 { "Neg".to_string() } else { format!("F{}", i - 1) };
        for (from, to) in [("a", "b"), ("b", "c")] {
            let mut n = node(&inner, &[from], &[to]);
            n.domain = if i == 0 { "".into() } else { "local".into() };
            f.node.push(n);
        }
        m.functions.push(f);
    }
    let mut call = node("F30", &["x"], &["y"]);
    call.domain = "local".into();
    m.graph.as_mut().unwrap().node.push(call);
    let opts = ImportOptions { max_nodes: 20_000, ..ImportOptions::default() };
    let problems = load_bytes(m.write_to_bytes().unwrap(), None, &opts).err().unwrap();
    assert!(problems.iter().any(|p| p.kind == Kind::Limit), "{problems:#?}");
    assert!(problems.len() < 100);
}

// ---- messages ------------------------------------------------------------------------------

#[test]
fn all_problems_are_reported_at_once_without_cascades() {
    let nodes = vec![
        node("Frobnicate", &["x"], &["a"]),
        node("Relu", &["a"], &["b"]),
        node("Add", &["b", "missing"], &["c"]),
        node("MatMul", &["x", "x"], &["d"]),
        with_ints(node("Transpose", &["x"], &["e"]), "perm", &[0]),
        node("Grumble", &["c"], &["out"]),
    ];
    let m = model(&[info("x", 1, &[Some(2), Some(3)])], nodes, vec![], "out");
    let problems = import(&m).err().unwrap();
    let found: Vec<(String, String)> = problems
        .iter()
        .map(|p| (p.id(), p.node.as_ref().map_or(String::new(), |n| n.path.clone())))
        .collect();
    let want = [
        ("unsupported-op", "the_Frobnicate"),
        ("invalid-name", "the_Add"),
        ("invalid-shape", "the_MatMul"),
        ("invalid-attribute", "the_Transpose"),
        ("unsupported-op", "the_Grumble"),
    ];
    assert_eq!(found, want.map(|(a, b)| (a.to_string(), b.to_string())));
    let text = problems[2].to_string();
    assert!(text.contains("f32[2, 3]") && text.contains("opset 21") && text.contains("the_MatMul"), "{text}");
}

#[test]
fn a_problem_in_a_subgraph_is_named_by_its_path() {
    let mut m = everything();
    let g = m.graph.as_mut().unwrap();
    g.node[0].attribute[0].g.as_mut().unwrap().node[0].op_type = "Frobnicate".into();
    let p = problem(&m);
    assert_eq!((p.kind, p.code), (Kind::Unsupported, Code::Op));
    assert_eq!(p.node.unwrap().path, "the_If/then_branch/the_Relu");
}

#[test]
fn missing_ranks_and_opsets_are_named() {
    let mut v = info("x", 1, &[]);
    if let Some(type_proto::Value::TensorType(t)) = &mut v.type_.as_mut().unwrap().value {
        t.shape = None.into();
    }
    let m = model(&[v], vec![node("Relu", &["x"], &["y"])], vec![], "y");
    let p = problem(&m);
    assert_eq!((p.kind, p.code), (Kind::Unsupported, Code::Dynamic));
    assert!(p.message.contains("\"x\""));
    let mut m = everything();
    m.opset_import[0].version = 9999;
    assert!(import(&m).err().unwrap().iter().any(|p| p.code == Code::Opset));
}

// ---- external data -------------------------------------------------------------------------

#[cfg(unix)]
#[test]
fn external_data_stays_below_the_model() {
    let dir = std::env::temp_dir().join(format!("kernelsmith-frontend-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("model/sub")).unwrap();
    std::fs::write(dir.join("secret"), [0u8; 8]).unwrap();
    std::fs::write(dir.join("model/sub/w"), [1u8; 8]).unwrap();
    let _ = std::os::unix::fs::symlink("../secret", dir.join("model/link"));
    let _ = std::os::unix::fs::symlink("..", dir.join("model/up"));
    let with = |location: &str, offset: &str, length: &str| {
        let mut t = ints("w", &[0]);
        t.raw_data.clear();
        t.data_location = DataLocation::EXTERNAL.into();
        for (k, v) in [("location", location), ("offset", offset), ("length", length)] {
            let mut e = StringStringEntryProto::new();
            e.key = k.into();
            e.value = v.into();
            t.external_data.push(e);
        }
        let m = model(&[info("x", 7, &[Some(1)])], vec![node("Add", &["x", "w"], &["y"])], vec![t], "y");
        let path = dir.join("model/m.onnx");
        std::fs::write(&path, m.write_to_bytes().unwrap()).unwrap();
        load(&path, &ImportOptions::default())
    };
    assert!(with("sub/w", "0", "8").is_ok());
    let escapes = [
        "../secret",
        "link",
        "up/secret",
        "/etc/passwd",
        "sub/../../secret",
        "sub",
        "/dev/zero",
        "",
        "sub/w\0",
        "nothing",
    ];
    for location in escapes {
        let problems = with(location, "0", "8").err().unwrap_or_else(|| panic!("{location:?} was read"));
        assert_eq!(problems[0].code, Code::ExternalData, "{location}");
    }
    for (offset, length) in
        [("8", "8"), ("0", "16"), ("18446744073709551615", "8"), ("-1", "8"), ("0", "4"), ("x", "8")]
    {
        assert!(with("sub/w", offset, length).is_err(), "{offset} {length}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}
