//! External tensor data, and the bytes of model files.
//!
//! A model may name files that hold its tensors. The names come from the model and are not trusted:
//! each path component is opened below the handle of the directory before it, links are never
//! followed, and only regular files with one name are read.

use ir::tensor::ByteSource;
use memmap2::Mmap;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Bytes of a file: mapped, or owned.
pub enum FileBytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl FileBytes {
    pub fn as_slice(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(m) => m,
            FileBytes::Owned(v) => v,
        }
    }

    /// Maps `file` read-only. An empty file is owned, since nothing can be mapped.
    pub fn map(file: &File) -> std::io::Result<FileBytes> {
        if file.metadata()?.len() == 0 {
            return Ok(FileBytes::Owned(Vec::new()));
        }
        // SAFETY: the mapping is private and read-only. The one obligation left to the user, stated in
        // the documentation of `ImportOptions`, is that nobody truncates a model while it is in use.
        Ok(FileBytes::Mapped(unsafe { Mmap::map(file)? }))
    }
}

/// A part of a shared file.
pub struct FileSlice {
    file: Arc<FileBytes>,
    range: Range<usize>,
}

impl FileSlice {
    /// `None` where the range is not inside the file.
    pub fn new(file: Arc<FileBytes>, range: Range<usize>) -> Option<FileSlice> {
        file.as_slice().get(range.clone())?;
        Some(FileSlice { file, range })
    }
}

impl ByteSource for FileSlice {
    fn bytes(&self) -> &[u8] {
        // the constructor checked the range, and mappings do not shrink
        self.file.as_slice().get(self.range.clone()).unwrap_or(&[])
    }

    fn release(&self) {
        #[cfg(target_os = "linux")]
        if let FileBytes::Mapped(map) = &*self.file {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: pages of a private mapping that was never written to: who reads them again reads the
            // file again. A failure leaves them where they are.
            let _ = unsafe { map.unchecked_advise_range(advice, self.range.start, self.range.len()) };
        }
    }
}

/// Why external data is refused.
#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    #[error("external data is named, but the model was not read from a directory")]
    NoDirectory,
    #[error("external data location {0:?} is not a plain path below the model's directory")]
    Path(String),
    #[error("external data {path:?}: {source}")]
    Open { path: String, source: std::io::Error },
    #[error("external data {0:?} is not a regular file")]
    NotRegular(String),
    #[error("external data {0:?} is a file with several hard links")]
    HardLink(String),
    #[error("external data {path:?}: bytes {offset}..{offset}+{length} are outside the file of {size} bytes")]
    Range { path: String, offset: u64, length: u64, size: u64 },
    #[error("external data: {0}")]
    Entry(String),
}

/// Opens the data files of one model, each once.
pub struct DataFiles {
    dir: Option<PathBuf>,
    allow_hard_links: bool,
    open: HashMap<String, Arc<FileBytes>>,
}

impl DataFiles {
    /// `dir` is the directory of the model, `None` for a model from memory.
    pub fn new(dir: Option<PathBuf>, allow_hard_links: bool) -> DataFiles {
        DataFiles { dir, allow_hard_links, open: HashMap::new() }
    }

    /// Paths of the files opened so far, below the model's directory.
    pub fn paths(&self) -> Vec<PathBuf> {
        let dir = self.dir.clone().unwrap_or_default();
        let mut paths: Vec<PathBuf> = self.open.keys().map(|k| dir.join(k)).collect();
        paths.sort();
        paths
    }

