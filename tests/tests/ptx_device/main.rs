//! Models on a GPU that is none: `--device ptx-interp`, which is the CUDA runtime over an interpreter of PTX text.
#![cfg(feature = "cuda")]

mod failures;
mod models;
mod parts;

use failures::{compile_xor, failing_with};
use kernelsmith::cache::CacheOptions;
use kernelsmith::debug::{Repro, Road, Roads};
use kernelsmith::interp::{Interp, Tolerance, compare};
use kernelsmith::ir::build::Builder;
use kernelsmith::ir::graph::Origin;
use kernelsmith::ir::prim::Combine;
use kernelsmith::ir::testing::{Options as GraphOptions, random_graph};
use kernelsmith::ir::{DType, Module, Tensor};
use kernelsmith::runtime::{CallerStream, Context, Event};
use kernelsmith::{CompileOptions, DeviceChoice, arrays, compile_module, compiled, import};
use libloading::Library;
use models::{bert, dims, lstm, resnet};
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

#[test]
fn an_lstm_language_model() {
    let tokens: Vec<i64> = (0..12).map(|i| i * 7 % 50).collect();
    let reasons = check(lstm(), &[Tensor::from_i64(vec![4, 3], &tokens)]);
    assert_eq!(reasons, ["a loop over kernels"]);
}

#[test]
fn one_layer_of_bert() {
    for (batch, seq) in [(1, 9), (2, 20)] {
        let x = arrays::random(DType::F32, vec![batch, seq, 64], 1);
        assert!(check(bert(), &[x]).is_empty());
    }
}

#[test]
fn a_small_resnet() {
    for batch in [1, 2] {
        let x = arrays::random(DType::F32, vec![batch, 3, 16, 16], 5);
        assert!(check(resnet(), &[x]).is_empty());
    }
}

/// One program for sizes that fill tiles, end in them, are too short for any, or nothing.
#[test]
fn transposed_by_sizes_from_outside() {
    let mut b = Builder::new("transposed");
    let [n, h, w] = ["n", "h", "w"].map(|s| b.symbol(s, 0, 4096));
    let x = b.input("x", DType::F32, vec![n.clone(), h.clone(), w.clone()]);
    let z = b.input("z", DType::F32, vec![n, w, h]);
    let x = b.transpose(x, &[0, 2, 1]).unwrap();
    let y = b.add(x, z).unwrap();
    let module = b.finish(&[("y".into(), y)]).unwrap();
    let compiled = compile_module(module.clone(), &options()).unwrap();
    let mut context = compiled.context();
    for [n, h, w] in [
        [2, 64, 128],
        [1, 127, 67],
        [3, 16, 200],
        [2, 15, 64],
        [0, 64, 64],
        [1, 0, 64],
        [1, 1, 1],
        [1, 65, 64],
    ] {
        let inputs =
            [arrays::random(DType::F32, vec![n, h, w], 1), arrays::random(DType::F32, vec![n, w, h], 2)];
        let want = Interp::new(&module).run(&inputs).unwrap();
        let got = compiled.run(&mut context, &inputs).unwrap();
        let c = compare(&got[0], &want[0], Tolerance::of_network(DType::F32));
        assert!(c.passes(), "{n} x {h} x {w}: {c}");
    }
    assert!(context.launches() > 0, "no kernel ran on the device");
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
    b.set_origin(Origin { node: "lookup".into(), op_type: "Gather".into(), opset: 13 });
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
    assert!(e.contains("index 9 out of range 0..8 at node \"lookup\" (Gather-13)"), "{e}");
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
        // of a device that works only when it is asked
        let mut asked = 0;
        while !context.is_done().unwrap() {
            asked += 1;
        }
        assert!(asked > 0, "it was done at once");
        context.wait().unwrap();
        assert!(context.is_done().unwrap());
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

/// The library that models are loaded through.
fn driver() -> &'static Library {
    let name =
        format!("{}kernelsmith_ptx_driver{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    // SAFETY: its initialisers have run.
    let library = unsafe { Library::new(std::env::current_exe().unwrap().with_file_name(name)) };
    Box::leak(Box::new(library.unwrap()))
}

/// Replays tell of the same calls as a plain run, with times that follow each other.
#[test]
fn replays_are_timed_by_kernel() {
    let module = resnet();
    let compiled = compile_module(module.clone(), &options()).unwrap();
    let mut context = compiled.context();
    let x = [arrays::random(DType::F32, vec![2, 3, 16, 16], 1)];
    let describe = |e: &Event<'_>| {
        let args: Vec<(usize, usize)> = e.args.iter().map(|&b| (b, e.len(b))).collect();
        (e.kernel, e.variant, e.origin, args)
    };
    let mut plain = Vec::new();
    context.run_with(&compiled::views(&x), None, Some(&mut |e| plain.push(describe(e)))).unwrap();
    let (want, launches) = (compiled.outputs(&context).unwrap(), context.launches());
    let mut replays = context.timed_replays(&compiled::views(&x)).unwrap().unwrap();
    for _ in 0..3 {
        let (mut calls, mut sum) = (Vec::new(), 0);
        let tell = &mut |e: &Event<'_>| {
            assert!(e.nanos > 0, "kernel {:?}", e.kernel);
            sum += e.nanos;
            calls.push(describe(e));
        };
        let whole = replays.run(tell).unwrap();
        assert_eq!(calls, plain);
        // no kernel is left out and none counts twice; the driver gives times in 32 bits
        assert!(whole.abs_diff(sum) <= whole / 1000, "{sum} of {whole} ns");
    }
    // two runs were made for the recording
    assert_eq!(context.launches() - launches, 5 * plain.len() as u64);
    assert_eq!(compiled.outputs(&context).unwrap(), want);
    // runs go on as before
    let (replays, recordings) = (context.replays(), context.recordings());
    for seed in 2..4 {
        let x = [arrays::random(DType::F32, vec![2, 3, 16, 16], seed)];
        let got = compiled.run(&mut context, &x).unwrap();
        let want = Interp::new(&module).run(&x).unwrap();
        assert!(compare(&got[0], &want[0], Tolerance::of_network(DType::F32)).passes());
    }
    assert_eq!((context.replays(), context.recordings()), (replays + 2, recordings));
}

