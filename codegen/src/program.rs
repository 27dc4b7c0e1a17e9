//! From the lowered model to the program that the runtime executes.

use crate::{Backend, CodegenError, CompiledFunc, legalise};
use format::{
    Blob, BufferDef, Elem, HostFnDef, IoDef, KernelDef, OriginDef, PixelsDef, Place, Program, SizeExpr,
    SizeOp, StateDef, Step, SymbolDef, VariantDef,
};
use ir::host::{self, Lowered};
use ir::loops::{Func, Stmt};
use ir::prim::{HostFn, Pixels};
use ir::tensor::ByteSource;
use ir::{Atom, ConstSource, DType, Dim, Math, SymKind};
use rayon::prelude::*;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one compilation, for reports and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Kernel variants of the model, and the different ones among them that were compiled.
    pub variants: usize,
    pub compiled: usize,
    pub code_bytes: usize,
}

static COMPILED: AtomicU64 = AtomicU64::new(0);

/// Functions compiled by this process so far, for tests that sizes alone never compile anything.
pub fn functions_compiled() -> u64 {
    COMPILED.load(Ordering::Relaxed)
}

/// Machine code for the host of functions that were compiled before, in this process or another.
pub trait ObjectStore: Sync {
    /// The object stored for a function, which is described by all that decides its code but target and math mode.
    fn get(&self, func: &[u8]) -> Option<Vec<u8>>;
    fn put(&self, func: &[u8], object: &[u8]);
}

