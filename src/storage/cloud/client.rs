//! The HTTP client under all stores: follows no redirect by itself, and names no referrer.
//!
//! The client of `object_store` follows redirects with a Referer, the query of which may be a
//! signature, and keeps headers of the store that only the first host may see. So the client is
//! made here of the same options, and [`redirect`](super::redirect) decides where a request goes.

use object_store::{client::HttpClient, ClientConfigKey, ClientOptions};
use reqwest::{
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
    Certificate, ClientBuilder, NoProxy, Proxy,
};
use std::{
    fmt, io,
    net::{SocketAddr, ToSocketAddrs},
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What servers are told that asks them.
const USER_AGENT: &str = concat!("veturboio/", env!("CARGO_PKG_VERSION"));

/// An option that the client cannot be made with, in words.
#[derive(Debug)]
struct Unusable(String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// Makes a client of a store's options.
///
/// # Errors
/// An option whose value means nothing, and a system without certificates.
pub fn client(options: &ClientOptions) -> object_store::Result<HttpClient> {
    let refused = |words: String| object_store::Error::Generic {
        store: "HTTP client",
        source: Box::new(Unusable(words)),
    };
    let told = Told(options);
    let builder = builder(&told).map_err(refused)?;
    let client = builder.build().map_err(|error| refused(error.without_url().to_string()))?;
    Ok(HttpClient::new(client))
}

fn builder(told: &Told<'_>) -> Result<ClientBuilder, String> {
    use ClientConfigKey as Key;
    let mut builder = ClientBuilder::new()
        .redirect(Policy::none())
        .referer(false)
        .user_agent(told.text(Key::UserAgent).unwrap_or_else(|| USER_AGENT.to_owned()))
        // The lengths of objects are those of what is sent.
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .https_only(!told.yes(Key::AllowHttp));
    if let Some(proxy) = proxy(told)? {
        builder = builder.proxy(proxy);
    }
    if let Some(text) = told.text(Key::ProxyCaCertificate) {
        let certificate = Certificate::from_pem(text.as_bytes());
        let certificate = certificate.map_err(|_| "proxy_ca_certificate is no certificate")?;
        builder = builder.tls_certs_merge([certificate]);
    }
    if told.yes(Key::NoSystemCertificates) {
        builder = builder.tls_certs_only([]);
    }
    if told.yes(Key::AllowInvalidCertificates) {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    if told.yes(Key::RandomizeAddresses) {
        builder = builder.dns_resolver(Arc::new(Shuffled));
    }
    protocol(timed(builder, told)?, told)
}

fn proxy(told: &Told<'_>) -> Result<Option<Proxy>, String> {
    let Some(url) = told.text(ClientConfigKey::ProxyUrl) else { return Ok(None) };
    // Not quoted: it may hold a password.
    let proxy = Proxy::all(url).map_err(|_| "proxy_url is no address")?;
    let excludes = told.text(ClientConfigKey::ProxyExcludes);
    Ok(Some(proxy.no_proxy(excludes.and_then(|hosts| NoProxy::from_string(&hosts)))))
}

fn timed(mut builder: ClientBuilder, told: &Told<'_>) -> Result<ClientBuilder, String> {
    use ClientConfigKey as Key;
    if let Some(time) = told.duration(Key::Timeout)? {
        builder = builder.timeout(time);
    }
    if let Some(time) = told.duration(Key::ConnectTimeout)? {
        builder = builder.connect_timeout(time);
    }
    if let Some(time) = told.duration(Key::ReadTimeout)? {
        builder = builder.read_timeout(time);
    }
    if let Some(time) = told.duration(Key::PoolIdleTimeout)? {
        builder = builder.pool_idle_timeout(time);
    }
    if let Some(most) = told.number(Key::PoolMaxIdlePerHost)? {
        builder = builder.pool_max_idle_per_host(most);
    }
    Ok(builder)
}

fn protocol(mut builder: ClientBuilder, told: &Told<'_>) -> Result<ClientBuilder, String> {
    use ClientConfigKey as Key;
    if let Some(time) = told.duration(Key::Http2KeepAliveInterval)? {
        builder = builder.http2_keep_alive_interval(time);
    }
    if let Some(time) = told.duration(Key::Http2KeepAliveTimeout)? {
        builder = builder.http2_keep_alive_timeout(time);
    }
    if let Some(len) = told.number(Key::Http2MaxFrameSize)? {
        builder = builder.http2_max_frame_size(Some(len));
    }
    if told.yes(Key::Http2KeepAliveWhileIdle) {
        builder = builder.http2_keep_alive_while_idle(true);
    }
    if told.yes(Key::Http1Only) {
        builder = builder.http1_only();
    }
    if told.yes(Key::Http2Only) {
        builder = builder.http2_prior_knowledge();
    }
    Ok(builder)
}

/// The options by key.
struct Told<'a>(&'a ClientOptions);

impl Told<'_> {
    fn text(&self, key: ClientConfigKey) -> Option<String> {
        self.0.get_config_value(&key)
    }

    fn yes(&self, key: ClientConfigKey) -> bool {
        self.text(key).is_some_and(|value| {
            ["1", "true", "on", "yes", "y"].contains(&value.to_ascii_lowercase().as_str())
        })
    }

    fn number<T: FromStr>(&self, key: ClientConfigKey) -> Result<Option<T>, String> {
        let Some(text) = self.text(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("{} is no number", key.as_ref()))
    }

    fn duration(&self, key: ClientConfigKey) -> Result<Option<Duration>, String> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let time = humantime::parse_duration(&text);
        time.map(Some).map_err(|_| format!("{} is no time such as 15s", key.as_ref()))
    }
}

/// Takes the addresses of a host in an order left to chance, so that connections spread over the
/// machines of a store.
struct Shuffled;

impl Resolve for Shuffled {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let find = move || -> io::Result<Vec<SocketAddr>> {
                let mut found: Vec<_> = (host.as_str(), 0).to_socket_addrs()?.collect();
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let count = found.len().max(1);
                found.rotate_left(now.subsec_nanos() as usize / 1_000 % count);
                Ok(found)
            };
            let found = tokio::task::spawn_blocking(find).await??;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}
