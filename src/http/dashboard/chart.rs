//! Charts as SVG, drawn here so that they need no script. Pure; all numbers are written in the text beside them, too.

use std::fmt::Write;

/// A line over time, `points` evenly apart, the newest at the right; gaps where there is none. Gives an `svg` element that fills
/// its box.
pub(super) fn line(points: &[Option<f64>], label: &str) -> String {
    const WIDTH: f64 = 600.0;
    const HEIGHT: f64 = 80.0;
    let most = points.iter().flatten().copied().filter(|point| point.is_finite()).fold(0.0, f64::max);
    let scale = if most > 0.0 { (HEIGHT - 4.0) / most } else { 0.0 };
    let step = WIDTH / (points.len().max(2) - 1) as f64;
    let (mut path, mut area, mut start) = (String::new(), String::new(), None);
    for (at, point) in points.iter().enumerate() {
        let x = at as f64 * step;
        match point.filter(|point| point.is_finite()) {
            Some(point) => {
                let y = HEIGHT - 2.0 - point.max(0.0) * scale;
                let _ = write!(path, "{}{x:.1} {y:.1}", if start.is_none() { "M" } else { "L" });
                if start.is_none() {
                    let _ = write!(area, "M{x:.1} {HEIGHT:.1}");
                    start = Some(x);
                }
                let _ = write!(area, "L{x:.1} {y:.1}");
                if at + 1 == points.len() {
                    let _ = write!(area, "L{x:.1} {HEIGHT:.1}Z");
                }
            }
            None => {
                if start.take().is_some() {
                    let _ = write!(area, "L{:.1} {HEIGHT:.1}Z", x - step);
                }
            }
        }
    }
    format!(
        "<svg class=\"line\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">\
         <path class=\"area\" d=\"{area}\"/><path class=\"stroke\" d=\"{path}\" vector-effect=\"non-scaling-stroke\"/></svg>",
        escaped(label)
    )
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
    fn a_line_has_its_gaps_and_stays_inside() {
        let svg = line(&[None, Some(0.0), Some(10.0), None, Some(5.0), Some(f64::NAN), Some(5.0)], "a <b>");
        assert_eq!(svg.matches('M').count(), 6, "{svg}");
        assert_eq!(svg.matches('Z').count(), 3, "{svg}");
        assert!(
            svg.contains("a &lt;b&gt;")
                && !svg.contains("NaN")
                && !svg.contains('-'.to_string().as_str().repeat(2).as_str())
        );
        assert!(line(&[], "").contains("d=\"\""));
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
