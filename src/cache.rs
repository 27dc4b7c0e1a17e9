//! The cache on disk: whole programs with packed weights, and the machine code of single kernels.
//!
//! ```text
//! DIR/v1/models/<hash of path>     which files a model consists of, their stamps and content hashes
//! DIR/v1/programs/<key>.ksp        artefacts (`format::artefact`), by what decides their contents
//! DIR/v1/programs/<key>.stamp      the stamp that the artefact had when its data were last known good
//! DIR/v1/kernels/<key>             objects, by loop IR, target and compiler; of GPUs, by PTX, driver and device
//! ```
//!
//! Keys are BLAKE3 hashes of everything that an entry depends on: contents of the model's files, compile options,
//! CPU, build of the compiler. Entries are written beside their place and renamed into it, so that processes
//! never see halves of them, whichever of them writes; the last one wins.
//!
//! Trust. What is executed or decides addresses is checked against its hash at every load. Contents of large
//! files (the model, packed weights) are hashed when they are first seen and whenever their *stamp* differs:
//! device, inode, size, times of modification and of status change, which every write through the file
//! system changes, and for artefacts the boot, so that a crash of the machine leads to a new check. Stamps
//! younger than two seconds at the time of hashing prove nothing and are not relied on. The directory must
//! belong to the user and be writable by nobody else. An entry that fails any check is removed.

use runtime::RunError;
use runtime::artefact::Loaded;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the cache is and how large it may grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    pub dir: PathBuf,
    /// Bytes of all entries; the least recently used are removed.
    pub max_bytes: u64,
}

/// Bound on the size of the cache where none is given.
pub const DEFAULT_BYTES: u64 = 8 << 30;
/// Stamps prove nothing about changes so shortly after them.
const RACY: Duration = Duration::from_secs(2);
/// Times of files lag behind the clock by this at most.
const TICK: Duration = Duration::from_millis(10);
/// Bytes that are read and hashed at once.
const HASH_BLOCK: usize = 512 << 10;
/// Temporary files so old belong to nobody.
const ABANDONED: Duration = Duration::from_secs(3600);

impl CacheOptions {
    /// `$XDG_CACHE_HOME/kernelsmith`, or `~/.cache/kernelsmith`; `None` where neither is known.
    pub fn user() -> Option<CacheOptions> {
        let absolute = |p: PathBuf| p.is_absolute().then_some(p);
        let base =
            std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).and_then(absolute).or_else(|| {
                let home = std::env::var_os("HOME").map(PathBuf::from).and_then(absolute)?;
                Some(home.join(".cache"))
            })?;
        Some(CacheOptions { dir: base.join("kernelsmith"), max_bytes: DEFAULT_BYTES })
    }
}

/// A hash that names an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key(blake3::Hash);

impl Key {
    /// Of parts, each of which counts with its length.
    pub fn of(parts: &[&[u8]]) -> Key {
        let mut hasher = blake3::Hasher::new();
        for p in parts {
            hasher.update(&(p.len() as u64).to_le_bytes());
            hasher.update(p);
        }
        Key(hasher.finalize())
    }
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What changes whenever a file's contents do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Stamp {
        Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
    /// Old enough at `now` (nanoseconds since 1970) for a later change to change it.
    fn settled(&self, now: i128) -> bool {
        self.latest() + (RACY.as_nanos() as i128) < now
    }
    /// Nanoseconds since 1970 at the last change.
    fn latest(&self) -> i128 {
        let nanos = |(s, n): (i64, i64)| i128::from(s) * 1_000_000_000 + i128::from(n);
        nanos(self.changed).max(nanos(self.modified))
    }
}

fn now() -> i128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128)
}

/// One file of a model.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct ModelFile {
    path: PathBuf,
    stamp: Stamp,
    /// When it was hashed, nanoseconds since 1970.
    hashed_at: i128,
    content: [u8; 32],
}

