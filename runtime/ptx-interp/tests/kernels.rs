//! Whole kernels: right in every mode, free of false alarms; broken by hand, caught; broken by machine, the
//! share that is caught is measured.

mod support;

use kernelsmith_ptx_interp::assemble::Ptxas;
use kernelsmith_ptx_interp::golden::{Compare, Float};
use kernelsmith_ptx_interp::mutate::mutations;
use kernelsmith_ptx_interp::{Config, Counters, Error, FaultKind, Params, formats};
use support::*;

/// A kernel with inputs and expected outputs.
struct Case {
    name: &'static str,
    text: &'static str,
    run: fn(&str, &Config) -> Result<Outcome, Error>,
}

/// Whether the results are right, within what relative error that was seen, and what the launch did.
struct Outcome {
    right: bool,
    within: f32,
    counters: Counters,
    device: Device,
}

fn cases() -> Vec<Case> {
    vec![
        Case { name: "axpy", text: include_str!("kernels/axpy.ptx"), run: axpy },
        Case { name: "softmax", text: include_str!("kernels/softmax.ptx"), run: softmax },
        Case { name: "transpose", text: include_str!("kernels/transpose.ptx"), run: transpose },
        Case { name: "gemm", text: include_str!("kernels/gemm.ptx"), run: gemm },
        Case { name: "lastblock", text: include_str!("kernels/lastblock.ptx"), run: lastblock },
        Case { name: "mma", text: include_str!("kernels/mma.ptx"), run: mma },
    ]
}

fn close(got: &[f32], want: &[f32], tol: f32) -> bool {
    got.iter().zip(want).all(|(g, w)| (g - w).abs() <= tol * (1.0 + w.abs()))
}

fn axpy(text: &str, config: &Config) -> Result<Outcome, Error> {
    let mut d = Device::new(text)?;
    let mut rng = Random(1);
    let n = 203;
    let (x, y) = (rng.f32s(n), rng.f32s(n));
    let (px, py) = (d.upload_f32(&x), d.upload_f32(&y));
    let params = Params::new().u64(px).u64(py).f32(0.75).u32(n as u32);
    let counters = d.run(config, "axpy", 2, 64, &params)?;
    let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x.mul_add(0.75, *y)).collect();
    Ok(Outcome { right: d.download_f32(py, n) == want, within: 0.0, counters, device: d })
}

fn softmax(text: &str, config: &Config) -> Result<Outcome, Error> {
    let mut d = Device::new(text)?;
    let mut rng = Random(2);
    let (rows, n) = (3, 300);
    let mut x = rng.f32s(rows * n);
    // rows that overflow under a wrong maximum; the spikes need every step of the reduction
    x[n + 160] = 200.0;
    x[2 * n + 96] = 200.0;
    let px = d.upload_f32(&x);
    let py = d.alloc(4 * rows * n);
    let counters =
        d.run(config, "softmax", rows as u32, 128, &Params::new().u64(px).u64(py).u32(n as u32))?;
    let mut want = Vec::new();
    for row in x.chunks(n) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
        want.extend(row.iter().map(|v| (f64::from(v - max).exp() / sum) as f32));
    }
    let got = d.download_f32(py, rows * n);
    let within = 2e-5;
    let right = got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= within * w + 1e-38);
    Ok(Outcome { right, within, counters, device: d })
}

