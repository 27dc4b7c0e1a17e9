//! Single kernels on one thread, on every backend of this build. Throughput is in floating-point operations
//! (criterion prints them as elements) for products, in elements for the rest. Beside it stands the share of what
//! the machine can do at best (`kernelsmith::ceiling`, measured in the same process by the same backend).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kernelsmith::ceiling::Ceiling;
use kernelsmith::ir::Module;
use kernelsmith::{CompileOptions, arrays, codegen, compile_module, compiled};
use kernelsmith_benches::{convolution, elementwise, linear, softmax};
use std::time::{Duration, Instant};

/// What a workload does at least.
#[derive(Clone, Copy)]
struct Work {
    /// Of products and sums; 0 where bytes bound the time.
    flops: i64,
    elements: i64,
    /// Read and written.
    bytes: i64,
}

fn options(backend: &str) -> CompileOptions {
    CompileOptions { backend: Some(backend.into()), threads: 1, ..Default::default() }
}

fn bench(c: &mut Criterion, ceilings: &[(&str, Ceiling)], name: &str, work: Work, module: &Module) {
    let mut group = c.benchmark_group(name);
    let counted = if work.flops > 0 { work.flops } else { work.elements };
    group.throughput(Throughput::Elements(counted as u64)).sample_size(20);
    for (backend, ceiling) in ceilings {
        let compiled = compile_module(module.clone(), &options(backend)).expect("benchmarks compile");
        let mut context = compiled.context();
        let input = &compiled.inputs[0];
        let inputs = [arrays::random(input.dtype, input.least.clone(), 1)];
        let views = compiled::views(&inputs);
        let mut best = Duration::MAX;
        group.bench_function(*backend, |b| {
            b.iter_custom(|n| {
                let mut total = Duration::ZERO;
                for _ in 0..n {
                    let began = Instant::now();
                    context.run(&views).expect("benchmarks run");
                    let took = began.elapsed();
                    best = best.min(took);
                    total += took;
                }
                total
            });
        });
        if best < Duration::MAX {
            let least = ceiling.nanos(work.flops as f64, None, &[(work.bytes as usize, work.bytes as usize)]);
            let share = 100.0 * least / best.as_nanos().max(1) as f64;
            println!("{name}/{backend}: {share:.0}% of the ceiling at best");
        }
    }
    group.finish();
}

fn kernels(c: &mut Criterion) {
    let measure = |b| (b, Ceiling::measure(&options(b)).expect("ceilings can be measured"));
    let ceilings: Vec<_> = codegen::available().into_iter().map(measure).collect();
    for (backend, ceiling) in &ceilings {
        println!("{backend}: {ceiling:?}");
    }
    for (m, n, k) in [(128, 768, 768), (128, 3072, 768), (49, 512, 4608), (1, 4096, 4096)] {
        let module = linear(m, n, k).expect("a valid graph");
        let work = Work { flops: 2 * m * n * k, elements: m * n, bytes: 4 * (m * k + k * n + m * n) };
        bench(c, &ceilings, &format!("linear {m}x{n}x{k}"), work, &module);
    }
    for (ci, co, size, kernel) in [(64, 64, 56, 3), (256, 256, 14, 3), (256, 64, 56, 1)] {
        let module = convolution(ci, co, size, kernel).expect("a valid graph");
        let (pixels, taps) = (size * size, kernel * kernel);
        let work = Work {
            flops: 2 * ci * co * pixels * taps,
            elements: co * pixels,
            bytes: 4 * (ci * pixels + ci * co * taps + co * pixels),
        };
        bench(c, &ceilings, &format!("convolution {kernel}x{kernel} {ci}->{co} @{size}"), work, &module);
    }
    let map = |n: i64| Work { flops: 0, elements: n, bytes: 8 * n };
    bench(c, &ceilings, "softmax 1536x128", map(1536 * 128), &softmax(1536, 128).expect("a valid graph"));
    for n in [4096, 1 << 24] {
        let module = elementwise(n).expect("a valid graph");
        bench(c, &ceilings, &format!("elementwise {n}"), map(n), &module);
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
