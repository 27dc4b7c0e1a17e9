//! A compiled program as a file.
//!
//! ```text
//! header   128 bytes: magic, version, lengths, BLAKE3 of (the header before it, the metadata)
//! meta     postcard: compiler and target, the program without its constants, where each constant lies
//! data     at a multiple of 4096: the constants, each at a multiple of 64, those of 2 MiB and more at a
//!          multiple of 4096; 64 zero bytes at the end
//! ```
//!
//! All numbers of the header are little-endian. Everything that is executed, or that decides which memory
//! is touched, is metadata: it is checked against its hash, then for consistency ([`crate::validate`]),
//! before any of it is used. The data are plain numbers with a hash of their own ([`Artefact::data_hash`]),
//! to be checked by whoever has reason to doubt the file's storage.
//!
//! An artefact is code. The hashes find damage, not malice: load artefacts that you would also execute.

use crate::validate::Invalid;
use crate::{Program, Step};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use thiserror::Error;

const MAGIC: [u8; 8] = *b"KSPROG\r\n";
/// Of the layout above and of every type in [`Program`].
pub const VERSION: u32 = 3;
const HEADER: usize = 128;
/// Hash of the metadata, in the header.
const HASH: Range<usize> = 40..72;
/// Data begin at a multiple of this.
pub const PAGE: usize = 4096;
const ALIGN: usize = 64;
/// Constants of this size begin a page of their own.
const LARGE: usize = 2 << 20;
/// Deepest nesting of the host schedule's control flow.
const MAX_DEPTH: usize = 64;

/// Why bytes are no artefact that can be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ArtefactError {
    #[error("not a kernelsmith artefact")]
    Magic,
    #[error("artefact of format {found}, this is {VERSION}")]
    Version { found: u32 },
    #[error("the artefact ends early, or is longer than it says")]
    Length,
    #[error("damaged: the {0} does not match its hash")]
    Hash(&'static str),
    #[error("malformed metadata: {0}")]
    Meta(String),
    #[error(transparent)]
    Program(#[from] Invalid),
}

/// What a program was made by and for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MadeFor {
    /// Version and build of the compiler.
    pub compiler: String,
    /// CPU and its features.
    pub target: String,
}

#[derive(Serialize, Deserialize)]
struct Meta {
    made_for: MadeFor,
    program: Program,
    init: Vec<FlatStep>,
    steps: Vec<FlatStep>,
    /// Offset in the data and length, by constant.
    consts: Vec<Option<(u64, u64)>>,
    data_hash: [u8; 32],
    /// What the caller adds.
    extra: Vec<u8>,
}

/// An artefact that was read and found consistent. `program.consts` is empty: the bytes are the caller's.
#[derive(Clone)]
pub struct Artefact {
    pub made_for: MadeFor,
    pub program: Program,
    /// Place in the file of each constant.
    pub consts: Vec<Option<Range<usize>>>,
    /// All constants, their padding included.
    pub data: Range<usize>,
    pub data_hash: [u8; 32],
    pub extra: Vec<u8>,
}

/// A step without the steps inside it; they follow it.
#[derive(Serialize, Deserialize)]
struct FlatStep {
    step: Step,
    /// Steps of the first and second body, at their own level.
    bodies: (u32, u32),
}

fn flatten(steps: &[Step], out: &mut Vec<FlatStep>) {
    for step in steps {
        let (a, b): (&[Step], &[Step]) = match step {
            Step::If { then, otherwise, .. } => (then.as_slice(), otherwise.as_slice()),
            Step::Loop { body, .. } => (body.as_slice(), &[]),
            _ => (&[], &[]),
        };
        out.push(FlatStep { step: step.clone(), bodies: (a.len() as u32, b.len() as u32) });
        flatten(a, out);
        flatten(b, out);
    }
}

