//! Filetests: text IR in, expected text out.
//!
//! Each file under `tests/filetests` begins with `test KIND ...`, then holds the input, a line `====`, and
//! what is expected. `BLESS=1` rewrites the expectations; read the difference before you commit it.
//!
//! | kind | what is printed |
//! |---|---|
//! | `roundtrip graph\|kernel\|loops` | the input, parsed and printed |
//! | `error graph\|kernel\|loops` | the error of the parser or of the verifier |
//! | `pass NAME,NAME...` | the graph after these passes of the pipeline |
//! | `kernels` | the kernels of the whole pipeline |
//! | `schedules` | the schedules chosen for an AVX-512 target |
//! | `agree seed=S [SYMBOL=N ...]` | whether all roads agree with the interpreter (found by `fuzz-graphs`) |
//! | `loops` | the loop IR in tile form for that target |
//! | `pass`, `kernels`, `schedules`, `loops` with `ptx` behind them | the same for an NVIDIA GPU |
//! | `ptx` | the PTX of each kernel, for an NVIDIA GPU |

use kernelsmith::CompileOptions;
use kernelsmith::codegen::{self, Backend};
use kernelsmith::debug::{Repro, Road, Roads};
use kernelsmith::ir::{self, IrError, Module, target::TargetDesc};
use kernelsmith::passes::{self, pipeline};
use std::path::{Path, PathBuf};

/// A fixed target: expectations do not depend on the machine of the test.
fn target() -> TargetDesc {
    TargetDesc {
        name: "llvm-x86_64-avx512".into(),
        cpu: "znver4".into(),
        features: "+avx512f,+avx512vl,+avx512bw,+avx512dq,+fma".into(),
        vector_bits: 512,
        vector_regs: 32,
        has_fma: true,
        has_masks: true,
        has_f16: true,
        simt: false,
        cache_line: 64,
        l1_bytes: 32 << 10,
        l2_bytes: 1 << 20,
        threads: 2,
    }
}

fn parse(text: &str) -> Result<Module, String> {
    let m = ir::text::graph::parse(text).map_err(|e| e.to_string())?;
    ir::verify::graph::verify(&m).map_err(|e| e.to_string())?;
    Ok(m)
}

fn roundtrip(form: &str, text: &str) -> Result<String, IrError> {
    match form {
        "graph" => {
            let m = ir::text::graph::parse(text)?;
            ir::verify::graph::verify(&m)?;
            Ok(m.to_string())
        }
        "kernel" => {
            let k = ir::text::kernel::parse(text)?;
            ir::verify::kernel::verify(&k)?;
            Ok(k.to_string())
        }
        "loops" => {
            let f = ir::text::loops::parse(text)?;
            ir::verify::loops::verify(&f)?;
            Ok(f.to_string())
        }
        _ => panic!("no form {form}"),
    }
}

