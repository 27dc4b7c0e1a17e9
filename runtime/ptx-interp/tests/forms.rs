//! Every arithmetic instruction form, executed from PTX and compared with plain Rust, bit for bit unless the
//! instruction is approximate. All kernels are also assembled by ptxas, where it is installed.

mod support;

use kernelsmith_ptx_interp::assemble::Ptxas;
use kernelsmith_ptx_interp::golden::{self, Argument, Buffer, Case, Compare, Float};
use kernelsmith_ptx_interp::{Config, Params};
use support::*;

type Expect = fn(u64, u64, u64) -> u64;

/// How a result is compared: exactly, or as f32/f16/f64 within a relative error (NaN equals NaN).
#[derive(Clone, Copy)]
enum Match {
    Exact,
    F32(f64),
    F16(f64),
    F64(f64),
}

struct Form {
    body: &'static str,
    result: &'static str,
    expect: Expect,
    matches: Match,
    sm90: bool,
}

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}
fn g(x: u64) -> f64 {
    f64::from_bits(x)
}
fn c(x: f32) -> u64 {
    if x.is_nan() { 0x7fff_ffff } else { u64::from(x.to_bits()) }
}
fn s(x: u64) -> i32 {
    x as u32 as i32
}
fn u(x: u64) -> u32 {
    x as u32
}
fn s6(x: u64) -> i64 {
    x as i64
}
fn h(x: u64) -> f32 {
    half_to(x as u16)
}
/// An independent f16 reading: by the definition.
fn half_to(x: u16) -> f32 {
    let (sign, e, m) = (if x >> 15 == 1 { -1.0 } else { 1.0 }, i32::from(x >> 10 & 31), f32::from(x & 1023));
    match e {
        0 => sign * m * 2f32.powi(-24),
        31 if m == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + m / 1024.0) * 2f32.powi(e - 15),
    }
}
/// The nearest f16, ties to even, by search over all of them.
fn to_half(x: f64) -> u64 {
    if x.is_nan() {
        return 0x7fff;
    }
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    let x = x.abs();
    if x >= 65520.0 {
        return sign | 0x7c00;
    }
    let (mut lo, mut hi) = (0u16, 0x7bff);
    while hi - lo > 1 {
        let mid = (lo + hi) / 2;
        if f64::from(half_to(mid)) <= x { lo = mid } else { hi = mid }
    }
    if f64::from(half_to(hi)) <= x {
        return sign | u64::from(hi);
    }
    let (a, b) = (x - f64::from(half_to(lo)), f64::from(half_to(hi)) - x);
    sign | u64::from(if a < b || (a == b && lo & 1 == 0) { lo } else { hi })
}
fn b(x: u64) -> f32 {
    f32::from_bits((x as u32 & 0xffff) << 16)
}
fn to_b(x: f32) -> u64 {
    if x.is_nan() {
        return 0x7fff;
    }
    let bits = x.to_bits();
    let (low, kept) = (bits & 0xffff, bits >> 16);
    u64::from(if low > 0x8000 || (low == 0x8000 && kept & 1 == 1) { kept + 1 } else { kept })
}
fn both(x: u64, y: u64, op: fn(u64, u64) -> u64) -> u64 {
    op(x & 0xffff, y & 0xffff) | op(x >> 16 & 0xffff, y >> 16 & 0xffff) << 16
}
fn flush(x: u64) -> u64 {
    if u(x) & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}
fn flag(b: bool) -> u64 {
    u64::from(b)
}
fn sh(x: u64) -> i16 {
    x as i16
}
fn min_num(x: f32, y: f32) -> f32 {
    if x.is_nan() {
        y
    } else if y.is_nan() {
        x
    } else if x == y {
        if x.is_sign_negative() { x } else { y }
    } else if x < y {
        x
    } else {
        y
    }
}
fn max_num(x: f32, y: f32) -> f32 {
    if x.is_nan() {
        y
    } else if y.is_nan() {
        x
    } else if x == y {
        if x.is_sign_negative() { y } else { x }
    } else if x > y {
        x
    } else {
        y
    }
}

macro_rules! forms {
    ($($body:literal => $result:literal, |$x:pat_param, $y:pat_param, $z:pat_param| $e:expr;)*) => {
        vec![$(Form { body: $body, result: $result, expect: |$x, $y, $z| $e, matches: Match::Exact, sm90: false }),*]
    };
}

