//! The vectors of a text's tokens to one vector, as sentence-transformers' Pooling module does it.
//!
//! Pure. Invariant of the caller: every token counts, there is no padding among them.

/// How tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// The first token's.
    Cls,
    /// The largest of each component.
    Max,
    Mean,
    /// The sum divided by the root of the number of tokens.
    MeanSqrtLen,
    /// The mean weighted by the tokens' places, 1 for the first.
    WeightedMean,
    LastToken,
}

impl Pooling {
    /// All modes, in the order in which several are put one after another; the key in `1_Pooling/config.json`, then the
    /// short name.
    pub(crate) const ALL: [(Pooling, &'static str, &'static str); 6] = [
        (Pooling::Cls, "pooling_mode_cls_token", "cls"),
        (Pooling::Max, "pooling_mode_max_tokens", "max"),
        (Pooling::Mean, "pooling_mode_mean_tokens", "mean"),
        (Pooling::MeanSqrtLen, "pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        (Pooling::WeightedMean, "pooling_mode_weightedmean_tokens", "weightedmean"),
        (Pooling::LastToken, "pooling_mode_lasttoken", "lasttoken"),
    ];

    pub(crate) fn from_name(name: &str) -> Option<Pooling> {
        Pooling::ALL.iter().find(|(_, _, short)| *short == name).map(|(mode, _, _)| *mode)
    }

    pub(crate) fn name(self) -> &'static str {
        Pooling::ALL.iter().find(|(mode, _, _)| *mode == self).map_or("", |(_, _, name)| name)
    }

    /// The pooled vector of `values`, token by token, each of `width` numbers. The first `skipped` tokens do not count,
    /// except that the first token is the first token.
    pub(crate) fn pool(self, values: &[f32], width: usize, skipped: usize) -> Vec<f32> {
        let tokens = || values.chunks_exact(width.max(1));
        let counted = || tokens().enumerate().skip(skipped);
        match self {
            Pooling::Cls => tokens().next().unwrap_or_default().to_vec(),
            Pooling::LastToken => tokens().next_back().unwrap_or_default().to_vec(),
            Pooling::Max => {
                // What masked tokens are given where no other is left.
                let mut largest = vec![if counted().next().is_some() { f32::NEG_INFINITY } else { -1e9 }; width];
                for (_, token) in counted() {
                    for (largest, &value) in largest.iter_mut().zip(token) {
                        if value.is_nan() || value > *largest {
                            *largest = value;
                        }
                    }
                }
                largest
            }
            Pooling::Mean => weighted(counted(), width, |_| 1.0, |sum| sum),
            Pooling::MeanSqrtLen => weighted(counted(), width, |_| 1.0, f64::sqrt),
            Pooling::WeightedMean => weighted(counted(), width, |place| (place + 1) as f64, |sum| sum),
        }
    }
}

/// The weighted sum of `tokens`, divided by what `divisor` makes of the weights' sum.
fn weighted<'a>(
    tokens: impl Iterator<Item = (usize, &'a [f32])>,
    width: usize,
    weight: impl Fn(usize) -> f64,
    divisor: impl Fn(f64) -> f64,
) -> Vec<f32> {
    let mut sums = vec![0f64; width];
    let mut weights = 0f64;
    for (place, token) in tokens {
        let weight = weight(place);
        weights += weight;
        for (sum, &value) in sums.iter_mut().zip(token) {
            *sum += weight * f64::from(value);
        }
    }
    let divisor = divisor(weights.max(1e-9));
    sums.into_iter().map(|sum| (sum / divisor) as f32).collect()
}

/// Scales `vector` to length 1; zeros stay zeros.
pub(crate) fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt().max(1e-12);
    for value in vector {
        *value = (f64::from(*value) / length) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(mode: Pooling, skipped: usize, expected: [f32; 2]) {
        let got = mode.pool(&[1.0, -4.0, 3.0, -2.0, 8.0, -9.0], 2, skipped);
        let near = got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6);
        assert!(got.len() == 2 && near, "{mode:?}: {got:?} is not {expected:?}");
    }

    #[test]
    fn each_mode_is_the_one_of_sentence_transformers() {
        check(Pooling::Cls, 0, [1.0, -4.0]);
        check(Pooling::Max, 0, [8.0, -2.0]);
        check(Pooling::Mean, 0, [4.0, -5.0]);
        check(Pooling::MeanSqrtLen, 0, [12.0 / 3f32.sqrt(), -15.0 / 3f32.sqrt()]);
        check(Pooling::WeightedMean, 0, [31.0 / 6.0, -35.0 / 6.0]);
        check(Pooling::LastToken, 0, [8.0, -9.0]);
    }

    #[test]
    fn skipped_tokens_do_not_count() {
        check(Pooling::Cls, 1, [1.0, -4.0]);
        check(Pooling::Max, 2, [8.0, -9.0]);
        check(Pooling::Mean, 1, [5.5, -5.5]);
        check(Pooling::WeightedMean, 1, [30.0 / 5.0, -31.0 / 5.0]);
        check(Pooling::LastToken, 2, [8.0, -9.0]);
        check(Pooling::Mean, 9, [0.0, 0.0]);
        check(Pooling::Max, 9, [-1e9, -1e9]);
    }

    #[test]
    fn a_number_that_is_none_stays_visible() {
        assert!(Pooling::Max.pool(&[f32::NAN, 1.0], 1, 0)[0].is_nan());
        assert!(Pooling::Mean.pool(&[1.0, f32::NAN], 1, 0)[0].is_nan());
    }

    proptest! {
        #[test]
        fn any_tokens_give_a_vector_of_their_width(width in 1usize..5, count in 1usize..6, skipped in 0usize..8, seed in any::<f32>()) {
            let values: Vec<f32> = (0..width * count).map(|index| seed / (index as f32 + 1.0)).collect();
            for (mode, _, name) in Pooling::ALL {
                prop_assert_eq!(mode.pool(&values, width, skipped).len(), width);
                prop_assert_eq!(Pooling::from_name(name), Some(mode));
            }
        }

        #[test]
        fn a_normalized_vector_has_length_one_or_zero(mut vector in proptest::collection::vec(-1e30f32..1e30, 1..9)) {
            let all_zero = vector.iter().all(|&value| value == 0.0);
            prop_assume!(all_zero || vector.iter().any(|&value| value.abs() > 1e-6));
            normalize(&mut vector);
            let length = vector.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            let expected = if all_zero { 0.0 } else { 1.0 };
            prop_assert!((length - expected).abs() < 1e-5, "{length}");
        }
    }
}
