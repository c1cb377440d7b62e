//! Clients of stores, made from an address, the caller's options and what the stores' own tools
//! leave in the environment and in files.

use super::{
    fault::Fault,
    profile,
    service::{Additions, Connector},
    web::{Page, Web},
};
use crate::{address::Scheme, storage::Options};
use object_store::{
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey},
    multipart::MultipartStore,
    path::Path,
    ClientConfigKey, ClientOptions, ObjectStore, RetryConfig,
};
use std::{collections::BTreeMap, env, fmt, time::Duration};

/// How long a store may keep silent, and how long all tries of one request may take, unless the
/// options `read_timeout` and `retry_timeout` say otherwise.
const READ_TIMEOUT: &str = "15s";
/// What a cache may hold, unless the option `cache_max_bytes` says otherwise.
const CACHE_MAX_BYTES: u64 = 100 << 30;
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

/// One object, and how to reach it. Clients are made from it, one for each loop that waits for
/// answers.
#[derive(Clone)]
pub struct Recipe {
    kind: Kind,
    pub path: Path,
    additions: Additions,
    client: Vec<(ClientConfigKey, String)>,
    pub secrets: Vec<String>,
    /// What the store is reached by; tells stores apart whose objects have the same names.
    pub origin: String,
    pub cache_max_bytes: u64,
    pub budget: Duration,
}

#[derive(Clone)]
enum Kind {
    S3(Box<AmazonS3Builder>),
    Gs(Box<GoogleCloudStorageBuilder>),
    Az(Box<MicrosoftAzureBuilder>),
    Web(Box<Page>),
}

impl Kind {
    fn origin(&self) -> String {
        let told = match self {
            Self::S3(builder) => builder.get_config_value(&AmazonS3ConfigKey::Endpoint),
            Self::Gs(builder) => builder.get_config_value(&GoogleConfigKey::BaseUrl),
            Self::Az(builder) => {
                let account = builder.get_config_value(&AzureConfigKey::AccountName);
                let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
                Some(format!("{account:?} {endpoint:?}"))
            }
            Self::Web(page) => Some(page.origin()),
        };
        told.unwrap_or_default()
    }
}

impl fmt::Debug for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What it holds otherwise may be secret.
        f.debug_struct("Recipe").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A client.
#[derive(Debug)]
pub enum Store {
    S3(AmazonS3),
    Gs(GoogleCloudStorage),
    Az(MicrosoftAzure),
    Web(Web),
}

impl Store {
    /// What writes, and tells of objects.
    ///
    /// # Errors
    /// `EROFS` for a web server.
    pub fn objects(&self) -> std::result::Result<&dyn ObjectStore, Fault> {
        match self {
            Self::S3(store) => Ok(store),
            Self::Gs(store) => Ok(store),
            Self::Az(store) => Ok(store),
            Self::Web(_) => Err(Fault::last(libc::EROFS, READ_ONLY)),
        }
    }

    /// What writes in parts.
    ///
    /// # Errors
    /// As [`objects`](Self::objects).
    pub fn parts(&self) -> std::result::Result<&dyn MultipartStore, Fault> {
        match self {
            Self::S3(store) => Ok(store),
            Self::Gs(store) => Ok(store),
            Self::Az(store) => Ok(store),
            Self::Web(_) => Err(Fault::last(libc::EROFS, READ_ONLY)),
        }
    }
}

const READ_ONLY: &str = "objects of web servers can only be read";

type Result<T> = std::result::Result<T, String>;

