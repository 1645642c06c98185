//! NumPy's `.npy` and `.npz`, read and written without Python: headers are parsed as the literals they are.
//!
//! The payload of a little-endian array in C order is used where it lies, without copying; big-endian bytes are swapped
//! and Fortran order is converted. Arrays of objects (pickles) are never read. Text (`U`) and bytes (`S`) are `BYTES`.

use super::{CodecError, STRING_WEIGHT, checked_count, clip};
use crate::tensor::{DType, Tensor};
use bytes::Bytes;
use std::io::{Cursor, Read, Write};

const MAGIC: &[u8] = b"\x93NUMPY";

/// Bytes of a header, which holds one small dictionary.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Arrays in one archive.
const MAX_ENTRIES: usize = 64;

/// Bytes of an array's name in an archive.
const MAX_NAME_BYTES: usize = 1024;

/// Whether `bytes` begin as an `.npy` file does.
pub fn is_npy(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Whether `bytes` begin as a zip archive does.
pub fn is_npz(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06")
}

/// Reads one array. `field` is what error texts call it.
///
/// # Errors
/// `Malformed` for what is no `.npy` file, `UnsupportedMedia` for element types that are not served, `TooLarge` beyond
/// `max_elements`.
pub fn read(field: &str, bytes: &Bytes, max_elements: usize) -> Result<Tensor, CodecError> {
    let (header, payload) = split(field, bytes)?;
    let descr = Descr::parse(field, &header.descr)?;
    let count = checked_count(field, &header.shape, descr.is_text(), max_elements)?;
    let size = descr.size;
    let expected = count.checked_mul(size);
    if expected != Some(payload.len()) {
        return Err(CodecError::Malformed(format!(
            "{field}: shape {:?} of {:?} needs {} bytes, the file has {}",
            header.shape,
            header.descr,
            expected.map_or("too many".into(), |expected| expected.to_string()),
            payload.len()
        )));
    }
    // One axis or none has the same order either way.
    let payload = match header.fortran_order && header.shape.len() > 1 && count > 0 {
        true => to_c_order(&payload, &header.shape, size).into(),
        false => payload,
    };
    let tensor = match descr.kind {
        Kind::Number(dtype) => {
            let payload = if descr.big_endian { swapped(&payload, size).into() } else { payload };
            Tensor::from_bytes(dtype, header.shape, payload)
        }
        Kind::Unicode => {
            // Text of 4-byte code points may be as long as the file: one limit for all of it.
            if payload.len() / 4 > max_elements {
                return Err(super::too_many_elements(field, false, max_elements));
            }
            let strings = payload.chunks_exact(size).enumerate();
            let strings: Result<Vec<String>, CodecError> =
                strings.map(|(index, chunk)| unicode(field, index, chunk, descr.big_endian)).collect();
            Tensor::from_strings(header.shape, strings?)
        }
        Kind::Bytes => {
            let strings = payload.chunks_exact(size).enumerate();
            let strings: Result<Vec<String>, CodecError> =
                strings.map(|(index, chunk)| byte_text(field, index, chunk)).collect();
            Tensor::from_strings(header.shape, strings?)
        }
    };
    tensor.map_err(|error| CodecError::tensor(field, &error))
}

/// Reads all arrays of an archive, in its order, by their names without `.npy`. `max_bytes` bounds what they unpack to.
///
/// # Errors
/// As [`read`], and `TooLarge` for more than 64 arrays or `max_bytes`.
pub fn read_archive(bytes: &Bytes, max_elements: usize, max_bytes: usize) -> Result<Vec<(String, Tensor)>, CodecError> {
    let malformed =
        |error: zip::result::ZipError| CodecError::Malformed(format!("the body is not an .npz archive: {error}"));
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(malformed)?;
    if archive.len() > MAX_ENTRIES {
        return Err(CodecError::TooLarge(format!(
            "the archive has {} entries; at most {MAX_ENTRIES} are read",
            archive.len()
        )));
    }
    let mut left = max_bytes;
    let mut arrays: Vec<(String, Tensor)> = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(malformed)?;
        let name = entry.name().map_err(malformed)?.into_owned();
        let name = name.strip_suffix(".npy").unwrap_or(&name).to_owned();
        if name.len() > MAX_NAME_BYTES {
            return Err(CodecError::Malformed(format!("the archive has a name of more than {MAX_NAME_BYTES} bytes")));
        }
        if arrays.iter().any(|(other, _)| *other == name) {
            return Err(CodecError::Malformed(format!("the archive has {:?} twice", clip(&name))));
        }
        // The size in the directory is only a claim, so what comes out is counted.
        let claimed = usize::try_from(entry.size()).unwrap_or(usize::MAX);
        let mut content = Vec::with_capacity(claimed.min(left).min(16 << 20));
        let unpacked = entry.take(left as u64 + 1).read_to_end(&mut content);
        if content.len() > left {
            return Err(CodecError::TooLarge(format!("the archive unpacks to more than {max_bytes} bytes")));
        }
        unpacked
            .map_err(|error| CodecError::Malformed(format!("{:?} in the archive is damaged: {error}", clip(&name))))?;
        left -= content.len();
        let tensor = read(&format!("inputs.{}", clip(&name)), &content.into(), max_elements)?;
        arrays.push((name, tensor));
    }
    Ok(arrays)
}

