//! Small graphs around one primitive each, with random shapes.

use kernelsmith::ir::build::{Builder, LoopStep, V};
use kernelsmith::ir::infer::window_extent;
use kernelsmith::ir::prim::{
    BinaryOp, CmpOp, Combine, ConvertMode, HostFn, Monoid, PadMode, Pixels, Prim, UnaryOp, WindowDim,
};
use kernelsmith::ir::testing::{Rng, random_tensor};
use kernelsmith::ir::{DType, Dim, IrError, Result, Sym, Tensor};

/// What an input holds.
#[derive(Clone, Debug)]
pub enum Values {
    /// Anything; in some runs with the largest and smallest numbers, infinities and NaN.
    Any,
    /// Likewise, but of the special numbers only those with which sums come out the same in every order.
    Terms,
    /// Finite numbers.
    Finite,
    /// Integers from 0 to below this.
    Below(Dim),
    True,
}

/// A graph in the making.
pub struct Cx {
    pub b: Builder,
    pub rng: Rng,
    pub inputs: Vec<Values>,
    symbolic: bool,
    /// N in 0..=9 and M in 1..=9, once they are used.
    symbols: [Option<Dim>; 2],
}

impl Cx {
    pub fn new(seed: u64, symbolic: bool) -> Cx {
        let (b, rng) = (Builder::new("one"), Rng::new(seed));
        Cx { b, rng, inputs: Vec::new(), symbolic, symbols: [None, None] }
    }

    /// The symbols, and the values that `[n, m]` give them.
    pub fn sizes(&self, values: [i64; 2]) -> Vec<(Sym, i64)> {
        let all = self.symbols.iter().zip(values);
        all.filter_map(|(s, v)| Some((s.as_ref()?.as_sym()?, v))).collect()
    }

    fn symbol(&mut self, i: usize) -> Dim {
        let b = &mut self.b;
        self.symbols[i].get_or_insert_with(|| b.symbol(["N", "M"][i], i as i64, 9)).clone()
    }
    /// May be 0.
    fn extent(&mut self) -> Dim {
        match self.symbolic && !self.rng.one_in(3) {
            true => {
                let i = self.rng.below(2);
                self.symbol(i)
            }
            false => (*self.rng.pick(&[1, 2, 3, 4, 5, 7, 8, 33, 0])).into(),
        }
    }
    fn positive(&mut self) -> Dim {
        match self.symbolic && !self.rng.one_in(3) {
            true => self.symbol(1),
            false => (*self.rng.pick(&[1, 2, 3, 4, 5, 7, 8])).into(),
        }
    }
    fn shape_of(&mut self, rank: usize, one: fn(&mut Cx) -> Dim) -> Vec<Dim> {
        (0..rank).map(|_| one(self)).collect()
    }
    fn shape(&mut self, least: usize) -> Vec<Dim> {
        let rank = least + self.rng.below(4 - least);
        self.shape_of(rank, Cx::extent)
    }
    /// A shape with an axis that is not empty.
    fn with_axis(&mut self) -> (Vec<Dim>, usize) {
        let mut shape = self.shape(1);
        let axis = self.rng.below(shape.len());
        shape[axis] = self.positive();
        (shape, axis)
    }
    fn input_of(&mut self, values: Values, t: DType, shape: &[Dim]) -> V {
        self.inputs.push(values);
        let name = format!("x{}", self.inputs.len());
        self.b.input(name, t, shape.to_vec())
    }
    fn input(&mut self, t: DType, shape: &[Dim]) -> V {
        self.input_of(Values::Any, t, shape)
    }
    fn terms(&mut self, t: DType, shape: &[Dim]) -> V {
        self.input_of(Values::Terms, t, shape)
    }
    /// The primitive itself: an error says that it does not take these types.
    fn prim(&mut self, prim: Prim, operands: &[V]) -> Result<Vec<V>> {
        self.b.op(prim, operands)
    }
    /// What a kernel reads the elements of: views alone are no work.
    fn read(&mut self, v: V) -> V {
        let (t, shape) = (self.b.dtype(v), self.b.shape(v).to_vec());
        let flag = self.input_of(Values::True, DType::Bool, &[]);
        let other = self.input(t, &[]);
        let flag = self.b.broadcast_to(flag, &shape).unwrap();
        let other = self.b.broadcast_to(other, &shape).unwrap();
        self.b.select(flag, v, other).unwrap()
    }
    /// The primitive on these operands, and a kernel that reads what it gives.
    fn view(&mut self, prim: Prim, operands: &[V]) -> Result<Vec<V>> {
        let v = self.prim(prim, operands)?[0];
        Ok(vec![self.read(v)])
    }
    fn windows(&mut self, input: &[Dim], kernel: &[i64]) -> Vec<WindowDim> {
        let one = |(n, &k): (&Dim, &i64)| loop {
            let w = WindowDim {
                stride: self.rng.range(1, 3),
                pad_lo: self.rng.range(0, k).into(),
                pad_hi: self.rng.range(0, k).into(),
                dilation: self.rng.range(1, 2),
                base_dilation: if self.rng.one_in(4) { 2 } else { 1 },
            };
            let out = window_extent(n, &Dim::from(k), &w, self.b.symbols());
            if Dim::from(0).provably_le(&out, self.b.symbols()) {
                break w;
            }
        };
        input.iter().zip(kernel).map(one).collect()
    }
}

