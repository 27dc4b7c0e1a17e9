//! Constants as tensors.

use crate::context::{Budget, Cx};
use crate::elementwise::random_word;
use crate::error::{InterpError, OpError};
use crate::number::{Number, float_to_int, int_to_float};
use crate::view::View;
use ir::dtype::Scalar;
use ir::{ConstData, ConstSource, DType, Symbols, Tensor};

type Result<T> = std::result::Result<T, OpError>;

/// All elements of a constant, row-major. At most [`Budget::RUN`] bytes.
pub fn materialise(data: &ConstData) -> std::result::Result<Tensor, InterpError> {
    let symbols = Symbols::default();
    elements(&Cx::new(&symbols, Budget::RUN), data).map_err(|source| InterpError::Const {
        name: data.name.clone().unwrap_or_default(),
        source: Box::new(source),
    })
}

/// As [`materialise`], charged to the budget.
pub(crate) fn elements(cx: &Cx, data: &ConstData) -> Result<Tensor> {
    let n = cx.room(&data.shape, data.dtype.bytes())?;
    if let Some(view) = view(data)? {
        return Ok(view.to_tensor());
    }
    let mut out = cx.zeros(data.dtype, data.shape.clone())?;
    cx.spend(n)?;
    match &data.source {
        ConstSource::Splat(value) => {
            for i in 0..n.min(1) {
                put(*value, data.dtype, &mut out.data, i)?;
            }
            // one element, repeated
            let size = data.dtype.bytes();
            if n > 1 {
                let first = out.data[..size].to_vec();
                out.data.chunks_exact_mut(size).for_each(|e| e.copy_from_slice(&first));
            }
        }
        ConstSource::Random { seed, mean, std } => {
            for i in 0..n {
                let x = mean + std * normal(*seed, i as u64);
                // integers to the nearest
                let x = if data.dtype.is_float() { x } else { x.round_ties_even() };
                put(Scalar::Float(x), data.dtype, &mut out.data, i)?;
            }
        }
        // both have a view
        ConstSource::Bytes(_) | ConstSource::Strings(_) => {}
    }
    Ok(out)
}

/// The elements of a constant where they lie, if they lie anywhere.
pub(crate) fn view(data: &ConstData) -> Result<Option<View<'_>>> {
    match &data.source {
        ConstSource::Bytes(source) => View::new(data.dtype, &data.shape, source.bytes(), &[]).map(Some),
        ConstSource::Strings(strings) if data.dtype == DType::String => {
            View::new(data.dtype, &data.shape, &[], strings).map(Some)
        }
        ConstSource::Strings(_) => {
            Err(OpError::mismatch("type of a constant of strings", "string", data.dtype))
        }
        ConstSource::Splat(_) | ConstSource::Random { .. } => Ok(None),
    }
}

/// Standard normal number `i` of the stream of `seed`, by Box and Muller.
fn normal(seed: u64, i: u64) -> f64 {
    let unit = 1.0 / (1u64 << 53) as f64;
    let word = |k: u64| random_word(seed, i.wrapping_mul(2).wrapping_add(k)) >> 11;
    // u1 in (0, 1], u2 in [0, 1)
    let (u1, u2) = ((word(0) + 1) as f64 * unit, word(1) as f64 * unit);
    (-2.0 * libm::log(u1)).sqrt() * libm::cos(std::f64::consts::TAU * u2)
}

/// Writes a scalar, converted plainly where it is of the other class.
fn put(value: Scalar, dtype: DType, out: &mut [u8], i: usize) -> Result<()> {
    if let Some(store) = <f64 as Number>::store(dtype) {
        store(
            match value {
                Scalar::Float(x) => x,
                Scalar::Int(x) => int_to_float(x, dtype),
            },
            out,
            i,
        );
    } else if let Some(store) = <i128 as Number>::store(dtype) {
        store(
            match value {
                Scalar::Float(x) => float_to_int(x, dtype),
                Scalar::Int(x) => x,
            },
            out,
            i,
        );
    } else {
        return Err(OpError::Undefined { prim: "const", dtype });
    }
    Ok(())
}
