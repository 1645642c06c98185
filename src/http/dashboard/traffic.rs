//! The charts of what came of requests, of all models or of one.

use super::chart::{Line, over_time};
use super::format;
use super::frame::Visitor;
use super::history::{Counts, History, Range, Sample, rate};
use std::time::Duration;

/// What quantiles of a chart are of, at least: of a second alone they would jump.
const SMOOTH: Duration = Duration::from_secs(10);

/// Requests a second and the time of answers; of a model also what waits and its memory.
pub(super) fn charts(visitor: &Visitor, model: Option<&str>) -> Vec<String> {
    visitor.dashboard.history(|history| {
        let drawing = Drawing { history, model, range: visitor.range.unwrap_or(history.range()) };
        let mut charts = vec![drawing.requests(), drawing.times()];
        if model.is_some() {
            charts.extend([drawing.waiting(), drawing.memory()]);
        }
        charts
    })
}

/// Memory of the process.
pub(super) fn resident(visitor: &Visitor) -> String {
    visitor.dashboard.history(|history| {
        let drawing = Drawing { history, model: None, range: visitor.range.unwrap_or(history.range()) };
        let points = history.series(drawing.range, Duration::ZERO, |_, after| Some(after.resident_bytes as f64));
        drawing.over_time("Memory of the process", vec![Line { class: "run", name: "process", points }], bytes)
    })
}

struct Drawing<'a> {
    history: &'a History,
    model: Option<&'a str>,
    range: Range,
}

impl Drawing<'_> {
    fn over_time(&self, title: &str, lines: Vec<Line>, write: fn(f64) -> String) -> String {
        over_time(title, &format!("{} min", self.range.minutes()), &lines, write)
    }

    fn requests(&self) -> String {
        let line = |class, name, read: fn(&Counts) -> u64| {
            let count = |sample: &Sample| sample.of(self.model).map_or(0, read);
            let points =
                self.history.series(self.range, Duration::ZERO, |before, after| Some(rate(before, after, count)));
            Line { class, name, points }
        };
        let lines = vec![
            line("run", "answered", |counts| counts.answered),
            line("queue", "refused or shed", |counts| counts.refused + counts.shed),
            line("bad", "failed", |counts| counts.failed),
        ];
        self.over_time("Requests a second", lines, format::rate)
    }

    fn times(&self) -> String {
        let line = |class, name, quantile| {
            let read = |before: &Sample, after: &Sample| {
                let earlier = before.of(self.model).cloned().unwrap_or_default();
                Some(after.of(self.model)?.quantile_since(&earlier, quantile)?.as_secs_f64())
            };
            Line { class, name, points: self.history.series(self.range, SMOOTH, read) }
        };
        let lines = vec![line("post", "p50", 0.5), line("run", "p95", 0.95), line("pre", "p99", 0.99)];
        self.over_time("Time of answers", lines, |seconds| format::seconds(Some(seconds)))
    }

    fn now(&self, read: fn(&Counts) -> u64) -> Vec<Option<f64>> {
        let read = |_: &Sample, after: &Sample| Some(read(after.of(self.model)?) as f64);
        self.history.series(self.range, Duration::ZERO, read)
    }

    fn waiting(&self) -> String {
        let lines = vec![Line { class: "queue", name: "waiting", points: self.now(|counts| counts.queued) }];
        self.over_time("Requests that wait", lines, |waiting| format::count(waiting as u64))
    }

    fn memory(&self) -> String {
        let lines = vec![Line { class: "run", name: "memory", points: self.now(|counts| counts.memory_bytes) }];
        self.over_time("Memory of the model", lines, bytes)
    }
}

fn bytes(bytes: f64) -> String {
    format::bytes(bytes as u64)
}
