//! The PTX emitter: machine form to PTX text, for NVIDIA GPUs.
//!
//! **A warp is a vector machine.** The 32 lanes of a warp hold the 32 lanes of machine form's vectors, one register of
//! each lane to a vector; a scalar is a register that has the same value in every lane. One iteration of the parallel
//! loop is the work of one warp. So what a schedule lays along vector lanes is read and written side by side
//! (coalesced), reductions over columns are exchanges between lanes, a scalar that is read is read once for the
//! warp, all branches are uniform, and every kernel that the CPU emitters compile compiles here too.
//!
//! Indices that are known to fit 32 bits are computed in 32 bits (`range`). A launch has less than 2^28 warps.
//!
//! **Blocks of warps.** Where the parallel loop is one over the grid, an iteration is the work of a block, whose warps meet at
//! barriers and share arrays; each lane of a vector then has its own place in memory, and four neighbours are
//! read or written at once (`four`).
//!
//! What memory means to the lanes: a kernel that both reads and writes a region lets all lanes of the warp meet around
//! each write, so that the lanes see each other's values in program order. Distinct iterations share nothing.

mod flow;
mod four;
mod func;
mod inst;
pub mod isa;
mod mem;
mod range;

use crate::entry::of_blocks;
use crate::order::by_demand;
use crate::{Backend, CodegenError, CompiledFunc};
use ir::loops::Func;
use ir::target::TargetDesc;
use rayon::prelude::*;

/// Lanes of a warp.
pub const LANES: u32 = 32;
/// Warps of a block.
pub const WARPS_PER_BLOCK: u32 = 4;

/// One kernel as PTX text.
///
/// Parameters, 64 bits each, in this order: the address of each buffer, the address of each symbol's value (an `i64`
/// in device memory, so that a launch that has been recorded serves other sizes too), the address of scratch memory
/// (the function's scratch bytes for each warp of the grid), the address of the status word (`KernelStatus` in
/// `format::abi`). A grid of any number of blocks does all the work: warps stride over the iterations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PtxKernel {
    pub text: String,
    /// Name of the entry.
    pub symbol: String,
    pub threads_per_block: u32,
    /// Iterations that a block works on at once: one for each warp, or one for all of them.
    pub at_once: u32,
}

/// An NVIDIA GPU with warps as vectors: what schedules and legalisation should aim at.
///
/// `sms`: multiprocessors of the device.
pub fn target(sms: usize) -> TargetDesc {
    TargetDesc {
        name: "ptx-sm_80".into(),
        cpu: "sm_80".into(),
        features: String::new(),
        vector_bits: 32 * LANES,
        // of 255 registers, some hold addresses and sizes
        vector_regs: 128,
        has_fma: true,
        has_masks: true,
        has_f16: true,
        simt: true,
        cache_line: 128,
        l1_bytes: 128 << 10,
        l2_bytes: 32 << 20,
        threads: sms * 16,
    }
}

/// Multiprocessors of an H100 or H200.
pub const H100_SMS: usize = 132;

/// The emitter as one among the others: its objects are PTX text, which the host cannot load.
pub struct Ptx {
    sms: usize,
}

impl Ptx {
    /// For a device of so many multiprocessors.
    pub fn new(sms: usize) -> Ptx {
        Ptx { sms }
    }
}

impl Backend for Ptx {
    fn name(&self) -> &'static str {
        "ptx"
    }
    fn target(&self) -> TargetDesc {
        target(self.sms)
    }
    fn compile(&self, funcs: &[&Func]) -> Result<Vec<CompiledFunc>, CodegenError> {
        let one = |f: &&Func| {
            let k = emit(f)?;
            let (block, at_once) = (k.threads_per_block, k.at_once);
            Ok(CompiledFunc { object: k.text.into_bytes(), symbol: k.symbol, block, at_once })
        };
        funcs.par_iter().map(one).collect()
    }
    fn ir_text(&self, func: &Func) -> Result<String, CodegenError> {
        emit(func).map(|k| k.text)
    }
    /// What the assembler makes of the text is its own matter.
    fn asm_text(&self, func: &Func) -> Result<String, CodegenError> {
        self.ir_text(func)
    }
}

/// PTX of a function in machine form with vectors of [`LANES`] lanes.
///
/// # Errors
/// Where the function breaks the contract of machine form.
pub fn emit(func: &Func) -> Result<PtxKernel, CodegenError> {
    let entry = func::emit(&by_demand(func)).map_err(|f| f.of(&func.name))?;
    let threads_per_block = entry.threads_per_block;
    let at_once = if of_blocks(func) { 1 } else { WARPS_PER_BLOCK };
    Ok(PtxKernel { text: entry.text(), symbol: entry.name, threads_per_block, at_once })
}
