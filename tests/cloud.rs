//! Addresses from Rust: what is saved to a store is loaded from it, and errors name the address.
//!
//! The store is a web server of a page or two that keeps what it is given, in the forms that S3, Google and
//! Azure have for that, and believes every signature. `tests/python/test_cloud*.py` hold the same code
//! against a real S3 server and against one that fails.
#![cfg(feature = "cloud")]

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};
use tch::{Device, Kind, Tensor};
use veturboio::{LoadOptions, SaveOptions};

/// Bytes by path: objects, and the parts of those in the making by the number or the name of the part.
#[derive(Default)]
struct Held {
    objects: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<(String, String), Vec<u8>>,
}

/// Starts a store and returns its address.
fn store() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let held = Arc::<Mutex<Held>>::default();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let held = Arc::clone(&held);
            std::thread::spawn(move || serve(&stream.unwrap(), &held));
        }
    });
    address
}

/// Answers the requests of one connection until it is closed.
fn serve(stream: &TcpStream, held: &Mutex<Held>) -> Option<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let mut request = String::new();
        lines.read_line(&mut request).ok().filter(|&len| len > 0)?;
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            lines.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let len = headers.get("content-length").map_or(0, |len| len.parse().unwrap());
        let mut body = vec![0; len];
        lines.read_exact(&mut body).ok()?;
        let mut words = request.split(' ');
        let (method, target) = (words.next()?, words.next()?.replace("%2E", "."));
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let (status, more, body) = match method {
            "GET" => read(&held.lock().unwrap(), path, headers.get("range")),
            _ => write(&mut held.lock().unwrap(), path, query, body),
        };
        let fixed = "ETag: \"1\"\r\nLast-Modified: Sat, 01 Jan 2000 00:00:00 GMT\r\n";
        let mut stream = stream;
        write!(stream, "HTTP/1.1 {status}\r\n{fixed}{more}Content-Length: {}\r\n\r\n", body.len())
            .ok()?;
        stream.write_all(&body).ok()?;
    }
}

type Answer = (&'static str, String, Vec<u8>);

fn read(held: &Held, path: &str, range: Option<&String>) -> Answer {
    let Some(object) = held.objects.get(path) else {
        return ("404 Not Found", String::new(), Vec::new());
    };
    let (start, end) = range.unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse::<usize>().unwrap() + 1);
    let end = end.min(object.len());
    let range = format!("Content-Range: bytes {start}-{}/{}\r\n", end - 1, object.len());
    ("206 Partial Content", range, object[start..end].to_vec())
}

/// Takes an object whole or in parts: numbered ones as S3 and Google have them, named ones as Azure.
fn write(held: &mut Held, path: &str, query: &str, body: Vec<u8>) -> Answer {
    let fields: HashMap<&str, &str> = query.split('&').filter_map(|f| f.split_once('=')).collect();
    let part = |name: &str| (path.to_owned(), format!("{name:0>9}"));
    let mut finish = |names: Vec<String>| {
        let whole = names.iter().flat_map(|name| held.parts.remove(&part(name)).unwrap()).collect();
        held.objects.insert(path.to_owned(), whole);
        "<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>"
    };
    let told = match (fields.get("partNumber").or(fields.get("blockid")), fields.get("comp")) {
        (Some(name), _) => {
            held.parts.insert(part(name), body);
            ""
        }
        (None, Some(&"blocklist")) => {
            let list = String::from_utf8(body).unwrap();
            let names = list.split("<Uncommitted>").skip(1);
            let names = names.map(|name| name.split('<').next().unwrap().replace('=', "%3D"));
            finish(names.collect())
        }
        _ if fields.contains_key("uploadId") => {
            finish((1..=held_parts(&body)).map(|number| number.to_string()).collect())
        }
        _ if query.starts_with("uploads") => {
            "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
        }
        _ => {
            held.objects.insert(path.to_owned(), body);
            ""
        }
    };
    ("201 Created", String::new(), told.as_bytes().to_vec())
}

/// How many parts the list of an upload that is complete names.
fn held_parts(list: &[u8]) -> usize {
    String::from_utf8_lossy(list).matches("<PartNumber>").count()
}

/// What reaches the store by each kind of address.
fn options(endpoint: &str) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let retry = ("retry_timeout", "1".to_owned());
    let endpoint = endpoint.to_owned();
    vec![
        (
            "s3://bucket/model.safetensors",
            vec![
                ("aws_endpoint_url", endpoint.clone()),
                ("aws_access_key_id", "key".to_owned()),
                ("aws_secret_access_key", "a-secret".to_owned()),
                retry.clone(),
            ],
        ),
        (
            "gs://bucket/model.safetensors",
            vec![
                ("google_base_url", endpoint.clone()),
                ("google_bearer_token", "a-secret".to_owned()),
                retry.clone(),
            ],
        ),
        (
            "az://container/model.safetensors",
            vec![
                ("azure_storage_account_name", "account".to_owned()),
                ("azure_storage_account_key", "YS1zZWNyZXQ=".to_owned()),
                ("azure_endpoint", endpoint),
                retry,
            ],
        ),
    ]
}

#[test]
fn what_is_saved_to_a_store_is_loaded_from_it() {
    let store = store();
    // Whole, and in parts.
    for rows in [70, 6_000] {
        let weight = Tensor::randn([rows, 1_001], (Kind::Float, Device::Cpu));
        let bias = Tensor::arange(9, (Kind::Int64, Device::Cpu));
        for (address, options) in options(&store) {
            SaveOptions::new()
                .storage_options(options.clone())
                .save([("weight", &weight), ("bias", &bias)], address)
                .unwrap();
            let loaded = LoadOptions::new().storage_options(options.clone()).load(address).unwrap();
            assert_eq!(loaded.len(), 2);
            assert!(loaded["weight"].equal(&weight) && loaded["bias"].equal(&bias), "{address}");
            let part = LoadOptions::new().slice("weight", 0, 60..70).names(["weight"]);
            let part = part.storage_options(options).load(address).unwrap();
            assert!(part["weight"].equal(&weight.narrow(0, 60, 10)), "{address}");
        }
        let by_web = format!("{store}/bucket/model.safetensors");
        assert!(veturboio::load(by_web).unwrap()["weight"].equal(&weight));
    }
}

#[test]
fn errors_name_the_address_and_no_secret() {
    let store = store();
    for endpoint in [&*store, "http://127.0.0.1:1"] {
        for (address, options) in options(endpoint) {
            let refused = LoadOptions::new().storage_options(options).load(address).unwrap_err();
            if endpoint == store {
                assert_eq!(refused.errno(), Some(2), "{refused}");
            }
            let text = format!("{refused} {refused:?}");
            assert!(text.contains(address), "{text}");
            assert!(!text.contains("a-secret") && !text.contains("YS1zZWNyZXQ"), "{text}");
        }
    }
}

#[test]
fn a_file_has_an_address_too() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("file://{}/model.safetensors", dir.path().display());
    let weight = Tensor::arange(6, (Kind::Float, Device::Cpu));
    veturboio::save([("weight", &weight)], &address).unwrap();
    assert!(veturboio::load(&address).unwrap()["weight"].equal(&weight));
    assert!(dir.path().join("model.safetensors").is_file());
}
