//! Chains in all kinds of blocks, executed as tile-form loop IR, against the reference interpreter.

use super::block::Cut;
use super::fuse_where;
use super::schedule::{Blocks, ChainSchedule};
use super::shared::shared_axes;
use crate::limits::Fuel;
use crate::schedule::choose::serial_variants;
use crate::tests::{data, target};
use crate::{Options, Planned, Stage, State, host, kernel_exec, place, run_until};
use interp::{Interp, Tolerance, compare};
use ir::build::{Builder, V};
use ir::host::Step;
use ir::prim::Monoid;
use ir::{DType, Dim, Module, Sym, Tensor, loops_exec};

/// The program with as many chains as there can be, whether they pay or not.
fn plan(module: &Module) -> Planned {
    let Ok(State::Graph(m)) = run_until(module.clone(), &target(), &Options::default(), Stage::Canonical)
    else {
        panic!("no graph")
    };
    let mut p =
        host::schedule(m, &target(), Options::default().choices(&target()), &Fuel::default()).unwrap();
    fuse_where(&mut p, &target(), 0.0, |_, _| true, &Fuel::default());
    p.kernels.iter().for_each(|k| ir::verify::kernel::verify(k).unwrap_or_else(|e| panic!("{e}\n{k}")));
    place::place(&mut p, &Fuel::default());
    p
}

/// Runs the program in kernel IR, and its one chain as loop IR in blocks of many sizes.
fn check(module: &Module, inputs: &[Tensor]) -> Planned {
    let p = plan(module);
    let want = Interp::new(module).run(inputs).expect("the interpreter runs it");
    let close = |got: &Tensor, place: &str| {
        let c = compare(got, &want[0], Tolerance::of_network(want[0].dtype));
        assert!(c.passes(), "{place}: {c:?}");
    };
    close(&kernel_exec::execute(&p, inputs).unwrap()[0], "kernels");
    let calls = p.steps.iter().filter_map(|s| match s {
        Step::Call { kernel, args, .. } => Some((&p.kernels[*kernel], args)),
        _ => None,
    });
    let calls: Vec<_> = calls.collect();
    let [(chain, args)] = calls.as_slice() else { panic!("{} calls", calls.len()) };
    assert!(!chain.stages.is_empty());
    let again = ir::text::kernel::parse(&chain.to_string()).unwrap();
    assert_eq!(again.to_string(), chain.to_string(), "a printed chain parses back");

    let symbols = &p.module.symbols;
    let mut values = vec![0; symbols.infos.len()];
    for (v, t) in p.module.graph.inputs.iter().zip(inputs) {
        for (d, n) in p.module.graph[*v].ty.shape.iter().zip(&t.shape) {
            if let Some(s) = d.as_sym() {
                values[s.0 as usize] = *n as i64;
            }
        }
    }
    let at = |d: &Dim| d.eval_syms(&|s: Sym| Some(values[s.0 as usize])).unwrap();
    let shared = shared_axes(chain);
    let extents: Vec<i64> = shared.iter().map(|a| at(&a.extent)).collect();
    for n in 0..(1u32 << shared.len()) {
        for size in [1, 2, 3, 5, 16] {
            let cuts: Vec<Cut> = (0..shared.len())
                .filter(|i| n >> i & 1 == 1)
                .map(|axis| Cut { axis, size: if axis + 1 == shared.len() { size } else { size.min(2) } })
                .collect();
            if cuts.iter().any(|c| i64::from(c.size) > extents[c.axis]) {
                continue;
            }
            let blocks = Blocks::new(chain, &cuts, symbols).unwrap();
            for last in [false, true] {
                let choices = blocks.stages.iter().map(|k| {
                    let all = serial_variants(k, symbols, &target());
                    if last { all.into_iter().next_back().unwrap() } else { all.into_iter().next().unwrap() }
                });
                let choices: Vec<_> = choices.collect();
                let holds = |c: &crate::schedule::choose::Choice| {
                    c.guards.iter().all(|g| (0..at(&g.bound)).contains(&at(&g.expr)))
                };
                if !choices.iter().all(holds) {
                    continue;
                }
                let schedules: Vec<_> = choices.into_iter().map(|c| c.schedule).collect();
                let func = blocks.lower(&schedules, 1.0).unwrap();
                ir::verify::loops::verify(&func).unwrap_or_else(|e| panic!("{e}\n{func}"));
                let text = ChainSchedule { cuts: cuts.clone(), stages: schedules }.text(&blocks);
                let parsed = ChainSchedule::parse(&text, chain, symbols).unwrap();
                assert_eq!(blocks.lower(&parsed.stages, 1.0).unwrap(), func, "a printed schedule replays");

                let mut memory: Vec<Vec<u8>> = args
                    .iter()
                    .map(|b| match p.inputs.iter().position(|i| i == b) {
                        Some(i) => inputs[i].data.clone(),
                        None => vec![0xA5; at(&p.buffers[b.0 as usize].bytes) as usize],
                    })
                    .collect();
                let syms: Vec<i64> = func.syms.iter().map(|s| values[s.0 as usize]).collect();
                let trip = at(&func.launch.trip);
                loops_exec::execute(&func, &mut memory, &syms, 0, trip).unwrap();
                let out = args.iter().position(|b| *b == p.outputs[0]).unwrap();
                close(&Tensor::new(DType::F32, want[0].shape.clone(), memory[out].clone()), &text);
            }
        }
    }
    p
}

