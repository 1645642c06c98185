//! What a language graph takes: which inputs hold the tokens, by name, and how they may be padded.
//!
//! Known are `input_ids`, `attention_mask`, `token_type_ids` and `position_ids`, each `[batch, tokens]` of INT64 or INT32.

use super::tokenizer::{Tokens, pad_id};
use crate::pipelines::files::read_json_object;
use crate::pipelines::{Padding, PipelineError};
use crate::tensor::{DType, Dim, Spec, Tensor};
use std::path::Path;

/// What an input holds for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Ids,
    /// 1 for a token, 0 for padding.
    Mask,
    /// Which of a pair of texts.
    Types,
    Positions,
}

#[derive(Debug, Clone, PartialEq)]
struct TextInput {
    name: String,
    role: Role,
    /// INT64 or INT32.
    dtype: DType,
}

/// The inputs of a graph that takes one text, in the graph's order; `input_ids` is among them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TextInputs(Vec<TextInput>);

fn role_of(name: &str) -> Option<Role> {
    match name {
        "input_ids" => Some(Role::Ids),
        "attention_mask" => Some(Role::Mask),
        "token_type_ids" => Some(Role::Types),
        "position_ids" => Some(Role::Positions),
        _ => None,
    }
}

/// Whether an input of this name holds tokens, or something for each token.
pub(crate) fn is_text_input(name: &str) -> bool {
    role_of(name).is_some()
}

/// Tokens among a run's inputs; 0 where it takes none.
pub fn token_count(inputs: &[(String, Tensor)]) -> usize {
    let ids = inputs.iter().find(|(name, _)| role_of(name) == Some(Role::Ids));
    ids.map_or(0, |(_, ids)| ids.shape().iter().product())
}

/// The element type of whole numbers, where they are of a kind that tokens come in.
fn whole(spec: &Spec) -> Option<DType> {
    spec.ty.dtype().filter(|dtype| matches!(dtype, DType::Int64 | DType::Int32))
}

impl TextInputs {
    /// # Errors
    /// Says in one sentence why a text does not make the graph's inputs.
    pub(crate) fn find(inputs: &[Spec]) -> Result<TextInputs, String> {
        match TextInputs::of_any_length(inputs)? {
            (found, None) => Ok(found),
            (_, Some(length)) => {
                Err(format!("its number of tokens is fixed ({length}); export the graph with a dynamic one"))
            }
        }
    }

    /// The same for a graph that may take texts of one length only, and that length.
    ///
    /// # Errors
    /// As [`TextInputs::find`].
    pub(crate) fn of_any_length(inputs: &[Spec]) -> Result<(TextInputs, Option<usize>), String> {
        let (mut found, mut fixed) = (Vec::new(), None);
        for spec in inputs {
            let Some(role) = role_of(&spec.name) else {
                if spec.optional {
                    continue;
                }
                return Err(format!("the graph needs the input {:?}, which a text does not give", spec.name));
            };
            let refuse = |problem: &str| Err(format!("input {:?} is {}: {problem}", spec.name, spec.ty));
            let Some(dtype) = whole(spec) else { return refuse("expected INT64 or INT32") };
            match spec.ty.shape() {
                None | Some([_, Dim::Dynamic(_)]) => {}
                Some([_, Dim::Fixed(length)]) if fixed.is_none_or(|known| known == *length) => fixed = Some(*length),
                Some([_, Dim::Fixed(_)]) => return refuse("its number of tokens is not that of the other inputs"),
                Some(_) => return refuse("expected a tensor of rank 2, [batch, tokens]"),
            }
            found.push(TextInput { name: spec.name.clone(), role, dtype });
        }
        match found.iter().any(|input| input.role == Role::Ids) {
            true => Ok((TextInputs(found), fixed)),
            false => Err("the graph has no input named \"input_ids\"".to_owned()),
        }
    }

    /// The tensors `[1, tokens]` of one text.
    ///
    /// # Errors
    /// None that foreign data could bring about.
    pub(crate) fn tensors(&self, tokens: &Tokens) -> Result<Vec<(String, Tensor)>, PipelineError> {
        self.rows(std::slice::from_ref(tokens), tokens.ids.len(), &RowPadding::default())
    }

