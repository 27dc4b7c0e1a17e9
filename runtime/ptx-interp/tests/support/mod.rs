//! What the tests share: devices, random numbers, and kernels around single instructions.
#![allow(dead_code)]

use kernelsmith_ptx_interp::golden::{self, Argument, Buffer, Case, Compare};
use kernelsmith_ptx_interp::{Config, Counters, DeviceMemory, Error, Module, Params};

/// A device with one module.
pub struct Device {
    pub memory: DeviceMemory,
    pub module: Module,
    /// Addresses and sizes of what was uploaded or allocated.
    buffers: Vec<(u64, usize)>,
    /// The last launch, where it is wanted (`golden::directory`).
    pub launched: Option<Case>,
}

impl Device {
    pub fn new(text: &str) -> Result<Device, Error> {
        let mut memory = DeviceMemory::new();
        let module = Module::load(text, &mut memory)?;
        Ok(Device { memory, module, buffers: Vec::new(), launched: None })
    }

    pub fn alloc(&mut self, bytes: usize) -> u64 {
        let at = self.memory.alloc(bytes);
        self.buffers.push((at, bytes));
        at
    }

    pub fn free(&mut self, at: u64) {
        self.memory.free(at);
        self.buffers.retain(|(a, _)| *a != at);
    }

    /// Uploads bytes; gives their address.
    pub fn upload(&mut self, bytes: &[u8]) -> u64 {
        let at = self.alloc(bytes.len());
        self.memory.write(at, bytes).unwrap();
        at
    }

