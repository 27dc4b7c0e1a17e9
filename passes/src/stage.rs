//! Staging: operands of contractions in the form that the engine reads at full speed.
//!
//! Constants are packed once per program; an operand whose read is no plain affine one with a usable
//! stride is written to a buffer first. Both are ordinary map kernels.

use crate::error::Result;
use crate::host::{Frame, Planned, Scheduler, buffer_bytes};
use crate::kernels::children;
use crate::limits::STAGINGS;
use crate::lower::space::{for_each_axis, for_each_dim};
use crate::schedule::operands::{Need, Operand, operands};
use ir::host::{Buffer, BufferId, Place, Step};
use ir::kernel::{Access, Axis, BufId, Expr, ExprId, Kernel, Stmt};
use ir::{Atom, Dim, Layout, OriginId, Var};
use std::collections::HashMap;

/// Whether the kernel does something else where a size is another one.
fn has_symbols(kernel: &Kernel) -> bool {
    let mut found = false;
    let mut look = |d: &Dim| d.visit_atoms(&mut |a| found |= matches!(a, Atom::Sym(_)));
    for_each_axis(kernel, &mut |a| look(&a.extent));
    for_each_dim(kernel, &mut look);
    found
}

impl Scheduler<'_> {
    /// Gives the operands of `kernel` their layouts, packs and stages what its contraction needs.
    pub(crate) fn stage(
        &mut self,
        f: &mut Frame,
        mut kernel: Kernel,
        mut args: Vec<BufferId>,
        origin: OriginId,
        init: bool,
    ) -> Result<(Kernel, Vec<BufferId>)> {
        for (b, id) in kernel.buffers.iter_mut().zip(&args) {
            let buffer = &self.out.buffers[id.0 as usize];
            b.layout.clone_from(&buffer.layout);
            #[cfg(feature = "planted-faults")]
            if b.access == Access::Read && self.fuel.planted(crate::planted::Fault::Layout) {
                crate::planted::confuse(&mut b.layout);
            }
            b.constant = matches!(buffer.place, Place::Const(_) | Place::Init) && b.access == Access::Read;
        }
        for needed in self.needs(&kernel)? {
            match needed.need {
                Need::Pack(layout) => {
                    let Some(buf) = needed.buf else { continue };
                    if !self.fuel.allow(STAGINGS, origin, || format!("{} packs", kernel.name)) {
                        continue;
                    }
                    let packed = self.packed(args[buf.0 as usize], &layout, origin);
                    args[buf.0 as usize] = packed;
                    kernel.buffers[buf.0 as usize].layout = layout;
                }
                Need::Stage(axes) => {
                    let Some(extents) = extents(&kernel, &axes) else { continue };
                    if !is_reused(&kernel, &axes)
                        || !self.fuel.allow(STAGINGS, origin, || format!("{} stages", kernel.name))
                    {
                        continue;
                    }
                    let (staged, buffer) =
                        self.staged(f, &kernel, &args, needed.factor, extents, origin, init);
                    args.push(buffer);
                    (kernel, args) = without_unused(&replaced(&kernel, needed.factor, staged, &axes), &args);
                    // expressions were renumbered
                    return self.stage(f, kernel, args, origin, init);
                }
                Need::Ready | Need::Halo(_) => {}
            }
        }
        for (buf, layout) in lanes_last(&kernel) {
            if !self.fuel.allow(STAGINGS, origin, || format!("{} packs by lanes", kernel.name)) {
                continue;
            }
            let packed = self.packed(args[buf.0 as usize], &layout, origin);
            args[buf.0 as usize] = packed;
            kernel.buffers[buf.0 as usize].layout = layout;
        }
        Ok((kernel, args))
    }

    /// What the contraction of a kernel needs; equal kernels need the same.
    fn needs(&mut self, kernel: &Kernel) -> Result<Vec<Operand>> {
        if !kernel.stmts.iter().any(|s| matches!(s, Stmt::Reduce { .. })) {
            return Ok(Vec::new());
        }
        let key = crate::host::kernel_key(kernel);
        if let Some(known) = self.needs.get(&key) {
            return Ok(known.clone());
        }
        let needs = operands(kernel, &self.symbols, self.target)?;
        self.needs.insert(key, needs.clone());
        Ok(needs)
    }

    /// A copy of a constant in this layout, made once per program.
    fn packed(&mut self, of: BufferId, layout: &Layout, origin: OriginId) -> BufferId {
        if let Some(&b) = self.packed.get(&(of, layout.clone())) {
            return b;
        }
        let source = self.out.buffers[of.0 as usize].clone();
        let bytes = buffer_bytes(source.dtype, &source.shape, layout, &self.symbols);
        let buffer = self.add_buffer(Buffer {
            name: format!("{}.packed", source.name),
            layout: layout.clone(),
            bytes,
            place: Place::Init,
            value: None,
            ..source.clone()
        });
        self.packed.insert((of, layout.clone()), buffer);
        let mut kernel = Kernel::default();
        kernel.name = "pack".into();
        kernel.origins.push(origin);
        let operand = |name: &str, layout: &Layout, access| ir::kernel::Buffer {
            name: name.into(),
            dtype: source.dtype,
            shape: source.shape.clone(),
            layout: layout.clone(),
            access,
            constant: access == Access::Read,
        };
        let from = kernel.add_buffer(operand("in0", &source.layout, Access::Read));
        let to = kernel.add_buffer(operand("out1", layout, Access::Write));
        let mut index = Vec::new();
        for (d, extent) in source.shape.iter().enumerate() {
            if extent.is_const(1) {
                index.push(Dim::from(0));
                continue;
            }
            let var = kernel.new_var(format!("i{d}"));
            kernel.domain.push(Axis { var, extent: extent.clone() });
            index.push(Dim::from(var));
        }
        let fill = ir::dtype::Scalar::zero(source.dtype);
        let value = kernel.expr(Expr::Read { buf: from, index: index.clone(), guards: Vec::new(), fill });
        kernel.stmts.push(Stmt::store(to, index, value));
        let step = self.call_step(kernel, vec![of, buffer], origin);
        self.out.init.push(step);
        buffer
    }

    /// A kernel that writes the factor as a tensor over `axes`; its operand of the consumer.
    #[allow(clippy::too_many_arguments)]
    fn staged(
        &mut self,
        f: &mut Frame,
        kernel: &Kernel,
        args: &[BufferId],
        factor: ExprId,
        axes: Vec<Axis>,
        origin: OriginId,
        init: bool,
    ) -> (ir::kernel::Buffer, BufferId) {
        let dtype = crate::kernel_exec::dtypes(kernel)[factor.0 as usize];
        let shape: Vec<Dim> = axes.iter().map(|a| a.extent.clone()).collect();
        let index: Vec<Dim> = axes.iter().map(|a| Dim::from(a.var)).collect();
        let layout = Layout::row_major(shape.len());
        let mut producer = kernel.without_body();
        producer.name = format!("stage_{}", kernel.name);
        producer.locals = 0;
        let operand = |access| ir::kernel::Buffer {
            name: "staged".into(),
            dtype,
            shape: shape.clone(),
            layout: layout.clone(),
            access,
            constant: false,
        };
        let to = producer.add_buffer(operand(Access::Write));
        let mut copied = HashMap::new();
        let value = copy(kernel, &mut producer, factor, &mut copied, None);
        producer.domain = axes;
        producer.stmts.push(Stmt::store(to, index, value));
        let bytes = buffer_bytes(dtype, &shape, &layout, &self.symbols);
        let place = if init { Place::Init } else { Self::arena() };
        let buffer = self.add_buffer(Buffer {
            name: "staged".into(),
            dtype,
            shape: shape.clone(),
            layout: layout.clone(),
            bytes,
            place,
            value: None,
        });
        let all: Vec<BufferId> = args.iter().copied().chain([buffer]).collect();
        let (producer, used) = without_unused(&producer, &all);
        // what is made of constants alone is made once
        let fixed = producer.buffers.iter().all(|b| b.constant || b.access != Access::Read)
            && !has_symbols(&producer);
        if fixed {
            self.out.buffers[buffer.0 as usize].place = Place::Init;
        }
        let step = self.call_step(producer, used, origin);
        if fixed || init {
            self.out.init.push(step)
        } else {
            f.steps.push(step)
        }
        (operand(Access::Read), buffer)
    }

    fn add_buffer(&mut self, b: Buffer) -> BufferId {
        self.out.buffers.push(b);
        BufferId(self.out.buffers.len() as u32 - 1)
    }
}

