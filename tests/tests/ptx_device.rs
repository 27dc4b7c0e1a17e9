//! Models on a GPU that is none: `--device ptx-interp`, which is the CUDA runtime over an interpreter of PTX text.
#![cfg(feature = "cuda")]

use kernelsmith::cache::CacheOptions;
use kernelsmith::debug::{Repro, Road, Roads};
use kernelsmith::interp::{Interp, Tolerance, compare};
use kernelsmith::ir::build::{Builder, LoopStep, V};
use kernelsmith::ir::prim::{Monoid, WindowDim};
use kernelsmith::ir::testing::{Options as GraphOptions, random_graph};
use kernelsmith::ir::{DType, Dim, IrError, Module, Tensor};
use kernelsmith::runtime::{CallerStream, Context};
use kernelsmith::{CompileOptions, Compiled, DeviceChoice, arrays, compile_module, compiled, import};
use libloading::Library;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::process::Command;

fn options() -> CompileOptions {
    CompileOptions { device: DeviceChoice::PtxInterp, ..CompileOptions::default() }
}

/// Runs `module` on the device twice and compares with the reference interpreter; the reasons why the host had to help.
fn check(module: Module, inputs: &[Tensor]) -> Vec<&'static str> {
    let compiled = compile_module(module.clone(), &options()).unwrap();
    let mut context = compiled.context();
    let want = Interp::new(&module).run(inputs).unwrap();
    for run in 0..2 {
        let got = compiled.run(&mut context, inputs).unwrap();
        assert_eq!(got.len(), want.len());
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let c = compare(g, w, Tolerance::of_network(w.dtype));
            assert!(c.passes(), "run {run}, output {i}: {c}");
        }
    }
    assert!(context.launches() > 0, "no kernel ran on the device");
    let mut reasons: Vec<_> = context.host_ops().iter().map(|op| op.reason).collect();
    reasons.sort_unstable();
    reasons.dedup();
    reasons
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples").join(name)
}

/// The model `name` of the examples, and its samples; of the first input the first `most` rows.
fn of_examples(name: &str, most: usize) -> (Module, Vec<Tensor>) {
    let dir = example(name);
    let module = import(&dir.join(format!("{name}.onnx")), &CompileOptions::default()).unwrap().module;
    let (_, samples) = arrays::read_npz(&dir.join("samples.npz")).unwrap().remove(0);
    let all = samples.into_tensor(DType::F32).unwrap();
    let rows = all.shape[0].min(most);
    let bytes = all.data.len() / all.shape[0] * rows;
    let mut shape = all.shape.clone();
    shape[0] = rows;
    (module, vec![Tensor::new(DType::F32, shape, all.data[..bytes].to_vec())])
}

#[test]
fn digits_run_wholly_on_the_device() {
    let (module, inputs) = of_examples("digits", 13);
    assert!(check(module, &inputs).is_empty());
}

