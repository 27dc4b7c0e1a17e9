//! Recordings that serve many sizes: what a decoder runs step after step, on a GPU that is none.
#![cfg(feature = "cuda")]

use kernelsmith::interp::{Interp, Tolerance, compare};
use kernelsmith::ir::build::Builder;
use kernelsmith::ir::testing;
use kernelsmith::ir::{DType, Dim, Module, Tensor};
use kernelsmith::runtime::{Context, Event};
use kernelsmith::{CompileOptions, Compiled, DeviceChoice, StateSpec, arrays, compile_module, compiled};
use std::process::Command;

const WIDTH: usize = 16;
const HEADS: usize = 2;
const CAPACITY: usize = 24;

fn dims(d: &[usize]) -> Vec<Dim> {
    d.iter().map(|&d| (d as i64).into()).collect()
}

/// One attention step over a cache of keys: new[S, heads, 16] and the cache -> softmax(new keysT) keys, the new cache, and
/// the sum of everything that was in the cache before.
fn step() -> Module {
    let mut b = Builder::new("step");
    let (past, rows) = (b.symbol("past", 0, 4096), b.symbol("rows", 1, 64));
    let new = b.input("new", DType::F32, [vec![rows], dims(&[HEADS, WIDTH])].concat());
    let cache = b.input("cache", DType::F32, [vec![past], dims(&[HEADS, WIDTH])].concat());
    let keys = b.concat(&[cache, new], 0).unwrap();
    let (q, k) = (b.transpose(new, &[1, 0, 2]).unwrap(), b.transpose(keys, &[1, 0, 2]).unwrap());
    let kt = b.transpose(k, &[0, 2, 1]).unwrap();
    let scores = b.matmul(q, kt).unwrap();
    let p = testing::softmax(&mut b, scores, 2).unwrap();
    let out = b.matmul(p, k).unwrap();
    let before = b.reduce_sum(cache, &[0], false).unwrap();
    b.finish(&[("out".into(), out), ("present".into(), keys), ("before".into(), before)]).unwrap()
}

fn compile_step() -> Compiled {
    let state = StateSpec { input: "cache".into(), output: "present".into(), capacity: CAPACITY as i64 };
    let options =
        CompileOptions { device: DeviceChoice::PtxInterp, states: vec![state], ..CompileOptions::default() };
    compile_module(step(), &options).unwrap()
}

/// A decoder, and the reference beside it with a cache of its own.
struct Decoder<'a> {
    compiled: &'a Compiled,
    context: Context,
    cache: Tensor,
    module: Module,
    seed: u64,
}

impl Decoder<'_> {
    fn new(compiled: &Compiled) -> Decoder<'_> {
        let cache = Tensor::new(DType::F32, vec![0, HEADS, WIDTH], Vec::new());
        Decoder { compiled, context: compiled.context(), cache, module: step(), seed: 1 }
    }

    fn input(&mut self, rows: usize) -> Tensor {
        self.seed += 1;
        arrays::random(DType::F32, vec![rows, HEADS, WIDTH], self.seed)
    }

    /// Adds so many rows, and compares.
    #[track_caller]
    fn step(&mut self, rows: usize) {
        let new = self.input(rows);
        let got = self.compiled.run(&mut self.context, std::slice::from_ref(&new)).unwrap();
        let want = Interp::new(&self.module).run(&[new, self.cache.clone()]).unwrap();
        for i in [0, 2] {
            let c = compare(&got[i], &want[i], Tolerance::of_network(DType::F32));
            assert!(c.passes(), "{} rows in the cache, output {i}: {c}", self.cache.shape[0]);
        }
        self.cache = want[1].clone();
        assert_eq!(self.context.state(0).unwrap().dense().unwrap(), self.cache.data);
    }
}

