//! Real models at several sizes: compiled once, right at each, nothing allocated in the steady state.
//!
//! `KS_MODELS` names a folder with hydrated models (`bert_base.onnx`, ...); without it the tests say that they
//! are skipped. The reference is the interpreter on the imported graph.

use kernelsmith::interp::{Interp, Tolerance, compare};
use kernelsmith::ir::{DType, Module, Tensor};
use kernelsmith::{CompileOptions, Compiled, arrays, codegen, compile_module, compiled, import};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;

struct Counting;

thread_local! {
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
}

// SAFETY: every call is handed to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        // a thread that is going away has nothing to count
        let _ = COUNT.try_with(|c| c.set(c.get().map(|n| n + 1)));
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(l) }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(p, l) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn model(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("KS_MODELS").map(|d| PathBuf::from(d).join(format!("{name}.onnx")));
    match path.filter(|p| p.is_file()) {
        Some(p) => Some(p),
        None => {
            eprintln!("skipped: KS_MODELS names no folder with {name}.onnx");
            None
        }
    }
}

/// Inputs for the named sizes: tokens below 1000, masks of ones, everything else normal.
fn inputs(module: &Module, sizes: &[(&str, i64)]) -> Vec<Tensor> {
    let size = |s| {
        let name = &module.symbols.get(s).name;
        sizes.iter().find(|(n, _)| n == name).map(|x| x.1)
    };
    let mut all = Vec::new();
    for (i, &v) in module.graph.inputs.iter().enumerate() {
        let value = &module.graph[v];
        let shape: Vec<usize> =
            value.ty.shape.iter().map(|d| d.eval_syms(&size).expect("a size") as usize).collect();
        let name = value.name.clone().unwrap_or_default();
        let n: usize = shape.iter().product();
        all.push(match value.ty.dtype {
            DType::I64 if name.contains("mask") => Tensor::from_i64(shape, &vec![1; n]),
            DType::I64 if name.contains("position") => Tensor::from_i64(shape, &vec![3; n]),
            DType::I64 if name.contains("type") => Tensor::from_i64(shape, &vec![0; n]),
            DType::I64 => Tensor::from_i64(shape, &(0..n as i64).map(|i| i * 37 % 1000).collect::<Vec<_>>()),
            dtype => arrays::random(dtype, shape, i as u64),
        });
    }
    all
}

fn check(module: &Module, compiled: &Compiled, inputs: &[Tensor], what: &str) {
    let mut context = compiled.context();
    let got = compiled.run(&mut context, inputs).unwrap();
    let want = Interp::new(module).run(inputs).unwrap();
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let c = compare(g, w, Tolerance::of_network(w.dtype));
        assert!(c.passes(), "{what}, output {i}: {c}");
    }
}

fn at_three_sizes(name: &str, sizes: [&[(&str, i64)]; 3]) {
    let Some(path) = model(name) else { return };
    let module = import(&path, &CompileOptions::default()).unwrap().module;
    let compiled = compile_module(module.clone(), &CompileOptions::default()).unwrap();
    let functions = codegen::functions_compiled();
    for s in sizes {
        check(&module, &compiled, &inputs(&module, s), &format!("{name} at {s:?}"));
    }
    assert_eq!(codegen::functions_compiled(), functions, "{name}: sizes must not compile anything");
    println!("{name}: 1 compilation, right at {sizes:?}");
}

#[test]
fn bert_base_at_three_sizes() {
    at_three_sizes(
        "bert_base",
        [&[("batch", 1), ("seq", 16)], &[("batch", 2), ("seq", 33)], &[("batch", 1), ("seq", 128)]],
    );
}

#[test]
fn resnet50_dynamic_at_three_sizes() {
    at_three_sizes("resnet50_dynamic", [&[("batch", 1)], &[("batch", 2)], &[("batch", 3)]]);
}

#[test]
fn gpt2_past_at_three_sizes() {
    at_three_sizes(
        "gpt2_past",
        [
            &[("batch", 1), ("seq", 1), ("past", 7), ("past_plus_seq", 8)],
            &[("batch", 1), ("seq", 5), ("past", 0), ("past_plus_seq", 5)],
            &[("batch", 2), ("seq", 2), ("past", 31), ("past_plus_seq", 33)],
        ],
    );
}

#[test]
fn gpt2_past_decodes_without_allocating() {
    let Some(path) = model("gpt2_past") else { return };
    let module = import(&path, &CompileOptions::default()).unwrap().module;
    let compiled = compile_module(module.clone(), &CompileOptions::default()).unwrap();
    let functions = codegen::functions_compiled();
    let mut context = compiled.context();
    let sizes = |past: i64| [("batch", 1), ("seq", 1), ("past", past), ("past_plus_seq", past + 1)];
    // the largest size once: memory keeps its high-water mark
    compiled.run(&mut context, &inputs(&module, &sizes(40))).unwrap();
    let mut now = inputs(&module, &sizes(20));
    for step in 0..10i64 {
        let views = compiled::views(&now);
        COUNT.with(|c| c.set(Some(0)));
        let result = context.run(&views);
        let n = COUNT.with(|c| c.replace(None));
        result.unwrap();
        assert_eq!(n, Some(0), "heap allocations in step {step}");
        // outputs after the logits are the grown cache, in the order of the cache inputs
        let outputs = compiled.outputs(&context).unwrap();
        let mut next = inputs(&module, &sizes(21 + step));
        let cache: Vec<usize> = (0..next.len()).filter(|&i| next[i].shape.len() == 4).collect();
        for (&i, grown) in cache.iter().zip(&outputs[1..]) {
            assert_eq!(grown.shape, next[i].shape, "step {step}");
            next[i] = grown.clone();
        }
        now = next;
    }
    assert_eq!(codegen::functions_compiled(), functions);
    println!("gpt2_past: 10 decode steps, 1 compilation, 0 heap allocations");
}
