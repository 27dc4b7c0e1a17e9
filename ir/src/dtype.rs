//! Element types and scalar constants.

use std::fmt;
use std::str::FromStr;

/// Element type of a tensor.
///
/// The sub-byte and 8-bit float types are stored one element to a byte in every buffer of ours
/// (packing is the importer's and exporter's matter); arithmetic on them happens after a convert.
/// `I4` and `I2` are stored sign-extended, `U4`, `U2` and `F4E2M1` zero-extended, `Bool` as 0 or 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    F8E8M0,
    F4E2M1,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    I4,
    U4,
    I2,
    U2,
    Bool,
    /// Host only: never inside a kernel.
    String,
}

impl DType {
    pub const ALL: [DType; 24] = [
        DType::F64,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::F8E4M3FN,
        DType::F8E4M3FNUZ,
        DType::F8E5M2,
        DType::F8E5M2FNUZ,
        DType::F8E8M0,
        DType::F4E2M1,
        DType::I64,
        DType::I32,
        DType::I16,
        DType::I8,
        DType::U64,
        DType::U32,
        DType::U16,
        DType::U8,
        DType::I4,
        DType::U4,
        DType::I2,
        DType::U2,
        DType::Bool,
        DType::String,
    ];

    /// Bytes of one stored element. Strings have no fixed size and answer 0.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F64 | DType::I64 | DType::U64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => 2,
            DType::String => 0,
            _ => 1,
        }
    }

    /// Significant bits of the value itself (4 for `I4`, though a byte is stored).
    pub const fn bits(self) -> u32 {
        match self {
            DType::I4 | DType::U4 | DType::F4E2M1 => 4,
            DType::I2 | DType::U2 => 2,
            DType::Bool => 1,
            _ => self.bytes() as u32 * 8,
        }
    }

    pub const fn is_float(self) -> bool {
        matches!(
            self,
            DType::F64
                | DType::F32
                | DType::F16
                | DType::BF16
                | DType::F8E4M3FN
                | DType::F8E4M3FNUZ
                | DType::F8E5M2
                | DType::F8E5M2FNUZ
                | DType::F8E8M0
                | DType::F4E2M1
        )
    }

    pub const fn is_signed_int(self) -> bool {
        matches!(self, DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::I4 | DType::I2)
    }

    pub const fn is_unsigned_int(self) -> bool {
        matches!(self, DType::U64 | DType::U32 | DType::U16 | DType::U8 | DType::U4 | DType::U2)
    }

    pub const fn is_int(self) -> bool {
        self.is_signed_int() || self.is_unsigned_int()
    }

    /// Smallest and largest value of an integer type (`Bool` counts as 0..1); `None` for others.
    pub const fn int_range(self) -> Option<(i128, i128)> {
        let bits = self.bits();
        match self {
            DType::Bool => Some((0, 1)),
            _ if self.is_signed_int() => Some((-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)),
            _ if self.is_unsigned_int() => Some((0, (1i128 << bits) - 1)),
            _ => None,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F8E4M3FN => "f8e4m3fn",
            DType::F8E4M3FNUZ => "f8e4m3fnuz",
            DType::F8E5M2 => "f8e5m2",
            DType::F8E5M2FNUZ => "f8e5m2fnuz",
            DType::F8E8M0 => "f8e8m0",
            DType::F4E2M1 => "f4e2m1",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::I16 => "i16",
            DType::I8 => "i8",
            DType::U64 => "u64",
            DType::U32 => "u32",
            DType::U16 => "u16",
            DType::U8 => "u8",
            DType::I4 => "i4",
            DType::U4 => "u4",
            DType::I2 => "i2",
            DType::U2 => "u2",
            DType::Bool => "bool",
            DType::String => "string",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        DType::ALL.into_iter().find(|d| d.name() == s).ok_or_else(|| format!("unknown element type `{s}`"))
    }
}

/// A scalar constant. Floats compare by bits, so that scalars can be hashed and NaN equals itself.
#[derive(Clone, Copy, Debug)]
pub enum Scalar {
    Float(f64),
    /// Signed and unsigned integers and booleans; `u64` fits because this is 128 bits wide.
    Int(i128),
}

impl Scalar {
    pub fn as_f64(self) -> f64 {
        match self {
            Scalar::Float(x) => x,
            Scalar::Int(i) => i as f64,
        }
    }
    /// The value as an integer; floats truncate towards zero and saturate.
    pub fn as_int(self) -> i128 {
        match self {
            Scalar::Float(x) => x as i128,
            Scalar::Int(i) => i,
        }
    }
    /// Zero of `dtype`, as float or integer according to the type.
    pub fn zero(dtype: DType) -> Scalar {
        if dtype.is_float() { Scalar::Float(0.0) } else { Scalar::Int(0) }
    }
    /// `x` as a scalar of `dtype` (integers truncate and saturate, NaN is 0).
    pub fn of(dtype: DType, x: f64) -> Scalar {
        match dtype.int_range() {
            Some((lo, hi)) => Scalar::Int((x as i128).clamp(lo, hi)),
            None => Scalar::Float(x),
        }
    }
}

impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Scalar::Float(a), Scalar::Float(b)) => a.to_bits() == b.to_bits(),
            (Scalar::Int(a), Scalar::Int(b)) => a == b,
            _ => false,
        }
    }
}
impl Eq for Scalar {}
impl std::hash::Hash for Scalar {
    fn hash<H: std::hash::Hasher>(&self, h: &mut H) {
        match self {
            Scalar::Float(a) => (0u8, a.to_bits()).hash(h),
            Scalar::Int(a) => (1u8, a).hash(h),
        }
    }
}
