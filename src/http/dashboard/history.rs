//! The last fifteen minutes, one sample a second, shared by all who look.
//!
//! A sample holds counts since the start as the registry has them; rates and quantiles are differences of two samples. Pure but
//! for [`Sample::take`]: knows no clock and no page.

use crate::engine::InferenceEngine;
use crate::telemetry::process;
use crate::telemetry::stats::{HistogramSnapshot, Stage};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// One sample a second for fifteen minutes.
pub(super) const SAMPLES_MAX: usize = 900;
/// Models of a sample: with more, those that come last by name have no history.
const MODELS_MAX: usize = 256;

/// What was counted up to one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sample {
    /// Since the server's start.
    pub(super) at: Duration,
    pub(super) all: Counts,
    pub(super) resident_bytes: u64,
    pub(super) models_bytes: u64,
    pub(super) models: BTreeMap<String, Counts>,
}

/// Requests of a model, or of all of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) answered: u64,
    /// Refused for what they are: 4xx but 429.
    pub(super) refused: u64,
    /// Turned away for want of room: 429 and 503.
    pub(super) shed: u64,
    /// Faults of ours, and deadlines that passed: other 5xx.
    pub(super) failed: u64,
    /// Clients that left.
    pub(super) left: u64,
    pub(super) queued: u64,
    pub(super) in_flight: u64,
    pub(super) memory_bytes: u64,
    /// Nanoseconds of answered requests, from arrival to answer.
    times: Times,
}

/// Upper bounds in nanoseconds and how many were at or below each, and all.
#[derive(Debug, Clone, Default, PartialEq)]
struct Times {
    buckets: Vec<(u64, u64)>,
    count: u64,
}

impl Times {
    fn add(&mut self, other: &HistogramSnapshot) {
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
        } else {
            self.buckets.iter_mut().zip(&other.buckets).for_each(|(sum, (_, count))| sum.1 += count);
        }
        self.count += other.count;
    }
}

impl Counts {
    fn add_status(&mut self, status: u16, count: u64) {
        match status {
            200..=299 => self.answered += count,
            499 => self.left += count,
            429 | 503 => self.shed += count,
            500..=599 => self.failed += count,
            _ => self.refused += count,
        }
    }

    /// Whatever ended.
    pub(super) fn ended(&self) -> u64 {
        self.answered + self.refused + self.shed + self.failed + self.left
    }

    /// The time below which the share `quantile` of the answers lay that came after `before`, by the buckets of `/metrics`;
    /// `None` where there was none.
    pub(super) fn quantile_since(&self, before: &Counts, quantile: f64) -> Option<Duration> {
        let earlier = |at: usize| before.times.buckets.get(at).map_or(0, |(_, count)| *count);
        let all = self.times.count.saturating_sub(before.times.count);
        if all == 0 {
            return None;
        }
        let wanted = quantile * all as f64;
        let (mut lower, mut below) = (0u64, 0u64);
        for (at, (bound, count)) in self.times.buckets.iter().enumerate() {
            let count = count.saturating_sub(earlier(at));
            if count as f64 >= wanted && count > below {
                // Evenly spread within the bucket, as Prometheus takes it.
                let share = (wanted - below as f64).max(0.0) / (count - below) as f64;
                return Some(Duration::from_nanos(lower + ((bound - lower) as f64 * share) as u64));
            }
            (lower, below) = (*bound, count);
        }
        Some(Duration::from_nanos(lower))
    }
}

impl Sample {
    /// What the registry and the models say now. Some ten microseconds a model.
    pub(super) fn take(engine: &InferenceEngine, at: Duration) -> Sample {
        let mut sample = Sample {
            at,
            resident_bytes: process::resident_bytes().unwrap_or(0),
            models_bytes: engine.memory_totals().models_bytes,
            ..Sample::default()
        };
        let stats = engine.stats();
        for version in stats.all().into_iter().chain([stats.nowhere()]) {
            for (_, status, count) in version.totals().requests {
                sample.all.add_status(status, count);
                if let Some(model) = sample.model(version.name()) {
                    model.add_status(status, count);
                }
            }
        }
        for totals in stats.totals() {
            let stage = totals.stages.get(Stage::Total as usize);
            for counts in [Some(&mut sample.all)].into_iter().flatten() {
                stage.into_iter().for_each(|stage| counts.times.add(stage));
                counts.queued += totals.queued;
                counts.in_flight += totals.in_flight;
            }
            if let Some(model) = sample.model(&totals.name) {
                stage.into_iter().for_each(|stage| model.times.add(stage));
                (model.queued, model.in_flight) = (totals.queued, totals.in_flight);
            }
        }
        for model in engine.models() {
            let loaded = model.versions.iter().filter_map(|version| version.loaded.as_deref());
            let bytes = loaded.map(|loaded| loaded.memory.total_bytes()).fold(0, u64::saturating_add);
            if let Some(counts) = sample.model(model.name.as_str()) {
                counts.memory_bytes = bytes;
            }
        }
        sample
    }

