//! Inflates an entry of a zip archive, straight to where its bytes are wanted.
//!
//! How long the result is the directory has said before, and the memory for it is there: a bomb that
//! grows further is refused when that is full. Source: RFC 1951, by way of the crate flate2.

use super::{shown, Malformed, Unreadable};
use flate2::{Crc, Decompress, FlushDecompress, Status};
use std::ops::Range;

/// A byte of deflated data makes no more than so many: a match of 258 bytes takes two bits.
pub const MAX_RATIO: u64 = 1032;

/// Deflated bytes that are read at once.
const CHUNK: u64 = 1 << 20;

/// A deflated entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deflated {
    pub name: String,
    /// The deflated bytes, in the file.
    pub from: Range<u64>,
    /// Bytes that they grow to, and their checksum.
    pub len: u64,
    pub crc32: u32,
}

impl Deflated {
    /// Inflates it into `target`, which has its length; `read` fills a buffer from an offset of the
    /// file.
    ///
    /// # Errors
    /// Bytes that are not deflated, that grow to another length, or have another checksum; and what
    /// `read` says.
    pub fn inflate<E>(
        &self,
        target: &mut [u8],
        mut read: impl FnMut(&mut [u8], u64) -> Result<(), E>,
    ) -> Result<(), Unreadable<E>> {
        let mut stream = Decompress::new(false);
        let mut chunk = vec![0; CHUNK.min(self.from.end - self.from.start) as usize];
        let mut at = self.from.start;
        loop {
            let len = CHUNK.min(self.from.end - at) as usize;
            read(&mut chunk[..len], at).map_err(Unreadable::Source)?;
            at += len as u64;
            let is_last = at == self.from.end;
            if self.inflate_chunk(&mut stream, &chunk[..len], target, is_last)? {
                break;
            }
            if is_last {
                return Err(self.refused("is cut short").into());
            }
        }
        if stream.total_in() != self.from.end - self.from.start {
            return Err(self.refused("holds bytes behind its end").into());
        }
        let mut crc32 = Crc::new();
        crc32.update(target);
        if stream.total_out() != target.len() as u64 {
            return Err(self.refused("inflates to fewer bytes than it says").into());
        }
        if crc32.sum() != self.crc32 {
            return Err(self.refused("is damaged: its checksum is another").into());
        }
        Ok(())
    }

    /// Inflates what a chunk holds; whether the stream has ended with it.
    fn inflate_chunk(
        &self,
        stream: &mut Decompress,
        chunk: &[u8],
        target: &mut [u8],
        is_last: bool,
    ) -> Result<bool, Malformed> {
        let first = stream.total_in();
        loop {
            let input = &chunk[(stream.total_in() - first) as usize..];
            let done = stream.total_out() as usize;
            if input.is_empty() && !is_last {
                return Ok(false);
            }
            // Where the target is full the end is still to be read, and nothing before it.
            let mut spare = [0];
            let output = if done < target.len() { &mut target[done..] } else { &mut spare };
            let status = stream
                .decompress(input, output, FlushDecompress::None)
                .map_err(|_| self.refused("is damaged: it is not deflated"))?;
            if stream.total_out() > target.len() as u64 {
                return Err(self.refused("inflates to more bytes than it says"));
            }
            let consumed = (chunk.len() - input.len()) as u64 + first;
            let is_stuck = stream.total_in() == consumed && stream.total_out() == done as u64;
            match status {
                Status::StreamEnd => return Ok(true),
                _ if is_stuck => return Ok(false),
                _ => {}
            }
        }
    }

    fn refused(&self, what: &str) -> Malformed {
        Malformed::new(format!("zip entry {} {what}", shown(&self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{write::DeflateEncoder, Compression};
    use std::io::Write;

    fn deflated(data: &[u8]) -> (Vec<u8>, Deflated) {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        let packed = encoder.finish().unwrap();
        let mut crc32 = Crc::new();
        crc32.update(data);
        let from = 0..packed.len() as u64;
        let (name, len, crc32) = ("e".to_owned(), data.len() as u64, crc32.sum());
        (packed, Deflated { name, from, len, crc32 })
    }

    fn inflate(packed: &[u8], entry: &Deflated) -> Result<Vec<u8>, String> {
        let mut target = vec![0; entry.len as usize];
        let read = |bytes: &mut [u8], at: u64| {
            bytes.copy_from_slice(&packed[at as usize..at as usize + bytes.len()]);
            Ok::<_, ()>(())
        };
        match entry.inflate(&mut target, read) {
            Ok(()) => Ok(target),
            Err(Unreadable::Malformed(malformed)) => Err(malformed.reason),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn any_length_comes_back() {
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for len in [0, 1, 2, 1000, 1 << 20, (3 << 20) + 7] {
            let noise: Vec<u8> = (0..len).map(|_| random()).collect();
            for data in [noise, vec![7; len]] {
                let (packed, entry) = deflated(&data);
                assert!(entry.len / MAX_RATIO <= packed.len() as u64);
                assert_eq!(inflate(&packed, &entry).unwrap(), data);
            }
        }
    }

    #[test]
    fn what_is_not_what_it_says_is_refused() {
        let (packed, entry) = deflated(&[5; 5000]);
        let said = |change: &dyn Fn(&mut Deflated)| {
            let mut changed = entry.clone();
            change(&mut changed);
            inflate(&packed, &changed).unwrap_err()
        };
        assert!(said(&|entry| entry.len += 1).contains("fewer bytes"));
        assert!(said(&|entry| entry.len -= 1).contains("more bytes"));
        assert!(said(&|entry| entry.len = 0).contains("more bytes"));
        assert!(said(&|entry| entry.crc32 ^= 1).contains("checksum"));
        assert!(said(&|entry| entry.from.end -= 1).contains("is cut short"));
        let behind = [&packed[..], b"x"].concat();
        let longer = Deflated { from: 0..behind.len() as u64, ..entry.clone() };
        assert!(inflate(&behind, &longer).unwrap_err().contains("behind its end"));
        let other = vec![0xff; packed.len()];
        assert!(inflate(&other, &entry).unwrap_err().contains("not deflated"));
    }
}
