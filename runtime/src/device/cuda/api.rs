//! The entry points of the CUDA driver that we use, by name from a library that is opened at run time.
//!
//! Types are cudarc's; its loader is not used, since it opens one library by a fixed name and panics where that lacks
//! something. Result codes stay numbers: newer drivers return some that no enumeration here knows.

use cudarc::driver::sys as cu;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::{Path, PathBuf};

/// A call that failed, with the driver's words for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub function: &'static str,
    pub code: u32,
    pub name: String,
    pub text: String,
}

macro_rules! functions {
    ($( $name:ident = $symbol:literal ( $($arg:ident : $ty:ty),* ); )*) => {
        /// The driver's functions.
        pub(super) struct Api {
            $( $name: unsafe extern "C" fn($($ty),*) -> u32, )*
            get_error_name: unsafe extern "C" fn(u32, *mut *const c_char) -> u32,
            get_error_string: unsafe extern "C" fn(u32, *mut *const c_char) -> u32,
            /// Keeps the code mapped.
            _library: Library,
        }

        impl Api {
            /// The functions of an open library; the name of one that it lacks.
            fn of(library: Library) -> Result<Api, &'static str> {
                // SAFETY: the signatures are those of the CUDA driver API for these (versioned) names.
                unsafe {
                    Ok(Api {
                        $( $name: *library.get($symbol).map_err(|_| $symbol)?, )*
                        get_error_name: *library.get("cuGetErrorName").map_err(|_| "cuGetErrorName")?,
                        get_error_string: *library.get("cuGetErrorString").map_err(|_| "cuGetErrorString")?,
                        _library: library,
                    })
                }
            }

            $(
                /// # Safety
                /// As the driver API asks of this function.
                #[allow(clippy::too_many_arguments, reason = "the driver's signature")]
                pub(super) unsafe fn $name(&self, $($arg: $ty),*) -> Result<(), Failure> {
                    // SAFETY: the caller's contract.
                    let code = unsafe { (self.$name)($($arg),*) };
                    if code == 0 { Ok(()) } else { Err(self.failure($symbol, code)) }
                }
            )*
        }
    };
}

