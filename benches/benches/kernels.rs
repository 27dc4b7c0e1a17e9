//! Single kernels on one thread, on every backend of this build. Throughput is in floating-point operations
//! (criterion prints them as elements) for products, in elements for the rest.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kernelsmith::ir::Module;
use kernelsmith::{CompileOptions, arrays, codegen, compile_module, driver};
use kernelsmith_benches::{convolution, elementwise, linear, softmax};

fn bench(c: &mut Criterion, name: &str, work: u64, module: &Module) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(work)).sample_size(20);
    for backend in codegen::available() {
        let options = CompileOptions { backend: Some(backend.into()), threads: 1, ..Default::default() };
        let compiled = compile_module(module.clone(), &options).expect("benchmarks compile");
        let mut context = compiled.context();
        let input = &module.graph.inputs[0];
        let shape =
            module.graph[*input].ty.shape.iter().map(|d| d.as_const().unwrap_or(1) as usize).collect();
        let inputs = [arrays::random(module.graph[*input].ty.dtype, shape, 1)];
        let views = driver::views(&inputs);
        group.bench_function(backend, |b| b.iter(|| context.run(&views).expect("benchmarks run")));
    }
    group.finish();
}

fn kernels(c: &mut Criterion) {
    for (m, n, k) in [(128, 768, 768), (128, 3072, 768), (49, 512, 4608), (1, 4096, 4096)] {
        let module = linear(m, n, k).expect("a valid graph");
        bench(c, &format!("linear {m}x{n}x{k}"), (2 * m * n * k) as u64, &module);
    }
    for (ci, co, size, kernel) in [(64, 64, 56, 3), (256, 256, 14, 3), (256, 64, 56, 1)] {
        let module = convolution(ci, co, size, kernel).expect("a valid graph");
        let flops = 2 * ci * co * size * size * kernel * kernel;
        bench(c, &format!("convolution {kernel}x{kernel} {ci}->{co} @{size}"), flops as u64, &module);
    }
    bench(c, "softmax 1536x128", 1536 * 128, &softmax(1536, 128).expect("a valid graph"));
    bench(c, "elementwise 4096", 4096, &elementwise(4096).expect("a valid graph"));
}

criterion_group!(benches, kernels);
criterion_main!(benches);
