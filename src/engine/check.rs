//! Checks a request's values against what the graph declares, before anything is queued.
//!
//! ONNX Runtime itself does not notice a missing input before it runs, and its messages are not for clients.

use super::EngineError;
use crate::runtime::Input;
use crate::tensor::{Spec, Value};

/// The values as run inputs, in the graph's order.
///
/// # Errors
/// Names the input that is missing, unknown, doubled, or of another type or shape, with what was expected.
pub(super) fn inputs(specs: &[Spec], values: Vec<(String, Value)>) -> Result<Vec<Input>, EngineError> {
    let mut inputs: Vec<Input> = Vec::with_capacity(values.len());
    for (name, value) in values {
        let Some(index) = specs.iter().position(|spec| spec.name == name) else {
            let known = names(specs.iter());
            return Err(EngineError::input(
                &name,
                format!("the model has no input of this name; its inputs are {known}"),
            ));
        };
        if inputs.iter().any(|(seen, _)| *seen == index) {
            return Err(EngineError::input(&name, "the input is given twice".to_owned()));
        }
        // The index came from this slice.
        if let Some(spec) = specs.get(index) {
            spec.ty.check(&value).map_err(|mismatch| EngineError::input(&name, mismatch.to_string()))?;
        }
        inputs.push((index, value));
    }
    let missing = |(index, spec): &(usize, &Spec)| !spec.optional && !inputs.iter().any(|(seen, _)| seen == index);
    if let Some((_, spec)) = specs.iter().enumerate().find(missing) {
        let expected = names(specs.iter().filter(|spec| !spec.optional));
        let problem = format!("the input is missing ({}); the model needs {expected}, got {}", spec.ty, inputs.len());
        return Err(EngineError::input(&spec.name, problem));
    }
    Ok(inputs)
}

/// The indices of the outputs asked for; all where none is.
///
/// # Errors
/// Names the output that is unknown or asked for twice.
pub(super) fn outputs(specs: &[Spec], names_wanted: &[String]) -> Result<Vec<usize>, EngineError> {
    if names_wanted.is_empty() {
        return Ok((0..specs.len()).collect());
    }
    let mut indices = Vec::with_capacity(names_wanted.len().min(specs.len()));
    for name in names_wanted {
        let Some(index) = specs.iter().position(|spec| &spec.name == name) else {
            let known = names(specs.iter());
            let problem = format!("the model has no output of this name; its outputs are {known}");
            return Err(EngineError::output(name, problem));
        };
        if indices.contains(&index) {
            return Err(EngineError::output(name, "the output is asked for twice".to_owned()));
        }
        indices.push(index);
    }
    Ok(indices)
}

/// `'a', 'b', 'c'`, cut after 20 so that an answer stays short.
fn names<'a>(specs: impl Iterator<Item = &'a Spec>) -> String {
    let all: Vec<String> = specs.map(|spec| format!("'{}'", spec.name)).collect();
    match all.get(..20) {
        Some(first) if all.len() > 20 => format!("{} and {} more", first.join(", "), all.len() - 20),
        _ => all.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Dim, Tensor, ValueType};

    fn specs() -> Vec<Spec> {
        let ty = |dims: Vec<Dim>| ValueType::Tensor { dtype: DType::Fp32, shape: Some(dims) };
        let spec = |name: &str, optional| Spec {
            name: name.to_owned(),
            ty: ty(vec![Dim::Dynamic(Some("N".into())), Dim::Fixed(2)]),
            optional,
        };
        vec![spec("a", false), spec("b", false), spec("c", true)]
    }

    fn pair(name: &str, shape: &[usize]) -> (String, Value) {
        let count = shape.iter().product();
        (name.to_owned(), Tensor::from_vec(DType::Fp32, shape.to_vec(), vec![0f32; count]).unwrap().into())
    }

    #[track_caller]
    fn check(values: Vec<(String, Value)>, expected: &str) {
        let got = inputs(&specs(), values)
            .map_or_else(|error| error.to_string(), |inputs| format!("{} inputs", inputs.len()));
        assert_eq!(got, expected);
    }

    #[test]
    fn inputs_are_named_with_what_was_expected() {
        check(vec![pair("b", &[1, 2]), pair("a", &[3, 2])], "2 inputs");
        check(
            vec![pair("a", &[1, 2])],
            "input 'b': the input is missing (FP32[N, 2]); the model needs 'a', 'b', got 1",
        );
        check(vec![pair("x", &[1, 2])], "input 'x': the model has no input of this name; its inputs are 'a', 'b', 'c'");
        check(vec![pair("a", &[1, 2]), pair("a", &[1, 2])], "input 'a': the input is given twice");
        check(vec![pair("a", &[1, 3])], "input 'a': expected shape [N, 2], got [1, 3] (dimension 1 must be 2)");
    }

    #[test]
    fn outputs_are_checked_for_doubles() {
        let specs = specs();
        assert_eq!(outputs(&specs, &[]).unwrap(), [0, 1, 2]);
        assert_eq!(outputs(&specs, &["c".into(), "a".into()]).unwrap(), [2, 0]);
        assert!(outputs(&specs, &["a".into(), "a".into()]).is_err());
        assert!(outputs(&specs, &["z".into()]).is_err());
    }
}