/// A graph around a primitive: its outputs, or why the primitive does not take the type.
type Build = Box<dyn Fn(&mut Cx, DType) -> Result<Vec<V>>>;

/// One way to use a primitive, with an element type to be chosen.
pub struct Form {
    pub name: String,
    /// Types to try.
    pub types: Vec<DType>,
    pub build: Build,
    /// Why only the host can do it.
    pub host: Option<&'static str>,
}

fn form(name: impl Into<String>, build: impl Fn(&mut Cx, DType) -> Result<Vec<V>> + 'static) -> Form {
    Form { name: name.into(), types: DType::ALL.to_vec(), build: Box::new(build), host: None }
}
/// A form without a choice: `t` is the type that it is about.
fn fixed(
    name: impl Into<String>,
    t: DType,
    build: impl Fn(&mut Cx, DType) -> Result<Vec<V>> + 'static,
) -> Form {
    Form { types: vec![t], ..form(name, build) }
}
fn host(
    name: &'static str,
    t: DType,
    why: &'static str,
    build: impl Fn(&mut Cx, DType) -> Result<Vec<V>> + 'static,
) -> Form {
    Form { host: Some(why), ..fixed(name, t, build) }
}

macro_rules! primitives {
    ($($variant:ident $forms:ident,)*) => {
        /// Which primitive. A new one does not compile before it is listed here, with its forms.
        pub fn variant(prim: &Prim) -> &'static str {
            match prim { $(Prim::$variant { .. } => stringify!($variant),)* }
        }
        /// All forms of all primitives.
        pub fn all() -> Vec<(&'static str, Vec<Form>)> {
            vec![$((stringify!($variant), $forms())),*]
        }
    };
}

primitives! {
    Const constants, Iota iotas, DimValue dim_values, BindDim bind_dims, RandomBits random_bits,
    Unary unary, Binary binary, Cmp comparisons, Select selects, Convert converts, Bitcast bitcasts,
    Reshape reshapes, Transpose transposes, Broadcast broadcasts, Slice slices, Pad pads, Concat concats,
    UpdateSlice update_slices, Gather gathers, Scatter scatters, Reduce reductions, ArgReduce arg_reductions,
    WindowReduce windows, Cumulative scans, Contract contractions, Convolve convolutions, Sort sorts,
    TopK top_ks, Compact compactions, If branches, Loop loops, Call calls, Assert assertions, Host host_functions,
}

// ---- sources --------------------------------------------------------------------------------------------------

