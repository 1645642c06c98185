//! Reads `.zip`, strictly: one directory that ends where the file does, stored or deflated, no encryption.
//!
//! The `zip` crate reads a directory of any size into memory and keeps the last of two entries of one name. Here the number
//! of entries is checked before the directory is read, and every name before anything is written.

use super::{Unpacked, damaged, place, refused_kind, shown};
use crate::hub::HubError;
use flate2::read::DeflateDecoder;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const END: &[u8] = b"PK\x05\x06";
const END_BYTES: u64 = 22;
const END64: &[u8] = b"PK\x06\x06";
const END64_BYTES: usize = 56;
const LOCATOR64: &[u8] = b"PK\x06\x07";
const LOCATOR64_BYTES: u64 = 20;
const ENTRY: &[u8] = b"PK\x01\x02";
const ENTRY_BYTES: usize = 46;
const LOCAL: &[u8] = b"PK\x03\x04";
const LOCAL_BYTES: u64 = 30;
const COMMENT_MAX: u64 = u16::MAX as u64;

/// A part of a file.
struct Span<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Span<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(buffer.get_mut(..most).unwrap_or_default(), self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Little-endian numbers of a record.
struct Record(Vec<u8>);

impl Record {
    fn read(file: &File, at: u64, bytes: usize, signature: &[u8]) -> Result<Record, HubError> {
        let mut record = vec![0; bytes];
        file.read_exact_at(&mut record, at).map_err(|_| damaged())?;
        if record.starts_with(signature) { Ok(Record(record)) } else { Err(damaged()) }
    }

    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], HubError> {
        self.0.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).ok_or_else(damaged)
    }

    fn u16(&self, at: usize) -> Result<u16, HubError> {
        Ok(u16::from_le_bytes(self.bytes(at)?))
    }

    fn u32(&self, at: usize) -> Result<u32, HubError> {
        Ok(u32::from_le_bytes(self.bytes(at)?))
    }

    fn u64(&self, at: usize) -> Result<u64, HubError> {
        Ok(u64::from_le_bytes(self.bytes(at)?))
    }
}

struct Directory {
    start: u64,
    bytes: u64,
    entries: u64,
}

impl Directory {
    fn find(file: &File) -> Result<Directory, HubError> {
        let length = file.metadata().map_err(|_| damaged())?.len();
        let tail = length.min(END_BYTES + COMMENT_MAX);
        let mut bytes = vec![0; usize::try_from(tail).unwrap_or_default()];
        file.read_exact_at(&mut bytes, length - tail).map_err(|_| damaged())?;
        // The last one, and it has to end with the file: readers disagree on all others.
        let found = bytes.windows(END.len()).rposition(|window| window == END).ok_or_else(damaged)?;
        let at = length - tail + found as u64;
        let end = Record(bytes.split_off(found));
        if at + END_BYTES + u64::from(end.u16(20)?) != length {
            return Err(damaged());
        }
        let (disk, entries, size, start) = (end.u16(4)?, end.u16(10)?, end.u32(12)?, end.u32(16)?);
        let large = disk == u16::MAX || entries == u16::MAX || size == u32::MAX || start == u32::MAX;
        let (directory, directory_end) = if large {
            let locator = Record::read(
                file,
                at.checked_sub(LOCATOR64_BYTES).ok_or_else(damaged)?,
                LOCATOR64_BYTES as usize,
                LOCATOR64,
            )?;
            let at = locator.u64(8)?;
            let end = Record::read(file, at, END64_BYTES, END64)?;
            if end.u32(16)? != 0 || end.u32(20)? != 0 {
                return Err(damaged());
            }
            (Directory { entries: end.u64(32)?, bytes: end.u64(40)?, start: end.u64(48)? }, at)
        } else {
            if disk != 0 || end.u16(6)? != 0 {
                return Err(damaged());
            }
            (Directory { entries: entries.into(), bytes: size.into(), start: start.into() }, at)
        };
        match directory.start.checked_add(directory.bytes) {
            Some(end) if end == directory_end => Ok(directory),
            _ => Err(damaged()),
        }
    }
}

/// A file to unpack.
struct Entry {
    name: String,
    path: PathBuf,
    deflated: bool,
    crc: u32,
    packed: u64,
    bytes: u64,
    header: u64,
}

