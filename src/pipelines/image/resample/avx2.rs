//! The same on a processor with AVX2: colour rows four at a time, four pixels of each at once.
//!
//! Weights have 23 bits and a sign, and an instruction multiplies 16: each is split into its upper bits and its lower twelve,
//! whose sums are put together at the end. Nothing is rounded in between, so the numbers are those of the plain way.

use super::{AlongRows, Axis, BLOCK, Filter, HALF, PRECISION, Picture, Weights, pixel, portable, run};
use bytemuck::cast;
use pulp::NullaryFnOnce;
use pulp::x86::V3;
use std::arch::x86_64::{__m128i, __m256i};

/// Bits of a weight's lower part.
const LOW: u32 = 12;
const LOWER: i32 = (1 << LOW) - 1;
/// Pixels that a group of weights is for, and the bytes that are read for them.
const GROUP: usize = 4;
const BYTES: usize = 16;

/// Weights of [`GROUP`] pixels: two neighbours in each number, the first one's in its lower half.
#[derive(Clone, Copy, Default)]
struct Group {
    high: [i32; 2],
    low: [i32; 2],
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

/// The weights of a row's pixels in groups, equally many for each pixel.
struct Groups {
    each: usize,
    groups: Vec<Group>,
}

impl Groups {
    fn of(weights: &Weights) -> Groups {
        let each = weights.iter().map(|(_, weights)| weights.len().div_ceil(GROUP)).max().unwrap_or(0).max(1);
        let mut groups = Vec::with_capacity(weights.len() * each);
        for (at, (_, weights)) in weights.iter().enumerate() {
            groups.extend(weights.chunks(GROUP).map(Group::of));
            groups.resize((at + 1) * each, Group::default());
        }
        Groups { each, groups }
    }
}

impl Group {
    fn of(weights: &[i32]) -> Group {
        let mut padded = [0; GROUP];
        padded.iter_mut().zip(weights).for_each(|(padded, weight)| *padded = *weight);
        let [a, b, c, d] = padded;
        let pair = |first: i32, second: i32| second << 16 | first & 0xffff;
        let high = |first: i32, second: i32| pair(first >> LOW, second >> LOW);
        let low = |first: i32, second: i32| pair(first & LOWER, second & LOWER);
        Group { high: [high(a, b), high(c, d)], low: [low(a, b), low(c, d)] }
    }
}

impl AlongRows for Colours {
    #[inline(always)]
    fn resample(&self, lines: &[u8], width: usize, weights: &Weights, targets: &mut [u8]) {
        let Colours { simd, groups } = self;
        let to_bytes = (weights.len() * 3).max(1);
        let work = Block { simd: *simd, lines, width, weights, groups: &groups.groups };
        let done = match groups.each {
            _ if lines.len() < width * BLOCK || targets.len() < to_bytes * BLOCK => 0,
            // With the number of groups known, nothing is left to be checked for each of them.
            1 => work.most(1, targets),
            2 => work.most(2, targets),
            3 => work.most(3, targets),
            4 => work.most(4, targets),
            each => work.most(each, targets),
        };
        for (line, target) in lines.chunks_exact(width).zip(targets.chunks_exact_mut(to_bytes)) {
            let (line, target) = (line.as_chunks::<3>().0, target.as_chunks_mut::<3>().0);
            for (at, target) in target.iter_mut().enumerate().skip(done) {
                let (first, weights) = weights.of(at).unwrap_or_default();
                *target = pixel(line.get(first..).unwrap_or_default(), weights);
            }
        }
    }
}

/// [`BLOCK`] rows of the picture, `width` bytes each.
struct Block<'a> {
    simd: V3,
    lines: &'a [u8],
    width: usize,
    weights: &'a Weights,
    groups: &'a [Group],
}

