//! NVIDIA GPUs through the CUDA driver, or through any library that exports its entry points.

mod api;
mod graph;
mod memory;
mod queue;
mod virtual_memory;

use super::{Addr, CallerStream, Code, Device, DeviceInfo, Gpu, GpuSettings, Memory, Queue};
use crate::error::{DeviceError, Result};
use crate::model::Limits;
use crate::pool::Pool;
use api::{Api, Failure, OpenError};
use cudarc::driver::sys as cu;
use format::Program;
use memory::{DeviceMemory, PinnedMemory};
use queue::CudaQueue;
use std::ffi::{CString, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use virtual_memory::VirtualMemory;

/// CUDA 12.0, whose entry points we use.
const OLDEST_DRIVER: i32 = 12_000;
/// What kernels are compiled for.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);
const OUT_OF_MEMORY: u32 = 2;
const NO_DEVICE: u32 = 100;
/// Bytes for what the driver's assembler has to say.
const LOG_BYTES: usize = 8192;

/// A driver with one device's primary context.
pub(super) struct Driver {
    api: Api,
    device: cu::CUdevice,
    context: cu::CUcontext,
    info: DeviceInfo,
    /// Of CUDA, as the driver counts.
    version: c_int,
    settings: GpuSettings,
    /// Bytes of the pages that it can map at addresses of our choice; `None` where it cannot.
    page: Option<usize>,
    /// The error after which the context is of no use.
    lost: Mutex<Option<String>>,
}

// SAFETY: the driver's handles may be used from any thread; calls make the context current first.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: retained by `open`, and released once.
        let _ = unsafe { self.api.primary_ctx_release(self.device) };
    }
}

/// Errors after which every further call in the context fails.
fn is_sticky(code: u32) -> bool {
    matches!(code, 214 | 700 | 702 | 709 | 710 | 714..=719)
}

impl Driver {
    /// Makes the context that of this thread.
    fn enter(&self) -> Result<(), DeviceError> {
        if let Some(cause) = &*self.lost.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(DeviceError::Lost { cause: cause.clone() });
        }
        // SAFETY: the context lives as long as `self`.
        unsafe { self.api.ctx_set_current(self.context) }.map_err(|f| self.error(f))
    }

    /// The error that a failed call means, where it is not about memory or code.
    fn error(&self, f: Failure) -> DeviceError {
        let message = format!("{} ({}, {})", f.text, f.name, f.code);
        if is_sticky(f.code) {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            lost.get_or_insert_with(|| message.clone());
        }
        DeviceError::Call { function: f.function, message }
    }

    /// Machine code for PTX text.
    fn assemble(&self, text: &CString) -> Result<Vec<u8>, Failure> {
        let (api, none, nothing) = (&self.api, std::ptr::null_mut(), std::ptr::null_mut());
        let mut link = std::ptr::null_mut();
        let bytes = text.as_bytes_with_nul();
        let ptx = cu::CUjitInputType::CU_JIT_INPUT_PTX;
        // SAFETY: the text is as long as said and is only read; the image belongs to the link and is copied before
        // that is destroyed.
        unsafe {
            api.link_create(0, none, nothing, &mut link)?;
            let (data, mut image, mut len) = (bytes.as_ptr().cast_mut().cast(), std::ptr::null_mut(), 0);
            let added = api.link_add_data(
                link,
                ptx,
                data,
                bytes.len(),
                c"kernel".as_ptr(),
                0,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            );
            let done = added.and_then(|()| api.link_complete(link, &mut image, &mut len));
            let binary = done.map(|()| match image.is_null() {
                true => Vec::new(),
                false => std::slice::from_raw_parts(image.cast::<u8>(), len).to_vec(),
            });
            let gone = api.link_destroy(link);
            gone.and(binary)
        }
    }

    /// Bytes of the device that nobody uses, as far as the driver tells.
    fn free_memory(&self) -> usize {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers; where it fails they stay 0.
        let _ = unsafe { self.api.mem_get_info(&mut free, &mut total) };
        free
    }

    /// As [`Driver::error`], for a call that wanted memory.
    fn memory_error(&self, f: Failure, needed: usize) -> DeviceError {
        if f.code != OUT_OF_MEMORY {
            return self.error(f);
        }
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers; where it fails they stay 0.
        let _ = unsafe { self.api.mem_get_info(&mut free, &mut total) };
        DeviceError::Memory { needed, free, total }
    }
}