impl ModelFile {
    /// Hashes a file, on all cores.
    fn read(path: &Path) -> io::Result<ModelFile> {
        let hashed_at = now();
        let mut file = File::open(path)?;
        let stamp = Stamp::of(&file.metadata()?);
        let mut hasher = blake3::Hasher::new();
        // read and not mapped: mapped pages would count as memory of this process
        let mut block = vec![0; HASH_BLOCK.min(stamp.size as usize + 1)];
        loop {
            match file.read(&mut block)? {
                0 => break,
                n => hasher.update_rayon(&block[..n]),
            };
        }
        if Stamp::of(&fs::metadata(path)?) != stamp {
            return Err(io::Error::other("the file changes while it is read"));
        }
        Ok(ModelFile { path: path.to_owned(), stamp, hashed_at, content: *hasher.finalize().as_bytes() })
    }

    /// The same file as it is now: hashed again where its stamp leaves a doubt.
    fn current(&self) -> io::Result<ModelFile> {
        let stamp = Stamp::of(&fs::metadata(&self.path)?);
        if stamp == self.stamp && stamp.settled(self.hashed_at) {
            return Ok(self.clone());
        }
        ModelFile::read(&self.path)
    }
}

/// Which contents a model consists of.
fn identity(files: &[ModelFile]) -> Key {
    Key::of(&files.iter().map(|f| f.content.as_slice()).collect::<Vec<_>>())
}

/// An open cache.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    max_bytes: u64,
}

