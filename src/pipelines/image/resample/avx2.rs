//! The same on a processor with AVX2: colour rows four at a time, four pixels of each at once.
//!
//! Weights have 23 bits and a sign, and an instruction multiplies 16: each is split into its upper bits and its lower twelve,
//! whose sums are put together at the end. Nothing is rounded in between, so the numbers are those of the plain way.

use super::{AlongRows, Axis, BLOCK, Filter, HALF, PRECISION, Picture, Weights, across, pixel, portable, run};
use bytemuck::cast;
use pulp::NullaryFnOnce;
use pulp::x86::V3;
use std::arch::x86_64::{__m128i, __m256i};

/// Bits of a weight's lower part.
const LOW: u32 = 12;
/// Pixels that a group of weights is for, and the bytes that are read for them.
const GROUP: usize = 4;
const BYTES: usize = 16;

/// Weights of [`GROUP`] pixels: in each half of 16 bytes those of two neighbours, once for each channel.
#[derive(Clone, Copy)]
struct Group {
    high: [i16; 16],
    low: [i16; 16],
}

/// The picture, where the processor can.
pub(super) fn resample(picture: &Picture, rows: Axis, columns: Axis, filter: Filter) -> Option<Picture> {
    let simd = V3::try_new()?;
    Some(simd.vectorize(Work { simd, picture, rows, columns, filter }))
}

/// What is compiled for the processor: no closure, as one is not inlined for certain.
struct Work<'a> {
    simd: V3,
    picture: &'a Picture,
    rows: Axis,
    columns: Axis,
    filter: Filter,
}

impl NullaryFnOnce for Work<'_> {
    type Output = Picture;

    #[inline(always)]
    fn call(self) -> Picture {
        let Work { simd, picture, rows, columns, filter } = self;
        if picture.channels != 3 {
            return portable(picture, rows, columns, filter);
        }
        let groups = Groups::of(&columns.weights(filter));
        run(picture, rows, columns, filter, &Colours { simd, groups })
    }
}

struct Colours {
    simd: V3,
    groups: Groups,
}

/// The weights of a row's pixels in groups; those of pixel `n` are `ends[n - 1]..ends[n]`.
struct Groups {
    groups: Vec<Group>,
    ends: Vec<usize>,
}

impl Groups {
    fn of(weights: &Weights) -> Groups {
        let (mut groups, mut ends) = (Vec::new(), Vec::new());
        for (_, weights) in weights.iter() {
            groups.extend(weights.chunks(GROUP).map(|weights| {
                let mut group = Group { high: [0; 16], low: [0; 16] };
                for (at, weight) in weights.iter().enumerate() {
                    let places = [0, 2, 4].map(|channel| at / 2 * 8 + channel + at % 2);
                    for place in places {
                        if let (Some(high), Some(low)) = (group.high.get_mut(place), group.low.get_mut(place)) {
                            (*high, *low) = ((weight >> LOW) as i16, (weight & ((1 << LOW) - 1)) as i16);
                        }
                    }
                }
                group
            }));
            ends.push(groups.len());
        }
        Groups { groups, ends }
    }
}

impl AlongRows for Colours {
    #[inline(always)]
    fn resample(&self, lines: &[u8], width: usize, weights: &Weights, targets: &mut [u8]) {
        let Colours { simd, groups } = self;
        let mut rows = lines.chunks_exact(width);
        let mut targets = targets.chunks_exact_mut((groups.ends.len() * 3).max(1));
        let (Some(a), Some(b), Some(c), Some(d)) = (rows.next(), rows.next(), rows.next(), rows.next()) else {
            return lines.chunks_exact(width).zip(targets).for_each(|(line, target)| across(line, 3, weights, target));
        };
        let rows: [&[u8]; BLOCK] = [a, b, c, d];
        let mut target = || targets.next().unwrap_or_default().as_chunks_mut::<3>().0.iter_mut();
        let (mut a, mut b, mut c, mut d) = (target(), target(), target(), target());
        let mut start = 0;
        for ((first, weights), &end) in weights.iter().zip(&groups.ends) {
            let used = groups.groups.get(start..end).unwrap_or_default();
            start = end;
            let window = first * 3..(first + used.len() * GROUP) * 3 + BYTES - GROUP * 3;
            let pixels = match rows.map(|row| row.get(window.clone())) {
                [Some(a), Some(b), Some(c), Some(d)] => four(*simd, [a, b, c, d], used),
                // Near the end of a row there are fewer bytes than are read at once.
                _ => rows.map(|row| pixel(row.as_chunks::<3>().0.get(first..).unwrap_or_default(), weights)),
            };
            if let (Some(a), Some(b), Some(c), Some(d)) = (a.next(), b.next(), c.next(), d.next()) {
                [*a, *b, *c, *d] = pixels;
            }
        }
    }
}

