//! Objects of cloud stores and files of web servers.
//!
//! | module | what it knows |
//! |---|---|
//! | [`profile`] | the files of `aws configure` |
//! | [`service`] | what is added to requests and kept of refusals |
//! | [`fault`] | what may be tried again, and how long |
//! | [`store`] | addresses, options, clients |
//! | [`client`], [`redirect`] | the HTTP client, and where it goes |
//! | [`web`] | what web servers answer |
//! | [`line`] | a thread's client and the loop it runs in |
//! | [`answer`], [`version`] | bytes of an object, and of which version of it |
//! | [`open`] | the first request |
//! | [`object`], [`flight`] | reading: one range, many at once |
//! | [`stream`], [`wanted`] | reading: all out of one answer |
//! | [`upload`], [`sent`] | writing, and whether it was done |
//! | [`cache`] | copies that are kept |
//!
//! None of them knows a tensor, and what a store answers is believed only where it fits what was
//! asked.

mod answer;
mod cache;
mod client;
mod fault;
mod flight;
mod line;
mod object;
mod open;
mod profile;
mod redirect;
mod sent;
mod service;
mod store;
mod stream;
mod upload;
mod version;
mod wanted;
mod web;

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
use open::Opened;
use std::path::Path;
use store::Recipe;
use upload::Upload;

pub fn open(
    path: &Path,
    (scheme, rest): (Scheme, &str),
    options: &Options,
    watch: &Watch<'_>,
) -> Result<Box<dyn Source>> {
    let recipe = recipe("open", path, (scheme, rest), options)?;
    let (origin, max_bytes) = (recipe.origin.clone(), recipe.cache_max_bytes);
    let remote = match open::open(path, scheme.name(), recipe, options.first, watch)? {
        Opened::Remote(remote) => remote,
        Opened::File(file) => return Ok(Box::new(file)),
    };
    let Some(directory) = &options.cache_dir else { return Ok(remote) };
    // Who wants a part only shall not wait for the whole.
    let is_whole = options.first == FIRST;
    Cache { directory, max_bytes }.open(remote, &origin, is_whole, watch)
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
