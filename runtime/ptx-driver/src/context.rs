//! Entry points for devices, contexts, modules and errors.

use crate::codes;
use crate::settings::Settings;
use crate::world::{CONTEXT, CURRENT, Code, Function, Res, World, keep, lock, status, with, within};
use kernelsmith_ptx_interp::Module;
use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::rc::Rc;

const NAME: &CStr = c"PTX interpreter";
/// `CUdevice_attribute`
const MULTIPROCESSOR_COUNT: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const VIRTUAL_ADDRESSES: c_int = 102;
/// `CUjit_option`
const ERROR_LOG: c_uint = 5;
const ERROR_LOG_BYTES: c_uint = 6;

fn settings() -> Res<Settings> {
    Settings::read().map_err(|word| {
        eprintln!("ptx-interp: `{word}` in the environment is not known");
        codes::INVALID_VALUE
    })
}

/// Writes through a pointer that the caller of an entry point gave.
pub(crate) fn put<T>(to: *mut T, value: T) -> Res<()> {
    if to.is_null() {
        return Err(codes::INVALID_VALUE);
    }
    // SAFETY: not null, and by the API's contract valid for one value.
    unsafe { to.write(value) };
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> u32 {
    let init = || {
        let new = settings()?;
        if new.no_device {
            return Err(codes::NO_DEVICE);
        }
        let mut world = lock();
        match &mut *world {
            Some(w) if w.retained > 0 => {}
            other => *other = Some(World::new(new)),
        }
        Ok(())
    };
    status(init())
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    status(settings().and_then(|s| put(version, s.version)))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    with(|w| put(count, w.settings.devices))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> u32 {
    with(|w| match (0..w.settings.devices).contains(&ordinal) {
        true => put(device, ordinal),
        false => Err(codes::INVALID_DEVICE),
    })
}

/// # Safety
/// `name` has room for `len` characters.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) -> u32 {
    with(|_| {
        let text = NAME.to_bytes_with_nul();
        let room = usize::try_from(len).unwrap_or(0);
        if name.is_null() || room < text.len() {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: there is room, as just seen.
        unsafe { name.copy_from_nonoverlapping(text.as_ptr().cast(), text.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) -> u32 {
    with(|w| {
        let s = &w.settings;
        let found = match attribute {
            MULTIPROCESSOR_COUNT => s.sms,
            CAPABILITY_MAJOR => s.capability.0,
            CAPABILITY_MINOR => s.capability.1,
            VIRTUAL_ADDRESSES => s.maps.into(),
            _ => return Err(codes::INVALID_VALUE),
        };
        put(value, found)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> u32 {
    with(|w| put(bytes, w.settings.memory as usize))
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *const u8, _device: c_int) -> u32 {
    with(|w| {
        w.retained += 1;
        put(context, &raw const CONTEXT)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> u32 {
    with(|w| {
        w.retained = w.retained.checked_sub(1).ok_or(codes::INVALID_CONTEXT)?;
        if w.retained == 0 {
            *w = World::new(w.settings.clone());
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: *const u8) -> u32 {
    with(|w| {
        let ours = std::ptr::eq(context, &raw const CONTEXT);
        if !ours && !context.is_null() || ours && w.retained == 0 {
            return Err(codes::INVALID_CONTEXT);
        }
        CURRENT.set(ours);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> u32 {
    within(World::wait_for_all)
}

/// Reads the options of `cuModuleLoadDataEx`: where to write what is wrong.
///
/// # Safety
/// Both lists have `count` entries.
unsafe fn error_log(
    count: c_uint,
    names: *const c_uint,
    values: *const *mut c_void,
) -> Option<(*mut u8, usize)> {
    let (mut at, mut len) = (std::ptr::null_mut::<u8>(), 0);
    for i in 0..count as usize {
        // SAFETY: within the lists.
        let (name, value) = unsafe { (*names.add(i), *values.add(i)) };
        match name {
            ERROR_LOG => at = value.cast(),
            ERROR_LOG_BYTES => len = value.addr(),
            _ => {}
        }
    }
    (!at.is_null() && len > 0).then_some((at, len))
}

/// # Safety
/// As the driver API: `image` ends with a zero byte, both lists have `count` entries.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut usize,
    image: *const c_char,
    count: c_uint,
    names: *const c_uint,
    values: *const *mut c_void,
) -> u32 {
    within(|w| {
        if image.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: the caller's contract.
        let (text, log) = unsafe { (crate::link::text_of(image), error_log(count, names, values)) };
        if w.settings.refuses_binaries && !matches!(text, Ok(Cow::Borrowed(_))) {
            return Err(codes::NO_BINARY_FOR_GPU);
        }
        load(w, &text?)
            .map_err(|(code, message)| {
                if let Some((at, len)) = log {
                    let cut = message.len().min(len - 1);
                    // SAFETY: the log has `len` bytes, by the caller's options.
                    unsafe {
                        at.copy_from_nonoverlapping(message.as_ptr(), cut);
                        at.add(cut).write(0);
                    }
                }
                code
            })
            .and_then(|handle| put(module, handle))
    })
}

/// A module of text that this device takes.
pub(crate) fn assembled(w: &mut World, text: &CStr) -> Result<Module, (Code, String)> {
    let invalid = |message: String| (codes::INVALID_PTX, message);
    if !w.settings.assembles {
        return Err(invalid("ptxas fatal: as the environment asked".into()));
    }
    let text = text.to_str().map_err(|_| invalid("not a text".into()))?;
    let module = Module::load(text, &mut w.memory).map_err(|e| invalid(e.to_string()))?;
    let ((major, minor), target) = module.header();
    // PTX 8.0 came with CUDA 12.0, and each minor version of one with one of the other
    let newest = (w.settings.version / 1000 - 4, w.settings.version % 1000 / 10);
    if (major as i32, minor as i32) > newest {
        module.unload(&mut w.memory);
        return Err((codes::UNSUPPORTED_PTX_VERSION, format!("PTX version {major}.{minor}")));
    }
    let number = |t: &str| t.trim_start_matches("sm_").trim_end_matches('a').parse::<i32>().ok();
    let (have, exact) = (w.settings.capability.0 * 10 + w.settings.capability.1, target.ends_with('a'));
    if number(target).is_none_or(|t| if exact { t != have } else { t > have }) {
        let message = format!("the text is for {target}, the device is sm_{have}");
        module.unload(&mut w.memory);
        return Err((codes::NO_BINARY_FOR_GPU, message));
    }
    Ok(module)
}

fn load(w: &mut World, text: &CStr) -> Result<usize, (Code, String)> {
    let module = assembled(w, text)?;
    let handle = w.handle();
    w.modules.insert(handle, Rc::new(module));
    Ok(handle)
}

/// # Safety
/// `name` ends with a zero byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) -> u32 {
    within(|w| {
        let module = w.modules.get(&module).ok_or(codes::INVALID_HANDLE)?.clone();
        // SAFETY: the caller's contract.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| codes::NOT_FOUND)?.to_string();
        module.kernel(&name).map_err(|_| codes::NOT_FOUND)?;
        let handle = w.handle();
        w.functions.insert(handle, Rc::new(Function { module, name }));
        put(function, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: usize) -> u32 {
    within(|w| {
        w.wait_for_all()?;
        let gone = w.modules.remove(&module).ok_or(codes::INVALID_HANDLE)?;
        w.functions.retain(|_, f| !Rc::ptr_eq(&f.module, &gone));
        gone.unload(&mut w.memory);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(code: u32, text: *mut *const c_char) -> u32 {
    match codes::describe(code) {
        Some((name, _)) => status(put(text, keep(name.into()).as_ptr())),
        None => codes::INVALID_VALUE,
    }
}

/// As the driver's, and what the interpreter said about the kernel that failed.
#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(code: u32, text: *mut *const c_char) -> u32 {
    let Some((_, words)) = codes::describe(code) else { return codes::INVALID_VALUE };
    let said = lock().as_ref().filter(|w| w.lost == Some(code)).map(|w| w.said.clone());
    let whole: &CString = keep(match said {
        Some(said) => format!("{words}: {said}"),
        None => words.to_string(),
    });
    status(put(text, whole.as_ptr()))
}
