//! Conversions to the narrowest types.

use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError};
use ir::DType;
use ir::build::V;

/// To a power of two without sign (E8M0), rounding `up`, `down` or to the `nearest`; what rounds to more than the
/// largest one becomes NaN, or the largest one if `saturate` is set.
pub fn to_e8m0(cx: &mut NodeCx, x: V, mode: &str, saturate: bool) -> Result<V, OpError> {
    let x = cx.b.convert(x, DType::F32)?;
    // the exponent is in bits 23..31; what is added before the mantissa is cut decides the rounding
    let bits = cx.b.bitcast(x, DType::I32)?;
    let add = match mode {
        "up" => 0x7f_ffff,
        "nearest" => 0x40_0000,
        "down" => 0,
        m => return Err(OpError::invalid(Code::Attribute, format!("round_mode {m:?}"))),
    };
    let up = cx.b.add_scalar(bits, f64::from(add))?;
    let cut = cx.b.scalar_of(DType::I32, ir::dtype::Scalar::Int(0x7f80_0000))?;
    let mut exponent = cx.b.and(up, cut)?;
    if saturate {
        let largest = cx.b.scalar_of(DType::I32, ir::dtype::Scalar::Int(0x7f00_0000))?;
        exponent = cx.b.min(exponent, largest)?;
    }
    let power = cx.b.bitcast(exponent, DType::F32)?;
    // infinities and NaN have no neighbour to round to
    let same = cx.b.sub(x, x)?;
    let finite = cx.b.eq(same, same)?;
    let power = cx.b.select(finite, power, x)?;
    Ok(cx.b.convert(power, DType::F8E8M0)?)
}
