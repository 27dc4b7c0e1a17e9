//! Every stage of right compilations is found right, whole and in samples.

use kernelsmith::debug::levels::{Level, take};
use kernelsmith::debug::stages::{Checked, Effort, check};
use kernelsmith::debug::{Repro, bisect};
use kernelsmith::driver::CompileOptions;
use kernelsmith::ir::build::Builder;
use kernelsmith::ir::prim::{UnaryOp, WindowDim};
use kernelsmith::ir::testing::{Options, Rng, random_graph, random_tensor};
use kernelsmith::ir::{DType, Dim, Module, Tensor};
use kernelsmith::passes::kernel_exec::Budget;
use kernelsmith::passes::limits::Limits;
use std::time::Duration;

fn options() -> CompileOptions {
    CompileOptions { threads: 1, ..CompileOptions::default() }
}

fn stages(module: &Module, inputs: &[Tensor], units: u64) -> Vec<Checked> {
    let effort = Effort { kernels: Budget { units }, ..Effort::default() };
    check(module, inputs, &options(), effort, &mut |_| {}).unwrap()
}

/// Two convolutions with a residual sum, a concatenation and a product behind them.
fn network() -> (Module, Vec<Tensor>) {
    let mut b = Builder::new("main");
    let dims = |s: &[i64]| s.iter().map(|&n| Dim::from(n)).collect::<Vec<_>>();
    let x = b.input("x", DType::F32, dims(&[1, 8, 12, 10]));
    let mut rng = Rng::new(3);
    let w = b.constant(random_tensor(&mut rng, DType::F32, vec![8, 8, 3, 3])).unwrap();
    let v = b.constant(random_tensor(&mut rng, DType::F32, vec![16, 24])).unwrap();
    let window = vec![WindowDim { pad_lo: 1.into(), pad_hi: 1.into(), ..WindowDim::unit() }; 2];
    let y = b.convolve(x, w, &window, 1, DType::F32).unwrap();
    let y = b.unary(UnaryOp::Tanh, y).unwrap();
    let z = b.convolve(y, w, &window, 1, DType::F32).unwrap();
    let z = b.add(z, x).unwrap();
    let both = b.concat(&[y, z], 1).unwrap();
    let mean = b.reduce_mean(both, &[2, 3], false).unwrap();
    let out = b.matmul(mean, v).unwrap();
    let module = b.finish(&[("out".into(), out), ("both".into(), both)]).unwrap();
    let inputs = vec![random_tensor(&mut rng, DType::F32, vec![1, 8, 12, 10])];
    (module, inputs)
}

#[test]
fn right_compilations_are_right_at_every_stage() {
    for seed in 0..24 {
        let case = random_graph(seed, &Options { symbolic: seed % 3 == 0, ..Options::default() });
        let checked = stages(&case.module, &case.inputs(0), 40_000_000);
        let bad: Vec<String> =
            checked.iter().filter(|c| c.outcome.is_bad()).map(ToString::to_string).collect();
        assert!(
            bad.is_empty(),
            "seed {seed}: {bad:?}\n{}",
            kernelsmith::ir::text::graph::print(&case.module)
        );
        assert!(checked.len() > Level::ALL.len());
    }
}

#[test]
fn what_costs_too_much_is_sampled_or_left_out_and_said() {
    let (module, inputs) = network();
    let whole = stages(&module, &inputs, 1 << 40);
    assert!(whole.iter().all(|c| !c.outcome.is_bad() && c.outcome.left_out().is_empty()), "{whole:?}");
    let sampled = stages(&module, &inputs, 2_000_000);
    assert!(sampled.iter().all(|c| !c.outcome.is_bad()), "{sampled:?}");
    assert!(sampled.iter().any(|c| c.to_string().contains("at some points")), "{sampled:?}");
    let partly = stages(&module, &inputs, 10_000);
    let left = partly.iter().filter(|c| !c.outcome.left_out().is_empty());
    assert!(left.count() > 0 && partly.iter().all(|c| !c.outcome.is_bad()), "{partly:?}");
}

#[test]
fn limits_leave_decisions_out_and_results_right() {
    let (module, inputs) = network();
    let want = kernelsmith::interp::Interp::new(&module).run(&inputs).unwrap();
    let right = |limits: &Limits, level: Level| {
        let at = take(&module, &options(), limits, level).unwrap();
        let got = at.run(&inputs).unwrap();
        for (g, w) in got.iter().zip(&want) {
            let c = kernelsmith::interp::compare(g, w, kernelsmith::interp::Tolerance::of_network(w.dtype));
            assert!(c.passes(), "{limits:?} at {}: {c}", level.name());
        }
        at
    };
    let all = right(&Limits::default(), Level::Loops);
    let none = right(&Limits::plain_kernels(), Level::Loops);
    assert!(none.planned.kernels.len() > all.planned.kernels.len());
    for class in Level::ALL.iter().flat_map(|l| l.classes()) {
        let n = all.used(class);
        for limit in [n / 3, n / 2, n.saturating_sub(1)] {
            let limits = Limits::default().with(class, limit);
            let at = right(&limits, Level::Places);
            if Level::Places.classes().contains(class) && limit > 0 && limit < n {
                assert_eq!(at.last(class).map(|d| d.number), Some(limit), "{class}");
            }
        }
    }
}

#[test]
fn a_right_model_has_nothing_to_be_found() {
    let (module, inputs) = network();
    let model = Repro { module, sets: vec![inputs] };
    let (checked, found) =
        bisect(&model, &options(), Effort::default(), Duration::from_secs(5), &mut |_| {}).unwrap();
    assert!(found.is_none() && !checked.is_empty());
}
