//! Loads relocatable ELF objects into executable memory, without a linker.
//!
//! The objects that our emitters make are self-contained: position-independent code and read-only
//! constants that refer to each other. What remains to be done is to place the sections, apply a
//! handful of relocations, and make the pages executable. An object that asks for anything else
//! (an unknown symbol, writable data, a foreign machine) is refused.

use std::collections::HashMap;

use format::abi::KernelFn;
use memmap2::{Mmap, MmapMut};
use object::elf;
use object::read::elf::{ElfFile64, Rela, SectionHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SectionIndex, SymbolKind};
use thiserror::Error;

/// Why an object could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoadError {
    #[error("not a readable ELF object: {0}")]
    Malformed(String),
    #[error("object is for {found}, this process runs on {expected}")]
    Machine { found: String, expected: &'static str },
    #[error("undefined symbol `{0}`")]
    Undefined(String),
    #[error("section `{0}` holds writable data; generated code has none")]
    WritableData(String),
    #[error("relocation type {0} is not supported")]
    Relocation(u32),
    #[error("relocation target is out of range")]
    OutOfRange,
    #[error("objects need {0} bytes of code, more than 1 GiB")]
    TooLarge(u64),
    #[error("no function `{symbol}` in object {object}")]
    NoFunction { object: usize, symbol: String },
    #[error("executable memory: {0}")]
    Memory(String),
}

impl From<object::Error> for LoadError {
    fn from(e: object::Error) -> Self {
        LoadError::Malformed(e.to_string())
    }
}

/// Machine code of any number of objects in one executable, read-only mapping.
#[derive(Debug)]
pub struct CodeImage {
    map: Option<Mmap>,
    /// Offset of every global function, by object.
    functions: Vec<HashMap<String, usize>>,
}

/// Bytes of a jump through an absolute address: `jmp [rip]`, then the address.
const STUB: usize = 16;
/// PC-relative distances stay well inside 31 bits below this.
const MAX_IMAGE: u64 = 1 << 30;

impl CodeImage {
    /// Places and relocates `objects`, then makes the memory executable.
    pub fn load<B: AsRef<[u8]>>(objects: &[B]) -> Result<CodeImage, LoadError> {
        let files = objects
            .iter()
            .map(|bytes| Ok(ElfFile64::<Endianness>::parse(bytes.as_ref())?))
            .collect::<Result<Vec<_>, LoadError>>()?;
        for file in &files {
            check_machine(file.architecture())?;
        }
        let mut layout = Layout::default();
        for file in &files {
            layout.add(file)?;
        }
        if layout.end > MAX_IMAGE {
            return Err(LoadError::TooLarge(layout.end));
        }
        let functions = files
            .iter()
            .zip(&layout.places)
            .map(|(file, places)| functions(file, places))
            .collect::<Result<Vec<_>, LoadError>>()?;
        if layout.end == 0 {
            return Ok(CodeImage { map: None, functions });
        }
        let memory = |e: std::io::Error| LoadError::Memory(e.to_string());
        let mut map = MmapMut::map_anon(layout.end as usize).map_err(memory)?;
        let base = map.as_ptr() as u64;
        let mut linker = Linker { memory: &mut map, base, slots: HashMap::new(), next_slot: layout.slots };
        for (file, places) in files.iter().zip(&layout.places) {
            linker.link(file, places)?;
        }
        let map = map.make_exec().map_err(memory)?;
        Ok(CodeImage { map: Some(map), functions })
    }