functions! {
    init = "cuInit"(flags: c_uint);
    driver_get_version = "cuDriverGetVersion"(version: *mut c_int);
    device_get_count = "cuDeviceGetCount"(count: *mut c_int);
    device_get = "cuDeviceGet"(device: *mut cu::CUdevice, ordinal: c_int);
    device_get_name = "cuDeviceGetName"(name: *mut c_char, len: c_int, device: cu::CUdevice);
    device_get_attribute = "cuDeviceGetAttribute"(value: *mut c_int, attribute: cu::CUdevice_attribute, device: cu::CUdevice);
    device_total_mem = "cuDeviceTotalMem_v2"(bytes: *mut usize, device: cu::CUdevice);
    primary_ctx_retain = "cuDevicePrimaryCtxRetain"(context: *mut cu::CUcontext, device: cu::CUdevice);
    primary_ctx_release = "cuDevicePrimaryCtxRelease_v2"(device: cu::CUdevice);
    ctx_set_current = "cuCtxSetCurrent"(context: cu::CUcontext);
    ctx_synchronize = "cuCtxSynchronize"();
    module_load_data_ex = "cuModuleLoadDataEx"(module: *mut cu::CUmodule, image: *const c_void, options: c_uint, names: *mut cu::CUjit_option, values: *mut *mut c_void);
    link_create = "cuLinkCreate_v2"(options: c_uint, names: *mut cu::CUjit_option, values: *mut *mut c_void, link: *mut cu::CUlinkState);
    link_add_data = "cuLinkAddData_v2"(link: cu::CUlinkState, kind: cu::CUjitInputType, data: *mut c_void, bytes: usize, name: *const c_char, options: c_uint, names: *mut cu::CUjit_option, values: *mut *mut c_void);
    link_complete = "cuLinkComplete"(link: cu::CUlinkState, image: *mut *mut c_void, bytes: *mut usize);
    link_destroy = "cuLinkDestroy"(link: cu::CUlinkState);
    module_get_function = "cuModuleGetFunction"(function: *mut cu::CUfunction, module: cu::CUmodule, name: *const c_char);
    module_unload = "cuModuleUnload"(module: cu::CUmodule);
    mem_get_info = "cuMemGetInfo_v2"(free: *mut usize, total: *mut usize);
    mem_alloc = "cuMemAlloc_v2"(address: *mut cu::CUdeviceptr, bytes: usize);
    mem_free = "cuMemFree_v2"(address: cu::CUdeviceptr);
    mem_host_alloc = "cuMemHostAlloc"(address: *mut *mut c_void, bytes: usize, flags: c_uint);
    mem_free_host = "cuMemFreeHost"(address: *mut c_void);
    mem_get_allocation_granularity = "cuMemGetAllocationGranularity"(bytes: *mut usize, properties: *const cu::CUmemAllocationProp, option: cu::CUmemAllocationGranularity_flags);
    mem_address_reserve = "cuMemAddressReserve"(address: *mut cu::CUdeviceptr, bytes: usize, align: usize, at: cu::CUdeviceptr, flags: c_ulonglong);
    mem_address_free = "cuMemAddressFree"(address: cu::CUdeviceptr, bytes: usize);
    mem_create = "cuMemCreate"(pages: *mut cu::CUmemGenericAllocationHandle, bytes: usize, properties: *const cu::CUmemAllocationProp, flags: c_ulonglong);
    mem_release = "cuMemRelease"(pages: cu::CUmemGenericAllocationHandle);
    mem_map = "cuMemMap"(address: cu::CUdeviceptr, bytes: usize, offset: usize, pages: cu::CUmemGenericAllocationHandle, flags: c_ulonglong);
    mem_unmap = "cuMemUnmap"(address: cu::CUdeviceptr, bytes: usize);
    mem_set_access = "cuMemSetAccess"(address: cu::CUdeviceptr, bytes: usize, access: *const cu::CUmemAccessDesc, count: usize);
    memcpy_htod_async = "cuMemcpyHtoDAsync_v2"(to: cu::CUdeviceptr, from: *const c_void, bytes: usize, stream: cu::CUstream);
    memcpy_dtoh_async = "cuMemcpyDtoHAsync_v2"(to: *mut c_void, from: cu::CUdeviceptr, bytes: usize, stream: cu::CUstream);
    memcpy_dtod_async = "cuMemcpyDtoDAsync_v2"(to: cu::CUdeviceptr, from: cu::CUdeviceptr, bytes: usize, stream: cu::CUstream);
    memset_d8_async = "cuMemsetD8Async"(to: cu::CUdeviceptr, value: u8, bytes: usize, stream: cu::CUstream);
    stream_create = "cuStreamCreate"(stream: *mut cu::CUstream, flags: c_uint);
    stream_destroy = "cuStreamDestroy_v2"(stream: cu::CUstream);
    stream_synchronize = "cuStreamSynchronize"(stream: cu::CUstream);
    event_create = "cuEventCreate"(event: *mut cu::CUevent, flags: c_uint);
    event_destroy = "cuEventDestroy_v2"(event: cu::CUevent);
    event_record = "cuEventRecord"(event: cu::CUevent, stream: cu::CUstream);
    event_record_with_flags = "cuEventRecordWithFlags"(event: cu::CUevent, stream: cu::CUstream, flags: c_uint);
    event_query = "cuEventQuery"(event: cu::CUevent);
    event_elapsed_time = "cuEventElapsedTime"(ms: *mut f32, begin: cu::CUevent, end: cu::CUevent);
    stream_begin_capture = "cuStreamBeginCapture_v2"(stream: cu::CUstream, mode: cu::CUstreamCaptureMode);
    stream_end_capture = "cuStreamEndCapture"(stream: cu::CUstream, graph: *mut cu::CUgraph);
    graph_instantiate = "cuGraphInstantiateWithFlags"(exec: *mut cu::CUgraphExec, graph: cu::CUgraph, flags: c_ulonglong);
    graph_launch = "cuGraphLaunch"(exec: cu::CUgraphExec, stream: cu::CUstream);
    graph_destroy = "cuGraphDestroy"(graph: cu::CUgraph);
    graph_exec_destroy = "cuGraphExecDestroy"(exec: cu::CUgraphExec);
    launch_kernel = "cuLaunchKernel"(
        function: cu::CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared_bytes: c_uint, stream: cu::CUstream, params: *mut *mut c_void, extra: *mut *mut c_void
    );
}

/// Why a library is of no use.
pub(super) enum OpenError {
    /// None of these could be opened; the last error.
    NotThere(Vec<PathBuf>, String),
    Lacks(PathBuf, &'static str),
}

/// Where a driver installs itself, by system.
#[cfg(windows)]
const SYSTEM: [&str; 1] = ["nvcuda.dll"];
#[cfg(not(windows))]
const SYSTEM: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

impl Api {
    /// Opens the library at `path`, or that of the system.
    pub(super) fn open(path: Option<&Path>) -> Result<Api, OpenError> {
        let names: Vec<PathBuf> = match path {
            Some(path) => vec![path.to_owned()],
            None => SYSTEM.iter().map(PathBuf::from).collect(),
        };
        let mut error = String::new();
        for name in &names {
            // SAFETY: opening a driver runs its initialisers, which is what the caller asked for.
            match unsafe { Library::new(name.as_os_str()) } {
                Ok(library) => {
                    return Api::of(library).map_err(|lacks| OpenError::Lacks(name.clone(), lacks));
                }
                Err(e) => error = e.to_string(),
            }
        }
        Err(OpenError::NotThere(names, error))
    }

    fn failure(&self, function: &'static str, code: u32) -> Failure {
        let words = |f: unsafe extern "C" fn(u32, *mut *const c_char) -> u32| {
            let mut text = std::ptr::null();
            // SAFETY: the driver writes the address of a string that lives on, or null.
            unsafe {
                if f(code, &mut text) != 0 || text.is_null() {
                    return "unknown".to_string();
                }
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        Failure { function, code, name: words(self.get_error_name), text: words(self.get_error_string) }
    }
}
