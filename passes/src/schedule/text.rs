//! The text form of schedules, one line:
//!
//! ```text
//! parallel n by 1, oc by 32; serial ow by 7; rows ow 7 exact; cols oc 32 mask panel; inner kh, kw_ic
//! ```
//!
//! `block 256 rows oh, ow 128; steps kh, kw, ic 16` is the tile of a block of GPU threads; `flat` behind it runs through all
//! steps as one. `across 256 rows w 64`: a tile of rows x columns of a block goes through shared memory, read along the rows' axis. `warps 8`: the warps of a block share the columns of each iteration. `matrix kw_ic 16 rows 4`: sums are those of
//! matrix registers, 16 words of `kw_ic` at a time, and leave them 4 rows at a time. `ahead n` asks for the next panel of packed weights, n elements at each step.
//! `inner` clauses follow in the order of the kernel's statements; `scalar "reason"` says why nothing lies
//! in vector lanes. An axis whose name is not unique is written `name.number`.

use super::{AcrossTile, BlockTile, ColTile, Edge, InnerSpec, LoopSpec, MatrixTile, RowTile, Schedule};
use crate::error::{PassError, Result};
use crate::lower::space::for_each_axis;
use ir::Var;
use ir::kernel::Kernel;
use std::fmt::Write;

/// Names of the kernel's axes.
fn names(k: &Kernel) -> Vec<(String, Var)> {
    let mut vars: Vec<Var> = Vec::new();
    for_each_axis(k, &mut |a| {
        if !vars.contains(&a.var) {
            vars.push(a.var);
        }
    });
    let plain = |v: &Var| k.vars.get(v.0 as usize).cloned().unwrap_or_default();
    let unique = |n: &str| !n.is_empty() && vars.iter().filter(|v| plain(v) == n).count() == 1;
    vars.iter()
        .map(|v| match plain(v) {
            n if unique(&n) && !n.contains([' ', ',', ';', '.']) => (n, *v),
            n => (format!("{}.{}", n.replace([' ', ',', ';', '.'], "_"), v.0), *v),
        })
        .collect()
}

impl Schedule {
    /// The text form, with the names of `kernel`'s axes.
    pub fn text(&self, kernel: &Kernel) -> String {
        let names = names(kernel);
        let name = |v: Var| {
            let known = names.iter().find(|(_, w)| *w == v).map(|(n, _)| n.clone());
            known.unwrap_or_else(|| format!("?.{}", v.0))
        };
        let mut clauses = Vec::new();
        for (word, parallel) in [("parallel", true), ("serial", false)] {
            let loops: Vec<String> = self
                .loops
                .iter()
                .filter(|l| l.parallel == parallel)
                .map(|l| format!("{} by {}", name(l.axis), l.step))
                .collect();
            if !loops.is_empty() {
                clauses.push(format!("{word} {}", loops.join(", ")));
            }
        }
        if let Some(r) = self.rows {
            let edge = if r.overlap { "overlap" } else { "exact" };
            clauses.push(format!("rows {} {} {edge}", name(r.axis), r.size));
        }
        if let Some(c) = self.cols {
            let edge = match c.edge {
                Edge::Exact => "exact".to_string(),
                Edge::Mask => "mask".to_string(),
                Edge::Peel => format!("peel {}", c.tail),
            };
            let panel = if c.panel { " panel" } else { "" };
            clauses.push(format!("cols {} {} {edge}{panel}", name(c.axis), c.size));
        }
        if let Some(b) = &self.block {
            let list = |vars: &[Var]| vars.iter().map(|v| name(*v)).collect::<Vec<_>>().join(", ");
            let flat = if b.flat { " flat" } else { "" };
            let (rows, steps) = (list(&b.rows), list(&b.steps));
            clauses.push(format!("block {} rows {rows} {}", b.threads, b.row_size));
            clauses.push(format!("steps {steps} {}{flat}", b.depth));
        }
        if let Some(a) = self.across {
            clauses.push(format!("across {} rows {} {}", a.threads, name(a.rows), a.row_size));
        }
        if self.warps > 0 {
            clauses.push(format!("warps {}", self.warps));
        }
        for i in &self.inner {
            let order: Vec<String> = i.order.iter().map(|v| name(*v)).collect();
            let mut text = format!("inner {}", order.join(", "));
            if let Some((v, size)) = i.cols {
                let _ = write!(text, " cols {} {size} tail {}", name(v), i.tail);
            }
            if i.unroll > 0 {
                let _ = write!(text, " unroll {}", i.unroll);
            }
            clauses.push(text);
        }
        if let Some(m) = self.matrix {
            clauses.push(format!("matrix {} {} rows {}", name(m.axis), m.words, m.rows));
        }
        if self.ahead > 0 {
            clauses.push(format!("ahead {}", self.ahead));
        }
        if let Some(reason) = &self.scalar {
            clauses.push(format!("scalar \"{}\"", reason.replace(['"', ';'], "'")));
        }
        clauses.join("; ")
    }

