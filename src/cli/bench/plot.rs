//! The result as a picture: throughput and latency against the number of clients, as SVG.
//!
//! Invariants: text and lines are legible on light and dark ground; series differ by more than their colour; nothing is
//! loaded from elsewhere.

use super::report::{Line, Report};
use std::fmt::Write;

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 380.0;
/// Of one panel's frame.
const PANEL: (f64, f64) = (300.0, 220.0);
const TOP: f64 = 80.0;
const LEFTS: [f64; 2] = [80.0, 520.0];
/// Lines across a panel.
const TICKS: usize = 5;

const STYLE: &str = "\
    .paper{fill:#ffffff}.ink{fill:#1f2328}.muted{fill:#59636e}.grid{stroke:#d1d9e0}\
    .a{stroke:#0550ae}.af{fill:#0550ae}.b{stroke:#bc4c00}.bf{fill:#bc4c00}.c{stroke:#59636e}\
    @media(prefers-color-scheme:dark){.paper{fill:#0d1117}.ink{fill:#e6edf3}.muted{fill:#9198a1}.grid{stroke:#30363d}\
    .a{stroke:#79c0ff}.af{fill:#79c0ff}.b{stroke:#ffa657}.bf{fill:#ffa657}.c{stroke:#9198a1}}";

/// The picture, a whole file.
pub(super) fn svg(report: &Report) -> String {
    let mut out = String::new();
    let title = format!("{} version {}", report.model, report.version);
    let heading = escape(&title);
    draw(&mut out, report, &heading);
    out
}

fn draw(out: &mut String, report: &Report, heading: &str) {
    // Writing to a string does not fail.
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"Throughput and latency of {heading}\" font-family=\"system-ui,sans-serif\" font-size=\"13\">\
         <style>{STYLE}</style><rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\
         <text class=\"ink\" x=\"24\" y=\"30\" font-size=\"16\" font-weight=\"600\">{heading}</text>"
    );
    let rate = |lines: &[Line]| -> Vec<f64> { lines.iter().map(|line| line.requests_per_second).collect() };
    let best = report.best().map_or(0.0, |best| best.requests_per_second);
    let clients: Vec<usize> = report.http.iter().map(|line| line.key).collect();
    let (engine, http) = (rate(&report.in_process), rate(&report.http));
    let top = nice(engine.iter().chain(&http).copied().fold(best, f64::max));
    panel(out, LEFTS[0], "Requests per second", &clients, top);
    let y = height_of(best, top);
    let (left, right) = (LEFTS[0], LEFTS[0] + PANEL.0);
    let _ = write!(
        out,
        "<line class=\"c\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke-width=\"2\" stroke-dasharray=\"2 4\"/>\
         <text class=\"muted\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"12\">bare, best batch</text>",
        y - 6.0
    );
    series(out, LEFTS[0], &engine, top, Mark::Square, false);
    series(out, LEFTS[0], &http, top, Mark::Circle, false);

    let of = |lines: &[Line], latency: &dyn Fn(&Line) -> f64| -> Vec<f64> { lines.iter().map(latency).collect() };
    let p50 = |line: &Line| line.summary.p50_ms;
    let p99 = |line: &Line| line.summary.p99_ms;
    let highest = report.in_process.iter().chain(&report.http).map(p99).fold(0.0, f64::max);
    let top = nice(highest);
    panel(out, LEFTS[1], "Latency, ms", &clients, top);
    for (lines, mark) in [(&report.in_process, Mark::Square), (&report.http, Mark::Circle)] {
        series(out, LEFTS[1], &of(lines, &p50), top, mark, false);
        series(out, LEFTS[1], &of(lines, &p99), top, mark, true);
    }
    legend(out);
    out.push_str("</svg>\n");
}

#[derive(Clone, Copy)]
enum Mark {
    /// In process.
    Square,
    /// HTTP.
    Circle,
}

impl Mark {
    fn class(self) -> &'static str {
        match self {
            Mark::Square => "b",
            Mark::Circle => "a",
        }
    }

    fn draw(self, out: &mut String, x: f64, y: f64) {
        let _ = match self {
            Mark::Square => {
                write!(out, "<rect class=\"bf\" x=\"{:.1}\" y=\"{:.1}\" width=\"8\" height=\"8\"/>", x - 4.0, y - 4.0)
            }
            Mark::Circle => write!(out, "<circle class=\"af\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>"),
        };
    }
}

