//! Reductions, windows and contractions.

use super::movement::Padded;
use super::writer::{Attr, Writer};
use super::{Result, Site};
use ir::prim::WindowDim;
use ir::{DType, Dim, Monoid, Tensor};

/// The function that joins two elements, and the reduction of an axis.
fn operators(monoid: Monoid, dtype: DType) -> (&'static str, &'static str) {
    match (monoid, dtype) {
        (Monoid::Sum, _) => ("Add", "ReduceSum"),
        (Monoid::Prod, _) => ("Mul", "ReduceProd"),
        (Monoid::Max, DType::Bool) => ("Or", "ReduceMax"),
        (Monoid::Min, DType::Bool) => ("And", "ReduceMin"),
        (Monoid::Max, _) => ("Max", "ReduceMax"),
        (Monoid::Min, _) => ("Min", "ReduceMin"),
    }
}

impl Writer<'_> {
    fn identity(&mut self, monoid: Monoid, dtype: DType) -> String {
        let t = match monoid.identity(dtype) {
            ir::dtype::Scalar::Int(i) => {
                Tensor::new(dtype, Vec::new(), i.to_le_bytes()[..dtype.bytes()].to_vec())
            }
            ir::dtype::Scalar::Float(x) => super::tensor::scalar(dtype, x),
        };
        self.small(&t)
    }

    pub fn reduce(&mut self, x: &str, monoid: Monoid, axes: &[usize]) -> String {
        if axes.is_empty() {
            return self.node("Identity", &[x]);
        }
        let op = operators(monoid, DType::F32).1;
        let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        let axes = self.ints(&axes);
        self.node_attrs(op, &[x, &axes], &[("keepdims", Attr::Int(0))])
    }

    pub fn arg_reduce(&mut self, x: &str, max: bool, axis: usize, last: bool) -> String {
        let attrs = [
            ("axis", Attr::Int(axis as i64)),
            ("keepdims", Attr::Int(0)),
            ("select_last_index", Attr::Int(last.into())),
        ];
        self.node_attrs(if max { "ArgMax" } else { "ArgMin" }, &[x], &attrs)
    }

    /// MaxPool where it is one; else axis by axis, the shifted slices joined.
    pub fn window_reduce(
        &mut self,
        site: &Site,
        monoid: Monoid,
        size: &[i64],
        window: &[WindowDim],
    ) -> Result<String> {
        let (ty, dtype) = (site.types[0], site.dtype());
        let lead = ty.rank() - size.len();
        let fits = |(w, &k): (&WindowDim, &i64)| {
            let pad = |d: &Dim| d.as_const().is_some_and(|p| (0..k).contains(&p));
            w.base_dilation == 1 && pad(&w.pad_lo) && pad(&w.pad_hi)
        };
        let float = matches!(dtype, DType::F32 | DType::F64);
        if monoid == Monoid::Max && float && lead == 2 && window.iter().zip(size).all(fits) {
            return Ok(self.node_attrs("MaxPool", &[site.x()], &window_attrs(size, window, true)));
        }
        let fill = self.identity(monoid, dtype);
        let mut x = self.spread(site.x(), &fill, &ty.shape, lead, window)?;
        let join = operators(monoid, dtype).0;
        for (i, (&k, w)) in size.iter().zip(window).enumerate() {
            let axis = lead + i;
            let out = &site.result().shape[axis];
            let (at, by) = (self.ints(&[axis as i64]), self.ints(&[w.stride]));
            let mut all: Option<String> = None;
            for j in 0..k {
                let start = Dim::from(j * w.dilation);
                let end = &start + &(out * &Dim::from(w.stride));
                let end = if out.is_const(0) { start.clone() } else { end };
                let (start, end) = (self.size(&start)?, self.size(&end)?);
                let part = self.node("Slice", &[&x, &start, &end, &at, &by]);
                all = Some(match all {
                    Some(a) => self.node(join, &[&a, &part]),
                    None => part,
                });
            }
            x = all.unwrap_or(x);
        }
        Ok(x)
    }

    /// The trailing dims with base dilation and padding made.
    fn spread(
        &mut self,
        x: &str,
        fill: &str,
        shape: &[Dim],
        lead: usize,
        window: &[WindowDim],
    ) -> Result<String> {
        let zeros = vec![Dim::from(0); lead];
        let lo = [zeros.clone(), window.iter().map(|w| w.pad_lo.clone()).collect()].concat();
        let hi = [zeros, window.iter().map(|w| w.pad_hi.clone()).collect()].concat();
        let mut interior = vec![0; lead];
        interior.extend(window.iter().map(|w| w.base_dilation - 1));
        self.pad(&Padded { name: x, shape }, fill, &lo, &hi, &interior)
    }

    /// CumSum; the other monoids reduce a table of prefixes, whose entries beyond them are the identity.
    pub fn cumulative(
        &mut self,
        site: &Site,
        monoid: Monoid,
        axis: usize,
        exclusive: bool,
        reverse: bool,
    ) -> Result<String> {
        let (ty, dtype) = (site.types[0], site.dtype());
        if monoid == Monoid::Sum {
            let at = self.scalar(DType::I64, axis as f64);
            let attrs = [("exclusive", Attr::Int(exclusive.into())), ("reverse", Attr::Int(reverse.into()))];
            return Ok(self.node_attrs("CumSum", &[site.x(), &at], &attrs));
        }
        let n = self.range(&ty.shape[axis])?;
        let (first, last) = (self.ints(&[0]), self.ints(&[1]));
        // rows: places of the result; columns: elements that count for it
        let (rows, cols) = (self.node("Unsqueeze", &[&n, &last]), self.node("Unsqueeze", &[&n, &first]));
        let counts = match (exclusive, reverse) {
            (false, false) => "LessOrEqual",
            (true, false) => "Less",
            (false, true) => "GreaterOrEqual",
            (true, true) => "Greater",
        };
        let mask = self.node(counts, &[&cols, &rows]);
        // the axis is moved to the end: [.., 1, n] against [n, n]
        let rank = ty.rank();
        let mut perm: Vec<usize> = (0..rank).filter(|&i| i != axis).collect();
        perm.push(axis);
        let moved = self.transpose(site.x(), &perm);
        let before = self.ints(&[-2]);
        let table = self.node("Unsqueeze", &[&moved, &before]);
        let identity = self.identity(monoid, dtype);
        let table = self.node("Where", &[&mask, &table, &identity]);
        let end = self.ints(&[-1]);
        let op = operators(monoid, dtype).1;
        let y = self.node_attrs(op, &[&table, &end], &[("keepdims", Attr::Int(0))]);
        let mut back = vec![0; rank];
        for (to, &from) in perm.iter().enumerate() {
            back[from] = to;
        }
        Ok(self.transpose(&y, &back))
    }

    pub fn contract(
        &mut self,
        site: &Site,
        batch: &[(usize, usize)],
        reduce: &[(usize, usize)],
        acc: DType,
    ) -> Result<String> {
        let (a, b) = (self.as_type(site, 0, acc), self.as_type(site, 1, acc));
        let (ra, rb) = (site.types[0].rank(), site.types[1].rank());
        let lead = batch.len();
        let in_order = batch.iter().enumerate().all(|(i, p)| *p == (i, i));
        if in_order && ra == lead + 2 && rb == lead + 2 && reduce == [(lead + 1, lead)] {
            return Ok(self.node("MatMul", &[&a, &b]));
        }
        let mut letters = ('a'..='z').chain('A'..='Z');
        let mut of_a: Vec<Option<char>> = vec![None; ra];
        let mut of_b: Vec<Option<char>> = vec![None; rb];
        let mut result = String::new();
        for (pairs, kept) in [(batch, true), (reduce, false)] {
            for &(i, j) in pairs {
                let c = letters.next();
                (of_a[i], of_b[j]) = (c, c);
                if kept {
                    result.extend(c);
                }
            }
        }
        for free in of_a.iter_mut().chain(&mut of_b).filter(|c| c.is_none()) {
            *free = letters.next();
            result.extend(*free);
        }
        if of_a.iter().chain(&of_b).any(Option::is_none) {
            return Err(self.refuse("contract", "has more axes than an equation has letters"));
        }
        let term = |of: &[Option<char>]| of.iter().flatten().collect::<String>();
        let equation = format!("{},{}->{result}", term(&of_a), term(&of_b));
        Ok(self.node_text("Einsum", &[&a, &b], "equation", &equation))
    }

    fn as_type(&mut self, site: &Site, i: usize, to: DType) -> String {
        let name = site.names[i].clone();
        if site.types[i].dtype == to { name } else { self.cast(&name, to) }
    }

    pub fn convolve(
        &mut self,
        site: &Site,
        window: &[WindowDim],
        groups: usize,
        acc: DType,
    ) -> Result<String> {
        let (mut x, w) = (self.as_type(site, 0, acc), self.as_type(site, 1, acc));
        let kernel: Option<Vec<i64>> = site.types[1].shape[2..].iter().map(Dim::as_const).collect();
        let plain = |w: &WindowDim| {
            let pad = |d: &Dim| d.as_const().is_some_and(|p| p >= 0);
            w.base_dilation == 1 && pad(&w.pad_lo) && pad(&w.pad_hi)
        };
        let mut window = window.to_vec();
        if !window.iter().all(plain) {
            let zero = self.small(&Tensor::zeros(acc, Vec::new()));
            x = self.spread(&x, &zero, &site.types[0].shape, 2, &window)?;
            for w in &mut window {
                *w = WindowDim { stride: w.stride, dilation: w.dilation, ..WindowDim::unit() };
            }
        }
        let mut attrs = window_attrs(&kernel.clone().unwrap_or_default(), &window, kernel.is_some());
        attrs.push(("group", Attr::Int(groups as i64)));
        Ok(self.node_attrs("Conv", &[&x, &w], &attrs))
    }
}

fn window_attrs(size: &[i64], window: &[WindowDim], sized: bool) -> Vec<(&'static str, Attr)> {
    let pad = |d: &Dim| d.as_const().unwrap_or(0);
    let mut pads: Vec<i64> = window.iter().map(|w| pad(&w.pad_lo)).collect();
    pads.extend(window.iter().map(|w| pad(&w.pad_hi)));
    let mut attrs = vec![
        ("strides", Attr::Ints(window.iter().map(|w| w.stride).collect())),
        ("dilations", Attr::Ints(window.iter().map(|w| w.dilation).collect())),
        ("pads", Attr::Ints(pads)),
    ];
    if sized {
        attrs.push(("kernel_shape", Attr::Ints(size.to_vec())));
    }
    attrs
}