fn constants() -> Vec<Form> {
    vec![form("const", |cx, t| {
        let shape = vec![3, 1 + cx.rng.below(9)];
        let v = cx.b.constant(random_tensor(&mut cx.rng, t, shape))?;
        Ok(vec![cx.read(v)])
    })]
}

fn iotas() -> Vec<Form> {
    // of symbolic size, or it is a constant
    vec![form("iota", |cx, t| {
        let mut shape = cx.shape(1);
        let axis = cx.rng.below(shape.len());
        shape[axis] = cx.symbol(axis % 2);
        let i = cx.prim(Prim::Iota { dtype: t, shape: shape.clone(), axis }, &[])?[0];
        let x = cx.input(t, &shape);
        let c = cx.input(DType::Bool, &shape);
        Ok(vec![cx.b.select(c, i, x).unwrap()])
    })]
}

fn dim_values() -> Vec<Form> {
    vec![fixed("dim_value", DType::I64, |cx, t| {
        let (n, m) = (cx.symbol(0), cx.symbol(1));
        let v = cx.prim(Prim::DimValue(&n * &m + Dim::from(3)), &[])?[0];
        let x = cx.input(t, &[n, m]);
        Ok(vec![cx.b.add(x, v).unwrap()])
    })]
}

fn bind_dims() -> Vec<Form> {
    vec![fixed("bind_dim", DType::I64, |cx, t| {
        let v = cx.input_of(Values::Below(8.into()), t, &[]);
        let sym = cx.b.value_symbol("bound", 0, 8, 8);
        cx.prim(Prim::BindDim(sym), &[v])?;
        let i = cx.b.iota(DType::F32, &[2.into(), sym.into()], 1).unwrap();
        Ok(vec![cx.read(i)])
    })]
}

fn random_bits() -> Vec<Form> {
    vec![form("random_bits", |cx, t| {
        let key = cx.input(t, &[]);
        let mut shape = cx.shape(1);
        shape.retain(|d| d.as_const().is_some());
        cx.prim(Prim::RandomBits { shape }, &[key])
    })]
}

// ---- elementwise ----------------------------------------------------------------------------------------------

fn unary() -> Vec<Form> {
    let one = |&op: &UnaryOp| {
        form(op.name(), move |cx: &mut Cx, t| {
            let shape = cx.shape(0);
            let x = cx.input(t, &shape);
            cx.prim(Prim::Unary(op), &[x])
        })
    };
    UnaryOp::ALL.iter().map(one).collect()
}

fn of_two(name: &str, prim: Prim) -> Form {
    form(name, move |cx, t| {
        let shape = cx.shape(0);
        let (x, y) = (cx.input(t, &shape), cx.input(t, &shape));
        cx.prim(prim.clone(), &[x, y])
    })
}

fn binary() -> Vec<Form> {
    BinaryOp::ALL.iter().map(|op| of_two(op.name(), Prim::Binary(*op))).collect()
}

fn comparisons() -> Vec<Form> {
    CmpOp::ALL.iter().map(|op| of_two(op.name(), Prim::Cmp(*op))).collect()
}

fn selects() -> Vec<Form> {
    vec![form("select", |cx, t| {
        let shape = cx.shape(0);
        let (c, x, y) = (cx.input(DType::Bool, &shape), cx.input(t, &shape), cx.input(t, &shape));
        cx.prim(Prim::Select, &[c, x, y])
    })]
}

fn converts() -> Vec<Form> {
    let one = |(to, mode): (DType, ConvertMode)| {
        form(format!("convert to {to} {}", mode.name()), move |cx: &mut Cx, t| {
            let shape = cx.shape(0);
            let x = cx.input(t, &shape);
            match t == to {
                true => cx.view(Prim::Convert { to, mode }, &[x]),
                false => cx.prim(Prim::Convert { to, mode }, &[x]),
            }
        })
    };
    let modes = |to: DType| ConvertMode::ALL.iter().map(move |m| (to, *m));
    DType::ALL.into_iter().flat_map(modes).map(one).collect()
}

