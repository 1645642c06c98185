//! Probabilities of speech, window by window, to the parts of a sound in which somebody speaks. Pure functions.
//!
//! The rules are those that Silero documents for its detectors: a part begins where a window reaches the threshold, and ends
//! where the probability fell below a lower one and did not reach the threshold for long enough; what is too short is left
//! out, and what is left grows by a margin on both sides, without overlapping. A part that becomes too long is cut at its
//! longest pause.

/// Silence inside of a part that is longer than this is a pause.
const PAUSE_SECONDS: f64 = 0.098;

/// What counts as speech. Lengths in samples; fractions count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rules {
    /// From here on a window is speech.
    pub(super) threshold: f64,
    /// Below this a part that has begun may end; at most the threshold.
    pub(super) neg_threshold: f64,
    /// Parts must be longer.
    pub(super) min_speech: f64,
    /// Silence that ends a part.
    pub(super) min_silence: f64,
    /// What a part grows by at each end.
    pub(super) pad: usize,
    /// A part that becomes longer is cut: at its longest pause, or right there where it had none.
    pub(super) max_speech: f64,
}

/// How a sound was cut into windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Windows {
    /// Samples of a window, at least one.
    pub(super) size: usize,
    /// Samples of the sound, of which the last window may have fewer than `size`.
    pub(super) length: usize,
    /// Samples a second.
    pub(super) rate: u32,
}

/// A part of the sound, in samples.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spoken {
    pub(super) start: usize,
    pub(super) end: usize,
    /// Mean probability of its windows, those of the margin left out.
    pub(super) score: f32,
}

/// A part that has begun.
#[derive(Clone, Copy)]
struct Open {
    start: usize,
    /// Where it fell silent, where it has not been loud since.
    silent: Option<usize>,
    /// The longest pause so far: where it began, and where speech went on.
    pause: Option<(usize, usize)>,
}

impl Open {
    fn at(start: usize) -> Open {
        Open { start, silent: None, pause: None }
    }

    /// It is loud at `at`: what silence there was is over, and was a pause if it was longer than `shortest`.
    fn resume(&mut self, at: usize, shortest: f64) {
        let Some(silent) = self.silent.take() else { return };
        let longest = self.pause.map_or(0, |(end, resumed)| resumed - end);
        if (at - silent) as f64 > shortest && at - silent > longest {
            self.pause = Some((silent, at));
        }
    }
}

/// The parts in which somebody speaks, in order.
pub(super) fn spoken(probabilities: &[f32], windows: Windows, rules: &Rules) -> Vec<Spoken> {
    let mut parts = found(probabilities, windows, rules);
    let scores: Vec<f32> = parts.iter().map(|part| mean(probabilities, windows.size, *part)).collect();
    widen(&mut parts, rules.pad, windows.length);
    parts.into_iter().zip(scores).map(|((start, end), score)| Spoken { start, end, score }).collect()
}

fn found(probabilities: &[f32], windows: Windows, rules: &Rules) -> Vec<(usize, usize)> {
    let mut parts = Vec::new();
    let is_longer = |start: usize, end: usize, limit: f64| end.saturating_sub(start) as f64 > limit;
    let mut open: Option<Open> = None;
    for (index, &probability) in probabilities.iter().enumerate() {
        let (at, probability) = (index * windows.size, f64::from(probability));
        let is_loud = probability >= rules.threshold;
        let Some(mut part) = open.take() else {
            open = is_loud.then(|| Open::at(at));
            continue;
        };
        if is_loud {
            part.resume(at, PAUSE_SECONDS * f64::from(windows.rate));
        }
        if is_longer(part.start, at, rules.max_speech) {
            let Some((end, resumed)) = part.pause else {
                parts.push((part.start, at));
                continue;
            };
            parts.push((part.start, end));
            part = Open::at(resumed);
        }
        if probability < rules.neg_threshold {
            let silent = *part.silent.get_or_insert(at);
            if (at - silent) as f64 >= rules.min_silence {
                if is_longer(part.start, silent, rules.min_speech) {
                    parts.push((part.start, silent));
                }
                continue;
            }
        }
        open = Some(part);
    }
    if let Some(part) = open
        && is_longer(part.start, windows.length, rules.min_speech)
    {
        parts.push((part.start, windows.length));
    }
    parts
}

/// Mean probability of the windows that begin inside of a part.
fn mean(probabilities: &[f32], size: usize, (start, end): (usize, usize)) -> f32 {
    let windows = probabilities.get(start / size..end.div_ceil(size).min(probabilities.len())).unwrap_or_default();
    let sum: f64 = windows.iter().map(|&probability| f64::from(probability)).sum();
    (sum / windows.len().max(1) as f64) as f32
}

