//! A save: look at the tensors, lay the file out, write beside it, put in place.

use crate::{
    buffers::{Buffers, Ring},
    error::{DeviceFailed, Error, Result},
    format::{
        alias::{self, Alias},
        dtype::Dtype,
        encode::{encode, Entry},
        shown,
    },
    load::DEFAULT_NUM_THREAD,
    share::{self, View},
    storage::{self, order::Ticket, Creation},
    tensors::{StateDict, Tensor},
    watch::Watch,
    writer::{Item, Layout, Writer},
};
use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::Path,
};

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
#[allow(clippy::struct_excessive_bools)] // each is a parameter that users know by its name
pub struct SaveOptions {
    metadata: BTreeMap<String, String>,
    force_contiguous: bool,
    force_save_shared_tensor: bool,
    force_clone_shared_tensor: bool,
    num_thread: usize,
    durable: bool,
    overwrite: bool,
    storage: storage::Options,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self {
            metadata: BTreeMap::new(),
            force_contiguous: true,
            force_save_shared_tensor: false,
            force_clone_shared_tensor: false,
            num_thread: DEFAULT_NUM_THREAD,
            durable: true,
            overwrite: true,
            storage: storage::Options::default(),
        }
    }
}

impl SaveOptions {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Free-form strings to keep in the file. `format` is set to `pt` unless they have a `format` of
    /// their own; a file without any of them has no metadata.
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

    /// Stores tensors that are the very same view once, under the name that comes first, and the
    /// other names as aliases of it.
    /// Tensors that overlap without being the same view are each stored in full.
    #[must_use]
    pub fn force_save_shared_tensor(mut self, yes: bool) -> Self {
        self.force_save_shared_tensor = yes;
        self
    }

    /// With [`force_save_shared_tensor`](Self::force_save_shared_tensor): stores tensors that share
    /// memory each in full.
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

    /// Whether the file is on the disk when the save returns (the default). If not, a crash of the
    /// system may leave the old file, the new one or a damaged one.
    #[must_use]
    pub fn durable(mut self, yes: bool) -> Self {
        self.durable = yes;
        self
    }

    /// Whether a file or object of that name is replaced (the default) or refused.
    #[must_use]
    pub fn overwrite(mut self, yes: bool) -> Self {
        self.overwrite = yes;
        self
    }

    /// Options of the store, by the names of its own tools' variables in lower case, such as
    /// `aws_endpoint_url`. They precede the environment.
    #[must_use]
    pub fn storage_options<K: Into<String>, V: Into<String>>(
        mut self,
        options: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.storage = storage::Options::new(options);
        self
    }

    pub(crate) fn storage(mut self, options: storage::Options) -> Self {
        self.storage = options;
        self
    }

    /// Writes `tensors` to `path`; what must be gathered passes through `buffers`. `ticket` is of
    /// the time of the call.
    pub(crate) fn write(
        &self,
        tensors: &dyn StateDict,
        path: &Path,
        buffers: &Buffers,
        ticket: &Ticket,
        watch: &Watch<'_>,
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
        let left_out: HashSet<&str> = aliases.iter().map(|alias| alias.name.as_str()).collect();
        let written: Vec<usize> =
            (0..views.len()).filter(|&i| !left_out.contains(views[i].name.as_str())).collect();
        let mut metadata = self.metadata.clone();
        let stored = written.iter().map(|&i| views[i].name.as_str());
        alias::record(&mut metadata, &aliases, stored).map_err(|refused| refuse(path, refused))?;

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

        watch.begin(end);
        let &Self { durable, overwrite, .. } = self;
        let creation = Creation { len: end, durable, overwrite };
        let sink = storage::create(path, creation, &self.storage, watch)?;
        if storage::is_overtaken(&*sink, ticket) {
            return storage::overtaken(&*sink, path);
        }
        let header = header.bytes;
        let file = Layout { tensors, views: &views, header: &header, items: &items };
        let writers = sink.writers(self.num_thread);
        let failed = |error| Error::device("save", path, error);
        tensors.begin().map_err(failed)?;
        let kind = if buffers.are_pinned() { tensors.pinned_kind().map_err(failed)? } else { None };
        let allocate = |len| match kind {
            Some(kind) => {
                tensors.host_memory(kind, len).map_err(|error| DeviceFailed(error).into())
            }
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        let limit = buffers.room_for(kind, writers as u64);
        let ring = Ring::new(buffers, kind, limit, &allocate);
        Writer { file, sink: &*sink, path, ring: &ring, watch }.write_all(writers)?;
        storage::commit(sink, path, ticket, watch)
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

    /// The names to be left out of the file because a name before them has their tensor, in the
    /// order of `views`.
    fn aliases(&self, views: &[Tensor], path: &Path) -> Result<Vec<Alias>> {
        if self.force_save_shared_tensor && self.force_clone_shared_tensor {
            return Ok(Vec::new());
        }
        let extents: Vec<View<'_>> = views.iter().map(Tensor::view).collect();
        let mut twins = Vec::new();
        for group in share::overlapping(&extents) {
            if !self.force_save_shared_tensor {
                return Err(Error::argument("save", path, shared(&extents, &group)));
            }
            twins.extend(share::duplicates(&extents, &group));
        }
        twins.sort_unstable();
        let name = |index: usize| views[index].name.clone();
        let aliases = twins.into_iter().map(|(twin, kept)| (name(twin), name(kept)));
        // Metadata has another use for that key: such a tensor is stored in full.
        let aliases = aliases.filter(|(name, _)| name != alias::FORMAT);
        Ok(aliases.map(|(name, kept)| Alias { name, kept }).collect())
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
    let mut names: Vec<_> = group.iter().map(|&i| views[i].name).collect();
    names.sort_unstable();
    let listed: Vec<_> = names.into_iter().take(MAX_LISTED).map(shown).collect();
    let more = match group.len().saturating_sub(MAX_LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "tensors {}{more} share memory: force_save_shared_tensor stores them once, and with \
         force_clone_shared_tensor each in full",
        listed.join(", ")
    )
}