/// Frame, grid and labels of one panel.
fn panel(out: &mut String, left: f64, title: &str, clients: &[usize], top: f64) {
    let (right, bottom) = (left + PANEL.0, TOP + PANEL.1);
    let _ = write!(out, "<text class=\"ink\" x=\"{left}\" y=\"{}\" font-weight=\"600\">{title}</text>", TOP - 16.0);
    for tick in 0..=TICKS {
        let value = top * tick as f64 / TICKS as f64;
        let y = height_of(value, top);
        // What is left of a division is not shown.
        let label = format!("{}", (value * 1e6).round() / 1e6);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"muted\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            left - 8.0,
            y + 4.0
        );
    }
    for (index, clients_here) in clients.iter().enumerate() {
        let x = place_of(left, index, clients.len());
        let _ = write!(
            out,
            "<text class=\"muted\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{clients_here}</text>",
            bottom + 20.0
        );
    }
    let middle = left + PANEL.0 / 2.0;
    let _ = write!(
        out,
        "<text class=\"muted\" x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">clients</text>",
        bottom + 40.0
    );
}

fn series(out: &mut String, left: f64, values: &[f64], top: f64, mark: Mark, dashed: bool) {
    let points: Vec<(f64, f64)> = values
        .iter()
        .enumerate()
        .map(|(index, value)| (place_of(left, index, values.len()), height_of(*value, top)))
        .collect();
    let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let dashes = if dashed { " stroke-dasharray=\"6 4\"" } else { "" };
    let _ = write!(
        out,
        "<polyline class=\"{}\" points=\"{}\" fill=\"none\" stroke-width=\"2\"{dashes}/>",
        mark.class(),
        path.join(" ")
    );
    points.into_iter().for_each(|(x, y)| mark.draw(out, x, y));
}

fn legend(out: &mut String) {
    let y = 26.0;
    for (x, mark, text) in [(520.0, Mark::Circle, "HTTP"), (590.0, Mark::Square, "in process")] {
        mark.draw(out, x, y - 4.0);
        let _ = write!(out, "<text class=\"ink\" x=\"{}\" y=\"{y}\">{text}</text>", x + 10.0);
    }
    let _ = write!(
        out,
        "<text class=\"muted\" x=\"{}\" y=\"{y}\" text-anchor=\"end\">p50 solid, p99 dashed</text>",
        WIDTH - 24.0
    );
}

fn place_of(left: f64, index: usize, count: usize) -> f64 {
    // A point by itself stands in the middle.
    let share = if count > 1 { index as f64 / (count - 1) as f64 } else { 0.5 };
    left + 16.0 + share * (PANEL.0 - 32.0)
}

fn height_of(value: f64, top: f64) -> f64 {
    TOP + PANEL.1 * (1.0 - (value / top).clamp(0.0, 1.0))
}

/// The next of a few steps of a power of ten: the ticks below it are short numbers.
fn nice(highest: f64) -> f64 {
    if !(highest > 0.0 && highest.is_finite()) {
        return 1.0;
    }
    let power = 10f64.powf(highest.log10().floor());
    // The logarithm may be a little off at the powers themselves.
    let steps = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0].map(|step| step * power);
    steps.into_iter().find(|step| *step >= highest).unwrap_or(highest)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::report::tests::report;

    #[test]
    fn the_axis_ends_at_a_short_number() {
        for (highest, expected) in
            [(0.0, 1.0), (f64::NAN, 1.0), (0.7, 0.8), (1.0, 1.0), (1.1, 1.5), (42.0, 50.0), (12_345.0, 15_000.0)]
        {
            assert!((nice(highest) - expected).abs() < 1e-9, "{highest}: {}", nice(highest));
        }
    }

    #[test]
    fn every_point_is_inside_its_panel() {
        for count in 1..5 {
            for index in 0..count {
                let x = place_of(100.0, index, count);
                assert!((100.0..=100.0 + PANEL.0).contains(&x));
            }
        }
        for value in [-1.0, 0.0, 5.0, 10.0, 11.0] {
            assert!((TOP..=TOP + PANEL.1).contains(&height_of(value, 10.0)));
        }
    }

    #[test]
    fn the_picture_is_whole_and_has_a_mark_for_each_number() {
        let picture = svg(&report());
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        // Two clients, once in the throughput and twice in the latencies, and one in the legend.
        assert_eq!(picture.matches("<circle").count(), 2 + 2 * 2 + 1);
        assert_eq!(picture.matches("<polyline").count(), 2 + 4);
        for text in
            ["m version 1", "Requests per second", "Latency, ms", "bare, best batch", "prefers-color-scheme:dark"]
        {
            assert!(picture.contains(text), "{text}");
        }
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
        let opened = picture.matches('<').count() - picture.matches("</").count() - picture.matches("/>").count();
        assert_eq!(opened, picture.matches("</").count());
    }

    #[test]
    fn names_cannot_end_their_element() {
        assert_eq!(escape("<a&\">"), "&lt;a&amp;&quot;&gt;");
    }
}