/// Opens a device of a driver.
pub(super) fn open(which: &Gpu, settings: GpuSettings) -> Result<Arc<dyn Device>, DeviceError> {
    let (path, ordinal) = match which {
        Gpu::Cuda(n) => (None, *n),
        Gpu::Library(path) => (Some(path.as_path()), 0),
    };
    let api = Api::open(path).map_err(|e| match e {
        OpenError::NotThere(names, reason) => {
            let names: Vec<String> = names.iter().map(|n| n.display().to_string()).collect();
            DeviceError::NoDriver { looked_for: names.join(", "), reason }
        }
        OpenError::Lacks(path, function) => {
            DeviceError::OldDriver { found: format!("{} without {function}", path.display()) }
        }
    })?;
    let call = |f: Failure| match f.code {
        NO_DEVICE => DeviceError::NoDevice,
        _ => DeviceError::Call {
            function: f.function,
            message: format!("{} ({}, {})", f.text, f.name, f.code),
        },
    };
    let (mut version, mut count, mut device) = (0, 0, 0);
    // SAFETY: each call writes what its pointers lead to; the ordinal is one that there is.
    unsafe {
        // the version can be asked for before anything else
        api.driver_get_version(&mut version).map_err(call)?;
        if version < OLDEST_DRIVER {
            let found = format!("for CUDA {}.{}", version / 1000, version % 1000 / 10);
            return Err(DeviceError::OldDriver { found });
        }
        api.init(0).map_err(call)?;
        api.device_get_count(&mut count).map_err(call)?;
        let count = usize::try_from(count).unwrap_or(0);
        if count == 0 {
            return Err(DeviceError::NoDevice);
        }
        if ordinal >= count {
            return Err(DeviceError::NoOrdinal { ordinal, count });
        }
        api.device_get(&mut device, ordinal as c_int).map_err(call)?;
    }
    let attribute = |a: cu::CUdevice_attribute| {
        let mut value = 0;
        // SAFETY: writes one number.
        unsafe { api.device_get_attribute(&mut value, a, device) }.map_err(call)?;
        Ok::<_, DeviceError>(u32::try_from(value).unwrap_or(0))
    };
    use cu::CUdevice_attribute as A;
    let capability = (
        attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let maps = attribute(A::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)? != 0;
    let units = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as usize;
    let (mut name, mut total) = ([0u8; 256], 0);
    // SAFETY: the name is cut to the length given; the total is one number.
    unsafe {
        api.device_get_name(name.as_mut_ptr().cast(), name.len() as c_int - 1, device).map_err(call)?;
        api.device_total_mem(&mut total, device).map_err(call)?;
    }
    let end = name.iter().position(|b| *b == 0).unwrap_or(0);
    let name = String::from_utf8_lossy(&name[..end]).into_owned();
    if capability < OLDEST_CAPABILITY {
        return Err(DeviceError::OldDevice { name, found: capability, needed: OLDEST_CAPABILITY });
    }
    let mut context = std::ptr::null_mut();
    // SAFETY: writes the handle, which `Driver` releases.
    unsafe { api.primary_ctx_retain(&mut context, device) }.map_err(call)?;
    let info = DeviceInfo { name, units, compute_capability: Some(capability), memory: total };
    let mut driver =
        Driver { api, device, context, info, version, settings, page: None, lost: Mutex::new(None) };
    if maps {
        driver.enter()?;
        driver.page = Some(virtual_memory::page(&driver).map_err(call)?);
    }
    Ok(Arc::new(Cuda(Arc::new(driver))))
}

struct Cuda(Arc<Driver>);

impl Device for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.0.info
    }
    fn memory(&self) -> Box<dyn Memory> {
        match self.0.page {
            Some(page) => Box::new(VirtualMemory::new(self.0.clone(), page)),
            None => Box::new(DeviceMemory::new(self.0.clone())),
        }
    }
    fn host_memory(&self) -> Box<dyn Memory> {
        Box::new(PinnedMemory::new(self.0.clone()))
    }
    fn adopt(&self, _: &[u8]) -> Option<Addr> {
        None
    }
    fn load(&self, program: &Program, limits: Limits) -> Result<Arc<dyn Code>> {
        Ok(Arc::new(CudaCode::load(self.0.clone(), program, limits)?))
    }
    fn pool(&self) -> Option<&Arc<Pool>> {
        None
    }
}