/// Constants of reductions that are no contractions (depthwise weights), with the dim innermost that the
/// result's contiguous axis runs along: it will lie in vector lanes.
fn lanes_last(kernel: &Kernel) -> Vec<(BufId, Layout)> {
    let mut found = Vec::new();
    if !kernel.stmts.iter().any(|s| matches!(s, Stmt::Reduce { .. })) {
        return found;
    }
    let Some(Stmt::Store { axes, buf, index, .. }) = kernel.stmts.last() else { return found };
    let target = &kernel.buffers[buf.0 as usize];
    let contiguous = target.layout.frags.iter().rev().find(|f| !target.shape[f.dim].is_const(1));
    let Some(lanes) = contiguous.map(|f| &index[f.dim]) else { return found };
    let vars = kernel.domain.iter().chain(axes).map(|a| a.var);
    let lanes: Vec<Var> = vars.filter(|v| lanes.affine_in(*v).is_some_and(|(c, _)| c.is_const(1))).collect();
    for e in kernel.exprs() {
        let Expr::Read { buf, index, .. } = e else { continue };
        let b = &kernel.buffers[buf.0 as usize];
        let wide: Vec<usize> = (0..index.len()).filter(|&d| !b.shape[d].is_const(1)).collect();
        let dim = wide.iter().position(|&d| lanes.iter().any(|v| index[d] == Dim::from(*v)));
        if let Some(at) = dim
            && b.constant
            && b.layout.is_row_major()
            && at + 1 < wide.len()
            && found.iter().all(|(known, _)| known != buf)
        {
            let others = (0..index.len()).filter(|&d| d != wide[at]);
            found.push((*buf, Layout::permuted(&others.chain([wide[at]]).collect::<Vec<_>>())));
        }
    }
    found
}