    /// The bytes `offset..offset + length` of the file `location`; to its end where `length` is `None`.
    pub fn slice(
        &mut self,
        location: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<FileSlice, ExternalError> {
        let file = match self.open.get(location) {
            Some(f) => f.clone(),
            None => {
                let f = Arc::new(self.open(location)?);
                self.open.insert(location.to_owned(), f.clone());
                f
            }
        };
        let size = file.as_slice().len() as u64;
        let length = length.unwrap_or(size.saturating_sub(offset));
        let range = || ExternalError::Range { path: location.to_owned(), offset, length, size };
        let end = offset.checked_add(length).filter(|&e| e <= size).ok_or_else(range)?;
        FileSlice::new(file, offset as usize..end as usize).ok_or_else(range)
    }

    fn open(&self, location: &str) -> Result<FileBytes, ExternalError> {
        let dir = self.dir.as_deref().ok_or(ExternalError::NoDirectory)?;
        let bad = || ExternalError::Path(location.to_owned());
        let mut parts = Vec::new();
        for c in Path::new(location).components() {
            match c {
                Component::Normal(p) => parts.push(p),
                Component::CurDir => {}
                _ => return Err(bad()),
            }
        }
        if parts.is_empty() || location.contains('\0') {
            return Err(bad());
        }
        let io = |source| ExternalError::Open { path: location.to_owned(), source };
        let file = open_below(dir, &parts).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(ExternalError::NotRegular(location.to_owned()));
        }
        #[cfg(unix)]
        if !self.allow_hard_links && std::os::unix::fs::MetadataExt::nlink(&meta) > 1 {
            return Err(ExternalError::HardLink(location.to_owned()));
        }
        FileBytes::map(&file).map_err(io)
    }
}

/// Opens `dir/parts...` one component at a time, following no link below `dir`.
#[cfg(unix)]
fn open_below(dir: &Path, parts: &[&std::ffi::OsStr]) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags, open, openat};
    // an empty parent ("model.onnx") is the current directory
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let base = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut at = open(dir, base | OFlags::DIRECTORY, Mode::empty())?;
    let Some((last, parents)) = parts.split_last() else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    for p in parents {
        at = openat(&at, *p, base | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    }
    // without NONBLOCK, opening a FIFO would wait for its writer
    let file = openat(&at, *last, base | OFlags::NOFOLLOW | OFlags::NONBLOCK, Mode::empty())?;
    Ok(File::from(file))
}

/// Where directory handles are not available: refuses links by looking at each component first.
#[cfg(not(unix))]
fn open_below(dir: &Path, parts: &[&std::ffi::OsStr]) -> std::io::Result<File> {
    let mut path = dir.to_owned();
    for p in parts {
        path.push(p);
        if std::fs::symlink_metadata(&path)?.is_symlink() {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
    }
    File::open(path)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("kernelsmith-external-{name}-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("model/sub")).unwrap();
        std::fs::write(dir.join("secret"), b"secret").unwrap();
        std::fs::write(dir.join("model/w.bin"), b"0123456789").unwrap();
        std::fs::write(dir.join("model/sub/v.bin"), b"abc").unwrap();
        dir
    }

    #[test]
    fn only_plain_files_below_the_model_are_read() {
        let dir = scratch("escape");
        let _ = symlink("../secret", dir.join("model/link"));
        let _ = symlink("..", dir.join("model/up"));
        let _ = std::fs::hard_link(dir.join("secret"), dir.join("model/hard"));
        let mut files = DataFiles::new(Some(dir.join("model")), false);
        assert_eq!(files.slice("w.bin", 2, Some(3)).unwrap().bytes(), b"234");
        assert_eq!(files.slice("./sub/v.bin", 0, None).unwrap().bytes(), b"abc");
        for bad in [
            "../secret",
            "sub/../../secret",
            "/etc/passwd",
            "link",
            "up/secret",
            "hard",
            "sub",
            "",
            ".",
            "missing",
        ] {
            assert!(files.slice(bad, 0, Some(1)).is_err(), "{bad}");
        }
        assert!(files.slice("w.bin", 8, Some(3)).is_err());
        assert!(files.slice("w.bin", u64::MAX, Some(2)).is_err());
        assert_eq!(files.slice("w.bin", 10, None).unwrap().bytes(), b"");
        assert!(DataFiles::new(None, false).slice("w.bin", 0, None).is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