impl Recipe {
    /// # Errors
    /// In words: an object's name or an option that is not understood.
    pub fn new(scheme: Scheme, rest: &str, options: &Options) -> Result<Self> {
        let mut pairs = options.pairs.clone();
        let budget =
            pairs.remove("retry_timeout").map_or(Ok(RETRY_TIMEOUT), |text| seconds(&text))?;
        let cache_max_bytes = match pairs.remove("cache_max_bytes") {
            Some(text) => text.parse().map_err(|_| "cache_max_bytes is no number of bytes")?,
            None => CACHE_MAX_BYTES,
        };
        let mut secrets: Vec<String> =
            options.pairs.iter().filter(|(k, _)| is_secret(k)).map(|(_, v)| v.clone()).collect();
        secrets.extend(env::vars_os().filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            is_secret(&name.to_ascii_lowercase()).then_some(value)
        }));
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let (kind, path) = match scheme {
            Scheme::S3 => (s3(bucket, &mut pairs, &mut secrets)?, key.to_owned()),
            Scheme::Tos => (tos(bucket, &mut pairs)?, key.to_owned()),
            Scheme::Gs => (gs(bucket, &mut pairs), key.to_owned()),
            Scheme::Az => (az(bucket, &mut pairs), key.to_owned()),
            Scheme::Http => (Kind::Web(Box::new(Page::new(rest, &mut secrets)?)), String::new()),
        };
        let path = Path::parse(path)
            .map_err(|_| "the object's name has an empty part, . or ..".to_owned())?;
        pairs.entry("read_timeout".to_owned()).or_insert_with(|| READ_TIMEOUT.to_owned());
        let mut client = Vec::new();
        for (name, value) in pairs {
            let key = name.parse::<ClientConfigKey>();
            let key = key.map_err(|_| format!("storage_options has no {name}"))?;
            client.push((key, value));
        }
        secrets.retain(|secret| secret.len() >= 4);
        let (origin, additions) = (kind.origin(), Additions::default());
        Ok(Self { kind, path, additions, client, secrets, origin, cache_max_bytes, budget })
    }

    /// The same for an object that must not be there yet.
    #[must_use]
    pub fn only_new(mut self, yes: bool) -> Self {
        self.additions.only_new = yes;
        self
    }

    /// Whether objects can be written there.
    pub fn is_writable(&self) -> bool {
        !matches!(self.kind, Kind::Web(_))
    }

    /// Makes a client.
    pub fn build(&self) -> object_store::Result<Store> {
        let connector = Connector(self.additions.clone());
        let options = self.client.iter().fold(
            ClientOptions::new().with_timeout_disabled().with_http1_only(),
            |options, (key, value)| options.with_config(*key, value),
        );
        // What fails is tried again one range at a time, from where the bytes stopped.
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        Ok(match &self.kind {
            Kind::S3(builder) => {
                let options = options.with_allow_http(is_plain(
                    builder.get_config_value(&AmazonS3ConfigKey::Endpoint),
                ));
                Store::S3(
                    builder
                        .as_ref()
                        .clone()
                        .with_client_options(options)
                        .with_retry(retry)
                        .with_http_connector(connector)
                        .build()?,
                )
            }
            Kind::Gs(builder) => {
                let plain = is_plain(builder.get_config_value(&GoogleConfigKey::BaseUrl));
                Store::Gs(
                    builder
                        .as_ref()
                        .clone()
                        .with_client_options(options.with_allow_http(plain))
                        .with_retry(retry)
                        .with_http_connector(connector)
                        .build()?,
                )
            }
            Kind::Az(builder) => {
                let plain = is_plain(builder.get_config_value(&AzureConfigKey::Endpoint));
                let emulated = builder.get_config_value(&AzureConfigKey::UseEmulator);
                let plain = plain || emulated.is_some_and(|value| value == "true");
                Store::Az(
                    builder
                        .as_ref()
                        .clone()
                        .with_client_options(options.with_allow_http(plain))
                        .with_retry(retry)
                        .with_http_connector(connector)
                        .build()?,
                )
            }
            Kind::Web(page) => Store::Web(page.build(&options.with_allow_http(page.is_plain()))?),
        })
    }
}

/// Plain HTTP is spoken where the endpoint says so.
fn is_plain(endpoint: Option<String>) -> bool {
    endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"))
}

fn is_secret(name: &str) -> bool {
    ["secret", "token", "password", "sas", "account_key", "access_key", "key_base64", "credential"]
        .into_iter()
        .any(|part| name.contains(part))
        && !name.contains("file")
        && !name.contains("path")
        && name != "google_application_credentials"
}

fn seconds(text: &str) -> Result<Duration> {
    let number = text.trim().trim_end_matches('s').parse::<f64>().ok();
    let number = number.filter(|number| (0.0..1e6).contains(number));
    number
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "retry_timeout is no number of seconds".into())
}

/// Takes out of `pairs` what a store's own builder knows.
fn known<K: std::str::FromStr>(pairs: &mut BTreeMap<String, String>) -> Vec<(K, String)> {
    let (mut taken, mut left) = (Vec::new(), BTreeMap::new());
    for (name, value) in std::mem::take(pairs) {
        match (name.parse::<ClientConfigKey>(), name.parse::<K>()) {
            (Err(_), Ok(key)) => taken.push((key, value)),
            _ => drop(left.insert(name, value)),
        }
    }
    *pairs = left;
    taken
}

fn s3(
    bucket: &str,
    pairs: &mut BTreeMap<String, String>,
    secrets: &mut Vec<String>,
) -> Result<Kind> {
    let mut builder = AmazonS3Builder::from_env();
    for (key, value) in profile::settings()? {
        secrets.push(value.clone());
        // The environment precedes the files.
        if builder.get_config_value(&key).is_none() {
            builder = builder.with_config(key, value);
        }
    }
    for (key, value) in known::<AmazonS3ConfigKey>(pairs) {
        builder = builder.with_config(key, value);
    }
    let get = |key| builder.get_config_value(&key);
    if get(AmazonS3ConfigKey::Endpoint).is_none() {
        if let Some(endpoint) = get(AmazonS3ConfigKey::S3Endpoint) {
            builder = builder.with_endpoint(endpoint);
        }
    }
    Ok(Kind::S3(Box::new(builder.with_bucket_name(bucket))))
}

