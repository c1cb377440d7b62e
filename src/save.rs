//! The story of a save: look at the tensors, lay the file out, write beside it, put in place.

use crate::{
    error::{Error, Result},
    format::{
        alias::{self, Alias},
        dtype::Dtype,
        encode::{encode, Entry},
        shown,
    },
    load::DEFAULT_NUM_THREAD,
    plan,
    share::{self, View},
    storage::sink::Sink,
    tensors::{StateDict, Tensor},
    threads,
};
use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
    path::Path,
    sync::atomic::{AtomicI64, Ordering},
};

/// Threads that write at once, at most: each may hold a buffer of a segment, and more of them
/// do not make a file system faster.
const MAX_WRITERS: usize = 4;

/// From this length on, bytes are written from where they lie; shorter ones are gathered first.
const DIRECT_LEN: u64 = 256 << 10;

/// How many names a message about shared tensors lists.
const MAX_LISTED: usize = 5;

/// How a state_dict is saved.
///
/// ```
/// # fn main() -> Result<(), veturboio::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("model.safetensors");
/// let weight = tch::Tensor::arange(6, (tch::Kind::Float, tch::Device::Cpu)).view([2, 3]);
/// veturboio::SaveOptions::new()
///     .metadata([("format", "pt")])
///     .num_thread(2)
///     .save([("weight", &weight)], &path)?;
/// assert_eq!(veturboio::load(&path)?["weight"], weight);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SaveOptions {
    metadata: BTreeMap<String, String>,
    force_contiguous: bool,
    force_save_shared_tensor: bool,
    force_clone_shared_tensor: bool,
    num_thread: usize,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self {
            metadata: BTreeMap::new(),
            force_contiguous: true,
            force_save_shared_tensor: false,
            force_clone_shared_tensor: false,
            num_thread: DEFAULT_NUM_THREAD,
        }
    }
}

impl SaveOptions {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Free-form strings to keep in the file.
    #[must_use]
    pub fn metadata<K: Into<String>, V: Into<String>>(
        mut self,
        metadata: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.metadata = metadata.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        self
    }

    /// Whether a tensor that is not contiguous is written in row-major order (the default) or
    /// refused.
    #[must_use]
    pub fn force_contiguous(mut self, yes: bool) -> Self {
        self.force_contiguous = yes;
        self
    }

    /// Stores tensors that are the very same view once, and the other names as aliases of it.
    /// Tensors that overlap without being the same view are each stored in full.
    #[must_use]
    pub fn force_save_shared_tensor(mut self, yes: bool) -> Self {
        self.force_save_shared_tensor = yes;
        self
    }

    /// Stores tensors that share memory each in full.
    #[must_use]
    pub fn force_clone_shared_tensor(mut self, yes: bool) -> Self {
        self.force_clone_shared_tensor = yes;
        self
    }

    /// Upper bound of threads.
    #[must_use]
    pub fn num_thread(mut self, num_thread: usize) -> Self {
        self.num_thread = num_thread;
        self
    }

    /// Writes `tensors` to `path`; `progress` is told the bytes done and the bytes in all.
    pub(crate) fn write(
        &self,
        tensors: &dyn StateDict,
        path: &Path,
        progress: Option<[&AtomicI64; 2]>,
    ) -> Result<()> {
        if self.num_thread == 0 {
            return Err(Error::argument("save", path, "num_thread must be at least 1"));
        }
        if std::env::var_os("VETURBOIO_USE_CIPHER").is_some_and(|value| value == "1") {
            // Whoever turns encryption on must not get a plain file.
            return Err(Error::not_implemented(
                "save",
                path,
                "use_cipher (VETURBOIO_USE_CIPHER=1)",
            ));
        }
        let views = self.describe(tensors, path)?;
        let aliases = self.aliases(&views, path)?;
        let mut metadata = self.metadata.clone();
        alias::record(&mut metadata, &aliases).map_err(|refused| refuse(path, refused))?;
        let left_out: HashSet<&str> = aliases.iter().map(|alias| alias.name.as_str()).collect();
        let written: Vec<usize> =
            (0..views.len()).filter(|&i| !left_out.contains(views[i].name.as_str())).collect();

        let entries =
            written.iter().map(|&i| entry(tensors, &views[i], path)).collect::<Result<Vec<_>>>()?;
        let header = encode(&entries, &metadata).map_err(|refused| refuse(path, refused))?;
        let data_start = header.bytes.len() as u64;
        let items: Vec<Item> = header
            .layout
            .iter()
            .map(|&(entry, begin, end)| Item {
                tensor: written[entry],
                bytes: data_start + begin..data_start + end,
            })
            .collect();
        let end = items.last().map_or(data_start, |item| item.bytes.end);

        let progress = Progress::new(progress, end);
        let sink = Sink::create(path, end)?;
        sink.write_all_at(&header.bytes, 0)?;
        progress.add(data_start);
        let writer = Writer { tensors, views: &views, items: &items, sink: &sink, path, progress };
        threads::for_each(
            self.num_thread.min(MAX_WRITERS),
            plan::segments(data_start..end).collect(),
            |segment| writer.write(segment),
        )?;
        sink.commit()
    }

    fn describe(&self, tensors: &dyn StateDict, path: &Path) -> Result<Vec<Tensor>> {
        let mut names = HashSet::with_capacity(tensors.count());
        let mut views = Vec::with_capacity(tensors.count());
        for index in 0..tensors.count() {
            let view =
                tensors.describe(index).map_err(|error| Error::internal("save", path, error))?;
            let refused =
                |reason: &str| Err(Error::argument("save", path, reason).with_tensor(&view.name));
            if let Some(refusal) = &view.refusal {
                return refused(refusal);
            }
            if !self.force_contiguous && !view.contiguous {
                return refused("is not contiguous, and force_contiguous is off");
            }
            if !names.insert(view.name.clone()) {
                return refused("name stands twice");
            }
            views.push(view);
        }
        Ok(views)
    }