    /// The kernel function `symbol` of object `object`. It stays callable while the image lives.
    pub fn function(&self, object: usize, symbol: &str) -> Result<KernelFn, LoadError> {
        let missing = || LoadError::NoFunction { object, symbol: symbol.to_string() };
        let offset = *self.functions.get(object).and_then(|f| f.get(symbol)).ok_or_else(missing)?;
        let map = self.map.as_ref().ok_or_else(missing)?;
        let code = map.get(offset..).filter(|c| !c.is_empty()).ok_or_else(missing)?.as_ptr();
        // SAFETY: `code` points at the first instruction of a function symbol in an executable
        // mapping; our emitters give every global function the kernel ABI. That the bytes are code
        // of ours is what loading a program means: objects come from the compiler in this process
        // or from a program file that the caller chose to trust.
        Ok(unsafe { std::mem::transmute::<*const u8, KernelFn>(code) })
    }

    /// Bytes of the image.
    pub fn bytes(&self) -> usize {
        self.map.as_ref().map_or(0, |m| m.len())
    }
}

fn check_machine(found: object::Architecture) -> Result<(), LoadError> {
    if cfg!(all(target_arch = "x86_64", target_os = "linux")) && found == object::Architecture::X86_64 {
        return Ok(());
    }
    Err(LoadError::Machine { found: format!("{found:?}"), expected: std::env::consts::ARCH })
}

/// Offsets in the image of the sections of one object.
type Places = HashMap<SectionIndex, usize>;
type Elf<'a> = ElfFile64<'a, Endianness>;
type Relocations<'a> = &'a [elf::Rela64<Endianness>];

#[derive(Default)]
struct Layout {
    places: Vec<Places>,
    /// Where stubs and address slots for external functions begin.
    slots: usize,
    /// Address slots that the objects may ask for.
    address_slots: usize,
    /// Bytes of the image.
    end: u64,
}

impl Layout {
    fn add(&mut self, file: &Elf<'_>) -> Result<(), LoadError> {
        // The slots of the objects so far move behind the sections of this one.
        let mut at = self.slots as u64;
        let mut places = Places::new();
        for section in file.sections().filter(is_loaded) {
            let flags = section.elf_section_header().sh_flags(Endianness::default());
            let name = || section.name().unwrap_or("?").to_string();
            if flags.contains(elf::SHF_WRITE) && section.size() > 0 {
                return Err(LoadError::WritableData(name()));
            }
            let align = section.align().clamp(1, 4096).next_power_of_two();
            at = at.next_multiple_of(align);
            if section.size() > MAX_IMAGE {
                return Err(LoadError::TooLarge(section.size()));
            }
            places.insert(section.index(), at as usize);
            at += section.size();
            if at > MAX_IMAGE {
                return Err(LoadError::TooLarge(at));
            }
        }
        self.slots = at.next_multiple_of(STUB as u64) as usize;
        for (_, relocations) in relocations(file)? {
            let by_slot = relocations.iter().filter(|r| wants_slot(r.r_type(file.endian(), false)));
            self.address_slots += by_slot.count();
        }
        let slots = (PROVIDED + self.address_slots) * STUB;
        self.end = if self.slots == 0 { 0 } else { (self.slots + slots) as u64 };
        self.places.push(places);
        Ok(())
    }
}

/// Sections that take part in execution. Unwinding tables are left out: kernels never unwind.
fn is_loaded(section: &object::read::elf::ElfSection64<'_, '_, Endianness>) -> bool {
    let header = section.elf_section_header();
    header.sh_flags(Endianness::default()).contains(elf::SHF_ALLOC)
        && section.name() != Ok(".eh_frame")
        && header.sh_type(Endianness::default()) != elf::SHT_NOTE
}

/// The relocations of an object by the section they patch.
fn relocations<'a>(file: &Elf<'a>) -> Result<Vec<(SectionIndex, Relocations<'a>)>, LoadError> {
    let (endian, data) = (file.endian(), file.data());
    let mut all = Vec::new();
    for section in file.elf_section_table().iter() {
        if let Some((relocations, _)) = section.rela(endian, data)? {
            all.push((SectionIndex(section.sh_info(endian) as usize), relocations));
        } else if section.rel(endian, data)?.is_some_and(|(r, _)| !r.is_empty()) {
            return Err(LoadError::Malformed("relocations without addends".into()));
        }
    }
    Ok(all)
}

