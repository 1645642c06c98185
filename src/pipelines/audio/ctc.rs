//! Frames to characters by greedy CTC (Graves et al. 2006), and characters to words, as transformers'
//! `Wav2Vec2CTCTokenizer` does it. Pure functions.

/// A token that was said and its frames: from `start` up to `end`, which is behind the last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spoken<T> {
    pub(super) token: T,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The class of the largest logit of each frame, the first where several are equal. `logits` has `classes` for each frame.
pub(super) fn best_classes(logits: &[f32], classes: usize) -> Vec<usize> {
    let best = |frame: &[f32]| {
        let mut best = (0, f32::NEG_INFINITY);
        for (class, &logit) in frame.iter().enumerate() {
            if logit > best.1 {
                best = (class, logit);
            }
        }
        best.0
    };
    logits.chunks_exact(classes.max(1)).map(best).collect()
}

/// What is said: of neighbours that are the same, one, and no blanks.
pub(super) fn collapse<T: PartialEq + Copy>(frames: &[T], blank: T) -> Vec<Spoken<T>> {
    let mut spoken = Vec::new();
    let mut start = 0;
    for run in frames.chunk_by(|a, b| a == b) {
        let end = start + run.len();
        match run.first() {
            Some(&token) if token != blank => spoken.push(Spoken { token, start, end }),
            _ => {}
        }
        start = end;
    }
    spoken
}

/// The words between delimiters, each from the beginning of its first character to the end of its last.
pub(super) fn words(characters: &[Spoken<&str>], delimiter: &str) -> Vec<Spoken<String>> {
    let between = characters.split(|character| character.token == delimiter);
    between
        .filter_map(|word| {
            let (first, last) = (word.first()?, word.last()?);
            let token = word.iter().map(|character| character.token).collect();
            Some(Spoken { token, start: first.start, end: last.end })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said<T: PartialEq + Copy>(frames: &[T], blank: T) -> Vec<(T, usize, usize)> {
        collapse(frames, blank).iter().map(|spoken| (spoken.token, spoken.start, spoken.end)).collect()
    }

    #[test]
    fn repeats_are_one_unless_a_blank_is_between_them() {
        let frames: Vec<char> = "_hh_e_ll_llo__".chars().collect();
        let expected = [('h', 1, 3), ('e', 4, 5), ('l', 6, 8), ('l', 9, 11), ('o', 11, 12)];
        assert_eq!(said(&frames, '_'), expected);
        assert_eq!(said(&['_'; 4], '_'), []);
        assert_eq!(said::<char>(&[], '_'), []);
    }

    #[test]
    fn words_lie_between_delimiters() {
        let frames = ["|", "a", "a", "|", "|", "_", "|", "b", "c", "_", "|"];
        let words = words(&collapse(&frames, "_"), "|");
        let got: Vec<_> = words.iter().map(|word| (word.token.as_str(), word.start, word.end)).collect();
        assert_eq!(got, [("a", 1, 3), ("bc", 7, 9)]);
    }

    #[test]
    fn the_first_of_equal_classes_is_best() {
        let nan = f32::NAN;
        assert_eq!(best_classes(&[0.0, 1.0, 1.0, -5.0, -6.0, nan, nan, nan, nan], 3), [1, 0, 0]);
        assert_eq!(best_classes(&[], 3), [0usize; 0]);
        assert_eq!(best_classes(&[1.0, 2.0], 0), [0, 0]);
    }

    proptest! {
        #[test]
        fn what_is_said_covers_all_frames_but_blanks(frames in proptest::collection::vec(0u8..4, 0..60)) {
            let spoken = collapse(&frames, 0);
            let mut covered = vec![0u8; frames.len()];
            for one in &spoken {
                prop_assert!(one.start < one.end);
                covered[one.start..one.end].fill(one.token);
            }
            prop_assert_eq!(covered, frames);
            for pair in spoken.windows(2) {
                prop_assert!(pair[0].end < pair[1].start || pair[0].token != pair[1].token);
            }
        }

        #[test]
        fn repeating_each_frame_changes_no_token(frames in proptest::collection::vec(0u8..4, 0..40), times in 1usize..4) {
            let longer: Vec<u8> = frames.iter().flat_map(|&frame| std::iter::repeat_n(frame, times)).collect();
            let tokens = |frames: &[u8]| collapse(frames, 0).iter().map(|one| one.token).collect::<Vec<_>>();
            prop_assert_eq!(tokens(&longer), tokens(&frames));
        }

        #[test]
        fn words_joined_are_the_text_without_delimiters(frames in proptest::collection::vec(0usize..4, 0..60)) {
            let names = ["_", "|", "a", "b"];
            let frames: Vec<&str> = frames.into_iter().map(|at| names[at]).collect();
            let characters = collapse(&frames, "_");
            let joined: String = words(&characters, "|").into_iter().map(|word| word.token).collect();
            let text: String = characters.iter().map(|one| one.token).filter(|&token| token != "|").collect();
            prop_assert_eq!(joined, text);
        }
    }
}
