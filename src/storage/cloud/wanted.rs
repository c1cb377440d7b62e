//! Pieces of memory that wait for a stream to come by.

use crate::storage::Scattered;

/// Pieces in the order of the object; they may overlap.
#[derive(Debug)]
pub struct Wanted<'a> {
    pieces: Vec<Scattered<'a>>,
    /// Where the last of them ends.
    end: u64,
    /// The first that has not begun; those before it are in `begun` or full.
    next: usize,
    begun: Vec<usize>,
}

impl<'a> Wanted<'a> {
    pub fn new(mut pieces: Vec<Scattered<'a>>) -> Self {
        pieces.retain(|piece| !piece.bytes.is_empty());
        pieces.sort_by_key(|piece| piece.offset);
        let end = pieces.iter().map(end_of).max().unwrap_or(0);
        Self { pieces, end, next: 0, begun: Vec::new() }
    }

    /// Where the bytes begin that are still missing, if there are any.
    pub fn first(&self, at: u64) -> Option<u64> {
        if !self.begun.is_empty() {
            return Some(at);
        }
        self.pieces.get(self.next).map(|piece| piece.offset)
    }

    /// Where the last piece ends.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Forgets what has come: the stream begins anew.
    pub fn restart(&mut self) {
        self.next = 0;
        self.begun.clear();
    }

    /// Takes what is wanted of the object's bytes at `at`, which follow on what was taken before;
    /// returns how many bytes of memory it filled.
    pub fn take(&mut self, at: u64, bytes: &[u8]) -> u64 {
        let end = at + bytes.len() as u64;
        while self.pieces.get(self.next).is_some_and(|piece| piece.offset < end) {
            self.begun.push(self.next);
            self.next += 1;
        }
        let mut filled = 0;
        let pieces = &mut self.pieces;
        self.begun.retain(|&index| {
            let piece = &mut pieces[index];
            let (from, to) = (piece.offset.max(at), end_of(piece).min(end));
            if from < to {
                let source = &bytes[(from - at) as usize..(to - at) as usize];
                let start = (from - piece.offset) as usize;
                piece.bytes[start..start + source.len()].copy_from_slice(source);
                filled += to - from;
            }
            end_of(piece) > end
        });
        filled
    }
}

fn end_of(piece: &Scattered<'_>) -> u64 {
    piece.offset + piece.bytes.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_get_their_bytes_whatever_their_order_and_the_length_of_chunks() {
        let object: Vec<u8> = (0..200).collect();
        let places = [(50, 20), (3, 5), (0, 200), (60, 1), (199, 1), (3, 5), (9, 0)];
        for chunk in [1, 7, 64, 200] {
            let mut memory: Vec<Vec<u8>> = places.iter().map(|&(_, len)| vec![0; len]).collect();
            let pieces = memory.iter_mut().zip(places);
            let pieces = pieces.map(|(bytes, (offset, _))| Scattered { offset, bytes });
            let mut wanted = Wanted::new(pieces.collect());
            assert_eq!((wanted.first(0), wanted.end()), (Some(0), 200));
            let mut filled = 0;
            for (index, bytes) in object.chunks(chunk).enumerate() {
                filled += wanted.take((index * chunk) as u64, bytes);
                if index == 3 {
                    wanted.restart();
                    for before in 0..=index {
                        let at = before * chunk;
                        wanted.take(at as u64, &object[at..object.len().min(at + chunk)]);
                    }
                }
            }
            assert_eq!((filled, wanted.first(200)), (232, None));
            for ((offset, len), bytes) in places.into_iter().zip(&memory) {
                assert_eq!(bytes[..], object[offset as usize..offset as usize + len]);
            }
        }
    }
}