/// Writes one array, version 1.0, C order. Strings become `U`, as long as the longest.
///
/// # Errors
/// `UnsupportedMedia` for types that NumPy has not; `TooLarge` for strings whose array would be out of proportion.
pub fn write(field: &str, tensor: &Tensor) -> Result<Vec<u8>, CodecError> {
    let (descr, payload) = match tensor.dtype() {
        DType::String => unicode_payload(field, tensor)?,
        dtype => match descr_of(dtype) {
            Some(descr) => (descr.to_owned(), None),
            None => {
                return Err(CodecError::UnsupportedMedia(format!(
                    "{field} is {dtype}, which NumPy's format cannot carry; ask for application/vnd.safetensors or for binary data by the Open Inference Protocol"
                )));
            }
        },
    };
    let payload = payload.as_deref().unwrap_or(tensor.bytes());
    let dims: String = tensor.shape().iter().map(|dim| format!("{dim},")).collect();
    let dims = if tensor.shape().len() > 1 { dims.trim_end_matches(',') } else { &dims };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Magic, version, length and header end at a multiple of 64, the last byte being a line end.
    let before = MAGIC.len() + 4;
    let padded = (before + header.len() + 1).next_multiple_of(64);
    while before + header.len() + 1 < padded {
        header.push(' ');
    }
    header.push('\n');
    let Ok(length) = u16::try_from(header.len()) else {
        return Err(CodecError::UnsupportedMedia(format!("{field} has too many dimensions for NumPy's format")));
    };
    let mut out = Vec::with_capacity(padded + payload.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[1, 0]);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(payload);
    Ok(out)
}

/// Writes an archive of arrays by name, not compressed.
///
/// # Errors
/// As [`write()`].
pub fn write_archive<'a>(arrays: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<Vec<u8>, CodecError> {
    let failed = |error: &dyn std::fmt::Display| {
        CodecError::UnsupportedMedia(format!("the outputs make no .npz archive: {error}"))
    };
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, tensor) in arrays {
        let content = write(&format!("outputs.{name}"), tensor)?;
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .large_file(u32::try_from(content.len()).is_err());
        archive.start_file(format!("{name}.npy"), options).map_err(|error| failed(&error))?;
        archive.write_all(&content).map_err(|error| failed(&error))?;
    }
    Ok(archive.finish().map_err(|error| failed(&error))?.into_inner())
}

fn descr_of(dtype: DType) -> Option<&'static str> {
    NUMBERS.iter().find(|row| row.1 == dtype).map(|row| row.2)
}

