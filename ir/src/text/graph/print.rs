//! The printer.

use crate::dtype::Scalar;
use crate::graph::{Graph, Module, Op, Origin, OriginId, TensorType, ValueId};
use crate::prim::{Attr, HostFn, Prim, WindowDim};
use crate::tensor::read_scalar;
use crate::text::lex::{Float, name, quote};
use crate::{ConstData, ConstSource, DType, Dim, Sym, SymKind};
use std::collections::HashMap;
use std::fmt::{self, Display, Write};

/// Constants of at most this many elements print as a list.
const LIST_ELEMS: usize = 64;

/// The module as text that [`super::parse`] reads back.
pub fn print(m: &Module) -> String {
    Printer::new(m).module()
}

/// Prints parts of a module.
pub struct Printer<'a> {
    module: &'a Module,
    /// Constants of more bytes print as `elided(bytes)`, which does not parse.
    pub elide_above: usize,
}

/// Names of the values of one graph.
pub struct Names(Vec<String>);

impl Names {
    /// Inputs and live results in order: names where they have one, numbers otherwise.
    pub fn new(g: &Graph) -> Names {
        let mut names = vec![String::new(); g.value_count()];
        let (mut next, mut taken) = (0, HashMap::<&str, usize>::new());
        let results = g.ops().flat_map(|(_, op)| &op.results);
        for &v in g.inputs.iter().chain(results) {
            names[v.index()] = match &g[v].name {
                Some(n) => {
                    let count = taken.entry(n).or_insert(0);
                    *count += 1;
                    match *count {
                        1 => format!("%{}", name(n)),
                        k => format!("%{}'{k}", name(n)),
                    }
                }
                None => {
                    next += 1;
                    format!("%{}", next - 1)
                }
            };
        }
        Names(names)
    }
    /// The value's name; `%?7` where the graph does not define it.
    pub fn get(&self, v: ValueId) -> String {
        match self.0.get(v.index()).filter(|s| !s.is_empty()) {
            Some(s) => s.clone(),
            None => format!("%?{}", v.0),
        }
    }
}

