//! Mutations of PTX text: each breaks one instruction in a way that compilers get wrong. A test runs every
//! mutant; what nobody notices is a hole in the checks or in the test (or changes nothing: listed, to be read).

use crate::syntax::ast::{Inst, Operand, Stmt};
use crate::syntax::{SyntaxError, parse};

/// A way to break an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `bar.sync`, `bar.warp.sync`, fences, and waits for asynchronous copies are left out.
    SyncRemoved,
    /// A constant of index arithmetic is one more.
    IndexOffByOne,
    /// An address offset is one element further.
    OffsetShifted,
    /// A stride (factor or shift) is wrong.
    WrongStride,
    /// `@p` becomes `@!p`.
    PredicateInverted,
    /// `<` becomes `<=`, and the like.
    BoundOffByOne,
    /// A shuffle reads from another lane.
    WrongLane,
    /// Another operation: subtraction for addition, minimum for maximum.
    WrongOperation,
    /// Operands of a subtraction, quotient or fused multiply-add change places.
    OperandsSwapped,
    /// Another axis of the thread or block index.
    WrongIndexRegister,
    /// A store is left out.
    StoreRemoved,
    /// A release or acquire becomes relaxed.
    OrderWeakened,
}

/// A broken kernel.
#[derive(Debug, Clone)]
pub struct Mutation {
    pub kind: Kind,
    pub line: u32,
    pub before: String,
    pub after: String,
    /// The whole text.
    pub text: String,
}

/// Every mutation of every instruction of `text`.
pub fn mutations(text: &str) -> Result<Vec<Mutation>, SyntaxError> {
    let module = parse(text)?;
    let mut out = Vec::new();
    for kernel in &module.kernels {
        for stmt in &kernel.body {
            let Stmt::Inst(inst) = stmt else { continue };
            let before = &text[inst.span.clone()];
            for (kind, after) in variants(inst, before) {
                if after != before {
                    let text = format!("{}{after}{}", &text[..inst.span.start], &text[inst.span.end..]);
                    out.push(Mutation { kind, line: inst.line, before: before.to_string(), after, text });
                }
            }
        }
    }
    Ok(out)
}