fn transpose(text: &str, config: &Config) -> Result<Outcome, Error> {
    let mut d = Device::new(text)?;
    let mut rng = Random(3);
    let (rows, cols) = (45, 70);
    let x = rng.f32s(rows * cols);
    let px = d.upload_f32(&x);
    let py = d.alloc(4 * rows * cols);
    let params = Params::new().u64(px).u64(py).u32(rows as u32).u32(cols as u32);
    let counters = d.launch(config, "transpose", [3, 2, 1], [32, 8, 1], &params)?;
    let want: Vec<f32> = (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect();
    Ok(Outcome { right: d.download_f32(py, rows * cols) == want, within: 0.0, counters, device: d })
}

fn gemm(text: &str, config: &Config) -> Result<Outcome, Error> {
    let mut d = Device::new(text)?;
    let mut rng = Random(4);
    let (m, n, k) = (32, 32, 48);
    let (a, b) = (rng.f32s(m * k), rng.f32s(k * n));
    let (pa, pb) = (d.upload_f32(&a), d.upload_f32(&b));
    let pc = d.alloc(4 * m * n);
    let params = Params::new().u64(pa).u64(pb).u64(pc).u32(n as u32).u32(k as u32);
    let grid = [n as u32 / 16, m as u32 / 16, 1];
    let counters = d.launch(config, "gemm", grid, [64, 1, 1], &params)?;
    let dot = |i: usize, j: usize| {
        (0..k).map(|t| f64::from(a[i * k + t]) * f64::from(b[t * n + j])).sum::<f64>() as f32
    };
    let want: Vec<f32> = (0..m * n).map(|i| dot(i / n, i % n)).collect();
    let within = 1e-5;
    Ok(Outcome { right: close(&d.download_f32(pc, m * n), &want, within), within, counters, device: d })
}

fn lastblock(text: &str, config: &Config) -> Result<Outcome, Error> {
    let mut d = Device::new(text)?;
    let mut rng = Random(5);
    let (n, grid) = (300, 5);
    let x = rng.f32s(n);
    let px = d.upload_f32(&x);
    let partial = d.alloc(4 * grid);
    let counter = d.upload(&[0; 4]);
    let out = d.alloc(4);
    let params = Params::new().u64(px).u64(partial).u64(counter).u64(out).u32(n as u32);
    let counters = d.run(config, "lastblock", grid as u32, 64, &params)?;
    let want = x.iter().map(|v| f64::from(*v)).sum::<f64>() as f32;
    let within = 1e-5;
    Ok(Outcome { right: close(&d.download_f32(out, 1), &[want], within), within, counters, device: d })
}

fn mma(text: &str, config: &Config) -> Result<Outcome, Error> {
    let mut d = Device::new(text)?;
    let mut rng = Random(6);
    let half = |v: &[f32]| v.iter().map(|x| formats::f2h(*x) as u16).collect::<Vec<u16>>();
    let (a, b) = (half(&rng.f32s(256)), half(&rng.f32s(128)));
    let bytes = |v: &[u16]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (pa, pb) = (d.upload(&bytes(&a)), d.upload(&bytes(&b)));
    let pd = d.alloc(4 * 128);
    let counters = d.run(config, "mma", 1, 32, &Params::new().u64(pa).u64(pb).u64(pd))?;
    let v = |x: u16| f64::from(formats::h2f(u32::from(x)));
    let dot = |i: usize, j: usize| (0..16).map(|t| v(a[i * 16 + t]) * v(b[t * 8 + j])).sum::<f64>() as f32;
    let want: Vec<f32> = (0..128).map(|i| dot(i / 8, i % 8)).collect();
    let within = 1e-6;
    Ok(Outcome { right: close(&d.download_f32(pd, 128), &want, within), within, counters, device: d })
}

#[test]
fn correct_kernels_are_right_in_every_mode_and_raise_no_alarm() {
    for case in cases() {
        let first =
            (case.run)(case.text, &Config::default()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        // a device and the interpreter may be off in different directions
        let within = 2.0 * f64::from(first.within);
        first.device.keep("kernels", case.name, Compare::close(Float::F32, within, within), &[]);
        for seed in 1..6 {
            for config in Config::adversarial(seed) {
                match (case.run)(case.text, &config) {
                    Ok(o) => assert!(o.right, "{} under {config:?}", case.name),
                    Err(e) => panic!("{} under {config:?}: {e}", case.name),
                }
            }
        }
    }
}

#[test]
fn kernels_assemble_without_spills() {
    let Some(ptxas) = Ptxas::or_skip("kernels_assemble_without_spills") else { return };
    let texts: Vec<(String, String)> =
        cases().iter().map(|c| (c.name.to_string(), c.text.to_string())).collect();
    ptxas.assemble("sm_80", &texts).unwrap_or_else(|e| panic!("{}", e.join("\n")));
    let newer = texts.into_iter().map(|(n, t)| (n, t.replace("7.8", "8.0").replace("sm_80", "sm_90a")));
    ptxas.assemble("sm_90a", &newer.collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{}", e.join("\n")));
}

#[test]
fn counters_tell_coalesced_from_strided_and_conflicts_from_padding() {
    let config = Config { counters: true, ..Config::default() };
    let c = transpose(include_str!("kernels/transpose.ptx"), &config).unwrap().counters;
    assert_eq!(c.shared_loads.wasted() + c.shared_stores.wasted(), 0, "{c:?}");
    // without the padding column, reads of a column meet in one bank
    let unpadded = include_str!("kernels/transpose.ptx").replace(", 132,", ", 128,").replace("1056", "1024");
    let u = transpose(&unpadded, &config).unwrap();
    assert!(
        u.right && u.counters.shared_loads.passes > 16 * u.counters.shared_loads.ideal,
        "{:?}",
        u.counters
    );
    let g = gemm(include_str!("kernels/gemm.ptx"), &config).unwrap().counters;
    assert_eq!(g.flops, 2 * 32 * 32 * 48);
    let a = axpy(include_str!("kernels/axpy.ptx"), &config).unwrap().counters;
    assert_eq!((a.global_loads.bytes, a.global_loads.wasted()), (203 * 8, 0), "{a:?}");
}

/// At least one mode tells that the kernel is broken.
fn caught(run: fn(&str, &Config) -> Result<Outcome, Error>, text: &str) -> bool {
    let quick = |c: Config| Config { step_limit: 300_000, ..c };
    [11, 12]
        .into_iter()
        .flat_map(Config::adversarial)
        .map(quick)
        .any(|c| !run(text, &c).is_ok_and(|o| o.right))
}

#[test]
fn mutations_are_caught() {
    let (mut total, mut survivors) = (0, Vec::new());
    for case in cases() {
        for m in mutations(case.text).unwrap() {
            total += 1;
            if !caught(case.run, &m.text) {
                survivors
                    .push(format!("{} line {} {:?}: {} -> {}", case.name, m.line, m.kind, m.before, m.after));
            }
        }
    }
    let share = 100.0 * (total - survivors.len()) as f64 / total as f64;
    println!("{share:.1} % of {total} mutations caught; survivors:\n{}", survivors.join("\n"));
    assert!(
        total > 250 && share >= 95.0,
        "{share:.1} % of {total} caught; survivors:\n{}",
        survivors.join("\n")
    );
}

/// Runs a 64-thread kernel `k` on one buffer of 1 KiB, zeroed: what is wrong with it, and a device where it came to its end.
fn fault(body: &str) -> (Option<FaultKind>, Option<Device>) {
    let text = format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 buf)\n{{\n.shared .align 16 .b8 s[1024];\n\
         .reg .pred %p<4>;\n.reg .f32 %f<8>;\n.reg .b32 %r<16>;\n.reg .b64 %rd<8>;\nld.param.u64 %rd1, [buf];\nmov.u32 %r1, %tid.x;\n\
         mul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd3, %rd1, %rd2;\nmov.u32 %r2, s;\nshl.b32 %r3, %r1, 2;\nadd.u32 %r3, %r2, %r3;\n\
         {body}\nret;\n}}\n"
    );
    let (mut found, mut ended) = (None, None);
    for config in Config::adversarial(3) {
        let mut d = Device::new(&text).unwrap_or_else(|e| panic!("{body}: {e}"));
        let buf = d.upload(&[0; 1024]);
        let config = Config { step_limit: 100_000, equal_writes: false, ..config };
        match d.run(&config, "k", 2, 64, &Params::new().u64(buf)) {
            Ok(_) => ended = Some(d),
            Err(Error::Fault(f)) => {
                assert!(f.kernel == "k" && f.line > 0 && !f.to_string().is_empty());
                found = Some(f.kind);
            }
            Err(e) => panic!("{body}: {e}"),
        }
    }
    (found, ended)
}

#[test]
fn faults_are_caught_and_named() {
    use FaultKind::*;
    type Is = fn(&FaultKind) -> bool;
    let table: &[(&str, &str, Is)] = &[
        (
            "a missing barrier",
            "st.shared.u32 [%r3], %r1;\nxor.b32 %r4, %r3, 128;\nld.shared.u32 %r5, [%r4];",
            |k| matches!(k, Race { .. } | UninitialisedShared { .. }),
        ),
        (
            "a missing lane sync",
            "st.shared.u32 [%r3], %r1;\nxor.b32 %r4, %r3, 4;\nld.shared.u32 %r5, [%r4];",
            |k| matches!(k, Race { .. } | UninitialisedShared { .. }),
        ),
        ("blocks that write the same bytes", "st.global.u32 [%rd3], %r1;", |k| matches!(k, Race { .. })),
        (
            "a plain flag between blocks",
            "mov.u32 %r4, %ctaid.x;\nsetp.ne.u32 %p1, %r4, 0;\n@%p1 bra R;\nst.global.u32 [%rd1], %r1;\nR: ld.global.u32 %r5, [%rd1];",
            |k| matches!(k, Race { .. }),
        ),
        (
            "a read-only load of written bytes",
            "mov.u32 %r4, %ctaid.x;\nsetp.ne.u32 %p1, %r4, 0;\n@%p1 bra R;\nst.global.u32 [%rd3], %r1;\nld.global.nc.u32 %r5, [%rd3];\nR:",
            |k| matches!(k, NonCoherent { .. }),
        ),
        (
            "a copy that is not waited for",
            "cp.async.ca.shared.global [%r3], [%rd3], 4;\ncp.async.commit_group;\nld.shared.u32 %r4, [%r3];\ncp.async.wait_all;",
            |k| matches!(k, AsyncPending { .. }),
        ),
        (
            "a wait for too few groups",
            "cp.async.ca.shared.global [%r3], [%rd3], 4;\ncp.async.commit_group;\ncp.async.wait_group 1;\nld.shared.u32 %r4, [%r3];\ncp.async.wait_all;",
            |k| matches!(k, AsyncPending { .. }),
        ),
        (
            "a copy waited for, but no barrier",
            "cp.async.ca.shared.global [%r3], [%rd3], 4;\ncp.async.wait_all;\nxor.b32 %r4, %r3, 128;\nld.shared.u32 %r5, [%r4];",
            |k| matches!(k, Race { .. } | AsyncPending { .. } | UninitialisedShared { .. }),
        ),
        ("a misaligned load", "ld.global.u32 %r4, [%rd3+2];", |k| matches!(k, Misaligned { .. })),
        ("a misaligned vector", "ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r3];", |k| {
            matches!(k, Misaligned { .. } | UninitialisedShared { .. })
        }),
        ("a load past the end", "ld.global.u32 %r4, [%rd3+800];", |k| matches!(k, OutOfBounds { .. })),
        ("a load before the start", "ld.global.u32 %r4, [%rd1+-4];", |k| matches!(k, OutOfBounds { .. })),
        ("a null pointer", "mov.u64 %rd4, 0;\nst.global.u32 [%rd4], %r1;", |k| {
            matches!(k, OutOfBounds { .. })
        }),
        ("shared memory past the end", "st.shared.u32 [%r3+800], %r1;", |k| matches!(k, OutOfBounds { .. })),
        (
            "a register without a value",
            "add.u32 %r4, %r5, 1;",
            |k| matches!(k, UninitialisedRegister { name } if name == "%r5"),
        ),
        (
            "a predicate set in one branch only",
            "setp.lt.u32 %p1, %r1, 7;\n@%p1 setp.eq.u32 %p2, %r1, 0;\n@%p2 bra E;\nE:",
            |k| matches!(k, UninitialisedRegister { .. }),
        ),
        ("shared bytes without a value", "ld.shared.u32 %r4, [%r3];", |k| {
            matches!(k, UninitialisedShared { .. })
        }),
        ("a barrier in a divergent branch", "setp.lt.u32 %p1, %r1, 7;\n@%p1 bra E;\nbar.sync 0;\nE:", |k| {
            matches!(k, Divergent { .. } | Deadlock { .. })
        }),
        ("a guarded barrier", "setp.lt.u32 %p1, %r1, 7;\n@%p1 bar.sync 0;", |k| {
            matches!(k, Divergent { .. })
        }),
        ("a barrier that one warp skips", "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra E;\nbar.sync 0;\nE:", |k| {
            matches!(k, Deadlock { .. })
        }),
        (
            "different barriers",
            "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra A;\nbar.sync 1;\nbra E;\nA: bar.sync 2;\nE:",
            |k| matches!(k, Deadlock { .. }),
        ),
        (
            "different counts",
            "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra A;\nbar.sync 1, 64;\nbra E;\nA: bar.sync 1, 32;\nE:",
            |k| matches!(k, Deadlock { .. } | Barrier { .. }),
        ),
        (
            "a shuffle under a guard",
            "setp.lt.u32 %p1, %r1, 7;\n@%p1 shfl.sync.idx.b32 %r4, %r1, 0, 31, 0xffffffff;",
            |k| matches!(k, LaneMask { .. }),
        ),
        (
            "a shuffle in a branch with the full mask",
            "setp.lt.u32 %p1, %r1, 7;\n@%p1 bra E;\nshfl.sync.idx.b32 %r4, %r1, 0, 31, 0xffffffff;\nE:",
            |k| matches!(k, LaneMask { .. } | Divergent { .. }),
        ),
        ("a shuffle by a lane that the mask leaves out", "shfl.sync.idx.b32 %r4, %r1, 0, 31, 0xffff;", |k| {
            matches!(k, LaneMask { .. })
        }),
        ("a loop without an end", "L: bra L;", |k| matches!(k, Budget { .. })),
        (
            "a flag nobody raises",
            "L: ld.volatile.global.u32 %r4, [%rd1];\nsetp.eq.u32 %p1, %r4, 0;\n@%p1 bra L;",
            |k| matches!(k, Budget { .. }),
        ),
        ("a trap", "trap;", |k| matches!(k, Trap)),
    ];
    for (what, body, expected) in table {
        match fault(body).0 {
            None => panic!("{what}: not noticed"),
            Some(k) => assert!(expected(&k), "{what}: {k:?}"),
        }
    }
}

#[test]
fn synchronised_kernels_raise_no_alarm() {
    for (what, body) in [
        (
            "a barrier",
            "st.shared.u32 [%r3], %r1;\nbar.sync 0;\nxor.b32 %r4, %r3, 128;\nld.shared.u32 %r5, [%r4];",
        ),
        (
            "a lane sync",
            "st.shared.u32 [%r3], %r1;\nbar.warp.sync 0xffffffff;\nxor.b32 %r4, %r3, 4;\nld.shared.u32 %r5, [%r4];\nbar.warp.sync 0xffffffff;\nst.shared.u32 [%r4], %r5;",
        ),
        (
            "bytes of one word by several lanes",
            "add.u32 %r4, %r2, %r1;\nst.shared.u8 [%r4], %r1;\nbar.sync 0;\nld.shared.u32 %r5, [s];",
        ),
        (
            "named barriers, producer and consumer",
            "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra P;\nbar.sync 3, 64;\nld.shared.u32 %r5, [%r3+-128];\nbra E;\nP: st.shared.u32 [%r3], %r1;\nbar.arrive 3, 64;\nE:",
        ),
        (
            "a branch that meets again at a barrier",
            "setp.lt.u32 %p1, %r1, 7;\n@%p1 bra E;\nadd.u32 %r4, %r1, 1;\nE: bar.sync 0;\nshfl.sync.idx.b32 %r4, %r1, 0, 31, 0xffffffff;",
        ),
        (
            "a shuffle in a branch with its own mask",
            "setp.lt.u32 %p1, %r1, 64;\nand.b32 %r6, %r1, 31;\nsetp.lt.u32 %p2, %r6, 16;\n@!%p2 bra E;\nshfl.sync.idx.b32 %r4, %r1, 0, 31, 0xffff;\nE:",
        ),
        (
            "atomics of all blocks",
            "red.global.add.u32 [%rd1], 1;\nst.shared.u32 [%r3], %r1;\nbar.sync 0;\natom.shared.add.u32 %r5, [s+124], 0;",
        ),
        (
            "a message by release and acquire",
            "mov.u32 %r4, %ctaid.x;\nor.b32 %r5, %r4, %r1;\nsetp.eq.u32 %p1, %r5, 0;\n@!%p1 bra N;\nst.global.u32 [%rd1], 5;\nst.release.gpu.global.u32 [%rd1+64], 1;\nN: setp.eq.u32 %p2, %r4, 1;\nsetp.eq.and.u32 %p2, %r1, 0, %p2;\n@!%p2 bra E;\nL: ld.acquire.gpu.global.u32 %r6, [%rd1+64];\nsetp.eq.u32 %p3, %r6, 0;\n@%p3 bra L;\nld.global.u32 %r7, [%rd1];\nE:",
        ),
        (
            "a message by fences",
            "mov.u32 %r4, %ctaid.x;\nor.b32 %r5, %r4, %r1;\nsetp.eq.u32 %p1, %r5, 0;\n@!%p1 bra N;\nst.global.u32 [%rd1], 5;\nmembar.gl;\nst.volatile.global.u32 [%rd1+64], 1;\nN: setp.eq.u32 %p2, %r4, 1;\nsetp.eq.and.u32 %p2, %r1, 0, %p2;\n@!%p2 bra E;\nL: ld.volatile.global.u32 %r6, [%rd1+64];\nsetp.eq.u32 %p3, %r6, 0;\n@%p3 bra L;\nmembar.gl;\nld.global.u32 %r7, [%rd1];\nE:",
        ),
        (
            "a spin lock inside a warp",
            "L: atom.global.cas.b32 %r4, [%rd1], 0, 1;\nsetp.ne.u32 %p1, %r4, 0;\n@%p1 bra L;\natom.global.exch.b32 %r5, [%rd1], 0;\nbar.sync 0;",
        ),
    ] {
        // a message between blocks needs both resident, whatever the mode
        let (found, ended) = fault(body);
        let found = match what.starts_with("a message") {
            false => found,
            true => found.filter(|k| !matches!(k, FaultKind::Budget { .. })),
        };
        assert_eq!(found, None, "{what}");
        ended.expect("a mode in which it ends").keep("kernels", what, Compare::Bits(4), &[]);
    }
}

#[test]
fn warp_instructions_compute_what_they_say() {
    let text = ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out)\n{\n.reg .pred %p<4>;\n\
        .reg .b32 %r<20>;\n.reg .b64 %rd<4>;\nld.param.u64 %rd1, [out];\nmov.u32 %r0, %laneid;\nmul.wide.u32 %rd2, %r0, 64;\n\
        add.s64 %rd1, %rd1, %rd2;\n\
        shfl.sync.up.b32 %r1|%p1, %r0, 3, 0, 0xffffffff;\nst.global.u32 [%rd1], %r1;\nselp.u32 %r2, 1, 0, %p1;\nst.global.u32 [%rd1+4], %r2;\n\
        shfl.sync.down.b32 %r1, %r0, 5, 0x181f, 0xffffffff;\nst.global.u32 [%rd1+8], %r1;\n\
        setp.gt.u32 %p2, %r0, 20;\nvote.sync.ballot.b32 %r3, %p2, 0xffffffff;\nst.global.u32 [%rd1+12], %r3;\n\
        vote.sync.any.pred %p3, %p2, 0xffffffff;\nselp.u32 %r4, 1, 0, %p3;\nst.global.u32 [%rd1+16], %r4;\n\
        shr.u32 %r5, %r0, 3;\nmatch.any.sync.b32 %r6, %r5, 0xffffffff;\nst.global.u32 [%rd1+20], %r6;\n\
        redux.sync.max.s32 %r7, %r0, 0xffffffff;\nst.global.u32 [%rd1+24], %r7;\n\
        elect.sync %r8|%p1, 0xffffffff;\nselp.u32 %r8, 1, 0, %p1;\nst.global.u32 [%rd1+28], %r8;\n\
        @%p2 bra HI;\nactivemask.b32 %r9;\nbra DONE;\nHI: activemask.b32 %r9;\nDONE: st.global.u32 [%rd1+32], %r9;\n\
        mov.u32 %r10, %lanemask_lt;\nst.global.u32 [%rd1+36], %r10;\nbar.red.popc.u32 %r11, 0, %p2;\nst.global.u32 [%rd1+40], %r11;\n\
        redux.sync.xor.b32 %r12, %r0, 0xffffffff;\nst.global.u32 [%rd1+44], %r12;\nret;\n}\n";
    let mut d = Device::new(text).unwrap();
    let out = d.upload(&[0; 2048]);
    d.run(&Config::default(), "k", 1, 32, &Params::new().u64(out)).unwrap();
    let all = d.download(out, 2048);
    for lane in 0..32u32 {
        let get = |i: usize| u32::from_le_bytes(all[lane as usize * 64 + 4 * i..][..4].try_into().unwrap());
        assert_eq!(get(0), if lane >= 3 { lane - 3 } else { lane });
        assert_eq!(get(1), u32::from(lane >= 3));
        // segments of eight lanes
        assert_eq!(get(2), if lane % 8 < 3 { lane + 5 } else { lane });
        assert_eq!(get(3), u32::MAX << 21);
        assert_eq!(get(4), 1);
        assert_eq!(get(5), 0xff << (lane / 8 * 8));
        assert_eq!(get(6), 31);
        assert_eq!(get(7), u32::from(lane == 0));
        assert_eq!(get(8), if lane > 20 { u32::MAX << 21 } else { (1 << 21) - 1 });
        assert_eq!(get(9), (1u32 << lane) - 1);
        assert_eq!(get(10), 11);
        assert_eq!(get(11), 0);
    }
    // which lane is elected and which lanes run on together is up to the device
    let open: Vec<usize> = (0..32).flat_map(|lane| [16 * lane + 7, 16 * lane + 8]).collect();
    d.keep("kernels", "warp instructions", Compare::Bits(4), &open);
    if let Some(ptxas) = Ptxas::or_skip("warp_instructions_compute_what_they_say") {
        ptxas.assemble("sm_90a", &[("warp".into(), text.into())]).unwrap();
    }
}
