//! What the compiler keeps in the cache: which key a compilation has, finding it, storing it.

use crate::cache::{Cache, KernelStore, Key, compiler_identity};
use crate::compiled::{Compiled, Times, inputs_of_program, outputs_of_program};
use crate::device::Machine;
use crate::driver::{self, CompileOptions, Fixed};
use codegen::Backend;
use format::artefact::MadeFor;
use frontend::cases::CaseValue;
use runtime::artefact::MappedData;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Weights below this stay in small pages.
const PROMOTED_BYTES: usize = 8 << 20;
/// The first inference is served before weights move to huge pages.
const PROMOTED_AFTER: Duration = Duration::from_millis(250);

/// The files that a program was made of.
pub(crate) struct ModelFiles {
    pub(crate) path: PathBuf,
    pub(crate) data: Vec<PathBuf>,
    /// When they began to be read.
    pub(crate) since: SystemTime,
}

/// The cache for one compiler, target and math mode.
pub(crate) struct Stored {
    cache: Cache,
    made_for: MadeFor,
    base: Key,
}

impl Stored {
    /// `None` where there is no cache, or none that can be used.
    pub(crate) fn open(options: &CompileOptions, backend: &dyn Backend) -> Option<Stored> {
        let cache = Cache::open(options.cache.as_ref()?).ok()?;
        let made_for = MadeFor { compiler: compiler_identity(), target: format!("{:?}", backend.target()) };
        let math = options.math.name();
        let base = Key::of(&[
            made_for.compiler.as_bytes(),
            made_for.target.as_bytes(),
            backend.name().as_bytes(),
            math.as_bytes(),
        ]);
        Some(Stored { cache, made_for, base })
    }

    pub(crate) fn kernels(&self) -> KernelStore {
        self.cache.kernels(self.base)
    }

    /// The key of a compilation: all that the program depends on.
    fn key(
        &self,
        model: &Key,
        options: &CompileOptions,
        inputs: &[(String, CaseValue)],
        fixed: Fixed,
    ) -> Key {
        let import = driver::import_options(options, inputs, fixed);
        // constants are printed without their elements
        let mut constants = Vec::new();
        for (name, t) in &import.constants {
            constants.extend_from_slice(Key::of(&[name.as_bytes(), &t.data]).bytes());
        }
        let how = format!("{import:?} {:?}", options.passes());
        Key::of(&[self.base.bytes(), model.bytes(), how.as_bytes(), &constants])
    }

    /// The program of a model that was compiled before.
    pub(crate) fn find(
        &self,
        path: &Path,
        options: &CompileOptions,
        inputs: &[(String, CaseValue)],
        machine: &Machine,
    ) -> Option<Compiled> {
        let began = Instant::now();
        let model = self.cache.known_model(path)?;
        let mut levels = Fixed::ALL.iter().map(|&fixed| self.key(&model, options, inputs, fixed));
        let loaded = levels.find_map(|key| self.cache.program(&key))?;
        if loaded.made_for != self.made_for {
            return None;
        }
        let (inputs, outputs) = (inputs_of_program(&loaded.program)?, outputs_of_program(&loaded.program)?);
        let mut times = Times { import: began.elapsed().as_secs_f64() * 1e3, ..Times::default() };
        let pages = loaded.pages();
        let stats = codegen::program::Stats {
            variants: loaded.program.kernels.iter().map(|k| k.variants.len()).sum(),
            compiled: 0,
            code_bytes: loaded.program.objects.iter().map(Vec::len).sum(),
        };
        let model = driver::load(loaded.program, options, machine, &mut times).ok()?;
        if machine.gpu.is_none() {
            promote(pages);
        }
        let backend = machine.backend.name();
        Some(Compiled { model, inputs, outputs, stats, times, backend, cached: true, saving: None })
    }

    /// Stores a program, on a thread of its own.
    pub(crate) fn save(
        self,
        compiled: &mut Compiled,
        read: ModelFiles,
        options: &CompileOptions,
        inputs: &[(String, CaseValue)],
        fixed: Fixed,
    ) {
        // strings are no part of a program
        if compiled.outputs.iter().any(|o| o.strings.is_some()) {
            return;
        }
        let (model, options, inputs) = (compiled.model.clone(), options.clone(), inputs.to_vec());
        let write = move || {
            let contents = self.cache.learn_model(&read.path, &read.data, read.since)?;
            let key = self.key(&contents, &options, &inputs, fixed);
            if self.cache.has_program(&key) {
                return Ok(());
            }
            self.cache.store_program(&key, |out| model.write_artefact(&self.made_for, &[], out))
        };
        compiled.saving = thread::Builder::new().name("ks-cache".into()).spawn(write).ok();
    }
}

/// Moves large weights to huge pages, in the background, once the first inference is likely over.
fn promote(pages: MappedData) {
    if pages.len() >= PROMOTED_BYTES {
        // without a thread the weights stay where they are
        let _ = thread::Builder::new().name("ks-pages".into()).spawn(move || {
            thread::sleep(PROMOTED_AFTER);
            pages.promote();
        });
    }
}
