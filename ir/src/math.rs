//! How exactly the arithmetic of a model is followed: part of the compile request.

/// Freedom that a compilation has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Math {
    /// f32 stays f32; sums may be taken in another order, algorithms with a stated error bound are allowed
    /// (Winograd), and products of quantised tensors are computed in integers. f16 and bf16 are rounded after every
    /// operation, as the primitives say, so that results do not depend on what is fused; sums of them are f32. Results
    /// smaller than all normal numbers may become zeros.
    #[default]
    Default,
    /// The operations that the model spells out, in the order of a careful reader: no Winograd, quantised models
    /// in the real numbers that they are written in.
    Strict,
    /// As `Default`, with operands of contractions and convolutions of f32 rounded to bf16 where the machine has
    /// instructions for such products; sums stay f32, and so do halves inside of a fused kernel.
    Bf16,
}

impl Math {
    pub const ALL: [Math; 3] = [Math::Default, Math::Strict, Math::Bf16];

    pub fn name(self) -> &'static str {
        match self {
            Math::Default => "default",
            Math::Strict => "strict",
            Math::Bf16 => "bf16",
        }
    }
    pub fn parse(name: &str) -> Option<Math> {
        Math::ALL.into_iter().find(|m| m.name() == name)
    }

    /// Other algorithms than the one that the definition of an op spells out.
    pub fn reassociates(self) -> bool {
        self != Math::Strict
    }
}