    fn model(&mut self, name: &str) -> Option<&mut Counts> {
        if name.is_empty() || (self.models.len() >= MODELS_MAX && !self.models.contains_key(name)) {
            return None;
        }
        Some(self.models.entry(name.to_owned()).or_default())
    }

    /// Of a model, where it has some, or of all.
    pub(super) fn of(&self, model: Option<&str>) -> Option<&Counts> {
        match model {
            None => Some(&self.all),
            Some(name) => self.models.get(name),
        }
    }
}

/// The samples, the oldest first.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Sample>);

impl History {
    pub(super) fn push(&mut self, sample: Sample) {
        if self.0.len() >= SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    pub(super) fn last(&self) -> Option<&Sample> {
        self.0.back()
    }

    /// The newest sample that is at least `age` older than the last one, or the oldest there is.
    pub(super) fn before(&self, age: Duration) -> Option<&Sample> {
        let last = self.0.back()?;
        self.0.iter().rev().find(|sample| last.at.saturating_sub(sample.at) >= age).or(self.0.front())
    }

    /// A number a second over the last `age`, of what `read` counts between two samples.
    pub(super) fn rate(&self, age: Duration, read: impl Fn(&Sample) -> u64) -> f64 {
        match (self.last(), self.before(age)) {
            (Some(last), Some(before)) => rate(before, last, read),
            _ => 0.0,
        }
    }

    /// Numbers over `range`, the newest last; `None` before the server's start. `read` takes the samples at the beginning and the
    /// end of what each point is of: its part of the range, or `of` where that is longer.
    pub(super) fn series(
        &self,
        range: Range,
        of: Duration,
        read: impl Fn(&Sample, &Sample) -> Option<f64>,
    ) -> Vec<Option<f64>> {
        let newest = self.0.len();
        let back = step_of(range).max(usize::try_from(of.as_secs()).unwrap_or(SAMPLES_MAX));
        let at = |back: usize| newest.checked_sub(1 + back).and_then(|place| self.0.get(place));
        let point = |number: usize| {
            let end = at(number * step_of(range))?;
            // What is younger than its part is of what there is.
            let begin =
                at(number * step_of(range) + back).or_else(|| self.0.front().filter(|first| first.at < end.at))?;
            read(begin, end)
        };
        (0..range.seconds() / step_of(range)).rev().map(point).collect()
    }

    /// The shortest range that shows all there is.
    pub(super) fn range(&self) -> Range {
        let held =
            self.0.back().zip(self.0.front()).map_or(Duration::ZERO, |(last, first)| last.at.saturating_sub(first.at));
        let fits = |range: &Range| held.as_secs() <= range.seconds() as u64;
        Range::ALL.into_iter().find(fits).unwrap_or(Range::Fifteen)
    }
}

/// How far back charts go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Range {
    One,
    Five,
    Fifteen,
}

impl Range {
    pub(super) const ALL: [Range; 3] = [Range::One, Range::Five, Range::Fifteen];

    pub(super) fn minutes(self) -> usize {
        match self {
            Range::One => 1,
            Range::Five => 5,
            Range::Fifteen => 15,
        }
    }

    fn seconds(self) -> usize {
        self.minutes() * 60
    }

    /// By its minutes, as an address has them.
    pub(super) fn of(minutes: &str) -> Option<Range> {
        Range::ALL.into_iter().find(|range| range.minutes().to_string() == minutes)
    }
}

