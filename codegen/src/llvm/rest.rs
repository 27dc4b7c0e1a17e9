//! LLVM's own code, given back: about 40 MB are resident once something was compiled, and an inference needs none.

use inkwell::llvm_sys::core::LLVMContextCreate;

/// Lets go of the pages of LLVM's machine code. Whoever calls LLVM next has them read again, from the page cache.
#[cfg(target_os = "linux")]
pub(super) fn give_code_back() {
    let inside = LLVMContextCreate as *const () as usize;
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    let Some((from, to)) = maps.lines().filter_map(code).find(|(from, to)| (*from..*to).contains(&inside))
    else {
        return;
    };
    // SAFETY: a private mapping of a file that can't be written (see `code`): its pages are those of the file, and
    // the system reads them again where a thread comes by.
    unsafe {
        libc::madvise(from as *mut _, to - from, libc::MADV_DONTNEED);
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn give_code_back() {}

/// The addresses of a line of `/proc/self/maps`, if it maps code of a file and can't be written:
/// `7f00-7f80 r-xp 00000000 08:01 123 /usr/lib/libLLVM.so`.
#[cfg(target_os = "linux")]
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, access) = (fields.next()?, fields.next()?);
    let file = fields.nth(3)?;
    if access != "r-xp" || !file.starts_with('/') {
        return None;
    }
    let (from, to) = range.split_once('-')?;
    Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files() {
        let line = |access: &str, file: &str| format!("7f0000-7f8000 {access} 00001000 fe:00 123    {file}");
        assert_eq!(code(&line("r-xp", "/usr/lib/libLLVM.so.22.1")), Some((0x7f_0000, 0x7f_8000)));
        assert_eq!(code(&line("r--p", "/usr/lib/libLLVM.so.22.1")), None);
        assert_eq!(code(&line("rwxp", "/usr/lib/libLLVM.so.22.1")), None);
        assert_eq!(code(&line("r-xp", "[vdso]")), None);
        assert_eq!(code("7f0000-7f8000 r-xp 00000000 00:00 0"), None);
    }

    #[test]
    fn llvm_works_on() {
        give_code_back();
        let context = inkwell::context::Context::create();
        assert_eq!(context.i32_type().get_bit_width(), 32);
    }
}