    /// The names to be left out of the file because another name has their tensor.
    fn aliases(&self, views: &[Tensor], path: &Path) -> Result<Vec<Alias>> {
        if self.force_clone_shared_tensor {
            return Ok(Vec::new());
        }
        let extents: Vec<View<'_>> = views.iter().map(Tensor::view).collect();
        let mut aliases = Vec::new();
        for group in share::overlapping(&extents) {
            if !self.force_save_shared_tensor {
                return Err(Error::argument("save", path, shared(&extents, &group)));
            }
            for (index, kept) in share::duplicates(&extents, &group) {
                let (name, kept) = (views[index].name.clone(), views[kept].name.clone());
                aliases.push(Alias { name, kept });
            }
        }
        Ok(aliases)
    }
}

/// A malformed request to write is the caller's argument, not the file's content.
fn refuse(path: &Path, refused: crate::format::Malformed) -> Error {
    let error = Error::argument("save", path, refused.reason);
    match refused.tensor {
        Some(name) => error.with_tensor(&name),
        None => error,
    }
}

fn entry<'a>(tensors: &dyn StateDict, view: &'a Tensor, path: &Path) -> Result<Entry<'a>> {
    let refused = |reason: String| Error::argument("save", path, reason).with_tensor(&view.name);
    let dtype = Dtype::from_scalar_type(view.scalar_type).ok_or_else(|| {
        refused(format!("dtype {} has no safetensors name", tensors.dtype_name(view.scalar_type)))
    })?;
    let mut shape = view
        .shape
        .iter()
        .map(|&size| u64::try_from(size).map_err(|_| refused(format!("size {size} is negative"))))
        .collect::<Result<Vec<_>>>()?;
    if dtype.packing() > 1 {
        let last = shape.last_mut().and_then(|last| {
            *last = last.checked_mul(dtype.packing())?;
            Some(())
        });
        last.ok_or_else(|| refused(format!("{} needs a last dimension to unpack", dtype.name())))?;
    }
    Ok(Entry { name: &view.name, dtype, shape })
}

fn shared(views: &[View<'_>], group: &[usize]) -> String {
    let listed: Vec<_> = group.iter().take(MAX_LISTED).map(|&i| shown(views[i].name)).collect();
    let more = match group.len().saturating_sub(MAX_LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "tensors {}{more} share memory: force_save_shared_tensor stores them once, \
         force_clone_shared_tensor stores each in full",
        listed.join(", ")
    )
}

/// A tensor and the bytes of the file it takes.
struct Item {
    tensor: usize,
    bytes: Range<u64>,
}

/// Two counters that the caller may watch from another thread.
struct Progress<'a>(Option<&'a AtomicI64>);

impl<'a> Progress<'a> {
    fn new(counters: Option<[&'a AtomicI64; 2]>, total: u64) -> Self {
        Self(counters.map(|[done, of]| {
            done.store(0, Ordering::Relaxed);
            of.store(total as i64, Ordering::Relaxed);
            done
        }))
    }

    fn add(&self, bytes: u64) {
        if let Some(done) = self.0 {
            done.fetch_add(bytes as i64, Ordering::Relaxed);
        }
    }
}

/// Writes any segment of the file: what is large from where it lies, the rest through a buffer.
struct Writer<'a> {
    tensors: &'a dyn StateDict,
    views: &'a [Tensor],
    items: &'a [Item],
    sink: &'a Sink,
    path: &'a Path,
    progress: Progress<'a>,
}

impl Writer<'_> {
    fn write(&self, segment: Range<u64>) -> Result<()> {
        let first = self.items.partition_point(|item| item.bytes.end <= segment.start);
        let mut gathered = Vec::new();
        let mut written = segment.start;
        for item in &self.items[first..] {
            let begin = item.bytes.start.max(segment.start);
            let end = item.bytes.end.min(segment.end);
            if item.bytes.start >= segment.end {
                break;
            }
            let part = begin - item.bytes.start..end - item.bytes.start;
            let direct = self.direct(item.tensor)?;
            match direct {
                Some(bytes) if end - begin >= DIRECT_LEN => {
                    self.put(&gathered, written)?;
                    gathered.clear();
                    self.put(&bytes[part.start as usize..part.end as usize], begin)?;
                    written = end;
                }
                Some(bytes) => {
                    gathered.extend_from_slice(&bytes[part.start as usize..part.end as usize]);
                }
                None => {
                    let before = gathered.len();
                    gathered.resize(before + (end - begin) as usize, 0);
                    self.gather(item.tensor, part.start, &mut gathered[before..])?;
                }
            }
        }
        self.put(&gathered, written)
    }

    fn put(&self, bytes: &[u8], offset: u64) -> Result<()> {
        if !bytes.is_empty() {
            self.sink.write_all_at(bytes, offset)?;
            self.progress.add(bytes.len() as u64);
        }
        Ok(())
    }

    /// The bytes of a tensor that lie in host memory as the file is to have them.
    fn direct(&self, index: usize) -> Result<Option<&[u8]>> {
        self.tensors.bytes(index).map_err(|error| self.failed(index, error))
    }

    fn gather(&self, index: usize, begin: u64, bytes: &mut [u8]) -> Result<()> {
        self.tensors.gather(index, begin, bytes).map_err(|error| self.failed(index, error))
    }

    fn failed(&self, index: usize, error: anyhow::Error) -> Error {
        Error::internal("save", self.path, error).with_tensor(&self.views[index].name)
    }
}
