//! Reads `.tar.gz`.
//!
//! The headers are read here, since the `tar` crate's own reader takes long names of any length into memory and knows links
//! and sparse files; its types read a header's fields.

use super::{Unpacked, damaged, place, refused_kind};
use crate::hub::HubError;
use ::tar::{EntryType, Header, PaxExtensions};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufReader, Read};

const BLOCK: usize = 512;
/// Largest record of long names and other attributes that is read.
const EXTENSION_MAX: u64 = 1 << 16;

/// Ends with an error where more is read than a bounded archive can have.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(count)
    }
}

/// What records before an entry say of it.
#[derive(Default)]
struct Said {
    name: Option<Vec<u8>>,
    bytes: Option<u64>,
}

pub(super) fn unpack(file: &File, out: &mut Unpacked<'_>) -> Result<(), HubError> {
    // Headers and padding beside the content; what is left out is read all the same.
    let frames = (out.limits.files as u64).saturating_mul(4 * BLOCK as u64).saturating_add(1 << 20);
    let left = out.limits.bytes.saturating_add(frames);
    let mut stream = Bounded { inner: MultiGzDecoder::new(BufReader::new(file)), left };
    let mut said = Said::default();
    while let Some(header) = read_header(&mut stream, out)? {
        let header = Header::from_byte_slice(&header);
        let kind = header.entry_type();
        let bytes = header.entry_size().map_err(|_| damaged())?;
        match kind {
            EntryType::XGlobalHeader => {
                let (name, bytes) = attributes(&read_extension(&mut stream, bytes, out)?)?;
                // An entry's own, for all of them: nobody writes that.
                if name.is_some() || bytes.is_some() {
                    return Err(damaged());
                }
            }
            EntryType::XHeader => {
                let (name, bytes) = attributes(&read_extension(&mut stream, bytes, out)?)?;
                said = Said { name: name.or(said.name), bytes: bytes.or(said.bytes) };
            }
            EntryType::GNULongName => {
                let mut name = read_extension(&mut stream, bytes, out)?;
                name.pop_if(|last| *last == 0);
                said.name = Some(name);
            }
            kind => read_entry(&mut stream, header, kind, &std::mem::take(&mut said), out)?,
        }
    }
    if said.name.is_some() || said.bytes.is_some() {
        return Err(damaged());
    }
    // To the end of the stream, where its checksum stands.
    io::copy(&mut stream, &mut io::sink()).map_err(|error| out.read_error(&error))?;
    Ok(())
}

/// `None` at the end.
fn read_header(stream: &mut impl Read, out: &Unpacked<'_>) -> Result<Option<[u8; BLOCK]>, HubError> {
    let mut block = [0; BLOCK];
    let count = io::copy(&mut stream.take(BLOCK as u64), &mut block.as_mut_slice());
    match count.map_err(|error| out.read_error(&error))? {
        0 => return Ok(None),
        count if count < BLOCK as u64 => return Err(damaged()),
        _ => {}
    }
    if block == [0; BLOCK] {
        return Ok(None);
    }
    // The sum is over the header with blanks in its own place.
    let own = 148..156;
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if own.contains(&at) { 32 } else { u32::from(*byte) }).sum();
    match Header::from_byte_slice(&block).cksum() {
        Ok(said) if said == sum => Ok(Some(block)),
        _ => Err(damaged()),
    }
}

fn read_entry(
    stream: &mut impl Read,
    header: &Header,
    kind: EntryType,
    said: &Said,
    out: &mut Unpacked<'_>,
) -> Result<(), HubError> {
    out.entry()?;
    let name = said.name.clone().unwrap_or_else(|| header.path_bytes().into_owned());
    let Ok(name) = String::from_utf8(name) else {
        return Err(HubError::Refused("a name in the archive is not UTF-8; pack the model's folder again".to_owned()));
    };
    match kind {
        EntryType::Regular | EntryType::Directory => {}
        EntryType::Symlink => return Err(refused_kind(&name, "a symbolic link")),
        EntryType::Link | EntryType::GNULongLink => return Err(refused_kind(&name, "a link")),
        EntryType::GNUSparse => return Err(refused_kind(&name, "a sparse file")),
        EntryType::Char | EntryType::Block => return Err(refused_kind(&name, "a device")),
        EntryType::Fifo => return Err(refused_kind(&name, "a named pipe")),
        _ => return Err(refused_kind(&name, "of an unknown kind")),
    }
    let is_folder = kind == EntryType::Directory || name.ends_with('/');
    let bytes = match said.bytes {
        Some(bytes) => bytes,
        None => header.entry_size().map_err(|_| damaged())?,
    };
    let mut content = stream.take(bytes);
    if let Some(path) = place(&name, is_folder)? {
        if is_folder {
            out.folder(&path, &name)?;
        } else if out.bytes.saturating_add(bytes) > out.limits.bytes {
            return Err(out.too_large());
        } else if out.file(&path, &name, &mut content)? != bytes {
            return Err(damaged());
        }
    }
    let rest = content.limit();
    skip(stream, rest, bytes, out)
}

/// Reads `rest` bytes of a content of `bytes`, and what fills up its last block.
fn skip(stream: &mut impl Read, rest: u64, bytes: u64, out: &Unpacked<'_>) -> Result<(), HubError> {
    let padding = bytes.wrapping_neg() % BLOCK as u64;
    let rest = rest.checked_add(padding).ok_or_else(damaged)?;
    let count = io::copy(&mut stream.take(rest), &mut io::sink()).map_err(|error| out.read_error(&error))?;
    if count == rest { Ok(()) } else { Err(damaged()) }
}

fn read_extension(stream: &mut impl Read, bytes: u64, out: &Unpacked<'_>) -> Result<Vec<u8>, HubError> {
    if bytes > EXTENSION_MAX {
        return Err(HubError::Refused("a name or an attribute in the archive is longer than 64 KiB".to_owned()));
    }
    let mut content = Vec::new();
    stream.take(bytes).read_to_end(&mut content).map_err(|error| out.read_error(&error))?;
    if content.len() as u64 != bytes {
        return Err(damaged());
    }
    skip(stream, 0, bytes, out)?;
    Ok(content)
}

/// The name and size among an entry's attributes.
fn attributes(record: &[u8]) -> Result<(Option<Vec<u8>>, Option<u64>), HubError> {
    let (mut name, mut bytes) = (None, None);
    for attribute in PaxExtensions::new(record) {
        let attribute = attribute.map_err(|_| damaged())?;
        let value = attribute.value_bytes();
        match attribute.key_bytes() {
            b"path" => name = Some(value.to_vec()),
            b"size" => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                bytes = Some(number.ok_or_else(damaged)?);
            }
            key if key.starts_with(b"GNU.sparse") => {
                return Err(refused_kind(&String::from_utf8_lossy(value), "a sparse file"));
            }
            _ => {}
        }
    }
    Ok((name, bytes))
}