#[test]
fn one_recording_serves_all_steps_of_a_decoder() {
    let compiled = compile_step();
    let mut d = Decoder::new(&compiled);
    d.step(5);
    assert_eq!((d.context.replays(), d.context.recordings().0), (0, 0));
    let launches = d.context.launches();
    d.step(1);
    let plain = d.context.launches() - launches;
    for n in 1..12 {
        let before = d.context.launches();
        d.step(1);
        assert_eq!((d.context.replays(), d.context.recordings().0), (n, 1));
        assert!(d.context.launches() - before >= plain);
    }
    assert!(d.context.recordings().1 > 0, "a recording takes memory");
    // back to fewer rows, and other numbers of new ones in between
    d.context.truncate_states(3);
    d.cache.data.truncate(3 * HEADS * WIDTH * 4);
    d.cache.shape[0] = 3;
    d.step(1);
    d.step(2);
    d.step(1);
    assert_eq!(d.context.replays(), 13);
    // up to the last row that there is room for
    while d.cache.shape[0] < CAPACITY {
        d.step(1);
    }
    let new = d.input(1);
    let e = compiled.run(&mut d.context, &[new]).unwrap_err().to_string();
    assert!(e.contains("do not fit its capacity of 24"), "{e}");
    d.context.truncate_states(7);
    d.cache.data.truncate(7 * HEADS * WIDTH * 4);
    d.cache.shape[0] = 7;
    let replays = d.context.replays();
    d.step(1);
    assert_eq!(d.context.replays(), replays + 1);
}

#[test]
fn warming_up_records() {
    let compiled = compile_step();
    let mut d = Decoder::new(&compiled);
    let new = d.input(1);
    d.context.warm_up(&compiled::views(&[new])).unwrap();
    assert_eq!((d.context.replays(), d.context.recordings().0), (1, 1));
    assert_eq!(d.context.state(0).unwrap().len, 0, "the rows of warming up are forgotten");
    for n in 2..6 {
        d.step(1);
        assert_eq!(d.context.replays(), n);
    }
    d.context.trim().unwrap();
    assert_eq!(d.context.recordings(), (0, 0));
    d.step(1);
    assert_eq!(d.context.replays(), 5);
}

/// A recording is for as many rows as a state can hold; calls are told of with those that it does hold.
#[test]
fn timed_replays_leave_states_as_they_were() {
    let compiled = compile_step();
    let mut d = Decoder::new(&compiled);
    d.step(5);
    d.step(1);
    let new = [d.input(1)];
    let views = compiled::views(&new);
    let describe = |e: &Event<'_>| {
        let lens: Vec<usize> = e.args.iter().map(|&b| e.len(b)).collect();
        (e.kernel, e.variant, e.origin, lens)
    };
    let mut plain = Vec::new();
    d.context.run_with(&views, None, Some(&mut |e| plain.push(describe(e)))).unwrap();
    d.context.truncate_states(6);
    let mut replays = d.context.timed_replays(&views).unwrap().unwrap();
    for _ in 0..2 {
        let mut calls = Vec::new();
        replays.run(&mut |e| calls.push(describe(e))).unwrap();
        assert_eq!(calls, plain);
    }
    assert_eq!(d.context.state(0).unwrap().len, 6);
    (0..3).for_each(|_| d.step(1));
}

/// Where the device has no memory for recordings, runs are plain ones.
#[test]
fn no_memory_for_recordings() {
    if std::env::var_os("KS_NO_RECORDINGS").is_some() {
        let compiled = compile_step();
        let mut d = Decoder::new(&compiled);
        (0..6).for_each(|_| d.step(1));
        assert_eq!((d.context.replays(), d.context.recordings()), (0, (0, 0)));
        let new = [d.input(1)];
        assert!(d.context.timed_replays(&compiled::views(&new)).unwrap().is_none());
        return;
    }
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "no_memory_for_recordings"])
        .env("KS_NO_RECORDINGS", "1")
        .env("KERNELSMITH_PTX_FAULT", "no-graphs")
        .output()
        .unwrap();
    let said = [out.stdout, out.stderr].concat();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// A device keeps as many recordings as it says, and those that were used last.
#[test]
fn recordings_are_bounded() {
    let mut b = Builder::new("rows");
    let n = b.symbol("N", 1, 100);
    let x = b.input("x", DType::F32, vec![n, 4.into()]);
    let y = b.exp(x).unwrap();
    let options = CompileOptions { device: DeviceChoice::PtxInterp, ..CompileOptions::default() };
    let compiled = compile_module(b.finish(&[("y".into(), y)]).unwrap(), &options).unwrap();
    let mut context = compiled.context();
    let mut run = |n: usize| {
        let x = arrays::random(DType::F32, vec![n, 4], n as u64);
        compiled.run(&mut context, &[x]).unwrap();
        (context.replays(), context.recordings().0)
    };
    // memory grows first
    run(40);
    for n in 1..=20 {
        run(n);
        let (replays, recordings) = run(n);
        assert_eq!((replays, recordings), (n as u64, n.min(16)));
    }
    assert_eq!(run(20).0, 21);
    assert_eq!(run(1).0, 21, "the first one made room");
}