fn bitcasts() -> Vec<Form> {
    let one = |to: DType| {
        form(format!("bitcast to {to}"), move |cx: &mut Cx, t| {
            let shape = cx.shape(0);
            // the bits of a NaN are kept from 32 bits on
            let values = if t.bytes() < 4 { Values::Finite } else { Values::Any };
            let x = cx.input_of(values, t, &shape);
            cx.view(Prim::Bitcast { to }, &[x])
        })
    };
    DType::ALL.into_iter().map(one).collect()
}

// ---- movement -------------------------------------------------------------------------------------------------

fn reshapes() -> Vec<Form> {
    vec![form("reshape", |cx, t| {
        let shape = cx.shape(0);
        let x = cx.input(t, &shape);
        let mut to = shape.clone();
        if to.len() > 1 {
            let d = to.remove(cx.rng.below(to.len() - 1));
            let last = to.len() - 1;
            to[last] = d * &to[last];
        }
        to.insert(cx.rng.below(to.len() + 1), 1.into());
        // merged axes must be neighbours
        let to = if shape.len() == 3 { vec![&shape[0] * &shape[1], shape[2].clone()] } else { to };
        cx.view(Prim::Reshape { shape: to }, &[x])
    })]
}

fn transposes() -> Vec<Form> {
    let rotated = |cx: &mut Cx, t: DType, shape: &[Dim]| {
        let x = cx.input(t, shape);
        let mut perm: Vec<usize> = (0..shape.len()).collect();
        let by = 1 + cx.rng.below(shape.len() - 1);
        perm.rotate_left(by);
        cx.view(Prim::Transpose { perm }, &[x])
    };
    vec![
        form("transpose", move |cx, t| {
            let shape = cx.shape(2);
            rotated(cx, t, &shape)
        }),
        // long enough for tiles
        form("transpose of long axes", move |cx, t| {
            let long = |cx: &mut Cx| Dim::from(*cx.rng.pick(&[16, 17, 36, 65, 72]));
            let shape = cx.shape_of(2, long);
            rotated(cx, t, &shape)
        }),
    ]
}

fn broadcasts() -> Vec<Form> {
    vec![form("broadcast", |cx, t| {
        let from = [cx.extent(), Dim::from(1)];
        let x = cx.input(t, &from);
        let shape = vec![from[0].clone(), Dim::from(3), Dim::from(5)];
        let dims = vec![0, 1 + cx.rng.below(2)];
        cx.view(Prim::Broadcast { shape, dims }, &[x])
    })]
}

fn slices() -> Vec<Form> {
    let one = |backwards: bool| {
        let name = if backwards { "slice backwards" } else { "slice" };
        form(name, move |cx: &mut Cx, t| {
            let rank = 1 + cx.rng.below(3);
            let shape = cx.shape_of(rank, Cx::positive);
            let x = cx.input(t, &shape);
            let (mut start, mut size, mut step) = (Vec::new(), Vec::new(), Vec::new());
            for n in &shape {
                let by = cx.rng.range(1, 3);
                let skip = cx.rng.range(0, n.bounds(cx.b.symbols()).0);
                let left = n - &Dim::from(skip);
                size.push(left.ceil_div(&by.into(), cx.b.symbols()));
                start.push(if backwards { n - &Dim::from(1) } else { skip.into() });
                step.push(if backwards { -by } else { by });
            }
            cx.view(Prim::Slice { start, size, step }, &[x])
        })
    };
    vec![one(false), one(true)]
}

