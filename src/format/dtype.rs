//! One table: safetensors name ↔ bits per element ↔ c10 scalar type.
//!
//! The order of the rows is the order of the safetensors format (reference implementation 0.8):
//! a writer sorts tensors by it, last row first. The scalar types are the numbers of
//! `c10::ScalarType`; `csrc/tensor.cpp` asserts at compile time that they still are.

/// The element type of a tensor, as a safetensors header names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(non_camel_case_types)]
pub enum Dtype {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

struct Row {
    dtype: Dtype,
    name: &'static str,
    /// Bits of one element as the header counts elements.
    bits: u64,
    /// `c10::ScalarType`, where torch has one.
    scalar_type: Option<i8>,
}

const fn row(dtype: Dtype, name: &'static str, bits: u64, scalar_type: Option<i8>) -> Row {
    Row { dtype, name, bits, scalar_type }
}

const TABLE: [Row; 22] = [
    row(Dtype::BOOL, "BOOL", 8, Some(11)),
    row(Dtype::F4, "F4", 4, Some(45)),
    row(Dtype::F6_E2M3, "F6_E2M3", 6, None),
    row(Dtype::F6_E3M2, "F6_E3M2", 6, None),
    row(Dtype::U8, "U8", 8, Some(0)),
    row(Dtype::I8, "I8", 8, Some(1)),
    row(Dtype::F8_E5M2, "F8_E5M2", 8, Some(23)),
    row(Dtype::F8_E4M3, "F8_E4M3", 8, Some(24)),
    row(Dtype::F8_E8M0, "F8_E8M0", 8, Some(44)),
    row(Dtype::F8_E4M3FNUZ, "F8_E4M3FNUZ", 8, Some(26)),
    row(Dtype::F8_E5M2FNUZ, "F8_E5M2FNUZ", 8, Some(25)),
    row(Dtype::I16, "I16", 16, Some(2)),
    row(Dtype::U16, "U16", 16, Some(27)),
    row(Dtype::F16, "F16", 16, Some(5)),
    row(Dtype::BF16, "BF16", 16, Some(15)),
    row(Dtype::I32, "I32", 32, Some(3)),
    row(Dtype::U32, "U32", 32, Some(28)),
    row(Dtype::F32, "F32", 32, Some(6)),
    row(Dtype::C64, "C64", 64, Some(9)),
    row(Dtype::F64, "F64", 64, Some(7)),
    row(Dtype::I64, "I64", 64, Some(4)),
    row(Dtype::U64, "U64", 64, Some(29)),
];

impl Dtype {
    /// Every dtype of the format, in its order.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.dtype)
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// The name a header uses, such as `BF16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Bits of one element as the header counts elements: 4 for `F4`, 6 for the two `F6`.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.row().bits
    }

    /// The number of the `c10::ScalarType`; `None` for the two `F6`, which torch does not have.
    #[must_use]
    pub fn scalar_type(self) -> Option<i8> {
        self.row().scalar_type
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.dtype)
    }

    #[must_use]
    pub fn from_scalar_type(scalar_type: i8) -> Option<Self> {
        TABLE.iter().find(|row| row.scalar_type == Some(scalar_type)).map(|row| row.dtype)
    }

    /// How many elements of the header make one element of torch: torch packs two `F4` into
    /// one byte-sized `float4_e2m1fn_x2`, so its last dimension is half the header's.
    #[must_use]
    pub fn packing(self) -> u64 {
        if self == Self::F4 {
            2
        } else {
            1
        }
    }
}

/// A dtype as torch names it. torch has more than the safetensors format: complex128 and
/// complex32 occur in PyTorch files alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TorchDtype(usize);

struct TorchRow {
    name: &'static str,
    scalar_type: i8,
    item_size: u64,
    /// The class of a storage of such elements; newer dtypes have untyped storages only.
    storage_class: &'static str,
}

const fn torch(
    name: &'static str,
    scalar_type: i8,
    item_size: u64,
    storage_class: &'static str,
) -> TorchRow {
    TorchRow { name, scalar_type, item_size, storage_class }
}

