//! The seam for NVIDIA GPUs: finds the driver and its devices. Nothing is linked; the driver library is
//! opened at run time, and a machine without one says so.

use cudarc::driver::CudaContext;
use thiserror::Error;

/// Why there is no GPU to use.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CudaError {
    #[error("no CUDA driver library on this machine")]
    NoDriver,
    #[error("CUDA driver: {0}")]
    Driver(String),
}

/// A device as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    pub ordinal: usize,
    pub name: String,
    /// Major and minor.
    pub compute_capability: (i32, i32),
}

/// The devices that the driver offers, in its order.
pub fn devices() -> Result<Vec<DeviceInfo>, CudaError> {
    // SAFETY: only asks whether the library can be opened.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let error = |e: cudarc::driver::DriverError| CudaError::Driver(e.to_string());
    let count = CudaContext::device_count().map_err(error)?;
    (0..usize::try_from(count).unwrap_or(0))
        .map(|ordinal| {
            let context = CudaContext::new(ordinal).map_err(error)?;
            let name = context.name().map_err(error)?;
            let compute_capability = context.compute_capability().map_err(error)?;
            Ok(DeviceInfo { ordinal, name, compute_capability })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_says_so() {
        // with a driver, there is an answer too; a panic or an abort would be the fault
        if let Err(e) = devices() {
            assert!(!e.to_string().is_empty());
        }
    }
}