/// A pixel of each row. The rows begin with the first pixel that is read, and have four bytes more than the groups need.
#[inline(always)]
fn four(simd: V3, rows: [&[u8]; BLOCK], groups: &[Group]) -> [[u8; 3]; BLOCK] {
    // With the number of groups known, nothing is left to be checked for each of them.
    match groups.len() {
        1 => fixed::<1, 16>(simd, rows, groups),
        2 => fixed::<2, 28>(simd, rows, groups),
        3 => fixed::<3, 40>(simd, rows, groups),
        4 => fixed::<4, 52>(simd, rows, groups),
        _ => {
            let mut sums = Sums::new(simd);
            for (at, group) in groups.iter().enumerate() {
                let bytes = |row: &[u8]| row.get(at * GROUP * 3..).and_then(<[u8]>::first_chunk::<BYTES>).copied();
                let [a, b, c, d] = rows;
                let bytes = [bytes(a), bytes(b), bytes(c), bytes(d)].map(Option::unwrap_or_default);
                sums.add(simd, bytes, group);
            }
            sums.levels(simd)
        }
    }
}

/// The same for `N` groups that need `LENGTH` bytes.
#[inline(always)]
fn fixed<const N: usize, const LENGTH: usize>(simd: V3, rows: [&[u8]; BLOCK], groups: &[Group]) -> [[u8; 3]; BLOCK] {
    let [a, b, c, d] = rows;
    let rows = (a.first_chunk(), b.first_chunk(), c.first_chunk(), d.first_chunk());
    let ((Some(a), Some(b), Some(c), Some(d)), Some(groups)) = (rows, groups.first_chunk::<N>()) else {
        return [[0; 3]; BLOCK];
    };
    let rows: [&[u8; LENGTH]; BLOCK] = [a, b, c, d];
    let mut sums = Sums::new(simd);
    for (at, group) in groups.iter().enumerate() {
        let mut bytes = [[0; BYTES]; BLOCK];
        for (bytes, row) in bytes.iter_mut().zip(rows) {
            if let Some(from) = row.get(at * GROUP * 3..at * GROUP * 3 + BYTES) {
                bytes.copy_from_slice(from);
            }
        }
        sums.add(simd, bytes, group);
    }
    sums.levels(simd)
}

/// Of one pixel of each row: in each half the channels' sums over every other pair of neighbours.
struct Sums {
    high: [__m256i; BLOCK],
    low: [__m256i; BLOCK],
}

impl Sums {
    #[inline(always)]
    fn new(simd: V3) -> Sums {
        let nothing = simd.avx._mm256_setzero_si256();
        let half: __m256i = cast([HALF, HALF, HALF, 0, 0, 0, 0, 0]);
        Sums { high: [nothing; BLOCK], low: [half; BLOCK] }
    }

    #[inline(always)]
    fn add(&mut self, simd: V3, bytes: [[u8; BYTES]; BLOCK], group: &Group) {
        // Pairs of neighbours, channel by channel: the first two pixels to the lower half, the next two to the upper one.
        const NONE: i8 = -1;
        #[rustfmt::skip]
        const PAIRS: [i8; 32] = [
            0, NONE, 3, NONE, 1, NONE, 4, NONE, 2, NONE, 5, NONE, NONE, NONE, NONE, NONE,
            6, NONE, 9, NONE, 7, NONE, 10, NONE, 8, NONE, 11, NONE, NONE, NONE, NONE, NONE,
        ];
        let (avx2, pairs) = (simd.avx2, cast(PAIRS));
        let (by_high, by_low): (__m256i, __m256i) = (cast(group.high), cast(group.low));
        for ((bytes, high), low) in bytes.iter().zip(&mut self.high).zip(&mut self.low) {
            let bytes: __m128i = cast(*bytes);
            let values = avx2._mm256_shuffle_epi8(avx2._mm256_broadcastsi128_si256(bytes), pairs);
            *high = avx2._mm256_add_epi32(*high, avx2._mm256_madd_epi16(values, by_high));
            *low = avx2._mm256_add_epi32(*low, avx2._mm256_madd_epi16(values, by_low));
        }
    }

    #[inline(always)]
    fn levels(self, simd: V3) -> [[u8; 3]; BLOCK] {
        let avx2 = simd.avx2;
        let mut whole = self.high;
        for (high, low) in whole.iter_mut().zip(self.low) {
            *high = avx2._mm256_add_epi32(avx2._mm256_slli_epi32::<{ LOW as i32 }>(*high), low);
        }
        let [a, b, c, d] = whole;
        // The halves of two rows are added up at once.
        let (lower, upper) =
            (avx2._mm256_permute2x128_si256::<0x20>(a, b), avx2._mm256_permute2x128_si256::<0x31>(a, b));
        let first = avx2._mm256_srai_epi32::<{ PRECISION as i32 }>(avx2._mm256_add_epi32(lower, upper));
        let (lower, upper) =
            (avx2._mm256_permute2x128_si256::<0x20>(c, d), avx2._mm256_permute2x128_si256::<0x31>(c, d));
        let second = avx2._mm256_srai_epi32::<{ PRECISION as i32 }>(avx2._mm256_add_epi32(lower, upper));
        let levels = avx2._mm256_packs_epi32(first, second);
        // In each half now: a row, the one after the next, and both again.
        let levels: [u8; 32] = cast(avx2._mm256_packus_epi16(levels, levels));
        let [a0, a1, a2, _, c0, c1, c2, ..] = levels;
        let [.., b0, b1, b2, _, d0, d1, d2, _, _, _, _, _, _, _, _, _] = levels;
        [[a0, a1, a2], [b0, b1, b2], [c0, c1, c2], [d0, d1, d2]]
    }
}