fn pads() -> Vec<Form> {
    let one = |&mode: &PadMode| {
        form(format!("pad {}", mode.name()), move |cx: &mut Cx, t| {
            let constant = mode == PadMode::Constant;
            let rank = 1 + cx.rng.below(2);
            let shape = cx.shape_of(rank, if constant { Cx::extent } else { Cx::positive });
            let mut operands = vec![cx.input(t, &shape)];
            if constant {
                operands.push(cx.input(t, &[]));
            }
            let (mut lo, mut hi, mut interior) = (Vec::new(), Vec::new(), Vec::new());
            for n in &shape {
                // of one element one can be cropped
                let crop = n.bounds(cx.b.symbols()).0.min(1);
                let least = if cx.rng.one_in(2) { [-crop, 0] } else { [0, -crop] };
                lo.push(Dim::from(cx.rng.range(least[0], 3)));
                hi.push(Dim::from(cx.rng.range(least[1], 3)));
                interior.push(if constant { cx.rng.range(0, 2) } else { 0 });
            }
            cx.view(Prim::Pad { lo, hi, interior, mode }, &operands)
        })
    };
    PadMode::ALL.iter().map(one).collect()
}

fn concats() -> Vec<Form> {
    vec![form("concat", |cx, t| {
        let shape = cx.shape(1);
        let axis = cx.rng.below(shape.len());
        let mut parts = Vec::new();
        for _ in 0..2 + cx.rng.below(2) {
            let mut shape = shape.clone();
            shape[axis] = cx.extent();
            parts.push(cx.input(t, &shape));
        }
        cx.view(Prim::Concat { axis }, &parts)
    })]
}

fn update_slices() -> Vec<Form> {
    vec![form("update_slice", |cx, t| {
        let rank = 1 + cx.rng.below(2);
        let shape = cx.shape_of(rank, Cx::positive);
        let x = cx.input(t, &shape);
        let start: Vec<Dim> =
            shape.iter().map(|n| cx.rng.range(0, n.bounds(cx.b.symbols()).0 - 1).into()).collect();
        let update: Vec<Dim> =
            shape.iter().zip(&start).map(|(n, s)| (n - s).as_const().unwrap_or(1).into()).collect();
        let u = cx.input(t, &update);
        cx.prim(Prim::UpdateSlice { start }, &[x, u])
    })]
}

// ---- indexed --------------------------------------------------------------------------------------------------

fn gathers() -> Vec<Form> {
    let one = |of: DType| {
        form(format!("gather by {of}"), move |cx: &mut Cx, t| {
            let (shape, axis) = cx.with_axis();
            let x = cx.input(t, &shape);
            let at: Vec<Dim> = (0..cx.rng.below(3)).map(|_| cx.extent()).collect();
            let at = cx.input_of(Values::Below(shape[axis].clone()), of, &at);
            cx.prim(Prim::Gather { axis }, &[x, at])
        })
    };
    [DType::I32, DType::I64].map(one).into()
}

fn scatters() -> Vec<Form> {
    let one = |(combine, of): (Combine, DType)| {
        form(format!("scatter {} by {of}", combine.name()), move |cx: &mut Cx, t| {
            let mut shape = cx.shape(1);
            shape[0] = cx.positive();
            let base = cx.terms(t, &shape);
            let n = cx.extent();
            let at = cx.input_of(Values::Below(shape[0].clone()), of, std::slice::from_ref(&n));
            shape[0] = n;
            let updates = cx.terms(t, &shape);
            cx.prim(Prim::Scatter { combine }, &[base, at, updates])
        })
    };
    let all = Combine::ALL.iter().flat_map(|c| [(*c, DType::I32), (*c, DType::I64)]);
    all.map(one).collect()
}

// ---- reductions -----------------------------------------------------------------------------------------------

fn reductions() -> Vec<Form> {
    let one = |&monoid: &Monoid| {
        form(format!("reduce {}", monoid.name()), move |cx: &mut Cx, t| {
            let shape = cx.shape(1);
            let x = cx.terms(t, &shape);
            let mut axes: Vec<usize> = (0..shape.len()).filter(|_| cx.rng.one_in(2)).collect();
            if axes.is_empty() {
                axes.push(cx.rng.below(shape.len()));
            }
            cx.prim(Prim::Reduce { monoid, axes }, &[x])
        })
    };
    Monoid::ALL.iter().map(one).collect()
}