fn integer_forms() -> Vec<Form> {
    forms! {
        "add.u32 %d, %a, %b;" => "%d", |x, y, _| u64::from(u(x).wrapping_add(u(y)));
        "add.s32 %d, %a, -7;" => "%d", |x, _, _| u64::from(u(x).wrapping_sub(7));
        "add.sat.s32 %d, %a, %b;" => "%d", |x, y, _| u64::from(s(x).saturating_add(s(y)) as u32);
        "sub.sat.s32 %d, %a, %b;" => "%d", |x, y, _| u64::from(s(x).saturating_sub(s(y)) as u32);
        "add.s64 %dd, %ad, %bd;" => "%dd", |x, y, _| x.wrapping_add(y);
        "add.s16 %dh, %ah, %bh;" => "%dh", |x, y, _| u64::from((x as u16).wrapping_add(y as u16));
        "sub.u32 %d, %a, %b;" => "%d", |x, y, _| u64::from(u(x).wrapping_sub(u(y)));
        "sub.s64 %dd, %ad, %bd;" => "%dd", |x, y, _| x.wrapping_sub(y);
        "sub.u16 %dh, %ah, %bh;" => "%dh", |x, y, _| u64::from((x as u16).wrapping_sub(y as u16));
        "mul.lo.u32 %d, %a, %b;" => "%d", |x, y, _| u64::from(u(x).wrapping_mul(u(y)));
        "mul.lo.s64 %dd, %ad, %bd;" => "%dd", |x, y, _| x.wrapping_mul(y);
        "mul.lo.s16 %dh, %ah, %bh;" => "%dh", |x, y, _| u64::from((x as u16).wrapping_mul(y as u16));
        "mul.hi.u32 %d, %a, %b;" => "%d", |x, y, _| (u64::from(u(x)) * u64::from(u(y))) >> 32;
        "mul.hi.s32 %d, %a, %b;" => "%d", |x, y, _| u64::from(((i64::from(s(x)) * i64::from(s(y))) >> 32) as u32);
        "mul.hi.u64 %dd, %ad, %bd;" => "%dd", |x, y, _| ((u128::from(x) * u128::from(y)) >> 64) as u64;
        "mul.hi.s64 %dd, %ad, %bd;" => "%dd", |x, y, _| ((i128::from(s6(x)) * i128::from(s6(y))) >> 64) as u64;
        "mul.hi.s16 %dh, %ah, %bh;" => "%dh", |x, y, _| u64::from(((i32::from(sh(x)) * i32::from(sh(y))) >> 16) as u16);
        "mul.hi.u16 %dh, %ah, %bh;" => "%dh", |x, y, _| ((x & 0xffff) * (y & 0xffff)) >> 16;
        "mul.wide.u32 %dd, %a, %b;" => "%dd", |x, y, _| u64::from(u(x)) * u64::from(u(y));
        "mul.wide.s32 %dd, %a, %b;" => "%dd", |x, y, _| (i64::from(s(x)) * i64::from(s(y))) as u64;
        "mul.wide.s16 %d, %ah, %bh;" => "%d", |x, y, _| u64::from((i32::from(sh(x)) * i32::from(sh(y))) as u32);
        "mul.wide.u16 %d, %ah, %bh;" => "%d", |x, y, _| (x & 0xffff) * (y & 0xffff);
        "mad.lo.s32 %d, %a, %b, %c;" => "%d", |x, y, z| u64::from(u(x).wrapping_mul(u(y)).wrapping_add(u(z)));
        "mad.hi.u32 %d, %a, %b, %c;" => "%d", |x, y, z| u64::from((((u64::from(u(x)) * u64::from(u(y))) >> 32) as u32).wrapping_add(u(z)));
        "mad.lo.u64 %dd, %ad, %bd, %cd;" => "%dd", |x, y, z| x.wrapping_mul(y).wrapping_add(z);
        "mad.wide.s32 %dd, %a, %b, %cd;" => "%dd", |x, y, z| (i64::from(s(x)) * i64::from(s(y))).wrapping_add(s6(z)) as u64;
        "mad.wide.u32 %dd, %a, %b, %cd;" => "%dd", |x, y, z| (u64::from(u(x)) * u64::from(u(y))).wrapping_add(z);
        "mul24.lo.s32 %d, %a, %b;" => "%d", |x, y, _| u64::from((i64::from(s(x) << 8 >> 8) * i64::from(s(y) << 8 >> 8)) as u32);
        "div.u32 %d, %a, %b;" => "%d", |x, y, _| if u(y) == 0 { 0xffff_ffff } else { u64::from(u(x) / u(y)) };
        "div.s32 %d, %a, %b;" => "%d", |x, y, _| if u(y) == 0 { 0xffff_ffff } else { u64::from(s(x).wrapping_div(s(y)) as u32) };
        "rem.u32 %d, %a, %b;" => "%d", |x, y, _| u64::from(u(x).checked_rem(u(y)).unwrap_or(u(x)));
        "rem.s32 %d, %a, %b;" => "%d", |x, y, _| if u(y) == 0 { u64::from(u(x)) } else { u64::from(s(x).wrapping_rem(s(y)) as u32) };
        "div.s64 %dd, %ad, %bd;" => "%dd", |x, y, _| if y == 0 { u64::MAX } else { s6(x).wrapping_div(s6(y)) as u64 };
        "rem.u64 %dd, %ad, %bd;" => "%dd", |x, y, _| x.checked_rem(y).unwrap_or(x);
        "min.s32 %d, %a, %b;" => "%d", |x, y, _| u64::from(s(x).min(s(y)) as u32);
        "max.u32 %d, %a, %b;" => "%d", |x, y, _| u64::from(u(x).max(u(y)));
        "min.u64 %dd, %ad, %bd;" => "%dd", |x, y, _| x.min(y);
        "max.s64 %dd, %ad, %bd;" => "%dd", |x, y, _| s6(x).max(s6(y)) as u64;
        "max.s16 %dh, %ah, %bh;" => "%dh", |x, y, _| u64::from(sh(x).max(sh(y)) as u16);
        "abs.s32 %d, %a;" => "%d", |x, _, _| u64::from(s(x).wrapping_abs() as u32);
        "neg.s64 %dd, %ad;" => "%dd", |x, _, _| x.wrapping_neg();
        "sad.u32 %d, %a, %b, %c;" => "%d", |x, y, z| u64::from(u(x).abs_diff(u(y)).wrapping_add(u(z)));
        "and.b32 %d, %a, %b;" => "%d", |x, y, _| u64::from(u(x) & u(y));
        "or.b64 %dd, %ad, %bd;" => "%dd", |x, y, _| x | y;
        "xor.b16 %dh, %ah, %bh;" => "%dh", |x, y, _| (x ^ y) & 0xffff;
        "not.b32 %d, %a;" => "%d", |x, _, _| u64::from(!u(x));
        "cnot.b32 %d, %a;" => "%d", |x, _, _| flag(u(x) == 0);
        "shl.b32 %d, %a, %b;" => "%d", |x, y, _| if u(y) > 31 { 0 } else { u64::from(u(x) << u(y)) };
        "shr.u32 %d, %a, %b;" => "%d", |x, y, _| if u(y) > 31 { 0 } else { u64::from(u(x) >> u(y)) };
        "shr.s32 %d, %a, %b;" => "%d", |x, y, _| u64::from((s(x) >> u(y).min(31)) as u32);
        "shl.b64 %dd, %ad, %b;" => "%dd", |x, y, _| if u(y) > 63 { 0 } else { x << u(y) };
        "shr.s64 %dd, %ad, %b;" => "%dd", |x, y, _| (s6(x) >> u(y).min(63)) as u64;
        "shr.u64 %dd, %ad, 17;" => "%dd", |x, _, _| x >> 17;
        "shr.s16 %dh, %ah, %b;" => "%dh", |x, y, _| u64::from((sh(x) >> u(y).min(15)) as u16);
        "shf.l.wrap.b32 %d, %a, %b, %c;" => "%d", |x, y, z| ((u64::from(u(y)) << 32 | u64::from(u(x))) << (z & 31)) >> 32;
        "shf.r.wrap.b32 %d, %a, %b, %c;" => "%d", |x, y, z| (u64::from(u(y)) << 32 | u64::from(u(x))) >> (z & 31) & 0xffff_ffff;
        "shf.l.clamp.b32 %d, %a, %b, %c;" => "%d", |x, y, z| ((u64::from(u(y)) << 32 | u64::from(u(x))) << u(z).min(32)) >> 32;
        "shf.r.clamp.b32 %d, %a, %b, %c;" => "%d", |x, y, z| (u64::from(u(y)) << 32 | u64::from(u(x))) >> u(z).min(32) & 0xffff_ffff;
        "lop3.b32 %d, %a, %b, %c, 0xe8;" => "%d", |x, y, z| u64::from(u(x) & u(y) | u(z) & (u(x) | u(y)));
        "lop3.b32 %d, %a, %b, %c, 0x1e;" => "%d", |x, y, z| u64::from(u(x) ^ (u(y) | u(z)));
        "prmt.b32 %d, %a, %b, 0x5410;" => "%d", |x, y, _| u64::from(u(x) & 0xffff | u(y) << 16);
        "prmt.b32 %d, %a, %b, 0x9180;" => "%d", |x, _, _| {
            let byte = |i: u32| u(x) >> (8 * i) & 0xff;
            let sign = |i: u32| if byte(i) >> 7 == 1 { 0xff } else { 0 };
            u64::from(byte(0) | sign(0) << 8 | byte(1) << 16 | sign(1) << 24)
        };
        "prmt.b32.f4e %d, %a, %b, %c;" => "%d", |x, y, z| (u64::from(u(y)) << 32 | u64::from(u(x))) >> (8 * (z & 3)) & 0xffff_ffff;
        "prmt.b32.rc16 %d, %a, %b, %c;" => "%d", |x, _, z| { let v = u64::from(u(x) >> (16 * (u(z) & 1)) & 0xffff); v | v << 16 };
        "bfe.u32 %d, %a, 5, 11;" => "%d", |x, _, _| u64::from(u(x) >> 5 & 0x7ff);
        "bfe.s32 %d, %a, 20, 12;" => "%d", |x, _, _| u64::from((s(x) >> 20) as u32);
        "bfe.s64 %dd, %ad, 40, 8;" => "%dd", |x, _, _| i64::from((x >> 40) as u8 as i8) as u64;
        "bfi.b32 %d, %a, %b, 8, 4;" => "%d", |x, y, _| u64::from(u(y) & !0xf00 | (u(x) & 15) << 8);
        "bfi.b64 %dd, %ad, %bd, 32, 32;" => "%dd", |x, y, _| y & 0xffff_ffff | x << 32;
        "popc.b32 %d, %a;" => "%d", |x, _, _| u64::from(u(x).count_ones());
        "popc.b64 %d, %ad;" => "%d", |x, _, _| u64::from(x.count_ones());
        "clz.b32 %d, %a;" => "%d", |x, _, _| u64::from(u(x).leading_zeros());
        "clz.b64 %d, %ad;" => "%d", |x, _, _| u64::from(x.leading_zeros());
        "brev.b32 %d, %a;" => "%d", |x, _, _| u64::from(u(x).reverse_bits());
        "bfind.u32 %d, %a;" => "%d", |x, _, _| if u(x) == 0 { 0xffff_ffff } else { u64::from(31 - u(x).leading_zeros()) };
        "bfind.s32 %d, %a;" => "%d", |x, _, _| { let v = if s(x) < 0 { !u(x) } else { u(x) }; if v == 0 { 0xffff_ffff } else { u64::from(31 - v.leading_zeros()) } };
        "bfind.shiftamt.u32 %d, %a;" => "%d", |x, _, _| if u(x) == 0 { 0xffff_ffff } else { u64::from(u(x).leading_zeros()) };
        "bmsk.clamp.b32 %d, %a, %b;" => "%d", |x, y, _| ((1u64 << u(y).min(32)) - 1) << u(x).min(32) & 0xffff_ffff;
        "szext.wrap.s32 %d, %a, 12;" => "%d", |x, _, _| u64::from((s(x) << 20 >> 20) as u32);
        "dp4a.s32.s32 %d, %a, %b, %c;" => "%d", |x, y, z| {
            let dot: i32 = (0..4).map(|i| i32::from((x >> (8 * i)) as i8) * i32::from((y >> (8 * i)) as i8)).sum();
            u64::from(u(z).wrapping_add(dot as u32))
        };
        "dp4a.u32.s32 %d, %a, %b, %c;" => "%d", |x, y, z| {
            let dot: i32 = (0..4).map(|i| i32::from((x >> (8 * i)) as u8) * i32::from((y >> (8 * i)) as i8)).sum();
            u64::from(u(z).wrapping_add(dot as u32))
        };
        "dp2a.lo.s32.u32 %d, %a, %b, %c;" => "%d", |x, y, z| {
            let dot: i32 = (0..2).map(|i| i32::from((x >> (16 * i)) as i16) * i32::from((y >> (8 * i)) as u8)).sum();
            u64::from(u(z).wrapping_add(dot as u32))
        };
        "setp.lt.s32 %p, %a, %b;" => "%p", |x, y, _| flag(s(x) < s(y));
        "setp.lo.u32 %p, %a, %b;" => "%p", |x, y, _| flag(u(x) < u(y));
        "setp.ge.u32 %p, %a, %b;" => "%p", |x, y, _| flag(u(x) >= u(y));
        "setp.eq.b32 %p, %a, %b;" => "%p", |x, y, _| flag(u(x) == u(y));
        "setp.gt.s64 %p, %ad, %bd;" => "%p", |x, y, _| flag(s6(x) > s6(y));
        "setp.le.s16 %p, %ah, %bh;" => "%p", |x, y, _| flag(sh(x) <= sh(y));
        "setp.lt.and.s32 %p|%q, %a, %b, %pc;" => "%p|%q", |x, y, z| flag(s(x) < s(y) && z & 1 == 1) | flag(s(x) >= s(y) && z & 1 == 1) << 1;
        "setp.ne.xor.u32 %p, %a, %b, !%pc;" => "%p", |x, y, z| flag((u(x) != u(y)) ^ (z & 1 == 0));
        "and.pred %p, %pa, %pb;" => "%p", |x, y, _| x & y & 1;
        "xor.pred %p, %pa, %pb;" => "%p", |x, y, _| (x ^ y) & 1;
        "not.pred %p, %pa;" => "%p", |x, _, _| !x & 1;
        "selp.b32 %d, %a, %b, %pc;" => "%d", |x, y, z| u64::from(if z & 1 == 1 { u(x) } else { u(y) });
        "selp.b64 %dd, %ad, %bd, %pc;" => "%dd", |x, y, z| if z & 1 == 1 { x } else { y };
        "mov.b64 {%d, %e}, %ad; xor.b32 %d, %d, %e;" => "%d", |x, _, _| (x ^ x >> 32) & 0xffff_ffff;
        "mov.b64 %dd, {%a, %b};" => "%dd", |x, y, _| u64::from(u(x)) | u64::from(u(y)) << 32;
        "mov.b32 %d, {%ah, %bh};" => "%d", |x, y, _| x & 0xffff | (y & 0xffff) << 16;
        "mov.b32 {%dh, %eh}, %a; add.u16 %dh, %dh, %eh;" => "%dh", |x, _, _| u64::from((x as u16).wrapping_add((x >> 16) as u16));
        "@%pc bra SKIP; add.u32 %a, %a, 1; SKIP: mov.b32 %d, %a;" => "%d", |x, _, z| u64::from(if z & 1 == 1 { u(x) } else { u(x).wrapping_add(1) });
    }
}

