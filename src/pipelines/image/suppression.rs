//! Thins out the boxes that a detector found, as a pure function: of boxes of one class that overlap, the best stays.
//!
//! Invariants: what is kept is finite, sorted best first and at most as many as asked for; no two kept boxes of a class
//! overlap by more than the limit. Its work is bounded by [`MAX_CANDIDATES`] times what is kept. Knows no model.

use std::cmp::Reverse;

/// Only so many of the best boxes are looked at; detectors without a threshold give more, and nobody reads them.
pub(crate) const MAX_CANDIDATES: usize = 30_000;

/// A box of one class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) class: usize,
    pub(crate) score: f32,
    /// xmin, ymin, xmax, ymax.
    pub(crate) edges: [f64; 4],
}

/// The best [`MAX_CANDIDATES`] of what is found, in no order; those that are not finite are left out. Takes memory for
/// twice as many, however many are found.
pub(crate) fn best(found: impl Iterator<Item = Candidate>) -> Vec<Candidate> {
    let by_score = |a: &Candidate, b: &Candidate| b.score.total_cmp(&a.score);
    let cut = |kept: &mut Vec<Candidate>| {
        if kept.len() > MAX_CANDIDATES {
            kept.select_nth_unstable_by(MAX_CANDIDATES, by_score);
            kept.truncate(MAX_CANDIDATES);
        }
    };
    let mut kept = Vec::new();
    for candidate in found.filter(is_usable) {
        kept.push(candidate);
        if kept.len() >= 2 * MAX_CANDIDATES {
            cut(&mut kept);
        }
    }
    cut(&mut kept);
    kept
}

/// The best `most` of `candidates`, best first; with `iou`, without those that overlap a better box of their class by more
/// than that share of what both cover. Boxes that are not finite, or end before they start, are dropped.
pub(crate) fn suppress(mut candidates: Vec<Candidate>, iou: Option<f64>, most: usize) -> Vec<Candidate> {
    candidates.retain(is_usable);
    // Finite: equal scores stay in the model's order.
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates.truncate(MAX_CANDIDATES);
    let Some(limit) = iou else {
        candidates.truncate(most);
        return candidates;
    };
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        if kept.len() == most {
            break;
        }
        let covered = |better: &Candidate| better.class == candidate.class && overlap(better, &candidate) > limit;
        if !kept.iter().any(covered) {
            kept.push(candidate);
        }
    }
    kept
}

fn is_usable(candidate: &Candidate) -> bool {
    let [xmin, ymin, xmax, ymax] = candidate.edges;
    // As the answer has them: single precision.
    let finite = candidate.edges.iter().all(|&edge| (edge as f32).is_finite());
    candidate.score.is_finite() && finite && xmin <= xmax && ymin <= ymax
}

/// Intersection over union, 0 to 1.
fn overlap(a: &Candidate, b: &Candidate) -> f64 {
    let ([ax0, ay0, ax1, ay1], [bx0, by0, bx1, by1]) = (a.edges, b.edges);
    let width = (ax1.min(bx1) - ax0.max(bx0)).max(0.0);
    let height = (ay1.min(by1) - ay0.max(by0)).max(0.0);
    let both = width * height;
    let union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - both;
    if union > 0.0 { both / union } else { 0.0 }
}

