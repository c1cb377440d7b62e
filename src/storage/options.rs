//! What the caller says of a storage: options by name, where to keep copies.

use std::{collections::BTreeMap, fmt, path::PathBuf};

/// How much of an object comes with the first request unless only its header is wanted, in bytes:
/// header and first tensors. No other request is in flight until it has come.
pub const FIRST: u64 = 1 << 20;

/// The same where only the header or a part is wanted.
pub const FIRST_OF_HEADER: u64 = 256 << 10;

/// Options of a storage. Their values may be secrets, and are shown to nobody.
#[derive(Clone)]
pub struct Options {
    /// By the names that the stores' own tools give them, in lower case.
    pub pairs: BTreeMap<String, String>,
    /// Where downloaded objects are kept for the next load.
    pub cache_dir: Option<PathBuf>,
    /// How much comes with the first request.
    pub first: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { pairs: BTreeMap::new(), cache_dir: None, first: FIRST }
    }
}

impl Options {
    pub fn new<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let pairs = pairs.into_iter().map(|(k, v)| (k.into().to_ascii_lowercase(), v.into()));
        Self { pairs: pairs.collect(), ..Self::default() }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.pairs.keys().collect();
        f.debug_struct("Options")
            .field("names", &names)
            .field("cache_dir", &self.cache_dir)
            .field("first", &self.first)
            .finish()
    }
}