fn float_forms() -> Vec<Form> {
    forms! {
        "add.f32 %d, %a, %b;" => "%d", |x, y, _| c(f(x) + f(y));
        "add.rn.ftz.f32 %d, %a, %b;" => "%d", |x, y, _| flush(c(f(flush(x)) + f(flush(y))));
        "add.sat.f32 %d, %a, %b;" => "%d", |x, y, _| { let v = f(x) + f(y); c(if v.is_nan() { 0.0 } else { v.clamp(0.0, 1.0) + 0.0 }) };
        "sub.f32 %d, %a, %b;" => "%d", |x, y, _| c(f(x) - f(y));
        "mul.f32 %d, %a, 0f40490FDB;" => "%d", |x, _, _| c(f(x) * std::f32::consts::PI);
        "mul.rz.f32 %d, %a, %b;" => "%d", |x, y, _| {
            let exact = f64::from(f(x)) * f64::from(f(y));
            if exact.is_nan() { return 0x7fff_ffff; }
            let near = exact as f32;
            if exact.is_infinite() { return c(near); }
            let r = if f64::from(near).abs() > exact.abs() { f32::from_bits(near.to_bits() - 1) } else { near };
            c(r)
        };
        "fma.rn.f32 %d, %a, %b, %c;" => "%d", |x, y, z| c(f(x).mul_add(f(y), f(z)));
        "fma.rn.ftz.f32 %d, %a, %b, %c;" => "%d", |x, y, z| flush(c(f(flush(x)).mul_add(f(flush(y)), f(flush(z)))));
        "div.rn.f32 %d, %a, %b;" => "%d", |x, y, _| c(f(x) / f(y));
        "min.f32 %d, %a, %b;" => "%d", |x, y, _| c(min_num(f(x), f(y)));
        "max.f32 %d, %a, %b;" => "%d", |x, y, _| c(max_num(f(x), f(y)));
        "max.NaN.f32 %d, %a, %b;" => "%d", |x, y, _| if f(x).is_nan() || f(y).is_nan() { 0x7fff_ffff } else { c(max_num(f(x), f(y))) };
        "abs.f32 %d, %a;" => "%d", |x, _, _| x & 0x7fff_ffff;
        "neg.f32 %d, %a;" => "%d", |x, _, _| u64::from(u(x) ^ 0x8000_0000);
        "copysign.f32 %d, %a, %b;" => "%d", |x, y, _| x & 0x8000_0000 | y & 0x7fff_ffff;
        "sqrt.rn.f32 %d, %a;" => "%d", |x, _, _| c(f(x).sqrt());
        "rcp.rn.f32 %d, %a;" => "%d", |x, _, _| c(1.0 / f(x));
        "testp.finite.f32 %p, %a;" => "%p", |x, _, _| flag(f(x).is_finite());
        "testp.notanumber.f32 %p, %a;" => "%p", |x, _, _| flag(f(x).is_nan());
        "setp.lt.f32 %p, %a, %b;" => "%p", |x, y, _| flag(f(x) < f(y));
        "setp.neu.f32 %p, %a, %b;" => "%p", |x, y, _| flag(f(x) != f(y));
        "setp.ne.f32 %p, %a, %b;" => "%p", |x, y, _| flag(f(x) != f(y) && !f(x).is_nan() && !f(y).is_nan());
        "setp.geu.f32 %p, %a, %b;" => "%p", |x, y, _| flag(f(x).partial_cmp(&f(y)) != Some(std::cmp::Ordering::Less));
        "setp.num.f32 %p, %a, %b;" => "%p", |x, y, _| flag(!f(x).is_nan() && !f(y).is_nan());
        "setp.nan.f32 %p, %a, %b;" => "%p", |x, y, _| flag(f(x).is_nan() || f(y).is_nan());
        "setp.gt.f64 %p, %ad, %bd;" => "%p", |x, y, _| flag(g(x) > g(y));
        "setp.lt.f16 %p, %ah, %bh;" => "%p", |x, y, _| flag(h(x) < h(y));
        "cvt.f32.f16 %d, %ah;" => "%d", |x, _, _| c(h(x));
        "cvt.rn.f16.f32 %dh, %a;" => "%dh", |x, _, _| to_half(f64::from(f(x)));
        "cvt.rz.f16.f32 %dh, %a;" => "%dh", |x, _, _| {
            let v = f(x);
            if v.is_nan() { return 0x7fff; }
            let near = to_half(f64::from(v));
            let near = if near & 0x7fff == 0x7c00 && v.is_finite() { near - 1 } else { near };
            if half_to(near as u16).abs() > v.abs() { near - 1 } else { near }
        };
        "cvt.rn.bf16.f32 %dh, %a;" => "%dh", |x, _, _| to_b(f(x));
        "cvt.rn.relu.bf16.f32 %dh, %a;" => "%dh", |x, _, _| if f(x) <= 0.0 { 0 } else { to_b(f(x)) };
        "cvt.rn.f16x2.f32 %d, %a, %b;" => "%d", |x, y, _| to_half(f64::from(f(x))) << 16 | to_half(f64::from(f(y)));
        "cvt.rn.bf16x2.f32 %d, %a, %b;" => "%d", |x, y, _| to_b(f(x)) << 16 | to_b(f(y));
        "cvt.rna.tf32.f32 %d, %a;" => "%d", |x, _, _| if f(x).is_nan() { 0x7fff_e000 } else { u64::from((u(x) & 0x7fff_ffff).wrapping_add(if f(x).is_infinite() { 0 } else { 0x1000 }) & !0x1fff | u(x) & 0x8000_0000) };
        "cvt.rn.f32.s32 %d, %a;" => "%d", |x, _, _| c(s(x) as f32);
        "cvt.rz.f32.u32 %d, %a;" => "%d", |x, _, _| { let r = u(x) as f32; c(if f64::from(r) > f64::from(u(x)) { f32::from_bits(r.to_bits() - 1) } else { r }) };
        "cvt.rn.f32.u64 %d, %ad;" => "%d", |x, _, _| c(x as f32);
        "cvt.rn.f64.s64 %dd, %ad;" => "%dd", |x, _, _| (s6(x) as f64).to_bits();
        "cvt.rzi.s32.f32 %d, %a;" => "%d", |x, _, _| u64::from(f(x) as i32 as u32);
        "cvt.rni.s32.f32 %d, %a;" => "%d", |x, _, _| u64::from(f(x).round_ties_even() as i32 as u32);
        "cvt.rmi.u32.f32 %d, %a;" => "%d", |x, _, _| u64::from(f(x).floor() as u32);
        "cvt.rpi.f32.f32 %d, %a;" => "%d", |x, _, _| c(f(x).ceil());
        "cvt.rzi.s64.f64 %dd, %ad;" => "%dd", |x, _, _| if g(x).is_nan() { 1 << 63 } else { g(x) as i64 as u64 };
        "cvt.rn.f32.f64 %d, %ad;" => "%d", |x, _, _| c(g(x) as f32);
        "cvt.sat.f32.f32 %d, %a;" => "%d", |x, _, _| c(if f(x).is_nan() { 0.0 } else { f(x).clamp(0.0, 1.0) + 0.0 });
        "cvt.s64.s32 %dd, %a;" => "%dd", |x, _, _| i64::from(s(x)) as u64;
        "cvt.u64.u32 %dd, %a;" => "%dd", |x, _, _| u64::from(u(x));
        "cvt.u32.u64 %d, %ad;" => "%d", |x, _, _| u64::from(u(x));
        "cvt.s32.s16 %d, %ah;" => "%d", |x, _, _| u64::from(i32::from(sh(x)) as u32);
        "cvt.s32.s8 %d, %a;" => "%d", |x, _, _| u64::from(i32::from(x as i8) as u32);
        "cvt.u16.u32 %dh, %a;" => "%dh", |x, _, _| x & 0xffff;
        "cvt.s8.s32 %dh, %a; setp.eq.s16 %p, %dh, -3;" => "%p", |x, _, _| flag(x as i8 == -3);
        "ld.global.s8 %dh, [%ap]; setp.eq.s16 %p, %dh, -3;" => "%p", |x, _, _| flag(x as i8 == -3);
        "cvt.sat.u8.s32 %d, %a;" => "%d", |x, _, _| s(x).clamp(0, 255) as u64;
        "cvt.sat.s8.s32 %d, %a;" => "%d", |x, _, _| u64::from(s(x).clamp(-128, 127) as u32);
        "add.f16 %dh, %ah, %bh;" => "%dh", |x, y, _| to_half(f64::from(h(x)) + f64::from(h(y)));
        "mul.f16x2 %d, %a, %b;" => "%d", |x, y, _| both(x, y, |x, y| to_half(f64::from(h(x)) * f64::from(h(y))));
        "sub.rn.f16x2 %d, %a, %b;" => "%d", |x, y, _| both(x, y, |x, y| to_half(f64::from(h(x)) - f64::from(h(y))));
        "neg.f16x2 %d, %a;" => "%d", |x, _, _| u64::from(u(x) ^ 0x8000_8000);
        "fma.rn.bf16x2 %d, %a, %b, %c;" => "%d", |x, y, z| {
            // by exact integers: the product and the addend as multiples of the smallest bf16 product
            let one = |i: u64| {
                let (p, q, r) = (b(x >> (16 * i)), b(y >> (16 * i)), b(z >> (16 * i)));
                let e = f64::from(p) * f64::from(q);
                let sum = e + f64::from(r);
                if !sum.is_finite() || sum == 0.0 { return to_b(sum as f32); }
                let lost = if e.abs() > f64::from(r).abs() { e - sum + f64::from(r) } else { f64::from(r) - sum + e };
                let odd = if lost != 0.0 && sum.to_bits() & 1 == 0 { f64::from_bits(if (lost > 0.0) == (sum > 0.0) { sum.to_bits() + 1 } else { sum.to_bits() - 1 }) } else { sum };
                // f64 to f32 to odd, then to bf16
                let t = odd as f32;
                let d = f64::from(t) - odd;
                let t = if d != 0.0 && t.to_bits() & 1 == 0 && t.is_finite() { if t == 0.0 { return to_b(t) } f32::from_bits(if (d < 0.0) == (t > 0.0) { t.to_bits() + 1 } else { t.to_bits() - 1 }) } else { t };
                to_b(t)
            };
            one(0) | one(1) << 16
        };
        "fma.rn.f64 %dd, %ad, %bd, %cd;" => "%dd", |x, y, z| g(x).mul_add(g(y), g(z)).to_bits();
        "add.f64 %dd, %ad, %bd;" => "%dd", |x, y, _| (g(x) + g(y)).to_bits();
        "div.rn.f64 %dd, %ad, %bd;" => "%dd", |x, y, _| (g(x) / g(y)).to_bits();
        "sqrt.rn.f64 %dd, %ad;" => "%dd", |x, _, _| g(x).sqrt().to_bits();
        "abs.f64 %dd, %ad;" => "%dd", |x, _, _| x & !(1 << 63);
    }
}

