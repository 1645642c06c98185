//! What must be known of an OGG Vorbis file before a decoder is made for it.
//!
//! The setup of a Vorbis stream describes its tables in a few bytes each, and a decoder makes them whole: without a bound
//! on their sum a file of kilobytes takes gigabytes. Knows the syntax of the Vorbis I specification
//! (<https://xiph.org/vorbis/doc/Vorbis_I_spec.html>, 3.2.1) as far as the tables go, and nothing of sound.

/// Numbers in all tables of one stream. Those of libvorbis have about 60,000 at any quality.
const MAX_NUMBERS: u64 = 4 << 20;
/// The identification header and the marker of the setup header behind it.
const IDENT_BYTES: usize = 30;
const MARKER_BYTES: usize = 7;

/// Whether the last page of an OGG file is whole and says that it is the last (RFC 3533, 6).
pub(super) fn ogg_is_complete(bytes: &[u8]) -> bool {
    // A page is at most 65,307 bytes, so its beginning cannot be far from the end; what follows the last page is not ours.
    let mut end = bytes.len();
    while let Some(at) = bytes.get(..end).and_then(|bytes| bytes.windows(4).rposition(|window| window == b"OggS")) {
        end = at + 3;
        let page = bytes.get(at..).unwrap_or_default();
        // The same four bytes may stand in the data: a page also has version 0.
        let (Some(0), Some(flags), Some(segments)) = (page.get(4), page.get(5), page.get(26)) else { continue };
        let Some(lengths) = page.get(27..27 + usize::from(*segments)) else { continue };
        let length: usize = lengths.iter().map(|&length| usize::from(length)).sum();
        return flags & 4 != 0 && page.len() >= 27 + lengths.len() + length;
    }
    false
}

/// Whether the tables of the stream whose identification and setup headers are `headers`, one after the other, have a size
/// that real ones have. Malformed headers are left for the decoder to name.
pub(super) fn tables_are_small(headers: &[u8]) -> bool {
    table_numbers(headers).is_none_or(|numbers| numbers <= MAX_NUMBERS)
}

/// The numbers in all tables, or in the first ones where these are too many already; `None` where they are malformed.
pub(super) fn table_numbers(headers: &[u8]) -> Option<u64> {
    let setup = headers.get(IDENT_BYTES + MARKER_BYTES..)?;
    let mut bits = Bits { bytes: setup, at: 0 };
    let mut numbers = 0u64;
    for _ in 0..=bits.take(8)? {
        numbers = numbers.saturating_add(skip_codebook(&mut bits)?);
        if numbers > MAX_NUMBERS {
            break;
        }
    }
    Some(numbers)
}

/// The numbers that one codebook's table has; `None` where it is malformed or ends early.
fn skip_codebook(bits: &mut Bits<'_>) -> Option<u64> {
    if bits.take(24)? != 0x56_43_42 {
        return None;
    }
    let dimensions = bits.take(16)?;
    let entries = bits.take(24)?;
    let size = entries.checked_mul(dimensions.max(1))?;
    if size > MAX_NUMBERS {
        return Some(size);
    }
    let ordered = bits.take(1)? == 1;
    if ordered {
        bits.take(5)?;
        let mut entry = 0;
        // One step for each length of a code word, of which there are 32.
        for _ in 0..32 {
            if entry >= entries {
                break;
            }
            entry += bits.take(width(entries - entry))?;
        }
        if entry != entries {
            return None;
        }
    } else {
        let sparse = bits.take(1)? == 1;
        for _ in 0..entries {
            if !sparse || bits.take(1)? == 1 {
                bits.take(5)?;
            }
        }
    }
    let values = match bits.take(4)? {
        0 => return Some(entries),
        1 => {
            // The largest number whose power of the dimensions is no more than the entries.
            let power = |base: u64| u32::try_from(dimensions).ok().and_then(|power| base.checked_pow(power));
            (1..=entries).take_while(|&base| power(base).is_some_and(|power| power <= entries)).last().unwrap_or(0)
        }
        2 => size,
        _ => return None,
    };
    bits.skip(64)?;
    let value_bits = bits.take(4)? + 1;
    bits.skip(1 + values.checked_mul(value_bits)?)?;
    Some(size)
}

/// Bits that it takes to write `number`.
fn width(number: u64) -> u32 {
    u64::BITS - number.leading_zeros()
}

/// Bits from the lowest of each byte on.
struct Bits<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl Bits<'_> {
    /// At most 32 bits.
    fn take(&mut self, count: u32) -> Option<u64> {
        let mut value = 0;
        for bit in 0..count {
            let byte = self.bytes.get(usize::try_from(self.at / 8).ok()?)?;
            value |= u64::from(byte >> (self.at % 8) & 1) << bit;
            self.at += 1;
        }
        Some(value)
    }

    fn skip(&mut self, count: u64) -> Option<()> {
        self.at = self.at.checked_add(count)?;
        (self.at <= self.bytes.len() as u64 * 8).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers with `count` codebooks of `entries` code words of one length each and `dimensions` numbers for each.
    fn headers(count: u64, entries: u64, dimensions: u64) -> Vec<u8> {
        let mut bits = Vec::new();
        let mut put = |value: u64, width: u32| bits.extend((0..width).map(|bit| value >> bit & 1 == 1));
        put(count - 1, 8);
        for _ in 0..count {
            put(0x56_43_42, 24);
            put(dimensions, 16);
            put(entries, 24);
            put(1, 1);
            put(16, 5);
            put(entries, width(entries));
            put(1, 4);
            put(0, 64);
            put(0, 4);
            put(0, 1);
            let values =
                (1..).take_while(|base: &u64| base.checked_pow(dimensions as u32).is_some_and(|p| p <= entries));
            put(0, values.count() as u32);
        }
        let bytes = bits.chunks(8).map(|byte| byte.iter().rev().fold(0u8, |byte, &bit| byte << 1 | u8::from(bit)));
        [vec![0; IDENT_BYTES + MARKER_BYTES], bytes.collect()].concat()
    }

    #[test]
    fn tables_out_of_nothing_are_refused() {
        let bomb = headers(64, 1 << 17, 32);
        assert!(bomb.len() < 2_000 && !tables_are_small(&bomb));
        assert!(!tables_are_small(&headers(2, 1 << 17, 17)));
        assert!(tables_are_small(&headers(1, 1 << 17, 16)));
        assert!(tables_are_small(&headers(256, 256, 8)));
        // What is malformed is for the decoder to name.
        assert!(tables_are_small(&[]) && tables_are_small(&[7; 500]));
    }

    #[test]
    fn a_file_without_its_last_page_is_not_complete() {
        let page = |flags: u8, data: &[u8]| {
            let mut page = b"OggS\0".to_vec();
            page.push(flags);
            page.extend([0; 20]);
            page.extend([1, data.len() as u8]);
            page.extend(data);
            page
        };
        let whole = [page(2, b"first"), page(0, b"OggS\x01"), page(4, b"last OggS")].concat();
        assert!(ogg_is_complete(&whole));
        assert!(ogg_is_complete(&[whole.as_slice(), b"behind"].concat()));
        assert!(!ogg_is_complete(&whole[..whole.len() - 1]));
        assert!(!ogg_is_complete(&[page(2, b"first"), page(0, b"second")].concat()));
        assert!(!ogg_is_complete(b""));
    }
}