impl<'a> Printer<'a> {
    pub fn new(module: &'a Module) -> Printer<'a> {
        Printer { module, elide_above: usize::MAX }
    }

    pub fn module(&self) -> String {
        let (m, mut s) = (self.module, String::new());
        for info in &m.symbols.infos {
            let kind = match info.kind {
                SymKind::Entry => "entry",
                SymKind::Value => "value",
                SymKind::Carried => "carried",
            };
            let hi = if info.hi == Dim::LIMIT { "max".into() } else { info.hi.to_string() };
            let _ = write!(s, "symbol {} {kind} {}..{hi}", name(&info.name), info.lo);
            if info.divisor != 1 {
                let _ = write!(s, " divisor {}", info.divisor);
            }
            let _ = writeln!(s, " hint {}", info.hint);
        }
        for (i, c) in m.consts.iter().enumerate() {
            let _ = writeln!(s, "const c{i} {}", self.constant(c));
        }
        if !s.is_empty() {
            s.push('\n');
        }
        s + &self.graph(&m.graph, "graph", 0, Some(&m.output_names))
    }

    fn constant(&self, c: &ConstData) -> String {
        let mut s = c.dtype.to_string();
        s += &list(&c.shape);
        s.push(' ');
        match &c.source {
            ConstSource::Splat(x) => {
                let _ = write!(s, "splat({})", scalar(*x));
            }
            ConstSource::Random { seed, mean, std } => {
                let _ = write!(s, "random(seed={seed}, mean={}, std={})", Float(*mean), Float(*std));
            }
            ConstSource::Strings(v) => {
                let items: Vec<String> = v.iter().map(|x| quote(x)).collect();
                let _ = write!(s, "[{}]", items.join(", "));
            }
            ConstSource::Bytes(b) => {
                let bytes = b.bytes();
                match elements(c.dtype, bytes, c.elems()) {
                    Some(items) => {
                        let _ = write!(s, "[{}]", items.join(", "));
                    }
                    None if bytes.len() > self.elide_above => {
                        let _ = write!(s, "elided({})", bytes.len());
                    }
                    None => {
                        s.push_str("hex \"");
                        for x in bytes {
                            let _ = write!(s, "{x:02x}");
                        }
                        s.push('"');
                    }
                }
            }
        }
        if let Some(n) = &c.name {
            s.push(' ');
            s += &quote(n);
        }
        s
    }

    /// A graph with `keyword` in front, indented by `depth` steps.
    fn graph(&self, g: &Graph, keyword: &str, depth: usize, outputs: Option<&[String]>) -> String {
        let names = Names::new(g);
        let pad = "  ".repeat(depth);
        let inputs: Vec<String> =
            g.inputs.iter().map(|&v| format!("{}: {}", names.get(v), self.ty(&g[v].ty))).collect();
        let mut s = format!("{pad}{keyword} @{}({}) {{\n", name(&g.name), inputs.join(", "));
        for (_, op) in g.ops() {
            let _ = writeln!(s, "{pad}  {}", self.op_line(op, g, &names));
            for r in &op.regions {
                s += &self.graph(r, "region", depth + 2, None);
            }
        }
        let _ = write!(s, "{pad}  return");
        for (i, &v) in g.outputs.iter().enumerate() {
            let _ = write!(s, "{} {}", if i > 0 { "," } else { "" }, names.get(v));
            if let Some(n) = outputs.and_then(|o| o.get(i))
                && g.inputs.iter().chain(g.ops().flat_map(|(_, op)| &op.results)).any(|&x| x == v)
                && g[v].name.as_ref() != Some(n)
            {
                let _ = write!(s, " as {}", quote(n));
            }
        }
        let _ = writeln!(s, "\n{pad}}}");
        s
    }

    pub fn ty(&self, t: &TensorType) -> String {
        format!("{}{}", t.dtype, self.dims(&t.shape))
    }
    fn dims(&self, dims: &[Dim]) -> String {
        let dims: Vec<String> = dims.iter().map(|d| self.module.symbols.show(d)).collect();
        format!("[{}]", dims.join(", "))
    }
    fn sym(&self, s: Sym) -> String {
        self.module.symbols.show(&Dim::from(s))
    }
    fn syms(&self, syms: &[Sym]) -> String {
        let names: Vec<String> = syms.iter().map(|&s| self.sym(s)).collect();
        format!("[{}]", names.join(", "))
    }

    /// `loc "conv1" Conv-11`; nothing for the origin of nothing.
    pub fn origin(&self, id: OriginId) -> String {
        match self.module.origins.get(id.index()) {
            Some(o) if *o != Origin::default() => {
                format!(" loc {} {}-{}", quote(&o.node), name(&o.op_type), o.opset)
            }
            _ => String::new(),
        }
    }

    /// The op of this graph as one line, for messages.
    pub fn op_in(&self, g: &Graph, op: &Op) -> String {
        self.op_line(op, g, &Names::new(g))
    }

    /// The op as one line, without its regions.
    pub fn op_line(&self, op: &Op, g: &Graph, names: &Names) -> String {
        let mut s = String::new();
        let results: Vec<String> = op.results.iter().map(|&v| names.get(v)).collect();
        if !results.is_empty() {
            s = format!("{} = ", results.join(", "));
        }
        s += op.prim.name();
        self.payload(&op.prim, &mut s);
        let operands: Vec<String> = op.operands.iter().map(|&v| names.get(v)).collect();
        if !operands.is_empty() {
            s.push(' ');
            s += &operands.join(", ");
        }
        self.attributes(&op.prim, &mut s);
        let types: Vec<String> = op.results.iter().map(|&v| self.ty(&g[v].ty)).collect();
        if !types.is_empty() {
            s += " : ";
            s += &types.join(", ");
        }
        s + &self.origin(op.origin)
    }

    /// What stands between the mnemonic and the operands.
    fn payload(&self, prim: &Prim, s: &mut String) {
        match prim {
            Prim::Const(c) => {
                let _ = write!(s, " c{}", c.0);
            }
            Prim::DimValue(d) => {
                let _ = write!(s, " {}", self.module.symbols.show(d));
            }
            Prim::Call { name: n, .. } => {
                let _ = write!(s, " @{}", name(n));
            }
            Prim::Assert { message } => {
                let _ = write!(s, " {}", quote(message));
            }
            Prim::Host { func, .. } => {
                let _ = write!(s, " @{}", func.name());
            }
            _ => {}
        }
    }

    fn attributes(&self, prim: &Prim, s: &mut String) {
        let mut put = |key: &str, value: &dyn Display| {
            let _ = write!(s, " {key}={value}");
        };
        match prim {
            Prim::Const(_) | Prim::DimValue(_) | Prim::Unary(_) | Prim::Binary(_) | Prim::Cmp(_) => {}
            Prim::Select | Prim::Assert { .. } => {}
            Prim::Iota { dtype, shape, axis } => {
                put("dtype", dtype);
                put("shape", &self.dims(shape));
                put("axis", axis);
            }
            Prim::BindDim(sym) | Prim::Compact { sym } => put("sym", &self.sym(*sym)),
            Prim::RandomBits { shape } | Prim::Reshape { shape } => put("shape", &self.dims(shape)),
            Prim::Convert { to, mode } => {
                put("to", to);
                put("mode", &mode.name());
            }
            Prim::Bitcast { to } => put("to", to),
            Prim::Transpose { perm } => put("perm", &list(perm)),
            Prim::Broadcast { shape, dims } => {
                put("shape", &self.dims(shape));
                put("dims", &list(dims));
            }
            Prim::Slice { start, size, step } => {
                put("start", &self.dims(start));
                put("size", &self.dims(size));
                put("step", &list(step));
            }
            Prim::Pad { lo, hi, interior, mode } => {
                put("lo", &self.dims(lo));
                put("hi", &self.dims(hi));
                put("interior", &list(interior));
                put("mode", &mode.name());
            }
            Prim::Concat { axis } | Prim::Gather { axis } => put("axis", axis),
            Prim::UpdateSlice { start } => put("start", &self.dims(start)),
            Prim::Scatter { combine } => put("combine", &combine.name()),
            Prim::Reduce { monoid, axes } => {
                put("monoid", &monoid.name());
                put("axes", &list(axes));
            }
            Prim::ArgReduce { max, axis, last } => {
                put("max", max);
                put("axis", axis);
                put("last", last);
            }
            Prim::WindowReduce { monoid, size, window } => {
                put("monoid", &monoid.name());
                put("size", &list(size));
                self.window(window, &mut put);
            }
            Prim::Cumulative { monoid, axis, exclusive, reverse } => {
                put("monoid", &monoid.name());
                put("axis", axis);
                put("exclusive", exclusive);
                put("reverse", reverse);
            }
            Prim::Contract { batch, reduce, acc } => {
                let pairs = |p: &[(usize, usize)]| {
                    let items: Vec<String> = p.iter().map(|(a, b)| format!("({a}, {b})")).collect();
                    format!("[{}]", items.join(", "))
                };
                put("batch", &pairs(batch));
                put("reduce", &pairs(reduce));
                put("acc", acc);
            }
            Prim::Convolve { window, groups, acc } => {
                self.window(window, &mut put);
                put("groups", groups);
                put("acc", acc);
            }
            Prim::Sort { axis, descending } => {
                put("axis", axis);
                put("descending", descending);
            }
            Prim::TopK { axis, k, largest } => {
                put("axis", axis);
                put("k", &self.module.symbols.show(k));
                put("largest", largest);
            }
            Prim::If { defines } => put("defines", &self.syms(defines)),
            Prim::Loop { carried, carried_syms, defines } => {
                put("carried", carried);
                put("carried_syms", &self.syms(carried_syms));
                put("defines", &self.syms(defines));
            }
            Prim::Call { attrs, .. } => {
                let items: Vec<String> =
                    attrs.iter().map(|(k, v)| format!("{}={}", name(k), attr(v))).collect();
                let _ = write!(s, " {{{}}}", items.join(", "));
            }
            Prim::Host { func, defines } => {
                match func {
                    HostFn::NonMaxSuppression { center_point_box } => {
                        put("center_point_box", center_point_box);
                    }
                    HostFn::DecodeImage { pixels } => put("pixels", &pixels.name()),
                }
                put("defines", &self.syms(defines));
            }
        }
    }

    fn window(&self, w: &[WindowDim], put: &mut impl FnMut(&str, &dyn Display)) {
        let ints = |f: fn(&WindowDim) -> i64| list(&w.iter().map(f).collect::<Vec<_>>());
        let dims = |f: fn(&WindowDim) -> &Dim| self.dims(&w.iter().map(|x| f(x).clone()).collect::<Vec<_>>());
        put("stride", &ints(|x| x.stride));
        put("pad_lo", &dims(|x| &x.pad_lo));
        put("pad_hi", &dims(|x| &x.pad_hi));
        put("dilation", &ints(|x| x.dilation));
        put("base_dilation", &ints(|x| x.base_dilation));
    }
}

fn list<T: Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    format!("[{}]", items.join(", "))
}