/// True for relocations that refer to a pointer-sized slot which holds the address.
fn wants_slot(kind: elf::RelocationType) -> bool {
    matches!(kind, elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX)
}

fn functions(file: &Elf<'_>, places: &Places) -> Result<HashMap<String, usize>, LoadError> {
    let mut table = HashMap::new();
    for symbol in file.symbols() {
        let place = symbol.section_index().and_then(|s| places.get(&s));
        if let (SymbolKind::Text, true, Some(&place)) = (symbol.kind(), symbol.is_global(), place) {
            let offset = usize::try_from(symbol.address())
                .ok()
                .and_then(|a| a.checked_add(place))
                .ok_or(LoadError::OutOfRange)?;
            table.insert(symbol.name()?.to_string(), offset);
        }
    }
    Ok(table)
}

/// Functions that code generators may call without being asked to: block copy and fill.
fn provided(name: &str) -> Result<u64, LoadError> {
    match name {
        "memcpy" => Ok(libc::memcpy as *const () as u64),
        "memmove" => Ok(libc::memmove as *const () as u64),
        "memset" => Ok(libc::memset as *const () as u64),
        other => Err(LoadError::Undefined(other.to_string())),
    }
}

/// How many functions there are.
const PROVIDED: usize = 3;

/// How code reaches a provided function, which may lie anywhere in the address space.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Slot {
    /// A jump, for direct calls.
    Stub,
    /// The address itself, for calls through a table.
    Address,
}

struct Linker<'a> {
    memory: &'a mut [u8],
    base: u64,
    /// Offsets of what was already made for (address, kind).
    slots: HashMap<(u64, Slot), usize>,
    next_slot: usize,
}

impl Linker<'_> {
    fn link(&mut self, file: &Elf<'_>, places: &Places) -> Result<(), LoadError> {
        for section in file.sections() {
            let Some(&place) = places.get(&section.index()) else { continue };
            let data = section.data()?;
            self.memory
                .get_mut(place..place + data.len())
                .ok_or(LoadError::OutOfRange)?
                .copy_from_slice(data);
        }
        for (target, relocations) in relocations(file)? {
            let Some(&place) = places.get(&target) else { continue };
            let size = file.section_by_index(target)?.size();
            for rela in relocations {
                self.relocate(file, places, place, size, rela)?;
            }
        }
        Ok(())
    }

    /// Writes one relocated field at `place + offset`.
    fn relocate(
        &mut self,
        file: &Elf<'_>,
        places: &Places,
        place: usize,
        section_size: u64,
        rela: &elf::Rela64<Endianness>,
    ) -> Result<(), LoadError> {
        let endian = file.endian();
        let kind = rela.r_type(endian, false);
        let width = match kind {
            elf::R_X86_64_NONE => return Ok(()),
            elf::R_X86_64_64 | elf::R_X86_64_PC64 => 8,
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => 4,
            slot if wants_slot(slot) => 4,
            other => return Err(LoadError::Relocation(other.0)),
        };
        let offset = rela.r_offset(endian);
        if offset.checked_add(width).is_none_or(|end| end > section_size) {
            return Err(LoadError::OutOfRange);
        }
        let at = place + offset as usize;
        let pc = self.base + at as u64;
        let addend = rela.r_addend(endian);
        let symbol = file.symbol_by_index(object::SymbolIndex(rela.r_sym(endian, false) as usize))?;
        let target = match symbol.section_index() {
            Some(section) => {
                let to = *places.get(&section).ok_or(LoadError::OutOfRange)?;
                Target::Inside(self.base.wrapping_add(to as u64).wrapping_add(symbol.address()))
            }
            None => Target::Outside(provided(symbol.name()?)?),
        };
        let value = match (kind, target) {
            (elf::R_X86_64_64, Target::Inside(s) | Target::Outside(s)) => s.wrapping_add_signed(addend),
            (elf::R_X86_64_PC64, Target::Inside(s) | Target::Outside(s)) => {
                s.wrapping_add_signed(addend).wrapping_sub(pc)
            }
            (elf::R_X86_64_PC32 | elf::R_X86_64_PLT32, Target::Inside(s)) => {
                s.wrapping_add_signed(addend).wrapping_sub(pc)
            }
            (elf::R_X86_64_PC32 | elf::R_X86_64_PLT32, Target::Outside(s)) => {
                self.slot(s, Slot::Stub)?.wrapping_add_signed(addend).wrapping_sub(pc)
            }
            (_, Target::Inside(s) | Target::Outside(s)) => {
                self.slot(s, Slot::Address)?.wrapping_add_signed(addend).wrapping_sub(pc)
            }
        };
        let field = self.memory.get_mut(at..at + width as usize).ok_or(LoadError::OutOfRange)?;
        if width == 8 {
            field.copy_from_slice(&value.to_le_bytes());
        } else {
            let value = i32::try_from(value as i64).map_err(|_| LoadError::OutOfRange)?;
            field.copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }

    /// Address of a stub or slot that leads to `address`.
    fn slot(&mut self, address: u64, kind: Slot) -> Result<u64, LoadError> {
        if let Some(&offset) = self.slots.get(&(address, kind)) {
            return Ok(self.base + offset as u64);
        }
        let offset = self.next_slot;
        let bytes = self.memory.get_mut(offset..offset + STUB).ok_or(LoadError::OutOfRange)?;
        match kind {
            Slot::Stub => {
                // jmp [rip + 0]; the address follows the instruction
                bytes[..6].copy_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
                bytes[6..14].copy_from_slice(&address.to_le_bytes());
            }
            Slot::Address => bytes[..8].copy_from_slice(&address.to_le_bytes()),
        }
        self.next_slot += STUB;
        self.slots.insert((address, kind), offset);
        Ok(self.base + offset as u64)
    }
}

