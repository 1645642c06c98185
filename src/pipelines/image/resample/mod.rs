//! Resampling with the numbers of Pillow, bit for bit.
//!
//! A picture is resampled along its rows, rounded to bytes, then along its columns; the other way round where it shrinks much
//! more in height than in width, as Pillow 13 does. Weights are computed in double precision and rounded to 22
//! bits behind the point; sums are exact integers. Rounding in any other place changes one value in a hundred by one level,
//! and a model may make much of that. Rows are worked on as they are needed and forgotten after, so what lies between the
//! passes is the rows that one row of the result is made of, or less than the picture itself, however long and thin it is.
//!
//! Invariants: the weights of an axis take memory in proportion to the longer of its two sides; no panic for any size. Knows
//! no geometry: which part of the result is kept is said by [`Axis`].

#[cfg(target_arch = "x86_64")]
mod avx2;

use super::Picture;

/// Bits behind the point of a weight: eight are a level's, and two keep sums of filters with negative weights inside 32.
const PRECISION: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (PRECISION - 1);

/// Pillow's filters that weigh neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    Box,
    Bilinear,
    Hamming,
    Bicubic,
    Lanczos,
}

/// A side of the picture, and what is kept of it once it is resized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Axis {
    pub(crate) source: u32,
    /// Pixels of the whole resized side.
    pub(crate) full: u64,
    /// The first one that is kept, and how many are.
    pub(crate) offset: u64,
    pub(crate) kept: u32,
}

/// For each pixel of the result the pixels that it is made of, and their weights.
struct Weights {
    /// First pixel, and where its weights begin in `values`; they end where the next one's begin.
    spans: Vec<(usize, usize)>,
    values: Vec<i32>,
}

