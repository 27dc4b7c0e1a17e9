//! What is known of the machine that this process runs on, as plain data.

use ir::target::TargetDesc;
use std::path::Path;

/// Instruction set extensions that decide anything here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostFeatures {
    pub avx2: bool,
    /// AVX-512 foundation with byte/word, doubleword/quadword and short vectors.
    pub avx512: bool,
    pub fma: bool,
    pub f16c: bool,
}

impl HostFeatures {
    pub fn detect() -> HostFeatures {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            HostFeatures {
                avx2: has!("avx2"),
                avx512: has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl"),
                fma: has!("fma"),
                f16c: has!("f16c"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        HostFeatures::default()
    }

    fn level(self) -> &'static str {
        match self {
            HostFeatures { avx512: true, .. } => "avx512",
            HostFeatures { avx2: true, .. } => "avx2",
            _ => "baseline",
        }
    }
}

/// The host as the LLVM emitter uses it: its widest vectors, all its registers.
pub fn llvm_host(cpu: String, features: String, threads: usize) -> TargetDesc {
    let host = HostFeatures::detect();
    let caches = Caches::detect();
    TargetDesc {
        name: format!("llvm-{}-{}", std::env::consts::ARCH, host.level()),
        cpu,
        features,
        vector_bits: match host {
            HostFeatures { avx512: true, .. } => 512,
            HostFeatures { avx2: true, .. } => 256,
            _ => 128,
        },
        vector_regs: if host.avx512 { 32 } else { 16 },
        has_fma: host.fma,
        has_masks: host.avx512,
        has_f16: host.f16c,
        simt: false,
        cache_line: caches.line,
        l1_bytes: caches.l1,
        l2_bytes: caches.l2,
        threads,
    }
}

/// The features of the host that code may use: matrix registers only where the system lets this process have them.
#[cfg(feature = "llvm")]
pub fn usable_features(features: &str) -> String {
    let any = features.split(',').any(|f| f == "+amx-tile");
    if !any || matrices_permitted() {
        return features.to_string();
    }
    without_matrices(features)
}

#[cfg(any(feature = "llvm", test))]
fn without_matrices(features: &str) -> String {
    features.split(',').filter(|f| !f.starts_with("+amx")).collect::<Vec<_>>().join(",")
}

/// Asks the system, once for the whole process and before any code runs that uses them, for matrix registers: they
/// make the state of a thread larger by 8 KB, so that Linux gives them to who asks.
#[cfg(all(feature = "llvm", target_arch = "x86_64", target_os = "linux"))]
fn matrices_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    static PERMITTED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    // SAFETY: a system call with two numbers, which touches no memory of ours; it fails where the kernel does not
    // know it or the CPU has no such state.
    *PERMITTED.get_or_init(|| unsafe {
        libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0
    })
}

#[cfg(all(feature = "llvm", not(all(target_arch = "x86_64", target_os = "linux"))))]
fn matrices_permitted() -> bool {
    false
}

/// x86 CPUs that code can be looked at for wherever this runs: name as LLVM has it, features that decide anything.
const NAMED: [(&str, &str); 4] = [
    ("haswell", "+avx2,+fma,+f16c"),
    ("skylake-avx512", "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd"),
    (
        "znver4",
        "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd,+avx512vbmi,+avx512vnni,+avx512bf16",
    ),
    (
        "sapphirerapids",
        "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd,+avx512vbmi,+avx512vnni,+avx512bf16,\
         +amx-tile,+amx-int8,+amx-bf16",
    ),
];

/// A CPU by name as the LLVM emitter would use it: with two threads, and caches as they are common.
pub fn named(cpu: &str) -> Option<TargetDesc> {
    let (name, features) = NAMED.into_iter().find(|n| n.0 == cpu)?;
    let wide = features.contains("+avx512f");
    Some(TargetDesc {
        name: format!("llvm-{name}"),
        cpu: name.into(),
        features: features.into(),
        vector_bits: if wide { 512 } else { 256 },
        vector_regs: if wide { 32 } else { 16 },
        has_fma: true,
        has_masks: wide,
        has_f16: true,
        simt: false,
        cache_line: 64,
        l1_bytes: 32 << 10,
        l2_bytes: 1 << 20,
        threads: 2,
    })
}

/// Names that [`named`] knows.
pub fn names() -> String {
    NAMED.map(|n| n.0).join(", ")
}

/// The host as the Cranelift emitter uses it: 128-bit vectors in 16 registers.
pub fn cranelift_host(threads: usize) -> TargetDesc {
    let caches = Caches::detect();
    TargetDesc {
        name: format!("cranelift-{}", std::env::consts::ARCH),
        cpu: String::new(),
        features: String::new(),
        vector_bits: 128,
        vector_regs: 16,
        has_fma: HostFeatures::detect().fma,
        has_masks: false,
        has_f16: false,
        simt: false,
        cache_line: caches.line,
        l1_bytes: caches.l1,
        l2_bytes: caches.l2,
        threads,
    }
}

/// Data caches of one core, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Caches {
    line: usize,
    l1: usize,
    l2: usize,
}

impl Caches {
    /// From sysfs; common values where it does not tell.
    fn detect() -> Caches {
        let mut caches = Caches { line: 64, l1: 32 << 10, l2: 1 << 20 };
        let root = Path::new("/sys/devices/system/cpu/cpu0/cache");
        for index in 0..8 {
            let dir = root.join(format!("index{index}"));
            let read = |file: &str| std::fs::read_to_string(dir.join(file)).ok();
            let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size")) else {
                continue;
            };
            let Some(bytes) = parse_size(size.trim()) else { continue };
            match (level.trim(), kind.trim()) {
                (_, "Instruction") => continue,
                ("1", _) => caches.l1 = bytes,
                ("2", _) => caches.l2 = bytes,
                _ => continue,
            }
            let line = read("coherency_line_size").and_then(|l| l.trim().parse().ok());
            caches.line = line.filter(|l| *l >= 16).unwrap_or(caches.line);
        }
        caches
    }
}

/// `48K`, `1024K`, `2M`.
fn parse_size(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let n: usize = digits.parse().ok().filter(|n| *n > 0)?;
    match &text[digits.len()..] {
        "" => Some(n),
        "K" => n.checked_mul(1 << 10),
        "M" => n.checked_mul(1 << 20),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::kernel::Dot;

    #[test]
    fn machines_with_matrices() {
        let has = |t: &TargetDesc| Dot::ALL.map(|d| t.has_matrices(d));
        let rapids = named("sapphirerapids").unwrap();
        assert_eq!(has(&rapids), [true, true]);
        assert_eq!(has(&named("znver4").unwrap()), [false, false]);
        // the system keeps them to itself
        let refused = TargetDesc { features: without_matrices(&rapids.features), ..rapids };
        assert_eq!(has(&refused), [false, false]);
        assert_eq!(Dot::ALL.map(|d| refused.words(d).is_some()), [true, true]);
        assert_eq!(has(&cranelift_host(1)), [false, false]);
    }

    #[test]
    fn cache_sizes() {
        assert_eq!(parse_size("48K"), Some(48 << 10));
        assert_eq!(parse_size("2M"), Some(2 << 20));
        assert_eq!(parse_size("64"), Some(64));
        assert_eq!(parse_size("0K"), None);
        assert_eq!(parse_size("K"), None);
    }
}
