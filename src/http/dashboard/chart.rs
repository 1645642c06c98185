//! Charts as SVG, drawn here so that they need no script. Pure; all numbers are written in the text beside them, too.

use std::fmt::Write;

/// A line of a chart: its class, what it is called, and its points evenly apart, the newest last; gaps where there is none.
pub(super) struct Line {
    pub(super) class: &'static str,
    pub(super) name: &'static str,
    pub(super) points: Vec<Option<f64>>,
}

/// Lines over the time `span`, drawn to one scale, with what they are in words: `title`, `write` for the highest point, and their
/// names where there are several.
pub(super) fn over_time(title: &str, span: &str, lines: &[Line], write: fn(f64) -> String) -> String {
    let points = lines.iter().flat_map(|line| line.points.iter().flatten()).copied().filter(|point| point.is_finite());
    let highest = points.reduce(f64::max);
    let (most, told) = (
        highest.unwrap_or(0.0),
        highest.map_or_else(|| "nothing yet".to_owned(), |most| format!("at most {}", write(most))),
    );
    let label = format!("{title} over {span}, {told}");
    let mut html = format!("<figure class=\"chart\"><figcaption><span>{}</span>", escaped(title));
    for line in lines.iter().filter(|_| lines.len() > 1) {
        let _ = write!(
            html,
            "<span class=\"key\"><svg viewBox=\"0 0 16 10\" aria-hidden=\"true\"><path class=\"stroke {}\" d=\"M0 5H16\"/></svg> {}</span>",
            line.class, line.name
        );
    }
    let _ = write!(html, "<span class=\"most\">{}</span></figcaption>{}", escaped(&told), drawn(lines, most, &label));
    let _ = write!(html, "<p class=\"span\" aria-hidden=\"true\"><span>{span} ago</span><span>now</span></p></figure>");
    html
}

/// An `svg` element that fills its box.
fn drawn(lines: &[Line], most: f64, label: &str) -> String {
    const WIDTH: f64 = 600.0;
    const HEIGHT: f64 = 80.0;
    let scale = if most > 0.0 { (HEIGHT - 4.0) / most } else { 0.0 };
    let mut svg = format!(
        "<svg class=\"line\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">",
        escaped(label)
    );
    for Line { class, points, .. } in lines {
        let step = WIDTH / (points.len().max(2) - 1) as f64;
        let place = |(at, point): (usize, &Option<f64>)| {
            let point = point.filter(|point| point.is_finite())?;
            Some((at as f64 * step, HEIGHT - 2.0 - point.max(0.0) * scale))
        };
        let places: Vec<Option<(f64, f64)>> = points.iter().enumerate().map(place).collect();
        let (mut path, mut area) = (String::new(), String::new());
        for piece in places.split(Option::is_none).filter(|piece| !piece.is_empty()) {
            let piece: Vec<(f64, f64)> = piece.iter().flatten().copied().collect();
            let corners: Vec<String> = piece.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
            // One point alone is a dot: a line of no length with round ends.
            let _ = write!(path, "M{}{}", corners.join("L"), if piece.len() == 1 { "h.01" } else { "" });
            if let (Some((first, _)), Some((last, _))) = (piece.first(), piece.last()) {
                let _ = write!(area, "M{first:.1} {HEIGHT:.1}L{}L{last:.1} {HEIGHT:.1}Z", corners.join("L"));
            }
        }
        if lines.len() == 1 {
            let _ = write!(svg, "<path class=\"area {class}\" d=\"{area}\"/>");
        }
        let _ = write!(svg, "<path class=\"stroke {class}\" d=\"{path}\" vector-effect=\"non-scaling-stroke\"/>");
    }
    svg + "</svg>"
}

/// Parts of a whole side by side, each with its class. Gives nothing where all are 0.
pub(super) fn parts(parts: &[(&str, f64)], label: &str) -> String {
    let whole: f64 = parts.iter().map(|(_, part)| part.max(0.0)).sum();
    if whole <= 0.0 || !whole.is_finite() {
        return String::new();
    }
    let (mut x, mut bars) = (0.0, String::new());
    for (class, part) in parts {
        let width = part.max(0.0) / whole * 100.0;
        let _ = write!(bars, "<rect class=\"{class}\" x=\"{x:.2}\" y=\"0\" width=\"{width:.2}\" height=\"10\"/>");
        x += width;
    }
    format!(
        "<svg class=\"parts\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">{bars}</svg>",
        escaped(label)
    )
}

/// How full something is, 0 to 1.
pub(super) fn gauge(share: f64, label: &str) -> String {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let class = if share >= 0.9 {
        "full"
    } else if share >= 0.75 {
        "near"
    } else {
        "free"
    };
    bar(class, share, label)
}

/// How far something has come, 0 to 1.
pub(super) fn progress(share: f64, label: &str) -> String {
    bar("free", if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }, label)
}

fn bar(class: &str, share: f64, label: &str) -> String {
    format!(
        "<svg class=\"gauge {class}\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">\
         <rect class=\"track\" x=\"0\" y=\"0\" width=\"100\" height=\"10\"/><rect class=\"fill\" x=\"0\" y=\"0\" width=\"{:.2}\" height=\"10\"/></svg>",
        escaped(label),
        share * 100.0
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_gaps_and_stay_inside() {
        let points = vec![None, Some(0.0), Some(10.0), None, Some(5.0), Some(f64::NAN), Some(5.0)];
        let line = |class, points| Line { class, name: "a <b>", points };
        let svg = drawn(&[line("run", points.clone())], 10.0, "a <b>");
        let path = |class: &str| {
            let from = svg.split(&format!("class=\"{class} run\" d=\"")).nth(1).unwrap();
            from.split('"').next().unwrap().to_owned()
        };
        assert_eq!(path("stroke"), "M100.0 78.0L200.0 2.0M400.0 40.0h.01M600.0 40.0h.01");
        assert_eq!(path("area").matches('Z').count(), 3);
        assert!(svg.contains("a &lt;b&gt;") && !svg.contains("NaN"));
        assert!(drawn(&[line("run", Vec::new())], 0.0, "").contains("d=\"\""));
        // Several lines have no areas, and are named.
        let both = over_time("T", "15 min", &[line("run", points), line("queue", vec![Some(20.0)])], |most| {
            format!("{most} x")
        });
        assert!(!both.contains("class=\"area") && both.matches("class=\"key\"").count() == 2, "{both}");
        assert!(over_time("T", "1 min", &[line("run", vec![None])], |_| String::new()).contains(">nothing yet<"));
        assert!(both.contains("T over 15 min, at most 20 x") && both.contains("<span>15 min ago</span>"), "{both}");
    }

    #[test]
    fn parts_fill_the_whole() {
        let svg = parts(&[("queue", 1.0), ("run", 3.0)], "x");
        assert!(svg.contains("width=\"25.00\"") && svg.contains("x=\"25.00\" y=\"0\" width=\"75.00\""), "{svg}");
        assert_eq!(parts(&[("queue", 0.0)], "x"), "");
    }

    #[test]
    fn a_gauge_says_when_it_is_nearly_full() {
        for (share, class) in [(0.2, "free"), (0.8, "near"), (2.0, "full"), (f64::NAN, "free")] {
            assert!(gauge(share, "x").contains(&format!("gauge {class}")));
        }
        assert!(gauge(2.0, "x").contains("width=\"100.00\""));
    }
}
