//! A stand-in for the CUDA driver: the entry points that our runtime uses, over the interpreter of PTX text.
//!
//! No product links it; `--device ptx-interp` opens it in the place of the driver, so that the very same runtime runs
//! on machines without a GPU. It is as strict as a driver may be, and as lazy: work of a stream is done only when
//! somebody waits for it, memory is filled with nonsense, calls need a current context, an error of a kernel comes to
//! light with a later call and every call after it fails too.
//!
//! Two variables of the environment, read by `cuInit`, choose what happens ([`settings`]): `KERNELSMITH_PTX_INTERP`
//! (how kernels are interpreted) and `KERNELSMITH_PTX_FAULT` (which calls fail).

#![allow(non_snake_case, reason = "the driver's names")]

pub mod codes;
mod context;
mod entry;
mod link;
mod memory;
pub mod settings;
mod stream;
mod world;