/// Numbers: kind and size in a type string, the type, and the type string written.
const NUMBERS: [(&str, DType, &str); 12] = [
    ("b1", DType::Bool, "|b1"),
    ("u1", DType::Uint8, "|u1"),
    ("u2", DType::Uint16, "<u2"),
    ("u4", DType::Uint32, "<u4"),
    ("u8", DType::Uint64, "<u8"),
    ("i1", DType::Int8, "|i1"),
    ("i2", DType::Int16, "<i2"),
    ("i4", DType::Int32, "<i4"),
    ("i8", DType::Int64, "<i8"),
    ("f2", DType::Fp16, "<f2"),
    ("f4", DType::Fp32, "<f4"),
    ("f8", DType::Fp64, "<f8"),
];

/// An element type as a `.npy` file names it.
struct Descr {
    kind: Kind,
    /// Bytes of one element, at least 1.
    size: usize,
    big_endian: bool,
}

enum Kind {
    Number(DType),
    Unicode,
    Bytes,
}

impl Descr {
    fn is_text(&self) -> bool {
        matches!(self.kind, Kind::Unicode | Kind::Bytes)
    }

    fn parse(field: &str, descr: &str) -> Result<Descr, CodecError> {
        let (big_endian, code) = match descr.split_at_checked(1) {
            Some((">", code)) => (true, code),
            Some(("<" | "|" | "=", code)) => (false, code),
            _ => (false, descr),
        };
        if let Some((_, dtype, _)) = NUMBERS.iter().find(|row| row.0 == code) {
            return Ok(Descr { kind: Kind::Number(*dtype), size: dtype.size().unwrap_or(1), big_endian });
        }
        let unsupported = |problem: &str| {
            let descr = clip(descr);
            Err(CodecError::UnsupportedMedia(format!("{field}: the array is of NumPy type {descr:?}; {problem}")))
        };
        let (kind, length) = code.split_at_checked(1).unwrap_or((code, ""));
        match kind {
            "U" | "S" => {
                let unit = if kind == "U" { 4 } else { 1 };
                // Elements of no bytes would make any number of strings out of an empty file.
                let size =
                    length.parse::<usize>().ok().and_then(|length| length.checked_mul(unit)).filter(|&size| size > 0);
                let Some(size) = size else { return unsupported("strings need a length from 1") };
                Ok(Descr { kind: if kind == "U" { Kind::Unicode } else { Kind::Bytes }, size, big_endian })
            }
            "O" => unsupported("objects are pickled Python and never read; convert them, strings with astype('U')"),
            "V" => unsupported(
                "raw elements do not say what they are; send BF16, 8-bit floats and 4-bit integers as safetensors or as binary data by the Open Inference Protocol",
            ),
            "c" => unsupported("complex numbers are not served"),
            "M" | "m" => unsupported("times are not served; send them as int64"),
            _ => unsupported("booleans, integers, floats of 2, 4 and 8 bytes, U and S are read"),
        }
    }
}

struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

/// Splits a file into its header and its payload.
fn split(field: &str, bytes: &Bytes) -> Result<(Header, Bytes), CodecError> {
    let malformed = |problem: &str| CodecError::Malformed(format!("{field}: not an .npy file: {problem}"));
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| malformed("it does not begin with \\x93NUMPY"))?;
    let (length, rest) = match rest {
        [1, _, a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        [2 | 3, _, a, b, c, d, rest @ ..] => {
            let length = u32::from_le_bytes([*a, *b, *c, *d]);
            (usize::try_from(length).unwrap_or(usize::MAX), rest)
        }
        [version, _, ..] if *version > 3 => return Err(malformed(&format!("version {version} is not known"))),
        _ => return Err(malformed("it ends in the header")),
    };
    if length > MAX_HEADER_BYTES {
        return Err(malformed(&format!("the header of {length} bytes is longer than {MAX_HEADER_BYTES}")));
    }
    let (header, payload) = rest.split_at_checked(length).ok_or_else(|| malformed("it ends in the header"))?;
    // Version 1 and 2 are Latin-1, but nothing outside of ASCII has a meaning in a plain type.
    let header = std::str::from_utf8(header).map_err(|_| malformed("the header is not text"))?;
    let header = Literal { rest: header }.header().map_err(|problem| malformed(&problem))?;
    Ok((header, bytes.slice_ref(payload)))
}