fn attr(a: &Attr) -> String {
    match a {
        Attr::Int(i) => i.to_string(),
        Attr::Float(x) => Float(*x).to_string(),
        Attr::Ints(v) => list(v),
        Attr::Str(s) => quote(s),
    }
}

fn scalar(x: Scalar) -> String {
    match x {
        Scalar::Int(i) => i.to_string(),
        Scalar::Float(f) => Float(f).to_string(),
    }
}

/// The elements as text, where that is exact and short.
fn elements(dtype: DType, bytes: &[u8], n: usize) -> Option<Vec<String>> {
    if n > LIST_ELEMS || bytes.len() != n * dtype.bytes() {
        return None;
    }
    if dtype == DType::Bool && bytes.iter().any(|&b| b > 1) {
        return None;
    }
    let one = |i: usize| match read_scalar(dtype, bytes, i)? {
        Scalar::Int(x) => Some(x.to_string()),
        // the payload of a NaN is part of the bytes
        Scalar::Float(x) if x.is_nan() => None,
        Scalar::Float(x) if dtype == DType::F32 => {
            let short = format!("{:?}", x as f32);
            let exact = short.parse::<f64>().is_ok_and(|y| y as f32 == x as f32);
            Some(if exact && x.is_finite() { short } else { Float(x).to_string() })
        }
        Scalar::Float(x) => Some(Float(x).to_string()),
    };
    (0..n).map(one).collect()
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print(self))
    }
}
