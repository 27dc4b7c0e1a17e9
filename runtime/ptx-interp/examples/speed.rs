//! Nanoseconds per warp instruction: a loop of fused multiply-adds with integer and memory work around it.
//! `cargo run --release -p kernelsmith-ptx-interp --example speed`

use kernelsmith_ptx_interp::{Config, DeviceMemory, Module, Params};
use std::time::Instant;

fn kernel(body: &str) -> String {
    format!(
        ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 x)\n{{\n.shared .align 16 .b8 s[4096];\n\
         .reg .pred %p;\n.reg .f32 %f<12>;\n.reg .b32 %r<8>;\n.reg .b64 %rd<4>;\nld.param.u64 %rd1, [x];\nmov.u32 %r1, %tid.x;\n\
         mul.wide.u32 %rd2, %r1, 16;\nadd.s64 %rd1, %rd1, %rd2;\nld.global.v4.f32 {{%f1, %f2, %f3, %f4}}, [%rd1];\n\
         shl.b32 %r2, %r1, 4;\nmov.u32 %r3, s;\nadd.u32 %r2, %r2, %r3;\nst.shared.v4.f32 [%r2], {{%f1, %f2, %f3, %f4}};\n\
         mov.u32 %r4, 0;\nL:\n{body}\nadd.u32 %r4, %r4, 1;\nsetp.lt.u32 %p, %r4, 4000;\n@%p bra L;\n\
         st.global.v4.f32 [%rd1], {{%f1, %f2, %f3, %f4}};\nret;\n}}\n"
    )
}

fn main() {
    let fma = "fma.rn.f32 %f1, %f2, %f3, %f1;\nfma.rn.f32 %f2, %f3, %f4, %f2;\n".repeat(8);
    let mixed = format!("ld.shared.f32 %f3, [%r2];\n{fma}");
    let far = format!("ld.global.f32 %f3, [%rd1];\n{fma}");
    let stores = format!("st.global.f32 [%rd1], %f1;\n{fma}");
    let vectors = format!(
        "st.shared.v4.f32 [%r2], {{%f1, %f2, %f3, %f4}};\nld.shared.v4.f32 {{%f5, %f6, %f7, %f8}}, [%r2];\n{fma}"
    );
    for (what, body, checked) in [
        ("fma", &fma, true),
        ("16 fma per shared load, checks on", &mixed, true),
        ("16 fma per shared load, checks off", &mixed, false),
        ("16 fma per global load, checks on", &far, true),
        ("16 fma per global store, checks on", &stores, true),
        ("16 fma per shared store and load of 16 bytes, checks on", &vectors, true),
    ] {
        let config = Config { races: checked, uninitialised: checked, counters: false, ..Config::default() };
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let mut memory = DeviceMemory::new();
            let module = Module::load(&kernel(body), &mut memory).expect("the kernel is valid");
            let x = memory.alloc(4096);
            let start = Instant::now();
            let params = Params::new().u64(x);
            let c = module
                .run(&mut memory, &config, "k", [1, 1, 1], [128, 1, 1], 0, params.as_slice())
                .expect("the kernel runs");
            best = best.min(start.elapsed().as_nanos() as f64 / c.warp_instructions as f64);
        }
        println!("{what}: {best:.1} ns per warp instruction");
    }
}