impl Block<'_> {
    /// All pixels but those at the end for which fewer bytes are left than are read at once. Gives how many it made.
    #[inline(always)]
    fn most(&self, each: usize, targets: &mut [u8]) -> usize {
        let bytes = (each - 1) * GROUP * 3 + BYTES;
        let Some((_, spans)) = self.weights.spans.split_last() else { return 0 };
        let fitting = spans.partition_point(|(first, _)| first * 3 + bytes <= self.width);
        // Four bytes are written for each pixel: the last one would reach into the next row.
        let count = fitting.min(spans.len().saturating_sub(1));
        let (mut lines, mut targets) = (self.lines.chunks_exact(self.width), targets.chunks_exact_mut(spans.len() * 3));
        let lines: [&[u8]; BLOCK] = std::array::from_fn(|_| lines.next().unwrap_or_default());
        let mut targets: [&mut [u8]; BLOCK] = std::array::from_fn(|_| targets.next().unwrap_or_default());
        for (at, ((first, _), groups)) in spans.iter().take(count).zip(self.groups.chunks_exact(each)).enumerate() {
            let window = lines.map(|line| line.get(first * 3..first * 3 + bytes));
            let [Some(a), Some(b), Some(c), Some(d)] = window else { return at };
            let mut sums = Sums::new(self.simd);
            for (at, group) in groups.iter().enumerate() {
                let cut = |row: &[u8]| -> [u8; BYTES] {
                    let bytes = row.get(at * GROUP * 3..at * GROUP * 3 + BYTES);
                    bytes.and_then(|bytes| bytes.first_chunk()).copied().unwrap_or_default()
                };
                sums.add(self.simd, [a, b, c, d].map(cut), group);
            }
            for (target, levels) in targets.iter_mut().zip(sums.levels(self.simd)) {
                if let Some(target) = target.get_mut(at * 3..at * 3 + 4) {
                    target.copy_from_slice(&levels);
                }
            }
        }
        count
    }
}

/// Of one pixel of each row the channels' sums: two rows' in the halves of each register.
struct Sums {
    high: [__m256i; BLOCK / 2],
    low: [__m256i; BLOCK / 2],
}

impl Sums {
    #[inline(always)]
    fn new(simd: V3) -> Sums {
        let half = simd.avx._mm256_set1_epi32(HALF);
        Sums { high: [simd.avx._mm256_setzero_si256(); BLOCK / 2], low: [half; BLOCK / 2] }
    }

    #[inline(always)]
    fn add(&mut self, simd: V3, bytes: [[u8; BYTES]; BLOCK], group: &Group) {
        // Pairs of neighbours, channel by channel, as numbers of 16 bits.
        const NONE: i8 = -1;
        const PAIRS: [[i8; 16]; 2] = [
            [0, NONE, 3, NONE, 1, NONE, 4, NONE, 2, NONE, 5, NONE, NONE, NONE, NONE, NONE],
            [6, NONE, 9, NONE, 7, NONE, 10, NONE, 8, NONE, 11, NONE, NONE, NONE, NONE, NONE],
        ];
        let (avx, avx2) = (simd.avx, simd.avx2);
        let [a, b, c, d] = bytes.map(cast::<_, __m128i>);
        let rows = [(a, b), (c, d)].map(|(a, b)| avx2._mm256_inserti128_si256::<1>(avx._mm256_castsi128_si256(a), b));
        for ((pairs, high), low) in PAIRS.iter().zip(&group.high).zip(&group.low) {
            let pairs = avx2._mm256_broadcastsi128_si256(cast(*pairs));
            let (by_high, by_low) = (avx._mm256_set1_epi32(*high), avx._mm256_set1_epi32(*low));
            for ((row, high), low) in rows.iter().zip(&mut self.high).zip(&mut self.low) {
                let values = avx2._mm256_shuffle_epi8(*row, pairs);
                *high = avx2._mm256_add_epi32(*high, avx2._mm256_madd_epi16(values, by_high));
                *low = avx2._mm256_add_epi32(*low, avx2._mm256_madd_epi16(values, by_low));
            }
        }
    }

    #[inline(always)]
    fn levels(self, simd: V3) -> [[u8; 4]; BLOCK] {
        let avx2 = simd.avx2;
        let Sums { high: [ab_high, cd_high], low: [ab_low, cd_low] } = self;
        let [ab, cd] = [(ab_high, ab_low), (cd_high, cd_low)].map(|(high, low)| {
            let whole = avx2._mm256_add_epi32(avx2._mm256_slli_epi32::<{ LOW as i32 }>(high), low);
            avx2._mm256_srai_epi32::<{ PRECISION as i32 }>(whole)
        });
        let levels = avx2._mm256_packs_epi32(ab, cd);
        let levels = avx2._mm256_packus_epi16(levels, levels);
        // A row's channels and nothing, in this order.
        let [a, c, _, _, b, d, _, _]: [[u8; 4]; 8] = cast(levels);
        [a, b, c, d]
    }
}