fn arg_reductions() -> Vec<Form> {
    let one = |(max, last): (bool, bool)| {
        let name = format!("arg_{} {}", if max { "max" } else { "min" }, if last { "last" } else { "first" });
        form(name, move |cx: &mut Cx, t| {
            let (shape, axis) = cx.with_axis();
            let x = cx.input(t, &shape);
            cx.prim(Prim::ArgReduce { max, axis, last }, &[x])
        })
    };
    [(true, false), (true, true), (false, false), (false, true)].map(one).into()
}

fn windows() -> Vec<Form> {
    let one = |&monoid: &Monoid| {
        form(format!("window {}", monoid.name()), move |cx: &mut Cx, t| {
            let mut shape = vec![cx.extent()];
            let rank = 1 + cx.rng.below(2);
            shape.extend(cx.shape_of(rank, Cx::positive));
            let x = cx.terms(t, &shape);
            let size: Vec<i64> = (0..rank).map(|_| cx.rng.range(1, 3)).collect();
            let window = cx.windows(&shape[1..], &size);
            cx.prim(Prim::WindowReduce { monoid, size, window }, &[x])
        })
    };
    Monoid::ALL.iter().map(one).collect()
}

fn scans() -> Vec<Form> {
    let one = |&monoid: &Monoid| {
        form(format!("cumulative {}", monoid.name()), move |cx: &mut Cx, t| {
            let shape = cx.shape(1);
            let x = cx.terms(t, &shape);
            let axis = cx.rng.below(shape.len());
            let (exclusive, reverse) = (cx.rng.one_in(2), cx.rng.one_in(2));
            cx.prim(Prim::Cumulative { monoid, axis, exclusive, reverse }, &[x])
        })
    };
    Monoid::ALL.iter().map(one).collect()
}

// ---- contractions ---------------------------------------------------------------------------------------------

/// Accumulators by name, and the second operand of the first one's type or of the other sign.
fn products(name: &str, build: fn(&mut Cx, DType, DType, DType) -> Result<Vec<V>>) -> Vec<Form> {
    let mut forms = Vec::new();
    for acc in DType::ALL {
        forms.push(form(format!("{name} into {acc}"), move |cx: &mut Cx, t| build(cx, t, t, acc)));
        for (a, b) in [(DType::I8, DType::U8), (DType::U8, DType::I8)] {
            let mixed = move |cx: &mut Cx, t| build(cx, t, b, acc);
            forms.push(fixed(format!("{name} with {b} into {acc}"), a, mixed));
        }
    }
    forms
}

fn contractions() -> Vec<Form> {
    products("contract", |cx, t, u, acc| {
        let [batch, m, k, n] = [(); 4].map(|()| cx.extent());
        let batched = cx.rng.one_in(2);
        let (mut a, mut b) = (vec![m, k.clone()], vec![k, n]);
        if batched {
            a.insert(0, batch.clone());
            b.insert(0, batch);
        }
        let (last_a, mut at_b) = (a.len() - 1, b.len() - 2);
        if cx.rng.one_in(2) {
            b.swap(at_b, at_b + 1);
            at_b += 1;
        }
        let (x, y) = (cx.terms(t, &a), cx.terms(u, &b));
        let batch = if batched { vec![(0, 0)] } else { Vec::new() };
        cx.prim(Prim::Contract { batch, reduce: vec![(last_a, at_b)], acc }, &[x, y])
    })
}