/// Constants that are computed once and then only packed are computed in packed form.
pub(crate) fn fuse_packing(out: &mut Planned, packed: &HashMap<(BufferId, Layout), BufferId>) {
    let mut uses = vec![0usize; out.buffers.len()];
    count_uses(&out.init, &mut uses);
    count_uses(&out.steps, &mut uses);
    let mut order: Vec<(&(BufferId, Layout), &BufferId)> = packed.iter().collect();
    order.sort_by_key(|(_, to)| **to);
    for ((from, layout), to) in order {
        if out.buffers[from.0 as usize].place != Place::Init {
            continue;
        }
        let operand = |args: &[BufferId]| args.iter().position(|a| a == from);
        let is_pack = |args: &[BufferId]| *args == [*from, *to];
        let writes = |kernel: &Kernel, args: &[BufferId]| {
            let at = operand(args).filter(|_| !is_pack(args));
            at.is_some_and(|i| kernel.buffers[i].access == Access::Write)
        };
        let writers = out.init.iter().filter(|s| match s {
            Step::Call { kernel, args, .. } => writes(&out.kernels[*kernel], args),
            _ => false,
        });
        // somebody else reads it as it is
        if writers.count() + 1 != uses[from.0 as usize] {
            continue;
        }
        out.init.retain(|s| !matches!(s, Step::Call { args, .. } if is_pack(args)));
        for step in &mut out.init {
            let Step::Call { kernel, args, .. } = step else { continue };
            let Some(at) = operand(args) else { continue };
            let mut writer = out.kernels[*kernel].clone();
            writer.buffers[at].layout.clone_from(layout);
            args[at] = *to;
            *kernel = out.kernels.iter().position(|k| *k == writer).unwrap_or_else(|| {
                out.kernels.push(writer);
                out.kernels.len() - 1
            });
        }
        out.buffers[from.0 as usize].bytes = Dim::from(0);
    }
    drop_unused_kernels(out);
}

