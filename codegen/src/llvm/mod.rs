//! The LLVM emitter: machine form to LLVM IR, one to one, and from there to objects.
//!
//! Machine form is already what a pass pipeline would make of it (vectors are explicit, accumulators
//! are phis, addresses are shared), so none is run: only instruction selection and register allocation.

mod build;
mod func;
mod inst;
mod matrix;
mod mem;
mod rest;

use crate::error::Emit;
use crate::object_check::check_self_contained;
use crate::order::by_demand;
use crate::{Backend, CodegenError, CompiledFunc, Fault, target};
use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple,
};
use ir::loops::Func;
use ir::target::TargetDesc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// LLVM for one CPU.
pub(crate) struct Llvm {
    desc: TargetDesc,
    pool: rayon::ThreadPool,
}

fn host_error(message: impl ToString) -> CodegenError {
    CodegenError::Host { backend: "llvm", message: message.to_string() }
}

/// Loop strength reduction takes half of LLVM's time on our code, which computes addresses where they
/// belong already.
fn disable_loop_strength_reduction() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let args = [c"kernelsmith".as_ptr(), c"-disable-lsr".as_ptr()];
        // SAFETY: two C strings that live for ever; called once, before any code is generated.
        unsafe {
            inkwell::llvm_sys::support::LLVMParseCommandLineOptions(2, args.as_ptr(), std::ptr::null());
        }
    });
}

impl Llvm {
    pub(crate) fn new(threads: usize) -> Result<Llvm, CodegenError> {
        let cpu = TargetMachine::get_host_cpu_name().to_string();
        let features = target::usable_features(&TargetMachine::get_host_cpu_features().to_string());
        Self::of(target::llvm_host(cpu, features, threads))
    }

    /// LLVM for any CPU of this architecture.
    pub(crate) fn of(desc: TargetDesc) -> Result<Llvm, CodegenError> {
        Target::initialize_native(&InitializationConfig::default()).map_err(host_error)?;
        disable_loop_strength_reduction();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(desc.threads)
            .thread_name(|i| format!("compile-{i}"))
            .build()
            .map_err(host_error)?;
        let llvm = Llvm { desc, pool };
        llvm.machine()?;
        Ok(llvm)
    }

    fn machine(&self) -> Result<Machine, CodegenError> {
        let triple = TargetMachine::get_default_triple();
        let target = Target::from_triple(&triple).map_err(host_error)?;
        let machine = target
            .create_target_machine(
                &triple,
                &self.desc.cpu,
                &self.desc.features,
                // the same code to within a few instructions, a tenth sooner
                OptimizationLevel::Less,
                RelocMode::PIC,
                CodeModel::Small,
            )
            .ok_or_else(|| host_error("no target machine for this CPU"))?;
        Ok(Machine { machine, triple })
    }

    /// Machine code of one function.
    fn object(
        &self,
        context: &Context,
        machine: &Result<Machine, CodegenError>,
        func: &Func,
    ) -> Result<CompiledFunc, CodegenError> {
        let machine = machine.as_ref().map_err(Clone::clone)?;
        let object = module(context, machine, &self.desc, func)
            .and_then(|m| machine.write(&m, FileType::Object))
            .and_then(|object| {
                check_self_contained(&object)?;
                Ok(object)
            })
            .map_err(|f| f.of(&func.name))?;
        Ok(CompiledFunc { object, symbol: func.name.clone(), block: 0, at_once: 0 })
    }

    fn file(&self, func: &Func, kind: FileType) -> Result<Vec<u8>, CodegenError> {
        let machine = self.machine()?;
        let context = Context::create();
        let bytes = module(&context, &machine, &self.desc, func)
            .and_then(|m| machine.write(&m, kind))
            .map_err(|f| f.of(&func.name))?;
        Ok(bytes)
    }
}

/// A target machine; one per compiling thread.
struct Machine {
    machine: TargetMachine,
    triple: TargetTriple,
}

impl Machine {
    fn write(&self, module: &Module<'_>, kind: FileType) -> Emit<Vec<u8>> {
        let buffer = self.machine.write_to_memory_buffer(module, kind).map_err(Fault::emitter)?;
        let mut bytes = buffer.as_slice().to_vec();
        if matches!(kind, FileType::Assembly) {
            // the buffer of text is terminated as a C string
            bytes.retain(|b| *b != 0);
        }
        Ok(bytes)
    }
}

/// The module of one function.
fn module<'ctx>(
    context: &'ctx Context,
    machine: &Machine,
    desc: &TargetDesc,
    func: &Func,
) -> Emit<Module<'ctx>> {
    let module = context.create_module(&func.name);
    module.set_triple(&machine.triple);
    module.set_data_layout(&machine.machine.get_target_data().get_data_layout());
    func::emit(context, &module, desc, &by_demand(func))?;
    if cfg!(debug_assertions) {
        module.verify().map_err(|e| Fault::emitter(format!("{}\n{}", e, module.to_string())))?;
    }
    Ok(module)
}

impl Backend for Llvm {
    fn name(&self) -> &'static str {
        "llvm"
    }

    fn target(&self) -> TargetDesc {
        self.desc.clone()
    }

    fn compile(&self, funcs: &[&Func]) -> Result<Vec<CompiledFunc>, CodegenError> {
        // the largest first: what is left at the end, when threads run out of work, is small
        let mut order: Vec<usize> = (0..funcs.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(funcs[i].types.len()));
        let next = AtomicUsize::new(0);
        let take = || order.get(next.fetch_add(1, Ordering::Relaxed)).copied();
        let work = |_: rayon::BroadcastContext<'_>| {
            let mut mine = Vec::new();
            let Some(mut i) = take() else { return mine };
            let (context, machine) = (Context::create(), self.machine());
            loop {
                mine.push((i, self.object(&context, &machine, funcs[i])));
                match take() {
                    Some(another) => i = another,
                    None => return mine,
                }
            }
        };
        let mut done: Vec<_> = self.pool.broadcast(work).into_iter().flatten().collect();
        done.sort_by_key(|(i, _)| *i);
        done.into_iter().map(|(_, result)| result).collect()
    }

    fn rest(&self) {
        rest::give_code_back();
    }
    fn ir_text(&self, func: &Func) -> Result<String, CodegenError> {
        let machine = self.machine()?;
        let context = Context::create();
        let module = module(&context, &machine, &self.desc, func).map_err(|f| f.of(&func.name))?;
        Ok(module.to_string())
    }

    fn asm_text(&self, func: &Func) -> Result<String, CodegenError> {
        let bytes = self.file(func, FileType::Assembly)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
