//! The parser. It builds exactly what is written; [`crate::verify`] judges it.

use crate::dim::SymInfo;
use crate::dtype::Scalar;
use crate::graph::{Graph, Module, Origin, OriginId, TensorType, ValueId};
use crate::prim::{
    Attr, BinaryOp, CmpOp, Combine, ConvertMode, HostFn, Monoid, PadMode, Pixels, Prim, Region, UnaryOp,
    WindowDim,
};
use crate::tensor::checked_elems;
use crate::text::lex::{Cursor, Kind};
use crate::{Atom, ConstData, ConstId, ConstSource, DType, Dim, Result, Sym, SymKind, Symbols};
use std::collections::HashMap;
use std::sync::Arc;

/// Regions nest at most this deep: the parser recurses.
const MAX_DEPTH: usize = 64;

/// Reads what [`super::print`] writes. Errors name line and column.
pub fn parse(text: &str) -> Result<Module> {
    let mut p = Parser { c: Cursor::new(text), m: Module::default() };
    loop {
        if p.c.eat("symbol") {
            p.symbol()?;
        } else if p.c.eat("const") {
            p.constant()?;
        } else {
            break;
        }
    }
    p.c.expect("graph")?;
    let (graph, names) = p.graph(0)?;
    p.m.output_names = names;
    p.m.graph = graph;
    if !p.c.at_end() {
        return Err(p.c.expected("the end of the text"));
    }
    Ok(p.m)
}

struct Parser<'a> {
    c: Cursor<'a>,
    m: Module,
}

/// Key of a value: text after `%` (a leading digit: a number), and which of this name.
type Key = (String, bool, u32);

struct Scope {
    graph: Graph,
    values: HashMap<Key, ValueId>,
}

fn dim_with(c: &mut Cursor, symbols: &Symbols) -> Result<Dim> {
    c.dim(&mut |n| symbols.by_name(n).map(Atom::Sym))
}

impl<'a> Parser<'a> {
    // ---- tables ----------------------------------------------------------------------------

    fn symbol(&mut self) -> Result<()> {
        let c = &mut self.c;
        let start = *c;
        let name = c.name()?.into_owned();
        if self.m.symbols.by_name(&name).is_some() {
            return Err(start.error(format!("the symbol `{name}` is there already")));
        }
        let kind = match c.word()? {
            "entry" => SymKind::Entry,
            "value" => SymKind::Value,
            "carried" => SymKind::Carried,
            other => return Err(start.error(format!("unknown kind of symbol `{other}`"))),
        };
        let lo = c.int_as()?;
        c.expect("..")?;
        let hi = if c.eat("max") { Dim::LIMIT } else { c.int_as()? };
        let divisor = if c.eat("divisor") { c.int_as()? } else { 1 };
        let hint = if c.eat("hint") { c.int_as()? } else { lo };
        if lo > hi || divisor < 1 {
            return Err(start.error(format!("symbol `{name}`: empty range or divisor below 1")));
        }
        self.m.symbols.add(SymInfo { name, kind, lo, hi, divisor, hint });
        Ok(())
    }

    fn constant(&mut self) -> Result<()> {
        let id = self.const_id()?;
        if id.0 as usize != self.m.consts.len() {
            return Err(self.c.error(format!("expected constant c{} next", self.m.consts.len())));
        }
        let c = &mut self.c;
        let dtype = dtype(c)?;
        let shape: Vec<usize> = c.list(|c| c.int_as())?;
        let Some(elems) = checked_elems(&shape) else {
            return Err(c.error("this constant has too many elements"));
        };
        let start = *c;
        let source = if c.eat("splat") {
            c.expect("(")?;
            let x = scalar(c)?;
            c.expect(")")?;
            ConstSource::Splat(x)
        } else if c.eat("random") {
            c.expect("(")?;
            key(c, "seed")?;
            let seed = c.int_as()?;
            c.expect(",")?;
            key(c, "mean")?;
            let mean = c.float()?;
            c.expect(",")?;
            key(c, "std")?;
            let std = c.float()?;
            c.expect(")")?;
            ConstSource::Random { seed, mean, std }
        } else if c.eat("hex") {
            let text = c.string()?;
            let bytes = unhex(&text).filter(|b| Some(b.len()) == elems.checked_mul(dtype.bytes()));
            let Some(bytes) = bytes else {
                return Err(
                    start.error(format!("expected {} hex bytes", elems.saturating_mul(dtype.bytes())))
                );
            };
            ConstSource::Bytes(Arc::new(bytes))
        } else if c.at("[") {
            let source = if dtype == DType::String {
                let items = c.list(|c| c.string())?;
                (items.len(), ConstSource::Strings(items.into()))
            } else {
                let items = c.list(|c| Ok((*c, scalar(c)?)))?;
                let mut bytes = Vec::with_capacity(items.len() * dtype.bytes());
                for (at, x) in &items {
                    if !push_scalar(dtype, *x, &mut bytes) {
                        return Err(at.error(format!("this is no element of type {dtype}")));
                    }
                }
                (items.len(), ConstSource::Bytes(Arc::new(bytes)))
            };
            if source.0 != elems {
                return Err(start.error(format!("expected {elems} elements, found {}", source.0)));
            }
            source.1
        } else if c.eat("elided") {
            return Err(start.error("the data of this constant was left out when it was printed"));
        } else {
            return Err(c.expected("`splat`, `random`, `hex` or a list of elements"));
        };
        let name = if c.peek().kind == Kind::Str { Some(c.string()?) } else { None };
        self.m.consts.push(ConstData { dtype, shape, source, name });
        Ok(())
    }

