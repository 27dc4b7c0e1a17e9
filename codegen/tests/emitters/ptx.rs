//! Runs emitted PTX: the text is parsed and executed by the interpreter of PTX, in every order of warps and with every
//! check, and must do what the cases of all emitters say.

use crate::harness::{Case, Near};
use kernelsmith_codegen::CompiledFunc;
use ptx_interp::assemble::Ptxas;
use ptx_interp::{Config, Counters, DeviceMemory, Error, Module, Params};

/// Blocks of a launch: more than run together, and fewer than iterations.
const BLOCKS: u32 = 3;
const SEED: u64 = 11;
/// Warp instructions that one case may take.
const BUDGET: u64 = 20_000_000;

/// What a kernel left behind: its operands and the status word.
pub struct Outcome {
    pub bufs: Vec<Vec<u8>>,
    pub status: [i64; 3],
    /// Warp instructions.
    pub steps: u64,
    /// [`ptx_interp::Counters::trace`]
    pub trace: u64,
    pub counters: Counters,
}

/// Launches a kernel that was emitted for `case`.
pub fn execute(case: &Case, kernel: &CompiledFunc, config: &Config) -> Result<Outcome, Error> {
    execute_on(case, kernel, config, BLOCKS)
}

/// As [`execute`], with so many blocks.
pub fn execute_on(
    case: &Case,
    kernel: &CompiledFunc,
    config: &Config,
    blocks: u32,
) -> Result<Outcome, Error> {
    let text = std::str::from_utf8(&kernel.object).expect("PTX is text");
    let mut memory = DeviceMemory::new();
    let module = Module::load(text, &mut memory)?;
    let threads = module.kernel(&kernel.symbol)?.reqntid.expect("the block is declared");
    let mut upload = |bytes: &[u8], read_only: bool| {
        let at = memory.reserve(bytes.len() as u64, 512);
        memory.insert(at, bytes.to_vec(), read_only);
        at
    };
    let mut at: Vec<u64> = Vec::new();
    for (b, first) in case.place.iter().copied().enumerate() {
        let written = |x: usize| case.place[x] == first && case.func.bufs[x].writable;
        let read_only = !(b..case.bufs.len()).any(written);
        at.push(if first < b { at[first] } else { upload(&case.bufs[b], read_only) });
    }
    let status = upload(&[0; 24], false);
    let own = kernelsmith_codegen::scratch_bytes(&case.func);
    let syms = &case.func.syms;
    let own = own.eval_syms(&|s| Some(case.syms[syms.iter().position(|x| *x == s)?])).expect("a size");
    let warps = i64::from(blocks * threads.iter().product::<u32>() / 32);
    let scratch = memory.alloc((own * warps) as usize);
    let values: Vec<u8> = case.syms.iter().take(syms.len()).flat_map(|s| s.to_le_bytes()).collect();
    let sizes = memory.reserve(values.len() as u64, 512);
    memory.insert(sizes, values, true);
    let params = at.iter().copied().chain((0..syms.len() as u64).map(|i| sizes + 8 * i));
    let params = params.chain([scratch, status]).fold(Params::new(), Params::u64);
    let config = Config { step_limit: config.step_limit.min(BUDGET), ..config.clone() };
    let counters =
        module.run(&mut memory, &config, &kernel.symbol, [blocks, 1, 1], threads, 0, params.as_slice())?;
    let download = |at: u64, n: usize| {
        let mut out = vec![0; n];
        memory.read(at, &mut out).expect("what was allocated");
        out
    };
    let bufs = at.iter().zip(&case.bufs).map(|(at, b)| download(*at, b.len())).collect();
    let status = download(status, 24);
    let word = |i: usize| i64::from_le_bytes(status[8 * i..][..8].try_into().expect("8 bytes"));
    let (steps, trace) = (counters.warp_instructions, counters.trace);
    Ok(Outcome { bufs, status: [word(0), word(1), word(2)], steps, trace, counters })
}

/// What is wrong with the outcome of a kernel, which computes bit by bit what the interpreter of loop IR does: both
/// combine lanes in the same order, and a NaN is a NaN.
pub fn judge(case: &Case, outcome: &Outcome) -> Result<(), String> {
    let status = <(i64, i64, i64)>::from(outcome.status);
    if status != case.status && !case.failures.contains(&status) {
        return Err(format!("status {:?}, expected {:?}", outcome.status, case.status));
    }
    match outcome
        .bufs
        .iter()
        .enumerate()
        .find_map(|(b, got)| case.difference(b, got, Near { relative: 0.0, ..case.near }))
    {
        Some(difference) => Err(difference),
        None => Ok(()),
    }
}

/// Runs the kernel in every mode. A range of iterations is a matter of the host's calling convention: a launch does all.
#[track_caller]
pub fn run(case: &Case, lanes: u32, kernel: &CompiledFunc) {
    if case.range != (0, case.trip) {
        return;
    }
    for config in Config::adversarial(SEED) {
        let what = || format!("{} on ptx x {lanes}", case.label);
        let text = || String::from_utf8_lossy(&kernel.object);
        match execute(case, kernel, &config) {
            Ok(outcome) => {
                if let Err(e) = judge(case, &outcome) {
                    panic!("{}: {e}\n{}", what(), text());
                }
            }
            Err(e) => panic!("{}: {e}\n{}", what(), text()),
        }
    }
}

/// Assembles `most` of the kernels, evenly spread, for both targets: nothing may be rejected, spill, or draw advice.
#[track_caller]
pub fn assemble(kernels: &[CompiledFunc], most: usize) {
    let Some(ptxas) = Ptxas::or_skip("a test of emitted kernels") else { return };
    let text =
        |k: &CompiledFunc| (k.symbol.clone(), String::from_utf8(k.object.clone()).expect("PTX is text"));
    let texts: Vec<_> = kernels.iter().step_by(kernels.len().div_ceil(most).max(1)).map(text).collect();
    for arch in ["sm_80", "sm_90a"] {
        ptxas.assemble(arch, &texts).unwrap_or_else(|e| panic!("{}", e.join("\n")));
    }
}