    /// The tensors `[texts, length]` of several texts, none of which has more tokens than `length`.
    ///
    /// # Errors
    /// None that foreign data could bring about.
    pub(crate) fn rows(
        &self,
        texts: &[Tokens],
        length: usize,
        padding: &RowPadding,
    ) -> Result<Vec<(String, Tensor)>, PipelineError> {
        let named = |input: &TextInput| {
            let mut numbers: Vec<i64> = Vec::with_capacity(texts.len().saturating_mul(length));
            for tokens in texts {
                let count = length.saturating_sub(tokens.ids.len());
                let (before, after) = if padding.left { (count, 0) } else { (0, count) };
                let pad = if input.role == Role::Ids { padding.id } else { 0 };
                numbers.extend(std::iter::repeat_n(pad, before));
                match input.role {
                    Role::Ids => numbers.extend(tokens.ids.iter().map(|&id| i64::from(id))),
                    Role::Mask => numbers.extend(std::iter::repeat_n(1, tokens.ids.len())),
                    Role::Types => numbers.extend(tokens.type_ids.iter().map(|&id| i64::from(id))),
                    Role::Positions => numbers.extend((0i64..).take(tokens.ids.len())),
                }
                numbers.extend(std::iter::repeat_n(pad, after));
            }
            let shape = vec![texts.len(), length];
            let tensor = match input.dtype {
                // Token ids are 32 bits wide, and a position is less than the largest limit.
                DType::Int32 => {
                    Tensor::from_vec(DType::Int32, shape, numbers.iter().map(|&x| x as i32).collect::<Vec<i32>>())
                }
                _ => Tensor::from_vec(DType::Int64, shape, numbers),
            };
            match tensor {
                Ok(tensor) => Ok((input.name.clone(), tensor)),
                Err(error) => Err(PipelineError::Setup(format!("input {:?}: {error}", input.name))),
            }
        };
        self.0.iter().map(named).collect()
    }
}

/// What fills up texts that stand in one tensor with longer ones.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct RowPadding {
    /// The padding token.
    pub(crate) id: i64,
    /// Whether it stands before the text.
    pub(crate) left: bool,
}