const TORCH: [TorchRow; 22] = [
    torch("uint8", 0, 1, "ByteStorage"),
    torch("int8", 1, 1, "CharStorage"),
    torch("int16", 2, 2, "ShortStorage"),
    torch("int32", 3, 4, "IntStorage"),
    torch("int64", 4, 8, "LongStorage"),
    torch("float16", 5, 2, "HalfStorage"),
    torch("float32", 6, 4, "FloatStorage"),
    torch("float64", 7, 8, "DoubleStorage"),
    torch("complex32", 8, 4, ""),
    torch("complex64", 9, 8, "ComplexFloatStorage"),
    torch("complex128", 10, 16, "ComplexDoubleStorage"),
    torch("bool", 11, 1, "BoolStorage"),
    torch("bfloat16", 15, 2, "BFloat16Storage"),
    torch("float8_e5m2", 23, 1, ""),
    torch("float8_e4m3fn", 24, 1, ""),
    torch("float8_e5m2fnuz", 25, 1, ""),
    torch("float8_e4m3fnuz", 26, 1, ""),
    torch("uint16", 27, 2, ""),
    torch("uint32", 28, 4, ""),
    torch("uint64", 29, 8, ""),
    torch("float8_e8m0fnu", 44, 1, ""),
    torch("float4_e2m1fn_x2", 45, 1, ""),
];

/// What an untyped storage is made of.
pub const BYTE: TorchDtype = TorchDtype(0);

impl TorchDtype {
    fn find(wanted: impl Fn(&TorchRow) -> bool) -> Option<Self> {
        TORCH.iter().position(wanted).map(Self)
    }

    /// By the name it has in Python, such as `bfloat16`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::find(|row| row.name == name)
    }

    /// By the class of a typed storage, such as `BFloat16Storage`.
    #[must_use]
    pub fn from_storage_class(class: &str) -> Option<Self> {
        Self::find(|row| !class.is_empty() && row.storage_class == class)
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        TORCH[self.0].name
    }

    /// The number of the `c10::ScalarType`.
    #[must_use]
    pub fn scalar_type(self) -> i8 {
        TORCH[self.0].scalar_type
    }

    /// Bytes of one element.
    #[must_use]
    pub fn item_size(self) -> u64 {
        TORCH[self.0].item_size
    }

    /// Bytes that change places between the byte orders: those of one part of a complex number.
    #[must_use]
    pub fn swapped_size(self) -> u64 {
        match self.name() {
            "complex32" | "complex64" | "complex128" => self.item_size() / 2,
            _ => self.item_size(),
        }
    }

    /// Whether torch lets such a tensor require a gradient.
    #[must_use]
    pub fn is_differentiable(self) -> bool {
        let name = self.name();
        name.starts_with("float") || name.starts_with("complex") || name == "bfloat16"
    }
}

/// Bytes of an element of a `c10::ScalarType`.
#[must_use]
pub fn scalar_size(scalar_type: i8) -> Option<u64> {
    TORCH.iter().find(|row| row.scalar_type == scalar_type).map(|row| row.item_size)
}

/// Whether numbers of a `c10::ScalarType` are real ones of floating point, one an element: such can
/// be converted into one another.
#[must_use]
pub fn is_floating(scalar_type: i8) -> bool {
    TORCH.iter().any(|row| {
        row.scalar_type == scalar_type
            && (row.name.starts_with("float") || row.name == "bfloat16")
            && !row.name.ends_with("_x2")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_indexed_by_the_enum() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.dtype as usize, index);
            assert_eq!(Dtype::from_name(row.name), Some(row.dtype));
            assert_eq!(row.name, format!("{:?}", row.dtype));
        }
    }

    #[test]
    fn scalar_types_are_distinct() {
        for dtype in Dtype::all() {
            if let Some(scalar_type) = dtype.scalar_type() {
                assert_eq!(Dtype::from_scalar_type(scalar_type), Some(dtype));
            }
        }
        assert_eq!(Dtype::from_scalar_type(10), None, "complex128 has no name in the format");
    }

    #[test]
    fn both_tables_say_the_same_of_what_both_have() {
        for dtype in Dtype::all() {
            let Some(scalar_type) = dtype.scalar_type() else { continue };
            let torch = TorchDtype::find(|row| row.scalar_type == scalar_type).unwrap();
            assert_eq!(torch.item_size() * 8, dtype.bits() * dtype.packing(), "{dtype:?}");
        }
    }

    #[test]
    fn names_bits_and_order_are_those_of_the_reference() {
        use safetensors::Dtype as Reference;
        let mut previous: Option<Reference> = None;
        for dtype in Dtype::all() {
            let theirs: Reference = serde_json::from_value(dtype.name().into()).unwrap();
            assert_eq!(theirs.bitsize() as u64, dtype.bits(), "{dtype:?}");
            assert!(previous < Some(theirs), "{dtype:?} stands out of order");
            previous = Some(theirs);
        }
    }
}