/// Compiles every kernel of `lowered` with `backend` (equal functions once, those in `store` not at all) and
/// writes the program. Constants of random or splat source must have been given bytes before. `math`: as for the
/// passes.
pub fn build(
    lowered: &Lowered,
    backend: &dyn Backend,
    math: Math,
    store: Option<&dyn ObjectStore>,
) -> Result<(Program, Stats), CodegenError> {
    let target = backend.target();
    let raw = raw_operands(lowered);
    let (mut unique, mut index, mut slots) = (Vec::new(), HashMap::new(), Vec::new());
    let variants: Vec<_> = lowered
        .kernels
        .iter()
        .zip(&raw)
        .flat_map(|(k, raw)| k.variants.iter().map(move |v| (v, raw)))
        .collect();
    let described: Vec<Option<(String, Func)>> = variants
        .par_iter()
        .map(|(v, raw)| {
            // an inner extent of 0 leaves no loop at all
            let runs = v.func.body.stmts.iter().any(|s| matches!(s, Stmt::For { .. }));
            if v.func.launch.trip.is_const(0) || !runs {
                return None;
            }
            let mut func = v.func.clone();
            for (b, _) in func.bufs.iter_mut().zip(raw.iter()).filter(|(_, raw)| **raw) {
                b.align = 1;
            }
            Some((fingerprint(&func), func))
        })
        .collect();
    for described in described {
        let Some((key, func)) = described else {
            slots.push(None);
            continue;
        };
        let next = unique.len();
        let slot = *index.entry(key.clone()).or_insert(next);
        if slot == next {
            unique.push((key, func));
        }
        slots.push(Some(slot));
    }
    // symbols must differ between objects, and be the same from run to run
    let symbol = |key: &str| {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        format!("k_{:016x}", hasher.finish())
    };
    let mut compiled: Vec<Option<CompiledFunc>> = unique
        .par_iter()
        .map(|(key, _)| {
            let object = store?.get(key.as_bytes())?;
            // whoever stored it may have been wrong about it
            crate::object_check::check_self_contained(&object).ok()?;
            Some(CompiledFunc { object, symbol: symbol(key), block: 0, at_once: 0 })
        })
        .collect();
    let missing: Vec<usize> = (0..unique.len()).filter(|&i| compiled[i].is_none()).collect();
    let machine = missing
        .par_iter()
        .map(|&i| {
            let mut m = legalise::legalise_with(&unique[i].1, &target, math.into())?;
            m.name = symbol(&unique[i].0);
            Ok(m)
        })
        .collect::<Result<Vec<Func>, CodegenError>>()?;
    let fresh = backend.compile(&machine.iter().collect::<Vec<_>>())?;
    COMPILED.fetch_add(fresh.len() as u64, Ordering::Relaxed);
    let mut stats = Stats { variants: slots.len(), compiled: fresh.len(), code_bytes: 0 };
    if let Some(store) = store {
        missing.par_iter().zip(&fresh).for_each(|(&i, f)| store.put(unique[i].0.as_bytes(), &f.object));
    }
    for (&i, f) in missing.iter().zip(fresh) {
        compiled[i] = Some(f);
    }
    let compiled: Vec<CompiledFunc> = compiled.into_iter().flatten().collect();

    let mut slots = slots.into_iter();
    let mut kernels = Vec::new();
    for k in &lowered.kernels {
        let mut variants = Vec::new();
        for v in &k.variants {
            let slot = slots.next().flatten();
            variants.push(VariantDef {
                guards: v
                    .guards
                    .iter()
                    .map(|g| Ok((size(&g.expr)?, size(&g.bound)?)))
                    .collect::<Result<_, CodegenError>>()?,
                code: slot.map(|s| (s, compiled[s].symbol.clone())),
                // the symbols of this kernel, which may be others than those of its equal
                syms: v.func.syms.iter().map(|s| s.0).collect(),
                trip: size(&v.func.launch.trip)?,
                ns_per_iter: v.func.launch.ns_per_iter,
                scratch: size(&crate::scratch_bytes(&v.func))?,
                block: slot.map_or(0, |s| compiled[s].block),
                at_once: slot.map_or(0, |s| compiled[s].at_once),
            });
        }
        let writes = k.kernel.operands().map(|b| b.access != ir::kernel::Access::Read).collect();
        kernels.push(KernelDef { name: k.kernel.name.clone(), writes, variants, flops: size(&k.flops)? });
    }
    let objects: Vec<Vec<u8>> = compiled.into_iter().map(|c| c.object).collect();
    stats.code_bytes = objects.iter().map(Vec::len).sum();

    let m = &lowered.module;
    let io = |ids: &[host::BufferId], names: &dyn Fn(usize) -> String| {
        ids.iter()
            .enumerate()
            .map(|(i, b)| {
                let def = &lowered.buffers[b.0 as usize];
                Ok(IoDef {
                    name: names(i),
                    elem: elem(def.dtype),
                    shape: sizes(&def.shape)?,
                    buffer: b.0 as usize,
                })
            })
            .collect::<Result<Vec<_>, CodegenError>>()
    };
    let input_name =
        |i: usize| m.graph.inputs.get(i).and_then(|&v| m.graph[v].name.clone()).unwrap_or_default();
    let output_name = |i: usize| m.output_names.get(i).cloned().unwrap_or_default();
    let program = Program {
        symbols: m
            .symbols
            .infos
            .iter()
            .map(|s| SymbolDef { name: s.name.clone(), lo: s.lo, hi: s.hi, entry: s.kind == SymKind::Entry })
            .collect(),
        origins: m
            .origins
            .iter()
            .map(|o| OriginDef { node: o.node.clone(), op_type: o.op_type.clone(), opset: o.opset })
            .collect(),
        inputs: io(&lowered.inputs, &input_name)?,
        outputs: io(&lowered.outputs, &output_name)?,
        states: m.states.iter().map(state).collect::<Result<_, _>>()?,
        buffers: lowered.buffers.iter().map(buffer).collect::<Result<_, _>>()?,
        consts: m.consts.iter().map(|c| blob(&c.source)).collect(),
        kernels,
        objects,
        init: steps(&lowered.init)?,
        steps: steps(&lowered.steps)?,
        flushes: math != Math::Strict,
    };
    Ok((program, stats))
}

/// By kernel and operand: constants in the place where the model has them, which is at any address.
fn raw_operands(lowered: &Lowered) -> Vec<Vec<bool>> {
    fn walk(steps: &[host::Step], lowered: &Lowered, raw: &mut [Vec<bool>]) {
        for step in steps {
            match step {
                host::Step::Call { kernel, args, .. } => {
                    for (raw, b) in raw[*kernel].iter_mut().zip(args) {
                        *raw |= matches!(lowered.buffers[b.0 as usize].place, host::Place::Const(_));
                    }
                }
                host::Step::If { then, otherwise, .. } => {
                    walk(then, lowered, raw);
                    walk(otherwise, lowered, raw);
                }
                host::Step::Loop { body, .. } => walk(body, lowered, raw),
                _ => {}
            }
        }
    }
    let mut raw = lowered.kernels.iter().map(|k| vec![false; k.kernel.buffers.len()]).collect::<Vec<_>>();
    walk(&lowered.init, lowered, &mut raw);
    walk(&lowered.steps, lowered, &mut raw);
    raw
}