#[test]
fn xor_runs_wholly_on_the_device() {
    let (module, inputs) = of_examples("xor", 4);
    assert!(check(module, &inputs).is_empty());
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn dims(d: &[i64]) -> Vec<Dim> {
    d.iter().map(|&d| d.into()).collect()
}

/// Weights whose products keep their size: deviation 1/sqrt(`fan_in`).
fn weight(b: &mut Builder, shape: &[usize], fan_in: usize, seed: u64) -> V {
    b.random_constant(DType::F32, shape, seed, 0.0, 1.0 / (fan_in as f64).sqrt()).unwrap()
}

/// A language model: tokens[T, B] -> embeddings -> LSTM -> logits[T, B, 50].
fn lstm() -> Module {
    const HIDDEN: usize = 32;
    let mut b = Builder::new("lstm");
    let (time, batch) = (b.symbol("time", 1, 64), b.symbol("batch", 1, 16));
    let tokens = b.input("tokens", DType::I64, vec![time.clone(), batch.clone()]);
    let table = weight(&mut b, &[50, HIDDEN], 1, 1);
    let (wx, wh) =
        (weight(&mut b, &[HIDDEN, 4 * HIDDEN], HIDDEN, 2), weight(&mut b, &[HIDDEN, 4 * HIDDEN], 64, 3));
    let out = weight(&mut b, &[HIDDEN, 50], HIDDEN, 4);
    let x = b.gather(table, tokens, 0).unwrap();
    let gates = b.matmul(x, wx).unwrap();
    let zero = b.full(DType::F32, &[batch, (HIDDEN as i64).into()], 0.0).unwrap();
    let trip = b.dim_value(&time).unwrap();
    let done = b
        .loop_::<IrError>(Some(trip), None, &[zero, zero], |b, t, state| {
            let (now, past) = (b.gather(gates, t, 0)?, b.matmul(state[0], wh)?);
            let sum = b.add(now, past)?;
            let parts = b.split(sum, 1, &dims(&[HIDDEN as i64; 4]))?;
            let (i, f, o) = (b.sigmoid(parts[0])?, b.sigmoid(parts[1])?, b.sigmoid(parts[2])?);
            let g = b.tanh(parts[3])?;
            let (kept, new) = (b.mul(f, state[1])?, b.mul(i, g)?);
            let c = b.add(kept, new)?;
            let shown = b.tanh(c)?;
            let h = b.mul(o, shown)?;
            Ok(LoopStep { cond: b.scalar(DType::Bool, 1.0)?, carried: vec![h, c], scans: vec![h] })
        })
        .unwrap();
    let logits = b.matmul(done[2], out).unwrap();
    b.finish(&[("logits".into(), logits), ("hidden".into(), done[0])]).unwrap()
}

#[test]
fn an_lstm_language_model() {
    let tokens: Vec<i64> = (0..12).map(|i| i * 7 % 50).collect();
    let reasons = check(lstm(), &[Tensor::from_i64(vec![4, 3], &tokens)]);
    assert_eq!(reasons, ["a loop over kernels"]);
}

fn softmax(b: &mut Builder, x: V, axis: usize) -> V {
    let max = b.reduce_max(x, &[axis], true).unwrap();
    let shifted = b.sub(x, max).unwrap();
    let e = b.exp(shifted).unwrap();
    let sum = b.reduce_sum(e, &[axis], true).unwrap();
    b.div(e, sum).unwrap()
}

fn normalise(b: &mut Builder, x: V) -> V {
    let mean = b.reduce_mean(x, &[2], true).unwrap();
    let apart = b.sub(x, mean).unwrap();
    let square = b.mul(apart, apart).unwrap();
    let variance = b.reduce_mean(square, &[2], true).unwrap();
    let more = b.add_scalar(variance, 1e-5).unwrap();
    let deviation = b.sqrt(more).unwrap();
    b.div(apart, deviation).unwrap()
}

/// One encoder layer: x[B, S, 64], 4 heads of 16, feed-forward of 128.
fn bert() -> Module {
    let mut b = Builder::new("bert");
    let (batch, seq) = (b.symbol("batch", 1, 8), b.symbol("seq", 1, 128));
    let x = b.input("x", DType::F32, vec![batch.clone(), seq.clone(), 64.into()]);
    let mut heads = Vec::new();
    for seed in 0..3 {
        let w = weight(&mut b, &[64, 64], 64, 10 + seed);
        let p = b.matmul(x, w).unwrap();
        let split = b.reshape(p, &[batch.clone(), seq.clone(), 4.into(), 16.into()]).unwrap();
        heads.push(b.transpose(split, &[0, 2, 1, 3]).unwrap());
    }
    let keys = b.transpose(heads[1], &[0, 1, 3, 2]).unwrap();
    let scores = b.matmul(heads[0], keys).unwrap();
    let scaled = b.mul_scalar(scores, 0.25).unwrap();
    let weights = softmax(&mut b, scaled, 3);
    let mixed = b.matmul(weights, heads[2]).unwrap();
    let back = b.transpose(mixed, &[0, 2, 1, 3]).unwrap();
    let joined = b.reshape(back, &[batch, seq, 64.into()]).unwrap();
    let w = weight(&mut b, &[64, 64], 64, 20);
    let attended = b.matmul(joined, w).unwrap();
    let sum = b.add(x, attended).unwrap();
    let h = normalise(&mut b, sum);
    let (up, down) = (weight(&mut b, &[64, 128], 64, 21), weight(&mut b, &[128, 64], 128, 22));
    let wide = b.matmul(h, up).unwrap();
    let scaled = b.mul_scalar(wide, std::f64::consts::FRAC_1_SQRT_2).unwrap();
    let erf = b.erf(scaled).unwrap();
    let one = b.add_scalar(erf, 1.0).unwrap();
    let gate = b.mul_scalar(one, 0.5).unwrap();
    let gelu = b.mul(wide, gate).unwrap();
    let narrow = b.matmul(gelu, down).unwrap();
    let sum = b.add(h, narrow).unwrap();
    let y = normalise(&mut b, sum);
    b.finish(&[("y".into(), y)]).unwrap()
}

#[test]
fn one_layer_of_bert() {
    for (batch, seq) in [(1, 9), (2, 20)] {
        let x = arrays::random(DType::F32, vec![batch, seq, 64], 1);
        assert!(check(bert(), &[x]).is_empty());
    }
}

/// A convolution over square images, `same` padding, and its ReLU.
fn conv(b: &mut Builder, x: V, (from, to): (usize, usize), (size, stride): (usize, i64), relu: bool) -> V {
    let w = weight(b, &[to, from, size, size], from * size * size, (from * 100 + to * 10 + size) as u64);
    let pad: Dim = (size as i64 / 2).into();
    let window = WindowDim { stride, pad_lo: pad.clone(), pad_hi: pad, ..WindowDim::unit() };
    let y = b.convolve(x, w, &[window.clone(), window], 1, DType::F32).unwrap();
    if !relu {
        return y;
    }
    let zero = b.scalar(DType::F32, 0.0).unwrap();
    b.max(y, zero).unwrap()
}

/// images[N, 3, 16, 16] -> stem, max pooling, two residual blocks, mean, 10 classes.
fn resnet() -> Module {
    let mut b = Builder::new("resnet");
    let n = b.symbol("batch", 1, 8);
    let x = b.input("images", DType::F32, vec![n, 3.into(), 16.into(), 16.into()]);
    let stem = conv(&mut b, x, (3, 16), (3, 1), true);
    let window = WindowDim { stride: 2, pad_lo: 1.into(), pad_hi: 1.into(), ..WindowDim::unit() };
    let units = [WindowDim::unit(), WindowDim::unit(), window.clone(), window];
    let pooled = b.window_reduce(Monoid::Max, stem, &[1, 1, 3, 3], &units).unwrap();
    let a = conv(&mut b, pooled, (16, 16), (3, 1), true);
    let a = conv(&mut b, a, (16, 16), (3, 1), false);
    let zero = b.scalar(DType::F32, 0.0).unwrap();
    let sum = b.add(a, pooled).unwrap();
    let first = b.max(sum, zero).unwrap();
    let c = conv(&mut b, first, (16, 32), (3, 2), true);
    let c = conv(&mut b, c, (32, 32), (3, 1), false);
    let skip = conv(&mut b, first, (16, 32), (1, 2), false);
    let sum = b.add(c, skip).unwrap();
    let second = b.max(sum, zero).unwrap();
    let mean = b.reduce_mean(second, &[2, 3], false).unwrap();
    let w = weight(&mut b, &[32, 10], 32, 99);
    let y = b.matmul(mean, w).unwrap();
    b.finish(&[("classes".into(), y)]).unwrap()
}

#[test]
fn a_small_resnet() {
    for batch in [1, 2] {
        let x = arrays::random(DType::F32, vec![batch, 3, 16, 16], 5);
        assert!(check(resnet(), &[x]).is_empty());
    }
}

/// Sizes that are values come back from the device, and so do conditions.
#[test]
fn the_host_reads_what_it_must() {
    let mut b = Builder::new("compact");
    let x = b.input("x", DType::F32, vec![40.into()]);
    let zero = b.scalar(DType::F32, 0.0).unwrap();
    let positive = b.gt(x, zero).unwrap();
    let at = b.compact(positive).unwrap();
    let module = b.finish(&[("at".into(), at)]).unwrap();
    let reasons = check(module, &[arrays::random(DType::F32, vec![40], 3)]);
    assert_eq!(reasons, ["its value is a size"]);
}

fn gather() -> Module {
    let mut b = Builder::new("gather");
    let table = b.input("table", DType::F32, dims(&[8, 3]));
    let rows = b.input("rows", DType::I64, dims(&[4]));
    let y = b.gather(table, rows, 0).unwrap();
    b.finish(&[("y".into(), y)]).unwrap()
}

#[test]
fn an_index_out_of_range_is_an_error_and_leaves_the_context_usable() {
    let compiled = compile_module(gather(), &options()).unwrap();
    let mut context = compiled.context();
    let table = arrays::random(DType::F32, vec![8, 3], 1);
    let mut run =
        |rows: [i64; 4]| compiled.run(&mut context, &[table.clone(), Tensor::from_i64(vec![4], &rows)]);
    let e = run([0, 1, 9, 2]).unwrap_err().to_string();
    assert!(e.contains("index 9 out of range 0..8"), "{e}");
    let y = run([3, 1, 7, 2]).unwrap();
    assert_eq!(y[0].data[..12], table.data[36..48]);
}

/// A cache that grows by a row each run stays on the device.
#[test]
fn states_stay_on_the_device() {
    let mut b = Builder::new("step");
    let past = b.symbol("past", 0, 64);
    let row = b.input("row", DType::F32, dims(&[1, 16]));
    let cache = b.input("cache", DType::F32, vec![past, 16.into()]);
    let all = b.concat(&[cache, row], 0).unwrap();
    let sum = b.reduce_sum(all, &[0], false).unwrap();
    let module = b.finish(&[("sum".into(), sum), ("all".into(), all)]).unwrap();
    let state = kernelsmith::StateSpec { input: "cache".into(), output: "all".into(), capacity: 8 };
    let compiled = compile_module(module, &CompileOptions { states: vec![state], ..options() }).unwrap();
    let mut context = compiled.context();
    let mut total = vec![0.0f32; 16];
    for step in 0..5u64 {
        let row = arrays::random(DType::F32, vec![1, 16], step);
        for (t, x) in total.iter_mut().zip(floats(&row)) {
            *t += x;
        }
        let outputs = compiled.run(&mut context, &[row]).unwrap();
        let sum = floats(&outputs[0]);
        assert!(sum.iter().zip(&total).all(|(a, b)| (a - b).abs() < 1e-5), "{sum:?} {total:?}");
        assert_eq!(outputs[1].shape, [step as usize + 1, 16]);
    }
}

/// The second run with the same sizes is recorded, later ones replay it, whatever other sizes come between: memory that
/// grows for larger ones stays where it is.
#[test]
fn repeated_sizes_are_replayed() {
    let module = resnet();
    let compiled = compile_module(module.clone(), &options()).unwrap();
    let mut context = compiled.context();
    let mut kernels = Vec::new();
    for (run, (batch, replays)) in
        [(2, 0), (2, 1), (2, 2), (1, 2), (2, 3), (1, 4), (1, 5), (3, 5), (2, 6)].into_iter().enumerate()
    {
        let x = arrays::random(DType::F32, vec![batch, 3, 16, 16], run as u64);
        let before = context.launches();
        let got = compiled.run(&mut context, std::slice::from_ref(&x)).unwrap();
        let want = Interp::new(&module).run(&[x]).unwrap();
        let c = compare(&got[0], &want[0], Tolerance::of_network(DType::F32));
        assert!(c.passes(), "run {run}: {c}");
        assert_eq!(context.replays(), replays, "run {run}");
        kernels.push(context.launches() - before);
    }
    // what was recorded goes with the memory
    context.trim().unwrap();
    assert_eq!(context.arena_bytes(), 0);
    assert!(context.output(0).is_none_or(|o| o.data.is_empty()));
    let x = arrays::random(DType::F32, vec![2, 3, 16, 16], 77);
    let got = compiled.run(&mut context, std::slice::from_ref(&x)).unwrap();
    let want = Interp::new(&module).run(&[x]).unwrap();
    assert!(compare(&got[0], &want[0], Tolerance::of_network(DType::F32)).passes());
    assert_eq!(context.replays(), 6);
    // a replay is as many kernels as a plain run
    assert!(kernels.iter().all(|k| *k == kernels[0]), "{kernels:?}");
}

#[test]
fn runs_can_be_waited_for_later() {
    let (compiled, inputs) = compile_xor(false).unwrap();
    let want = compiled.run(&mut compiled.context(), &inputs).unwrap();
    let mut context = compiled.context();
    for _ in 0..3 {
        context.run_async(&compiled::views(&inputs)).unwrap();
        assert!(context.output(0).is_none(), "an output that nobody has waited for");
        context.wait().unwrap();
        assert_eq!(compiled.outputs(&context).unwrap(), want);
    }
    // an error that only the device can find
    let compiled = compile_module(gather(), &options()).unwrap();
    let mut context = compiled.context();
    let given = [arrays::random(DType::F32, vec![8, 3], 1), Tensor::from_i64(vec![4], &[0, 8, 1, 2])];
    context.run_async(&compiled::views(&given)).unwrap();
    let e = context.wait().unwrap_err().to_string();
    assert!(e.contains("index 8 out of range 0..8"), "{e}");
    assert!(context.output(0).is_none());
}

/// A stream of the caller: runs are in its order, and it outlives the context.
#[test]
fn runs_on_a_stream_of_the_caller() {
    let (compiled, inputs) = compile_xor(false).unwrap();
    let want = compiled.run(&mut compiled.context(), &inputs).unwrap();
    let name =
        format!("{}kernelsmith_ptx_driver{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let driver = std::env::current_exe().unwrap().with_file_name(name);
    let mut handle = std::ptr::null_mut::<c_void>();
    // SAFETY: the library is the one that the model has been loaded through, so that this thread is in its context; the
    // signatures are the driver's.
    let (wait, destroy, on) = unsafe {
        type OfStream = unsafe extern "C" fn(*mut c_void) -> u32;
        let library: &'static Library = Box::leak(Box::new(Library::new(driver).unwrap()));
        let create =
            library.get::<unsafe extern "C" fn(*mut *mut c_void, u32) -> u32>("cuStreamCreate").unwrap();
        assert_eq!(create(&mut handle, 1), 0);
        let wait = library.get::<OfStream>("cuStreamSynchronize").unwrap();
        (wait, library.get::<OfStream>("cuStreamDestroy_v2").unwrap(), CallerStream::new(handle))
    };
    let mut context = Context::on_stream(compiled.model.clone(), on);
    for _ in 0..3 {
        context.run_async(&compiled::views(&inputs)).unwrap();
        // SAFETY: alive.
        assert_eq!(unsafe { wait(handle) }, 0);
        context.wait().unwrap();
        assert_eq!(compiled.outputs(&context).unwrap(), want);
    }
    assert_eq!(context.replays(), 2);
    drop(context);
    // SAFETY: alive until the second call.
    assert_eq!(unsafe { (wait(handle), destroy(handle)) }, (0, 0));
    // one that is gone, and one on a processor without streams
    let mut context = Context::on_stream(compiled.model.clone(), on);
    let e = context.run(&compiled::views(&inputs)).unwrap_err().to_string();
    assert!(e.contains("invalid resource handle"), "{e}");
    let (module, _) = of_examples("xor", 4);
    let cpu = compile_module(module, &CompileOptions::default()).unwrap();
    let mut context = Context::on_stream(cpu.model.clone(), on);
    assert_eq!(context.run(&compiled::views(&inputs)).unwrap_err().to_string(), "a CPU has no streams");
}

/// Machine code that the driver has made is kept from start to start, and made anew where anything is wrong with it.
#[test]
fn machine_code_is_kept() {
    let dir = TempDir::new("binaries");
    let cache = Some(CacheOptions { dir: dir.0.clone(), max_bytes: 1 << 30 });
    let load = || {
        let (module, inputs) = of_examples("xor", 4);
        let compiled = compile_module(module, &CompileOptions { cache: cache.clone(), ..options() }).unwrap();
        let out = compiled.run(&mut compiled.context(), &inputs).unwrap();
        let kept = compiled.model.kept_kernels();
        (kept, compiled.model.program().objects.len(), out)
    };
    let (kept, all, want) = load();
    assert!(kept == 0 && all > 1, "{kept} of {all}");
    assert_eq!(load(), (all, all, want.clone()));
    // damaged: nobody is told the difference
    let files = || std::fs::read_dir(dir.0.join("v1/kernels")).unwrap().map(|e| e.unwrap().path());
    for (i, path) in files().enumerate() {
        let mut bytes = std::fs::read(&path).unwrap();
        match i % 2 {
            0 => *bytes.last_mut().unwrap() ^= 1,
            _ => bytes.truncate(bytes.len() / 2),
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert_eq!(load(), (0, all, want.clone()));
    assert_eq!(load(), (all, all, want.clone()));
    // many at once, with nothing there
    files().for_each(|path| std::fs::remove_file(path).unwrap());
    std::thread::scope(|s| {
        let starts: Vec<_> = (0..4).map(|_| s.spawn(load)).collect();
        starts.into_iter().for_each(|t| assert_eq!(t.join().unwrap().2, want));
    });
    assert_eq!(load(), (all, all, want));
    // a driver that refuses what it finds, or makes nothing that could be kept
    for fault in ["binary", "link"] {
        let said = failing_with(fault, "kept", &[("KS_CACHE", dir.0.as_os_str())]);
        assert!(said.contains(if fault == "link" { "all is well" } else { "kept: 0" }), "{fault}: {said}");
    }
}

/// A directory that goes with this value.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> TempDir {
        let dir = std::env::temp_dir().join(format!("kernelsmith-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        TempDir(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

// ---- failures ---------------------------------------------------------------------------------------------

fn compile_xor(check_launches: bool) -> Result<(Compiled, Vec<Tensor>), kernelsmith::Error> {
    let (module, inputs) = of_examples("xor", 4);
    let cache = std::env::var_os("KS_CACHE").map(|dir| CacheOptions { dir: dir.into(), max_bytes: 1 << 30 });
    Ok((compile_module(module, &CompileOptions { check_launches, cache, ..options() })?, inputs))
}

/// What other tests start as a process of its own, with failures in the environment.
#[test]
#[ignore = "no test by itself: the tests of failures start it as a process of its own, with a driver that fails"]
fn child() {
    let Some(kind) = std::env::var_os("KS_CHILD") else { return };
    if kind == "maps" {
        return every_mapping_fails_once();
    }
    let result = compile_xor(kind == "checked").and_then(|(compiled, inputs)| {
        println!("kept: {}", compiled.model.kept_kernels());
        let mut context = compiled.context();
        let first = compiled.run(&mut context, &inputs);
        if let (Err(first), "twice") = (&first, kind.to_str().unwrap_or("")) {
            println!("first: {first}");
            return compiled.run(&mut context, &inputs);
        }
        first
    });
    match result {
        Ok(_) => println!("said: all is well"),
        Err(e) => println!("said: {e} (exit status {})", e.exit_code()),
    }
}

/// x[N, 64] -> two layers; memory grows with N.
fn layers() -> Module {
    let mut b = Builder::new("layers");
    let n = b.symbol("N", 1, 1000);
    let x = b.input("x", DType::F32, vec![n, 64.into()]);
    let (v, w) = (weight(&mut b, &[64, 48], 64, 1), weight(&mut b, &[48, 32], 48, 2));
    let h = b.matmul(x, v).unwrap();
    let h = b.tanh(h).unwrap();
    let y = b.matmul(h, w).unwrap();
    b.finish(&[("y".into(), y)]).unwrap()
}

/// Whichever mapping of memory the driver refuses, that is said, and the next attempt succeeds.
fn every_mapping_fails_once() {
    let sizes = [3, 40, 41, 200];
    let inputs = sizes.map(|n| arrays::random(DType::F32, vec![n, 64], n as u64));
    let run = |fault: &str| {
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var("KERNELSMITH_PTX_FAULT", fault) };
        let mut failures = 0;
        let mut expect_memory = |e: String| {
            assert!(e.contains("out of device memory"), "{fault}: {e}");
            failures += 1;
            assert_eq!(failures, 1, "{fault}");
        };
        let compiled = match compile_module(layers(), &options()) {
            Ok(compiled) => compiled,
            Err(e) => {
                expect_memory(e.to_string());
                return (failures, None);
            }
        };
        let mut context = compiled.context();
        let mut outputs = Vec::new();
        for input in &inputs {
            let input = std::slice::from_ref(input);
            let mut out = compiled.run(&mut context, input);
            if let Err(e) = &out {
                expect_memory(e.to_string());
                out = compiled.run(&mut context, input);
            }
            outputs.push(out.unwrap());
        }
        (failures, Some(outputs))
    };
    let (none, want) = run("");
    assert_eq!(none, 0);
    let mut faults = 0;
    loop {
        let (failures, outputs) = run(&format!("map={}", faults + 1));
        assert!(outputs.is_none() || outputs == want, "mapping {} fails", faults + 1);
        if failures == 0 {
            break;
        }
        faults += 1;
    }
    // in the ordinary way
    assert_eq!(run("no-maps"), (0, want));
    assert!(faults >= 6, "{faults} mappings");
    println!("said: all is well ({faults} mappings)");
}

#[test]
fn mappings_that_fail_can_be_tried_again() {
    assert!(failing("", "maps").contains("all is well"));
}

/// What running XOR says when the driver fails like this.
fn failing(fault: &str, kind: &str) -> String {
    failing_with(fault, kind, &[])
}

/// As above, with more in the environment.
fn failing_with(fault: &str, kind: &str, variables: &[(&str, &std::ffi::OsStr)]) -> String {
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--include-ignored", "--nocapture"])
        .env("KS_CHILD", kind)
        .env("KERNELSMITH_PTX_FAULT", fault)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("said: "), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    text
}

#[test]
fn failures_of_the_driver_are_said_clearly() {
    assert!(failing("", "").contains("all is well"));
    for (fault, words, status) in [
        ("no-device", "the CUDA driver has no device", 6),
        ("no-devices-listed", "the CUDA driver has no device", 6),
        ("old-driver", "too old: for CUDA 11.4; 12.0 or later is needed", 6),
        ("old-device", "capability is 7.0, 8.0 or later", 6),
        ("memory=1000", "out of device memory", 5),
        ("assemble", "loading kernel", 70),
        ("refuse=2", "launching kernel", 70),
        ("launch=2", "the device failed: unspecified launch failure", 6),
    ] {
        let said = failing(fault, "");
        assert!(said.contains(words) && said.contains(&format!("exit status {status}")), "{fault}: {said}");
    }
}

/// Work is done when it is waited for: an error names what was pending, and with `check_launches` the culprit alone.
#[test]
fn a_failing_kernel_is_named() {
    let (compiled, _) = compile_xor(false).unwrap();
    let init = compiled.model.init_launches();
    let late = format!("launch={}", init + 2);
    let said = failing(&late, "");
    let pending = said.split("the fault is in one of: ").nth(1).unwrap();
    assert!(pending.matches("(node ").count() >= 2, "{said}");
    let said = failing(&late, "checked");
    let pending = said.split("the fault is in one of: ").nth(1).unwrap();
    assert_eq!(pending.matches("(node ").count(), 1, "{said}");
    // the context is dead afterwards, and says so
    let said = failing(&late, "twice");
    assert!(
        said.contains("first: the device failed") && said.contains("dead since an earlier error"),
        "{said}"
    );
}

// ---- random graphs ----------------------------------------------------------------------------------------

/// Warp instructions that one launch of a random graph may take.
const STEPS: u64 = 2_000_000;

/// Graphs of all primitives and types, static and symbolic, in a process of its own that counts warp instructions;
/// `kernelsmith fuzz-graphs --device ptx-interp` runs as many as are asked for.
#[test]
fn random_graphs_agree_with_the_reference() {
    if std::env::var_os("KS_GRAPHS_CHILD").is_none() {
        let name = "random_graphs_agree_with_the_reference";
        // in order, and in an order of warps that a seed makes
        for how in ["", ",seed=7"] {
            let out = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env("KS_GRAPHS_CHILD", "1")
                .env("KERNELSMITH_PTX_INTERP", format!("steps={STEPS}{how}"))
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&out.stdout);
            assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
        }
        return;
    }
    let mut roads = Roads { options: CompileOptions::default(), ort: None };
    let road = Road::Device(DeviceChoice::PtxInterp);
    for seed in 0..60 {
        let kind = seed % 4;
        let graph = GraphOptions { control: kind == 3, symbolic: kind % 2 == 1, ..GraphOptions::default() };
        let repro = Repro::of_case(&random_graph(seed, &graph));
        let bounds = repro.reference(false).unwrap();
        if let Some(fault) = roads.check(&road, &repro, &bounds) {
            panic!("seed {seed}: {fault}\n{}", kernelsmith::ir::text::graph::print(&repro.module));
        }
    }
}

#[test]
fn many_callers_share_a_model() {
    let (compiled, inputs) = compile_xor(false).unwrap();
    let want = compiled.run(&mut compiled.context(), &inputs).unwrap();
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                let mut context = compiled.context();
                for _ in 0..3 {
                    context.run(&compiled::views(&inputs)).unwrap();
                    assert_eq!(compiled.outputs(&context).unwrap(), want);
                }
            });
        }
    });
}
