//! Counts since the start, in fixed buckets, without a lock: what Prometheus reads.
//!
//! Invariant: a count never shrinks. Knows no unit: the bounds are the caller's.

use std::sync::atomic::{AtomicU64, Ordering};

/// The count of each bucket and the sum of all values. `N` bounds, ascending; above the last is one bucket more.
#[derive(Debug)]
pub(super) struct Cumulative<const N: usize> {
    bounds: &'static [u64; N],
    buckets: [AtomicU64; N],
    above: AtomicU64,
    sum: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramSnapshot {
    /// Bounds, ascending, each with the number of values at or below it.
    pub buckets: Vec<(u64, u64)>,
    /// All values.
    pub count: u64,
    pub sum: u64,
}

impl<const N: usize> Cumulative<N> {
    pub(super) fn new(bounds: &'static [u64; N]) -> Cumulative<N> {
        Cumulative {
            bounds,
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            above: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    pub(super) fn record(&self, value: u64) {
        let index = self.bounds.partition_point(|bound| *bound < value);
        self.buckets.get(index).unwrap_or(&self.above).fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// The count is that of the buckets, so the two agree also while others record.
    pub(super) fn snapshot(&self) -> HistogramSnapshot {
        let sum = self.sum.load(Ordering::Relaxed);
        let mut count = 0;
        let buckets = self
            .bounds
            .iter()
            .zip(&self.buckets)
            .map(|(bound, bucket)| {
                count += bucket.load(Ordering::Relaxed);
                (*bound, count)
            })
            .collect();
        HistogramSnapshot { buckets, count: count + self.above.load(Ordering::Relaxed), sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_is_below_it_and_counts_are_cumulative() {
        static BOUNDS: [u64; 3] = [1, 4, 10];
        let histogram = Cumulative::new(&BOUNDS);
        for value in [0, 1, 2, 4, 5, 10, 11, 1000] {
            histogram.record(value);
        }
        let expected = HistogramSnapshot { buckets: vec![(1, 2), (4, 4), (10, 6)], count: 8, sum: 1033 };
        assert_eq!(histogram.snapshot(), expected);
    }
}
