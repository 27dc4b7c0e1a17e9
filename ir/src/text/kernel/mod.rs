//! Text of kernel IR.
//!
//! ```text
//! kernel @conv_relu (x: f32[s0, 64, 56, 56] read layout(d0 d2 d3 d1; halo d2 1 1), w: f32[64, 64, 3, 3] read constant,
//!                    b: f32[64] read, y: f32[s0, 64, 56, 56] write) {
//!   vars n, oc, oh, ow, ic, kh, kw
//!   locals 1
//!   domain n: s0, oc: 64, oh: 56, ow: 56
//!   l0 = sum f32 over [ic: 64, kh: 3, kw: 3] of x[n, ic, oh + kh - 1, ow + kw - 1 if 0 <= oh + kh - 1 < 56 else 0.0] * w[oc, ic, kh, kw]
//!   y[n, oc, oh, ow] = max(l0 + b[oc], 0.0f32)
//! }
//! ```
//!
//! Expressions print as formulas; one that is used more than once gets a name of the text (`$0 = ...`) in front of the statement
//! that needs it first, so that the text stays as small as the kernel. A constant is a number and its element type.
//! A chain has `stage (operands) { kernel ... }` clauses instead of statements.
//! A fragment `d1/32%4` of a layout is part `(index of dim 1 / 32) % 4`. Symbols print as `s0`, locals as `l0`,
//! variables and buffers by name where names can be told apart, else as `v0`, `b0`.
//!
//! Reading numbers expressions in the order of the text: what is read is the same kernel as the one that was
//! printed, and equal to it (`==`) where that was numbered so.

mod parse;
mod print;
#[cfg(test)]
mod tests;

pub use parse::parse;

use crate::kernel::{BufId, Kernel};
use crate::prim::CmpOp;
use crate::{DType, Var};

/// `s12`, `l12`, ...
fn numbered(word: &str, prefix: char) -> Option<u32> {
    let digits = word.strip_prefix(prefix).filter(|d| !d.starts_with('0') || *d == "0")?;
    digits.parse().ok()
}

/// True where the text can call entry `i` of `names` by its name.
fn usable<'a>(names: impl Iterator<Item = &'a str> + Clone, i: usize) -> bool {
    let Some(n) = names.clone().nth(i) else { return false };
    let plain = n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && n.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    let reserved =
        ["floordiv", "mod", "min", "max", "if", "else", "inf", "nan", "bits", "next", "let", "bind"]
            .contains(&n)
            || ["for", "ordered", "combine", "domain", "params", "stage"].contains(&n)
            || ['s', 'l', 'v', 'b'].into_iter().any(|p| numbered(n, p).is_some())
            || n.parse::<DType>().is_ok();
    plain && !reserved && names.filter(|m| *m == n).count() == 1
}

fn var_name(k: &Kernel, v: Var) -> String {
    match k.vars.get(v.0 as usize) {
        Some(n) if usable(k.vars.iter().map(String::as_str), v.0 as usize) => n.clone(),
        _ => format!("v{}", v.0),
    }
}
fn buf_name(k: &Kernel, b: BufId) -> String {
    match k.buffers.get(b.0 as usize) {
        Some(n) if usable(k.buffers.iter().map(|b| b.name.as_str()), b.0 as usize) => n.name.clone(),
        _ => format!("b{}", b.0),
    }
}

const CMP_SIGNS: [(CmpOp, &str); 6] = [
    (CmpOp::Eq, "=="),
    (CmpOp::Ne, "!="),
    (CmpOp::Lt, "<"),
    (CmpOp::Le, "<="),
    (CmpOp::Gt, ">"),
    (CmpOp::Ge, ">="),
];
