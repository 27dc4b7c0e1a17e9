//! What ptxas computes at compile time: it folds integer arithmetic, shifts, comparisons and conversions of constants,
//! so its machine code says what NVIDIA's own implementation of the semantics gives. Needs ptxas and cuobjdump;
//! skipped visibly without them.

mod support;

use kernelsmith_ptx_interp::assemble::Ptxas;
use kernelsmith_ptx_interp::{Config, Params, formats};
use std::collections::HashMap;
use std::process::Command;
use support::{Device, HEADER, Random, interesting};

/// An instruction of two operands (`$a`, `$b`: registers `%a`, `%b` of 32 bits, `%ad`, `%bd` of 64, `%fa`, `%fb`, `%da`),
/// and the register of its result: `%r` or `%rd`, `%f` or `%fd`, `%p`.
const FORMS: &[(&str, &str)] = &[
    ("add.s32 %r, %a, %b", "%r"),
    ("sub.s32 %r, %a, %b", "%r"),
    ("mul.lo.s32 %r, %a, %b", "%r"),
    ("mul.hi.s32 %r, %a, %b", "%r"),
    ("mul.hi.u32 %r, %a, %b", "%r"),
    ("mad.lo.s32 %r, %a, %b, %a", "%r"),
    ("min.s32 %r, %a, %b", "%r"),
    ("max.s32 %r, %a, %b", "%r"),
    ("min.u32 %r, %a, %b", "%r"),
    ("max.u32 %r, %a, %b", "%r"),
    ("and.b32 %r, %a, %b", "%r"),
    ("or.b32 %r, %a, %b", "%r"),
    ("xor.b32 %r, %a, %b", "%r"),
    ("not.b32 %r, %a", "%r"),
    ("neg.s32 %r, %a", "%r"),
    ("abs.s32 %r, %a", "%r"),
    ("shl.b32 %r, %a, %b", "%r"),
    ("shr.s32 %r, %a, %b", "%r"),
    ("shr.u32 %r, %a, %b", "%r"),
    ("bfind.u32 %r, %a", "%r"),
    ("popc.b32 %r, %a", "%r"),
    ("clz.b32 %r, %a", "%r"),
    ("brev.b32 %r, %a", "%r"),
    ("prmt.b32 %r, %a, %b, 0x5410", "%r"),
    ("lop3.b32 %r, %a, %b, %a, 0xe8", "%r"),
    ("add.s64 %rd, %ad, %bd", "%rd"),
    ("sub.s64 %rd, %ad, %bd", "%rd"),
    ("mul.lo.s64 %rd, %ad, %bd", "%rd"),
    ("mad.lo.s64 %rd, %ad, %bd, %ad", "%rd"),
    ("mad.wide.s32 %rd, %a, %b, %ad", "%rd"),
    ("mul.wide.u32 %rd, %a, %b", "%rd"),
    ("min.s64 %rd, %ad, %bd", "%rd"),
    ("max.u64 %rd, %ad, %bd", "%rd"),
    ("and.b64 %rd, %ad, %bd", "%rd"),
    ("xor.b64 %rd, %ad, %bd", "%rd"),
    ("shl.b64 %rd, %ad, %b", "%rd"),
    ("shr.s64 %rd, %ad, %b", "%rd"),
    ("shr.u64 %rd, %ad, %b", "%rd"),
    ("cvt.s64.s32 %rd, %a", "%rd"),
    ("cvt.u64.u32 %rd, %a", "%rd"),
    ("cvt.u32.u64 %r, %ad", "%r"),
    ("cvt.s32.s8 %r, %a", "%r"),
    ("cvt.s32.s16 %r, %a", "%r"),
    ("cvt.u32.u8 %r, %a", "%r"),
    ("cvt.rn.f32.s32 %f, %a", "%f"),
    ("cvt.rn.f32.u32 %f, %a", "%f"),
    ("cvt.rn.f32.s64 %f, %ad", "%f"),
    ("cvt.rn.f32.u64 %f, %ad", "%f"),
    ("cvt.rn.f64.s32 %fd, %a", "%fd"),
    ("cvt.rn.f64.s64 %fd, %ad", "%fd"),
    ("cvt.rzi.s32.f32 %r, %fa", "%r"),
    ("cvt.rzi.u32.f32 %r, %fa", "%r"),
    ("cvt.rzi.s64.f32 %rd, %fa", "%rd"),
    ("cvt.rzi.s32.f64 %r, %da", "%r"),
    ("cvt.rzi.s64.f64 %rd, %da", "%rd"),
    ("cvt.rni.f32.f32 %f, %fa", "%f"),
    ("cvt.rzi.f32.f32 %f, %fa", "%f"),
    ("cvt.rmi.f32.f32 %f, %fa", "%f"),
    ("cvt.rpi.f32.f32 %f, %fa", "%f"),
    ("cvt.rn.f32.f64 %f, %da", "%f"),
    ("cvt.f64.f32 %fd, %fa", "%fd"),
    ("neg.f32 %f, %fa", "%f"),
    ("abs.f32 %f, %fa", "%f"),
    ("setp.lt.s32 %p, %a, %b", "%p"),
    ("setp.le.u32 %p, %a, %b", "%p"),
    ("setp.lt.s64 %p, %ad, %bd", "%p"),
    ("setp.eq.f32 %p, %fa, %fb", "%p"),
    ("setp.neu.f32 %p, %fa, %fb", "%p"),
    ("setp.lt.f32 %p, %fa, %fb", "%p"),
    ("setp.ge.f32 %p, %fa, %fb", "%p"),
    ("setp.nan.f32 %p, %fa, %fb", "%p"),
];