fn sm90_forms() -> Vec<Form> {
    let mut v = forms! {
        "add.rn.bf16 %dh, %ah, %bh;" => "%dh", |x, y, _| to_b(b(x) + b(y));
        "mul.rn.bf16x2 %d, %a, %b;" => "%d", |x, y, _| both(x, y, |x, y| to_b(b(x) * b(y)));
        "cvt.f32.bf16 %d, %ah;" => "%d", |x, _, _| c(b(x));
        "cvt.rn.satfinite.e4m3x2.f32 %dh, %a, %b;" => "%dh", |x, y, _| to_e4m3(f(x)) << 8 | to_e4m3(f(y));
        "cvt.rn.f16x2.e4m3x2 %d, %ah;" => "%d", |x, _, _| to_half(e4m3(x)) | to_half(e4m3(x >> 8)) << 16;
        "cvt.rn.satfinite.e5m2x2.f16x2 %dh, %a;" => "%dh", |x, _, _| to_e5m2(h(x)) | to_e5m2(h(x >> 16)) << 8;
        "cvt.rn.f16x2.e5m2x2 %d, %ah;" => "%d", |x, _, _| { let one = |v: u64| if half_to(((v & 0xff) << 8) as u16).is_nan() { 0x7fff } else { (v & 0xff) << 8 }; one(x) | one(x >> 8) << 16 };
        "max.s16x2 %d, %a, %b;" => "%d", |x, y, _| both(x, y, |x, y| u64::from(sh(x).max(sh(y)) as u16));
        "redux.sync.add.s32 %d, %a, 0xffffffff; sub.u32 %d, %d, %d;" => "%d", |_, _, _| 0;
    };
    for f in &mut v {
        f.sm90 = true;
    }
    v
}

