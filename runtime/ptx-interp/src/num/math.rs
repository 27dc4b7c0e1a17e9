//! Scalar pieces of floating-point instructions (PTX ISA §9.7.3-9.7.5): NaN rules, flushing, approximations.
//!
//! Approximate instructions are computed in f64 and rounded; devices differ by a few units in the last
//! place, so compare with a tolerance.

/// Bits to f32.
#[inline(always)]
pub fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

/// Bits to f64.
#[inline(always)]
pub fn g(x: u64) -> f64 {
    f64::from_bits(x)
}

/// f32 to bits; every NaN becomes the canonical one.
#[inline(always)]
pub fn c(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

/// f64 to bits; NaN payloads are kept (§9.7.3).
#[inline(always)]
pub fn cd(x: f64) -> u64 {
    x.to_bits()
}

/// Subnormals become zeros of the same sign (`.ftz`).
#[inline(always)]
pub fn z(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

/// Clamped to [0, 1], NaN to +0 (`.sat`).
#[inline(always)]
pub fn sat(x: u32) -> u32 {
    let v = f(x);
    if v > 0.0 { if v < 1.0 { x } else { 0x3f80_0000 } } else { 0 }
}

/// §9.7.3.11 `min`: a NaN loses against a number, -0 is below +0.
#[inline(always)]
pub fn fmin(a: u32, b: u32) -> u32 {
    let (x, y) = (f(a), f(b));
    let number = if x < y {
        a
    } else if y < x {
        b
    } else {
        a | b
    };
    choose_number(a, b, number)
}

/// §9.7.3.12 `max`.
#[inline(always)]
pub fn fmax(a: u32, b: u32) -> u32 {
    let (x, y) = (f(a), f(b));
    let number = if x > y {
        a
    } else if y > x {
        b
    } else {
        a & b
    };
    choose_number(a, b, number)
}

#[inline(always)]
fn choose_number(a: u32, b: u32, number: u32) -> u32 {
    match (f(a).is_nan(), f(b).is_nan()) {
        (false, false) => number,
        (true, false) => b,
        (false, true) => a,
        (true, true) => 0x7fff_ffff,
    }
}

/// `.NaN`: a NaN operand makes the result the canonical NaN.
#[inline(always)]
pub fn nan_wins(a: u32, b: u32, r: u32) -> u32 {
    if f(a).is_nan() || f(b).is_nan() { 0x7fff_ffff } else { r }
}

pub fn dmin(a: u64, b: u64) -> u64 {
    let (x, y) = (g(a), g(b));
    if x.is_nan() {
        b
    } else if y.is_nan() || x < y {
        a
    } else if y < x {
        b
    } else {
        a | b
    }
}

pub fn dmax(a: u64, b: u64) -> u64 {
    let (x, y) = (g(a), g(b));
    if x.is_nan() {
        b
    } else if y.is_nan() || x > y {
        a
    } else if y > x {
        b
    } else {
        a & b
    }
}

/// 2^x (`ex2.approx`), within one unit in the last place of f32.
#[inline(always)]
pub fn ex2(x: f32) -> f32 {
    let v = f64::from(x);
    let v = if v > 200.0 { 200.0 } else { v };
    let v = if v < -200.0 { -200.0 } else { v };
    // the magic constant rounds to an integer and leaves it in the low bits
    let shifted = v + 6_755_399_441_055_744.0;
    let n = shifted.to_bits() << 52;
    let r = (v - (shifted - 6_755_399_441_055_744.0)) * std::f64::consts::LN_2;
    let p = 1.0 / 40320.0;
    let p = p * r + 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    let y = f64::from_bits(p.to_bits().wrapping_add(n)) as f32;
    if x.is_nan() { x } else { y }
}

/// log2 x (`lg2.approx`).
pub fn lg2(x: f32) -> f32 {
    f64::from(x).log2() as f32
}

pub fn rsqrt(x: f32) -> f32 {
    (1.0 / f64::from(x).sqrt()) as f32
}

/// Bit position of the leading bit (§9.7.1.16 `bfind`), of the first bit unlike the sign for signed types.
pub fn bfind(x: u64, width: u32, signed: bool) -> u64 {
    let x = if signed && x >> (width - 1) & 1 == 1 { !x } else { x };
    let x = if width == 64 { x } else { x & ((1 << width) - 1) };
    if x == 0 { u64::from(u32::MAX) } else { u64::from(63 - x.leading_zeros()) }
}

/// Bit field extract (§9.7.1.19).
pub fn bfe(a: u64, pos: u64, len: u64, width: u64, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let msb = width - 1;
    let sign = if !signed || len == 0 { 0 } else { a >> (pos + len - 1).min(msb) & 1 };
    (0..width).fold(0, |d, i| {
        let bit = if i < len && pos + i <= msb { a >> (pos + i) & 1 } else { sign };
        d | bit << i
    })
}

/// Bit field insert (§9.7.1.20): `a` into `b`.
pub fn bfi(a: u64, b: u64, pos: u32, len: u32, width: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    (0..len)
        .take_while(|i| pos + i < width)
        .fold(b, |d, i| (d & !(1 << (pos + i))) | (a >> i & 1) << (pos + i))
}

/// Byte permute (§9.7.9.7), default mode: a selector nibble picks a byte, its top bit replicates the sign.
#[inline(always)]
pub fn prmt(a: u32, b: u32, sel: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let one = |s: u32| {
        let byte = (bytes >> (8 * (s & 7))) as u32 & 0xff;
        if s & 8 != 0 { (byte >> 7) * 0xff } else { byte }
    };
    one(sel & 15) | one(sel >> 4 & 15) << 8 | one(sel >> 8 & 15) << 16 | one(sel >> 12 & 15) << 24
}

/// The selector that a named `prmt` mode stands for, given the two low bits of operand c.
pub fn prmt_selector(mode: &str, c: u32) -> Option<u32> {
    let c = c & 3;
    Some(match mode {
        "f4e" => 0x3210 + 0x1111 * c,
        "b4e" => [0x5670, 0x6701, 0x7012, 0x0123][c as usize],
        "rc8" => 0x1111 * c,
        "ecl" => [0x3210, 0x3211, 0x3222, 0x3333][c as usize],
        "ecr" => [0x0000, 0x1110, 0x2210, 0x3210][c as usize],
        "rc16" => {
            if c & 1 == 0 {
                0x1010
            } else {
                0x3232
            }
        }
        _ => return None,
    })
}

/// Three-input logic by table (§9.7.8.6).
#[inline(always)]
pub fn lop3(a: u32, b: u32, x: u32, table: u32) -> u32 {
    let mut r = 0;
    let term = |bit: u32| 0u32.wrapping_sub(table >> bit & 1);
    r |= !a & !b & !x & term(0);
    r |= !a & !b & x & term(1);
    r |= !a & b & !x & term(2);
    r |= !a & b & x & term(3);
    r |= a & !b & !x & term(4);
    r |= a & !b & x & term(5);
    r |= a & b & !x & term(6);
    r |= a & b & x & term(7);
    r
}