/// How the inputs of a language graph may be padded, with the padding token that the files in `folder` name. `None` where
/// `input_ids` and `attention_mask` are not both whole numbers of any batch and any length, and where the graph needs an
/// input that is not known here.
///
/// Reads files: call it off the async threads.
pub fn padding_of(folder: &Path, inputs: &[Spec]) -> Option<Padding> {
    let mut padded = Vec::new();
    for spec in inputs {
        let Some(role) = role_of(&spec.name) else {
            if spec.optional {
                continue;
            }
            return None;
        };
        let any_length = matches!(spec.ty.shape(), Some([Dim::Dynamic(_), Dim::Dynamic(_)]));
        if whole(spec).is_none() || !any_length {
            return None;
        }
        padded.push((spec.name.clone(), role));
    }
    let has = |wanted: Role| padded.iter().any(|(_, role)| *role == wanted);
    if !has(Role::Ids) || !has(Role::Mask) {
        return None;
    }
    // A file that is malformed names no token; the padding is masked all the same.
    let config = read_json_object(folder, "config.json").ok().flatten();
    let pad = pad_id(folder, config.as_ref());
    let value = |role| if role == Role::Ids { pad } else { 0 };
    Some(Padding { inputs: padded.into_iter().map(|(name, role)| (name, 1, value(role))).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipelines::image::input_spec as spec;

    fn graph(names: &[&str], dtype: DType, dims: &[i64]) -> Vec<Spec> {
        names.iter().map(|name| spec(name, dtype, dims)).collect()
    }

    const BERT: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

    #[test]
    fn tensors_have_the_type_that_the_graph_declares() {
        let tokens = Tokens { ids: vec![2, 9, 3], type_ids: vec![0, 0, 1], truncated: false };
        let names = ["position_ids", "token_type_ids", "attention_mask", "input_ids"];
        let expected = [[0, 1, 2], [0, 0, 1], [1, 1, 1], [2, 9, 3]];
        for dtype in [DType::Int64, DType::Int32] {
            let tensors = TextInputs::find(&graph(&names, dtype, &[-1, -1])).unwrap().tensors(&tokens).unwrap();
            for ((name, tensor), (wanted, numbers)) in tensors.iter().zip(names.iter().zip(expected)) {
                assert_eq!((name.as_str(), tensor.dtype(), tensor.shape()), (*wanted, dtype, [1, 3].as_slice()));
                match dtype {
                    DType::Int32 => assert_eq!(tensor.elements::<i32>().unwrap().as_ref(), numbers.map(|x| x as i32)),
                    _ => assert_eq!(tensor.elements::<i64>().unwrap().as_ref(), numbers),
                }
            }
        }
    }

    #[test]
    fn graphs_that_do_not_take_a_text_are_refused_with_the_reason() {
        for (inputs, expected) in [
            (graph(&["pixel_values"], DType::Fp32, &[-1, 3, 8, 8]), "needs the input \"pixel_values\""),
            (graph(&["attention_mask"], DType::Int64, &[-1, -1]), "no input named \"input_ids\""),
            (graph(&BERT, DType::Fp32, &[-1, -1]), "expected INT64 or INT32"),
            (graph(&BERT, DType::Int64, &[-1, 128]), "number of tokens is fixed"),
            (graph(&BERT, DType::Int64, &[-1]), "rank 2"),
            (graph(&[], DType::Int64, &[]), "no input named"),
        ] {
            let problem = TextInputs::find(&inputs).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
        let mut with_default = graph(&BERT, DType::Int64, &[1, -1]);
        with_default.push(Spec { optional: true, ..spec("scale", DType::Fp32, &[1]) });
        assert_eq!(TextInputs::find(&with_default).unwrap().0.len(), 3);
        let (_, length) = TextInputs::of_any_length(&graph(&BERT, DType::Int64, &[-1, 77])).unwrap();
        assert_eq!(length, Some(77));
        let torn = [graph(&BERT[..1], DType::Int64, &[-1, 77]), graph(&BERT[1..], DType::Int64, &[-1, 64])].concat();
        assert!(TextInputs::of_any_length(&torn).unwrap_err().contains("not that of the other inputs"));
    }

    #[test]
    fn texts_in_one_tensor_are_filled_up_to_one_length() {
        let tokens = |ids: &[u32]| Tokens { ids: ids.to_vec(), type_ids: vec![1; ids.len()], truncated: false };
        let names = ["position_ids", "token_type_ids", "attention_mask", "input_ids"];
        let inputs = TextInputs::find(&graph(&names, DType::Int64, &[-1, -1])).unwrap();
        let check = |left: bool, expected: [[i64; 6]; 4]| {
            let rows = inputs.rows(&[tokens(&[2, 9, 3]), tokens(&[4])], 3, &RowPadding { id: 7, left }).unwrap();
            for ((_, tensor), expected) in rows.iter().zip(expected) {
                assert_eq!(tensor.shape(), [2, 3]);
                assert_eq!(tensor.elements::<i64>().unwrap().as_ref(), expected);
            }
        };
        check(false, [[0, 1, 2, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [2, 9, 3, 4, 7, 7]]);
        check(true, [[0, 1, 2, 0, 0, 0], [1, 1, 1, 0, 0, 1], [1, 1, 1, 0, 0, 1], [2, 9, 3, 7, 7, 4]]);
    }

    #[test]
    fn only_masked_inputs_of_any_length_are_padded() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"pad_token_id": 5}"#).unwrap();
        let padding = padding_of(folder.path(), &graph(&BERT, DType::Int32, &[-1, -1])).unwrap();
        let expected = [("input_ids", 1, 5), ("attention_mask", 1, 0), ("token_type_ids", 1, 0)];
        assert_eq!(padding.inputs, expected.map(|(name, axis, value)| (name.to_owned(), axis, value)));
        for inputs in [
            graph(&["input_ids"], DType::Int64, &[-1, -1]),
            graph(&["attention_mask"], DType::Int64, &[-1, -1]),
            graph(&BERT, DType::Int64, &[1, -1]),
            graph(&BERT, DType::Int64, &[-1, 128]),
            graph(&BERT, DType::Fp32, &[-1, -1]),
            graph(&BERT, DType::Int64, &[-1, -1, -1]),
            [graph(&BERT, DType::Int64, &[-1, -1]), graph(&["pixel_values"], DType::Fp32, &[-1, -1])].concat(),
            vec![],
        ] {
            assert_eq!(padding_of(folder.path(), &inputs), None, "{inputs:?}");
        }
    }
}
