//! What one measurement gave, and the medians of several.

use std::time::Duration;

/// The unit of a kept latency: fine enough for a memory access, and an `u32` of it is seven minutes.
const TICK_NANOS: u128 = 100;

/// Latencies and counts of one measurement.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Ascending, in [`TICK_NANOS`].
    ticks: Vec<u32>,
    /// Pieces of work that were refused: answered with another status than 200.
    pub refused: u64,
    /// From the start to the end of the last piece of work.
    pub elapsed: Duration,
    /// Processor time of the threads that made the load; `None` where the system does not tell.
    pub cpu: Option<Duration>,
}

impl Sample {
    /// A sample of latencies in any order.
    pub fn new(latencies: impl IntoIterator<Item = Duration>, refused: u64, elapsed: Duration) -> Sample {
        Sample::of_ticks(latencies.into_iter().map(ticks).collect(), refused, elapsed, None)
    }

    pub(super) fn of_ticks(mut ticks: Vec<u32>, refused: u64, elapsed: Duration, cpu: Option<Duration>) -> Sample {
        ticks.sort_unstable();
        Sample { ticks, refused, elapsed, cpu }
    }

    /// Pieces of work done, refused ones not counted.
    pub fn count(&self) -> usize {
        self.ticks.len()
    }

    /// Pieces of work done in a second.
    pub fn per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.count() as f64 / seconds } else { 0.0 }
    }

    /// The latency that `percent` of the work did not exceed (nearest rank), in ms; 0 where nothing was done.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.ticks.len() as f64).ceil() as usize;
        let at = rank.clamp(1, self.ticks.len().max(1)) - 1;
        self.ticks.get(at).map_or(0.0, |ticks| f64::from(*ticks) * TICK_NANOS as f64 / 1e6)
    }

    /// Processor time of the load generator for one piece of work, in µs.
    pub fn cpu_micros(&self) -> Option<f64> {
        let count = (self.count() as u64 + self.refused).max(1);
        Some(self.cpu?.as_secs_f64() * 1e6 / count as f64)
    }

    /// Processor time of the load generator, in cores.
    pub fn cpu_cores(&self) -> Option<f64> {
        let seconds = self.elapsed.as_secs_f64();
        Some(if seconds > 0.0 { self.cpu?.as_secs_f64() / seconds } else { 0.0 })
    }
}

pub(super) fn ticks(latency: Duration) -> u32 {
    u32::try_from(latency.as_nanos() / TICK_NANOS).unwrap_or(u32::MAX)
}

/// Medians of the samples of several rounds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    /// In all rounds together.
    pub count: u64,
    pub refused: u64,
    pub cpu_micros: Option<f64>,
    pub cpu_cores: Option<f64>,
}

impl Summary {
    pub fn of(samples: &[Sample]) -> Summary {
        let each = |of: &dyn Fn(&Sample) -> f64| median(samples.iter().map(of).collect());
        let some = |of: &dyn Fn(&Sample) -> Option<f64>| {
            samples.iter().map(of).collect::<Option<Vec<f64>>>().filter(|all| !all.is_empty()).map(median)
        };
        Summary {
            per_second: each(&Sample::per_second),
            p50_ms: each(&|sample| sample.percentile_ms(50.0)),
            p90_ms: each(&|sample| sample.percentile_ms(90.0)),
            p99_ms: each(&|sample| sample.percentile_ms(99.0)),
            count: samples.iter().map(|sample| sample.count() as u64).sum(),
            refused: samples.iter().map(|sample| sample.refused).sum(),
            cpu_micros: some(&Sample::cpu_micros),
            cpu_cores: some(&Sample::cpu_cores),
        }
    }
}

/// The middle value, or the mean of the two in the middle; 0 of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    if values.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.saturating_sub(1)), at(half)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(millis: &[u64], seconds: u64) -> Sample {
        Sample::new(millis.iter().map(|ms| Duration::from_millis(*ms)), 0, Duration::from_secs(seconds))
    }

    #[test]
    fn percentiles_are_the_nearest_rank() {
        let hundred: Vec<u64> = (1..=100).rev().collect();
        let hundred = sample(&hundred, 1);
        for (percent, expected) in [(0.0, 1.0), (1.0, 1.0), (50.0, 50.0), (99.0, 99.0), (99.1, 100.0), (100.0, 100.0)] {
            assert_eq!(hundred.percentile_ms(percent), expected, "{percent}");
        }
        assert_eq!(sample(&[7], 1).percentile_ms(50.0), 7.0);
        assert_eq!(sample(&[], 1).percentile_ms(50.0), 0.0);
    }

    #[test]
    fn a_latency_beyond_all_bounds_is_the_largest_there_is() {
        let sample = Sample::new([Duration::MAX], 0, Duration::from_secs(1));
        assert!(sample.percentile_ms(50.0) > 400_000.0);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        for (values, expected) in [(vec![], 0.0), (vec![3.0], 3.0), (vec![3.0, 1.0], 2.0), (vec![9.0, 1.0, 2.0], 2.0)] {
            assert_eq!(median(values), expected);
        }
    }

    #[test]
    fn a_summary_has_the_medians_of_its_rounds() {
        let rounds = [sample(&[1, 1], 1), sample(&[3, 3, 3], 1), sample(&[2], 1)];
        let summary = Summary::of(&rounds);
        assert_eq!((summary.per_second, summary.p50_ms, summary.count), (2.0, 2.0, 6));
        assert_eq!(summary.cpu_micros, None);
        assert_eq!(Summary::of(&[]), Summary::default());
    }
}