fn unflatten(
    flat: &mut std::vec::IntoIter<FlatStep>,
    count: usize,
    depth: usize,
) -> Result<Vec<Step>, ArtefactError> {
    if depth > MAX_DEPTH {
        return Err(ArtefactError::Meta("control flow is nested too deep".into()));
    }
    let mut steps = Vec::new();
    for _ in 0..count {
        let f = flat.next().ok_or_else(|| ArtefactError::Meta("steps are missing".into()))?;
        let mut step = f.step;
        let (a, b) = (f.bodies.0 as usize, f.bodies.1 as usize);
        match &mut step {
            Step::If { then, otherwise, .. } => {
                *then = unflatten(flat, a, depth + 1)?;
                *otherwise = unflatten(flat, b, depth + 1)?;
            }
            Step::Loop { body, .. } if b == 0 => *body = unflatten(flat, a, depth + 1)?,
            _ if a == 0 && b == 0 => {}
            _ => return Err(ArtefactError::Meta("a step with steps inside that has none".into())),
        }
        steps.push(step);
    }
    Ok(steps)
}

/// Top-level steps of a flat list.
fn all(flat: Vec<FlatStep>) -> Result<Vec<Step>, ArtefactError> {
    let total = flat.len();
    let mut inside = 0usize;
    for f in &flat {
        inside = inside.saturating_add(f.bodies.0 as usize).saturating_add(f.bodies.1 as usize);
    }
    let top = total.checked_sub(inside).ok_or_else(|| ArtefactError::Meta("steps are missing".into()))?;
    let mut flat = flat.into_iter();
    let steps = unflatten(&mut flat, top, 0)?;
    if flat.next().is_some() {
        return Err(ArtefactError::Meta("steps that belong to nothing".into()));
    }
    Ok(steps)
}

fn place(at: usize, len: usize) -> usize {
    at.next_multiple_of(if len >= LARGE { PAGE } else { ALIGN })
}

/// Hash of the data section: of the constants in order, with their padding.
fn hash_data(consts: &[Option<&[u8]>]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    for bytes in consts.iter().flatten() {
        let begin = place(at, bytes.len());
        hasher.update(&[0; PAGE][..begin - at]);
        hasher.update_rayon(bytes);
        at = begin + bytes.len();
    }
    hasher.update(&[0; ALIGN]);
    *hasher.finalize().as_bytes()
}

fn hash_meta(header: &[u8], meta: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..HASH.start]);
    hasher.update(meta);
    *hasher.finalize().as_bytes()
}

