//! The directory of a zip archive: stored and deflated entries, zip64.
//!
//! ```text
//! | local header | data | local header | data | ... | directory | [zip64 end, locator] | end |
//! ```
//!
//! PyTorch writes stored entries, whose bytes lie in the file as they are; who unpacks a checkpoint
//! and zips it again has deflated ones. No other compression is read, and nothing encrypted. An
//! archive can also lie, by pointing two entries at the same bytes or an entry into the directory;
//! torch then returns garbage, and this reader refuses. Source: APPNOTE.TXT 6.3.10, sections 4.3
//! and 4.5.3.

use super::{
    inflate::{Deflated, MAX_RATIO},
    one, shown, Malformed, Read, Unreadable,
};
use std::ops::Range;

const LOCAL: u32 = 0x0403_4b50;
const ENTRY: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const END_64: u32 = 0x0606_4b50;

/// Local headers that are read at once, at most.
const AT_ONCE: usize = 1 << 16;

/// Bytes of each record without its variable part.
const LOCAL_LEN: u64 = 30;
const ENTRY_LEN: usize = 46;
const END_LEN: u64 = 22;
const LOCATOR_64_LEN: u64 = 20;
const END_64_LEN: u64 = 56;

/// The longest comment behind the last record.
const MAX_COMMENT: u64 = 65_535;

/// The longest directory read, in bytes: over two million storages. The directory has to be
/// in memory as a whole, so a file must not choose its length freely.
const MAX_DIRECTORY: u64 = 256 << 20;

/// The extra field that holds what 32 bits cannot.
const EXTRA_64: u16 = 1;

/// An entry, and the bytes of the file that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    data: Range<u64>,
    /// Bytes of what it holds, and their checksum.
    len: u64,
    crc32: u32,
    packing: Packing,
}

/// How an entry is packed: its method, 0 if it is stored and 8 if it is deflated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packing {
    method: u16,
    is_encrypted: bool,
}

const STORED: Packing = Packing { method: 0, is_encrypted: false };
const DEFLATED: Packing = Packing { method: 8, is_encrypted: false };

/// Where an entry's bytes are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// In the file as they are.
    Stored(Range<u64>),
    Deflated(Deflated),
}

impl Found {
    /// Bytes of what the entry holds.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        match self {
            Self::Stored(range) => range.end - range.start,
            Self::Deflated(deflated) => deflated.len,
        }
    }
}

impl Entry {
    /// Where the entry's bytes are found.
    ///
    /// # Errors
    /// An entry that is encrypted, or compressed otherwise than deflated.
    pub fn find(&self) -> Result<Found, Malformed> {
        let Self { data, len, crc32, .. } = self.clone();
        match self.packing {
            STORED => Ok(Found::Stored(data)),
            DEFLATED if len / MAX_RATIO > data.end - data.start => Err(Malformed::new(format!(
                "zip entry {} says that it grows to more than deflated bytes can",
                shown(&self.name)
            ))),
            DEFLATED => {
                let name = self.name.clone();
                Ok(Found::Deflated(Deflated { name, from: data, len, crc32 }))
            }
            Packing { is_encrypted: true, .. } => {
                let reason = format!("zip entry {} is encrypted", shown(&self.name));
                Err(Malformed::new(reason))
            }
            Packing { method, .. } => Err(Malformed::new(format!(
                "zip entry {} is compressed by method {method}; only deflated (8) and stored (0) \
                 entries can be read",
                shown(&self.name)
            ))),
        }
    }
}

/// The first bytes of a zip archive, empty or not.
#[must_use]
pub fn is_zip(prefix: &[u8]) -> bool {
    prefix.starts_with(b"PK\x03\x04") || prefix.starts_with(b"PK\x05\x06")
}

/// Reads the directory of an archive of `len` bytes, whose bytes `read` returns by ranges.
///
/// # Errors
/// An archive that is cut short or lies about itself.
pub fn entries<E>(len: u64, read: &impl Read<E>) -> Result<Vec<Entry>, Unreadable<E>> {
    let end = End::find(len, read)?;
    if end.size > MAX_DIRECTORY {
        let reason = format!("zip directory of {} bytes is over {MAX_DIRECTORY}", end.size);
        return Err(Malformed::new(reason).into());
    }
    let stop = end.start.checked_add(end.size).filter(|&stop| stop <= end.record);
    let stop = stop.ok_or_else(|| Malformed::new("zip directory reaches past its end record"))?;
    let directory = one(read, end.start..stop)?;
    let mut rest = Fields(&directory);
    let mut found = Vec::new();
    while !rest.0.is_empty() {
        found.push(Listed::read(&mut rest)?);
    }
    if found.len() as u64 != end.count {
        let reason = format!("zip directory has {} entries, not {}", found.len(), end.count);
        return Err(Malformed::new(reason).into());
    }
    let mut placed = Vec::with_capacity(found.len());
    let mut found = found.into_iter();
    while found.len() > 0 {
        let some: Vec<Listed> = found.by_ref().take(AT_ONCE).collect();
        let headers = some.iter().map(|listed| listed.header(end.start));
        let headers = headers.collect::<Result<Vec<_>, _>>()?;
        let headers = read(&headers).map_err(Unreadable::Source)?;
        for (listed, header) in some.into_iter().zip(headers) {
            placed.push(listed.place(end.start, &header)?);
        }
    }
    refuse_overlaps(&placed)?;
    Ok(placed.into_iter().map(|(_, entry)| entry).collect())
}

