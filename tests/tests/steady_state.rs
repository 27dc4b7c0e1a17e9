//! What a run costs once it has run before: no heap, no compilation.

use kernelsmith::ir::build::{Builder, LoopStep};
use kernelsmith::ir::testing;
use kernelsmith::ir::{DType, Module, Tensor};
use kernelsmith::{CompileOptions, Compiled, StateSpec, codegen, compile_module, compiled};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
}

fn note() {
    // a thread that is going away has nothing to count
    let _ = COUNT.try_with(|c| c.set(c.get().map(|n| n + 1)));
}

// SAFETY: every call is handed to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(l) }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(p, l) }
    }
    unsafe fn realloc(&self, p: *mut u8, l: Layout, n: usize) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.realloc(p, l, n) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Heap allocations of this thread during `f`.
fn allocations<R>(f: impl FnOnce() -> R) -> (u64, R) {
    COUNT.with(|c| c.set(Some(0)));
    let r = f();
    let n = COUNT.with(|c| c.replace(None)).unwrap_or(0);
    (n, r)
}

/// One attention step over a key cache that grows: softmax(q kT) over `past + 1` keys, and the new cache.
fn decode_step() -> Module {
    let mut b = Builder::new("step");
    let past = b.symbol("past", 0, 4096);
    let q = b.input("q", DType::F32, vec![4.into(), 1.into(), 16.into()]);
    let k = b.input("k", DType::F32, vec![4.into(), 1.into(), 16.into()]);
    let cache = b.input("cache", DType::F32, vec![4.into(), past, 16.into()]);
    let keys = b.concat(&[cache, k], 1).unwrap();
    let kt = b.transpose(keys, &[0, 2, 1]).unwrap();
    let scores = b.matmul(q, kt).unwrap();
    let p = testing::softmax(&mut b, scores, 2).unwrap();
    let out = b.matmul(p, keys).unwrap();
    b.finish(&[("out".into(), out), ("present".into(), keys)]).unwrap()
}

fn compile(module: Module, backend: &str) -> Compiled {
    compile_module(
        module,
        &CompileOptions { backend: Some(backend.into()), threads: 2, ..Default::default() },
    )
    .unwrap()
}

#[test]
fn decode_steps_allocate_nothing_and_compile_nothing() {
    for backend in codegen::available() {
        let module = decode_step();
        let compiled = compile(module.clone(), backend);
        let before = codegen::functions_compiled();
        let mut context = compiled.context();
        let q = Tensor::from_f32(vec![4, 1, 16], &[0.5; 64]);
        let k = Tensor::from_f32(vec![4, 1, 16], &[0.25; 64]);
        let mut cache = Tensor::from_f32(vec![4, 40, 16], &[0.1; 4 * 40 * 16]);
        // the largest size first: memory keeps its high-water mark
        let large = Tensor::from_f32(vec![4, 60, 16], &[0.1; 4 * 60 * 16]);
        compiled.run(&mut context, &[q.clone(), k.clone(), large]).unwrap();
        for step in 0..10 {
            let inputs = [q.clone(), k.clone(), cache];
            let views = compiled::views(&inputs);
            let (n, result) = allocations(|| context.run(&views));
            result.unwrap();
            assert_eq!(n, 0, "{backend}: heap allocations in step {step}");
            let got = compiled.outputs(&context).unwrap();
            let want = kernelsmith::interp::Interp::new(&module).run(&inputs).unwrap();
            for (g, w) in got.iter().zip(&want) {
                let c = kernelsmith::interp::compare(g, w, kernelsmith::interp::Tolerance::of(w.dtype));
                assert!(c.passes(), "{backend}, step {step}: {c}");
            }
            cache = got[1].clone();
            assert_eq!(cache.shape, [4, 41 + step, 16]);
        }
        // tests of one process run one after the other under nextest, so the count is ours
        assert_eq!(codegen::functions_compiled(), before, "{backend}");
    }
}