/// Operands per form.
const PAIRS: usize = 12;

/// An entry that applies the form to constants and stores each result 8 bytes after the last.
fn entry(name: &str, form: &str, result: &str, pairs: &[(u64, u64)]) -> String {
    let mut body = String::new();
    for (i, (a, b)) in pairs.iter().enumerate() {
        let (a32, b32) = (*a as u32, *b as u32);
        let store = match result {
            "%p" => format!("selp.b32 %r, 1, 0, %p;\nst.global.b32 [%o+{}], %r;\n", 8 * i),
            "%f" => format!("mov.b32 %r, %f;\nst.global.b32 [%o+{}], %r;\n", 8 * i),
            "%fd" => format!("mov.b64 %rd, %fd;\nst.global.b64 [%o+{}], %rd;\n", 8 * i),
            "%rd" => format!("st.global.b64 [%o+{}], %rd;\n", 8 * i),
            _ => format!("st.global.b32 [%o+{}], %r;\n", 8 * i),
        };
        body += &format!(
            "mov.b32 %a, {a32};\nmov.b32 %b, {b32};\nmov.b64 %ad, {a:#x};\nmov.b64 %bd, {b:#x};\nmov.f32 %fa, 0f{a32:08X};\n\
             mov.f32 %fb, 0f{b32:08X};\nmov.f64 %da, 0d{a:016X};\n{form};\n{store}"
        );
    }
    format!(
        ".visible .entry {name}(.param .u64 out)\n{{\n.reg .pred %p;\n\
         .reg .b32 %r, %a, %b;\n.reg .b64 %rd, %ad, %bd, %o;\n.reg .f32 %f, %fa, %fb;\n.reg .f64 %fd, %da;\n\
         ld.param.u64 %o, [out];\n{body}ret;\n}}\n"
    )
}

/// What the machine code stores at each offset, as far as it is known when it is assembled.
fn stored(sass: &str) -> HashMap<usize, u32> {
    let mut regs: HashMap<String, u32> = HashMap::from([("RZ".into(), 0)]);
    let mut out = HashMap::new();
    for line in sass.lines() {
        let code = line.split("*/").nth(1).and_then(|t| t.split(';').next());
        let Some(text) = code.map(str::trim) else { continue };
        let guarded = text.starts_with('@');
        let text = if guarded { text.split_once(' ').map_or("", |t| t.1) } else { text };
        let Some((op, rest)) = text.split_once(' ') else { continue };
        if op.starts_with("CALL") {
            // it may change anything
            regs = HashMap::from([("RZ".into(), 0)]);
            continue;
        }
        let args: Vec<String> = rest.split(',').map(|a| a.trim().replace(".reuse", "")).collect();
        let value = |regs: &HashMap<String, u32>, a: &str| match a.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None if a.starts_with("-0x") => u32::from_str_radix(&a[3..], 16).ok().map(u32::wrapping_neg),
            None => regs.get(a).copied(),
        };
        let half = |a: &str| match a {
            "+INF" => Some(0x7c00),
            "-INF" => Some(0xfc00),
            "+QNAN" => Some(0x7fff),
            _ => a.parse::<f32>().ok().map(formats::f2h),
        };
        let moved = args.iter().map(String::as_str).collect::<Vec<_>>();
        match (if guarded { "guarded" } else { op }, &moved[..]) {
            ("MOV", [d, a]) | ("IMAD.MOV.U32", [d, "RZ", "RZ", a]) => match value(&regs, a) {
                Some(v) => drop(regs.insert(d.to_string(), v)),
                None => drop(regs.remove(*d)),
            },
            ("HFMA2.MMA" | "HFMA2", [d, "-RZ", "RZ", hi, lo]) => match half(hi).zip(half(lo)) {
                Some((hi, lo)) => drop(regs.insert(d.to_string(), hi << 16 | lo)),
                None => drop(regs.remove(*d)),
            },
            ("CS2R", [d, "SRZ"]) => {
                regs.insert(d.to_string(), 0);
                regs.insert(next(d), 0);
            }
            _ if op.starts_with("STG.E") => {
                let [at, v] = &moved[..] else { continue };
                let offset = at.split("+0x").nth(1).map(|o| o.trim_end_matches(']'));
                let offset = offset.map_or(Some(0), |o| usize::from_str_radix(o, 16).ok());
                let Some(offset) = offset else { continue };
                let wide = op.contains(".64");
                let high = if *v == "RZ" { "RZ".to_string() } else { next(v) };
                for (i, r) in [v.to_string(), high].iter().take(1 + usize::from(wide)).enumerate() {
                    out.extend(regs.get(r).map(|x| (offset + 4 * i, *x)));
                }
            }
            (_, [d, ..]) if d.starts_with('R') => {
                // computed at run time; wide results take the next register too
                regs.remove(*d);
                regs.remove(&next(d));
                regs.insert("RZ".into(), 0);
            }
            _ => {}
        }
    }
    out
}