/// One kernel variant that is loaded.
#[derive(Clone, Copy)]
struct Entry {
    function: cu::CUfunction,
    /// Threads of a block.
    block: u32,
    /// Iterations that a block works on at once.
    at_once: u32,
}

struct CudaCode {
    driver: Arc<Driver>,
    modules: Vec<cu::CUmodule>,
    /// By kernel and variant.
    entries: Vec<Vec<Option<Entry>>>,
    /// Names of kernels, and of the nodes behind origins.
    kernels: Vec<String>,
    nodes: Vec<String>,
    /// Symbols of the program.
    symbols: usize,
    limits: Limits,
    load_ms: f64,
    /// Objects whose machine code was kept from an earlier start.
    found: usize,
}

// SAFETY: handles of the driver, as in `Driver`.
unsafe impl Send for CudaCode {}
// SAFETY: as above.
unsafe impl Sync for CudaCode {}

impl CudaCode {
    fn load(driver: Arc<Driver>, program: &Program, limits: Limits) -> Result<CudaCode> {
        driver.enter()?;
        let began = Instant::now();
        let kernels: Vec<String> = program.kernels.iter().map(|k| k.name.clone()).collect();
        let nodes = program.origins.iter().map(|o| o.node.clone()).collect();
        let mut code = CudaCode {
            driver,
            modules: Vec::new(),
            entries: Vec::new(),
            kernels,
            nodes,
            symbols: program.symbols.len(),
            limits,
            load_ms: 0.0,
            found: 0,
        };
        let mut names = vec!["?"; program.objects.len()];
        for k in &program.kernels {
            for (object, _) in k.variants.iter().filter_map(|v| v.code.as_ref()) {
                names[*object] = k.name.as_str();
            }
        }
        for (object, name) in program.objects.iter().zip(names) {
            let module = code.module(object, name)?;
            code.modules.push(module);
        }
        for k in &program.kernels {
            let mut entries = Vec::with_capacity(k.variants.len());
            for v in &k.variants {
                entries.push(match &v.code {
                    Some((object, symbol)) if v.block > 0 => {
                        let function = code.function(*object, symbol, &k.name)?;
                        Some(Entry { function, block: v.block, at_once: v.at_once.max(1) })
                    }
                    Some(_) => {
                        let message = "it is code for a CPU".into();
                        return Err(DeviceError::Code { kernel: k.name.clone(), message }.into());
                    }
                    None => None,
                });
            }
            code.entries.push(entries);
        }
        code.load_ms = began.elapsed().as_secs_f64() * 1e3;
        Ok(code)
    }

