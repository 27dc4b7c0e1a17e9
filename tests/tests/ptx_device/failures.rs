//! Failures of the driver and of the device: each is said clearly, and what can be tried again can.

use crate::models::weight;
use crate::{of_examples, options};
use kernelsmith::cache::CacheOptions;
use kernelsmith::ir::build::Builder;
use kernelsmith::ir::{DType, Module, Tensor};
use kernelsmith::{CompileOptions, Compiled, arrays, compile_module};
use std::process::Command;

pub fn compile_xor(check_launches: bool) -> Result<(Compiled, Vec<Tensor>), kernelsmith::Error> {
    let (module, inputs) = of_examples("xor", 4);
    let cache = std::env::var_os("KS_CACHE").map(|dir| CacheOptions { dir: dir.into(), max_bytes: 1 << 30 });
    Ok((compile_module(module, &CompileOptions { check_launches, cache, ..options() })?, inputs))
}

/// What other tests start as a process of its own, with failures in the environment.
#[test]
#[ignore = "no test by itself: the tests of failures start it as a process of its own, with a driver that fails"]
fn child() {
    let Some(kind) = std::env::var_os("KS_CHILD") else { return };
    if kind == "maps" {
        return every_mapping_fails_once();
    }
    let result = compile_xor(kind == "checked").and_then(|(compiled, inputs)| {
        println!("kept: {}", compiled.model.kept_kernels());
        let mut context = compiled.context();
        let first = compiled.run(&mut context, &inputs);
        if let (Err(first), "twice") = (&first, kind.to_str().unwrap_or("")) {
            println!("first: {first}");
            return compiled.run(&mut context, &inputs);
        }
        first
    });
    match result {
        Ok(_) => println!("said: all is well"),
        Err(e) => println!("said: {e} (exit status {})", e.exit_code()),
    }
}

/// x[N, 64] -> two layers; memory grows with N.
fn layers() -> Module {
    let mut b = Builder::new("layers");
    let n = b.symbol("N", 1, 1000);
    let x = b.input("x", DType::F32, vec![n, 64.into()]);
    let (v, w) = (weight(&mut b, &[64, 48], 64, 1), weight(&mut b, &[48, 32], 48, 2));
    let h = b.matmul(x, v).unwrap();
    let h = b.tanh(h).unwrap();
    let y = b.matmul(h, w).unwrap();
    b.finish(&[("y".into(), y)]).unwrap()
}

/// Whichever mapping of memory the driver refuses, that is said, and the next attempt succeeds.
fn every_mapping_fails_once() {
    let sizes = [3, 40, 41, 200];
    let inputs = sizes.map(|n| arrays::random(DType::F32, vec![n, 64], n as u64));
    let run = |fault: &str| {
        // SAFETY: this process has one thread.
        unsafe { std::env::set_var("KERNELSMITH_PTX_FAULT", fault) };
        let mut failures = 0;
        let mut expect_memory = |e: String| {
            assert!(e.contains("out of device memory"), "{fault}: {e}");
            failures += 1;
            assert_eq!(failures, 1, "{fault}");
        };
        let compiled = match compile_module(layers(), &options()) {
            Ok(compiled) => compiled,
            Err(e) => {
                expect_memory(e.to_string());
                return (failures, None);
            }
        };
        let mut context = compiled.context();
        let mut outputs = Vec::new();
        for input in &inputs {
            let input = std::slice::from_ref(input);
            let mut out = compiled.run(&mut context, input);
            if let Err(e) = &out {
                expect_memory(e.to_string());
                out = compiled.run(&mut context, input);
            }
            outputs.push(out.unwrap());
        }
        (failures, Some(outputs))
    };
    let (none, want) = run("");
    assert_eq!(none, 0);
    let mut faults = 0;
    loop {
        let (failures, outputs) = run(&format!("map={}", faults + 1));
        assert!(outputs.is_none() || outputs == want, "mapping {} fails", faults + 1);
        if failures == 0 {
            break;
        }
        faults += 1;
    }
    // in the ordinary way
    assert_eq!(run("no-maps"), (0, want));
    assert!(faults >= 6, "{faults} mappings");
    println!("said: all is well ({faults} mappings)");
}

#[test]
fn mappings_that_fail_can_be_tried_again() {
    assert!(failing("", "maps").contains("all is well"));
}

/// What running XOR says when the driver fails like this.
fn failing(fault: &str, kind: &str) -> String {
    failing_with(fault, kind, &[])
}

/// As above, with more in the environment.
pub fn failing_with(fault: &str, kind: &str, variables: &[(&str, &std::ffi::OsStr)]) -> String {
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "failures::child", "--include-ignored", "--nocapture"])
        .env("KS_CHILD", kind)
        .env("KERNELSMITH_PTX_FAULT", fault)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("said: "), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    text
}

#[test]
fn failures_of_the_driver_are_said_clearly() {
    assert!(failing("", "").contains("all is well"));
    for (fault, words, status) in [
        ("no-device", "the CUDA driver has no device", 6),
        ("no-devices-listed", "the CUDA driver has no device", 6),
        ("old-driver", "too old: for CUDA 11.4; 12.0 or later is needed", 6),
        ("old-device", "capability is 7.0, 8.0 or later", 6),
        ("memory=1000", "out of device memory", 5),
        ("assemble", "loading kernel", 70),
        ("refuse=2", "launching kernel", 70),
        ("launch=2", "the device failed: unspecified launch failure", 6),
    ] {
        let said = failing(fault, "");
        assert!(said.contains(words) && said.contains(&format!("exit status {status}")), "{fault}: {said}");
    }
}

/// Work is done when it is waited for: an error names what was pending, and with `check_launches` the culprit alone.
#[test]
fn a_failing_kernel_is_named() {
    let (compiled, _) = compile_xor(false).unwrap();
    let init = compiled.model.init_launches();
    let late = format!("launch={}", init + 2);
    let said = failing(&late, "");
    let pending = said.split("the fault is in one of: ").nth(1).unwrap();
    assert!(pending.matches("(node ").count() >= 2, "{said}");
    let said = failing(&late, "checked");
    let pending = said.split("the fault is in one of: ").nth(1).unwrap();
    assert_eq!(pending.matches("(node ").count(), 1, "{said}");
    // the context is dead afterwards, and says so
    let said = failing(&late, "twice");
    assert!(
        said.contains("first: the device failed") && said.contains("dead since an earlier error"),
        "{said}"
    );
}
