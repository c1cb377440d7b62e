//! Objects of cloud stores and files of web servers.
//!
//! | module | what it knows |
//! |---|---|
//! | [`profile`] | the files of `aws configure` |
//! | [`service`] | what is added to requests and kept of refusals |
//! | [`fault`] | what may be tried again, and how long |
//! | [`store`] | addresses, options, clients |
//! | [`line`] | a thread's client and the loop it runs in |
//! | [`object`], [`flight`] | reading: one range, many at once |
//! | [`upload`] | writing |
//! | [`cache`] | copies that are kept |
//!
//! None of them knows a tensor, and what a store answers is believed only where it fits what was
//! asked.

mod cache;
mod fault;
mod flight;
mod line;
mod object;
mod profile;
mod service;
mod store;
mod upload;

use super::{
    options::{Options, FIRST},
    Creation, Sink, Source,
};
use crate::{
    address::Scheme,
    error::{Error, Result},
    watch::Watch,
};
use cache::Cache;
use object::Object;
use std::path::Path;
use store::Recipe;
use upload::Upload;

/// Requests in flight while an object is downloaded to be kept.
const DOWNLOADS: usize = 32;

pub fn open(
    path: &Path,
    (scheme, rest): (Scheme, &str),
    options: &Options,
    watch: &Watch<'_>,
) -> Result<Box<dyn Source>> {
    let recipe = recipe("open", path, (scheme, rest), options)?;
    let (origin, max_bytes) = (recipe.origin.clone(), recipe.cache_max_bytes);
    let object = Object::open(path, scheme.name(), recipe, options.first, watch)?;
    if let Some(directory) = &options.cache_dir {
        let cache = Cache { directory, max_bytes, num_thread: DOWNLOADS };
        if let Some(file) = cache.find(&object, &origin) {
            return Ok(Box::new(file));
        }
        // Who wants a part only shall not wait for the whole.
        if options.first == FIRST {
            if let Some(file) = cache.keep(&object, &origin, watch)? {
                return Ok(Box::new(file));
            }
        }
    }
    Ok(Box::new(object))
}

pub fn create(
    path: &Path,
    (scheme, rest): (Scheme, &str),
    creation: Creation,
    options: &Options,
    watch: &Watch<'_>,
) -> Result<Box<dyn Sink>> {
    let recipe = recipe("save", path, (scheme, rest), options)?;
    if !recipe.is_writable() {
        return Err(Error::not_implemented("save", path, "writing to a web server"));
    }
    Ok(Box::new(Upload::create(path, recipe, creation, watch)?))
}

fn recipe(
    action: &'static str,
    path: &Path,
    (scheme, rest): (Scheme, &str),
    options: &Options,
) -> Result<Recipe> {
    Recipe::new(scheme, rest, options).map_err(|words| Error::argument(action, path, words))
}