    /// Loads a kernel: its machine code, if that has been kept and this driver takes it, or else its text.
    fn module(&mut self, object: &[u8], kernel: &str) -> Result<cu::CUmodule, DeviceError> {
        let fail = |message: String| DeviceError::Code { kernel: kernel.to_string(), message };
        let text = CString::new(object).map_err(|_| fail("its text holds a zero byte".into()))?;
        let Some(store) = self.driver.settings.binaries.clone() else {
            return self.load_image(&text, kernel);
        };
        // another driver may make something else of it, and another device needs something else
        let mut source = format!("{:?} {}\n", self.driver.info.compute_capability, self.driver.version);
        source.push_str(&String::from_utf8_lossy(object));
        if let Some(module) = store.get(source.as_bytes()).and_then(|b| self.load_binary(&b).ok()) {
            self.found += 1;
            return Ok(module);
        }
        match self.driver.assemble(&text) {
            Ok(binary) => {
                store.put(source.as_bytes(), &binary);
                self.load_binary(&binary).or_else(|_| self.load_image(&text, kernel))
            }
            // loading the text says what is wrong with it, if anything is
            Err(_) => self.load_image(&text, kernel),
        }
    }

    /// Loads what the driver has assembled.
    fn load_binary(&self, binary: &[u8]) -> Result<cu::CUmodule, Failure> {
        let mut module = std::ptr::null_mut();
        let (none, nothing) = (std::ptr::null_mut(), std::ptr::null_mut());
        let image = binary.as_ptr().cast();
        // SAFETY: the image is one that the driver made, and says itself how long it is.
        unsafe { self.driver.api.module_load_data_ex(&mut module, image, 0, none, nothing) }?;
        Ok(module)
    }

    /// Loads PTX text; the driver assembles it, or finds it in a cache of its own.
    fn load_image(&self, text: &CString, kernel: &str) -> Result<cu::CUmodule, DeviceError> {
        let fail = |message: String| DeviceError::Code { kernel: kernel.to_string(), message };
        let mut log = vec![0u8; LOG_BYTES];
        let mut names =
            [cu::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, cu::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values: [*mut c_void; 2] =
            [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let mut module = std::ptr::null_mut();
        let (image, names, values) = (text.as_ptr().cast(), names.as_mut_ptr(), values.as_mut_ptr());
        // SAFETY: the image ends with a zero; options and values are as many as said, the log as long as said.
        let loaded = unsafe { self.driver.api.module_load_data_ex(&mut module, image, 2, names, values) };
        match loaded {
            Ok(()) => Ok(module),
            Err(f) if f.code == OUT_OF_MEMORY => Err(self.driver.memory_error(f, text.as_bytes().len())),
            Err(f) => {
                let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
                let log = String::from_utf8_lossy(&log[..end]);
                Err(fail(format!("{} ({}, {}) {}", f.text, f.name, f.code, log.trim())))
            }
        }
    }

    fn function(&self, object: usize, symbol: &str, kernel: &str) -> Result<cu::CUfunction, DeviceError> {
        let fail = |message: String| DeviceError::Code { kernel: kernel.to_string(), message };
        let name = CString::new(symbol).map_err(|e| fail(e.to_string()))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with a zero.
        unsafe { self.driver.api.module_get_function(&mut function, self.modules[object], name.as_ptr()) }
            .map_err(|f| fail(format!("{symbol}: {} ({}, {})", f.text, f.name, f.code)))?;
        Ok(function)
    }

    /// A kernel and the node that called it, for messages.
    fn name(&self, kernel: usize, origin: usize) -> String {
        let name = self.kernels.get(kernel).map_or("?", String::as_str);
        match self.nodes.get(origin) {
            Some(node) if !node.is_empty() => format!("{name} (node \"{node}\")"),
            _ => name.to_string(),
        }
    }
}

impl Drop for CudaCode {
    fn drop(&mut self) {
        if self.driver.enter().is_ok() {
            for &m in &self.modules {
                // SAFETY: loaded by `module`; the queues that used it are gone, since each holds the code.
                let _ = unsafe { self.driver.api.module_unload(m) };
            }
        }
    }
}

impl Code for CudaCode {
    fn queue(self: Arc<Self>, stream: Option<CallerStream>) -> Result<Box<dyn Queue>> {
        Ok(Box::new(CudaQueue::new(self, stream)?))
    }
    fn found(&self) -> usize {
        self.found
    }
    fn load_ms(&self) -> f64 {
        self.load_ms
    }
}