/// As [`check`], with sizes known and with symbols for them.
fn check_both(shapes: &[&[usize]], f: impl Fn(&mut Builder, &[V]) -> V) -> Planned {
    let inputs: Vec<Tensor> = shapes.iter().zip(1..).map(|(s, i)| data(DType::F32, s, i)).collect();
    let build = |symbolic: bool| {
        let mut b = Builder::new("chain");
        let mut dims = std::collections::BTreeMap::new();
        let mut xs = Vec::new();
        for (i, shape) in shapes.iter().enumerate() {
            let mut dim = |n: usize| match symbolic && n > 1 {
                true => dims.entry(n).or_insert_with(|| b.symbol(format!("n{n}"), 0, 1 << 20)).clone(),
                false => Dim::from(n),
            };
            let shape = shape.iter().map(|&n| dim(n)).collect();
            xs.push(b.input(format!("x{i}"), DType::F32, shape));
        }
        let y = f(&mut b, &xs);
        b.finish(&[("y".into(), y)]).expect("well-formed")
    };
    check(&build(true), &inputs);
    check(&build(false), &inputs)
}

fn softmax(b: &mut Builder, x: V, axis: usize) -> V {
    let max = b.reduce(Monoid::Max, x, &[axis], true).unwrap();
    let d = b.sub(x, max).unwrap();
    let e = b.exp(d).unwrap();
    let sum = b.reduce(Monoid::Sum, e, &[axis], true).unwrap();
    b.div(e, sum).unwrap()
}

/// Scores, softmax, mix of values: batch, heads, queries of `q`; `kt` has the keys as columns.
fn attention(b: &mut Builder, x: &[V]) -> V {
    let s = b.matmul(x[0], x[1]).unwrap();
    let s = b.mul_scalar(s, 0.5).unwrap();
    let p = softmax(b, s, 3);
    b.matmul(p, x[2]).unwrap()
}

#[test]
fn attention_shares_batch_heads_and_queries() {
    for (t, s, d) in [(7, 19, 9), (16, 16, 8), (33, 6, 4)] {
        let shapes: [&[usize]; 3] = [&[2, 3, t, d], &[2, 3, d, s], &[2, 3, s, d]];
        let p = check_both(&shapes, attention);
        let shared = shared_axes(&p.kernels[0]);
        assert_eq!(
            shared.iter().map(|a| a.extent.as_const()).collect::<Vec<_>>(),
            [Some(2), Some(3), Some(t as i64)]
        );
    }
}

#[test]
fn axes_may_be_split_in_one_stage_and_whole_in_another() {
    // batch and heads are one dim of the scores, and two of the result
    let mut b = Builder::new("merged");
    let dims = |s: &[i64]| s.iter().map(|n| Dim::from(*n)).collect::<Vec<_>>();
    let q = b.input("q", DType::F32, dims(&[6, 7, 5]));
    let kt = b.input("kt", DType::F32, dims(&[6, 5, 11]));
    let s = b.matmul(q, kt).unwrap();
    let p = softmax(&mut b, s, 2);
    let p = b.reshape(p, &dims(&[2, 3, 7, 11])).unwrap();
    let p = b.transpose(p, &[0, 2, 1, 3]).unwrap();
    let m = b.finish(&[("p".into(), p)]).unwrap();
    let p = check(&m, &[data(DType::F32, &[6, 7, 5], 1), data(DType::F32, &[6, 5, 11], 2)]);
    let shared = shared_axes(&p.kernels[0]);
    assert_eq!(shared[0].parts.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2], "{}", p.kernels[0]);
}

#[test]
fn rows_of_two_products() {
    let p = check_both(&[&[21, 8], &[8, 18], &[18, 5]], |b, x| {
        let h = b.matmul(x[0], x[1]).unwrap();
        let h = b.tanh(h).unwrap();
        b.matmul(h, x[2]).unwrap()
    });
    // the rows alone: columns of the first product are what the second one sums over
    assert_eq!(shared_axes(&p.kernels[0]).len(), 1);
}

#[test]
fn what_another_block_needs_is_not_shared() {
    // the second softmax runs along the rows of the first
    let mut b = Builder::new("transposed");
    let x = b.input("x", DType::F32, vec![Dim::from(9), Dim::from(7)]);
    let y = softmax(&mut b, x, 1);
    let y = softmax(&mut b, y, 0);
    let m = b.finish(&[("y".into(), y)]).unwrap();
    let p = plan(&m);
    assert!(p.kernels.iter().all(|k| k.stages.is_empty()), "{:?}", p.kernels[0].name);
}

#[test]
fn what_others_read_stays_in_memory() {
    let mut b = Builder::new("residual");
    let x = b.input("x", DType::F32, vec![Dim::from(9), Dim::from(7)]);
    let w = b.input("w", DType::F32, vec![Dim::from(7), Dim::from(7)]);
    let y = softmax(&mut b, x, 1);
    let z = b.matmul(y, w).unwrap();
    let m = b.finish(&[("z".into(), z), ("y".into(), y)]).unwrap();
    let p = plan(&m);
    // nothing between the two would be private
    assert!(p.kernels.iter().all(|k| k.stages.is_empty()));
}
