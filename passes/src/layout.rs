//! `assign-layout`: how the values of one graph lie in memory.
//!
//! Values of convolutional parts keep their channels last (`[N, C, H, W]` lies as `N, H, W, C`):
//! contractions over channels then read rows, and channels fill vector lanes whatever the image size.
//! All other values are row-major, as are inputs, outputs and what the host schedule reads. A
//! convolutional part is a set of values of one rank that elementwise ops, pads, concats and
//! resizing tie to an operand (unless it has a handful of channels) or result of a convolution or a spatial window.
//! Depthwise convolutions of wide images on a GPU suit either layout, and leave it to their neighbours.

use crate::facts::{Class, class};
use crate::limits::{Fuel, LAYOUTS};
use crate::pull::Home;
use ir::layout::Frag;
use ir::{DType, Graph, Layout, Prim, TensorType, ValueId};
use petgraph::unionfind::UnionFind;
use std::collections::HashMap;

/// Columns of an image that fill the lanes of a warp.
const WIDE: i64 = 28;

/// Layouts other than row-major, by value. `exact`: values that must be row-major; `simt`: lanes are those of warps.
pub fn assign(
    graph: &Graph,
    homes: &HashMap<ValueId, Home>,
    exact: &[bool],
    simt: bool,
    fuel: &Fuel,
) -> HashMap<ValueId, Layout> {
    let n = graph.value_count();
    let mut parts = UnionFind::<usize>::new(n);
    let mut seeds = Vec::new();
    let rank = |v: ValueId| graph[v].ty.rank();
    for (_, op) in graph.ops() {
        let Some(&result) = op.results.first() else { continue };
        match &op.prim {
            Prim::Convolve { groups, .. } if simt && is_depthwise(graph, &op.operands, *groups) => {
                parts.union(result.index(), op.operands[0].index());
            }
            Prim::Convolve { .. } => {
                seeds.push(result);
                // the engine reads its row operand one element at a time: the copy that adds the padding
                // of a picture of a few colours need not gather them
                // (bytes and pairs of bf16 are gathered all the same, into words)
                let colours = |x: &ValueId| is_picture(&graph[*x].ty.shape) && !in_words(&graph[*x].ty);
                seeds.extend(op.operands.first().filter(|x| !colours(x)));
            }
            // windows over all but batch and channels
            Prim::WindowReduce { window, .. } if window.len() + 2 == rank(result) => {
                seeds.push(result);
                seeds.extend(op.operands.first());
                parts.union(result.index(), op.operands[0].index());
            }
            p if ties(p) => {
                for &x in &op.operands {
                    if rank(x) == rank(result) {
                        parts.union(result.index(), x.index());
                    }
                }
            }
            _ => {}
        }
    }
    let mut convolutional = vec![false; n];
    for v in seeds {
        convolutional[parts.find(v.index())] = true;
    }
    let early = rows_before_growth(graph, exact);
    let mut layouts = HashMap::new();
    for (_, op) in graph.ops() {
        for &v in &op.results {
            let rank = rank(v);
            let home = homes.contains_key(&v);
            if (3..=5).contains(&rank)
                && convolutional[parts.find(v.index())]
                && !exact[v.index()]
                && !early[v.index()]
                && !home
                && !matches!(class(&op.prim), Class::Const | Class::Host)
                && fuel.allow(LAYOUTS, op.origin, || format!("{} %{} channels last", op.prim.name(), v.0))
            {
                layouts.insert(v, activation(&graph[v].ty));
            }
        }
    }
    layouts
}

