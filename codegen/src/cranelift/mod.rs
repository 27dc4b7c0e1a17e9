//! The Cranelift emitter: machine form to CLIF, one to one, and from there to objects. Needs nothing
//! installed and compiles in a fraction of LLVM's time; its vectors have 128 bits.

mod func;
mod inst;
mod mem;
mod vals;

use crate::error::Emit;
use crate::object_check::check_self_contained;
use crate::order::by_demand;
use crate::{Backend, CodegenError, CompiledFunc, Fault, target};
use cranelift_codegen::Context;
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::FunctionBuilderContext;
use cranelift_module::{Linkage, Module};
use cranelift_object::{ObjectBuilder, ObjectModule};
use ir::loops::Func;
use ir::target::TargetDesc;
use rayon::prelude::*;

/// Cranelift for this host.
pub(crate) struct Cranelift {
    desc: TargetDesc,
    isa: OwnedTargetIsa,
    pool: rayon::ThreadPool,
}

fn host_error(message: impl ToString) -> CodegenError {
    CodegenError::Host { backend: "cranelift", message: message.to_string() }
}

/// What one compiling thread reuses from function to function.
#[derive(Default)]
struct Workspace {
    builder: FunctionBuilderContext,
}

impl Cranelift {
    pub(crate) fn new(threads: usize) -> Result<Cranelift, CodegenError> {
        let mut flags = settings::builder();
        let verify = if cfg!(debug_assertions) { "true" } else { "false" };
        for (name, value) in [
            // Machine form is already optimised; the mid-end only reorders accumulators into spills
            // (measured: half the speed on matrix products).
            ("opt_level", "none"),
            ("is_pic", "true"),
            ("enable_verifier", verify),
            ("unwind_info", "false"),
            ("enable_probestack", "false"),
        ] {
            flags.set(name, value).map_err(host_error)?;
        }
        let isa = cranelift_native::builder()
            .map_err(host_error)?
            .finish(settings::Flags::new(flags))
            .map_err(host_error)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("compile-{i}"))
            .build()
            .map_err(host_error)?;
        Ok(Cranelift { desc: target::cranelift_host(threads), isa, pool })
    }

    fn build(&self, func: &Func, work: &mut Workspace) -> Emit<Context> {
        let mut context = Context::new();
        func::emit(&*self.isa, &by_demand(func), &mut context.func, &mut work.builder)?;
        Ok(context)
    }

    fn object(&self, func: &Func, work: &mut Workspace) -> Emit<Vec<u8>> {
        let mut context = self.build(func, work)?;
        let builder = ObjectBuilder::new(
            self.isa.clone(),
            func.name.as_str(),
            cranelift_module::default_libcall_names(),
        )
        .map_err(Fault::emitter)?;
        let mut module = ObjectModule::new(builder);
        let id = module
            .declare_function(&func.name, Linkage::Export, &context.func.signature)
            .map_err(Fault::emitter)?;
        module
            .define_function(id, &mut context)
            .map_err(|e| Fault::emitter(format!("{e:?}\n{}", context.func.display())))?;
        let object = module.finish().emit().map_err(Fault::emitter)?;
        check_self_contained(&object)?;
        Ok(object)
    }
}

impl Backend for Cranelift {
    fn name(&self) -> &'static str {
        "cranelift"
    }

    fn target(&self) -> TargetDesc {
        self.desc.clone()
    }

    fn compile(&self, funcs: &[&Func]) -> Result<Vec<CompiledFunc>, CodegenError> {
        self.pool.install(|| {
            funcs
                .par_iter()
                .map_init(Workspace::default, |work, func| {
                    let object = self.object(func, work).map_err(|f| f.of(&func.name))?;
                    Ok(CompiledFunc { object, symbol: func.name.clone(), block: 0, at_once: 0 })
                })
                .collect()
        })
    }

    fn ir_text(&self, func: &Func) -> Result<String, CodegenError> {
        let context = self.build(func, &mut Workspace::default()).map_err(|f| f.of(&func.name))?;
        Ok(context.func.display().to_string())
    }

    fn asm_text(&self, func: &Func) -> Result<String, CodegenError> {
        let compile = || -> Emit<String> {
            let mut context = self.build(func, &mut Workspace::default())?;
            context.set_disasm(true);
            let code = context
                .compile(&*self.isa, &mut Default::default())
                .map_err(|e| Fault::emitter(format!("{:?}", e.inner)))?;
            Ok(code.vcode.clone().unwrap_or_default())
        };
        compile().map_err(|f| f.of(&func.name))
    }
}