fn e4m3(x: u64) -> f64 {
    let (e, m) = (x >> 3 & 15, (x & 7) as f64);
    let sign = if x >> 7 & 1 == 1 { -1.0 } else { 1.0 };
    match (e, x & 7) {
        (15, 7) => f64::NAN,
        (0, _) => sign * m * 2f64.powi(-9),
        _ => sign * (1.0 + m / 8.0) * 2f64.powi(e as i32 - 7),
    }
}
fn nearest(x: f32, value: fn(u64) -> f64, largest: u64, nan: u64) -> u64 {
    if x.is_nan() {
        return nan;
    }
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let a = f64::from(x).abs().min(value(largest));
    let best = (0..=largest).min_by(|p, q| {
        let d = |v: &u64| (value(*v) - a).abs();
        d(p).total_cmp(&d(q)).then((p & 1).cmp(&(q & 1)))
    });
    sign | best.unwrap()
}
fn to_e4m3(x: f32) -> u64 {
    nearest(x, e4m3, 0x7e, 0x7f)
}
fn to_e5m2(x: f32) -> u64 {
    nearest(x, |v| f64::from(half_to((v << 8) as u16)), 0x7b, 0x7f)
}

fn approximate_forms() -> Vec<Form> {
    let mut v = forms! {
        "div.approx.f32 %d, %a, %b;" => "%d", |x, y, _| c(f(x) / f(y));
        "div.full.f32 %d, %a, %b;" => "%d", |x, y, _| c(f(x) / f(y));
        "rcp.approx.f32 %d, %a;" => "%d", |x, _, _| c(1.0 / f(x));
        "rsqrt.approx.f32 %d, %a;" => "%d", |x, _, _| c((1.0 / f64::from(f(x)).sqrt()) as f32);
        "sqrt.approx.f32 %d, %a;" => "%d", |x, _, _| c(f(x).sqrt());
        "ex2.approx.f32 %d, %a;" => "%d", |x, _, _| c(f64::from(f(x)).exp2() as f32);
        "lg2.approx.f32 %d, %a;" => "%d", |x, _, _| c(f64::from(f(x)).log2() as f32);
        "sin.approx.f32 %d, %a;" => "%d", |x, _, _| c(f64::from(f(x)).sin() as f32);
        "cos.approx.f32 %d, %a;" => "%d", |x, _, _| c(f64::from(f(x)).cos() as f32);
        "tanh.approx.f32 %d, %a;" => "%d", |x, _, _| c(f64::from(f(x)).tanh() as f32);
    };
    for f in &mut v {
        f.matches = Match::F32(3e-7);
    }
    let mut w = forms! {
        "tanh.approx.f16x2 %d, %a; mov.b32 {%dh, %eh}, %d;" => "%dh", |x, _, _| to_half(f64::from(h(x)).tanh());
        "ex2.approx.f16 %dh, %ah;" => "%dh", |x, _, _| to_half(f64::from(h(x)).exp2());
    };
    for f in &mut w {
        f.matches = Match::F16(2e-3);
    }
    v.extend(w);
    v.extend(forms! { "fma.rn.f16 %dh, %ah, %bh, %ch;" => "%dh", |x, y, z| to_half(f64::from(h(x)).mul_add(f64::from(h(y)), f64::from(h(z)))); });
    let mut d = forms! { "rcp.rn.f64 %dd, %ad;" => "%dd", |x, _, _| (1.0 / g(x)).to_bits(); };
    for f in &mut d {
        f.matches = Match::F64(0.0);
    }
    v.extend(d);
    v
}