pub(super) fn unpack(file: &File, out: &mut Unpacked<'_>) -> Result<(), HubError> {
    let directory = Directory::find(file)?;
    if directory.entries > out.limits.files as u64 {
        return Err(out.too_many());
    }
    let mut reader = BufReader::new(Span { file, at: directory.start, left: directory.bytes });
    let mut entries = Vec::new();
    let mut announced = 0_u64;
    for _ in 0..directory.entries {
        out.entry()?;
        if let Some(entry) = read_entry(&mut reader, out)? {
            announced = announced.saturating_add(entry.bytes);
            entries.push(entry);
        }
    }
    if announced > out.limits.bytes {
        return Err(out.too_large());
    }
    entries.iter().try_for_each(|entry| unpack_entry(file, entry, directory.start, out))
}

/// The directory's next file; `None` where it is a folder, or left out.
fn read_entry(reader: &mut impl Read, out: &mut Unpacked<'_>) -> Result<Option<Entry>, HubError> {
    let head = Record(take(reader, ENTRY_BYTES)?);
    if !head.0.starts_with(ENTRY) {
        return Err(damaged());
    }
    let name = take(reader, head.u16(28)?.into())?;
    let extra = take(reader, head.u16(30)?.into())?;
    take(reader, head.u16(32)?.into())?;
    let Ok(name) = String::from_utf8(name) else {
        return Err(HubError::Refused("a name in the archive is not UTF-8; pack the model's folder again".to_owned()));
    };
    let kind = (head.u32(38)? >> 16) & 0o170_000;
    let is_folder = name.ends_with('/') || kind == 0o040_000;
    match kind {
        // Packed on a system that has no such kinds, a file, or a folder.
        0 | 0o100_000 | 0o040_000 => {}
        0o120_000 => return Err(refused_kind(&name, "a symbolic link")),
        _ => return Err(refused_kind(&name, "a device, pipe or socket")),
    }
    let Some(path) = place(&name, is_folder)? else { return Ok(None) };
    if is_folder {
        out.folder(&path, &name)?;
        return Ok(None);
    }
    // Encrypted, in the old way or the new one, or with its directory.
    if head.u16(8)? & 0x2041 != 0 {
        return Err(HubError::Refused(format!(
            "{} in the archive is encrypted; pack it without a password",
            shown(&name)
        )));
    }
    let deflated = match head.u16(10)? {
        0 => false,
        8 => true,
        method => {
            return Err(HubError::Refused(format!(
                "{} in the archive is compressed in a way that is not read (method {method}); pack it with deflate, or stored",
                shown(&name)
            )));
        }
    };
    let mut sizes = [head.u32(24)?, head.u32(20)?, head.u32(42)?].map(u64::from);
    let extra = Record(extra);
    let extra = large_sizes(&extra)?;
    let mut large = extra.chunks_exact(8).filter_map(|bytes| bytes.try_into().ok().map(u64::from_le_bytes));
    for size in sizes.iter_mut().filter(|size| **size == u64::from(u32::MAX)) {
        *size = large.next().ok_or_else(damaged)?;
    }
    let [bytes, packed, header] = sizes;
    Ok(Some(Entry { name, path, deflated, crc: head.u32(16)?, packed, bytes, header }))
}

fn take(reader: &mut impl Read, bytes: usize) -> Result<Vec<u8>, HubError> {
    let mut taken = vec![0; bytes];
    reader.read_exact(&mut taken).map_err(|_| damaged())?;
    Ok(taken)
}

/// The field of sizes beyond 32 bits among an entry's further fields; empty where there is none.
fn large_sizes(extra: &Record) -> Result<&[u8], HubError> {
    let mut at = 0;
    while at + 4 <= extra.0.len() {
        let (id, bytes) = (extra.u16(at)?, usize::from(extra.u16(at + 2)?));
        let field = extra.0.get(at + 4..at + 4 + bytes).ok_or_else(damaged)?;
        if id == 1 {
            return Ok(field);
        }
        at += 4 + bytes;
    }
    Ok(&[])
}

fn unpack_entry(file: &File, entry: &Entry, directory: u64, out: &mut Unpacked<'_>) -> Result<(), HubError> {
    let local = Record::read(file, entry.header, LOCAL_BYTES as usize, LOCAL)?;
    let at = entry.header + LOCAL_BYTES + u64::from(local.u16(26)?) + u64::from(local.u16(28)?);
    if at.checked_add(entry.packed).is_none_or(|end| end > directory) {
        return Err(damaged());
    }
    let packed = BufReader::new(Span { file, at, left: entry.packed });
    let content: Box<dyn Read> = if entry.deflated { Box::new(DeflateDecoder::new(packed)) } else { Box::new(packed) };
    let mut content = flate2::CrcReader::new(content);
    let bytes = out.file(&entry.path, &entry.name, &mut content)?;
    if bytes == entry.bytes && content.crc().sum() == entry.crc { Ok(()) } else { Err(damaged()) }
}
