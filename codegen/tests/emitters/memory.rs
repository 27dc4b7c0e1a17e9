//! Loads, stores, gathers, scatters, and the types that memory and registers can have.

use crate::harness::{Case, check, machine, map};
use ir::DType;
use ir::loops::{Level, Space, Ty};
use ir::loops_build::LoopBuilder;
use ir::prim::{BinaryOp, CmpOp};
use ir::{Dim, Sym};

/// Bytes that look like nothing in particular.
fn noise(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 89 + i / 7 + 130) as u8).collect()
}

/// Noise that is valid for a type: numbers of less than a byte are extended to it.
fn elements(dtype: DType, n: usize) -> Vec<u8> {
    let unused = 8 - dtype.bits().min(8);
    let extend = |b: u8| match dtype {
        DType::I4 | DType::I2 => ((b << unused) as i8 >> unused) as u8,
        DType::U4 | DType::U2 => b << unused >> unused,
        _ => b,
    };
    noise(n * dtype.bytes()).into_iter().map(extend).collect()
}

/// Pairs of a stored type and a register type that machine form can load and store.
fn pairs() -> Vec<(DType, DType)> {
    use DType as D;
    let mut pairs = Vec::new();
    for (size, registers) in [(4, [D::I32, D::U32, D::F32]), (8, [D::I64, D::U64, D::F64])] {
        let stored =
            [D::I32, D::U32, D::F32, D::I64, D::U64, D::F64].into_iter().filter(|d| d.bytes() == size);
        pairs.extend(stored.flat_map(|s| registers.map(|r| (s, r))));
    }
    pairs.extend([D::I8, D::I16, D::I4, D::I2, D::U8, D::U16, D::U4, D::U2].map(|s| (s, D::I32)));
    pairs.extend(
        [D::U8, D::U16, D::U4, D::U2, D::F16, D::BF16, D::F8E4M3FN, D::F8E8M0, D::F4E2M1]
            .map(|s| (s, D::U32)),
    );
    pairs.push((D::Bool, D::Bool));
    pairs
}

/// What a load of stored bytes gives, as bytes of the register.
fn loaded(stored: DType, register: DType, bytes: &[u8]) -> Vec<u8> {
    if stored == DType::Bool {
        return vec![u8::from(bytes[0] != 0)];
    }
    let negative = stored.is_signed_int() && bytes[bytes.len() - 1] >= 0x80;
    let mut wide = bytes.to_vec();
    wide.resize(register.bytes(), if negative { 0xff } else { 0 });
    wide
}

#[test]
fn loads_widen_and_stores_narrow() {
    check(|lanes, _| {
        let (n, trip) = (32, 32 / i64::from(lanes));
        let mut cases = Vec::new();
        for (stored, register) in pairs() {
            let input = elements(stored, n);
            let func = map(lanes, n, &[(stored, register)], register, |_, v| v[0]);
            let want: Vec<u8> =
                input.chunks(stored.bytes()).flat_map(|e| loaded(stored, register, e)).collect();
            let label = format!("{stored} to register {register}");
            let bufs = vec![input.clone(), vec![0; n * register.bytes()]];
            cases.push(Case::new(label, func, bufs, vec![None, Some(want)], trip));
            let func = map(lanes, n, &[(stored, register)], stored, |_, v| v[0]);
            let same = if stored == DType::Bool {
                input.iter().map(|b| u8::from(*b != 0)).collect()
            } else {
                input.clone()
            };
            let label = format!("{stored} through register {register}");
            let bufs = vec![input, vec![0; n * stored.bytes()]];
            cases.push(Case::new(label, func, bufs, vec![None, Some(same)], trip));
        }
        cases
    });
}

#[test]
fn small_numbers_wrap_when_stored() {
    check(|lanes, _| {
        let trip = 32 / i64::from(lanes);
        [DType::I4, DType::U4, DType::I2, DType::U2, DType::I8, DType::U8]
            .map(|dtype| {
                let numbers = (0..32i32).map(|i| i * 37 - 500);
                let func = map(lanes, 32, &[(DType::I32, DType::I32)], dtype, |_, v| v[0]);
                let (bits, signed) = (dtype.bits(), dtype.is_signed_int());
                let wrap = |x: i32| {
                    let up = x << (32 - bits);
                    (if signed { up >> (32 - bits) } else { (up as u32 >> (32 - bits)) as i32 }) as u8
                };
                let input = numbers.clone().flat_map(|x| x.to_le_bytes()).collect();
                let want = numbers.map(wrap).collect();
                Case::new(
                    format!("i32 to {dtype}"),
                    func,
                    vec![input, vec![0; 32]],
                    vec![None, Some(want)],
                    trip,
                )
            })
            .into()
    });
}