/// Values that had better be row-major already, because all that becomes of them is resized to something larger that
/// must be (the output of a segmentation): between the layouts elements are moved one by one, and they are fewer here.
fn rows_before_growth(graph: &Graph, exact: &[bool]) -> Vec<bool> {
    let n = graph.value_count();
    // of each value: every use of it ends in rows; on the way to one of these ends it grows
    let (mut used, mut elsewhere, mut grows) = (vec![false; n], vec![false; n], vec![false; n]);
    let mut early = vec![false; n];
    let elements = |v: ValueId| ir::Dim::product(&graph[v].ty.shape).as_const();
    for op in graph.order.iter().rev().map(|&id| &graph[id]) {
        let gathers = matches!(op.prim, Prim::Gather { axis } if axis >= 2);
        let moves = gathers || class(&op.prim) == Class::Elementwise;
        let result = op.results.first().copied().filter(|_| moves);
        let rows = result.is_some_and(|r| exact[r.index()] || used[r.index()] && !elsewhere[r.index()]);
        let after = result.is_some_and(|r| grows[r.index()]);
        if let Some(r) = result {
            early[r.index()] = rows && after;
        }
        for &x in &op.operands {
            used[x.index()] = true;
            elsewhere[x.index()] |= !rows;
            grows[x.index()] |= after || gathers && result.is_some_and(|r| elements(x) < elements(r));
        }
    }
    early
}

/// A group for each channel, and images whose rows fill a warp.
fn is_depthwise(graph: &Graph, operands: &[ValueId], groups: usize) -> bool {
    let Some(shape) = operands.first().map(|x| &graph[*x].ty.shape) else { return false };
    let channels = shape.get(1).is_some_and(|c| c.is_const(groups as i64));
    channels && shape.len() == 4 && shape[3].as_const().is_some_and(|w| w >= WIDE)
}

/// Too few channels for a vector.
fn is_picture(shape: &[ir::Dim]) -> bool {
    shape.get(1).and_then(ir::Dim::as_const).is_some_and(|c| c <= 4)
}

/// Channels of one place may lie in words.
fn in_words(ty: &TensorType) -> bool {
    let even = ty.shape[1].as_const().is_some_and(|c| c % 2 == 0);
    is_bytes(ty) || ty.dtype == DType::BF16 && even
}

fn is_bytes(ty: &TensorType) -> bool {
    matches!(ty.dtype, DType::U8 | DType::I8)
}

/// Channels last; two or three channels of bytes are padded to a word, which dot products take whole.
fn activation(ty: &TensorType) -> Layout {
    let mut layout = channels_last(ty.rank());
    let few = ty.shape[1].as_const().is_some_and(|c| (2..4).contains(&c));
    if few
        && is_bytes(ty)
        && let Some(last) = layout.frags.last_mut()
    {
        last.div = 4;
        layout.frags.push(Frag { dim: 1, div: 1, len: Some(4) });
    }
    layout
}

/// `[0, 2, .., rank - 1, 1]`.
pub fn channels_last(rank: usize) -> Layout {
    let order: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    Layout::permuted(&order)
}

/// Ops whose operands had better lie as their results do.
fn ties(prim: &Prim) -> bool {
    match prim {
        Prim::Pad { .. } | Prim::Concat { .. } | Prim::Slice { .. } | Prim::UpdateSlice { .. } => true,
        // resizing by lookup keeps the rank
        Prim::Gather { axis } => *axis >= 2,
        Prim::Broadcast { .. } => true,
        p => class(p) == Class::Elementwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::Dim;
    use ir::build::Builder;
    use ir::prim::WindowDim;

    /// Values with channels last around a depthwise convolution of images of some width.
    fn channels_last_of(width: i64, simt: bool) -> usize {
        let mut b = Builder::new("depthwise");
        let x = b.input("x", DType::F32, [1, 8, 9, width].map(Dim::from).to_vec());
        let w = b.input("w", DType::F32, [8, 1, 3, 3].map(Dim::from).to_vec());
        let x = b.exp(x).unwrap();
        let y = b.convolve(x, w, &[WindowDim::unit(), WindowDim::unit()], 8, DType::F32).unwrap();
        let y = b.exp(y).unwrap();
        let m = b.finish(&[("y".into(), y)]).unwrap();
        let exact = vec![false; m.graph.value_count()];
        assign(&m.graph, &HashMap::new(), &exact, simt, &Fuel::default()).len()
    }

    #[test]
    fn depthwise_convolutions_of_wide_images_stay_as_they_are_on_a_gpu() {
        assert_eq!(
            [(40, true), (40, false), (9, true)].map(|(w, s)| channels_last_of(w, s) > 0),
            [false, true, true]
        );
    }
}