/// A reader of the Python literal in a header: a dictionary of strings, booleans and tuples of integers.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn header(mut self) -> Result<Header, String> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.accept('}') {
            let key = self.string()?;
            self.expect(':')?;
            let doubled = match key {
                "descr" => descr.replace(self.descr()?.to_owned()).is_some(),
                "fortran_order" => fortran_order.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.tuple()?).is_some(),
                other => return Err(format!("the header has the unknown key {:?}", clip(other))),
            };
            if doubled {
                return Err(format!("the header has the key {key:?} twice"));
            }
            if !self.accept(',') {
                self.expect('}')?;
                break;
            }
        }
        if !self.rest.trim().is_empty() {
            return Err("text follows the header's dictionary".into());
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => Ok(Header { descr, fortran_order, shape }),
            _ => Err("the header lacks descr, fortran_order or shape".into()),
        }
    }

    fn accept(&mut self, symbol: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, symbol: char) -> Result<(), String> {
        match self.accept(symbol) {
            true => Ok(()),
            false => Err(format!("the header has no {symbol:?} where one is due")),
        }
    }

    fn descr(&mut self) -> Result<&'a str, String> {
        self.rest = self.rest.trim_start();
        if self.rest.starts_with(['[', '(']) {
            return Err("it is a structured array; send its fields as arrays of their own".into());
        }
        self.string()
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.accept('\'') {
            '\''
        } else {
            self.expect('"')?;
            '"'
        };
        let (text, rest) = self.rest.split_once(quote).ok_or("the header has a string without end")?;
        if text.contains('\\') {
            return Err("the header has an escaped string".into());
        }
        self.rest = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.rest = self.rest.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err("fortran_order is neither True nor False".into())
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut dims = Vec::new();
        self.expect('(')?;
        while !self.accept(')') {
            self.rest = self.rest.trim_start();
            let end = self.rest.find(|symbol: char| !symbol.is_ascii_digit()).unwrap_or(self.rest.len());
            let (digits, rest) = self.rest.split_at_checked(end).unwrap_or(("", self.rest));
            dims.push(digits.parse().map_err(|_| "shape is not a tuple of whole numbers".to_owned())?);
            // Python 2 wrote long integers as `3L`.
            self.rest = rest.strip_prefix('L').unwrap_or(rest);
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(dims)
    }
}

/// Elements of `size` bytes with their bytes in reverse order.
fn swapped(bytes: &[u8], size: usize) -> Vec<u8> {
    let mut swapped = bytes.to_vec();
    swapped.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    swapped
}

/// Elements of `size` bytes from column-major to row-major order. `shape` has no 0.
fn to_c_order(bytes: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    // In Fortran order the first axis varies fastest.
    let strides: Vec<usize> = shape
        .iter()
        .scan(1usize, |stride, &dim| {
            let current = *stride;
            *stride *= dim;
            Some(current)
        })
        .collect();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = vec![0usize; shape.len()];
    let mut offset = 0usize;
    while out.len() < bytes.len() {
        out.extend_from_slice(bytes.get(offset * size..(offset + 1) * size).unwrap_or_default());
        // Count up like an odometer, the last axis fastest.
        for ((position, &dim), &stride) in index.iter_mut().zip(shape).zip(&strides).rev() {
            *position += 1;
            offset += stride;
            if *position < dim {
                break;
            }
            offset -= stride * dim;
            *position = 0;
        }
    }
    out
}

fn unicode(field: &str, index: usize, chunk: &[u8], big_endian: bool) -> Result<String, CodecError> {
    let codes: Vec<u32> = chunk
        .chunks_exact(4)
        .filter_map(|code| code.try_into().ok())
        .map(|code| if big_endian { u32::from_be_bytes(code) } else { u32::from_le_bytes(code) })
        .collect();
    let end = codes.iter().rposition(|&code| code != 0).map_or(0, |last| last + 1);
    codes.iter().take(end).map(|&code| char::from_u32(code)).collect::<Option<String>>().ok_or_else(|| {
        CodecError::unprocessable(field, format!("element {index} holds a number that is no Unicode character"))
    })
}