fn variants(inst: &Inst, text: &str) -> Vec<(Kind, String)> {
    let mut out = Vec::new();
    let base = inst.opcode[0].as_str();
    let has = |m: &str| inst.opcode.iter().any(|o| o == m);
    let modifier = |from: &str, to: &str| {
        let dotted = inst.opcode.join(".");
        text.replacen(&dotted, &dotted.replacen(&format!(".{from}"), &format!(".{to}"), 1), 1)
    };
    let opcode = |to: &str| text.replacen(&format!("{base}."), &format!("{to}."), 1);

    if matches!(base, "bar" | "barrier" | "membar" | "fence") || has("wait_group") || has("wait_all") {
        out.push((Kind::SyncRemoved, String::new()));
    }
    if inst.guard.is_some() {
        let inverted =
            if text.starts_with("@!") { text.replacen("@!", "@", 1) } else { text.replacen('@', "@!", 1) };
        out.push((Kind::PredicateInverted, inverted));
    }
    if base == "st" {
        out.push((Kind::StoreRemoved, String::new()));
    }
    for (from, to) in [("acq_rel", "relaxed"), ("release", "relaxed"), ("acquire", "relaxed")] {
        if has(from) && matches!(base, "ld" | "st" | "atom" | "red") {
            out.push((Kind::OrderWeakened, modifier(from, to)));
        }
    }
    if base == "setp" {
        for (from, to) in [("lt", "le"), ("le", "lt"), ("gt", "ge"), ("ge", "gt"), ("eq", "ne"), ("ne", "eq")]
        {
            if has(from) {
                out.push((Kind::BoundOffByOne, modifier(from, to)));
            }
        }
    }
    let last = inst.operands.last();
    let integer =
        inst.opcode.iter().any(|o| matches!(o.as_str(), "s32" | "u32" | "s64" | "u64" | "b32" | "b64"));
    if let Some(Operand::Int(v)) = last {
        let raise = |d: i64| replace_last_number(text, v.wrapping_add(d));
        match base {
            "add" | "sub" | "and" | "setp" if integer => out.push((Kind::IndexOffByOne, raise(1))),
            "mul" | "shl" | "shr" | "rem" | "div" if integer => out.push((Kind::WrongStride, raise(1))),
            _ => {}
        }
    }
    if matches!(base, "mad")
        && integer
        && let Some(Operand::Int(v)) = inst.operands.get(2)
    {
        let (from, to) = (format!(", {v},"), format!(", {},", v + 1));
        out.push((Kind::WrongStride, text.replacen(&from, &to, 1)));
    }
    for op in &inst.operands {
        if let Operand::Address(Some(name), offset) = op {
            let bytes = inst
                .opcode
                .iter()
                .filter_map(|o| crate::syntax::types::Ty::parse(o))
                .map(|t| t.bytes())
                .next();
            let is_param = has("param");
            if let (Some(b), false) = (bytes, is_param) {
                let from = text.find(&format!("[{name}")).unwrap_or(0);
                if let Some(len) = text[from..].find(']') {
                    let moved = format!("[{name}+{}", offset + i64::from(b));
                    out.push((
                        Kind::OffsetShifted,
                        format!("{}{moved}{}", &text[..from], &text[from + len..]),
                    ));
                }
            }
        }
    }
    if base == "shfl" {
        if let Some(Operand::Int(v)) = inst.operands.get(2) {
            let (from, to) = (format!(", {v},"), format!(", {},", if *v > 1 { v / 2 } else { v + 1 }));
            out.push((Kind::WrongLane, text.replacen(&from, &to, 1)));
        }
        out.push((Kind::WrongLane, modifier("down", "up")));
        // `down` would be as good as `bfly` for the first lane, which may be the only one that goes on
        out.push((Kind::WrongLane, modifier("bfly", "up")));
    }
    match base {
        "add" => out.push((Kind::WrongOperation, opcode("sub"))),
        "sub" => out.push((Kind::WrongOperation, opcode("add"))),
        "max" => out.push((Kind::WrongOperation, opcode("min"))),
        "min" => out.push((Kind::WrongOperation, opcode("max"))),
        _ => {}
    }
    if let (true, [Operand::Name(d), Operand::Name(a), Operand::Name(b), rest @ ..]) =
        (matches!(base, "sub" | "div" | "fma"), &inst.operands[..])
    {
        let swapped = match rest {
            [] => format!("{d}, {b}, {a}"),
            [Operand::Name(c)] => format!("{d}, {c}, {b}, {a}"),
            _ => String::new(),
        };
        let (guard, op) = text.split_at(text.find(inst.opcode[0].as_str()).unwrap_or(0));
        let mnemonic = op.split_whitespace().next().unwrap_or(op);
        if !swapped.is_empty() {
            out.push((Kind::OperandsSwapped, format!("{guard}{mnemonic} {swapped};")));
        }
    }
    for (from, to) in [
        ("%tid.x", "%tid.y"),
        ("%tid.y", "%tid.x"),
        ("%ctaid.x", "%ctaid.y"),
        ("%ctaid.y", "%ctaid.x"),
        ("%ntid.x", "%ntid.y"),
        ("%laneid", "%tid.y"),
    ] {
        if base == "mov" && text.contains(from) {
            out.push((Kind::WrongIndexRegister, text.replacen(from, to, 1)));
        }
    }
    out
}

/// The last operand, a number, replaced.
fn replace_last_number(text: &str, v: i64) -> String {
    match text.rfind([',', ' ']) {
        Some(i) => format!("{} {v};", &text[..=i].trim_end()),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutants_differ_in_one_instruction_and_still_parse() {
        let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 a)\n{\n.reg .pred %p;\n\
                    .reg .b32 %r<4>;\n.reg .b64 %rd<2>;\nld.param.u64 %rd0, [a];\nmov.u32 %r0, %tid.x;\n\
                    setp.lt.s32 %p, %r0, 7;\n@%p add.s32 %r1, %r0, 4;\nbar.sync 0;\nst.global.u32 [%rd0+8], %r0;\nret;\n}\n";
        let all = mutations(text).unwrap();
        for m in &all {
            assert_ne!(m.text, text);
            parse(&m.text).unwrap_or_else(|e| panic!("{m:?}: {e}"));
        }
        let kinds: Vec<Kind> = all.iter().map(|m| m.kind).collect();
        for k in [
            Kind::SyncRemoved,
            Kind::PredicateInverted,
            Kind::BoundOffByOne,
            Kind::IndexOffByOne,
            Kind::OffsetShifted,
            Kind::StoreRemoved,
            Kind::WrongOperation,
            Kind::WrongIndexRegister,
        ] {
            assert!(kinds.contains(&k), "{k:?}");
        }
        let shifted = all.iter().find(|m| m.kind == Kind::OffsetShifted).unwrap();
        assert_eq!(shifted.after, "st.global.u32 [%rd0+12], %r0;");
    }
}
