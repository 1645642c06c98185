//! Metrics as text: Prometheus' own format (0.0.4) and OpenMetrics (1.0).
//!
//! The two differ in a counter's name (OpenMetrics gives the family's name without `_total`) and in the last line. Written
//! here and not by `prometheus-client`, which knows OpenMetrics alone: an old Prometheus and most other readers ask for
//! the other. Invariants: whatever a label's value holds, it stays one value on one line; the samples of a family stand
//! together, behind its `# HELP` and `# TYPE`. That no series is written twice is the caller's part.

use super::stats::HistogramSnapshot;
use std::fmt::{Display, Write};

/// Which of the two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpositionFormat {
    Text,
    OpenMetrics,
}

impl ExpositionFormat {
    pub fn content_type(self) -> &'static str {
        match self {
            ExpositionFormat::Text => "text/plain; version=0.0.4; charset=utf-8",
            ExpositionFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows.
    Counter,
    Gauge,
    Histogram,
}

/// A metric: its name, which of a counter stands without `_total`, and what it is. Neither holds a line break.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// Labels of a series, in the order in which they are written.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// The text as it grows.
#[derive(Debug)]
pub struct Exposition {
    format: ExpositionFormat,
    text: String,
}

impl Exposition {
    pub fn new(format: ExpositionFormat) -> Exposition {
        Exposition { format, text: String::with_capacity(16 << 10) }
    }

    /// Begins a family; its samples come next. A family is begun once.
    pub fn family(&mut self, family: &Family) -> Samples<'_> {
        let (name, help) = (family.name, family.help);
        let (kind, counted) = match family.kind {
            Kind::Counter => ("counter", if self.format == ExpositionFormat::Text { "_total" } else { "" }),
            Kind::Gauge => ("gauge", ""),
            Kind::Histogram => ("histogram", ""),
        };
        self.write(format_args!("# HELP {name}{counted} {help}\n# TYPE {name}{counted} {kind}\n"));
        Samples { exposition: self, name, is_counter: family.kind == Kind::Counter }
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        if self.format == ExpositionFormat::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.text.write_fmt(text);
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: Labels<'_>, le: Option<&str>, value: impl Display) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        let mut opening = '{';
        for (label, value) in labels.iter().copied().chain(le.map(|bound| ("le", bound))) {
            self.text.push(opening);
            self.text.push_str(label);
            self.text.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
            opening = ',';
        }
        self.text.push_str(if opening == ',' { "} " } else { " " });
        self.write(format_args!("{value}\n"));
    }
}

/// Where the samples of one family go.
pub struct Samples<'a> {
    exposition: &'a mut Exposition,
    name: &'static str,
    is_counter: bool,
}

impl Samples<'_> {
    /// The value of one series of a counter or gauge.
    pub fn put(&mut self, labels: Labels<'_>, value: impl Display) {
        let suffix = if self.is_counter { "_total" } else { "" };
        self.exposition.sample(self.name, suffix, labels, None, value);
    }

    /// One series of a histogram. Its values are divided by `divisor`: 1e9 makes seconds of nanoseconds.
    pub fn histogram(&mut self, labels: Labels<'_>, histogram: &HistogramSnapshot, divisor: f64) {
        for (bound, count) in &histogram.buckets {
            // Always with a point, in both formats: a series keeps its name when a reader changes formats.
            let bound = format!("{:?}", *bound as f64 / divisor);
            self.exposition.sample(self.name, "_bucket", labels, Some(&bound), count);
        }
        self.exposition.sample(self.name, "_bucket", labels, Some("+Inf"), histogram.count);
        self.exposition.sample(self.name, "_sum", labels, None, histogram.sum as f64 / divisor);
        self.exposition.sample(self.name, "_count", labels, None, histogram.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTS: Family = Family { name: "a_requests", kind: Kind::Counter, help: "Requests." };
    const TIME: Family = Family { name: "a_seconds", kind: Kind::Histogram, help: "Time." };
    const UP: Family = Family { name: "a_up", kind: Kind::Gauge, help: "Up." };

    fn write(format: ExpositionFormat) -> String {
        let mut exposition = Exposition::new(format);
        exposition.family(&REQUESTS).put(&[("model", "a\"b\\c\nd{} 猫"), ("code", "200")], 3);
        let snapshot =
            HistogramSnapshot { buckets: vec![(100_000, 1), (1_000_000_000, 2)], count: 3, sum: 2_500_000_000 };
        exposition.family(&TIME).histogram(&[("model", "m")], &snapshot, 1e9);
        exposition.family(&UP).put(&[], 1);
        exposition.finish()
    }

    #[test]
    fn each_format_is_written_to_the_letter() {
        let text = r#"# HELP a_requests_total Requests.
# TYPE a_requests_total counter
a_requests_total{model="a\"b\\c\nd{} 猫",code="200"} 3
# HELP a_seconds Time.
# TYPE a_seconds histogram
a_seconds_bucket{model="m",le="0.0001"} 1
a_seconds_bucket{model="m",le="1.0"} 2
a_seconds_bucket{model="m",le="+Inf"} 3
a_seconds_sum{model="m"} 2.5
a_seconds_count{model="m"} 3
# HELP a_up Up.
# TYPE a_up gauge
a_up 1
"#;
        assert_eq!(write(ExpositionFormat::Text), text);
        let open = text
            .replace("HELP a_requests_total", "HELP a_requests")
            .replace("TYPE a_requests_total", "TYPE a_requests");
        assert_eq!(write(ExpositionFormat::OpenMetrics), format!("{open}# EOF\n"));
    }
}