/// Seconds, and so samples, from one point of a chart to the next.
fn step_of(range: Range) -> usize {
    match range {
        Range::One => 1,
        Range::Five => 2,
        Range::Fifteen => 5,
    }
}

/// A number a second of what `read` counts between two samples.
pub(super) fn rate(before: &Sample, after: &Sample, read: impl Fn(&Sample) -> u64) -> f64 {
    let time = after.at.saturating_sub(before.at).as_secs_f64();
    if time <= 0.0 { 0.0 } else { read(after).saturating_sub(read(before)) as f64 / time }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: u64, answered: u64) -> Sample {
        let all = Counts { answered, ..Counts::default() };
        Sample { at: Duration::from_secs(second), all, ..Sample::default() }
    }

    #[test]
    fn rates_are_differences_and_the_oldest_goes() {
        let mut history = History::default();
        assert_eq!(history.rate(Duration::from_secs(10), |sample| sample.all.answered), 0.0);
        for second in 0..1000 {
            history.push(sample(second, second * 3));
        }
        assert_eq!(history.0.len(), SAMPLES_MAX);
        assert_eq!(history.rate(Duration::from_secs(10), |sample| sample.all.answered), 3.0);
        let read = |before: &Sample, after: &Sample| Some(rate(before, after, |sample| sample.all.answered));
        for (range, points) in [(Range::One, 60), (Range::Five, 150), (Range::Fifteen, 180)] {
            for of in [Duration::ZERO, Duration::from_secs(10)] {
                assert_eq!(history.series(range, of, read), vec![Some(3.0); points]);
            }
        }
        // A restart of a count is no negative rate.
        history.push(sample(1000, 0));
        assert_eq!(history.rate(Duration::from_secs(10), |sample| sample.all.answered), 0.0);
    }

    #[test]
    fn charts_show_what_there_is_and_gaps_before() {
        let mut history = History::default();
        assert_eq!(
            (history.range(), history.series(Range::One, Duration::ZERO, |_, _| Some(1.0))),
            (Range::One, vec![None; 60])
        );
        for second in 0..62 {
            history.push(sample(second, second));
        }
        assert_eq!(history.range(), Range::Five);
        let series =
            history.series(Range::Five, Duration::ZERO, |before, after| Some((after.at - before.at).as_secs_f64()));
        let (none, some) = series.split_at(150 - 31);
        assert!(none.iter().all(Option::is_none) && some.first() == Some(&Some(1.0)), "{series:?}");
        assert!(some.iter().skip(1).all(|point| *point == Some(2.0)), "{series:?}");
        assert_eq!(
            ["1", "5", "15", "0", "", "x"].map(Range::of).map(|range| range.map(Range::minutes)),
            [Some(1), Some(5), Some(15), None, None, None]
        );
    }

    #[test]
    fn quantiles_are_of_what_came_in_between() {
        let counts = |buckets: &[(u64, u64)], count| Counts {
            times: Times { buckets: buckets.to_vec(), count },
            ..Counts::default()
        };
        let before = counts(&[(100, 50), (200, 50), (400, 50)], 50);
        let after = counts(&[(100, 50), (200, 60), (400, 70)], 70);
        let nanos = |quantile| after.quantile_since(&before, quantile).map(|time| time.as_nanos());
        assert_eq!((nanos(0.5), nanos(0.25), nanos(0.75), nanos(1.0)), (Some(200), Some(150), Some(300), Some(400)));
        assert_eq!(before.quantile_since(&before, 0.5), None);
        // Above the last bound nothing is known but that.
        let slow = counts(&[(100, 50), (200, 50), (400, 50)], 51);
        assert_eq!(slow.quantile_since(&before, 0.5), Some(Duration::from_nanos(400)));
    }

    #[test]
    fn requests_are_told_apart_by_what_came_of_them() {
        let mut counts = Counts::default();
        for (status, count) in [(200, 1), (202, 2), (400, 4), (429, 8), (503, 16), (500, 32), (504, 64), (499, 128)] {
            counts.add_status(status, count);
        }
        let Counts { answered, refused, shed, failed, left, .. } = counts;
        assert_eq!((answered, refused, shed, failed, left), (3, 4, 24, 96, 128));
        assert_eq!(counts.ended(), 255);
    }
}