/// Text that is equal for functions with equal code: names of values and buffers do not matter.
fn fingerprint(f: &Func) -> String {
    let mut f = f.clone();
    f.name.clear();
    f.launch = Default::default();
    f.origins.clear();
    for b in &mut f.bufs {
        b.name.clear();
    }
    // symbols are parameters by position, but for sizes of local arrays, which name them
    if f.locals.iter().all(|l| l.elems.as_const().is_some()) {
        for (i, s) in f.syms.iter_mut().enumerate() {
            s.0 = i as u32;
        }
    }
    format!("{f:?}")
}

fn state(s: &ir::graph::State) -> Result<StateDef, CodegenError> {
    let next = size(&s.next)?;
    Ok(StateDef { input: s.input, output: s.output, axis: s.axis, capacity: s.capacity, len: s.len.0, next })
}

fn elem(d: DType) -> Elem {
    Elem { name: d.name(), bytes: d.bytes() }
}

fn buffer(b: &host::Buffer) -> Result<BufferDef, CodegenError> {
    let place = match &b.place {
        host::Place::Const(c) => Place::Const(c.0 as usize),
        host::Place::Init => Place::Init,
        host::Place::Input(i) => Place::Input(*i),
        host::Place::Output(i) => Place::Output(*i),
        host::Place::Own => Place::Own,
        host::Place::Arena { offset } => Place::Arena { offset: size(offset)? },
        host::Place::Alias(of) => Place::Alias(of.0 as usize),
    };
    Ok(BufferDef {
        name: b.name.clone(),
        elem: elem(b.dtype),
        shape: sizes(&b.shape)?,
        bytes: size(&b.bytes)?,
        place,
    })
}

struct Bytes(Arc<dyn ByteSource>);
impl Blob for Bytes {
    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
    fn release(&self) {
        self.0.release();
    }
}

fn blob(source: &ConstSource) -> Option<Arc<dyn Blob>> {
    match source {
        ConstSource::Bytes(b) => Some(Arc::new(Bytes(b.clone()))),
        ConstSource::Splat(_) | ConstSource::Random { .. } | ConstSource::Strings(_) => None,
    }
}

fn sizes(dims: &[Dim]) -> Result<Vec<SizeExpr>, CodegenError> {
    dims.iter().map(size).collect()
}

/// A `Dim` over symbols as postfix code.
pub fn size(d: &Dim) -> Result<SizeExpr, CodegenError> {
    if let Some(c) = d.as_const() {
        return Ok(SizeExpr::Const(c));
    }
    let mut code = Vec::new();
    let depth = emit(d, &mut code)?;
    if depth > SizeExpr::MAX_DEPTH {
        return Err(CodegenError::Limit(format!("size expression `{d}` is too deep")));
    }
    Ok(SizeExpr::Code(code.into()))
}

/// Appends the code of `d`; the greatest stack depth it needs.
fn emit(d: &Dim, code: &mut Vec<SizeOp>) -> Result<usize, CodegenError> {
    let mut deepest = 1;
    if d.terms().is_empty() {
        code.push(SizeOp::Const(0));
    }
    for (i, (atoms, c)) in d.terms().iter().enumerate() {
        // operands below this term: the sum so far
        let below = usize::from(i > 0);
        let mut factors = 0;
        if *c != 1 || atoms.is_empty() {
            code.push(SizeOp::Const(*c));
            factors = 1;
        }
        for a in atoms {
            let mut pair = |x: &Dim, y: &Dim, op: SizeOp| {
                let dx = emit(x, code)?;
                let dy = emit(y, code)?;
                code.push(op);
                Ok::<_, CodegenError>(dx.max(dy + 1))
            };
            let depth = match a {
                Atom::Sym(s) => {
                    code.push(SizeOp::Sym(s.0));
                    1
                }
                Atom::Var(_) => {
                    return Err(CodegenError::Internal(format!("index variable in the size `{d}`")));
                }
                Atom::FloorDiv(x, y) => pair(x, y, SizeOp::FloorDiv)?,
                Atom::Mod(x, y) => pair(x, y, SizeOp::Mod)?,
                Atom::Min(x, y) => pair(x, y, SizeOp::Min)?,
                Atom::Max(x, y) => pair(x, y, SizeOp::Max)?,
            };
            deepest = deepest.max(below + usize::from(factors > 0) + depth);
            if factors > 0 {
                code.push(SizeOp::Mul);
            }
            factors = 1;
        }
        deepest = deepest.max(below + 1);
        if i > 0 {
            code.push(SizeOp::Add);
        }
    }
    Ok(deepest)
}