    /// Parses [`Schedule::text`].
    ///
    /// # Errors
    /// Where the text has another form or names an axis that `kernel` does not have.
    pub fn parse(text: &str, kernel: &Kernel) -> Result<Schedule> {
        let names = names(kernel);
        let fail = |what: &str| PassError::internal("schedule", format!("cannot parse `{what}`"));
        let axis = |n: &str| names.iter().find(|(m, _)| m == n).map(|(_, v)| *v).ok_or_else(|| fail(n));
        let number = |n: Option<&str>| n.and_then(|n| n.parse::<u32>().ok());
        let mut s = Schedule::default();
        for clause in text.split(';').map(str::trim).filter(|c| !c.is_empty()) {
            let (word, rest) = clause.split_once(' ').unwrap_or((clause, ""));
            let words: Vec<&str> = rest.split_whitespace().collect();
            match word {
                "parallel" | "serial" => {
                    for l in rest.split(',') {
                        let Some((n, step)) = l.trim().split_once(" by ") else { return Err(fail(clause)) };
                        let step = step.trim().parse().map_err(|_| fail(clause))?;
                        s.loops.push(LoopSpec { axis: axis(n)?, step, parallel: word == "parallel" });
                    }
                }
                "rows" => {
                    let [n, size, edge] = words.as_slice() else { return Err(fail(clause)) };
                    let size = size.parse().map_err(|_| fail(clause))?;
                    s.rows = Some(RowTile { axis: axis(n)?, size, overlap: *edge == "overlap" });
                }
                "cols" => {
                    let [n, size, edge, more @ ..] = words.as_slice() else { return Err(fail(clause)) };
                    let size: u32 = size.parse().map_err(|_| fail(clause))?;
                    let (edge, tail) = match *edge {
                        "exact" => (Edge::Exact, size),
                        "mask" => (Edge::Mask, size),
                        "peel" => (Edge::Peel, number(more.first().copied()).ok_or_else(|| fail(clause))?),
                        _ => return Err(fail(clause)),
                    };
                    let panel = more.contains(&"panel");
                    s.cols = Some(ColTile { axis: axis(n)?, size, edge, tail, panel });
                }
                "inner" => {
                    let mut spec = InnerSpec::default();
                    let cut = words.iter().position(|w| *w == "cols" || *w == "unroll");
                    let (order, mut more) = words.split_at(cut.unwrap_or(words.len()));
                    for n in order {
                        spec.order.push(axis(n.trim_end_matches(','))?);
                    }
                    if let ["cols", n, size, "tail", tail, after @ ..] = more {
                        let size = number(Some(size)).ok_or_else(|| fail(clause))?;
                        spec.cols = Some((axis(n)?, size));
                        spec.tail = number(Some(tail)).ok_or_else(|| fail(clause))?;
                        more = after;
                    }
                    if let ["unroll", n] = more {
                        spec.unroll = number(Some(n)).ok_or_else(|| fail(clause))?;
                    }
                    s.inner.push(spec);
                }
                "block" => {
                    let [threads, "rows", axes @ .., size] = words.as_slice() else {
                        return Err(fail(clause));
                    };
                    let rows = axes.iter().map(|n| axis(n.trim_end_matches(','))).collect::<Result<_>>()?;
                    s.block = Some(BlockTile {
                        threads: number(Some(threads)).ok_or_else(|| fail(clause))?,
                        rows,
                        row_size: number(Some(size)).ok_or_else(|| fail(clause))?,
                        steps: Vec::new(),
                        depth: 0,
                        flat: false,
                    });
                }
                "steps" => {
                    let Some(block) = &mut s.block else { return Err(fail(clause)) };
                    block.flat = words.last() == Some(&"flat");
                    let [axes @ .., depth] = &words[..words.len() - usize::from(block.flat)] else {
                        return Err(fail(clause));
                    };
                    block.steps =
                        axes.iter().map(|n| axis(n.trim_end_matches(','))).collect::<Result<_>>()?;
                    block.depth = number(Some(depth)).ok_or_else(|| fail(clause))?;
                }
                "across" => {
                    let [threads, "rows", rows, size] = words.as_slice() else { return Err(fail(clause)) };
                    s.across = Some(AcrossTile {
                        threads: number(Some(threads)).ok_or_else(|| fail(clause))?,
                        rows: axis(rows)?,
                        row_size: number(Some(size)).ok_or_else(|| fail(clause))?,
                    });
                }
                "matrix" => {
                    let [n, size, "rows", rows] = words.as_slice() else { return Err(fail(clause)) };
                    let [size, rows] = [size, rows].map(|x| number(Some(x)).ok_or_else(|| fail(clause)));
                    s.matrix = Some(MatrixTile { axis: axis(n)?, words: size?, rows: rows? });
                }
                "warps" => s.warps = number(Some(rest)).ok_or_else(|| fail(clause))?,
                "ahead" => s.ahead = number(Some(rest)).ok_or_else(|| fail(clause))?,
                "scalar" => s.scalar = Some(rest.trim_matches('"').to_string()),
                _ => return Err(fail(clause)),
            }
        }
        Ok(s)
    }
}
