//! `Math::Bf16`: operands of products with constants, rounded to bf16.
//!
//! Contractions and convolutions of f32 whose one operand is constant take both operands as bf16 and go on
//! summing in f32. A value that such a product reads is rounded once, where it is computed, for all of its
//! users: it then lies in memory in half the bytes. Products of two activations (attention) stay f32, and so
//! do convolutions of large images in Winograd's form, which is faster in f32 than a direct one in bf16 by vectors,
//! but not than one in matrix registers.

use super::rewrite::{Rule, Shared, Site, rewrite};
use crate::error::Result;
use crate::limits::Fuel;
use crate::winograd::Form;
use ir::dtype::Scalar;
use ir::prim::{ConvertMode, PadMode, Prim};
use ir::{DType, Dim, Graph, Module, Symbols, TensorType, ValueId};
use std::collections::{HashMap, HashSet};

/// Channels that get one more, of zeros, where matrix registers multiply them.
const COLOURS: i64 = 3;

/// `matrices`: the machine has matrix registers.
pub fn bf16_products(module: &mut Module, matrices: bool, fuel: &Fuel) -> Result<()> {
    let symbols = module.symbols.clone();
    rewrite(module, &mut Bf16 { symbols, matrices, regions: Vec::new() }, fuel)
}

/// The products of a graph that are to change, and the values that they round.
fn wanted(g: &Graph, symbols: &Symbols, matrices: bool) -> Region {
    let mut region = Region::default();
    let mut constant = vec![false; g.value_count()];
    for (_, op) in g.ops() {
        let fixed = matches!(op.prim, Prim::Const(_))
            || op.regions.is_empty()
                && !op.operands.is_empty()
                && op.operands.iter().all(|v| constant[v.index()]);
        op.results.iter().for_each(|v| constant[v.index()] = fixed);
        let (&[a, b], &[result]) = (op.operands.as_slice(), op.results.as_slice()) else { continue };
        let floats = [a, b, result].iter().all(|v| g[*v].ty.dtype == DType::F32);
        let product = match &op.prim {
            Prim::Contract { .. } => true,
            // a window of few products in each group has no use for words
            Prim::Convolve { groups, .. } => {
                let channels = g[b].ty.shape[1].as_const();
                let pads = matrices && *groups == 1;
                let words = channels.is_some_and(|c| c % 2 == 0 || pads && c == COLOURS);
                let form = || Form::over_halves(&op.prim, &g[b].ty, &g[result].ty, symbols);
                words && (matrices || form().is_none())
            }
            _ => false,
        };
        if floats && product && constant[a.index()] != constant[b.index()] && !fixed {
            region.products.insert(result);
            region.values.insert(if constant[a.index()] { b } else { a });
        }
    }
    region
}

/// What is to change in one graph.
#[derive(Default)]
struct Region {
    /// Results of products, by value of the old graph.
    products: HashSet<ValueId>,
    /// Their operands that are no constants.
    values: HashSet<ValueId>,
    /// Values of the new graph and what they were rounded to.
    halves: HashMap<ValueId, ValueId>,
}

struct Bf16 {
    symbols: Symbols,
    matrices: bool,
    regions: Vec<Region>,
}

fn convert(site: &mut Site<'_>, x: ValueId, to: DType) -> ValueId {
    let ty = TensorType::new(to, site.ty(x).shape.clone());
    site.push(Prim::Convert { to, mode: ConvertMode::Plain }, vec![x], vec![ty])[0]
}

/// `x` with zeros behind its channels.
fn one_channel_more(cx: &mut Shared<'_>, site: &mut Site<'_>, x: ValueId) -> ValueId {
    let ty = site.ty(x).clone();
    let none = vec![Dim::from(0); ty.rank()];
    let (mut hi, mut shape) = (none.clone(), ty.shape.clone());
    hi[1] = Dim::from(1);
    shape[1] = &shape[1] + &Dim::from(1);
    let prim = Prim::Pad { lo: none, hi, interior: vec![0; ty.rank()], mode: PadMode::Constant };
    let fill = site.scalar(cx, ty.dtype, Scalar::zero(ty.dtype));
    site.push(prim, vec![x, fill], vec![TensorType::new(ty.dtype, shape)])[0]
}

impl Region {
    fn half(&mut self, site: &mut Site<'_>, x: ValueId) -> ValueId {
        *self.halves.entry(x).or_insert_with(|| convert(site, x, DType::BF16))
    }
}

impl Rule for Bf16 {
    fn enter(&mut self, old: &Graph) {
        self.regions.push(wanted(old, &self.symbols, self.matrices));
    }
    fn leave(&mut self) {
        self.regions.pop();
    }
    fn apply(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>> {
        let Some(region) = self.regions.last_mut() else { return Ok(None) };
        let &[result] = site.op.results.as_slice() else { return Ok(None) };
        let product = region.products.contains(&result);
        let rounds = region.values.contains(&result);
        if !site.op.regions.is_empty() || !product && !rounds {
            return Ok(None);
        }
        let operands = site.operands.to_vec();
        let operands: Vec<ValueId> =
            if product { operands.into_iter().map(|x| region.half(site, x)).collect() } else { operands };
        let convolution = product && matches!(site.op.prim, Prim::Convolve { .. });
        let even = |x: &ValueId| !site.ty(*x).shape[1].is_const(COLOURS);
        let operands = match convolution && !operands.iter().all(even) {
            true => operands.into_iter().map(|x| one_channel_more(cx, site, x)).collect(),
            false => operands,
        };
        let new = site.push(site.op.prim.clone(), operands, site.types.to_vec())[0];
        if !rounds {
            return Ok(Some(vec![new]));
        }
        // everybody reads the rounded value
        let half = convert(site, new, DType::BF16);
        let back = convert(site, half, DType::F32);
        region.halves.insert(back, half);
        Ok(Some(vec![back]))
    }
}
