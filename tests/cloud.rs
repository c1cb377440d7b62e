//! Addresses from Rust: what is saved to a store is loaded from it, and errors name the address.
//!
//! The store is a web server of a page that keeps what it is given; `tests/python/test_cloud*.py` hold
//! the same code against real ones.
#![cfg(feature = "cloud")]

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};
use tch::{Device, Kind, Tensor};
use veturboio::{LoadOptions, SaveOptions};

type Objects = Arc<Mutex<HashMap<String, Vec<u8>>>>;

/// Starts a store and returns its address.
fn store() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let objects = Objects::default();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let objects = Arc::clone(&objects);
            std::thread::spawn(move || serve(&stream.unwrap(), &objects));
        }
    });
    address
}

/// Answers the requests of one connection until it is closed.
fn serve(stream: &TcpStream, objects: &Objects) -> Option<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let mut request = String::new();
        lines.read_line(&mut request).ok().filter(|&len| len > 0)?;
        let mut words = request.split(' ');
        let (method, path) = (words.next()?, words.next()?.to_owned());
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
        let mut objects = objects.lock().unwrap();
        let (status, head, body) = match (method, objects.get(&path)) {
            ("PUT", _) => {
                objects.insert(path, body);
                ("200 OK", String::new(), Vec::new())
            }
            ("GET", Some(object)) => {
                let range = headers["range"].strip_prefix("bytes=")?.split_once('-')?;
                let start: usize = range.0.parse().unwrap();
                let end = object.len().min(range.1.parse::<usize>().unwrap() + 1);
                let head = format!("Content-Range: bytes {start}-{}/{}\r\n", end - 1, object.len());
                ("206 Partial Content", head, object[start..end].to_vec())
            }
            _ => ("404 Not Found", String::new(), Vec::new()),
        };
        drop(objects);
        let fixed = "ETag: \"1\"\r\nLast-Modified: Sat, 01 Jan 2000 00:00:00 GMT\r\n";
        let mut stream = stream;
        write!(stream, "HTTP/1.1 {status}\r\n{fixed}{head}Content-Length: {}\r\n\r\n", body.len())
            .ok()?;
        stream.write_all(&body).ok()?;
    }
}

fn options(endpoint: &str) -> [(&'static str, String); 4] {
    [
        ("aws_endpoint_url", endpoint.to_owned()),
        ("aws_access_key_id", "key".to_owned()),
        ("aws_secret_access_key", "a-secret".to_owned()),
        ("retry_timeout", "1".to_owned()),
    ]
}

#[test]
fn what_is_saved_to_a_store_is_loaded_from_it() {
    let store = store();
    let weight = Tensor::randn([700, 1_001], (Kind::Float, Device::Cpu));
    let bias = Tensor::arange(9, (Kind::Int64, Device::Cpu));
    let address = "s3://bucket/model.safetensors";
    SaveOptions::new()
        .storage_options(options(&store))
        .save([("weight", &weight), ("bias", &bias)], address)
        .unwrap();
    let loaded = LoadOptions::new().storage_options(options(&store)).load(address).unwrap();
    assert_eq!(loaded.len(), 2);
    assert!(loaded["weight"].equal(&weight) && loaded["bias"].equal(&bias));

    let by_web = format!("{store}/bucket/model.safetensors");
    let part = LoadOptions::new().slice("weight", 0, 600..700).names(["weight"]).load(by_web);
    assert!(part.unwrap()["weight"].equal(&weight.narrow(0, 600, 100)));
}

#[test]
fn errors_name_the_address_and_no_secret() {
    let store = store();
    let load = |endpoint: &str| {
        let options = LoadOptions::new().storage_options(options(endpoint));
        options.load("s3://bucket/nobody.safetensors").unwrap_err()
    };
    let missing = load(&store);
    assert_eq!(missing.errno(), Some(2), "{missing}");
    // Nobody listens there.
    let refused = load("http://127.0.0.1:1");
    for error in [missing, refused] {
        let text = format!("{error} {error:?}");
        assert!(text.contains("s3://bucket/nobody.safetensors"), "{text}");
        assert!(!text.contains("a-secret"), "{text}");
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