fn convolutions() -> Vec<Form> {
    products("convolve", |cx, t, u, acc| {
        let spatial = 1 + cx.rng.below(2);
        let groups = 1 + cx.rng.below(2);
        let (ci, co) = (cx.rng.range(1, 3), cx.rng.range(1, 3));
        let mut shape = vec![cx.extent(), Dim::from(ci * groups as i64)];
        shape.extend(cx.shape_of(spatial, Cx::positive));
        let size: Vec<i64> = (0..spatial).map(|_| cx.rng.range(1, 3)).collect();
        let window = cx.windows(&shape[2..], &size);
        let mut kernel = vec![Dim::from(co * groups as i64), Dim::from(ci)];
        kernel.extend(size.into_iter().map(Dim::from));
        // what is not finite may spread
        let (x, w) = (cx.input_of(Values::Finite, t, &shape), cx.input_of(Values::Finite, u, &kernel));
        cx.prim(Prim::Convolve { window, groups, acc }, &[x, w])
    })
}

// ---- selection ------------------------------------------------------------------------------------------------

fn sorts() -> Vec<Form> {
    let one = |descending: bool| {
        form(if descending { "sort descending" } else { "sort" }, move |cx: &mut Cx, t| {
            let shape = cx.shape(1);
            let axis = cx.rng.below(shape.len());
            let all = [cx.input(t, &shape), cx.input(DType::F32, &shape), cx.input(t, &shape)];
            let many = 1 + cx.rng.below(3);
            cx.prim(Prim::Sort { axis, descending }, &all[..many])
        })
    };
    vec![one(false), one(true)]
}

fn top_ks() -> Vec<Form> {
    let one = |largest: bool| {
        form(if largest { "top_k" } else { "top_k smallest" }, move |cx: &mut Cx, t| {
            let (shape, axis) = cx.with_axis();
            let x = cx.input(t, &shape);
            let k = match cx.rng.one_in(3) {
                true => shape[axis].clone(),
                false => cx.rng.range(1, shape[axis].bounds(cx.b.symbols()).0).into(),
            };
            cx.prim(Prim::TopK { axis, k, largest }, &[x])
        })
    };
    vec![one(true), one(false)]
}

fn compactions() -> Vec<Form> {
    vec![form("compact", |cx, t| {
        let n = cx.extent();
        let x = cx.input(t, std::slice::from_ref(&n));
        let most = n.bounds(cx.b.symbols()).1;
        let sym = cx.b.value_symbol("count", 0, most, most);
        cx.prim(Prim::Compact { sym }, &[x])
    })]
}

// ---- control --------------------------------------------------------------------------------------------------

fn branches() -> Vec<Form> {
    vec![form("if", |cx, t| {
        let (shape, axis) = cx.with_axis();
        let (c, x) = (cx.input(DType::Bool, &[]), cx.input(t, &shape));
        let y = cx.input(t, &shape);
        let turned = move |b: &mut Builder, v| Ok::<_, IrError>(vec![b.reverse(v, axis)?]);
        cx.b.if_(c, |b| turned(b, x), |b| turned(b, y))
    })]
}

fn loops() -> Vec<Form> {
    vec![form("loop", |cx, t| {
        let (shape, axis) = cx.with_axis();
        let x = cx.input(t, &shape);
        let trip = cx.input_of(Values::Below(4.into()), DType::I64, &[]);
        cx.b.loop_::<IrError>(Some(trip), None, &[x], |b, _, state| {
            let turned = b.reverse(state[0], axis)?;
            let cond = b.scalar(DType::Bool, 1.0)?;
            Ok(LoopStep { cond, carried: vec![turned], scans: vec![turned] })
        })
    })]
}

fn calls() -> Vec<Form> {
    vec![form("call", |cx, t| {
        let (shape, axis) = cx.with_axis();
        let x = cx.input(t, &shape);
        let out =
            cx.b.call::<IrError>("turned", Vec::new(), &[x], |b, args| Ok(vec![b.reverse(args[0], axis)?]))?;
        Ok(vec![cx.read(out[0])])
    })]
}

fn assertions() -> Vec<Form> {
    vec![host(
        "assert",
        DType::Bool,
        "the host reads the condition, whichever kernel computes it",
        |cx, t| {
            let c = cx.input_of(Values::True, t, &[]);
            cx.prim(Prim::Assert { message: "no".into() }, &[c])?;
            Ok(vec![c])
        },
    )]
}