fn steps(list: &[host::Step]) -> Result<Vec<Step>, CodegenError> {
    let id = |b: &host::BufferId| b.0 as usize;
    let ids = |bs: &[host::BufferId]| bs.iter().map(id).collect::<Vec<_>>();
    let syms = |ss: &[ir::Sym]| ss.iter().map(|s| s.0).collect::<Vec<_>>();
    list.iter()
        .map(|s| {
            Ok(match s {
                host::Step::Layout { buffers, end } => {
                    Step::Layout { buffers: ids(buffers), end: size(end)? }
                }
                host::Step::Call { kernel, args, origin } => {
                    Step::Call { kernel: *kernel, args: ids(args), origin: origin.index() }
                }
                host::Step::Copy { from, to } => Step::Copy { from: id(from), to: id(to) },
                host::Step::SetSym { sym, value, origin } => {
                    Step::SetSym { sym: sym.0, value: size(value)?, origin: origin.index() }
                }
                host::Step::BindSym { sym, from, origin } => {
                    Step::BindSym { sym: sym.0, from: id(from), origin: origin.index() }
                }
                host::Step::CheckEq { a, b, message, origin } => Step::CheckEq {
                    a: size(a)?,
                    b: size(b)?,
                    message: message.clone(),
                    origin: origin.index(),
                },
                host::Step::Assert { cond, message, origin } => {
                    Step::Assert { cond: id(cond), message: message.clone(), origin: origin.index() }
                }
                host::Step::If { cond, then, otherwise } => {
                    Step::If { cond: id(cond), then: steps(then)?, otherwise: steps(otherwise)? }
                }
                host::Step::Loop { trip, cond, iter, cond_next, count, body, origin } => Step::Loop {
                    trip: id(trip),
                    cond: id(cond),
                    iter: id(iter),
                    cond_next: id(cond_next),
                    count: count.0,
                    body: steps(body)?,
                    origin: origin.index(),
                },
                host::Step::Append { from, to, index } => {
                    Step::Append { from: id(from), to: id(to), index: index.0 }
                }
                host::Step::Host { func, args, results, defines, origin } => Step::Host {
                    func: match func {
                        HostFn::NonMaxSuppression { center_point_box } => {
                            HostFnDef::NonMaxSuppression { center_point_box: *center_point_box }
                        }
                        HostFn::DecodeImage { pixels } => HostFnDef::DecodeImage {
                            pixels: match pixels {
                                Pixels::Rgb => PixelsDef::Rgb,
                                Pixels::Bgr => PixelsDef::Bgr,
                                Pixels::Grey => PixelsDef::Grey,
                            },
                        },
                    },
                    args: ids(args),
                    results: ids(results),
                    defines: syms(defines),
                    origin: origin.index(),
                },
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::Sym;
    use ir::dim::NoFacts;

    #[test]
    fn the_runtime_knows_every_element_type() {
        for d in DType::ALL {
            assert_eq!(Elem::named(d.name()), Some(elem(d)), "{d}");
        }
    }

    #[test]
    fn sizes_agree_with_dims() {
        let (a, b) = (Dim::from(Sym(0)), Dim::from(Sym(1)));
        let facts = NoFacts;
        let cases = [
            &a * &b + Dim::from(3),
            Dim::from(7) - a.clone() * Dim::from(2),
            (&a + &b).floor_div(&Dim::from(4), &facts) * &b,
            a.modulo(&b, &facts).max_with(&(&a - &Dim::from(9)), &facts),
            Dim::from(0),
            &a * &a * b.min_with(&a, &facts) - &b * Dim::from(5) + Dim::from(1),
        ];
        for d in &cases {
            for (x, y) in [(1i64, 1i64), (5, 3), (17, 4), (100, 7)] {
                let want = d.eval_syms(&|s| Some(if s.0 == 0 { x } else { y }));
                assert_eq!(size(d).unwrap().eval(&[x, y]).ok(), want, "{d} at {x}, {y}");
            }
        }
    }
}