fn agrees(m: Match, got: u64, want: u64) -> bool {
    let close = |a: f64, b: f64, tol: f64| {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tol * b.abs() + 1e-44
    };
    match m {
        Match::Exact => got == want,
        Match::F32(t) => close(f64::from(f(got)), f64::from(f(want)), t),
        Match::F16(t) => close(f64::from(h(got)), f64::from(h(want)), t),
        Match::F64(t) => close(g(got), g(want), t),
    }
}

fn texts(forms: &[Form]) -> Vec<String> {
    forms
        .iter()
        .enumerate()
        .map(|(i, f)| form_kernel(&format!("k{i}"), &f.body.replace("SKIP", &format!("SKIP{i}")), f.result))
        .collect()
}

/// How far a device may be from the nearest number by the PTX ISA (§9.7.3, §9.7.4): relative to it, and absolute. Half an ulp
/// of our rounding is part of it, and an absolute part is there for subnormal results. Written from memory of the manual: all
/// but `div.full` are still to be compared with its text.
const DEVICE_ERRORS: [(&str, f64, f64); 12] = [
    // 2 ulp
    ("div.approx.f32", 3e-7, 3e-45),
    ("div.full.f32", 3e-7, 3e-45),
    // 1 ulp, 2^-22.9, 2^-23
    ("rcp.approx.f32", 1.8e-7, 3e-45),
    ("rsqrt.approx.f32", 1.9e-7, 0.0),
    ("sqrt.approx.f32", 1.8e-7, 3e-45),
    // 2^-22, and of the logarithm near 1 an absolute one
    ("ex2.approx.f32", 3e-7, 3e-45),
    ("lg2.approx.f32", 3e-7, 2.4e-7),
    // 2^-14.7 up to 100 pi
    ("sin.approx.f32", 0.0, 3.8e-5),
    ("cos.approx.f32", 0.0, 3.8e-5),
    // 2^-11; 2^-10.987, absolute; 2^-9.9
    ("tanh.approx.f32", 4.9e-4, 3e-45),
    ("tanh.approx.f16x2", 0.0, 7.5e-4),
    ("ex2.approx.f16", 1.6e-3, 1.2e-7),
];