/// Writes a program with the bytes of its constants (`program.consts` is not looked at).
///
/// # Errors
/// Those of `out`.
pub fn write(
    program: &Program,
    consts: &[Option<&[u8]>],
    made_for: &MadeFor,
    extra: &[u8],
    out: &mut dyn std::io::Write,
) -> std::io::Result<()> {
    let (mut init, mut steps) = (Vec::new(), Vec::new());
    flatten(&program.init, &mut init);
    flatten(&program.steps, &mut steps);
    let mut at = 0;
    let places = consts
        .iter()
        .map(|c| {
            c.map(|bytes| {
                let begin = place(at, bytes.len());
                at = begin + bytes.len();
                (begin as u64, bytes.len() as u64)
            })
        })
        .collect();
    let data_len = at + ALIGN;
    let meta = Meta {
        made_for: made_for.clone(),
        program: Program { init: Vec::new(), steps: Vec::new(), consts: Vec::new(), ..program.clone() },
        init,
        steps,
        consts: places,
        data_hash: hash_data(consts),
        extra: extra.to_vec(),
    };
    let meta = postcard::to_stdvec(&meta).map_err(std::io::Error::other)?;
    let data_at = (HEADER + meta.len()).next_multiple_of(PAGE);
    let mut header = [0u8; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    for (i, n) in [meta.len(), data_at, data_len].into_iter().enumerate() {
        header[16 + 8 * i..24 + 8 * i].copy_from_slice(&(n as u64).to_le_bytes());
    }
    let hash = hash_meta(&header, &meta);
    header[HASH].copy_from_slice(&hash);
    out.write_all(&header)?;
    out.write_all(&meta)?;
    out.write_all(&[0; PAGE][..data_at - HEADER - meta.len()])?;
    let mut at = 0;
    for bytes in consts.iter().flatten() {
        let begin = place(at, bytes.len());
        out.write_all(&[0; PAGE][..begin - at])?;
        out.write_all(bytes)?;
        at = begin + bytes.len();
    }
    out.write_all(&[0; ALIGN])
}

/// Reads all of an artefact but its data, and checks what it reads.
///
/// # Errors
/// Where the bytes are damaged, of another version, or inconsistent.
pub fn read(file: &[u8]) -> Result<Artefact, ArtefactError> {
    let header = file.get(..HEADER).ok_or(ArtefactError::Length)?;
    if header[..8] != MAGIC {
        return Err(ArtefactError::Magic);
    }
    let number = |at: usize| {
        let bytes = header[at..at + 8].try_into().unwrap_or_default();
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| ArtefactError::Length)
    };
    let found = u32::from_le_bytes(header[8..12].try_into().unwrap_or_default());
    if found != VERSION {
        return Err(ArtefactError::Version { found });
    }
    let (meta_len, data_at, data_len) = (number(16)?, number(24)?, number(32)?);
    let meta_end = HEADER.checked_add(meta_len).filter(|&e| e <= data_at).ok_or(ArtefactError::Length)?;
    let end = data_at.checked_add(data_len).ok_or(ArtefactError::Length)?;
    if end != file.len() || !data_at.is_multiple_of(PAGE) || data_len < ALIGN {
        return Err(ArtefactError::Length);
    }
    let meta = &file[HEADER..meta_end];
    if hash_meta(header, meta) != header[HASH] {
        return Err(ArtefactError::Hash("metadata"));
    }
    let (meta, rest): (Meta, &[u8]) =
        postcard::take_from_bytes(meta).map_err(|e| ArtefactError::Meta(e.to_string()))?;
    if !rest.is_empty() {
        return Err(ArtefactError::Meta("bytes after its end".into()));
    }
    let consts = meta
        .consts
        .iter()
        .map(|place| {
            let Some((at, len)) = *place else { return Ok(None) };
            let inside = |at: u64, len: u64| {
                let (at, len) = (usize::try_from(at).ok()?, usize::try_from(len).ok()?);
                // 64 bytes stay behind the last constant: its last vector may be read whole
                at.checked_add(len).filter(|&e| e <= data_len - ALIGN && at.is_multiple_of(ALIGN))?;
                Some(data_at + at..data_at + at + len)
            };
            inside(at, len).map(Some).ok_or(ArtefactError::Length)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut program = meta.program;
    program.init = all(meta.init)?;
    program.steps = all(meta.steps)?;
    let lens: Vec<Option<usize>> = consts.iter().map(|c| c.as_ref().map(|r| r.len())).collect();
    crate::validate::validate(&program, &lens)?;
    Ok(Artefact {
        made_for: meta.made_for,
        program,
        consts,
        data: data_at..end,
        data_hash: meta.data_hash,
        extra: meta.extra,
    })
}

/// Checks the data of `file` against their hash; uses all cores.
///
/// # Errors
/// [`ArtefactError::Hash`] where they differ.
pub fn check_data(file: &[u8], artefact: &Artefact) -> Result<(), ArtefactError> {
    let data = file.get(artefact.data.clone()).ok_or(ArtefactError::Length)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_rayon(data);
    if *hasher.finalize().as_bytes() != artefact.data_hash {
        return Err(ArtefactError::Hash("data"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;

    fn program() -> Program {
        let f32 = Elem::named("f32").unwrap();
        let size = |n| SizeExpr::Const(n);
        let sym = || SizeExpr::Code([SizeOp::Sym(0), SizeOp::Const(4), SizeOp::Mul].into());
        let buffer =
            |place| BufferDef { name: "b".into(), elem: f32, shape: vec![size(25)], bytes: size(100), place };
        let io = |buffer| IoDef { name: "x".into(), elem: f32, shape: vec![sym()], buffer };
        let call = || Step::Call { kernel: 0, args: vec![0, 3], origin: 0 };
        Program {
            symbols: vec![SymbolDef { name: "n".into(), lo: 1, hi: 100, entry: true }],
            origins: vec![OriginDef { node: "node".into(), op_type: "Add".into(), opset: 20 }],
            inputs: vec![io(2)],
            outputs: vec![io(4)],
            states: vec![StateDef { input: 0, output: 0, axis: 0, capacity: 7, len: 0, next: sym() }],
            buffers: vec![
                buffer(Place::Const(0)),
                buffer(Place::Const(1)),
                buffer(Place::Input(0)),
                buffer(Place::Arena { offset: sym() }),
                buffer(Place::Output(0)),
                buffer(Place::Alias(3)),
            ],
            consts: Vec::new(),
            kernels: vec![KernelDef {
                name: "k".into(),
                writes: vec![false, true],
                variants: vec![VariantDef {
                    guards: vec![(sym(), size(8))],
                    code: Some((0, "k".into())),
                    syms: vec![0],
                    trip: sym(),
                    ns_per_iter: 1.5,
                    scratch: size(0),
                    block: 0,
                    at_once: 0,
                }],
                flops: sym(),
            }],
            objects: vec![vec![1, 2, 3]],
            init: Vec::new(),
            steps: vec![
                Step::Layout { buffers: vec![3], end: sym() },
                Step::Loop {
                    trip: 0,
                    cond: 0,
                    iter: 3,
                    cond_next: 3,
                    count: 0,
                    origin: 0,
                    body: vec![
                        call(),
                        Step::If { cond: 2, then: vec![call(), call()], otherwise: vec![call()] },
                    ],
                },
                call(),
            ],
            flushes: true,
        }
    }

    fn artefact() -> Vec<u8> {
        let mut file = Vec::new();
        let consts: [Option<&[u8]>; 3] = [Some(&[7; 100]), Some(&[9; 3000]), None];
        write(&program(), &consts, &MadeFor::default(), b"extra", &mut file).unwrap();
        file
    }

    #[test]
    fn what_is_written_is_read() {
        let file = artefact();
        let a = read(&file).unwrap();
        let want = program();
        assert_eq!(a.program.steps, want.steps);
        assert_eq!((a.program.buffers, a.program.kernels), (want.buffers, want.kernels));
        assert_eq!(file[a.consts[0].clone().unwrap()], [7; 100]);
        assert_eq!(file[a.consts[1].clone().unwrap()], [9; 3000]);
        assert_eq!((a.consts[2].clone(), a.extra.as_slice()), (None, b"extra".as_slice()));
        assert_eq!(check_data(&file, &read(&file).unwrap()), Ok(()));
    }

    #[test]
    fn any_damage_is_found() {
        let file = artefact();
        let data = read(&file).unwrap().data;
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 1 << (at % 8);
            match read(&bad) {
                // reserved and padding bytes outside both hashes decide nothing
                Ok(a) if data.contains(&at) => assert!(check_data(&bad, &a).is_err(), "byte {at}"),
                Ok(_) => assert!((HASH.end..HEADER).contains(&at) || file[at] == 0, "byte {at}"),
                Err(_) => {}
            }
        }
        for n in 0..file.len() {
            assert!(read(&file[..n]).is_err(), "{n} bytes");
        }
    }

    /// Mutated metadata under a right hash: as from an attacker who knows the format.
    #[test]
    fn hostile_metadata_is_an_error_or_a_consistent_program() {
        let file = artefact();
        let meta_len = u64::from_le_bytes(file[16..24].try_into().unwrap()) as usize;
        let (mut good, mut refused) = (0, 0);
        for at in HEADER..HEADER + meta_len {
            for flip in [0x01, 0x80, 0xff, 0x7f] {
                let mut bad = file.clone();
                bad[at] ^= flip;
                let hash = hash_meta(&bad[..HEADER], &bad[HEADER..HEADER + meta_len]);
                bad[HASH].copy_from_slice(&hash);
                match read(&bad) {
                    Ok(a) => {
                        good += 1;
                        let lens: Vec<_> = a.consts.iter().map(|c| c.as_ref().map(|r| r.len())).collect();
                        assert_eq!(crate::validate::validate(&a.program, &lens), Ok(()));
                        assert!(a.consts.iter().flatten().all(|r| r.end <= bad.len()));
                    }
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(good > 0 && refused > 0, "{good} accepted, {refused} refused");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut p = program();
        let mut steps = Vec::new();
        for _ in 0..200 {
            steps = vec![Step::If { cond: 2, then: steps, otherwise: Vec::new() }];
        }
        p.steps = steps;
        let mut file = Vec::new();
        let consts: [Option<&[u8]>; 2] = [Some(&[7; 100]), Some(&[9; 3000])];
        write(&p, &consts, &MadeFor::default(), b"", &mut file).unwrap();
        assert!(matches!(read(&file), Err(ArtefactError::Meta(_))));
    }
}
