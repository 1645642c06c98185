//! A sample of the inputs that a model was asked to run on, for whoever measures forms of its graph on what is really asked.
//!
//! Off unless the settings say otherwise: it holds what requests held. Each input is kept with the same chance, whenever it
//! came (a reservoir). Invariants: bounded in number and in bytes; in memory alone; what is kept holds no request's body.

use super::weight::{own_value, value_bytes};
use crate::tensor::Value;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of all that is kept.
const BYTES_MAX: usize = 64 << 20;

/// One input of a run: its place among the graph's inputs, and its value.
type Input = (usize, Value);

/// Keeps a sample of inputs.
#[derive(Debug)]
pub struct Recorder {
    /// Inputs kept at most; 0 = none, and nothing is looked at.
    most: usize,
    /// A std mutex: held for a few instructions.
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    runs: Vec<Vec<Input>>,
    bytes: usize,
    /// Inputs that came by since the last [`Recorder::clear`].
    seen: u64,
    /// Of a generator of which nothing hangs but which inputs are kept.
    dice: u64,
}

impl Recorder {
    /// Keeps `most` inputs; none where that is 0.
    pub fn new(most: usize) -> Recorder {
        Recorder { most, kept: Mutex::default() }
    }

    /// Keeps a copy of a run's inputs, or does not, as chance has it. Inputs that are not all tensors, or too large, are not.
    pub fn record(&self, inputs: &[Input]) {
        if self.most == 0 {
            return;
        }
        let Some(place) = self.kept().place(self.most) else { return };
        let bytes = bytes_of(inputs);
        if bytes > BYTES_MAX || inputs.iter().any(|(_, value)| value.as_tensor().is_none()) {
            return;
        }
        // The copy is made without the lock.
        let own = inputs.iter().map(|(index, value)| (*index, own_value(value))).collect();
        self.kept().put(place, own, bytes);
    }

    /// What is kept, in no order.
    pub fn recorded(&self) -> Vec<Vec<Input>> {
        self.kept().runs.clone()
    }

    /// Forgets all that is kept and gives its bytes.
    pub fn clear(&self) -> u64 {
        std::mem::take(&mut *self.kept()).bytes as u64
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Where the next input goes: the n-th has a chance of `most` in n.
    fn place(&mut self, most: usize) -> Option<usize> {
        self.seen = self.seen.saturating_add(1);
        if self.runs.len() < most {
            return Some(self.runs.len());
        }
        self.dice = self.dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % self.seen).ok().filter(|place| *place < most)
    }

    /// Others may have come or gone since the place was found; where the bytes do not allow it, nothing changes.
    fn put(&mut self, place: usize, inputs: Vec<Input>, bytes: usize) {
        let old = self.runs.get(place).map_or(0, |old| bytes_of(old));
        let total = self.bytes.saturating_sub(old).saturating_add(bytes);
        if total > BYTES_MAX {
            return;
        }
        if place == self.runs.len() {
            self.runs.push(inputs);
        } else if let Some(kept) = self.runs.get_mut(place) {
            *kept = inputs;
        } else {
            return;
        }
        self.bytes = total;
    }
}

fn bytes_of(inputs: &[Input]) -> usize {
    inputs.iter().map(|(_, value)| value_bytes(value) + size_of::<Input>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Tensor};

    fn input(number: u8, size: usize) -> Vec<Input> {
        vec![(0, Tensor::from_bytes(DType::Uint8, vec![size], vec![number; size]).unwrap().into())]
    }

    fn numbers(recorder: &Recorder) -> Vec<u8> {
        recorder.recorded().iter().map(|run| run[0].1.as_tensor().unwrap().bytes()[0]).collect()
    }

    #[test]
    fn off_is_off() {
        let recorder = Recorder::new(0);
        recorder.record(&input(1, 1));
        assert!(recorder.recorded().is_empty() && recorder.clear() == 0);
    }

    #[test]
    fn all_of_a_stream_have_a_chance_and_no_more_than_asked_for_are_kept() {
        let recorder = Recorder::new(10);
        for number in 0..200 {
            recorder.record(&input(number, 1));
        }
        let kept = numbers(&recorder);
        assert_eq!(kept.len(), 10);
        let (early, late) = (kept.iter().any(|number| *number < 100), kept.iter().any(|number| *number >= 100));
        assert!(early && late, "{kept:?}");
        assert!(recorder.clear() > 0 && recorder.recorded().is_empty());
        recorder.record(&input(7, 1));
        assert_eq!(numbers(&recorder), [7]);
    }

    #[test]
    fn bytes_are_bounded_and_what_is_kept_is_a_copy() {
        let recorder = Recorder::new(100);
        for number in 0..5 {
            recorder.record(&input(number, BYTES_MAX / 4));
        }
        assert_eq!(numbers(&recorder), [0, 1, 2]);
        recorder.record(&input(9, BYTES_MAX + 1));
        recorder.record(&[(0, Value::None)]);
        assert_eq!(recorder.recorded().len(), 3);
        let recorder = Recorder::new(1);
        let run = input(1, 8);
        recorder.record(&run);
        let at = |run: &[Input]| run[0].1.as_tensor().unwrap().bytes().as_ptr();
        assert_ne!(at(&recorder.recorded()[0]), at(&run));
    }
}
