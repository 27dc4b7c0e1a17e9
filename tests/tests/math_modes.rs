//! What a compile request may say of arithmetic.

use kernelsmith::ir::build::Builder;
use kernelsmith::ir::{DType, Math, Module, Tensor};
use kernelsmith::{CompileOptions, compile_module};

/// `x * 1.00390625 - x` on halves: the product lies between two values of bf16.
fn halves() -> Module {
    let mut b = Builder::new("halves");
    let x = b.input("x", DType::BF16, vec![4.into()]);
    let f = b.scalar(DType::BF16, 1.0078125).unwrap();
    let p = b.mul(x, f).unwrap();
    let y = b.sub(p, x).unwrap();
    b.finish(&[("y".into(), y)]).unwrap()
}

fn run(math: Math) -> Vec<u16> {
    let options = CompileOptions { math, threads: 1, ..Default::default() };
    let compiled = compile_module(halves(), &options).unwrap();
    // 1.5, 1.25, 1.0, 3.0
    let x: Vec<u8> = [0x3fc0u16, 0x3fa0, 0x3f80, 0x4040].iter().flat_map(|b| b.to_le_bytes()).collect();
    let outputs = compiled.run(&mut compiled.context(), &[Tensor::new(DType::BF16, vec![4], x)]).unwrap();
    outputs[0].data.chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect()
}

#[test]
fn halves_are_rounded_after_every_operation() {
    // 1.5 * 1.0078125 - 1.5 = 0.01171875; the product rounds to 1.515625 or 1.5078125 first
    let exact = 0x3c40;
    assert_eq!(run(Math::Bf16)[0], exact);
    assert_ne!(run(Math::Default)[0], exact);
    // 1.0 * 1.0078125 is a value of bf16
    assert_eq!(run(Math::Default)[2], run(Math::Bf16)[2]);
    assert_eq!(run(Math::Default), run(Math::Strict));
}