/// The place and value of the largest number, the first of equal ones; `None` where there is none or one is NaN.
pub(crate) fn largest(values: &[f32]) -> Option<(usize, f32)> {
    if values.iter().any(|value| value.is_nan()) {
        return None;
    }
    let best = |a: &(usize, f32), b: &(usize, f32)| a.1.total_cmp(&b.1).then(Reverse(a.0).cmp(&Reverse(b.0)));
    values.iter().copied().enumerate().max_by(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(class: usize, score: f32, edges: [f64; 4]) -> Candidate {
        Candidate { class, score, edges }
    }

    #[test]
    fn the_best_of_overlapping_boxes_stays() {
        let (low, high) = (candidate(0, 0.4, [0.0, 0.0, 10.0, 10.0]), candidate(0, 0.9, [1.0, 0.0, 11.0, 10.0]));
        let (other, far) = (candidate(1, 0.5, [0.0, 0.0, 10.0, 10.0]), candidate(0, 0.3, [20.0, 0.0, 30.0, 10.0]));
        let all = vec![low, high, other, far];
        assert_eq!(suppress(all.clone(), Some(0.5), 9), [high, other, far]);
        assert_eq!(suppress(all.clone(), Some(0.9), 9), [high, other, low, far]);
        assert_eq!(suppress(all.clone(), None, 2), [high, other]);
        assert_eq!(suppress(all, Some(0.5), 1), [high]);
    }

    #[test]
    fn boxes_that_are_no_numbers_are_dropped() {
        let edges = [0.0, 0.0, 1.0, 1.0];
        let good = candidate(0, 0.5, edges);
        let mut all = vec![good, candidate(0, f32::NAN, edges), candidate(0, f32::INFINITY, edges)];
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
            all.extend((0..4).map(|at| {
                let mut edges = edges;
                edges[at] = bad;
                candidate(0, 0.5, edges)
            }));
        }
        all.push(candidate(0, 0.5, [1.0, 0.0, 0.0, 1.0]));
        assert_eq!(suppress(all, Some(0.5), 9), [good]);
    }

    #[test]
    fn of_many_boxes_the_best_are_looked_at() {
        let count = 3 * MAX_CANDIDATES;
        let found = (0..count).map(|at| candidate(at, (at * 7 % count) as f32, [0.0, 0.0, 1.0, 1.0]));
        let mut kept = best(found);
        kept.sort_by(|a, b| b.score.total_cmp(&a.score));
        let scores: Vec<_> = kept.iter().map(|one| one.score).collect();
        assert_eq!(scores.len(), MAX_CANDIDATES);
        assert!(scores.iter().enumerate().all(|(place, &score)| score == (count - 1 - place) as f32));
        let odd = [candidate(0, f32::NAN, [0.0; 4]), candidate(0, 0.5, [f64::NAN; 4]), candidate(0, 0.5, [0.0; 4])];
        assert_eq!(best(odd.into_iter()), odd[2..]);
    }

    #[test]
    fn the_first_of_equal_values_is_the_largest() {
        assert_eq!(largest(&[1.0, 3.0, 3.0, -0.0]), Some((1, 3.0)));
        assert_eq!(largest(&[f32::NEG_INFINITY]), Some((0, f32::NEG_INFINITY)));
        assert_eq!(largest(&[1.0, f32::NAN]), None);
        assert_eq!(largest(&[]), None);
    }

    fn any_candidate() -> impl Strategy<Value = Candidate> {
        let start = prop_oneof![19 => -50.0..50.0f64, 1 => Just(f64::NAN), 1 => Just(f64::INFINITY)];
        let length = -1.0..60.0f64;
        let score = prop_oneof![9 => 0.0..1.0f32, 1 => Just(f32::NAN)];
        (0..3usize, score, [start.clone(), start], [length.clone(), length])
            .prop_map(|(class, score, [x, y], [width, height])| candidate(class, score, [x, y, x + width, y + height]))
    }

    proptest! {
        #[test]
        fn kept_boxes_are_the_best_that_do_not_overlap(
            all in prop::collection::vec(any_candidate(), 0..40),
            iou in 0.0..1.0f64,
            most in 1..20usize,
        ) {
            let kept = suppress(all.clone(), Some(iou), most);
            prop_assert!(kept.len() <= most);
            prop_assert!(kept.iter().all(|one| is_usable(one) && all.contains(one)));
            prop_assert!(kept.windows(2).all(|pair| pair[0].score >= pair[1].score));
            for (place, one) in kept.iter().enumerate() {
                let clash = |other: &Candidate| other.class == one.class && overlap(one, other) > iou;
                prop_assert!(!kept[place + 1..].iter().any(clash));
            }
            let dropped = all.iter().filter(|one| is_usable(one) && !kept.contains(one));
            for one in dropped {
                let hidden = kept.iter().any(|better| {
                    better.class == one.class && better.score >= one.score && overlap(better, one) > iou
                });
                let full = kept.len() == most && kept.iter().all(|better| better.score >= one.score);
                prop_assert!(hidden || full, "{one:?} was dropped");
            }
            prop_assert_eq!(suppress(kept.clone(), Some(iou), most), kept);
        }

        #[test]
        fn overlap_is_symmetric_and_a_share(a in any_candidate(), b in any_candidate()) {
            prop_assume!(is_usable(&a) && is_usable(&b));
            let share = overlap(&a, &b);
            prop_assert!((0.0..=1.0 + 1e-9).contains(&share));
            prop_assert!((share - overlap(&b, &a)).abs() < 1e-12);
        }
    }
}