/// Where the directory lies: what the end of an archive says.
struct End {
    start: u64,
    size: u64,
    count: u64,
    /// Where the first of the end records begins; the directory lies before it.
    record: u64,
}

impl End {
    fn find<E>(len: u64, read: &impl Read<E>) -> Result<Self, Unreadable<E>> {
        let missing = || Malformed::new("zip archive is cut short: it has no end record");
        let tail_start = len.saturating_sub(END_LEN + MAX_COMMENT + LOCATOR_64_LEN);
        let tail = one(read, tail_start..len)?;
        let at = record_in(&tail).ok_or_else(missing)?;
        let mut fields = Fields(&tail[at + 4..]);
        let short = (|| {
            let (disk, start_disk) = (fields.u16()?, fields.u16()?);
            let (here, count) = (fields.u16()?, fields.u16()?);
            Some((disk, start_disk, here, count, fields.u32()?, fields.u32()?))
        })();
        let (disk, start_disk, here, count, size, start) = short.ok_or_else(missing)?;
        let record = tail_start + at as u64;
        let locator = at.checked_sub(LOCATOR_64_LEN as usize).map(|at| &tail[at..]);
        if let Some(locator) = locator.filter(|bytes| Fields(bytes).u32() == Some(LOCATOR_64)) {
            return Self::find_64(Fields(&locator[4..]), record - LOCATOR_64_LEN, read);
        }
        if disk != 0 || start_disk != 0 || here != count {
            return Err(Malformed::new("zip archive spans several disks").into());
        }
        Ok(Self { start: start.into(), size: size.into(), count: count.into(), record })
    }

    fn find_64<E>(
        mut locator: Fields<'_>,
        locator_at: u64,
        read: &impl Read<E>,
    ) -> Result<Self, Unreadable<E>> {
        let lies = || Malformed::new("zip64 end record is not where its locator says");
        let at = locator.skip(4).and_then(|()| locator.u64()).ok_or_else(lies)?;
        let end = at.checked_add(END_64_LEN).filter(|&end| end <= locator_at);
        let bytes = one(read, at..end.ok_or_else(lies)?)?;
        let mut fields = Fields(&bytes);
        if fields.u32() != Some(END_64) {
            return Err(lies().into());
        }
        let numbers = (|| {
            fields.skip(12)?;
            let (disk, start_disk) = (fields.u32()?, fields.u32()?);
            let (here, count) = (fields.u64()?, fields.u64()?);
            let (size, start) = (fields.u64()?, fields.u64()?);
            (disk == 0 && start_disk == 0 && here == count).then_some((start, size, count))
        })();
        let (start, size, count) =
            numbers.ok_or_else(|| Malformed::new("zip archive spans several disks"))?;
        Ok(Self { start, size, count, record: at })
    }
}

/// Where the end record begins: the last whose comment fills the rest, or else the last, since bytes
/// behind an archive (a newline, padding) are no part of it. torch takes the last.
fn record_in(tail: &[u8]) -> Option<usize> {
    let last = tail.len().checked_sub(END_LEN as usize)?;
    let behind = |at: usize| {
        let mut fields = Fields(&tail[at..]);
        let is_signed = fields.u32() == Some(END);
        fields.skip(16)?;
        let comment = usize::from(fields.u16()?);
        if is_signed {
            fields.0.len().checked_sub(comment)
        } else {
            None
        }
    };
    let is_signed = |&at: &usize| tail[at..].starts_with(&END.to_le_bytes());
    let exact = (0..=last).rev().find(|&at| behind(at) == Some(0));
    exact.or_else(|| (0..=last).rev().find(is_signed).filter(|&at| behind(at).is_some()))
}

/// An entry as the directory lists it.
struct Listed {
    name: String,
    /// Bytes it takes in the file.
    packed: u64,
    /// Bytes of what it holds, and their checksum.
    len: u64,
    crc32: u32,
    local: u64,
    packing: Packing,
}