#[test]
fn half_precision() {
    check(|lanes, backend| {
        if !backend.target().has_f16 {
            return Vec::new();
        }
        // every f16 there is
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let trip = (1 << 16) / i64::from(lanes);
        let wide: Vec<u8> =
            (0..=u16::MAX).flat_map(|h| half::f16::from_bits(h).to_f32().to_le_bytes()).collect();
        let load = map(lanes, 1 << 16, &[(DType::F16, DType::F32)], DType::F32, |_, v| v[0]);
        let load = Case::new("f16 to f32", load, vec![all, vec![0; 4 << 16]], vec![None, Some(wide)], trip);
        // f32 around the ties between neighbours
        let input: Vec<f32> =
            (0..1u32 << 16).map(|i| f32::from_bits(i.wrapping_mul(0x1_0001) ^ 0x1000)).collect();
        let input: Vec<f32> = input.into_iter().map(|x| if x.is_nan() { 1.0 } else { x }).collect();
        let narrow: Vec<u8> =
            input.iter().flat_map(|x| half::f16::from_f32(*x).to_bits().to_le_bytes()).collect();
        let input: Vec<u8> = input.iter().flat_map(|x| x.to_le_bytes()).collect();
        let store = map(lanes, 1 << 16, &[(DType::F32, DType::F32)], DType::F16, |_, v| v[0]);
        let store =
            Case::new("f32 to f16", store, vec![input, vec![0; 2 << 16]], vec![None, Some(narrow)], trip);
        vec![load, store]
    });
}

#[test]
fn partial_accesses() {
    check(|lanes, _| {
        let n = lanes as usize;
        let mut cases = Vec::new();
        for (stored, register) in pairs() {
            for valid in 0..=n {
                for constant in [false, true] {
                    // copy the first `valid` elements, and store what was loaded as a whole register
                    let mut b = LoopBuilder::new("partial");
                    let from = b.buf("from", stored, false, 64);
                    let (part, whole) = (b.buf("part", stored, true, 64), b.buf("whole", register, true, 64));
                    let count = if constant { b.index(valid as i64) } else { b.sym(Sym(7)) };
                    let one = b.index(1);
                    b.parallel(Level::Thread, one, |b, i| {
                        let mut addr = b.addr(from, i, 1);
                        addr.cols_valid = Some(count);
                        let v = b.load_as(addr, Ty::vector(register, lanes));
                        let mut addr = b.addr(part, i, 1);
                        addr.cols_valid = Some(count);
                        b.store(addr, v);
                        let addr = b.addr(whole, i, 0);
                        b.store(addr, v);
                    });
                    let (size, input) = (stored.bytes(), elements(stored, n + 1));
                    let elements = || input[size..].chunks(size).take(valid);
                    let mut want_part = vec![0x77; (n + 1) * size];
                    for (i, e) in elements().enumerate() {
                        let e = if stored == DType::Bool { loaded(stored, register, e) } else { e.to_vec() };
                        want_part[(i + 1) * size..][..size].copy_from_slice(&e);
                    }
                    let mut want_whole: Vec<u8> =
                        elements().flat_map(|e| loaded(stored, register, e)).collect();
                    want_whole.resize(n * register.bytes(), 0);
                    let bufs =
                        vec![input.clone(), vec![0x77; (n + 1) * size], vec![0x55; n * register.bytes()]];
                    let expect = vec![None, Some(want_part), Some(want_whole)];
                    let label = format!("{valid} of {n} {stored} as {register}");
                    let mut case = Case::new(label, machine(b), bufs, expect, 1);
                    case.syms = vec![valid as i64];
                    cases.push(case);
                }
            }
        }
        cases
    });
}