fn output(kind: &str, text: &str) -> Result<String, String> {
    let mut words: Vec<&str> = kind.split_whitespace().collect();
    let options = passes::Options { verify: true, ..Default::default() };
    let gpu = codegen::ptx::Ptx::new(codegen::ptx::H100_SMS);
    let mut target = target();
    if words.len() > 1 && words.last() == Some(&"ptx") {
        words.pop();
        target = gpu.target();
    }
    match words.as_slice() {
        ["roundtrip", form] => roundtrip(form, text).map_err(|e| e.to_string()),
        ["error", form] => match roundtrip(form, text) {
            Ok(_) => Err("expected an error, but the text is good".into()),
            Err(e) => Ok(e.to_string()),
        },
        ["pass", names] => {
            let fuel = passes::limits::Fuel::new(&options);
            let cx = pipeline::Cx { target: &target, options: &options, fuel: &fuel };
            let mut state = pipeline::State::Graph(parse(text)?);
            for name in names.split(',') {
                let pass =
                    pipeline::PASSES.iter().find(|p| p.name == name).ok_or(format!("no pass {name}"))?;
                state = pass.apply(state, &cx).map_err(|e| e.to_string())?;
            }
            match state {
                pipeline::State::Graph(m) => {
                    ir::verify::graph::verify(&m).map_err(|e| e.to_string())?;
                    Ok(m.to_string())
                }
                _ => Err("passes end before kernels in this kind of test".into()),
            }
        }
        ["agree", settings @ ..] => agree(text, settings),
        [kind @ ("kernels" | "schedules" | "loops")] => {
            let lowered = passes::compile(parse(text)?, &target, &options).map_err(|e| e.to_string())?;
            let mut out = String::new();
            for k in &lowered.kernels {
                match *kind {
                    "kernels" => out += &format!("{}\n", k.kernel),
                    "schedules" => k.variants.iter().for_each(|v| out += &format!("{}\n", v.schedule)),
                    _ => k.variants.iter().for_each(|v| out += &format!("{}\n", v.func)),
                }
            }
            Ok(out)
        }
        ["ptx"] => {
            let lowered =
                passes::compile(parse(text)?, &gpu.target(), &options).map_err(|e| e.to_string())?;
            let mut out = String::new();
            for v in lowered.kernels.iter().flat_map(|k| &k.variants) {
                let machine = codegen::legalise::legalise(&v.func, &gpu.target());
                out += &machine.and_then(|m| gpu.ir_text(&m)).map_err(|e| e.to_string())?;
                out.push('\n');
            }
            Ok(out)
        }
        _ => Err(format!("no test kind `{kind}`")),
    }
}

/// Runs the graph on random inputs along every road of this build.
fn agree(text: &str, settings: &[&str]) -> Result<String, String> {
    let mut numbers: Vec<(String, i64)> = Vec::new();
    for s in settings {
        let (name, n) = s.split_once('=').ok_or(format!("{s}: expected NAME=N"))?;
        numbers.push((name.into(), n.parse().map_err(|e| format!("{s}: {e}"))?));
    }
    let seed = numbers.iter().find(|n| n.0 == "seed").map_or(0, |n| n.1 as u64);
    let repro = Repro::seeded(parse(text)?, &numbers, seed).ok_or("a symbol has no size")?;
    let bounds = repro.reference(false).map_err(|e| e.to_string())?;
    let options = CompileOptions { threads: 2, ..Default::default() };
    let mut judge = Roads { options, ort: None };
    let mut roads = vec![Road::Canonical, Road::Kernels, Road::RoundTrip];
    roads.extend(codegen::available().into_iter().map(|n| Road::Backend(n.into())));
    #[cfg(feature = "cuda")]
    roads.push(Road::Device(kernelsmith::DeviceChoice::PtxInterp));
    for road in roads {
        if let Some(fault) = judge.check(&road, &repro, &bounds) {
            return Err(format!("{road}: {fault}"));
        }
    }
    Ok("agrees".into())
}

fn find(dir: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for e in entries {
        if e.is_dir() {
            find(&e, out);
        } else {
            out.push(e);
        }
    }
}

#[test]
fn filetests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests");
    let bless = std::env::var_os("BLESS").is_some();
    let mut files = Vec::new();
    find(&root, &mut files);
    let mut failures = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let name = file.strip_prefix(&root).unwrap().display();
        let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let Some(kind) = head.strip_prefix("test ") else {
            failures.push(format!("{name}: the first line must be `test KIND`"));
            continue;
        };
        let (input, want) = rest.split_once("\n====\n").unwrap_or((rest, ""));
        let got = match output(kind, input) {
            Ok(got) => got.trim_end().to_string(),
            Err(e) => {
                failures.push(format!("{name}: {e}"));
                continue;
            }
        };
        if bless {
            std::fs::write(file, format!("{head}\n{}\n====\n{got}\n", input.trim_end())).unwrap();
        } else if got != want.trim_end() {
            failures.push(format!("{name}: expected\n{}\nfound\n{got}\n", want.trim_end()));
        }
    }
    assert!(files.len() >= 15, "only {} filetests found", files.len());
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), files.len(), failures.join("\n"));
}
