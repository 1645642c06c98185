//! The last minutes: a ring of slices of time, of which those still within the window are put together when they are read.
//!
//! Invariants: at most [`SLICES`] slices are kept, each of bounded size, and reused; what is older than the window is never
//! counted, and of the window's oldest slice-length all or nothing is. Reads no clock: the caller says what time it is.

use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// Into how many slices the window is cut.
const SLICES: u64 = 6;

/// Times are told apart down to this, in nanoseconds, and within 1 % above it.
const FINEST_NS: u64 = 100;
/// The longest time that is told apart: one hour, far above every deadline.
const LONGEST_NS: u64 = 3_600_000_000_000;
/// Decimal digits that are kept of a time: within 1 %.
const DIGITS: u8 = 2;

/// What a slice can hold.
pub(super) trait Part: Default {
    /// Empties it; may keep its memory.
    fn clear(&mut self);
}

/// A ring of slices of time.
#[derive(Debug)]
pub(super) struct Ring<T> {
    epoch: Instant,
    slice: Duration,
    /// Each with the number of the slice it holds, counted from `epoch`.
    slots: [(u64, T); SLICES as usize],
}

impl<T: Part> Ring<T> {
    pub(super) fn new(window: Duration, now: Instant) -> Ring<T> {
        let slice = (window / SLICES as u32).max(Duration::from_millis(1));
        Ring { epoch: now, slice, slots: std::array::from_fn(|_| (0, T::default())) }
    }

    fn number(&self, now: Instant) -> u64 {
        let slices = now.saturating_duration_since(self.epoch).as_nanos() / self.slice.as_nanos().max(1);
        u64::try_from(slices).unwrap_or(u64::MAX)
    }

    /// The slice of this moment; `None` never, since the index is below [`SLICES`].
    pub(super) fn current(&mut self, now: Instant) -> Option<&mut T> {
        let number = self.number(now);
        let (held, part) = self.slots.get_mut((number % SLICES) as usize)?;
        if *held != number {
            *held = number;
            part.clear();
        }
        Some(part)
    }

    /// The slices that are still within the window.
    pub(super) fn recent(&self, now: Instant) -> impl Iterator<Item = &T> {
        let number = self.number(now);
        self.slots.iter().filter(move |(held, _)| *held <= number && number - *held < SLICES).map(|(_, part)| part)
    }

    /// Since when everything is counted.
    pub(super) fn since(&self, now: Instant) -> Instant {
        let first = self.number(now).saturating_sub(SLICES - 1);
        // Both fit: the product is at most the time since the epoch.
        self.epoch + self.slice.saturating_mul(u32::try_from(first).unwrap_or(u32::MAX))
    }

    /// Forgets everything and counts from `now`.
    pub(super) fn reset(&mut self, now: Instant) {
        self.epoch = now;
        for (held, part) in &mut self.slots {
            *held = 0;
            part.clear();
        }
    }
}

/// Times of one slice.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// There once a time was recorded: most models have some stages never.
    histogram: Option<Histogram<u32>>,
    count: u64,
    sum: Duration,
    min: Duration,
    max: Duration,
}

impl Part for Times {
    fn clear(&mut self) {
        if let Some(histogram) = &mut self.histogram {
            histogram.reset();
        }
        (self.count, self.sum, self.min, self.max) = (0, Duration::ZERO, Duration::ZERO, Duration::ZERO);
    }
}

impl Times {
    pub(super) fn record(&mut self, time: Duration) {
        if self.histogram.is_none() {
            self.histogram = Histogram::new_with_bounds(FINEST_NS, 10 * FINEST_NS, DIGITS).ok();
            if let Some(histogram) = &mut self.histogram {
                // Grows by doubling up to the longest time, so most stay a tenth of the full size.
                histogram.auto(true);
            }
        }
        if let Some(histogram) = &mut self.histogram {
            let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min(LONGEST_NS);
            // Fails only above what a histogram can grow to, which is above the longest time.
            let _ = histogram.record(nanos);
        }
        self.min = if self.count == 0 { time } else { self.min.min(time) };
        self.max = self.max.max(time);
        self.count += 1;
        self.sum += time;
    }
}

/// What the times of a stage were. All zero where there were none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StageSummary {
    pub count: u64,
    pub mean: Duration,
    pub min: Duration,
    pub max: Duration,
    /// Within 1 %, or 100 ns.
    pub p50: Duration,
    pub p95: Duration,
    pub p99: Duration,
}

/// Puts slices together.
pub(super) fn summarize<'a>(slices: impl Iterator<Item = &'a Times>) -> StageSummary {
    let Ok(mut all) = Histogram::<u32>::new_with_bounds(FINEST_NS, 10 * FINEST_NS, DIGITS) else {
        return StageSummary::default();
    };
    all.auto(true);
    let (mut count, mut sum, mut min, mut max) = (0, Duration::ZERO, Duration::MAX, Duration::ZERO);
    for slice in slices.filter(|slice| slice.count > 0) {
        if let Some(histogram) = &slice.histogram {
            // Same unit and digits: adding only widens the range.
            let _ = all.add(histogram);
        }
        count += slice.count;
        sum += slice.sum;
        min = min.min(slice.min);
        max = max.max(slice.max);
    }
    if count == 0 {
        return StageSummary::default();
    }
    // A quantile is the upper end of its bucket, which may lie above every value.
    let quantile = |quantile: f64| Duration::from_nanos(all.value_at_quantile(quantile)).clamp(min, max);
    StageSummary {
        count,
        mean: Duration::from_secs_f64(sum.as_secs_f64() / count as f64),
        min,
        max,
        p50: quantile(0.5),
        p95: quantile(0.95),
        p99: quantile(0.99),
    }
}