enum Target {
    Inside(u64),
    Outside(u64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use format::abi::{KernelArgs, KernelStatus};
    use object::write::{Object, Relocation, Symbol, SymbolSection};
    use object::{Architecture, BinaryFormat, RelocationFlags, SectionKind, SymbolFlags, SymbolScope};

    /// An object with the function `f` of this code, and a relocation of the given type at `at` to a symbol.
    fn object(code: &[u8], target: &str, kind: elf::RelocationType, at: u64) -> Vec<u8> {
        let mut file = Object::new(BinaryFormat::Elf, Architecture::X86_64, object::Endianness::Little);
        let text = file.section_id(object::write::StandardSection::Text);
        let symbol = |name: &str, section| Symbol {
            name: name.into(),
            value: 0,
            size: 0,
            kind: SymbolKind::Text,
            scope: SymbolScope::Dynamic,
            weak: false,
            section,
            flags: SymbolFlags::None,
        };
        let f = file.add_symbol(symbol("f", SymbolSection::Undefined));
        file.add_symbol_data(f, text, code, 16);
        let to = file.add_symbol(symbol(target, SymbolSection::Undefined));
        let flags = RelocationFlags::Elf { r_type: kind };
        let relocation = Relocation { offset: at, symbol: to, addend: -4, flags };
        file.add_relocation(text, relocation).unwrap();
        file.write().unwrap()
    }

    /// `memset(args.bufs[0], begin, end)`, reached by the given code and relocation.
    fn fill(reach: &[u8], kind: elf::RelocationType) -> Vec<u8> {
        // mov rdi, [rdi]; mov rdi, [rdi]; sub rsp, 8; ...; add rsp, 8; ret
        let mut code = vec![0x48, 0x8b, 0x3f, 0x48, 0x8b, 0x3f, 0x48, 0x83, 0xec, 0x08];
        code.extend(reach);
        let at = code.len() as u64;
        code.extend([0, 0, 0, 0, 0x48, 0x83, 0xc4, 0x08, 0xc3]);
        object(&code, "memset", kind, at)
    }

    #[test]
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn calls_what_it_provides() {
        let direct: &[u8] = &[0xe8];
        let by_slot: &[u8] = &[0xff, 0x15];
        let objects = [
            fill(direct, elf::R_X86_64_PLT32),
            fill(by_slot, elf::R_X86_64_GOTPCRELX),
            fill(by_slot, elf::R_X86_64_GOTPCREL),
            fill(direct, elf::R_X86_64_PC32),
        ];
        let image = CodeImage::load(&objects).unwrap();
        for i in 0..objects.len() {
            let f = image.function(i, "f").unwrap();
            let mut bytes = [0u8; 64];
            let bufs = [bytes.as_mut_ptr()];
            let mut status = KernelStatus::default();
            let args = KernelArgs {
                bufs: bufs.as_ptr(),
                syms: std::ptr::null(),
                scratch: std::ptr::null_mut(),
                status: &mut status,
            };
            // SAFETY: the code above fills `end` bytes of the first operand with `begin`.
            unsafe { f(&args, 7, 60) };
            assert!(bytes[..60].iter().all(|b| *b == 7) && bytes[60..].iter().all(|b| *b == 0), "object {i}");
        }
        assert!(image.bytes() > 0);
        assert!(matches!(image.function(0, "g"), Err(LoadError::NoFunction { .. })));
    }

    #[test]
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn refuses_what_it_does_not_know() {
        let load = |o: Vec<u8>| CodeImage::load(&[o]).map(|_| ());
        let call = [0xe8, 0, 0, 0, 0, 0xc3];
        let system = object(&call, "system", elf::R_X86_64_PLT32, 1);
        assert_eq!(load(system), Err(LoadError::Undefined("system".into())));
        let absolute = object(&call, "memset", elf::R_X86_64_32S, 1);
        assert_eq!(load(absolute), Err(LoadError::Relocation(elf::R_X86_64_32S.0)));
        let outside = object(&call, "memset", elf::R_X86_64_PLT32, 3);
        assert_eq!(load(outside), Err(LoadError::OutOfRange));
        let far = object(&call, "memset", elf::R_X86_64_PLT32, u64::MAX - 1);
        assert_eq!(load(far), Err(LoadError::OutOfRange));

        let mut data = Object::new(BinaryFormat::Elf, Architecture::X86_64, object::Endianness::Little);
        let section = data.add_section(Vec::new(), b".data".to_vec(), SectionKind::Data);
        data.append_section_data(section, &[1], 1);
        assert_eq!(load(data.write().unwrap()), Err(LoadError::WritableData(".data".into())));
        let foreign = Object::new(BinaryFormat::Elf, Architecture::Aarch64, object::Endianness::Little);
        assert!(matches!(load(foreign.write().unwrap()), Err(LoadError::Machine { .. })));
    }

    #[test]
    fn refuses_what_is_no_object() {
        assert!(matches!(CodeImage::load(&[b"".as_slice()]), Err(LoadError::Malformed(_))));
        assert!(matches!(CodeImage::load(&[[0u8; 64]]), Err(LoadError::Malformed(_))));
        // a good object, cut off or damaged anywhere, is refused or loaded but never a panic
        let good = fill(&[0xe8], elf::R_X86_64_PLT32);
        for at in 0..good.len() {
            let _ = CodeImage::load(&[&good[..at]]);
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            let _ = CodeImage::load(&[bad]);
        }
    }

    #[test]
    fn nothing_to_load_is_fine() {
        let image = CodeImage::load::<Vec<u8>>(&[]).unwrap();
        assert!(matches!(image.function(0, "f"), Err(LoadError::NoFunction { .. })));
    }
}