impl Filter {
    /// How far the filter reaches, in pixels of the smaller picture.
    fn support(self) -> f64 {
        match self {
            Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// In the order of Pillow's operations, since its rounding is part of the result.
    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let sinc = |x: f64| match x * std::f64::consts::PI {
            0.0 => 1.0,
            x => x.sin() / x,
        };
        match (self, x.abs()) {
            (Filter::Box, _) => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            (Filter::Bilinear, x) if x < 1.0 => 1.0 - x,
            (Filter::Hamming, 0.0) => 1.0,
            (Filter::Hamming, x) if x < 1.0 => {
                let x = x * std::f64::consts::PI;
                // Pillow's numbers are single ones.
                x.sin() / x * (f64::from(0.54f32) + f64::from(0.46f32) * x.cos())
            }
            (Filter::Bicubic, x) if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            (Filter::Bicubic, x) if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            (Filter::Lanczos, _) if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

impl Axis {
    /// Whether pixels of the side stay as they are.
    fn is_untouched(&self) -> bool {
        self.full == u64::from(self.source)
    }

    fn weights(&self, filter: Filter) -> Weights {
        if self.is_untouched() {
            let one = |at: usize| (self.offset as usize + at, at);
            let kept = self.kept as usize;
            return Weights { spans: (0..=kept).map(one).collect(), values: vec![1 << PRECISION; kept] };
        }
        let scale = f64::from(self.source) / self.full as f64;
        let widened = scale.max(1.0);
        let support = filter.support() * widened;
        let step = 1.0 / widened;
        let (mut spans, mut values) = (Vec::with_capacity(self.kept as usize + 1), Vec::new());
        let mut weights = Vec::new();
        for at in 0..u64::from(self.kept) {
            let centre = ((self.offset + at) as f64 + 0.5) * scale;
            // The casts cut towards zero, and below zero to it.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(self.source as usize);
            weights.clear();
            weights.extend((first..end).map(|pixel| filter.at((pixel as f64 - centre + 0.5) * step)));
            let sum: f64 = weights.iter().sum();
            let by = if sum == 0.0 { 1.0 } else { sum };
            spans.push((first, values.len()));
            values.extend(weights.iter().map(|weight| {
                let fixed = weight / by * f64::from(1u32 << PRECISION);
                // Halves away from zero.
                (if fixed < 0.0 { fixed - 0.5 } else { fixed + 0.5 }) as i32
            }));
        }
        spans.push((self.source as usize, values.len()));
        Weights { spans, values }
    }
}

impl Weights {
    /// Pixels of the result.
    fn len(&self) -> usize {
        self.spans.len().saturating_sub(1)
    }

    /// The first pixel that any weight is for, and the one after the last.
    fn reach(&self) -> (usize, usize) {
        let first = self.spans.first().map_or(0, |(first, _)| *first);
        (first, self.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(first))
    }

    /// Makes the pixels count from the first of [`Weights::reach`], and gives that.
    fn narrow(&mut self) -> (usize, usize) {
        let (left, right) = self.reach();
        self.spans.iter_mut().for_each(|(first, _)| *first = first.saturating_sub(left));
        (left, right)
    }

    /// First pixel and weights of one pixel of the result.
    #[inline(always)]
    fn of(&self, at: usize) -> Option<(usize, &[i32])> {
        let (&(first, start), &(_, end)) = (self.spans.get(at)?, self.spans.get(at + 1)?);
        Some((first, self.values.get(start..end)?))
    }

    /// The same for each.
    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        (0..self.len()).map_while(|at| self.of(at))
    }
}

/// A sum of weighted levels as a level.
#[inline(always)]
fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The kept part of `picture` resized. The sides of the axes are the picture's.
pub(crate) fn resample(picture: &Picture, rows: Axis, columns: Axis, filter: Filter) -> Picture {
    #[cfg(target_arch = "x86_64")]
    if let Some(resampled) = avx2::resample(picture, rows, columns, filter) {
        return resampled;
    }
    portable(picture, rows, columns, filter)
}

#[inline(always)]
fn portable(picture: &Picture, rows: Axis, columns: Axis, filter: Filter) -> Picture {
    run(picture, rows, columns, filter, &Portable { channels: picture.channels })
}

/// A way to work along rows. A trait rather than a function that is handed over: all of it has to be inlined where
/// instructions of a certain processor are used.
trait AlongRows {
    /// `lines` are up to [`BLOCK`] rows of the picture of `width` bytes each, one after the other; `targets` has room for as
    /// many of the result.
    fn resample(&self, lines: &[u8], width: usize, weights: &Weights, targets: &mut [u8]);
}

struct Portable {
    channels: usize,
}

impl AlongRows for Portable {
    #[inline(always)]
    fn resample(&self, lines: &[u8], width: usize, weights: &Weights, targets: &mut [u8]) {
        let to_bytes = weights.len() * self.channels;
        for (line, target) in lines.chunks_exact(width).zip(targets.chunks_exact_mut(to_bytes.max(1))) {
            across(line, self.channels, weights, target);
        }
    }
}

/// Rows that are worked on at once, so that weights are read once for all of them.
const BLOCK: usize = 4;

/// Whether Pillow works along the columns first: where the height loses more than twice the pixels that the width loses.
fn columns_first(rows: &Axis, columns: &Axis) -> bool {
    let lost = |axis: &Axis| i64::from(axis.source) - i64::try_from(axis.full).unwrap_or(i64::MAX);
    lost(rows) > 0 && lost(rows) > lost(columns).saturating_mul(2)
}

#[inline(always)]
fn run(picture: &Picture, rows: Axis, columns: Axis, filter: Filter, along_rows: &impl AlongRows) -> Picture {
    let channels = picture.channels;
    let (down, mut across) = (rows.weights(filter), columns.weights(filter));
    let (from_bytes, to_bytes) =
        ((picture.width as usize * channels).max(1), (columns.kept as usize * channels).max(1));
    let mut data = vec![0u8; to_bytes * rows.kept as usize];
    if columns.is_untouched() {
        let left = columns.offset as usize * channels;
        along_columns(picture.data.get(left..).unwrap_or_default(), from_bytes, &down, &mut data, to_bytes);
    } else if columns_first(&rows, &columns) {
        let (left, right) = across.narrow();
        let bytes = ((right - left) * channels).max(1);
        let mut short = vec![0u8; bytes * rows.kept as usize];
        let lines = picture.data.get(left * channels..).unwrap_or_default();
        along_columns(lines, from_bytes, &down, &mut short, bytes);
        for (lines, targets) in short.chunks(bytes * BLOCK).zip(data.chunks_mut(to_bytes * BLOCK)) {
            along_rows.resample(lines, bytes, &across, targets);
        }
    } else {
        let mut window = Window::new(&down, to_bytes);
        let mut blocks = picture.data.get(window.first * from_bytes..).unwrap_or_default().chunks(from_bytes * BLOCK);
        for ((first, weights), target) in down.iter().zip(data.chunks_exact_mut(to_bytes)) {
            while window.end() < first + weights.len() {
                let Some(lines) = blocks.next() else { break };
                along_rows.resample(lines, from_bytes, &across, window.block(first));
            }
            one_row(window.from(first), to_bytes, weights, target);
        }
    }
    Picture { width: columns.kept, height: rows.kept, channels, data }
}

/// Rows on their way from the first pass to the second: those that are still needed, one after the other.
struct Window {
    data: Vec<u8>,
    bytes: usize,
    /// The number of the row at the beginning of `data`.
    first: usize,
    filled: usize,
}

impl Window {
    fn new(weights: &Weights, bytes: usize) -> Window {
        let (first, end) = weights.reach();
        let longest = weights.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        // With half as much again, a row is moved twice at most; where all rows fit, none is.
        let rows = (longest + longest / 2 + 4 * BLOCK).min((end - first).next_multiple_of(BLOCK));
        Window { data: vec![0; rows * bytes], bytes, first, filled: 0 }
    }

    fn end(&self) -> usize {
        self.first + self.filled
    }

    /// Room for the next [`BLOCK`] rows. Those before row `needed` may be forgotten.
    fn block(&mut self, needed: usize) -> &mut [u8] {
        let rows = self.data.len() / self.bytes;
        if self.filled + BLOCK > rows {
            let past = needed.saturating_sub(self.first).min(self.filled);
            self.data.copy_within(past * self.bytes..self.filled * self.bytes, 0);
            self.first += past;
            self.filled -= past;
        }
        let start = self.filled * self.bytes;
        self.filled += BLOCK;
        self.data.get_mut(start..start + BLOCK * self.bytes).unwrap_or_default()
    }

    fn from(&self, row: usize) -> &[u8] {
        self.data.get(row.saturating_sub(self.first) * self.bytes..).unwrap_or_default()
    }
}

/// Rows of `width` bytes that begin `stride` bytes apart, along their columns.
#[inline(always)]
fn along_columns(lines: &[u8], stride: usize, weights: &Weights, targets: &mut [u8], width: usize) {
    for ((first, weights), target) in weights.iter().zip(targets.chunks_exact_mut(width)) {
        one_row(lines.get(first * stride..).unwrap_or_default(), stride, weights, target);
    }
}

/// Bytes of a row that are summed up at once, as many as registers hold the sums of.
const LANES: usize = 32;

/// One row of the result, of rows that begin `stride` bytes apart.
#[inline(always)]
fn one_row(lines: &[u8], stride: usize, weights: &[i32], target: &mut [u8]) {
    let (chunks, rest) = target.as_chunks_mut::<LANES>();
    let done = chunks.len() * LANES;
    for (at, target) in chunks.iter_mut().enumerate() {
        let mut sums = [HALF; LANES];
        for (row, &weight) in weights.iter().enumerate() {
            let Some(values) = lines.get(row * stride + at * LANES..).and_then(<[u8]>::first_chunk::<LANES>) else {
                break;
            };
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum = sum.wrapping_add(i32::from(value) * weight);
            }
        }
        *target = sums.map(level);
    }
    for (at, target) in (done..).zip(rest) {
        let values = lines.get(at..).unwrap_or_default().iter().step_by(stride).zip(weights);
        *target = level(values.fold(HALF, |sum, (&value, weight)| sum.wrapping_add(i32::from(value) * weight)));
    }
}

/// One row along its columns.
#[inline(always)]
fn across(line: &[u8], channels: usize, weights: &Weights, target: &mut [u8]) {
    if channels == 3 {
        let (line, target) = (line.as_chunks::<3>().0, target.as_chunks_mut::<3>().0);
        for (target, (first, weights)) in target.iter_mut().zip(weights.iter()) {
            *target = pixel(line.get(first..).unwrap_or_default(), weights);
        }
        return;
    }
    for (target, (first, weights)) in target.iter_mut().zip(weights.iter()) {
        let values = line.get(first..).unwrap_or_default().iter().zip(weights);
        *target = level(values.fold(HALF, |sum, (&value, weight)| sum.wrapping_add(i32::from(value) * weight)));
    }
}

/// One pixel of the result: `line` begins with the first that it is made of.
#[inline(always)]
fn pixel(line: &[[u8; 3]], weights: &[i32]) -> [u8; 3] {
    let mut sums = [HALF; 3];
    for (pixel, &weight) in line.iter().zip(weights) {
        for (sum, &value) in sums.iter_mut().zip(pixel) {
            *sum = sum.wrapping_add(i32::from(value) * weight);
        }
    }
    sums.map(level)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILTERS: [Filter; 5] = [Filter::Box, Filter::Bilinear, Filter::Hamming, Filter::Bicubic, Filter::Lanczos];

    fn picture(width: u32, height: u32, channels: usize, seed: u32) -> Picture {
        let mut state = seed;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let data = (0..width as usize * height as usize * channels).map(|_| byte()).collect();
        Picture { width, height, channels, data }
    }

    /// Both passes one after the other, as they are defined.
    fn plain(picture: &Picture, rows: Axis, columns: Axis, filter: Filter) -> Vec<u8> {
        let (width, channels) = (picture.width as usize, picture.channels);
        // `data` is lines of `width` pixels.
        let across = |data: &[u8], width: usize| -> Vec<u8> {
            let mut narrow = Vec::new();
            for line in data.chunks_exact(width * channels) {
                for (first, weights) in columns.weights(filter).iter() {
                    for channel in 0..channels {
                        let at = |(place, &weight): (usize, &i32)| (line[(first + place) * channels + channel], weight);
                        narrow.push(sum(&mut weights.iter().enumerate().map(at)));
                    }
                }
            }
            narrow
        };
        let down = |data: &[u8], width: usize| -> Vec<u8> {
            let (mut all, bytes) = (Vec::new(), width * channels);
            for (first, weights) in rows.weights(filter).iter() {
                for byte in 0..bytes {
                    let at = |(place, &weight): (usize, &i32)| (data[(first + place) * bytes + byte], weight);
                    all.push(sum(&mut weights.iter().enumerate().map(at)));
                }
            }
            all
        };
        match columns_first(&rows, &columns) {
            true => across(&down(&picture.data, width), width),
            false => down(&across(&picture.data, width), columns.kept as usize),
        }
    }

    fn sum(values: &mut dyn Iterator<Item = (u8, i32)>) -> u8 {
        let sum = values.fold(i64::from(HALF), |sum, (value, weight)| sum + i64::from(value) * i64::from(weight));
        (sum >> PRECISION).clamp(0, 255) as u8
    }

    fn axis(source: u32, full: u64, offset: u64, kept: u32) -> Axis {
        Axis { source, full, offset: offset.min(full - u64::from(kept)), kept }
    }

    proptest! {
        #[test]
        fn every_way_to_compute_gives_the_same(
            (width, height) in (1..70u32, 1..30u32),
            (full_width, full_height) in (1..90u64, 1..40u64),
            (left, top) in (0..50u64, 0..20u64),
            (keep_width, keep_height) in (1..90u32, 1..40u32),
            channels in prop::sample::select(vec![1usize, 3]),
            filter in prop::sample::select(FILTERS.to_vec()),
            seed in 0..1000u32,
        ) {
            let columns = axis(width, full_width, left, keep_width.min(full_width as u32));
            let rows = axis(height, full_height, top, keep_height.min(full_height as u32));
            let picture = picture(width, height, channels, seed);
            let expected = plain(&picture, rows, columns, filter);
            prop_assert_eq!(&portable(&picture, rows, columns, filter).data, &expected);
            prop_assert_eq!(&resample(&picture, rows, columns, filter).data, &expected);
        }
    }

    #[test]
    fn columns_come_first_where_the_height_loses_more_than_twice_as_much() {
        let lost = |width: (u32, u64), height: (u32, u64)| {
            let whole = |(source, full): (u32, u64)| axis(source, full, 0, full as u32);
            columns_first(&whole(height), &whole(width))
        };
        assert!(!lost((60, 32), (84, 32)));
        assert!(lost((60, 48), (84, 48)));
        assert!(!lost((60, 50), (84, 64)));
        assert!(lost((60, 90), (84, 83)));
        assert!(!lost((60, 90), (84, 84)));
        assert!(!lost((60, 90), (84, 85)));
    }

    #[test]
    fn weights_of_a_side_sum_up_to_one() {
        for filter in FILTERS {
            for (source, full) in [(7, 3), (3, 7), (1, 5), (65_535, 1), (100, 99)] {
                let weights = axis(source, full, 0, full as u32).weights(filter);
                for (first, weights) in weights.iter() {
                    let sum: i64 = weights.iter().map(|&weight| i64::from(weight)).sum();
                    assert!(
                        (sum - (1 << PRECISION)).unsigned_abs() <= weights.len() as u64,
                        "{filter:?} {source} {full}"
                    );
                    assert!(first + weights.len() <= source as usize, "{filter:?} {source} {full}");
                }
            }
        }
    }
}