#[test]
fn states_grow_in_place() {
    for backend in codegen::available() {
        let module = decode_step();
        let spec = StateSpec { input: "cache".into(), output: "present".into(), capacity: 64 };
        let options = CompileOptions {
            backend: Some(backend.into()),
            threads: 2,
            states: vec![spec],
            ..Default::default()
        };
        let compiled = compile_module(module.clone(), &options).unwrap();
        let before = codegen::functions_compiled();
        let mut context = compiled.context();
        let random = |n: usize, seed| {
            let mut t = kernelsmith::arrays::random(DType::F32, vec![4, n, 16], seed);
            t.shape = vec![4, n, 16];
            t
        };
        // from nothing, from 40 rows, and after going back to 3 of them
        for begin in [0usize, 40, 3] {
            let mut cache = random(begin, 7);
            let view = compiled::views(std::slice::from_ref(&cache))[0];
            context.set_state(0, view).unwrap();
            let home = context.state(0).unwrap().data().unwrap().as_ptr();
            for step in 0..8u64 {
                let (q, k) = (random(1, step), random(1, 100 + step));
                let given = [q.clone(), k.clone()];
                let views = compiled::views(&given);
                let (n, result) = allocations(|| context.run(&views));
                result.unwrap();
                assert!(n == 0 || begin == 0 && step == 0, "{backend}: heap allocations in step {step}");
                let got = compiled.outputs(&context).unwrap();
                let want = kernelsmith::interp::Interp::new(&module).run(&[q, k, cache]).unwrap();
                for (g, w) in got.iter().zip(&want) {
                    let c = kernelsmith::interp::compare(g, w, kernelsmith::interp::Tolerance::of(w.dtype));
                    assert!(c.passes(), "{backend}, step {step} from {begin}: {c}");
                }
                cache = want[1].clone();
            }
            assert_eq!(
                context.state(0).unwrap().data().unwrap().as_ptr(),
                home,
                "{backend}: the state moved"
            );
        }
        context.truncate_states(5);
        assert_eq!(context.state(0).unwrap().len, 5);
        // no room for another row
        let full = random(64, 1);
        context.set_state(0, compiled::views(std::slice::from_ref(&full))[0]).unwrap();
        let given = [random(1, 1), random(1, 2)];
        let e = context.run(&compiled::views(&given)).unwrap_err().to_string();
        assert!(e.contains("cache") && e.contains("capacity of 64"), "{e}");
        let long = random(65, 1);
        assert!(context.set_state(0, compiled::views(std::slice::from_ref(&long))[0]).is_err());
        assert_eq!(codegen::functions_compiled(), before, "{backend}");
    }
}

/// h = tanh(x[t] + h w) over all steps t of x[T, 1, 64], every h stacked.
fn recurrence() -> Module {
    let mut b = Builder::new("recurrence");
    let time = b.symbol("time", 1, 4096);
    let x = b.input("x", DType::F32, vec![time.clone(), 1.into(), 64.into()]);
    let w = b.input("w", DType::F32, vec![64.into(), 64.into()]);
    let h = b.full(DType::F32, &[1.into(), 64.into()], 0.0).unwrap();
    let trip = b.dim_value(&time).unwrap();
    let out = b
        .loop_::<kernelsmith::ir::IrError>(Some(trip), None, &[h], |b, t, states| {
            let now = b.gather(x, t, 0)?;
            let r = b.matmul(states[0], w)?;
            let s = b.add(now, r)?;
            let h = b.tanh(s)?;
            Ok(LoopStep { cond: b.scalar(DType::Bool, 1.0)?, carried: vec![h], scans: vec![h] })
        })
        .unwrap();
    b.finish(&[("last".into(), out[0]), ("all".into(), out[1])]).unwrap()
}

#[test]
fn loops_allocate_nothing() {
    for backend in codegen::available() {
        let module = recurrence();
        let compiled = compile(module.clone(), backend);
        let mut context = compiled.context();
        for (i, steps) in [40usize, 40, 7, 33].into_iter().enumerate() {
            // small weights: a recurrence that forgets does not amplify roundings
            let weights: Vec<f32> =
                (0..64 * 64).map(|i| ((i * 37 % 101) as f32 / 101.0 - 0.5) * 0.2).collect();
            let inputs = [
                kernelsmith::arrays::random(DType::F32, vec![steps, 1, 64], 3),
                Tensor::from_f32(vec![64, 64], &weights),
            ];
            let views = compiled::views(&inputs);
            let (n, result) = allocations(|| context.run(&views));
            result.unwrap();
            assert!(n == 0 || i == 0, "{backend}: {n} heap allocations in a run of {steps} steps");
            let want = kernelsmith::interp::Interp::new(&module).run(&inputs).unwrap();
            for (g, w) in compiled.outputs(&context).unwrap().iter().zip(&want) {
                let c =
                    kernelsmith::interp::compare(g, w, kernelsmith::interp::Tolerance::of_network(w.dtype));
                assert!(c.passes(), "{backend}, {steps} steps: {c}");
            }
        }
    }
}

#[test]
fn concurrent_callers_share_a_model() {
    for backend in codegen::available() {
        let module = decode_step();
        let compiled = compile(module.clone(), backend);
        std::thread::scope(|s| {
            for i in 0..4usize {
                let (compiled, module) = (&compiled, &module);
                s.spawn(move || {
                    let mut context = compiled.context();
                    for n in [3 + i, 17, 1, 0] {
                        let inputs = [
                            Tensor::from_f32(vec![4, 1, 16], &[0.3 * i as f32; 64]),
                            Tensor::from_f32(vec![4, 1, 16], &[0.25; 64]),
                            Tensor::from_f32(vec![4, n, 16], &vec![0.1; 4 * n * 16]),
                        ];
                        let got = compiled.run(&mut context, &inputs).unwrap();
                        let want = kernelsmith::interp::Interp::new(module).run(&inputs).unwrap();
                        for (g, w) in got.iter().zip(&want) {
                            let c = kernelsmith::interp::compare(
                                g,
                                w,
                                kernelsmith::interp::Tolerance::of(w.dtype),
                            );
                            assert!(c.passes(), "{backend}: {c}");
                        }
                    }
                });
            }
        });
    }
}
