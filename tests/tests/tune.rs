//! Schedules that are not the default: every neighbour computes the same, and winners are found again.

use kernelsmith::ir::build::Builder;
use kernelsmith::ir::host::Lowered;
use kernelsmith::ir::testing;
use kernelsmith::ir::{DType, Module, Tensor};
use kernelsmith::passes::schedule::tuned::{Question, Tuned, neighbours, question};
use kernelsmith::passes::schedule::{choose, form_for};
use kernelsmith::passes::{self, Stage, State};
use kernelsmith::tune::{Database, Winner, tune};
use kernelsmith::{CompileOptions, arrays, codegen, compile_module, driver, interp};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// A product with a bias, and a softmax over its rows.
fn module() -> Module {
    let mut b = Builder::new("m");
    let x = b.input("x", DType::F32, vec![29.into(), 40.into()]);
    let w = b.random_constant(DType::F32, &[40, 70], 1, 0.0, 0.3).unwrap();
    let bias = b.random_constant(DType::F32, &[70], 2, 0.0, 0.3).unwrap();
    let y = b.matmul(x, w).unwrap();
    let y = b.add(y, bias).unwrap();
    let y = testing::softmax(&mut b, y, 1).unwrap();
    b.finish(&[("y".into(), y)]).unwrap()
}

fn input() -> Vec<Tensor> {
    vec![arrays::random(DType::F32, vec![29, 40], 3)]
}

fn schedules(lowered: &Lowered) -> HashSet<String> {
    lowered.kernels.iter().flat_map(|k| &k.variants).map(|v| v.schedule.clone()).collect()
}

#[test]
fn neighbours_compute_the_same() {
    if codegen::available().is_empty() {
        return;
    }
    let mut options = CompileOptions { threads: 2, ..Default::default() };
    let target = driver::backend(&options).unwrap().target();
    let want = interp::Interp::new(&module()).run(&input()).unwrap();
    let planned = match passes::run_until(module(), &target, &options.passes(), Stage::Kernels).unwrap() {
        State::Planned(p) => p,
        _ => panic!("no kernels"),
    };
    let symbols = &planned.module.symbols;
    let mut applied = 0;
    for kernel in &planned.kernels {
        let normal = form_for(kernel, symbols, &target).unwrap();
        for choice in choose::variants(&normal, symbols, &target) {
            for s in neighbours(&choice.schedule, &normal, symbols) {
                let q = question(&normal, &target, &choice.schedule);
                let text = s.text(&normal);
                let tuned = Tuned { schedules: [(q, text.clone())].into() };
                options.tuned = Some(Arc::new(tuned));
                let lowered = passes::compile(module(), &target, &options.passes());
                // what does not fit is left at its default
                applied += usize::from(lowered.is_ok_and(|l| schedules(&l).contains(&text)));
                let compiled = compile_module(module(), &options).unwrap();
                let got = compiled.run(&mut compiled.context(), &input()).unwrap();
                let same = interp::compare(&got[0], &want[0], interp::Tolerance::of_network(DType::F32));
                assert!(same.passes(), "{text}: {same}");
            }
        }
    }
    assert!(applied > 5, "{applied} schedules applied");
}

#[test]
fn a_search_keeps_to_its_budget_and_its_winners_are_read_back() {
    if codegen::available().is_empty() {
        return;
    }
    let options = CompileOptions { threads: 1, ..Default::default() };
    let found = tune(module(), &input(), &options, Duration::from_millis(300), &Database::default()).unwrap();
    assert!(found.tried > 0);
    assert!(found.database.winners.values().all(|w| w.speedup > 1.0));
    let path = std::env::temp_dir().join(format!("kernelsmith-tuned-{}.json", std::process::id()));
    found.database.write(&path).unwrap();
    let back = Database::read(&path).unwrap();
    let keys = |d: &Database| d.winners.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&back), keys(&found.database));
    assert_eq!(back.schedules(), found.database.schedules());
    std::fs::write(&path, "{\"version\": 99}").unwrap();
    assert!(Database::read(&path).is_err());
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn merging_takes_the_faster() {
    let database = |entries: &[(&str, &str, f64)]| {
        let entry = |&(kernel, schedule, speedup): &(&str, &str, f64)| {
            let q = Question { kernel: kernel.into(), default: "d".into() };
            (q, Winner { schedule: schedule.into(), speedup, name: String::new(), cpu: String::new() })
        };
        Database { winners: entries.iter().map(entry).collect() }
    };
    let mut a = database(&[("1", "slow", 1.1), ("2", "mine", 2.0)]);
    a.merge(database(&[("1", "fast", 1.5), ("2", "theirs", 1.2), ("3", "new", 1.3)]));
    assert_eq!(a, database(&[("1", "fast", 1.5), ("2", "mine", 2.0), ("3", "new", 1.3)]));
}