/// The register behind `r`.
fn next(r: &str) -> String {
    r.trim_start_matches('R').parse::<u32>().map_or(String::new(), |n| format!("R{}", n + 1))
}

#[test]
fn constants_fold_to_what_is_executed() {
    let what = "constants_fold_to_what_is_executed";
    let Some(ptxas) = Ptxas::or_skip(what) else { return };
    let Some(dump) = ptxas.beside("cuobjdump") else {
        eprintln!("skipped: {what} needs cuobjdump beside ptxas");
        return;
    };
    let dir = std::env::temp_dir().join(format!("kernelsmith-folding-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut rng = Random(7);
    let name = |i: usize| format!("form{i}");
    let pairs =
        |rng: &mut Random| (0..PAIRS).map(|_| (interesting(rng), interesting(rng))).collect::<Vec<_>>();
    let operands: Vec<Vec<(u64, u64)>> = FORMS.iter().map(|_| pairs(&mut rng)).collect();
    let entries = FORMS.iter().zip(&operands).enumerate();
    let text = entries.fold(HEADER.to_string(), |text, (i, ((form, result), pairs))| {
        text + &entry(&name(i), form, result, pairs)
    });
    let cubin = dir.join("k.cubin");
    ptxas.cubin("sm_80", &text, &cubin).unwrap_or_else(|e| panic!("{e}"));
    let sass = Command::new(&dump).arg("-sass").arg(&cubin).output().unwrap();
    let sass = String::from_utf8_lossy(&sass.stdout).into_owned();
    let mut device = Device::new(&text).unwrap();
    let (mut folded, mut forms, mut wrong) = (0, 0, Vec::new());
    for (i, (form, result)) in FORMS.iter().enumerate() {
        let start = format!("Function : {}\n", name(i));
        let code = sass.split(&start).nth(1).and_then(|s| s.split("Function :").next()).unwrap_or("");
        let known = stored(code);
        let out = device.upload(&[0; 8 * PAIRS]);
        // every lane stores the same
        let run = device.run(&Config::default(), &name(i), 1, 32, &Params::new().u64(out));
        run.unwrap_or_else(|e| panic!("{form}: {e}"));
        let got = device.download(out, 8 * PAIRS);
        forms += usize::from(!known.is_empty());
        for (offset, want) in known {
            folded += 1;
            let have = u32::from_le_bytes(got[offset..offset + 4].try_into().unwrap());
            // there are many NaNs
            let nan = |x: u32| match *result {
                "%f" => f32::from_bits(x).is_nan(),
                "%fd" => {
                    f64::from_bits(u64::from_le_bytes(got[offset & !7..][..8].try_into().unwrap())).is_nan()
                }
                _ => false,
            };
            if have != want && !(nan(have) && nan(want)) {
                let (a, b) = operands[i][offset / 8];
                wrong.push(format!("{form} of {a:#x}, {b:#x}: {have:#x}, ptxas {want:#x}"));
            }
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
    println!("{folded} words of {forms} of {} forms folded", FORMS.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(forms * 2 > FORMS.len(), "{forms} forms folded: the machine code is not understood");
}