    fn const_id(&mut self) -> Result<ConstId> {
        let start = self.c;
        let id = self.c.word()?.strip_prefix('c').and_then(|n| n.parse().ok());
        id.map(ConstId).ok_or_else(|| start.expected("a constant such as c0"))
    }

    // ---- graphs ----------------------------------------------------------------------------

    /// After the keyword: name, inputs, body. Answers the names of the outputs as well.
    fn graph(&mut self, depth: usize) -> Result<(Graph, Vec<String>)> {
        if depth > MAX_DEPTH {
            return Err(self.c.error("regions nest too deeply"));
        }
        let name = self.c.sigil("@")?;
        let mut s = Scope { graph: Graph::new(name.into_owned()), values: HashMap::new() };
        self.c.expect("(")?;
        while !self.c.eat(")") {
            if !s.graph.inputs.is_empty() {
                self.c.expect(",")?;
            }
            let (at, key) = (self.c, self.value_key()?);
            self.c.expect(":")?;
            let ty = self.ty()?;
            let v = s.graph.add_input(value_name(&key), ty);
            define(&mut s, at, key, v)?;
        }
        self.c.expect("{")?;
        while !self.c.eat("return") {
            self.op(&mut s, depth)?;
        }
        let mut names = Vec::new();
        while !self.c.eat("}") {
            if !names.is_empty() {
                self.c.expect(",")?;
            }
            let v = self.value(&s)?;
            s.graph.outputs.push(v);
            names.push(match self.c.eat("as") {
                true => self.c.string()?,
                false => s.graph[v].name.clone().unwrap_or_default(),
            });
        }
        Ok((s.graph, names))
    }

    fn value_key(&mut self) -> Result<Key> {
        let mut after = self.c;
        let number = after.eat("%") && after.peek().kind == Kind::Number;
        let name = self.c.sigil("%")?.into_owned();
        let which = if self.c.eat("'") { self.c.int_as()? } else { 1 };
        Ok((name, number, which))
    }
    fn value(&mut self, s: &Scope) -> Result<ValueId> {
        let at = self.c;
        let key = self.value_key()?;
        s.values.get(&key).copied().ok_or_else(|| at.error(format!("`%{}` is not defined here", key.0)))
    }
    fn ty(&mut self) -> Result<TensorType> {
        let dtype = dtype(&mut self.c)?;
        Ok(TensorType::new(dtype, self.dims()?))
    }
    fn dim(&mut self) -> Result<Dim> {
        dim_with(&mut self.c, &self.m.symbols)
    }
    fn dims(&mut self) -> Result<Vec<Dim>> {
        let symbols = &self.m.symbols;
        self.c.list(|c| dim_with(c, symbols))
    }
    fn sym(&mut self) -> Result<Sym> {
        let at = self.c;
        let name = self.c.name()?;
        self.m.symbols.by_name(&name).ok_or_else(|| at.error(format!("unknown size symbol `{name}`")))
    }
    fn syms(&mut self) -> Result<Vec<Sym>> {
        let symbols = &self.m.symbols;
        self.c.list(|c| {
            let at = *c;
            let name = c.name()?;
            symbols.by_name(&name).ok_or_else(|| at.error(format!("unknown size symbol `{name}`")))
        })
    }