/// How often steps mention each buffer.
pub(crate) fn count_uses(steps: &[Step], uses: &mut [usize]) {
    for s in steps {
        let mentioned: Vec<BufferId> = match s {
            Step::Call { args, .. } => args.clone(),
            Step::Copy { from, to } | Step::Append { from, to, .. } => vec![*from, *to],
            Step::BindSym { from, .. } => vec![*from],
            Step::Assert { cond, .. } => vec![*cond],
            Step::If { cond, then, otherwise } => {
                count_uses(then, uses);
                count_uses(otherwise, uses);
                vec![*cond]
            }
            Step::Loop { trip, cond, iter, cond_next, body, .. } => {
                count_uses(body, uses);
                vec![*trip, *cond, *iter, *cond_next]
            }
            Step::Host { args, results, .. } => args.iter().chain(results).copied().collect(),
            Step::Layout { .. } | Step::SetSym { .. } | Step::CheckEq { .. } => Vec::new(),
        };
        mentioned.into_iter().for_each(|b| uses[b.0 as usize] += 1);
    }
}

/// Kernels that no step calls any more.
pub(crate) fn drop_unused_kernels(out: &mut Planned) {
    let mut used = vec![false; out.kernels.len()];
    for_each_call(&mut out.init, &mut |k| used[*k] = true);
    for_each_call(&mut out.steps, &mut |k| used[*k] = true);
    let mut number = Vec::with_capacity(used.len());
    let mut next = 0;
    for u in &used {
        number.push(next);
        next += usize::from(*u);
    }
    let mut kept = used.iter();
    out.kernels.retain(|_| kept.next() == Some(&true));
    for_each_call(&mut out.init, &mut |k| *k = number[*k]);
    for_each_call(&mut out.steps, &mut |k| *k = number[*k]);
}

fn for_each_call(steps: &mut [Step], f: &mut dyn FnMut(&mut usize)) {
    for s in steps {
        match s {
            Step::Call { kernel, .. } => f(kernel),
            Step::If { then, otherwise, .. } => {
                for_each_call(then, f);
                for_each_call(otherwise, f);
            }
            Step::Loop { body, .. } => for_each_call(body, f),
            _ => {}
        }
    }
}

/// The axes of these variables.
fn extents(kernel: &Kernel, vars: &[Var]) -> Option<Vec<Axis>> {
    let inner = kernel.stmts.iter().flat_map(|s| match s {
        Stmt::Reduce { axes, .. } => axes.as_slice(),
        _ => &[],
    });
    let all: Vec<&Axis> = kernel.domain.iter().chain(inner).collect();
    vars.iter().map(|v| all.iter().find(|a| a.var == *v).map(|a| (*a).clone())).collect()
}

/// A factor is read more than once: some axis of the domain is not among its own.
fn is_reused(kernel: &Kernel, axes: &[Var]) -> bool {
    kernel.domain.iter().any(|a| !axes.contains(&a.var))
}

/// Copies an expression into another kernel; `replace` stands for one sub-expression.
pub(crate) fn copy(
    from: &Kernel,
    to: &mut Kernel,
    e: ExprId,
    done: &mut HashMap<ExprId, ExprId>,
    replace: Option<&(ExprId, Expr)>,
) -> ExprId {
    if let Some(&known) = done.get(&e) {
        return known;
    }
    let new = match replace {
        Some((old, by)) if *old == e => to.expr(by.clone()),
        _ => {
            for child in children(from.get(e)) {
                copy(from, to, child, done, replace);
            }
            let expr = map_children(from.get(e), &|x| done[&x]);
            to.expr(expr)
        }
    };
    done.insert(e, new);
    new
}

fn map_children(e: &Expr, at: &dyn Fn(ExprId) -> ExprId) -> Expr {
    match e {
        Expr::Const(..) | Expr::Index(_) | Expr::Read { .. } | Expr::Inside(_) | Expr::Local(_) => e.clone(),
        Expr::Unary(op, x) => Expr::Unary(*op, at(*x)),
        Expr::Binary(op, x, y) => Expr::Binary(*op, at(*x), at(*y)),
        Expr::Cmp(op, x, y) => Expr::Cmp(*op, at(*x), at(*y)),
        Expr::Select(c, x, y) => Expr::Select(at(*c), at(*x), at(*y)),
        Expr::Convert(d, m, x) => Expr::Convert(*d, *m, at(*x)),
        Expr::Bitcast(d, x) => Expr::Bitcast(*d, at(*x)),
        Expr::Dot(dot, x, y) => Expr::Dot(*dot, at(*x), at(*y)),
        Expr::Bind { var, value, bound, body } => {
            Expr::Bind { var: *var, value: at(*value), bound: bound.clone(), body: at(*body) }
        }
    }
}

