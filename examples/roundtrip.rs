//! Loads a safetensors file and saves its tensors and metadata to another.
//!
//! ```text
//! cargo run --release --example roundtrip -- in.safetensors out.safetensors
//! ```

use std::{env, process::ExitCode};

fn round_trip(input: &str, output: &str) -> Result<(), veturboio::Error> {
    let tensors = veturboio::load(input)?;
    let numbers: usize = tensors.values().map(tch::Tensor::numel).sum();
    println!("{} tensors, {numbers} numbers", tensors.len());
    let notes = veturboio::read_header(input)?.metadata().clone();
    veturboio::SaveOptions::new().metadata(notes).save(&tensors, output)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [input, output] = arguments.as_slice() else {
        eprintln!("usage: roundtrip INPUT OUTPUT");
        return ExitCode::from(2);
    };
    match round_trip(input, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
