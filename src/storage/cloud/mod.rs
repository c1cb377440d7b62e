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
//!
//! None of them knows a tensor, and what a store answers is believed only where it fits what was
//! asked.

mod fault;
mod flight;
mod line;
mod object;
mod profile;
mod service;
mod store;
mod upload;

use super::{options::Options, Creation, Sink, Source};
use crate::{
    address::Scheme,
    error::{Error, Result},
    watch::Watch,
};
use object::Object;
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
    Ok(Box::new(Object::open(path, scheme.name(), recipe, options.first, watch)?))
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
