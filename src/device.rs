//! Which processor a program is for.

use crate::cache::Cache;
use crate::driver::{CompileOptions, Error};
use runtime::{Device, Gpu, GpuSettings, Pool};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// A choice of processor, as the command line spells it: `cpu`, `cuda`, `cuda:1`, `ptx-interp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    #[default]
    Cpu,
    /// The n-th NVIDIA GPU.
    Cuda(usize),
    /// A library in the place of the CUDA driver that interprets the kernels: what is there for tests.
    PtxInterp,
}

impl FromStr for DeviceChoice {
    type Err = String;
    fn from_str(s: &str) -> Result<DeviceChoice, String> {
        match s {
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            "ptx-interp" => Ok(DeviceChoice::PtxInterp),
            _ => s
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| "expected cpu, cuda, cuda:N or ptx-interp".into()),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(0) => f.write_str("cuda"),
            DeviceChoice::Cuda(n) => write!(f, "cuda:{n}"),
            DeviceChoice::PtxInterp => f.write_str("ptx-interp"),
        }
    }
}

/// Names the file of the stand-in driver where it does not lie beside the program.
pub const STAND_IN: &str = "KERNELSMITH_PTX_DRIVER";
const STAND_IN_FILE: &str = "libkernelsmith_ptx_driver.so";

/// The stand-in driver: beside this program, or beside the test programs that cargo builds with it.
fn stand_in() -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os(STAND_IN) {
        return Ok(path.into());
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
    let beside =
        beside.into_iter().flat_map(|dir| [dir.join(STAND_IN_FILE), dir.join("deps").join(STAND_IN_FILE)]);
    beside.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        Error::Usage(format!(
            "no {STAND_IN_FILE} beside this program (cargo build --package kernelsmith-ptx-driver), and {STAND_IN} \
             is not set"
        ))
    })
}

/// The emitter for a device, and the device where it is not this CPU.
pub(crate) struct Machine {
    pub backend: Box<dyn codegen::Backend>,
    pub gpu: Option<Arc<dyn Device>>,
}

impl Machine {
    /// Opens what `options` ask for.
    pub(crate) fn open(options: &CompileOptions) -> Result<Machine, Error> {
        let which = match options.device {
            DeviceChoice::Cpu => return Ok(Machine { backend: cpu_backend(options)?, gpu: None }),
            DeviceChoice::Cuda(n) => Gpu::Cuda(n),
            DeviceChoice::PtxInterp => Gpu::Library(stand_in()?),
        };
        if let Some(name) = &options.backend {
            return Err(Error::Usage(format!("backend {name} is for the CPU")));
        }
        let cache = options.cache.as_ref().and_then(|c| Cache::open(c).ok());
        let binaries = cache.map(|c| Arc::new(c.binaries()) as Arc<dyn runtime::BinaryStore>);
        let settings = GpuSettings { check_launches: options.check_launches, binaries };
        let gpu = runtime::device::gpu(&which, settings).map_err(runtime::RunError::from)?;
        let backend = Box::new(codegen::ptx::Ptx::new(gpu.info().units));
        Ok(Machine { backend, gpu: Some(gpu) })
    }

    /// The device that programs of this machine are loaded on.
    pub(crate) fn device(&self, options: &CompileOptions) -> Arc<dyn Device> {
        match &self.gpu {
            Some(gpu) => gpu.clone(),
            None => runtime::device::cpu(Arc::new(Pool::new(options.threads))),
        }
    }
}

fn cpu_backend(options: &CompileOptions) -> Result<Box<dyn codegen::Backend>, Error> {
    let name = match &options.backend {
        Some(name) => name.as_str(),
        None => {
            *codegen::available().first().ok_or_else(|| Error::Usage("this build has no backend".into()))?
        }
    };
    Ok(codegen::backend(name, options.threads)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_spelt_in_one_way() {
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for d in [DeviceChoice::Cpu, DeviceChoice::Cuda(0), DeviceChoice::Cuda(2), DeviceChoice::PtxInterp] {
            assert_eq!(d.to_string().parse(), Ok(d));
        }
        assert_eq!("ptx-interp".parse(), Ok(DeviceChoice::PtxInterp));
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(bad.parse::<DeviceChoice>().is_err(), "{bad}");
        }
    }
}