#[test]
fn partial_vectors_at_the_end_of_memory() {
    // Elements beyond the valid ones lie on a page that must not be touched.
    use format::abi::{KernelArgs, KernelStatus};
    for name in kernelsmith_codegen::available() {
        let backend = kernelsmith_codegen::backend(name, 1).unwrap();
        let lanes = backend.target().lanes(4);
        let mut b = LoopBuilder::new("edge");
        let mem = b.buf("x", DType::F32, true, 4);
        let count = b.sym(Sym(0));
        let one = b.index(1);
        b.parallel(Level::Thread, one, |b, i| {
            let mut addr = b.addr(mem, i, 0);
            addr.cols_valid = Some(count);
            let v = b.load(addr, 1, lanes);
            let two = b.add(v, v);
            b.store(addr, two);
        });
        let compiled = backend.compile(&[&machine(b)]).unwrap();
        let image = runtime::loader::CodeImage::load(&[&compiled[0].object]).unwrap();
        let kernel = image.function(0, &compiled[0].symbol).unwrap();
        let page = 4096;
        let mut map = memmap2::MmapMut::map_anon(2 * page).unwrap();
        let base = map.as_mut_ptr();
        // SAFETY: the second page belongs to the mapping, which outlives the accesses.
        assert_eq!(unsafe { libc::mprotect(base.add(page).cast(), page, libc::PROT_NONE) }, 0);
        for valid in 0..=i64::from(lanes) {
            // SAFETY: `valid` elements in front of the protected page.
            unsafe {
                let x = base.add(page - 4 * valid as usize);
                x.cast::<f32>().write_bytes(0, valid as usize);
                for i in 0..valid as usize {
                    x.cast::<f32>().add(i).write(i as f32);
                }
                let bufs = [x];
                let mut status = KernelStatus::default();
                let args = KernelArgs {
                    bufs: bufs.as_ptr(),
                    syms: &valid,
                    scratch: std::ptr::null_mut(),
                    status: &mut status,
                };
                kernel(&args, 0, 1);
                for i in 0..valid as usize {
                    assert_eq!(x.cast::<f32>().add(i).read(), 2.0 * i as f32);
                }
            }
        }
    }
}

#[test]
fn gathers_and_scatters() {
    check(|lanes, _| {
        let n = lanes as usize;
        let mut cases = Vec::new();
        for (stored, register) in pairs() {
            for masked in [false, true] {
                // out[i] = x[index[i]], and scattered[index[i]] = out[i]; the mask takes the odd indices
                let mut b = LoopBuilder::new("gather");
                let (x, at) = (b.buf("x", stored, false, 64), b.buf("index", DType::I64, false, 64));
                let (out, scattered) =
                    (b.buf("out", register, true, 64), b.buf("scattered", stored, true, 64));
                let one = b.index(1);
                b.parallel(Level::Thread, one, |b, i| {
                    let addr = b.addr(at, i, 0);
                    let index = b.load(addr, 1, lanes);
                    let mask = masked.then(|| {
                        let (one, zero) = (b.int(b.ty(index), 1), b.int(b.ty(index), 0));
                        let odd = b.binary(BinaryOp::And, index, one);
                        b.cmp(CmpOp::Ne, odd, zero)
                    });
                    let v = b.gather_as(x, index, mask, Ty::vector(register, lanes));
                    let addr = b.addr(out, i, 0);
                    b.store(addr, v);
                    b.scatter(scattered, index, v, mask);
                });
                // some indices come twice
                let index: Vec<i64> = (0..n as i64).map(|i| (i * 5 + 3) % (n as i64 - 1).max(1)).collect();
                let size = stored.bytes();
                let input = elements(stored, n);
                let take = |i: i64| !masked || i % 2 == 1;
                let element = |i: i64| &input[i as usize * size..][..size];
                let want_out: Vec<u8> = index
                    .iter()
                    .flat_map(|i| match take(*i) {
                        true => loaded(stored, register, element(*i)),
                        false => vec![0; register.bytes()],
                    })
                    .collect();
                let mut want_scattered = vec![0x33; n * size];
                for i in index.iter().filter(|i| take(**i)) {
                    let e = if stored == DType::Bool {
                        loaded(stored, register, element(*i))
                    } else {
                        element(*i).to_vec()
                    };
                    want_scattered[*i as usize * size..][..size].copy_from_slice(&e);
                }
                let index = index.iter().flat_map(|i| i.to_le_bytes()).collect();
                let bufs = vec![input.clone(), index, vec![0x55; n * register.bytes()], vec![0x33; n * size]];
                let expect = vec![None, None, Some(want_out), Some(want_scattered)];
                cases.push(Case::new(format!("gather {stored} as {register}"), machine(b), bufs, expect, 1));
            }
        }
        cases
    });
}

