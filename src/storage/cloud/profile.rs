//! What `aws configure` writes: `~/.aws/credentials` and `~/.aws/config`.

use crate::address::printable;
use object_store::aws::AmazonS3ConfigKey;
use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

const KEYS: [(&str, AmazonS3ConfigKey); 5] = [
    ("aws_access_key_id", AmazonS3ConfigKey::AccessKeyId),
    ("aws_secret_access_key", AmazonS3ConfigKey::SecretAccessKey),
    ("aws_session_token", AmazonS3ConfigKey::Token),
    ("region", AmazonS3ConfigKey::Region),
    ("endpoint_url", AmazonS3ConfigKey::Endpoint),
];

/// The settings of the profile that `AWS_PROFILE` names.
///
/// # Errors
/// In words: a file that is there and cannot be read, a profile that is in neither.
pub fn settings() -> Result<Vec<(AmazonS3ConfigKey, String)>, String> {
    let named = env::var("AWS_PROFILE").ok().filter(|name| !name.is_empty());
    let profile = named.as_deref().unwrap_or("default");
    // Keys in the environment are whole: a token of a file must not be mixed with them.
    let has_keys = env::var_os("AWS_ACCESS_KEY_ID").is_some();
    let mut found = Vec::new();
    let mut is_there = false;
    for (variable, name) in
        [("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")]
    {
        let Some(path) = path(variable, name) else { continue };
        let Some(text) = read(&path)? else { continue };
        let Some(section) = section(&text, profile) else { continue };
        is_there = true;
        for (key, value) in section {
            let known = KEYS.iter().find(|(name, _)| *name == key);
            let Some(&(name, key)) = known else { continue };
            if has_keys && named.is_none() && name.starts_with("aws_") {
                continue;
            }
            if !found.iter().any(|&(known, _)| known == key) {
                found.push((key, value));
            }
        }
    }
    match named {
        Some(name) if !is_there => Err(format!("there is no profile {name} (AWS_PROFILE)")),
        _ => Ok(found),
    }
}

fn path(variable: &str, name: &str) -> Option<PathBuf> {
    match env::var_os(variable) {
        Some(path) => Some(path.into()),
        None => Some(PathBuf::from(env::var_os("HOME")?).join(".aws").join(name)),
    }
}

fn read(path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {}", printable(path), error.kind())),
    }
}

/// The entries of `[profile]` or `[profile name]`; those that are indented belong to others.
fn section(text: &str, profile: &str) -> Option<Vec<(String, String)>> {
    let mut entries = None;
    let mut inside = false;
    for line in text.lines() {
        if let Some(name) = line.trim().strip_prefix('[').and_then(|l| l.split(']').next()) {
            let name = name.trim();
            let name = name.strip_prefix("profile ").map_or(name, str::trim);
            inside = name == profile;
            if inside {
                entries.get_or_insert_with(Vec::new);
            }
        } else if inside && !line.starts_with([' ', '\t', '#', ';']) {
            if let (Some(entries), Some((key, value))) = (&mut entries, line.split_once('=')) {
                entries.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::section;

    #[test]
    fn a_profile_is_found_in_both_forms() {
        let text = "# first\n[default]\nregion = a\n[profile work]\nregion=b\ns3 =\n  region = c\n";
        let region = |name| section(text, name).map(|entries| entries[0].1.clone());
        assert_eq!(region("default").as_deref(), Some("a"));
        assert_eq!(region("work").as_deref(), Some("b"));
        assert_eq!(region("other"), None);
    }
}
