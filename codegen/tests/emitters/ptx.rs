//! Runs emitted PTX: the text is parsed and executed by the interpreter of PTX, in every order of warps and with every
//! check, and must do what the cases of all emitters say.

use crate::harness::{Case, Near};
use ir::DType;
use kernelsmith_codegen::CompiledFunc;
use ptx_interp::assemble::Ptxas;
use ptx_interp::golden::{self, Argument, Buffer, Compare, Float};
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
    let laid = laid_out(case, i64::from(blocks * threads.iter().product::<u32>() / 32));
    let at: Vec<u64> = laid
        .buffers
        .iter()
        .map(|(b, read_only)| {
            let at = memory.reserve(b.before.len() as u64, 512);
            memory.insert(at, b.before.clone(), *read_only);
            at
        })
        .collect();
    let params = laid.arguments.iter().map(|(buffer, offset)| at[*buffer] + *offset as u64);
    let params = params.fold(Params::new(), Params::u64);
    let config = Config { step_limit: config.step_limit.min(BUDGET), ..config.clone() };
    let counters =
        module.run(&mut memory, &config, &kernel.symbol, [blocks, 1, 1], threads, 0, params.as_slice())?;
    let download = |buffer: usize, n: usize| {
        let mut out = vec![0; n];
        memory.read(at[buffer], &mut out).expect("what was allocated");
        out
    };
    let bufs = laid.arguments.iter().zip(&case.bufs).map(|(a, b)| download(a.0, b.len())).collect();
    let (status, _) = laid.arguments.last().expect("the status word");
    let status = download(*status, 24);
    let word = |i: usize| i64::from_le_bytes(status[8 * i..][..8].try_into().expect("8 bytes"));
    let (steps, trace) = (counters.warp_instructions, counters.trace);
    Ok(Outcome { bufs, status: [word(0), word(1), word(2)], steps, trace, counters })
}

/// Device memory of a launch: buffers, and whether they are only read. Arguments are addresses: a buffer by number, and so
/// many bytes on.
struct Laid {
    buffers: Vec<(Buffer, bool)>,
    arguments: Vec<(usize, usize)>,
}

/// Operands by place, sizes, scratch memory of so many warps, and the status word.
fn laid_out(case: &Case, warps: i64) -> Laid {
    let mut buffers: Vec<(Buffer, bool)> = Vec::new();
    let mut arguments: Vec<(usize, usize)> = Vec::new();
    for (b, first) in case.place.iter().copied().enumerate() {
        if first < b {
            arguments.push(arguments[first]);
            continue;
        }
        let before = case.bufs[b].clone();
        let mut written =
            (b..case.bufs.len()).filter(|x| case.place[*x] == first && case.func.bufs[*x].writable);
        arguments.push((buffers.len(), 0));
        buffers.push(match written.next_back() {
            None => (Buffer::kept(before), true),
            Some(w) => {
                let after = case.expect[w].iter().cloned().collect();
                let compare = compared(case.func.bufs[w].dtype, case.near);
                (Buffer { before, after, compare, open: Vec::new() }, false)
            }
        });
    }
    let mut more = |buffer: Buffer, read_only: bool| {
        buffers.push((buffer, read_only));
        buffers.len() - 1
    };
    let syms = &case.func.syms;
    let values: Vec<u8> = case.syms.iter().take(syms.len()).flat_map(|s| s.to_le_bytes()).collect();
    let sizes = more(Buffer::kept(values), true);
    arguments.extend((0..syms.len()).map(|i| (sizes, 8 * i)));
    let own = kernelsmith_codegen::scratch_bytes(&case.func);
    let own = own.eval_syms(&|s| Some(case.syms[syms.iter().position(|x| *x == s)?])).expect("a size");
    let compare = Compare::Bits(1);
    let before = vec![0xcd; (own * warps) as usize];
    let scratch = Buffer { before, after: Vec::new(), compare, open: Vec::new() };
    arguments.push((more(scratch, false), 0));
    let words = |(flag, value, limit): (i64, i64, i64)| {
        [flag, value, limit].into_iter().flat_map(i64::to_le_bytes).collect::<Vec<u8>>()
    };
    let after = [case.status].iter().chain(&case.failures).map(|s| words(*s)).collect();
    let status = Buffer { before: vec![0; 24], after, compare: Compare::Bits(8), open: Vec::new() };
    arguments.push((more(status, false), 0));
    Laid { buffers, arguments }
}

/// What [`Case::difference`] says, for a device.
fn compared(dtype: DType, near: Near) -> Compare {
    let format = match dtype {
        DType::F16 => Float::F16,
        DType::BF16 => Float::Bf16,
        DType::F32 => Float::F32,
        DType::F64 => Float::F64,
        _ => return Compare::Bits(dtype.bytes()),
    };
    Compare::Float { format, relative: 0.0, absolute: 0.0, any_zero: near.any_zero }
}

/// Writes a case down for a device.
fn keep(case: &Case, kernel: &CompiledFunc) {
    if golden::directory().is_none() {
        return;
    }
    let text = std::str::from_utf8(&kernel.object).expect("PTX is text");
    let block = [kernel.block, 1, 1];
    let laid = laid_out(case, i64::from(BLOCKS * kernel.block / 32));
    golden::write(
        "emitters",
        text,
        &[golden::Case {
            name: case.label.clone(),
            // the test
            group: std::thread::current().name().unwrap_or("a test").to_string(),
            entry: kernel.symbol.clone(),
            grid: [BLOCKS, 1, 1],
            block,
            dynamic_shared: 0,
            arguments: laid.arguments.iter().map(|(b, o)| Argument::Address(*b, *o)).collect(),
            buffers: laid.buffers.into_iter().map(|(b, _)| b).collect(),
        }],
    );
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
    keep(case, kernel);
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
