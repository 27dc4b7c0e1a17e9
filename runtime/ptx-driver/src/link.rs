//! Entry points of the linker. Machine code of this device is PTX text behind a header.

use crate::codes;
use crate::context::{assembled, put};
use crate::world::{Res, World, within};
use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char, c_uint, c_void};

/// What machine code begins with: no text does. The length of the text follows, in eight bytes.
const MAGIC: &[u8; 8] = b"\x7fELFptxi";
/// `CU_JIT_INPUT_PTX`
const PTX: c_uint = 1;

/// The text of an image: itself, or what is behind the header.
///
/// # Safety
/// `image` ends with a zero byte, or is machine code of this device.
pub(crate) unsafe fn text_of<'a>(image: *const c_char) -> Res<Cow<'a, CStr>> {
    // SAFETY: the caller's contract; the first byte that differs ends the comparison, so nothing is read beyond a text.
    unsafe {
        let begins = (0..MAGIC.len()).all(|i| *image.add(i) as u8 == MAGIC[i]);
        if !begins {
            return Ok(Cow::Borrowed(CStr::from_ptr(image)));
        }
        let len = image.add(MAGIC.len()).cast::<u64>().read_unaligned();
        let text = std::slice::from_raw_parts(image.add(MAGIC.len() + 8).cast::<u8>(), len as usize);
        let text = CString::new(text).map_err(|_| codes::INVALID_IMAGE)?;
        Ok(Cow::Owned(text))
    }
}

fn link(w: &mut World, handle: usize) -> Res<&mut Vec<u8>> {
    w.links.get_mut(&handle).ok_or(codes::INVALID_HANDLE)
}

#[unsafe(no_mangle)]
extern "C" fn cuLinkCreate_v2(
    _count: c_uint,
    _names: *const c_uint,
    _values: *const *mut c_void,
    made: *mut usize,
) -> u32 {
    within(|w| {
        let handle = w.handle();
        w.links.insert(handle, Vec::new());
        put(made, handle)
    })
}

/// # Safety
/// `data` holds `bytes` bytes.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "the driver's signature")]
unsafe extern "C" fn cuLinkAddData_v2(
    handle: usize,
    kind: c_uint,
    data: *const u8,
    bytes: usize,
    _name: *const c_char,
    _count: c_uint,
    _names: *const c_uint,
    _values: *const *mut c_void,
) -> u32 {
    within(|w| {
        if kind != PTX || data.is_null() || w.settings.refuses_links {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: the caller's contract.
        let data = unsafe { std::slice::from_raw_parts(data, bytes) };
        let text = CStr::from_bytes_until_nul(data).map_err(|_| codes::INVALID_VALUE)?;
        let module = assembled(w, text).map_err(|(code, _)| code)?;
        module.unload(&mut w.memory);
        let text = text.to_bytes();
        let image = link(w, handle)?;
        image.extend_from_slice(MAGIC);
        image.extend_from_slice(&(text.len() as u64).to_le_bytes());
        image.extend_from_slice(text);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLinkComplete(handle: usize, image: *mut *mut c_void, bytes: *mut usize) -> u32 {
    within(|w| {
        let made = link(w, handle)?;
        put(bytes, made.len())?;
        put(image, made.as_mut_ptr().cast())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLinkDestroy(handle: usize) -> u32 {
    within(|w| w.links.remove(&handle).map(|_| ()).ok_or(codes::INVALID_HANDLE))
}
