//! A long sound in overlapping parts, and the frames of each that count, as transformers' `chunk_iter` and
//! `rescale_stride` do it. Pure functions.

/// How a sound is cut, in samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cut {
    pub(super) length: usize,
    /// What a part has in common with the one before it and the one behind it, for context: together less than `length`.
    pub(super) left: usize,
    pub(super) right: usize,
}

/// A part of a sound: `samples[start..end]`, of which the first `left` and the last `right` samples are context only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Part {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) left: usize,
    pub(super) right: usize,
}

impl Cut {
    /// Samples from the beginning of a part to that of the next; at least one.
    pub(super) fn step(&self) -> usize {
        self.length.saturating_sub(self.left.saturating_add(self.right)).max(1)
    }

    /// The parts of a sound of `samples` samples.
    pub(super) fn parts(&self, samples: usize) -> Vec<Part> {
        let mut parts = Vec::new();
        for start in (0..samples).step_by(self.step()) {
            let end = start.saturating_add(self.length).min(samples);
            let is_last = start.saturating_add(self.length) >= samples;
            let left = if start == 0 { 0 } else { self.left };
            let right = if is_last { 0 } else { self.right };
            if end - start > left {
                parts.push(Part { start, end, left, right });
            }
            if is_last {
                break;
            }
        }
        parts
    }
}

impl Part {
    /// The frames of this part that count: from the first up to the second, which is behind the last. A frame is
    /// `samples_per_frame` samples; the graph may give fewer frames than this says.
    pub(super) fn frames(&self, samples_per_frame: u64) -> (usize, usize) {
        // Python rounds halves to even, and so the order of these operations is that of transformers.
        let length = (self.end - self.start) as f64;
        let frames = (length * (1.0 / samples_per_frame.max(1) as f64)).round_ties_even();
        let scaled = |context: usize| (context as f64 / length * frames).round_ties_even() as usize;
        (scaled(self.left), (frames as usize).saturating_sub(scaled(self.right)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_overlap_and_the_ends_have_no_context() {
        let cut = Cut { length: 10, left: 2, right: 3 };
        let parts: Vec<_> = cut.parts(18).iter().map(|part| (part.start, part.end, part.left, part.right)).collect();
        assert_eq!(parts, [(0, 10, 0, 3), (5, 15, 2, 3), (10, 18, 2, 0)]);
        assert_eq!(cut.parts(0), []);
        assert_eq!(cut.parts(7), [Part { start: 0, end: 7, left: 0, right: 0 }]);
        let huge = Cut { length: usize::MAX, left: usize::MAX, right: 1 };
        assert_eq!(huge.parts(3), [Part { start: 0, end: 3, left: 0, right: 0 }]);
    }

    #[test]
    fn frames_are_rounded_as_python_does() {
        // rescale_stride([(48000, 8000, 8000)], 1 / 320) is [(150, 25, 25)].
        assert_eq!(Part { start: 0, end: 48_000, left: 8_000, right: 8_000 }.frames(320), (25, 125));
        // 2.5 and 3.5 frames: halves go to the even neighbour.
        assert_eq!(Part { start: 0, end: 800, left: 0, right: 0 }.frames(320), (0, 2));
        assert_eq!(Part { start: 0, end: 1_120, left: 0, right: 0 }.frames(320), (0, 4));
    }

    proptest! {
        #[test]
        fn what_counts_of_the_parts_is_the_whole_sound_once(
            samples in 1usize..5_000, step in 1usize..400, left in 0usize..200, right in 0usize..200,
        ) {
            let cut = Cut { length: step + left + right, left, right };
            let mut next = 0;
            for part in cut.parts(samples) {
                prop_assert_eq!(part.start + part.left, next);
                next = part.end - part.right;
                prop_assert!(part.end - part.start <= cut.length);
            }
            prop_assert_eq!(next, samples);
        }

        #[test]
        fn no_frame_counts_twice_where_parts_are_whole_frames(
            samples in 400usize..40_000, step in 1usize..20, left in 0usize..6, right in 0usize..6,
        ) {
            let frame = 320;
            let cut = Cut { length: (step + left + right) * frame, left: left * frame, right: right * frame };
            let counted: usize = cut.parts(samples).iter().map(|part| {
                let (first, end) = part.frames(frame as u64);
                end.saturating_sub(first)
            }).sum();
            prop_assert!(counted.abs_diff(samples / frame) <= 1, "{} frames of {}", counted, samples);
        }
    }
}
