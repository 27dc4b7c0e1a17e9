//! One operation without regions: operands in, results out.

use crate::context::Cx;
use crate::error::OpError;
use crate::view::View;
use crate::{contract, elementwise, host, indexed, movement, reduce};
use ir::{DType, Dim, Prim, Tensor};

type Result<T> = std::result::Result<T, OpError>;

fn operands<'a, const N: usize>(xs: &[View<'a>]) -> Result<[View<'a>; N]> {
    xs.try_into().map_err(|_| OpError::mismatch("operands", N, xs.len()))
}

fn dims(cx: &Cx, dims: &[Dim]) -> Result<Vec<i64>> {
    dims.iter().map(|d| cx.dim(d)).collect()
}

/// Results of every primitive but `const` and the control operations, which [`crate::run`] executes.
pub(crate) fn eval(cx: &Cx, prim: &Prim, xs: &[View]) -> Result<Vec<Tensor>> {
    let one = || operands::<1>(xs).map(|[x]| x);
    let result = match prim {
        Prim::Iota { dtype, shape, axis } => {
            operands::<0>(xs)?;
            elementwise::iota(cx, *dtype, cx.shape(shape)?, *axis)?
        }
        Prim::DimValue(d) => {
            operands::<0>(xs)?;
            Tensor::from_i64(Vec::new(), &[cx.dim(d)?])
        }
        Prim::BindDim(sym) => {
            let value = one()?.int()?;
            let value =
                i64::try_from(value).map_err(|_| OpError::mismatch("size", "a 64-bit integer", value))?;
            cx.bind(*sym, value)?;
            return Ok(Vec::new());
        }
        Prim::RandomBits { shape } => elementwise::random_bits(cx, one()?, cx.shape(shape)?)?,

        Prim::Unary(op) => elementwise::unary(cx, *op, one()?)?,
        Prim::Binary(op) => {
            let [a, b] = operands(xs)?;
            elementwise::binary(cx, *op, a, b)?
        }
        Prim::Cmp(op) => {
            let [a, b] = operands(xs)?;
            elementwise::cmp(cx, *op, a, b)?
        }
        Prim::Select => {
            let [cond, a, b] = operands(xs)?;
            elementwise::select(cx, cond, a, b)?
        }
        Prim::Convert { to, mode } => elementwise::convert(cx, one()?, *to, *mode)?,
        Prim::Bitcast { to } => elementwise::bitcast(cx, one()?, *to)?,

        Prim::Reshape { shape } => movement::reshape(cx, one()?, cx.shape(shape)?)?,
        Prim::Transpose { perm } => movement::transpose(cx, one()?, perm)?,
        Prim::Broadcast { shape, dims } => movement::broadcast(cx, one()?, cx.shape(shape)?, dims)?,
        Prim::Slice { start, size, step } => {
            movement::slice(cx, one()?, &dims(cx, start)?, cx.shape(size)?, step)?
        }
        Prim::Pad { lo, hi, interior, mode } => {
            let (&x, fill) = match xs {
                [x] => (x, None),
                [x, fill] => (x, Some(*fill)),
                _ => return Err(OpError::mismatch("operands", "1 or 2", xs.len())),
            };
            movement::pad(cx, x, fill, (&dims(cx, lo)?, &dims(cx, hi)?, interior), *mode)?
        }
        Prim::Concat { axis } => movement::concat(cx, xs, *axis)?,
        Prim::UpdateSlice { start } => {
            let [base, update] = operands(xs)?;
            movement::update_slice(cx, base, update, &dims(cx, start)?)?
        }

        Prim::Gather { axis } => {
            let [x, index] = operands(xs)?;
            indexed::gather(cx, x, index, *axis)?
        }
        Prim::Scatter { combine } => {
            let [base, index, update] = operands(xs)?;
            indexed::scatter(cx, base, index, update, *combine)?
        }

        Prim::Reduce { monoid, axes } => reduce::reduce(cx, one()?, *monoid, axes)?,
        Prim::ArgReduce { max, axis, last } => indexed::arg_reduce(cx, one()?, *max, *axis, *last)?,
        Prim::WindowReduce { monoid, size, window } => {
            reduce::window_reduce(cx, one()?, *monoid, size, window)?
        }
        Prim::Cumulative { monoid, axis, exclusive, reverse } => {
            reduce::cumulative(cx, one()?, *monoid, *axis, (*exclusive, *reverse))?
        }

        Prim::Contract { batch, reduce, acc } => {
            let [a, b] = operands(xs)?;
            contract::contract(cx, a, b, batch, reduce, *acc)?
        }
        Prim::Convolve { window, groups, acc } => {
            let [x, w] = operands(xs)?;
            contract::convolve(cx, x, w, window, *groups, *acc)?
        }

        Prim::Sort { axis, descending } => return indexed::sort(cx, xs, *axis, *descending),
        Prim::TopK { axis, k, largest } => {
            return indexed::top_k(cx, one()?, *axis, cx.extent(k)?, *largest);
        }
        Prim::Compact { sym } => {
            let out = indexed::compact(cx, one()?)?;
            // a count of elements in memory fits
            cx.bind(*sym, out.elems() as i64)?;
            out
        }
        Prim::Assert { message } => {
            let x = one()?;
            if x.dtype != DType::Bool {
                return Err(OpError::mismatch("operand", "bool[]", x.describe()));
            }
            if x.int()? == 0 {
                return Err(OpError::Assert(message.clone()));
            }
            return Ok(Vec::new());
        }
        Prim::Host { func, .. } => return host::call(cx, func, xs),
        Prim::Const(_) | Prim::If { .. } | Prim::Loop { .. } | Prim::Call { .. } => {
            return Err(OpError::mismatch("primitive", "one without regions", prim.name()));
        }
    };
    Ok(vec![result])
}