    fn op(&mut self, s: &mut Scope, depth: usize) -> Result<()> {
        let mut results = Vec::new();
        if self.c.at("%") {
            loop {
                results.push((self.c, self.value_key()?));
                if !self.c.eat(",") {
                    break;
                }
            }
            self.c.expect("=")?;
        }
        let (prim, operands) = self.prim(s)?;
        let mut types = Vec::new();
        if self.c.eat(":") {
            loop {
                types.push(self.ty()?);
                if !self.c.eat(",") {
                    break;
                }
            }
        }
        if types.len() != results.len() {
            return Err(self.c.error(format!("{} results with {} types", results.len(), types.len())));
        }
        let origin = self.origin()?;
        let mut regions: Vec<Region> = Vec::new();
        while self.c.eat("region") {
            regions.push(self.graph(depth + 1)?.0);
        }
        let op = s.graph.push_op(prim, operands, regions, types, origin);
        let ids = s.graph[op].results.clone();
        for ((at, key), v) in results.into_iter().zip(ids) {
            s.graph[v].name = value_name(&key);
            define(s, at, key, v)?;
        }
        Ok(())
    }

    fn origin(&mut self) -> Result<OriginId> {
        let mut origin = Origin::default();
        if self.c.eat("loc") {
            origin.node = self.c.string()?;
            origin.op_type = self.c.name()?.into_owned();
            self.c.expect("-")?;
            origin.opset = self.c.int_as()?;
        }
        Ok(self.m.add_origin(origin))
    }

    fn operands(&mut self, s: &Scope) -> Result<Vec<ValueId>> {
        let mut list = Vec::new();
        if self.c.at("%") {
            loop {
                list.push(self.value(s)?);
                if !self.c.eat(",") {
                    break;
                }
            }
        }
        Ok(list)
    }

    // ---- primitives ------------------------------------------------------------------------

