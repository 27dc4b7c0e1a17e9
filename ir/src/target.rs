//! What a target is, as plain data: passes ask it, nobody matches on names.

use crate::kernel::Dot;

/// How a machine adds dot products of words to the lanes of a vector.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Words {
    /// One instruction.
    Native,
    /// Bytes widened to pairs of 16 bits, which one instruction multiplies and adds: two products of pairs for
    /// each word, exact all the same. Both operands take two registers while they are used.
    Pairs,
}

/// Matrix registers, where a machine has them: how many, and their most rows and words of a row.
pub const MATRIX_REGS: usize = 8;
pub const MATRIX_SIZE: u32 = 16;

/// Register file and instruction set of one target.
#[derive(Clone, PartialEq, Debug)]
pub struct TargetDesc {
    /// `llvm-x86_64-avx512`, `cranelift-x86_64`: also the key of caches and schedules.
    pub name: String,
    /// CPU name and features as LLVM spells them (empty: baseline).
    pub cpu: String,
    pub features: String,
    /// Bits of one vector register.
    pub vector_bits: u32,
    /// Architectural vector registers.
    pub vector_regs: u32,
    /// Fused multiply-add on vectors of floats.
    pub has_fma: bool,
    /// Masked (prefix) loads and stores cost no more than full ones.
    pub has_masks: bool,
    /// Native conversion f16 <-> f32 on vectors; bf16 is shifts everywhere.
    pub has_f16: bool,
    /// Vector lanes are threads with addresses of their own: a gather costs what its memory traffic costs.
    pub simt: bool,
    pub cache_line: usize,
    pub l1_bytes: usize,
    pub l2_bytes: usize,
    /// Threads that a parallel loop may use.
    pub threads: usize,
}

impl TargetDesc {
    /// Lanes of a vector of elements of `bytes` bytes.
    pub fn lanes(&self, bytes: usize) -> u32 {
        (self.vector_bits / 8 / bytes.max(1) as u32).max(1)
    }

    /// Bytes of the vectors of floats that one instruction multiplies by powers of 2, 0 where there is none.
    pub fn scales(&self) -> usize {
        if self.vector_bits == 512 && self.has("+avx512f") { 64 } else { 0 }
    }

    fn has(&self, feature: &str) -> bool {
        self.features.split(',').any(|f| f == feature)
    }

    /// Whether products of matrices of words are computed in matrix registers (Intel AMX).
    pub fn has_matrices(&self, dot: Dot) -> bool {
        let product = match dot {
            Dot::Bytes => "+amx-int8",
            Dot::Bf16 => "+amx-bf16",
        };
        self.vector_bits == 512 && self.has("+amx-tile") && self.has(product) && self.words(dot).is_some()
    }

    /// How dot products of words are computed; `None` where there is nothing better than one product after another.
    pub fn words(&self, dot: Dot) -> Option<Words> {
        let has = |feature: &str| self.has(feature);
        match (dot, self.vector_bits) {
            (Dot::Bytes, 512) if has("+avx512vnni") => Some(Words::Native),
            (Dot::Bytes, 256) if has("+avxvnni") => Some(Words::Native),
            (Dot::Bytes, 512) if has("+avx512bw") => Some(Words::Pairs),
            (Dot::Bytes, 256) if has("+avx2") => Some(Words::Pairs),
            (Dot::Bf16, 512) if has("+avx512bf16") => Some(Words::Native),
            _ => None,
        }
    }
}