fn byte_text(field: &str, index: usize, chunk: &[u8]) -> Result<String, CodecError> {
    let end = chunk.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let text = std::str::from_utf8(chunk.get(..end).unwrap_or_default());
    text.map(str::to_owned).map_err(|_| CodecError::unprocessable(field, format!("element {index} is not UTF-8 text")))
}

/// Strings as an array of equally long elements.
fn unicode_payload(field: &str, tensor: &Tensor) -> Result<(String, Option<Vec<u8>>), CodecError> {
    let strings = tensor.strings();
    let longest = strings.iter().map(|text| text.chars().count()).max().unwrap_or(0).max(1);
    let used: usize = strings.iter().map(|text| text.len() + STRING_WEIGHT).sum();
    // One long string among many short ones would blow the array up.
    let size = strings.len().checked_mul(longest).and_then(|count| count.checked_mul(4));
    let Some(size) = size.filter(|&size| size <= used.saturating_mul(64).max(16 << 20)) else {
        return Err(CodecError::TooLarge(format!(
            "{field}: NumPy's format pads every string to the longest, which has {longest} characters; ask for JSON"
        )));
    };
    let mut payload = Vec::with_capacity(size);
    for text in strings {
        let mut count = 0;
        for character in text.chars() {
            payload.extend_from_slice(&u32::from(character).to_le_bytes());
            count += 1;
        }
        payload.resize(payload.len() + (longest - count) * 4, 0);
    }
    Ok((format!("<U{longest}"), Some(payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(descr: &str, fortran: &str, shape: &str, payload: &[u8]) -> Bytes {
        with_header(&format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n"), payload)
    }

    fn with_header(header: &str, payload: &[u8]) -> Bytes {
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&[1, 0]);
        file.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(payload);
        file.into()
    }

    #[track_caller]
    fn check(bytes: &Bytes, expected: &str) {
        let got = match read("inputs.x", bytes, 1600) {
            Err(error) => error.to_string(),
            Ok(tensor) => {
                let mut text = Vec::new();
                crate::codec::json::write_nested(&tensor, &mut text);
                format!("{}{:?}{}", tensor.dtype(), tensor.shape(), String::from_utf8(text).unwrap())
            }
        };
        assert!(got.contains(expected), " got: {got}\nwant: {expected}");
    }

    #[test]
    fn every_type_survives_the_round_trip_without_a_copy() {
        for (_, dtype, _) in NUMBERS {
            for shape in [vec![], vec![6], vec![2, 3], vec![0, 3], vec![1, 1, 1, 6]] {
                let count: usize = shape.iter().product();
                let size = crate::tensor::byte_len(dtype, count).unwrap();
                let data: Vec<u8> = (0..size).map(|byte| (byte % 2) as u8).collect();
                let tensor = Tensor::from_bytes(dtype, shape.clone(), data.clone()).unwrap();
                let file = Bytes::from(write("y", &tensor).unwrap());
                let back = read("x", &file, 1600).unwrap();
                assert_eq!((back.dtype(), back.shape(), back.bytes()), (dtype, shape.as_slice(), data.as_slice()));
                assert!(data.is_empty() || file.as_ptr_range().contains(&back.bytes().as_ptr()));
                assert_eq!((file.len() - size) % 64, 0);
            }
        }
        let strings = Tensor::from_strings(vec![2], vec!["é".into(), "abc".into()]).unwrap();
        assert_eq!(read("x", &write("y", &strings).unwrap().into(), 1600).unwrap().strings(), strings.strings());
    }

    #[test]
    fn other_byte_orders_and_axis_orders_are_converted() {
        check(&file(">f4", "False", "(1,)", &1.5f32.to_be_bytes()), "FP32[1][1.5]");
        check(&file(">i8", "False", "()", &7i64.to_be_bytes()), "INT64[]7");
        check(&file("|u1", "True", "(2, 3)", &[1, 4, 2, 5, 3, 6]), "UINT8[2, 3][[1,2,3],[4,5,6]]");
        check(&file("|u1", "True", "(2, 1, 2)", &[1, 3, 2, 4]), "UINT8[2, 1, 2][[[1,2]],[[3,4]]]");
        check(&file(">u2", "True", "(2, 2)", &[0, 1, 0, 3, 0, 2, 0, 4]), "UINT16[2, 2][[1,2],[3,4]]");
        check(&file("|u1", "True", "(0, 3)", &[]), "UINT8[0, 3][]");
        check(&file("<U2", "False", "(2,)", b"h\0\0\0i\0\0\0x\0\0\0\0\0\0\0"), r#"BYTES[2]["hi","x"]"#);
        check(&file(">U1", "False", "(1,)", b"\0\0\0h"), r#"BYTES[1]["h"]"#);
        check(&file("|S3", "False", "(2,)", b"abcd\0\0"), r#"BYTES[2]["abc","d"]"#);
        check(&with_header("{\"shape\":(1L,),\"fortran_order\":False,\"descr\":\"|i1\"}", &[255]), "INT8[1][-1]");
    }

    #[test]
    fn what_is_no_array_of_a_served_type_is_refused() {
        check(&Bytes::new(), "does not begin with");
        check(&Bytes::from_static(b"\x93NUMPY"), "it ends in the header");
        check(&Bytes::from_static(b"\x93NUMPY\x01\0\xff\xff"), "it ends in the header");
        check(&Bytes::from_static(b"\x93NUMPY\x02\0\xff\xff\xff\xff"), "longer than 65536");
        check(&Bytes::from_static(b"\x93NUMPY\x04\0\0\0\0\0"), "version 4 is not known");
        check(&with_header("", &[]), "no '{'");
        check(&with_header("{'descr': '<f4'}", &[]), "lacks descr, fortran_order or shape");
        check(&with_header("{'descr': '<f4', 'descr': '<f4'}", &[]), "twice");
        check(&with_header("{'evil': __import__('os')}", &[]), "unknown key \"evil\"");
        check(&with_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ()}", &[]), "structured array");
        check(&with_header("{'descr': '<f4', 'fortran_order': 0, 'shape': ()}", &[]), "neither True nor False");
        check(&file("<f4", "False", "(-1,)", &[]), "not a tuple of whole numbers");
        check(&file("<f4", "False", "(99999999999999999999999,)", &[]), "not a tuple of whole numbers");
        check(&file("<f4", "False", "(1 2)", &[]), "no ')'");
        check(&file("<f4", "False", "(1,)} x {(", &[]), "text follows");
        check(&file("<f4", "False", "(2,)", &[0; 4]), "needs 8 bytes, the file has 4");
        check(&file("<f4", "False", "(1,)", &[0; 5]), "needs 4 bytes, the file has 5");
        check(&file("<f4", "False", "(4, 1152921504606846978)", &[]), "max_tensor_elements");
        check(&file("<f4", "False", "(4611686018427387904, 0)", &[]), "max_tensor_elements");
        check(&file("|b1", "False", "(1,)", &[2]), "only 0 and 1");
        check(&file("|O", "False", "(1,)", b"\x80\x04."), "never read");
        check(&file("|V2", "False", "(1,)", &[0; 2]), "raw elements do not say");
        check(&file("<c8", "False", "(1,)", &[0; 8]), "complex");
        check(&file("<M8[ns]", "False", "(1,)", &[0; 8]), "times are not served");
        check(&file("<f3", "False", "(1,)", &[0; 3]), "floats of 2, 4 and 8 bytes");
        check(&file("", "False", "(1,)", &[]), "floats of 2, 4 and 8 bytes");
        check(&file("é", "False", "(1,)", &[]), "floats of 2, 4 and 8 bytes");
        check(&file("<U0", "False", "(100,)", &[]), "a length from 1");
        check(&file("<U18446744073709551615", "False", "(1,)", &[]), "a length from 1");
        check(&file("|S1", "False", "(101,)", &[0; 101]), "more than 100 strings");
        check(&file("<U1", "False", "(1,)", &[0, 0, 0xff, 0]), "no Unicode character");
        check(&file("|S1", "False", "(1,)", &[0xff]), "not UTF-8");
    }

    #[test]
    fn types_that_numpy_has_not_are_refused_on_writing() {
        for (dtype, size) in [(DType::Bf16, 2), (DType::Int4, 1), (DType::Fp8E5M2, 1)] {
            let tensor = Tensor::from_bytes(dtype, vec![1], vec![0; size]).unwrap();
            let error = write("outputs.y", &tensor).unwrap_err();
            assert!(error.to_string().contains("safetensors"), "{error}");
        }
        let mut strings = vec![String::new(); 1000];
        strings.push("x".repeat(1 << 20));
        let lopsided = Tensor::from_strings(vec![1001], strings).unwrap();
        assert!(matches!(write("outputs.y", &lopsided), Err(CodecError::TooLarge(_))));
    }

    fn zipped(entries: &[(&str, &[u8])], method: zip::CompressionMethod) -> Bytes {
        let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in entries {
            archive.start_file(*name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
            archive.write_all(content).unwrap();
        }
        archive.finish().unwrap().into_inner().into()
    }

    #[test]
    fn archives_are_read_by_name_in_their_order() {
        let x = Tensor::from_vec(DType::Fp32, vec![2], vec![1f32, 2.0]).unwrap();
        let y = Tensor::from_vec(DType::Int64, vec![], vec![7i64]).unwrap();
        let archive = Bytes::from(write_archive([("b/x", &x), ("a", &y)]).unwrap());
        assert!(is_npz(&archive) && !is_npy(&archive));
        let back = read_archive(&archive, 1600, 1000).unwrap();
        assert_eq!(back.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["b/x", "a"]);
        assert_eq!(back[0].1.elements::<f32>().unwrap().as_ref(), [1.0, 2.0]);
        let npy = write("x", &x).unwrap();
        let deflated = zipped(&[("x.npy", &npy)], zip::CompressionMethod::Deflated);
        assert_eq!(read_archive(&deflated, 1600, 1000).unwrap()[0].0, "x");
    }

    #[test]
    fn archives_are_bounded_in_entries_and_size() {
        #[track_caller]
        fn check(bytes: &Bytes, expected: &str) {
            let error = read_archive(bytes, 1600, 1 << 16).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let names: Vec<String> = (0..65).map(|index| format!("{index}.npy")).collect();
        let entries: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
        check(&zipped(&entries, zip::CompressionMethod::Stored), "at most 64 are read");
        let bomb = vec![0; 1 << 20];
        check(&zipped(&[("x.npy", &bomb)], zip::CompressionMethod::Deflated), "unpacks to more than 65536 bytes");
        check(&zipped(&[("x.npy", b"hi")], zip::CompressionMethod::Stored), "inputs.x: not an .npy file");
        check(&Bytes::from_static(b"PK\x03\x04"), "not an .npz archive");
        check(&Bytes::new(), "not an .npz archive");
        let npy = write("x", &Tensor::from_vec(DType::Uint8, vec![1], vec![1u8]).unwrap()).unwrap();
        check(&zipped(&[("x.npy", &npy), ("x", &npy)], zip::CompressionMethod::Stored), "\"x\" twice");
        let mut damaged = zipped(&[("x.npy", &npy)], zip::CompressionMethod::Stored).to_vec();
        let middle = damaged.windows(npy.len()).position(|window| window == npy).unwrap() + npy.len() - 1;
        damaged[middle] ^= 1;
        check(&damaged.into(), "is damaged");
    }

    #[test]
    fn cut_and_flipped_files_never_panic() {
        let x = Tensor::from_vec(DType::Fp32, vec![2, 2], vec![1f32; 4]).unwrap();
        let npy = write("x", &x).unwrap();
        let npz = write_archive([("x", &x)]).unwrap();
        for whole in [npy, npz] {
            for index in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[index] ^= 0x15;
                for bytes in [Bytes::from(flipped), Bytes::copy_from_slice(&whole[..index])] {
                    let _ = read("x", &bytes, 1600);
                    let _ = read_archive(&bytes, 1600, 1 << 16);
                    let _ = crate::codec::safetensors::read(&bytes, 1600);
                }
            }
        }
    }
}