impl Cache {
    /// Opens (and makes) the cache.
    ///
    /// # Errors
    /// Where the directory cannot be made, or could be written by others.
    pub fn open(options: &CacheOptions) -> io::Result<Cache> {
        let root = options.dir.join("v1");
        for part in ["models", "programs", "kernels"] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(root.join(part))?;
        }
        let meta = fs::metadata(&root)?;
        // SAFETY: takes no arguments and cannot fail.
        let user = unsafe { libc::geteuid() };
        if meta.uid() != user || meta.permissions().mode() & 0o022 != 0 {
            return Err(io::Error::other(format!("{} can be written by others", root.display())));
        }
        Ok(Cache { root, max_bytes: options.max_bytes })
    }

    fn model_path(&self, model: &Path) -> io::Result<PathBuf> {
        let path = fs::canonicalize(model)?;
        Ok(self.root.join("models").join(Key::of(&[path.as_os_str().as_encoded_bytes()]).to_string()))
    }

    /// The contents of a model that was seen before. `None` for a new one, and where anything goes wrong.
    pub fn known_model(&self, model: &Path) -> Option<Key> {
        let at = self.model_path(model).ok()?;
        let files: Vec<ModelFile> = postcard::from_bytes(&fs::read(&at).ok()?).ok()?;
        let current: Vec<ModelFile> = files.iter().map(ModelFile::current).collect::<io::Result<_>>().ok()?;
        if current != files {
            self.write_model(&at, &current).ok()?;
        }
        Some(identity(&current))
    }

    /// Remembers a model and the data files that it reads; its contents.
    ///
    /// # Errors
    /// Where a file cannot be read, or may have changed after `since`, when it was first read.
    pub fn learn_model(&self, model: &Path, data_files: &[PathBuf], since: SystemTime) -> io::Result<Key> {
        let model_file = fs::canonicalize(model)?;
        let paths = std::iter::once(&model_file).chain(data_files);
        let files = paths.map(|p| ModelFile::read(&fs::canonicalize(p)?)).collect::<io::Result<Vec<_>>>()?;
        let since = since.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128);
        if files.iter().any(|f| f.stamp.latest() + TICK.as_nanos() as i128 >= since) {
            return Err(io::Error::other("the model is too new to be kept"));
        }
        self.write_model(&self.model_path(model)?, &files)?;
        Ok(identity(&files))
    }

    fn write_model(&self, at: &Path, files: &[ModelFile]) -> io::Result<()> {
        let bytes = postcard::to_stdvec(files).map_err(io::Error::other)?;
        self.replace(at, |out| out.write_all(&bytes))
    }

    fn program_path(&self, key: &Key) -> PathBuf {
        self.root.join("programs").join(format!("{key}.ksp"))
    }

    /// The program under `key`, if it is there and sound. One that is not is removed.
    pub fn program(&self, key: &Key) -> Option<Loaded> {
        let path = self.program_path(key);
        let file = File::open(&path).ok()?;
        match self.checked(&path, &file) {
            Ok(loaded) => Some(loaded),
            Err(_) => {
                let _ = fs::remove_file(&path);
                let _ = fs::remove_file(path.with_extension("stamp"));
                None
            }
        }
    }

    fn checked(&self, path: &Path, file: &File) -> Result<Loaded, RunError> {
        let loaded = Loaded::open(file)?;
        let io = |e: io::Error| RunError::Memory(e.to_string());
        let want = storage_stamp(&file.metadata().map_err(io)?);
        let stamp_path = path.with_extension("stamp");
        if fs::read(&stamp_path).is_ok_and(|s| s == want) {
            // the time of last use
            if let Ok(f) = File::options().append(true).open(&stamp_path) {
                let _ = f.set_modified(SystemTime::now());
            }
        } else {
            loaded.check_data()?;
            let _ = self.replace(&stamp_path, |out| out.write_all(&want));
        }
        Ok(loaded)
    }

    /// Stores a program written by `write`, and makes room.
    pub fn store_program(
        &self,
        key: &Key,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let path = self.program_path(key);
        self.replace(&path, write)?;
        // what this process has just written needs no check while the machine runs
        let stamp = storage_stamp(&fs::metadata(&path)?);
        self.replace(&path.with_extension("stamp"), |out| out.write_all(&stamp))?;
        self.evict()
    }

    pub fn has_program(&self, key: &Key) -> bool {
        self.program_path(key).is_file()
    }

    /// Writes a file beside its place and renames it.
    fn replace(&self, path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let part = path.with_extension(format!("{}-{number}.part", std::process::id()));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
        let mut out = BufWriter::with_capacity(1 << 16, file);
        let done = write(&mut out).and_then(|()| out.flush()).and_then(|()| fs::rename(&part, path));
        if done.is_err() {
            let _ = fs::remove_file(&part);
        }
        done
    }

    /// Removes entries, the least recently used first, until the bound is kept. One process at a time.
    pub fn evict(&self) -> io::Result<()> {
        let path = self.root.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        if lock.try_lock().is_err() {
            return Ok(());
        }
        let mut entries = Vec::new();
        let mut total = 0;
        for part in ["models", "programs", "kernels"] {
            for entry in fs::read_dir(self.root.join(part))? {
                let entry = entry?;
                let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
                let modified = meta.modified().unwrap_or(UNIX_EPOCH);
                let age = modified.elapsed().unwrap_or_default();
                match path.extension().and_then(|e| e.to_str()) {
                    Some("part") if age > ABANDONED => fs::remove_file(&path)?,
                    Some("part" | "stamp") => {}
                    _ => {
                        let used = fs::metadata(path.with_extension("stamp")).and_then(|m| m.modified());
                        total += meta.len();
                        entries.push((used.map_or(modified, |u| u.max(modified)), meta.len(), path));
                    }
                }
            }
        }
        entries.sort();
        for (_, size, path) in entries {
            if total <= self.max_bytes {
                break;
            }
            fs::remove_file(&path)?;
            let _ = fs::remove_file(path.with_extension("stamp"));
            total -= size;
        }
        Ok(())
    }
}

/// A stamp that also says since when the machine runs: what reached the page cache only does not survive a crash.
fn storage_stamp(meta: &fs::Metadata) -> Vec<u8> {
    let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    postcard::to_stdvec(&(Stamp::of(meta), boot)).unwrap_or_default()
}

/// Compiled kernels as entries of their own, so that other models find them too.
pub struct KernelStore {
    cache: Cache,
    /// What all kernels of this compilation depend on.
    base: Key,
}