/// Each part grows by `pad` at both ends; neighbours that are nearer than that share what is between them.
fn widen(parts: &mut [(usize, usize)], pad: usize, length: usize) {
    if let Some((start, _)) = parts.first_mut() {
        *start = start.saturating_sub(pad);
    }
    if let Some((_, end)) = parts.last_mut() {
        *end = end.saturating_add(pad).min(length);
    }
    for place in 1..parts.len() {
        let Some([(_, end), (start, _)]) = parts.get_mut(place - 1..=place) else { continue };
        let between = start.saturating_sub(*end);
        let by = if between < pad.saturating_mul(2) { between / 2 } else { pad };
        *end += by;
        *start -= by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: Rules = Rules {
        threshold: 0.5,
        neg_threshold: 0.35,
        min_speech: 25.0,
        min_silence: 20.0,
        pad: 3,
        max_speech: f64::INFINITY,
    };

    /// One window of ten samples a letter: `S` is speech, `m` is between the thresholds, `.` is silence.
    fn parts(sound: &str, rules: &Rules) -> Vec<(usize, usize)> {
        let probability = |letter| match letter {
            'S' => 0.9,
            'm' => 0.4,
            _ => 0.1,
        };
        let probabilities: Vec<f32> = sound.chars().map(probability).collect();
        let windows = Windows { size: 10, length: probabilities.len() * 10, rate: 100 };
        spoken(&probabilities, windows, rules).iter().map(|part| (part.start, part.end)).collect()
    }

    #[track_caller]
    fn check(sound: &str, rules: Rules, expected: &[(usize, usize)]) {
        assert_eq!(parts(sound, &rules), expected, "{sound}");
    }

    #[test]
    fn parts_begin_at_the_threshold_and_end_with_silence() {
        check("", RULES, &[]);
        check("....", RULES, &[]);
        check("mmmm", RULES, &[]);
        check("..SSSS...", RULES, &[(17, 63)]);
        // Silence shorter than min_silence, and what is between the thresholds, end nothing.
        check("SSS..SSS...", RULES, &[(0, 83)]);
        check("SSSmmmmmSS...", RULES, &[(0, 103)]);
        // Between the thresholds silence goes on: it is counted from where it began.
        check("SSSS.m.SSSSS", RULES, &[(0, 43), (67, 120)]);
        check("SSSS", RULES, &[(0, 40)]);
    }

    #[test]
    fn what_is_too_short_is_left_out() {
        check("SS...SSSS...", RULES, &[(47, 93)]);
        check(".....SS", RULES, &[]);
        check("SS...", Rules { min_speech: 20.0, ..RULES }, &[]);
        check("SS...", Rules { min_speech: 19.0, ..RULES }, &[(0, 23)]);
    }

    #[test]
    fn neighbours_share_what_is_between_them() {
        check("SSSS...SSSS", Rules { pad: 15, ..RULES }, &[(0, 55), (55, 110)]);
        check("SSSS...SSSS", Rules { pad: 16, ..RULES }, &[(0, 55), (55, 110)]);
        check("SSSS...SSSS", Rules { pad: 14, ..RULES }, &[(0, 54), (56, 110)]);
        check(".SSSS....", Rules { pad: 1_000, ..RULES }, &[(0, 90)]);
    }

    #[test]
    fn long_parts_are_cut_at_the_longest_pause_or_where_they_are() {
        let short = Rules { max_speech: 80.0, min_silence: 40.0, pad: 0, ..RULES };
        check("SSSSSSSSSSSSSS", short, &[(0, 90), (100, 140)]);
        check("SSS..S.SSSSSSSSS", short, &[(0, 30), (50, 140)]);
        check("SSS.S..SSSSSSSSS", short, &[(0, 50), (70, 160)]);
        // The first of equal ones.
        check("SS.SSS.SSSSSSS", short, &[(0, 20), (30, 120)]);
        // What is silent at the cut is no pause yet.
        check("SSSSSSSSS...SSSS", short, &[(0, 90), (120, 160)]);
    }

    #[test]
    fn the_score_is_the_mean_of_the_windows_of_speech() {
        let windows = Windows { size: 10, length: 60, rate: 100 };
        let got = spoken(&[0.0, 0.5, 0.75, 1.0, 0.0, 0.0], windows, &Rules { min_silence: 10.0, pad: 9, ..RULES });
        assert_eq!(got, [Spoken { start: 1, end: 49, score: 0.75 }]);
    }

    #[test]
    fn parts_are_those_of_the_reference() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/voice.json");
        let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for case in golden["rules"].as_array().unwrap() {
            let number = |name: &str| case["parameters"][name].as_f64().unwrap();
            let threshold = number("threshold");
            let rules = Rules {
                threshold,
                neg_threshold: threshold - 0.15,
                min_speech: number("min_speech_duration_ms") * 16.0,
                min_silence: number("min_silence_duration_ms") * 16.0,
                pad: number("speech_pad_ms") as usize * 16,
                max_speech: number("max_speech_duration_s") * 16_000.0 - 512.0 - 32.0 * number("speech_pad_ms"),
            };
            let percent = case["percent"].as_array().unwrap();
            let probabilities = percent.iter().map(|one| (one.as_f64().unwrap() as f32 + 0.5) / 101.0);
            let probabilities: Vec<f32> = probabilities.collect();
            let windows = Windows { size: 512, length: case["length"].as_u64().unwrap() as usize, rate: 16_000 };
            let got = spoken(&probabilities, windows, &rules);
            let got: Vec<[usize; 2]> = got.iter().map(|part| [part.start, part.end]).collect();
            assert_eq!(serde_json::json!(got), case["segments"], "{case}");
        }
    }

    proptest! {
        #[test]
        fn parts_lie_in_the_sound_in_order_and_do_not_overlap(
            probabilities in proptest::collection::vec(0f32..1.0, 0..200), cut in 0usize..10, pad in 0usize..100,
            min_silence in 0f64..60.0, max_speech in 0f64..300.0, neg in 0f64..0.5,
        ) {
            let length = (probabilities.len() * 10).saturating_sub(cut);
            let rules = Rules { pad, min_silence, max_speech, neg_threshold: neg, ..RULES };
            let mut before = 0;
            for part in spoken(&probabilities, Windows { size: 10, length, rate: 100 }, &rules) {
                prop_assert!(before <= part.start && part.start <= part.end && part.end <= length);
                prop_assert!((0.0..=1.0).contains(&part.score));
                before = part.end;
            }
        }
    }
}