    /// Mnemonic, payload, operands and attributes.
    fn prim(&mut self, s: &Scope) -> Result<(Prim, Vec<ValueId>)> {
        let start = self.c;
        let mnemonic = self.c.word()?;
        // what stands before the operands
        match mnemonic {
            "const" => return Ok((Prim::Const(self.const_id()?), Vec::new())),
            "dim_value" => return Ok((Prim::DimValue(self.dim()?), Vec::new())),
            "assert" => {
                let message = self.c.string()?;
                return Ok((Prim::Assert { message }, self.operands(s)?));
            }
            "call" => {
                let name = self.c.sigil("@")?.into_owned();
                let operands = self.operands(s)?;
                let attrs = self.c.list_between("{", "}", |c| {
                    let key = c.name()?.into_owned();
                    c.expect("=")?;
                    Ok((key, attr(c)?))
                })?;
                return Ok((Prim::Call { name, attrs }, operands));
            }
            "host" => {
                let at = self.c;
                let name = self.c.sigil("@")?;
                let operands = self.operands(s)?;
                let func = match name.as_ref() {
                    "non_max_suppression" => {
                        HostFn::NonMaxSuppression { center_point_box: self.flag("center_point_box")? }
                    }
                    "decode_image" => HostFn::DecodeImage { pixels: self.word_at("pixels", Pixels::parse)? },
                    other => return Err(at.error(format!("unknown host function `{other}`"))),
                };
                let defines = self.syms_at("defines")?;
                return Ok((Prim::Host { func, defines }, operands));
            }
            _ => {}
        }
        let operands = self.operands(s)?;
        let prim = match mnemonic {
            "iota" => Prim::Iota {
                dtype: self.dtype_at("dtype")?,
                shape: self.dims_at("shape")?,
                axis: self.int_at("axis")?,
            },
            "bind_dim" => Prim::BindDim(self.sym_at("sym")?),
            "compact" => Prim::Compact { sym: self.sym_at("sym")? },
            "random_bits" => Prim::RandomBits { shape: self.dims_at("shape")? },
            "reshape" => Prim::Reshape { shape: self.dims_at("shape")? },
            "select" => Prim::Select,
            "convert" => {
                Prim::Convert { to: self.dtype_at("to")?, mode: self.word_at("mode", ConvertMode::parse)? }
            }
            "bitcast" => Prim::Bitcast { to: self.dtype_at("to")? },
            "transpose" => Prim::Transpose { perm: self.ints_at("perm")? },
            "broadcast" => Prim::Broadcast { shape: self.dims_at("shape")?, dims: self.ints_at("dims")? },
            "slice" => Prim::Slice {
                start: self.dims_at("start")?,
                size: self.dims_at("size")?,
                step: self.ints_at("step")?,
            },
            "pad" => Prim::Pad {
                lo: self.dims_at("lo")?,
                hi: self.dims_at("hi")?,
                interior: self.ints_at("interior")?,
                mode: self.word_at("mode", PadMode::parse)?,
            },
            "concat" => Prim::Concat { axis: self.int_at("axis")? },
            "gather" => Prim::Gather { axis: self.int_at("axis")? },
            "update_slice" => Prim::UpdateSlice { start: self.dims_at("start")? },
            "scatter" => Prim::Scatter { combine: self.word_at("combine", Combine::parse)? },
            "reduce" => {
                Prim::Reduce { monoid: self.word_at("monoid", Monoid::parse)?, axes: self.ints_at("axes")? }
            }
            "arg_reduce" => Prim::ArgReduce {
                max: self.flag("max")?,
                axis: self.int_at("axis")?,
                last: self.flag("last")?,
            },
            "window_reduce" => Prim::WindowReduce {
                monoid: self.word_at("monoid", Monoid::parse)?,
                size: self.ints_at("size")?,
                window: self.window()?,
            },
            "cumulative" => Prim::Cumulative {
                monoid: self.word_at("monoid", Monoid::parse)?,
                axis: self.int_at("axis")?,
                exclusive: self.flag("exclusive")?,
                reverse: self.flag("reverse")?,
            },
            "contract" => Prim::Contract {
                batch: self.pairs_at("batch")?,
                reduce: self.pairs_at("reduce")?,
                acc: self.dtype_at("acc")?,
            },
            "convolve" => Prim::Convolve {
                window: self.window()?,
                groups: self.int_at("groups")?,
                acc: self.dtype_at("acc")?,
            },
            "sort" => Prim::Sort { axis: self.int_at("axis")?, descending: self.flag("descending")? },
            "top_k" => Prim::TopK {
                axis: self.int_at("axis")?,
                k: self.dim_at("k")?,
                largest: self.flag("largest")?,
            },
            "if" => Prim::If { defines: self.syms_at("defines")? },
            "loop" => Prim::Loop {
                carried: self.int_at("carried")?,
                carried_syms: self.syms_at("carried_syms")?,
                defines: self.syms_at("defines")?,
            },
            other => {
                let elementwise = UnaryOp::parse(other)
                    .map(Prim::Unary)
                    .or_else(|| BinaryOp::parse(other).map(Prim::Binary))
                    .or_else(|| CmpOp::parse(other).map(Prim::Cmp));
                elementwise.ok_or_else(|| start.error(format!("unknown operation `{other}`")))?
            }
        };
        Ok((prim, operands))
    }