impl Cache {
    pub fn kernels(&self, base: Key) -> KernelStore {
        KernelStore { cache: self.clone(), base }
    }

    /// Machine code that GPU drivers make of kernels; what it was made of says all that it depends on.
    pub fn binaries(&self) -> KernelStore {
        self.kernels(Key::of(&[b"machine code of a GPU driver"]))
    }
}

impl KernelStore {
    fn path(&self, func: &[u8]) -> (Key, PathBuf) {
        let key = Key::of(&[self.base.bytes(), func]);
        (key, self.cache.root.join("kernels").join(key.to_string()))
    }
}

impl KernelStore {
    fn read(&self, func: &[u8]) -> Option<Vec<u8>> {
        let (key, path) = self.path(func);
        let bytes = fs::read(&path).ok()?;
        // key, hash of the object, object
        let good = bytes.len() > 64 && {
            let (head, object) = bytes.split_at(64);
            head[..32] == *key.bytes() && head[32..] == *blake3::hash(object).as_bytes()
        };
        if !good {
            let _ = fs::remove_file(&path);
            return None;
        }
        Some(bytes[64..].to_vec())
    }

    fn write(&self, func: &[u8], object: &[u8]) {
        let (key, path) = self.path(func);
        // a cache that cannot be written is no error of the compilation
        let _ = self.cache.replace(&path, |out| {
            out.write_all(key.bytes())?;
            out.write_all(blake3::hash(object).as_bytes())?;
            out.write_all(object)
        });
    }
}

impl codegen::ObjectStore for KernelStore {
    fn get(&self, func: &[u8]) -> Option<Vec<u8>> {
        self.read(func)
    }
    fn put(&self, func: &[u8], object: &[u8]) {
        self.write(func, object);
    }
}

impl runtime::BinaryStore for KernelStore {
    fn get(&self, source: &[u8]) -> Option<Vec<u8>> {
        self.read(source)
    }
    fn put(&self, source: &[u8], binary: &[u8]) {
        self.write(source, binary);
    }
}

/// Version and build of this compiler: entries of another one are never used.
pub fn compiler_identity() -> String {
    let build = build_id().unwrap_or_else(|| {
        // no build id: the file itself
        let stamp = fs::metadata("/proc/self/exe").map(|m| Stamp::of(&m));
        format!("{stamp:?}")
    });
    format!("{} {build}", env!("CARGO_PKG_VERSION"))
}

/// The linker's hash of this program: the GNU build id, from the notes of the executable.
fn build_id() -> Option<String> {
    use std::os::unix::fs::FileExt;
    let file = File::open("/proc/self/exe").ok()?;
    let mut header = [0u8; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    let u16_at = |b: &[u8], at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    let u64_at = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap_or_default());
    if header[..6] != [0x7f, b'E', b'L', b'F', 2, 1] {
        return None;
    }
    let (table, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    for i in 0..u64::from(count) {
        let mut entry = [0u8; 56];
        file.read_exact_at(&mut entry, table.checked_add(i * u64::from(size))?).ok()?;
        const PT_NOTE: [u8; 4] = [4, 0, 0, 0];
        if entry[..4] != PT_NOTE {
            continue;
        }
        let mut notes = vec![0u8; u64_at(&entry, 32).min(1 << 16) as usize];
        file.read_exact_at(&mut notes, u64_at(&entry, 8)).ok()?;
        let mut rest = notes.as_slice();
        while let Some((head, after)) = rest.split_at_checked(12) {
            let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let (name, desc) = (word(0) as usize, word(4) as usize);
            let (name, after) = after.split_at_checked(name.checked_next_multiple_of(4)?)?;
            let (desc, after) = after.split_at_checked(desc.checked_next_multiple_of(4)?)?;
            const NT_GNU_BUILD_ID: u32 = 3;
            if word(8) == NT_GNU_BUILD_ID && name.starts_with(b"GNU") {
                return Some(desc.iter().map(|b| format!("{b:02x}")).collect());
            }
            rest = after;
        }
    }
    None
}
