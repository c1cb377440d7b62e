//! The instructions that the values are written in.

use super::Writer;

impl Writer<'_> {
    /// A persistent id: a letter, and what else there is.
    pub(super) fn id(&mut self, letter: u8, rest: impl FnOnce(&mut Self)) {
        self.out.push(b'(');
        self.text(&[letter]);
        rest(self);
        self.out.extend_from_slice(b"tQ");
    }

    pub(super) fn get(&mut self, number: u32) {
        if let Ok(number) = u8::try_from(number) {
            self.out.extend_from_slice(&[b'h', number]);
        } else {
            self.out.push(b'j');
            self.out.extend_from_slice(&number.to_le_bytes());
        }
    }

    pub(super) fn int(&mut self, number: i64) {
        match (u8::try_from(number), i32::try_from(number)) {
            (Ok(number), _) => self.out.extend_from_slice(&[b'K', number]),
            (_, Ok(number)) => {
                self.out.push(b'J');
                self.out.extend_from_slice(&number.to_le_bytes());
            }
            _ => {
                self.out.extend_from_slice(&[0x8a, 8]);
                self.out.extend_from_slice(&number.to_le_bytes());
            }
        }
    }

    pub(super) fn float(&mut self, number: f64) {
        self.out.push(b'G');
        self.out.extend_from_slice(&number.to_be_bytes());
    }

    pub(super) fn text(&mut self, bytes: &[u8]) {
        if let Ok(len) = u8::try_from(bytes.len()) {
            self.out.extend_from_slice(&[0x8c, len]);
            self.out.extend_from_slice(bytes);
        } else {
            self.counted(0x8d, bytes);
        }
    }

    pub(super) fn counted(&mut self, instruction: u8, bytes: &[u8]) {
        self.out.push(instruction);
        self.out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.out.extend_from_slice(bytes);
    }
}