#[test]
fn what_is_not_replayed_is_not_timed_in_replays() {
    let tokens: Vec<i64> = (0..12).map(|i| i * 7 % 50).collect();
    let host_loop =
        (compile_module(lstm(), &options()).unwrap(), vec![Tensor::from_i64(vec![4, 3], &tokens)]);
    let (module, inputs) = of_examples("xor", 4);
    let cpu = (compile_module(module, &CompileOptions::default()).unwrap(), inputs);
    for (compiled, inputs) in [host_loop, compile_xor(true).unwrap(), cpu] {
        let mut context = compiled.context();
        assert!(context.timed_replays(&compiled::views(&inputs)).unwrap().is_none());
        assert!(compiled.run(&mut context, &inputs).is_ok());
    }
}

/// Graph and events of timed replays go with them; in a process of its own, whose memory nobody else uses.
#[test]
fn timed_replays_give_their_memory_back() {
    if std::env::var_os("KS_TIMED_CHILD").is_none() {
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "timed_replays_give_their_memory_back", "--nocapture"])
            .env("KS_TIMED_CHILD", "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
        return;
    }
    let (compiled, inputs) = compile_xor(false).unwrap();
    let mut context = compiled.context();
    context.warm_up(&compiled::views(&inputs)).unwrap();
    let library = driver();
    let free = || {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver's signature; this thread is in its context.
        unsafe {
            let info = library.get::<unsafe extern "C" fn(*mut usize, *mut usize) -> u32>("cuMemGetInfo_v2");
            assert_eq!(info.unwrap()(&mut free, &mut total), 0);
        }
        free
    };
    let before = free();
    for _ in 0..3 {
        let mut replays = context.timed_replays(&compiled::views(&inputs)).unwrap().unwrap();
        let mut kernels = 0;
        replays.run(&mut |_| kernels += 1).unwrap();
        assert!(kernels > 1 && free() < before);
        drop(replays);
        assert_eq!(free(), before);
    }
}

/// A stream of the caller: runs are in its order, and it outlives the context.
#[test]
fn runs_on_a_stream_of_the_caller() {
    let (compiled, inputs) = compile_xor(false).unwrap();
    let want = compiled.run(&mut compiled.context(), &inputs).unwrap();
    let mut handle = std::ptr::null_mut::<c_void>();
    // SAFETY: the library is the one that the model has been loaded through, so that this thread is in its context; the
    // signatures are the driver's.
    let (wait, destroy, on) = unsafe {
        type OfStream = unsafe extern "C" fn(*mut c_void) -> u32;
        let library = driver();
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

/// The same bits in every order of warps: nothing is added up in the order in which it happens to be done.
#[test]
fn every_order_of_warps_gives_the_same_bits() {
    if std::env::var_os("KS_BITS_CHILD").is_some() {
        let mut b = Builder::new("scattered");
        let base = b.input("base", DType::F32, dims(&[5, 40]));
        let at = b.input("at", DType::I64, dims(&[30]));
        let updates = b.input("updates", DType::F32, dims(&[30, 40]));
        let y = b.scatter(base, at, updates, Combine::Add).unwrap();
        let scattered = b.finish(&[("y".into(), y)]).unwrap();
        let f32s = |shape: &[usize], seed| arrays::random(DType::F32, shape.to_vec(), seed);
        let indices: Vec<i64> = (0..30).map(|i| i * i % 5).collect();
        let updated = vec![f32s(&[5, 40], 1), Tensor::from_i64(vec![30], &indices), f32s(&[30, 40], 2)];
        for (module, inputs) in [
            (bert(), vec![f32s(&[2, 20, 64], 1)]),
            (resnet(), vec![f32s(&[2, 3, 16, 16], 5)]),
            (scattered, updated),
        ] {
            let compiled = compile_module(module, &options()).unwrap();
            let out = compiled.run(&mut compiled.context(), &inputs).unwrap();
            out.iter().for_each(|t| println!("bits: {:?}", t.data));
        }
        return;
    }
    let bits = |how: &str| {
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "every_order_of_warps_gives_the_same_bits", "--nocapture"])
            .env("KS_BITS_CHILD", "1")
            .env("KERNELSMITH_PTX_INTERP", how)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let found: Vec<String> = text.lines().filter(|l| l.starts_with("bits: ")).map(Into::into).collect();
        assert_eq!(found.len(), 3, "{text}\n{}", String::from_utf8_lossy(&out.stderr));
        found
    };
    let want = bits("");
    for how in ["seed=1", "seed=2", "seed=3"] {
        assert!(bits(how) == want, "{how}");
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
