//! What the SFCS client library is told: an XML file of properties, made from the environment.

#![allow(unsafe_code)]

use super::environment;
use crate::error::said;
use std::{
    env,
    ffi::OsStr,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::ffi::OsStrExt,
    },
};

/// Where this process finds the files that it has open.
const OPEN_FILES: &str = "/proc/self/fd/";

const REQUIRED: [(&str, &str); 7] = [
    ("SFCS_FSNAME", ""),
    ("SFCS_REGION", ""),
    ("SFCS_AUTHENTICATION_SERVICE_NAME", "dfs.authentication.service.name"),
    ("SFCS_NS_ID", "cfs.filesystem.ns-id"),
    ("SFCS_UFS_PATH", "cfs.filesystem.ufs-path"),
    ("SFCS_MULTI_NIC_WHITELIST", "cfs.client.multi-nic.whitelist"),
    ("SFCS_NETWORK_SEGMENT", "cfs.client.network.segment"),
];

/// Variables that may be absent, their properties, and what stands there then.
const OPTIONAL: [(&str, &str, Option<&str>); 7] = [
    ("SFCS_LOG_SEVERITY", "dfs.client.log.severity", Some("INFO")),
    ("SFCS_ENABLE_DNS", "cfs.filesystem.resolve.addr.by.dns", Some("false")),
    ("SFCS_TASK_ID", "cfs.filesystem.task-id", Some("sfcs")),
    ("SFCS_SYNC_INTERVAL", "cfs.filesystem.sync-interval", Some("-1")),
    ("SFCS_ACCESS_KEY", "cfs.access.key", None),
    ("SFCS_SECRET_KEY", "cfs.secret.key", None),
    ("SFCS_BLOCK_SIZE", "dfs.default.blocksize", None),
];

const FIXED: [(&str, &str); 6] = [
    ("cfs.filesystem.fs-mode", "ACC"),
    ("cfs.client.metadata-cache.enable", "false"),
    ("rpc.client.channel.pool.size", "32"),
    ("dfs.default.replica", "2"),
    ("cfs.client.multi-nic.enabled", "true"),
    ("cfs.datanode.router.shuffle", "true"),
];

/// The text of the file, unless there is one already.
pub struct Settings(Option<String>);

impl Settings {
    /// # Errors
    /// The variables that are missing, by name.
    pub fn of_environment() -> io::Result<Self> {
        // A file that is named already wins.
        if env::var_os(environment::NAME).is_some_and(|name| is_settings(&name)) {
            return Ok(Self(None));
        }
        let get = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let missing: Vec<&str> =
            REQUIRED.iter().map(|&(name, _)| name).filter(|name| get(name).is_none()).collect();
        if !missing.is_empty() {
            let words = format!("SFCS needs the variables {}", missing.join(", "));
            return Err(said(libc::EINVAL, words));
        }
        Ok(Self(Some(text(&get))))
    }

    /// Runs `work` while the library finds the file.
    ///
    /// It lies in memory: it may hold a key, and nothing of it is left on any disk. Nor is the
    /// name left to children, which could not open it.
    pub fn given<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let Some(text) = &self.0 else { return Ok(work()) };
        // SAFETY: the name ends with a NUL; a descriptor that is returned is ours alone.
        let mut file = unsafe {
            let descriptor = libc::memfd_create(c"sfcs".as_ptr(), libc::MFD_CLOEXEC);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(descriptor)
        };
        file.write_all(text.as_bytes())?;
        environment::with(&format!("{OPEN_FILES}{}", file.as_raw_fd()), work)
    }
}

/// Whether a value of the variable names a file. A child that was started while its parent
/// connected has inherited a name that is good for the parent only.
fn is_settings(name: &OsStr) -> bool {
    let is_inherited =
        name.as_bytes().starts_with(OPEN_FILES.as_bytes()) && fs::metadata(name).is_err();
    !name.is_empty() && !is_inherited
}

fn text(get: &dyn Fn(&str) -> Option<String>) -> String {
    let value = |name: &str| get(name).unwrap_or_default();
    let mut text = String::from("<?xml version=\"1.0\"?>\n<configuration>\n");
    let mut put = |name: &str, value: &str| {
        let (name, value) = (escaped(name), escaped(value));
        let _ = writeln!(text, "<property><name>{name}</name><value>{value}</value></property>");
    };
    let name = value("SFCS_FSNAME");
    put("dfs.default.uri", &format!("cfs://{name}.sfcs-{}.ivolces.com", value("SFCS_REGION")));
    for (variable, property) in REQUIRED.iter().filter(|(_, property)| !property.is_empty()) {
        put(property, &value(variable));
    }
    for (variable, property, otherwise) in OPTIONAL {
        if let Some(value) = get(variable).as_deref().or(otherwise) {
            put(property, value);
        }
    }
    if let Some(address) = get("SFCS_NAMENODE_ENDPOINT_ADDRESS") {
        put(&format!("cfs.namenode.endpoint.address.{name}"), &address);
    }
    for (property, value) in FIXED {
        put(property, value);
    }
    text.push_str("</configuration>\n");
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_properties_of_the_variables() {
        let made = text(&|name| match name {
            "SFCS_FSNAME" => Some("fs".to_owned()),
            "SFCS_REGION" => Some("cn-beijing".to_owned()),
            "SFCS_SECRET_KEY" => Some("a<&>b".to_owned()),
            "SFCS_NAMENODE_ENDPOINT_ADDRESS" => Some("host:1".to_owned()),
            _ => None,
        });
        let has = |name: &str, value: &str| {
            let line = format!("<property><name>{name}</name><value>{value}</value></property>");
            assert!(made.contains(&line), "{line} is not in {made}");
        };
        has("dfs.default.uri", "cfs://fs.sfcs-cn-beijing.ivolces.com");
        has("cfs.secret.key", "a&lt;&amp;&gt;b");
        has("cfs.namenode.endpoint.address.fs", "host:1");
        has("dfs.client.log.severity", "INFO");
        has("rpc.client.channel.pool.size", "32");
        assert!(!made.contains("cfs.access.key"));
    }
}