fn host_functions() -> Vec<Form> {
    let suppress = host("non_max_suppression", DType::F32, "a function of the host", |cx, t| {
        let boxes = cx.input(t, &[1.into(), 5.into(), 4.into()]);
        let scores = cx.input(t, &[1.into(), 2.into(), 5.into()]);
        let most = cx.input_of(Values::Below(3.into()), DType::I64, &[]);
        let limits = [cx.input(t, &[]), cx.input(t, &[])];
        let func = HostFn::NonMaxSuppression { center_point_box: false };
        cx.b.host(func, &[boxes, scores, most, limits[0], limits[1]], &[(0, 10)])
    });
    let decode = host("decode_image", DType::U8, "a function of the host", |cx, t| {
        let file = cx.input(t, &[9.into()]);
        cx.b.host(HostFn::DecodeImage { pixels: Pixels::Rgb }, &[file], &[(0, 100), (0, 100)])
    });
    vec![suppress, decode]
}

// ---- values ---------------------------------------------------------------------------------------------------

/// Numbers with which every sum is the same in any order.
const IN_SUMS: [f64; 4] = [-0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];

/// The largest and smallest numbers of a wide float type: normal and subnormal.
fn extremes(t: DType) -> [f64; 3] {
    match t {
        DType::F64 => [f64::MAX, f64::MIN_POSITIVE, 5e-324],
        DType::F16 => [65504.0, 6.103_515_625e-5, 5.960_464_477_539_063e-8],
        DType::BF16 => [3.389_531_389_251_535_5e38, f64::from(f32::MIN_POSITIVE), 9.183_549_615_799_121e-41],
        _ => [f64::from(f32::MAX), f64::from(f32::MIN_POSITIVE), f64::from(f32::from_bits(1))],
    }
}

fn bytes(t: DType, x: f64) -> Option<Vec<u8>> {
    Some(match t {
        DType::F64 => x.to_le_bytes().to_vec(),
        DType::F32 => (x as f32).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f64(x).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f64(x).to_le_bytes().to_vec(),
        _ => return None,
    })
}

impl Values {
    /// A tensor of such elements; one in six of them special where that is asked for.
    pub fn tensor(
        &self,
        rng: &mut Rng,
        t: DType,
        shape: Vec<usize>,
        sizes: &[(Sym, i64)],
        special: bool,
    ) -> Tensor {
        let value = |s: Sym| sizes.iter().find(|x| x.0 == s).map(|x| x.1);
        let elems: usize = shape.iter().product();
        let wide = t.bytes();
        match self {
            Values::True => Tensor::new(t, shape, vec![1; elems]),
            Values::Below(limit) => {
                let most = limit.eval_syms(&value).unwrap().max(1) - 1;
                let one = |_| rng.range(0, most).to_le_bytes()[..wide].to_vec();
                Tensor::new(t, shape, (0..elems).flat_map(one).collect())
            }
            Values::Finite => {
                let mut x = random_tensor(rng, t, shape);
                if t.is_float() && t.bytes() == 1 {
                    // small exponents: in none of these types a NaN
                    let mask = if t == DType::F4E2M1 { 7 } else { 0x3f };
                    x.data.iter_mut().for_each(|b| *b &= mask);
                }
                x
            }
            Values::Any | Values::Terms => {
                let mut x = random_tensor(rng, t, shape);
                let mut numbers = IN_SUMS.to_vec();
                if matches!(self, Values::Any) {
                    numbers.extend(extremes(t));
                    numbers.extend(extremes(t).map(|x| -x));
                }
                for i in (0..elems).filter(|_| special) {
                    if !rng.one_in(6) {
                        continue;
                    }
                    if let Some(b) = bytes(t, *rng.pick(&numbers)) {
                        x.data[i * wide..][..wide].copy_from_slice(&b);
                    }
                }
                x
            }
        }
    }
}
