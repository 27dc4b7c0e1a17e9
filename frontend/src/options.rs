//! Options of an import.

pub use crate::onnx::tensor::MissingWeights;
use ir::Tensor;
use std::collections::BTreeMap;

/// What an input holds where its type alone does not say it.
#[derive(Clone, PartialEq, Debug)]
pub enum Structure {
    /// A sequence with these elements.
    Sequence(Vec<Structure>),
    /// A tensor of this rank (sequences of tensors and optionals rarely say the rank).
    Tensor { rank: usize },
    /// An optional without a value.
    Absent,
}

/// How a model is imported, and the limits it has to keep.
///
/// Files are memory-mapped: a model must not be truncated while anything imported from it is in use.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Fixes named dimensions (`dim_param`) to sizes.
    pub dims: BTreeMap<String, i64>,
    /// Fixes the whole shape of inputs, by input name.
    pub shapes: BTreeMap<String, Vec<i64>>,
    /// Forgets the sizes that the model fixes for its inputs: for tests of what does not depend on them.
    pub all_dims_symbolic: bool,
    /// Inclusive ranges of symbolic dimensions, by name. Unnamed ones are called after the input: `x_0`.
    pub dim_ranges: BTreeMap<String, (i64, i64)>,
    /// Smallest size of a symbolic dimension without a range. With 0, empty inputs are accepted, and
    /// expressions of sizes simplify less. Dimensions that a name marks as the past of a cache may always be 0.
    pub smallest_dim: i64,
    /// Takes a dimension named like a sum of others (`past_plus_seq`, `past + seq`) to be that sum.
    pub sums_of_names: bool,
    /// Structure of inputs that are sequences or optionals, by name.
    pub structures: BTreeMap<String, Structure>,
    /// Inputs whose value is fixed at compile time, where the structure of the graph depends on it. They remain
    /// inputs; whoever runs the program passes the same values.
    pub constants: BTreeMap<String, Tensor>,
    /// Initialisers that are also listed as inputs are inputs, and not constants.
    pub initializers_are_inputs: bool,
    pub missing_weights: MissingWeights,
    /// Reads external data from files that have several hard links.
    pub allow_hard_links: bool,
    /// Gives each problem of a node the smallest model that shows it ([`crate::Diagnostic::model`]).
    pub extract: bool,
    /// Largest model file in bytes (external data not counted).
    pub max_model_bytes: u64,
    /// Most nodes, those of inlined functions and expanded loops counted each time.
    pub max_nodes: usize,
    /// Deepest nesting of subgraphs and functions.
    pub max_depth: usize,
}

impl Default for ImportOptions {
    fn default() -> Self {
        ImportOptions {
            dims: BTreeMap::new(),
            shapes: BTreeMap::new(),
            all_dims_symbolic: false,
            dim_ranges: BTreeMap::new(),
            smallest_dim: 1,
            sums_of_names: true,
            structures: BTreeMap::new(),
            constants: BTreeMap::new(),
            initializers_are_inputs: false,
            missing_weights: MissingWeights::Error,
            allow_hard_links: false,
            extract: false,
            max_model_bytes: 64 << 30,
            max_nodes: 1_000_000,
            max_depth: 32,
        }
    }
}