/// Volcano Engine's store through its S3 interface, which wants the bucket in the host's name.
fn tos(bucket: &str, pairs: &mut BTreeMap<String, String>) -> Result<Kind> {
    let mut take = |name: &str| {
        let option = pairs.remove(&format!("tos_{name}")).or_else(|| pairs.remove(name));
        let variable = || env::var(format!("TOS_{}", name.to_ascii_uppercase())).ok();
        option.or_else(variable).filter(|value| !value.is_empty())
    };
    let endpoint = take("endpoint");
    let region = take("region").or_else(|| {
        let host = endpoint.as_deref()?.split("://").last()?;
        let host = host.strip_prefix("tos-s3-").or_else(|| host.strip_prefix("tos-"))?;
        Some(host.split('.').next()?.to_owned())
    });
    let endpoint = match (endpoint, &region) {
        (Some(endpoint), _) => endpoint,
        (None, Some(region)) => format!("tos-s3-{region}.volces.com"),
        (None, None) => return Err("TOS_ENDPOINT or TOS_REGION must be set for tos://".to_owned()),
    };
    let (scheme, host) = endpoint.split_once("://").unwrap_or(("https", &endpoint));
    let host = host.trim_end_matches('/');
    let is_s3 = host.starts_with("tos-s3-");
    let host = match host.strip_prefix("tos-") {
        Some(rest) if !is_s3 && host.contains(".volces.com") => format!("tos-s3-{rest}"),
        Some(rest) if !is_s3 && host.contains(".ivolces.com") => format!("tos-s3-{rest}"),
        _ => host.to_owned(),
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region.unwrap_or_else(|| "cn-beijing".to_owned()));
    builder = if host.contains("volces.com") {
        let endpoint = format!("{scheme}://{bucket}.{host}");
        builder.with_endpoint(endpoint).with_virtual_hosted_style_request(true)
    } else {
        builder.with_endpoint(format!("{scheme}://{host}"))
    };
    let key = take("access_key").or_else(|| take("access_key_id"));
    let secret = take("secret_key").or_else(|| take("secret_access_key"));
    let (Some(key), Some(secret)) = (key, secret) else {
        return Err("TOS_ACCESS_KEY and TOS_SECRET_KEY must be set for tos://".to_owned());
    };
    builder = builder.with_access_key_id(key).with_secret_access_key(secret);
    if let Some(token) = take("security_token").or_else(|| take("session_token")) {
        builder = builder.with_token(token);
    }
    for (key, value) in known::<AmazonS3ConfigKey>(pairs) {
        builder = builder.with_config(key, value);
    }
    Ok(Kind::S3(Box::new(builder)))
}

fn gs(bucket: &str, pairs: &mut BTreeMap<String, String>) -> Kind {
    let mut builder = GoogleCloudStorageBuilder::from_env();
    if let Ok(host) = env::var("STORAGE_EMULATOR_HOST") {
        let url = if host.contains("://") { host } else { format!("http://{host}") };
        builder = builder.with_config(GoogleConfigKey::BaseUrl, url).with_skip_signature(true);
    }
    for (key, value) in known::<GoogleConfigKey>(pairs) {
        builder = builder.with_config(key, value);
    }
    Kind::Gs(Box::new(builder.with_bucket_name(bucket)))
}

fn az(container: &str, pairs: &mut BTreeMap<String, String>) -> Kind {
    let mut builder = MicrosoftAzureBuilder::from_env();
    let mut given: Vec<(AzureConfigKey, String)> = Vec::new();
    if let Ok(text) = env::var("AZURE_STORAGE_CONNECTION_STRING") {
        let keys = [
            ("AccountName", AzureConfigKey::AccountName),
            ("AccountKey", AzureConfigKey::AccessKey),
            ("SharedAccessSignature", AzureConfigKey::SasKey),
            ("BlobEndpoint", AzureConfigKey::Endpoint),
        ];
        for (name, key) in keys {
            let value = text.split(';').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            given.extend(value.map(|value| (key, value.to_owned())));
        }
    }
    if let Ok(account) = env::var("AZURE_STORAGE_ACCOUNT") {
        given.push((AzureConfigKey::AccountName, account));
    }
    if let Ok(key) = env::var("AZURE_STORAGE_KEY") {
        given.push((AzureConfigKey::AccessKey, key));
    }
    for (key, value) in given {
        if builder.get_config_value(&key).is_none() {
            builder = builder.with_config(key, value);
        }
    }
    for (key, value) in known::<AzureConfigKey>(pairs) {
        builder = builder.with_config(key, value);
    }
    Kind::Az(Box::new(builder.with_container_name(container)))
}
