//! `ldmatrix`, `stmatrix`, `mma.sync`: fragments as the PTX ISA lays them out (§9.7.15.5).

use super::launch::Env;
use super::step::Machine;
use super::warp::Warp;
use crate::decode::op::*;
use crate::fault::{At, at};
use crate::mem::How;
use crate::num::formats::*;
use crate::syntax::types::Space;

impl Machine<'_> {
    /// The warp is known to be complete.
    pub(super) fn matrix(&mut self, w: &mut Warp, env: &mut Env, inst: &Inst) -> At<()> {
        match inst.op {
            Op::LdMatrix { addr, n, trans, d } => self.ldmatrix(w, env, addr, n as usize, trans, d),
            Op::StMatrix { addr, n, trans, a } => {
                self.stmatrix(w, env, addr, n as usize, trans, a, inst.line)
            }
            Op::Mma(m) => self.mma(w, &m),
            _ => Ok(()),
        }
    }

    /// Offsets of the 8 * n rows; lane 8*i + r gives the address of row r of matrix i.
    fn rows(&mut self, w: &Warp, env: &Env, addr: Addr, n: usize, load: bool) -> At<Vec<usize>> {
        let lanes = if n == 4 { u32::MAX } else { (1 << (8 * n)) - 1 };
        let addresses = self.addresses(w, addr, lanes)?;
        self.count(Space::Shared, &addresses, 16, lanes, load);
        (0..8 * n).map(|l| at(l as u32, env.shared.check(addresses[l], 16))).collect()
    }

    /// §9.7.15.5.15: thread t gets elements 2(t mod 4), +1 of row t / 4; with `.trans`, of column t / 4.
    fn ldmatrix(
        &mut self,
        w: &mut Warp,
        env: &mut Env,
        addr: Addr,
        n: usize,
        trans: bool,
        d: [Slot; 4],
    ) -> At<()> {
        let rows = self.rows(w, env, addr, n, true)?;
        for (i, slot) in d[..n].iter().enumerate() {
            for t in 0..32 {
                let mut value = 0u64;
                for h in 0..2 {
                    let (mut r, mut c) = (t / 4, 2 * (t % 4) + h);
                    if trans {
                        (r, c) = (c, r);
                    }
                    let place = rows[8 * i + r] + 2 * c;
                    at(t as u32, env.shared.on_read(&w.clock, t as u32, place, 2, false))?;
                    let e = u16::from_le_bytes([env.shared.data[place], env.shared.data[place + 1]]);
                    value |= u64::from(e) << (16 * h);
                }
                w.put(*slot, t, value);
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn stmatrix(
        &mut self,
        w: &Warp,
        env: &mut Env,
        addr: Addr,
        n: usize,
        trans: bool,
        a: [Slot; 4],
        line: u32,
    ) -> At<()> {
        let rows = self.rows(w, env, addr, n, false)?;
        for (i, slot) in a[..n].iter().enumerate() {
            w.need(self.program, *slot, u32::MAX)?;
            for t in 0..32 {
                let value = w.value(*slot, t);
                for h in 0..2 {
                    let (mut r, mut c) = (t / 4, 2 * (t % 4) + h);
                    if trans {
                        (r, c) = (c, r);
                    }
                    let place = rows[8 * i + r] + 2 * c;
                    at(t as u32, env.shared.on_write(&w.clock, t as u32, place, 2, line, How::Plain))?;
                    let bits = (value >> (16 * h)) as u16;
                    env.shared.data[place..place + 2].copy_from_slice(&bits.to_le_bytes());
                }
            }
        }
        Ok(())
    }

    /// D = A * B + C. Products are exact; sums go in f64 (f32, f16 results) or wrap in i32.
    fn mma(&mut self, w: &mut Warp, m: &Mma) -> At<()> {
        for s in m.a.iter().chain(&m.b).chain(&m.c) {
            w.need(self.program, *s, u32::MAX)?;
        }
        let mut a = vec![0.0; m.m * m.k];
        let mut b = vec![0.0; m.n * m.k];
        for lane in 0..32 {
            for i in 0..m.m * m.k / 32 {
                let (r, c) = place_a(m, lane, i);
                a[r * m.k + c] = element(w, m.a_ty, &m.a, lane, i);
            }
            for i in 0..m.k * m.n / 32 {
                let (r, c) = place_b(m, lane, i);
                b[c * m.k + r] = element(w, m.b_ty, &m.b, lane, i);
            }
        }
        for lane in 0..32 {
            let count = m.m * m.n / 32;
            let mut out = [0u64; 8];
            for i in 0..count {
                let (r, c) = place_c(m, lane, i);
                let start = element(w, m.c_ty, &m.c, lane, i);
                let (x, y) = (&a[r * m.k..(r + 1) * m.k], &b[c * m.k..(c + 1) * m.k]);
                let dot: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>() + start;
                pack(&mut out, m, i, dot);
            }
            for (slot, v) in m.d.iter().zip(out) {
                w.put(*slot, lane, v);
            }
        }
        Ok(())
    }
}

/// Element `i` of a lane's fragment, as a number.
fn element(w: &Warp, e: Elem, regs: &[Slot; 8], lane: usize, i: usize) -> f64 {
    let per = (e.word_bits() / e.bits()).max(1);
    let word = w.value(regs[i / per], lane);
    let v = word >> (e.bits() * (i % per));
    match e {
        Elem::F16 => F16.decode(v as u32 & 0xffff),
        Elem::BF16 => BF16.decode(v as u32 & 0xffff),
        // the low 13 bits are ignored (§9.7.15.5)
        Elem::TF32 => f64::from(f32::from_bits(v as u32 & !0x1fff)),
        Elem::F32 => f64::from(f32::from_bits(v as u32)),
        Elem::F64 => f64::from_bits(v),
        Elem::E4M3 => E4M3.decode(v as u32 & 0xff),
        Elem::E5M2 => E5M2.decode(v as u32 & 0xff),
        Elem::S8 => f64::from(v as u8 as i8),
        Elem::U8 => f64::from(v as u8),
        Elem::S4 => f64::from((v as u8 as i8) << 4 >> 4),
        Elem::U4 => f64::from(v as u8 & 15),
        Elem::S32 => f64::from(v as u32 as i32),
    }
}

fn pack(out: &mut [u64; 8], m: &Mma, i: usize, dot: f64) {
    match m.d_ty {
        Elem::F16 => out[i / 2] |= u64::from(F16.encode(dot, Round::Even, false)) << (16 * (i % 2)),
        Elem::F32 => out[i] = u64::from(F32.encode(dot, Round::Even, false)),
        Elem::F64 => out[i] = dot.to_bits(),
        _ if m.satfinite => out[i] = u64::from(dot as i32 as u32),
        _ => out[i] = u64::from(dot as i64 as u32),
    }
}

/// Row and column of element `i` of lane `lane` in A (§9.7.15.5.1-10).
fn place_a(m: &Mma, lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane / 4, lane % 4);
    if m.m == 8 {
        return (group, in_group);
    }
    // consecutive elements of a 32-bit register lie side by side; registers alternate rows, then column blocks
    let per = (32 / m.a_ty.bits()).max(1);
    let (reg, inner) = (i / per, i % per);
    (group + 8 * (reg % 2), in_group * per + inner + (reg / 2) * 4 * per)
}

/// Row and column in B.
fn place_b(m: &Mma, lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane / 4, lane % 4);
    if m.m == 8 {
        return (in_group, group);
    }
    let per = (32 / m.b_ty.bits()).max(1);
    let (reg, inner) = (i / per, i % per);
    (in_group * per + inner + reg * 4 * per, group)
}

/// Row and column in C and D.
fn place_c(m: &Mma, lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane / 4, lane % 4);
    if m.m == 8 { (group, in_group * 2 + i) } else { (group + 8 * (i / 2), in_group * 2 + i % 2) }
}