impl Form {
    fn opcode(&self) -> &str {
        self.body.split(' ').next().expect("an instruction")
    }

    /// How results of a device are compared: payloads of NaNs are open, and so are errors of approximations.
    fn on_device(&self) -> Compare {
        let mut words = self.opcode().split('.');
        let operation = words.next().expect("an operation");
        let format = match words.find_map(|w| match w {
            "f16" | "f16x2" => Some(Some(Float::F16)),
            "bf16" | "bf16x2" => Some(Some(Float::Bf16)),
            "f32" => Some(Some(Float::F32)),
            "f64" => Some(Some(Float::F64)),
            "tf32" => Some(Some(Float::Tf32)),
            // the first type of a conversion is that of its result
            _ => (operation == "cvt" && w.starts_with(['s', 'u', 'e']) && w.ends_with(char::is_numeric))
                .then_some(None),
        }) {
            Some(Some(format)) if !self.result.starts_with("%p") => format,
            _ => return Compare::Bits(8),
        };
        if let Some((_, relative, absolute)) = DEVICE_ERRORS.iter().find(|(of, ..)| *of == self.opcode()) {
            return Compare::close(format, *relative, *absolute);
        }
        let any_zero = self.opcode().contains(".sat");
        Compare::Float { format, relative: 0.0, absolute: 0.0, any_zero }
    }

    /// The PTX ISA does not say what comes out.
    fn open(&self, x: u64, y: u64) -> bool {
        let words: Vec<&str> = self.opcode().split('.').collect();
        match words[..] {
            ["div" | "rem", "s32" | "u32"] => u(y) == 0,
            ["div" | "rem", "s64" | "u64"] => y == 0,
            ["div", "approx", "f32"] => {
                f(y) != 0.0 && f(y).is_finite() && !(2f32.powi(-126)..=2f32.powi(126)).contains(&f(y).abs())
            }
            ["sin" | "cos", "approx", "f32"] => f(x).is_finite() && f(x).abs() > 314.0,
            _ => false,
        }
    }
}