    pub fn upload_f32(&mut self, v: &[f32]) -> u64 {
        self.upload(&v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn upload_u64(&mut self, v: &[u64]) -> u64 {
        self.upload(&v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn download(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        self.memory.read(at, &mut out).unwrap();
        out
    }

    pub fn download_f32(&self, at: u64, n: usize) -> Vec<f32> {
        self.download(at, 4 * n).chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn download_u64(&self, at: u64, n: usize) -> Vec<u64> {
        self.download(at, 8 * n).chunks(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn run(
        &mut self,
        config: &Config,
        kernel: &str,
        grid: u32,
        block: u32,
        params: &Params,
    ) -> Result<Counters, Error> {
        self.launch(config, kernel, [grid, 1, 1], [block, 1, 1], params)
    }

    pub fn launch(
        &mut self,
        config: &Config,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        params: &Params,
    ) -> Result<Counters, Error> {
        let before = golden::directory().map(|_| self.contents());
        let params = params.as_slice();
        let counters = self.module.run(&mut self.memory, config, kernel, grid, block, 0, params)?;
        if let Some(before) = before {
            let program = self.module.kernel(kernel)?;
            let argument = |bytes: &[u8]| {
                let is = |(at, _): &(u64, usize)| at.to_le_bytes() == bytes;
                match self.buffers.iter().position(is) {
                    Some(buffer) => Argument::Address(buffer, 0),
                    None => Argument::Value(bytes.to_vec()),
                }
            };
            let of = |offset: u32, bytes: u32| &params[offset as usize..][..bytes as usize];
            let arguments = program.params.iter().map(|p| argument(of(p.offset, p.bytes))).collect();
            let buffers = before.into_iter().zip(self.contents()).map(|(b, a)| Buffer::exact(b, a));
            let (name, entry) = (kernel.to_string(), kernel.to_string());
            let (group, buffers) = (name.clone(), buffers.collect());
            self.launched =
                Some(Case { name, group, entry, grid, block, dynamic_shared: 0, arguments, buffers });
        }
        Ok(counters)
    }

    fn contents(&self) -> Vec<Vec<u8>> {
        self.buffers.iter().map(|(at, n)| self.download(*at, *n)).collect()
    }

    /// Writes the last launch down for a device; of what it wrote, elements in `open` may be anything.
    pub fn keep(&self, source: &str, name: &str, compare: Compare, open: &[usize]) {
        let Some(case) = &self.launched else { return };
        let mut case = Case { name: name.into(), group: name.into(), ..case.clone() };
        for b in case.buffers.iter_mut().filter(|b| b.after[0] != b.before) {
            (b.compare, b.open) = (compare, open.to_vec());
        }
        golden::write(source, self.module.source(), &[case]);
    }
}

/// A generator of test values.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0;
        (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// In [-1, 1).
    pub fn f32(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn f32s(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.f32()).collect()
    }
}

/// A kernel of 32 lanes around `body`: registers of every width are loaded from three arrays of 64-bit
/// words, and the result is stored to a fourth.
///
/// `%a`, `%b`, `%c` are 32-bit operands, `%ad`.. 64-bit, `%ah`.. 16-bit, `%pa`.. say whether bit 0 is set;
/// the result goes to `%d` (32), `%dd` (64), `%dh` (16) or `%p`.
pub fn form_kernel(name: &str, body: &str, result: &str) -> String {
    let store = match result {
        "%dd" => "st.global.b64 [%o], %dd;",
        "%dh" => "st.global.b16 [%o], %dh;",
        "%p" => "selp.b32 %d, 1, 0, %p;\n st.global.b32 [%o], %d;",
        "%p|%q" => {
            "selp.b32 %d, 1, 0, %p;\n selp.b32 %t, 2, 0, %q;\n or.b32 %d, %d, %t;\n st.global.b32 [%o], %d;"
        }
        _ => "st.global.b32 [%o], %d;",
    };
    let mut load = String::new();
    for v in ["a", "b", "c"] {
        load += &format!(
            " ld.param.u64 %{v}p, [p{v}];\n add.s64 %{v}p, %{v}p, %at;\n ld.global.b64 %{v}d, [%{v}p];\n \
             ld.global.b32 %{v}, [%{v}p];\n ld.global.b16 %{v}h, [%{v}p];\n and.b32 %t, %{v}, 1;\n \
             setp.ne.s32 %p{v}, %t, 0;\n"
        );
    }
    format!(
        ".visible .entry {name}(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 po)\n{{\n \
         .reg .pred %p, %q, %pa, %pb, %pc;\n .reg .b16 %ah, %bh, %ch, %dh, %eh;\n .reg .b32 %a, %b, %c, %d, %e, %t, %thr;\n \
         .reg .b64 %ad, %bd, %cd, %dd, %ed, %ap, %bp, %cp, %o, %at;\n \
         mov.u32 %thr, %tid.x;\n mul.wide.u32 %at, %thr, 8;\n{load} ld.param.u64 %o, [po];\n \
         add.s64 %o, %o, %at;\n {body}\n {store}\n ret;\n}}\n"
    )
}

pub const HEADER: &str = ".version 7.8\n.target sm_80\n.address_size 64\n";
pub const HEADER_90: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n";

/// Values that arithmetic gets wrong.
pub fn interesting(rng: &mut Random) -> u64 {
    const F32: [u32; 12] = [
        0,
        0x8000_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        1,
        0x007f_ffff,
        0x3f80_0000,
        0xbf80_0000,
        0x7f7f_ffff,
        0x4b00_0001,
        0xcf00_0000,
    ];
    match rng.next() % 8 {
        0 => u64::from(F32[(rng.next() % 12) as usize]) << 32 | u64::from(F32[(rng.next() % 12) as usize]),
        1 => rng.next() % 70,
        7 => 0xfffd,
        2 => (rng.next() % 70).wrapping_neg(),
        3 => {
            let f = |r: &mut Random| u64::from((r.f32() * 100.0).to_bits());
            f(rng) << 32 | f(rng)
        }
        4 => {
            let h = |r: &mut Random| u64::from(kernelsmith_ptx_interp::formats::f2h(r.f32() * 8.0));
            h(rng) << 48 | h(rng) << 32 | h(rng) << 16 | h(rng)
        }
        5 => (f64::from(rng.f32()) * 1e3).to_bits(),
        _ => rng.next(),
    }
}
