//! What is sent: the inputs of one request, the batches of the bare loop, and the request as it goes over the wire.

use crate::cli::error::CliError;
use crate::engine::LoadedModel;
use crate::load::Request;
use crate::optimize::{is_free, repeat};
use crate::tensor::{DType, Data, Spec, Tensor, Value};
use serde_json::json;

/// Batch sizes that the bare loop tries where dimension 0 is free.
const BATCHES: [usize; 5] = [1, 2, 4, 8, 16];

/// Values by the index of the input.
pub(in crate::cli) type Values = Vec<(usize, Value)>;

pub(in crate::cli) struct Inputs {
    /// Of one request.
    pub(in crate::cli) request: Values,
    /// Rows of one request; 1 where dimension 0 is not free.
    pub(in crate::cli) rows: usize,
    /// Rows and values of the runs of the bare loop; the request's own are among them.
    pub(in crate::cli) bare: Vec<(usize, Values)>,
}

impl Inputs {
    /// From what the graph declares; `batch` rows in each request.
    ///
    /// # Errors
    /// Where the inputs are too large or not tensors, or dimension 0 is fixed and `batch` is given.
    pub(super) fn made_up(model: &LoadedModel, batch: Option<u32>) -> Result<Inputs, CliError> {
        let make = |rows| {
            model
                .made_up_inputs(Some(rows))
                .ok_or(CliError::Bench("the inputs are too large to be made up; give --input"))
        };
        let is_free = is_free(&model.inputs);
        let rows = match batch {
            Some(batch) if batch > 1 && !is_free => {
                return Err(CliError::Bench("dimension 0 of the model's inputs is fixed, so --batch cannot change it"));
            }
            batch => batch.map_or(1, |batch| batch as usize),
        };
        let mut sizes = if is_free { BATCHES.to_vec() } else { vec![1] };
        if !sizes.contains(&rows) {
            sizes.push(rows);
        }
        let bare = sizes.into_iter().map(|size| Ok((size, make(size)?))).collect::<Result<Vec<_>, CliError>>()?;
        Ok(Inputs { request: only_tensors(make(rows)?)?, rows, bare })
    }

    /// From values that the engine has checked.
    ///
    /// # Errors
    /// Where they are not tensors.
    pub(super) fn given(model: &LoadedModel, values: Vec<(String, Value)>) -> Result<Inputs, CliError> {
        let index = |name: &str| model.inputs.iter().position(|spec| spec.name == name);
        let request: Values =
            values.into_iter().filter_map(|(name, value)| index(&name).map(|index| (index, value))).collect();
        let request = only_tensors(request)?;
        let mut rows = request.iter().filter_map(|(_, value)| value.as_tensor()?.shape().first().copied());
        let first = rows.next().unwrap_or(1);
        if !is_free(&model.inputs) || first == 0 || rows.any(|rows| rows != first) {
            return Ok(Inputs { bare: vec![(1, request.clone())], request, rows: 1 });
        }
        let repeated = |times: usize| -> Option<(usize, Values)> {
            let values = request.iter().map(|(index, value)| Some((*index, repeat(value.as_tensor()?, times)?.into())));
            Some((first * times, values.collect::<Option<Values>>()?))
        };
        let bare = BATCHES.iter().filter_map(|times| repeated(*times)).collect();
        Ok(Inputs { bare, request, rows: first })
    }

    /// By the names of the inputs.
    pub(super) fn named(&self, specs: &[Spec]) -> Vec<(String, Value)> {
        let name = |index: usize| specs.get(index).map(|spec| spec.name.clone());
        self.request.iter().filter_map(|(index, value)| Some((name(*index)?, value.clone()))).collect()
    }

    /// The request in the protocol's binary form, asking for binary outputs.
    pub(super) fn wire(&self, model: &LoadedModel) -> Request {
        let mut described = Vec::new();
        let mut tail = Vec::new();
        for (name, value) in self.named(&model.inputs) {
            let Some(tensor) = value.as_tensor() else { continue };
            let before = tail.len();
            append(&mut tail, tensor);
            described.push(json!({
                "name": name,
                "shape": tensor.shape(),
                "datatype": tensor.dtype().name(),
                "parameters": { "binary_data_size": tail.len() - before },
            }));
        }
        let head = json!({ "inputs": described, "parameters": { "binary_data_output": true } }).to_string();
        let body = [head.as_bytes(), &tail].concat();
        let headers =
            format!("Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {}\r\n", head.len());
        let path = format!("/v2/models/{}/versions/{}/infer", model.name, model.version);
        Request::post(&path, &headers, &body)
    }
}

fn only_tensors(values: Values) -> Result<Values, CliError> {
    if values.iter().any(|(_, value)| value.as_tensor().is_none()) {
        return Err(CliError::Bench("the model takes sequences, maps or optional values; only tensors are measured"));
    }
    Ok(values)
}

fn append(tail: &mut Vec<u8>, tensor: &Tensor) {
    match (tensor.data(), tensor.dtype()) {
        (Data::Strings(strings), DType::String) => {
            for text in strings.iter() {
                // A string longer than 4 GB does not fit a request.
                tail.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
                tail.extend(text.as_bytes());
            }
        }
        _ => tail.extend(tensor.bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_have_their_length_before_them() {
        let mut tail = Vec::new();
        append(&mut tail, &Tensor::from_strings(vec![2], vec!["ab".to_owned(), String::new()]).unwrap());
        assert_eq!(tail, [2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0]);
    }
}
