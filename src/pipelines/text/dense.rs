//! sentence-transformers' Dense module: a matrix, a bias and a function, applied to the pooled vector.
//!
//! Weights are read from `model.safetensors` only: a `pytorch_model.bin` is a pickle, which is never opened.

use crate::pipelines::PipelineError;
use crate::pipelines::files::{read_bytes, read_json_object};
use crate::tensor::{DType, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::Path;

/// More than any known: 8192 × 8192 in 32 bits.
const MAX_WEIGHT_BYTES: u64 = 1 << 28;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Dense {
    /// Row after row, one for each number that comes out.
    weights: Vec<f32>,
    /// One for each row; zeros where there is none.
    bias: Vec<f32>,
    /// How many numbers go in.
    pub(crate) width: usize,
    function: Activation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activation {
    Identity,
    Tanh,
    Relu,
    Sigmoid,
    Silu,
}

impl Dense {
    /// The module in the folder `path` of the model's `folder`.
    ///
    /// # Errors
    /// Names what is missing, malformed or not served.
    pub(crate) fn from_folder(folder: &Path, path: &str) -> Result<Dense, PipelineError> {
        let file = |name: &str| format!("{path}/{name}");
        let missing = |name: &str| setup(format!("{} is missing", file(name)));
        let config = read_json_object(folder, &file("config.json"))?.ok_or_else(|| missing("config.json"))?;
        let function = activation(&config).map_err(|problem| setup(format!("{}: {problem}", file("config.json"))))?;
        let Some(bytes) = read_bytes(folder, &file("model.safetensors"), MAX_WEIGHT_BYTES)? else {
            return Err(missing("model.safetensors"));
        };
        let malformed = |problem: &str| setup(format!("{}: {problem}", file("model.safetensors")));
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| malformed(&error.to_string()))?;
        let read = |name: &str| {
            let view = tensors.tensor(name).ok()?;
            let dtype = match view.dtype() {
                Dtype::F32 => DType::Fp32,
                Dtype::F16 => DType::Fp16,
                Dtype::BF16 => DType::Bf16,
                _ => return None,
            };
            let tensor = Tensor::from_bytes(dtype, view.shape().to_vec(), view.data().to_vec()).ok()?;
            Some((tensor.to_f32()?, view.shape().to_vec()))
        };
        let Some((weights, shape)) = read("linear.weight") else {
            return Err(malformed("expected a float tensor named linear.weight"));
        };
        let &[rows, width] = shape.as_slice() else { return Err(malformed("linear.weight is no matrix")) };
        if rows == 0 || width == 0 {
            return Err(malformed("linear.weight is empty"));
        }
        let bias = match read("linear.bias") {
            Some((bias, _)) if bias.len() == rows => bias,
            Some(_) => return Err(malformed("linear.bias does not suit linear.weight")),
            None if config.get("bias") == Some(&Value::Bool(false)) => vec![0.0; rows],
            None => return Err(malformed("expected a float tensor named linear.bias")),
        };
        Ok(Dense { weights, bias, width, function })
    }

    /// How many numbers come out.
    pub(crate) fn rows(&self) -> usize {
        self.bias.len()
    }

    /// `None` where `vector` has another width.
    pub(crate) fn apply(&self, vector: &[f32]) -> Option<Vec<f32>> {
        if vector.len() != self.width {
            return None;
        }
        let row = |(row, bias): (&[f32], &f32)| {
            let sum: f32 = row.iter().zip(vector).map(|(weight, value)| weight * value).sum();
            self.function.apply(sum + bias)
        };
        Some(self.weights.chunks_exact(self.width).zip(&self.bias).map(row).collect())
    }
}

impl Activation {
    fn apply(self, value: f32) -> f32 {
        let sigmoid = || 1.0 / (1.0 + (-value).exp());
        match self {
            Activation::Identity => value,
            Activation::Tanh => value.tanh(),
            // As torch: what is no number stays none.
            Activation::Relu if value < 0.0 => 0.0,
            Activation::Relu => value,
            Activation::Sigmoid => sigmoid(),
            Activation::Silu => value * sigmoid(),
        }
    }
}

/// The function from its Python class, such as `torch.nn.modules.activation.Tanh`.
fn activation(config: &Value) -> Result<Activation, String> {
    let name = match config.get("activation_function") {
        // What the class does where it is told nothing.
        None => return Ok(Activation::Tanh),
        Some(Value::String(name)) => name,
        Some(_) => return Err("activation_function: expected the name of a class".to_owned()),
    };
    match name.rsplit('.').next().unwrap_or_default() {
        "Identity" => Ok(Activation::Identity),
        "Tanh" => Ok(Activation::Tanh),
        "ReLU" => Ok(Activation::Relu),
        "Sigmoid" => Ok(Activation::Sigmoid),
        "SiLU" => Ok(Activation::Silu),
        _ => Err(format!("the activation_function {name:?} is not served")),
    }
}

fn setup(problem: String) -> PipelineError {
    PipelineError::Setup(problem)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    /// Writes a Dense module of `rows` × `width` into `folder`: weights 0, 1, 2, … and a bias of 1.
    pub(crate) fn write(folder: &Path, config: &str, rows: usize, width: usize) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("config.json"), config).unwrap();
        let bytes = |numbers: Vec<f32>| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let weights = bytes((0..rows * width).map(|index| index as f32).collect());
        let bias = bytes(vec![1.0; rows]);
        let view = |shape: Vec<usize>, bytes| TensorView::new(Dtype::F32, shape, bytes).unwrap();
        let tensors = [("linear.weight", view(vec![rows, width], &weights)), ("linear.bias", view(vec![rows], &bias))];
        std::fs::write(folder.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    }

    #[test]
    fn a_vector_is_multiplied_shifted_and_bent() {
        let folder = tempfile::tempdir().unwrap();
        for (function, expected) in [
            ("Identity", [-1.0, -1.0]),
            ("Tanh", [-0.761_594_2, -0.761_594_2]),
            ("ReLU", [0.0, 0.0]),
            ("Sigmoid", [0.268_941_43, 0.268_941_43]),
            ("SiLU", [-0.268_941_43, -0.268_941_43]),
        ] {
            let config = format!(r#"{{"activation_function": "torch.nn.modules.{function}"}}"#);
            write(&folder.path().join("2_Dense"), &config, 2, 2);
            let dense = Dense::from_folder(folder.path(), "2_Dense").unwrap();
            assert_eq!(dense.apply(&[2.0, -2.0]).unwrap(), expected, "{function}");
            assert_eq!((dense.rows(), dense.apply(&[1.0])), (2, None));
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let problem = || Dense::from_folder(folder.path(), "d").unwrap_err().to_string();
        assert_eq!(problem(), "d/config.json is missing");
        write(&folder.path().join("d"), r#"{"activation_function": "torch.nn.Softplus"}"#, 1, 1);
        assert!(problem().contains("\"torch.nn.Softplus\" is not served"));
        std::fs::write(folder.path().join("d/config.json"), "{}").unwrap();
        std::fs::write(folder.path().join("d/model.safetensors"), b"nonsense").unwrap();
        assert!(problem().contains("d/model.safetensors: "));
        std::fs::remove_file(folder.path().join("d/model.safetensors")).unwrap();
        std::fs::write(folder.path().join("d/pytorch_model.bin"), b"a pickle").unwrap();
        assert_eq!(problem(), "d/model.safetensors is missing");
    }
}