/// Expressions that a statement uses directly.
pub(crate) fn roots(s: &Stmt) -> Vec<ExprId> {
    match s {
        Stmt::Reduce { value, .. }
        | Stmt::ArgReduce { value, .. }
        | Stmt::Store { value, .. }
        | Stmt::Let { value, .. }
        | Stmt::Bind { value, .. } => vec![*value],
        Stmt::Ordered { carries, body, .. } => {
            carries.iter().flat_map(|c| [c.2, c.3]).chain(body.iter().flat_map(roots)).collect()
        }
    }
}

pub(crate) fn map_roots(s: &Stmt, at: &dyn Fn(ExprId) -> ExprId, buf: &dyn Fn(BufId) -> BufId) -> Stmt {
    let mut s = s.clone();
    match &mut s {
        Stmt::Reduce { value, .. }
        | Stmt::ArgReduce { value, .. }
        | Stmt::Let { value, .. }
        | Stmt::Bind { value, .. } => *value = at(*value),
        Stmt::Store { value, buf: b, .. } => {
            *value = at(*value);
            *b = buf(*b);
        }
        Stmt::Ordered { carries, body, .. } => {
            for c in carries {
                (c.2, c.3) = (at(c.2), at(c.3));
            }
            *body = body.iter().map(|s| map_roots(s, at, buf)).collect();
        }
    }
    s
}

/// `kernel` with `factor` read from one more operand, its last one, over `axes`.
fn replaced(kernel: &Kernel, factor: ExprId, staged: ir::kernel::Buffer, axes: &[Var]) -> Kernel {
    let mut new = kernel.without_body();
    new.domain.clone_from(&kernel.domain);
    let fill = ir::dtype::Scalar::zero(staged.dtype);
    let buf = new.add_buffer(staged);
    let index = axes.iter().map(|v| Dim::from(*v)).collect();
    let read = (factor, Expr::Read { buf, index, guards: Vec::new(), fill });
    let mut done = HashMap::new();
    for s in &kernel.stmts {
        for e in roots(s) {
            copy(kernel, &mut new, e, &mut done, Some(&read));
        }
    }
    new.stmts = kernel.stmts.iter().map(|s| map_roots(s, &|e| done[&e], &|b| b)).collect();
    new
}

/// Drops operands that nothing reads or writes.
fn without_unused(kernel: &Kernel, args: &[BufferId]) -> (Kernel, Vec<BufferId>) {
    let mut used = vec![false; kernel.buffers.len()];
    fn stores(s: &Stmt, used: &mut [bool]) {
        match s {
            Stmt::Store { buf, .. } => used[buf.0 as usize] = true,
            Stmt::Ordered { body, .. } => body.iter().for_each(|s| stores(s, used)),
            _ => {}
        }
    }
    kernel.stmts.iter().for_each(|s| stores(s, &mut used));
    for e in kernel.exprs() {
        if let Expr::Read { buf, .. } = e {
            used[buf.0 as usize] = true;
        }
    }
    let mut map = vec![BufId(0); used.len()];
    let mut new = kernel.without_body();
    new.domain.clone_from(&kernel.domain);
    new.buffers.clear();
    let mut kept = Vec::new();
    for (i, b) in kernel.buffers.iter().enumerate().filter(|(i, _)| used[*i]) {
        map[i] = new.add_buffer(b.clone());
        kept.push(args[i]);
    }
    let mut done = HashMap::new();
    for (i, e) in kernel.exprs().iter().enumerate() {
        let mut e = map_children(e, &|x| done[&x]);
        if let Expr::Read { buf, .. } = &mut e {
            *buf = map[buf.0 as usize];
        }
        done.insert(ExprId(i as u32), new.expr(e));
    }
    let at = |e: ExprId| done[&e];
    new.stmts = kernel.stmts.iter().map(|s| map_roots(s, &at, &|b| map[b.0 as usize])).collect();
    (new, kept)
}
