//! PTX that another compiler made: Triton's kernels for a row softmax, a product of f16 matrices on tensor cores and a
//! prefix sum (`triton.compile` for `cuda:80` needs no GPU), with their debug information stripped. They must give what
//! plain loops give, in every mode and without an alarm: what we call undefined, unordered or divergent is a matter
//! of the ISA and not of how our own emitter writes.

mod support;

use kernelsmith_ptx_interp::{Config, Module, Params, formats};
use support::{Device, Random};

/// Bytes of dynamic shared memory: as much as any of them needs.
const SHARED: u32 = 16 << 10;

/// Runs a kernel in every mode; `params` and the result are made anew for each.
fn everywhere(
    text: &str,
    kernel: &str,
    grid: [u32; 3],
    mut run: impl FnMut(&mut Device, &mut dyn FnMut(&mut Device, Params)),
) {
    for config in Config::adversarial(17) {
        let mut d = Device::new(text).unwrap_or_else(|e| panic!("{kernel}: {e}"));
        run(&mut d, &mut |d, params| {
            let Device { memory, module, .. } = d;
            let launched =
                Module::run(module, memory, &config, kernel, grid, [128, 1, 1], SHARED, params.as_slice());
            launched.unwrap_or_else(|e| panic!("{kernel}, {config:?}: {e}"));
        });
    }
}

#[test]
fn softmax_of_rows() {
    let (rows, cols) = (5, 200);
    let x = Random(1).f32s(rows * cols);
    everywhere(include_str!("foreign/softmax.ptx"), "softmax", [rows as u32, 1, 1], |d, launch| {
        let (px, py) = (d.upload_f32(&x), d.upload_f32(&vec![0.0; rows * cols]));
        launch(d, Params::new().u64(px).u64(py).u32(cols as u32).u64(0).u64(0));
        let got = d.download_f32(py, rows * cols);
        for (got, x) in got.chunks(cols).zip(x.chunks(cols)) {
            let max = x.iter().fold(f32::MIN, |m, x| m.max(*x));
            let e: Vec<f32> = x.iter().map(|x| (x - max).exp()).collect();
            let sum: f32 = e.iter().sum();
            for (g, e) in got.iter().zip(&e) {
                assert!((g - e / sum).abs() < 1e-6, "{g} {}", e / sum);
            }
        }
    });
}

#[test]
fn product_on_tensor_cores() {
    let (m, n, k) = (64, 96, 64);
    let mut rng = Random(2);
    let halves = |v: &[f32]| v.iter().map(|x| formats::f2h(*x) as u16).collect::<Vec<_>>();
    let (a, b) = (halves(&rng.f32s(m * k)), halves(&rng.f32s(k * n)));
    let bytes = |v: &[u16]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    everywhere(
        include_str!("foreign/matmul.ptx"),
        "matmul",
        [m as u32 / 32, n as u32 / 32, 1],
        |d, launch| {
            let (pa, pb, pc) = (d.upload(&bytes(&a)), d.upload(&bytes(&b)), d.upload_f32(&vec![0.0; m * n]));
            let sizes = Params::new().u64(pa).u64(pb).u64(pc).u32(m as u32).u32(n as u32).u32(k as u32);
            launch(d, sizes.u64(0).u64(0));
            let got = d.download_f32(pc, m * n);
            for (i, got) in got.iter().enumerate() {
                let (row, col) = (i / n, i % n);
                let value = |h: u16| formats::h2f(u32::from(h));
                let want: f32 = (0..k).map(|j| value(a[row * k + j]) * value(b[j * n + col])).sum();
                assert!((got - want).abs() < 1e-4, "{i}: {got} {want}");
            }
        },
    );
}

#[test]
fn prefix_sum() {
    let x: Vec<i32> = (0..128).map(|i| i * 37 % 101 - 50).collect();
    let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    everywhere(include_str!("foreign/scan.ptx"), "scan", [1, 1, 1], |d, launch| {
        let (px, py) = (d.upload(&bytes), d.upload(&[0; 512]));
        launch(d, Params::new().u64(px).u64(py).u64(0).u64(0));
        let got = d.download(py, 512);
        let mut sum = 0;
        for (g, x) in got.chunks(4).zip(&x) {
            sum += x;
            assert_eq!(i32::from_le_bytes(g.try_into().unwrap()), sum);
        }
    });
}