    fn key(&mut self, k: &str) -> Result<()> {
        key(&mut self.c, k)
    }
    fn flag(&mut self, k: &str) -> Result<bool> {
        self.key(k)?;
        match () {
            _ if self.c.eat("true") => Ok(true),
            _ if self.c.eat("false") => Ok(false),
            _ => Err(self.c.expected("`true` or `false`")),
        }
    }
    fn int_at<T: TryFrom<i128>>(&mut self, k: &str) -> Result<T> {
        self.key(k)?;
        self.c.int_as()
    }
    fn ints_at<T: TryFrom<i128>>(&mut self, k: &str) -> Result<Vec<T>> {
        self.key(k)?;
        self.c.list(|c| c.int_as())
    }
    fn pairs_at(&mut self, k: &str) -> Result<Vec<(usize, usize)>> {
        self.key(k)?;
        self.c.list(|c| {
            c.expect("(")?;
            let a = c.int_as()?;
            c.expect(",")?;
            let b = c.int_as()?;
            c.expect(")")?;
            Ok((a, b))
        })
    }
    fn word_at<T>(&mut self, k: &str, parse: fn(&str) -> Option<T>) -> Result<T> {
        self.key(k)?;
        let at = self.c;
        let word = self.c.word()?;
        parse(word).ok_or_else(|| at.error(format!("`{word}` is no {k}")))
    }
    fn dtype_at(&mut self, k: &str) -> Result<DType> {
        self.key(k)?;
        dtype(&mut self.c)
    }
    fn dim_at(&mut self, k: &str) -> Result<Dim> {
        self.key(k)?;
        self.dim()
    }
    fn dims_at(&mut self, k: &str) -> Result<Vec<Dim>> {
        self.key(k)?;
        self.dims()
    }
    fn sym_at(&mut self, k: &str) -> Result<Sym> {
        self.key(k)?;
        self.sym()
    }
    fn syms_at(&mut self, k: &str) -> Result<Vec<Sym>> {
        self.key(k)?;
        self.syms()
    }
    fn window(&mut self) -> Result<Vec<WindowDim>> {
        let start = self.c;
        let stride: Vec<i64> = self.ints_at("stride")?;
        let pad_lo = self.dims_at("pad_lo")?;
        let pad_hi = self.dims_at("pad_hi")?;
        let dilation: Vec<i64> = self.ints_at("dilation")?;
        let base: Vec<i64> = self.ints_at("base_dilation")?;
        let n = stride.len();
        if [pad_lo.len(), pad_hi.len(), dilation.len(), base.len()].iter().any(|&l| l != n) {
            return Err(start.error("the lists of a window have different lengths"));
        }
        let dims = pad_lo.into_iter().zip(pad_hi).zip(stride).zip(dilation).zip(base);
        Ok(dims
            .map(|((((pad_lo, pad_hi), stride), dilation), base_dilation)| WindowDim {
                stride,
                pad_lo,
                pad_hi,
                dilation,
                base_dilation,
            })
            .collect())
    }
}

fn define(s: &mut Scope, at: Cursor, key: Key, v: ValueId) -> Result<()> {
    if let Some(old) = s.values.insert(key.clone(), v) {
        let _ = old;
        return Err(at.error(format!("`%{}` is defined twice", key.0)));
    }
    Ok(())
}

/// Numbers are no names.
fn value_name((name, number, _): &Key) -> Option<String> {
    (!number).then(|| name.clone())
}

fn key(c: &mut Cursor, k: &str) -> Result<()> {
    c.expect(k)?;
    c.expect("=")
}

fn dtype(c: &mut Cursor) -> Result<DType> {
    let at = *c;
    c.word()?.parse().map_err(|e: String| at.error(e))
}

/// True where the next tokens are a float rather than an integer.
fn float_next(c: &Cursor) -> bool {
    let t = if c.at("-") { c.peek2() } else { c.peek() };
    match t.kind {
        Kind::Name => matches!(t.text, "inf" | "nan" | "bits"),
        Kind::Number => !t.text.starts_with("0x") && t.text.contains(['.', 'e', 'E']),
        _ => false,
    }
}

fn scalar(c: &mut Cursor) -> Result<Scalar> {
    Ok(if float_next(c) { Scalar::Float(c.float()?) } else { Scalar::Int(c.int()?) })
}

fn attr(c: &mut Cursor) -> Result<Attr> {
    Ok(match c.peek().kind {
        Kind::Str => Attr::Str(c.string()?),
        _ if c.at("[") => Attr::Ints(c.list(|c| c.int_as())?),
        _ if float_next(c) => Attr::Float(c.float()?),
        _ => Attr::Int(c.int_as()?),
    })
}

/// Appends the bytes of an element; false where the type does not hold the value exactly.
fn push_scalar(dtype: DType, x: Scalar, to: &mut Vec<u8>) -> bool {
    match (dtype, x) {
        (DType::F64, Scalar::Float(x)) => to.extend(x.to_le_bytes()),
        (DType::F32, Scalar::Float(x)) => to.extend((x as f32).to_le_bytes()),
        (DType::F16, Scalar::Float(x)) => to.extend(half::f16::from_f64(x).to_le_bytes()),
        (DType::BF16, Scalar::Float(x)) => to.extend(half::bf16::from_f64(x).to_le_bytes()),
        (_, Scalar::Int(x)) => match dtype.int_range() {
            Some((lo, hi)) if (lo..=hi).contains(&x) => {
                to.extend(&x.to_le_bytes()[..dtype.bytes()]);
            }
            _ => return false,
        },
        _ => return false,
    }
    true
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|p| Some(digit(p[0])? << 4 | digit(*p.get(1)?)?)).collect()
}