impl Listed {
    fn read(rest: &mut Fields<'_>) -> Result<Self, Malformed> {
        let cut = || Malformed::new("zip directory is cut short");
        let mut fields = Fields(rest.take(ENTRY_LEN).ok_or_else(cut)?);
        if fields.u32() != Some(ENTRY) {
            return Err(Malformed::new("zip directory holds what is no entry"));
        }
        let numbers = (|| {
            fields.skip(4)?;
            let (flags, method) = (fields.u16()?, fields.u16()?);
            fields.skip(4)?;
            let crc32 = fields.u32()?;
            let (packed, size) = (fields.u32()?, fields.u32()?);
            let lengths = (fields.u16()?, fields.u16()?, fields.u16()?);
            fields.skip(8)?;
            Some((flags, method, crc32, packed, size, lengths, fields.u32()?))
        })();
        let (flags, method, crc32, packed, size, lengths, local) = numbers.ok_or_else(cut)?;
        let name = rest.take(lengths.0.into()).ok_or_else(cut)?;
        let extra = rest.take(lengths.1.into()).ok_or_else(cut)?;
        rest.skip(lengths.2.into()).ok_or_else(cut)?;
        let name = String::from_utf8_lossy(name).into_owned();
        let refused = |what: &str| Malformed::new(format!("zip entry {} {what}", shown(&name)));
        let packing = Packing { method, is_encrypted: flags & 1 == 1 };
        let wide = Wide { size, packed, local, extra };
        let (size, packed, local) = wide.read().ok_or_else(|| refused("lacks its 64-bit sizes"))?;
        if packing == STORED && size != packed {
            return Err(refused("is stored in a size that is not its own"));
        }
        Ok(Self { name, packed, len: size, crc32, local, packing })
    }

    /// Where the fixed part of the entry's local header lies, before the directory.
    fn header(&self, directory: u64) -> Result<Range<u64>, Malformed> {
        let end = self.local.checked_add(LOCAL_LEN).filter(|&end| end <= directory);
        end.map(|end| self.local..end).ok_or_else(|| self.refused("lies outside the archive"))
    }

    fn refused(&self, what: &str) -> Malformed {
        Malformed::new(format!("zip entry {} {what}", shown(&self.name)))
    }

    /// Finds the entry's bytes behind its local header; also returns where that begins.
    fn place(self, directory: u64, header: &[u8]) -> Result<(u64, Entry), Malformed> {
        let mut fields = Fields(header);
        let header = (|| {
            let signed = fields.u32()? == LOCAL;
            fields.skip(2)?;
            let is_encrypted = fields.u16()? & 1 == 1;
            let packing = Packing { is_encrypted, method: fields.u16()? };
            fields.skip(16)?;
            (signed && packing == self.packing)
                .then_some(u64::from(fields.u16()?) + u64::from(fields.u16()?))
        })();
        let variable = header.ok_or_else(|| self.refused("has no header of its own"))?;
        let start = self.local + LOCAL_LEN + variable;
        let end = start.checked_add(self.packed).filter(|&end| end <= directory);
        let end = end.ok_or_else(|| self.refused("lies outside the archive"))?;
        let Self { name, local, len, crc32, packing, .. } = self;
        Ok((local, Entry { name, data: start..end, len, crc32, packing }))
    }
}

/// The three numbers that move to an extra field where they need more than 32 bits.
struct Wide<'a> {
    size: u32,
    packed: u32,
    local: u32,
    extra: &'a [u8],
}

impl Wide<'_> {
    fn read(&self) -> Option<(u64, u64, u64)> {
        let mut extra = Fields(self.extra);
        let mut wide = Fields(&[]);
        while let (Some(id), Some(len)) = (extra.u16(), extra.u16()) {
            let field = extra.take(len.into())?;
            if id == EXTRA_64 {
                wide = Fields(field);
            }
        }
        let mut widen = |number: u32| match number {
            u32::MAX => wide.u64(),
            _ => Some(number.into()),
        };
        Some((widen(self.size)?, widen(self.packed)?, widen(self.local)?))
    }
}

fn refuse_overlaps(placed: &[(u64, Entry)]) -> Result<(), Malformed> {
    let mut order: Vec<&(u64, Entry)> = placed.iter().collect();
    order.sort_by_key(|(local, entry)| (*local, entry.data.end));
    for pair in order.windows(2) {
        if pair[1].0 < pair[0].1.data.end {
            let (one, other) = (shown(&pair[0].1.name), shown(&pair[1].1.name));
            return Err(Malformed::new(format!("zip entries {one} and {other} overlap")));
        }
    }
    Ok(())
}

/// Little-endian numbers from the front of some bytes; `None` where there are not enough.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn skip(&mut self, len: usize) -> Option<()> {
        self.take(len).map(drop)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }
}
