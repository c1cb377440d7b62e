//! The story of a load: open, read the header, plan, bring the bytes in, hand out.

use crate::{
    error::{Error, Result},
    format::{
        alias::{self, Alias},
        safetensors::{Header, LENGTH_BYTES},
    },
    memory::Region,
    plan::{Placement, Plan},
    storage::{local::LocalFile, Source},
};
use std::path::Path;

/// Upper bound of reader threads unless the caller says otherwise.
pub const DEFAULT_NUM_THREAD: usize = 32;

/// How much of a file is read at first, in bytes: the header of most checkpoints fits.
const PREFIX_LEN: u64 = 64 << 10;

/// A loaded file: what its tensors are, and the memory they lie in.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub tensors: Vec<Placement>,
    pub aliases: Vec<Alias>,
    pub region: Region,
}

/// Reads and checks the header of a safetensors file; nothing else of the file is touched.
///
/// # Errors
/// A file that cannot be opened or read, or whose header is malformed ([`Kind::Format`]).
///
/// [`Kind::Format`]: crate::Kind::Format
///
/// ```
/// # fn main() -> Result<(), veturboio::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("model.safetensors");
/// # let weight = tch::Tensor::zeros([4, 3], (tch::Kind::BFloat16, tch::Device::Cpu));
/// # veturboio::save([("weight", weight)], &path)?;
/// let header = veturboio::read_header(&path)?;
/// let weight = &header.tensors()[0];
/// assert_eq!((weight.name(), weight.shape()), ("weight", &[4, 3][..]));
/// assert_eq!(weight.dtype().name(), "BF16");
/// # Ok(())
/// # }
/// ```
pub fn read_header(file: impl AsRef<Path>) -> Result<Header> {
    header_of(&LocalFile::open(file.as_ref())?)
}

pub(crate) fn header_of(source: &dyn Source) -> Result<Header> {
    let refused = |malformed| Error::format(source.name(), malformed);
    let mut prefix = vec![0; source.len().min(PREFIX_LEN) as usize];
    let read = |buffer: &mut [u8], offset| {
        source
            .read_exact_at(buffer, offset)
            .map_err(|error| Error::io("read", source.name(), error))
    };
    read(&mut prefix, 0)?;
    let end = LENGTH_BYTES + Header::json_len(&prefix, source.len()).map_err(refused)?;
    let already = prefix.len();
    prefix.resize(end as usize, 0);
    if already < prefix.len() {
        read(&mut prefix[already..], already as u64)?;
    }
    Header::parse(&prefix[LENGTH_BYTES as usize..], source.len()).map_err(refused)
}

/// Loads every tensor of `path`.
pub(crate) fn load(path: &Path, num_thread: usize) -> Result<Loaded> {
    if num_thread == 0 {
        return Err(Error::argument("load", path, "num_thread must be at least 1"));
    }
    let file = LocalFile::open(path)?;
    let (plan, aliases, data_start) = planned(&file)?;
    let region = Region::map(&file, &plan, data_start..file.len(), num_thread)?;
    Ok(Loaded { tensors: plan.tensors, aliases, region })
}

/// Describes every tensor of `path` without reading one: the region is empty.
pub(crate) fn load_header(path: &Path) -> Result<Loaded> {
    let (plan, aliases, _) = planned(&LocalFile::open(path)?)?;
    Ok(Loaded { tensors: plan.tensors, aliases, region: Region::default() })
}

fn planned(file: &LocalFile) -> Result<(Plan, Vec<Alias>, u64)> {
    let header = header_of(file)?;
    let (aliases, data_start) = (alias::aliases(&header), header.data_start());
    let plan = Plan::new(header).map_err(|malformed| Error::format(file.name(), malformed))?;
    Ok((plan, aliases, data_start))
}