/// Writes the forms down for a device: all operands in one launch.
fn keep(text: &str, forms: &[Form], operands: &[Vec<u64>; 3]) {
    let bytes = |v: &[u64]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let [x, y, z] = operands;
    let n = x.len();
    let mut cases = Vec::new();
    for (i, form) in forms.iter().enumerate() {
        let want: Vec<u64> = (0..n).map(|l| (form.expect)(x[l], y[l], z[l])).collect();
        let compare = form.on_device();
        let elements = match compare {
            Compare::Bits(size) => 8 / size,
            Compare::Float { format, .. } => 8 / format.bytes(),
        };
        let open = (0..n).filter(|l| form.open(x[*l], y[*l]));
        let open = open.flat_map(|l| (0..elements).map(move |e| l * elements + e)).collect();
        let out = Buffer { before: vec![0; 8 * n], after: vec![bytes(&want)], compare, open };
        let buffers = operands.iter().map(|v| Buffer::kept(bytes(v))).chain([out]).collect();
        cases.push(Case {
            name: form.body.into(),
            group: form.body.into(),
            entry: format!("k{i}"),
            grid: [1, 1, 1],
            block: [n as u32, 1, 1],
            dynamic_shared: 0,
            arguments: (0..4).map(|b| Argument::Address(b, 0)).collect(),
            buffers,
        });
    }
    golden::write("forms", text, &cases);
}

fn check(forms: Vec<Form>) {
    let header = if forms.iter().any(|f| f.sm90) { HEADER_90 } else { HEADER };
    let mut rng = Random(7);
    let text = header.to_string() + &texts(&forms).concat();
    let mut device = Device::new(&text).unwrap();
    let mut wrong = Vec::new();
    let mut operands = [const { Vec::new() }; 3];
    for round in 0..8 {
        let inputs: Vec<Vec<u64>> =
            (0..3).map(|_| (0..32).map(|_| interesting(&mut rng)).collect()).collect();
        for (all, v) in operands.iter_mut().zip(&inputs) {
            all.extend_from_slice(v);
        }
        let at: Vec<u64> = inputs.iter().map(|v| device.upload_u64(v)).collect();
        for (i, form) in forms.iter().enumerate() {
            let out = device.upload_u64(&[0; 32]);
            let params = Params::new().u64(at[0]).u64(at[1]).u64(at[2]).u64(out);
            device.run(&Config::default(), &format!("k{i}"), 1, 32, &params).unwrap();
            for (l, got) in device.download_u64(out, 32).into_iter().enumerate() {
                let (x, y, z) = (inputs[0][l], inputs[1][l], inputs[2][l]);
                let mut want = (form.expect)(x, y, z);
                let mut got = got;
                // NaN payloads of f64 are not specified
                if form.result == "%dd" && form.body.contains("f64") && g(got).is_nan() && g(want).is_nan() {
                    (got, want) = (0, 0);
                }
                if !agrees(form.matches, got, want) && wrong.len() < 40 {
                    wrong.push(format!(
                        "{} ({x:#x}, {y:#x}, {z:#x}) round {round}: {got:#x}, expected {want:#x}",
                        form.body
                    ));
                    break;
                }
            }
            device.free(out);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    keep(&text, &forms, &operands);
}

#[test]
fn integer_instructions() {
    check(integer_forms());
}

#[test]
fn float_instructions() {
    check(float_forms());
}

#[test]
fn sm90_instructions() {
    check(sm90_forms());
}

#[test]
fn approximate_instructions() {
    check(approximate_forms());
}

#[test]
fn every_form_assembles() {
    let Some(ptxas) = Ptxas::or_skip("every_form_assembles") else { return };
    let portable: Vec<Form> =
        integer_forms().into_iter().chain(float_forms()).chain(approximate_forms()).collect();
    let text = HEADER.to_string() + &texts(&portable).concat();
    let sm90 = HEADER_90.to_string() + &texts(&sm90_forms()).concat();
    let old = vec![("forms".to_string(), text.clone())];
    ptxas.assemble("sm_80", &old).unwrap_or_else(|e| panic!("{}", e.join("\n")));
    let new = vec![("forms".to_string(), text.replace(HEADER, HEADER_90)), ("sm_90 forms".to_string(), sm90)];
    ptxas.assemble("sm_90a", &new).unwrap_or_else(|e| panic!("{}", e.join("\n")));
}

#[test]
fn unknown_opcodes_and_modifiers_are_rejected_with_line_and_text() {
    for (body, word) in [
        ("add.bogus.s32 %d, %a, %b;", "bogus"),
        ("frobnicate.b32 %d, %a;", "frobnicate"),
        ("add.f32 %d, %ad, %b;", "32 bits"),
        ("cvt.f16.f32 %dh, %a;", "rounding"),
        ("setp.lt.b32 %p, %a, %b;", "comparison"),
        ("ex2.f32 %d, %a;", "approx"),
        ("mov.b32 %d, %nope;", "nope"),
        ("bra NOWHERE;", "NOWHERE"),
        ("ld.global.v3.f32 {%a, %b, %c}, [%ap];", "v3"),
        ("st.shared.f32 [%zz], %a;", "zz"),
        // ptxas: parsing error near `-`; an offset is added, whatever its sign
        ("ld.global.f32 %a, [%ap-4];", "]"),
    ] {
        let text = HEADER.to_string() + &form_kernel("k", body, "%d");
        let error = Device::new(&text).err().unwrap_or_else(|| panic!("{body} is accepted")).to_string();
        assert!(error.contains(word) && error.contains("line"), "{body}: {error}");
    }
}
