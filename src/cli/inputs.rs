//! Where the inputs of a run come from.

use crate::arrays::{self, Array};
use crate::compiled::InputSpec;
use crate::driver::Error;
use clap::Args;
use frontend::cases::CaseValue;
use ir::Tensor;
use std::path::PathBuf;

/// Files that hold outputs too name their inputs so.
const PREFIX: &str = "in.";

#[derive(Args, Clone, Default)]
pub(super) struct InputArgs {
    /// One input from a .npy file (NAME ends at the last `=`)
    #[arg(long = "input", value_name = "NAME=FILE.npy")]
    input: Vec<String>,
    /// Inputs by name from a .npz file
    #[arg(long, value_name = "FILE.npz")]
    inputs: Option<PathBuf>,
    /// Random inputs; sizes that --dim does not give are 1
    #[arg(long, value_name = "SEED")]
    random: Option<u64>,
}

impl InputArgs {
    /// As `--random SEED`.
    pub(super) fn with_seed(seed: u64) -> InputArgs {
        InputArgs { random: Some(seed), ..Default::default() }
    }

    pub(super) fn given(&self) -> bool {
        !self.input.is_empty() || self.inputs.is_some() || self.random.is_some()
    }

    /// Reads the files.
    pub(super) fn read(&self) -> Result<Given, Error> {
        let mut arrays: Vec<(String, Array)> = Vec::new();
        if let Some(path) = &self.inputs {
            arrays = arrays::read_npz(path)?;
        }
        for s in &self.input {
            let (name, path) = s
                .rsplit_once('=')
                .ok_or_else(|| Error::Usage(format!("--input {s}: expected NAME=FILE.npy")))?;
            arrays.retain(|(n, _)| n != name);
            arrays.push((name.to_string(), arrays::read_npy(path.as_ref())?));
        }
        Ok(Given { arrays, random: self.random })
    }
}

/// Inputs as they were given, before the model's types are known.
pub(super) struct Given {
    arrays: Vec<(String, Array)>,
    random: Option<u64>,
}

impl Given {
    /// The arrays with the types they have by themselves, for a model whose structure depends on them.
    pub(super) fn values(&self) -> Vec<(String, CaseValue)> {
        self.arrays
            .iter()
            .filter_map(|(name, a)| {
                let t = a.clone().into_tensor(a.natural_dtype()?).ok()?;
                let name = name.strip_prefix(PREFIX).unwrap_or(name);
                Some((name.to_string(), CaseValue::Tensor(t)))
            })
            .collect()
    }

    /// The tensors for a model's inputs, in order.
    pub(super) fn tensors(self, inputs: &[InputSpec]) -> Result<Vec<Tensor>, Error> {
        let mut arrays = self.arrays;
        let mut tensors = Vec::new();
        for (i, spec) in inputs.iter().enumerate() {
            let name = &spec.name;
            let prefixed = format!("{PREFIX}{name}");
            let found = arrays.iter().position(|(n, _)| n == name || *n == prefixed);
            if let Some(at) = found {
                let array = arrays.swap_remove(at).1;
                let t = array
                    .into_tensor(spec.dtype)
                    .map_err(|e| Error::Input(format!("input {i} \"{name}\": {e}")))?;
                tensors.push(t);
            } else if let Some(seed) = self.random {
                tensors.push(arrays::random(spec.dtype, spec.least.clone(), seed.wrapping_add(i as u64)));
            } else {
                let ty = spec.ty();
                return Err(Error::Input(format!("input {i} \"{name}\" is missing: the model wants {ty}")));
            }
        }
        Ok(tensors)
    }
}