#[test]
fn the_last_of_equal_addresses_wins() {
    check(|lanes, _| {
        if lanes == 1 {
            return Vec::new();
        }
        let mut b = LoopBuilder::new("scatter");
        let out = b.buf("out", DType::I32, true, 64);
        let one = b.index(1);
        b.parallel(Level::Thread, one, |b, _| {
            let index = b.int(Ty::vector(DType::I64, lanes), 1);
            let value = b.iota(Ty::vector(DType::I32, lanes), true);
            b.scatter(out, index, value, None);
        });
        let want = [0, lanes as i32 - 1].iter().flat_map(|x| x.to_le_bytes()).collect();
        vec![Case::new("scatter", machine(b), vec![vec![0; 8]], vec![Some(want)], 1)]
    });
}

#[test]
fn scratch_memory() {
    check(|lanes, _| {
        // x goes through two local arrays whose sizes are only known at run time
        let mut b = LoopBuilder::new("scratch");
        let (x, out) = (b.buf("x", DType::I32, false, 64), b.buf("out", DType::I32, true, 64));
        let size = Dim::from(Sym(3)) * Dim::from(3) + Dim::from(1);
        let first = b.local(DType::I32, size.clone(), Space::Scratch);
        let second = b.local(DType::U8, size, Space::Scratch);
        let third = b.local(DType::I32, Dim::from(64), Space::Scratch);
        b.sym_param(Sym(3));
        let trip = b.index(32 / i64::from(lanes));
        b.parallel(Level::Thread, trip, |b, i| {
            let width = b.index(i64::from(lanes));
            let at = b.mul(i, width);
            let addr = b.addr(x, at, 0);
            let v = b.load(addr, 1, lanes);
            for (mem, disp) in [(first, 0), (third, 16)] {
                let start = b.index(disp);
                let addr = b.addr(mem, start, 0);
                b.store(addr, v);
            }
            let start = b.index(0);
            let addr = b.addr(second, start, 2);
            b.store(addr, v);
            let addr = b.addr(first, start, 0);
            let whole = b.load_as(addr, Ty::vector(DType::I32, lanes));
            let addr = b.addr(second, start, 2);
            let byte = b.load_as(addr, Ty::vector(DType::I32, lanes));
            let addr = b.addr(third, start, 16);
            let last = b.load_as(addr, Ty::vector(DType::I32, lanes));
            let sum = b.add(whole, byte);
            let sum = b.add(sum, last);
            let addr = b.addr(out, at, 0);
            b.store(addr, sum);
        });
        let func = machine(b);
        let bytes = kernelsmith_codegen::scratch_bytes(&func);
        // 61 elements of 4 bytes and of 1 byte, and 64 of 4 bytes, each rounded up to 64
        assert_eq!(bytes.eval_syms(&|_| Some(20)), Some(256 + 64 + 256));
        let input: Vec<u8> = (0..32i32).flat_map(|i| (1000 * i).to_le_bytes()).collect();
        let want = (0..32i32).flat_map(|i| (2000 * i + (1000 * i) % 256).to_le_bytes()).collect();
        let mut case = Case::new(
            "scratch",
            func,
            vec![input, vec![0; 128]],
            vec![None, Some(want)],
            32 / i64::from(lanes),
        );
        case.syms = vec![20];
        vec![case]
    });
}

#[test]
fn large_displacements() {
    check(|lanes, _| {
        // the index takes back what the displacement adds
        let func = {
            let mut b = LoopBuilder::new("far");
            let (x, out) = (b.buf("x", DType::F32, false, 64), b.buf("out", DType::F32, true, 64));
            let back = b.sym(Sym(0));
            let one = b.index(1);
            b.parallel(Level::Thread, one, |b, _| {
                let addr = b.addr(x, back, 1 << 40);
                let v = b.load(addr, 1, lanes);
                let addr = b.addr(out, back, 1 << 40);
                b.store(addr, v);
            });
            machine(b)
        };
        let input = noise(4 * lanes as usize);
        let mut case =
            Case::new("far", func, vec![input.clone(), vec![0; input.len()]], vec![None, Some(input)], 1);
        case.syms = vec![-(1 << 40)];
        vec![case]
    });
}
