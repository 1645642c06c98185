//! Tasks on records: named columns to the graph's tensors, its outputs to class scores or a number.
//!
//! For graphs as scikit-learn's and LightGBM's exporters write them: one input that holds all columns in an order that
//! `columns` of model.toml states, or an input for each column; outputs of labels beside probabilities, as a tensor or as a
//! map for each row (ZipMap). Found only where model.toml names the task: such graphs do not say what their columns are.

use super::detect::{Made, Sources};
use super::labels;
use super::parameters::{count_from, read_each};
use super::{ClassScore, Item, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared, only_run};
use crate::tensor::{DType, Dim, Spec, Tensor, Value, ValueType};
use serde_json::Value as Json;
use std::collections::HashSet;
use std::sync::Arc;

pub(crate) const CLASSIFICATION: &str = "tabular-classification";
pub(crate) const REGRESSION: &str = "tabular-regression";
/// More columns than any model has.
const MAX_COLUMNS: usize = 100_000;

/// One model's reading of records.
struct Tabular {
    task: &'static str,
    inputs: Vec<TableInput>,
    /// Class names by index; empty where the graph names the classes itself, or there are none.
    labels: Vec<String>,
}

/// One input of the graph and the columns that it holds, in their order.
struct TableInput {
    name: String,
    dtype: DType,
    /// 1 or 2.
    rank: usize,
    columns: Vec<String>,
}

/// # Errors
/// Where the columns are not known or do not fit the graph's inputs.
pub(crate) fn make_classification(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    make(CLASSIFICATION, sources)
}

/// # Errors
/// As [`make_classification`].
pub(crate) fn make_regression(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    make(REGRESSION, sources)
}

fn make(task: &'static str, sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let inputs = table_inputs(sources.inputs, sources.manifest.columns.as_deref())?;
    let labels = match task {
        CLASSIFICATION => labels::find(sources.folder, sources.manifest.labels.as_ref(), sources.config()?, None)?,
        _ => Vec::new(),
    };
    let count: usize = inputs.iter().map(|input| input.columns.len()).sum();
    let from = match &sources.manifest.columns {
        Some(_) => "columns of model.toml",
        None => "the graph's inputs",
    };
    Ok(Made {
        pipeline: Arc::new(Tabular { task, inputs, labels }),
        how: format!("records have {count} columns, named by {from}"),
    })
}

fn setup(problem: String) -> PipelineError {
    PipelineError::Setup(problem)
}

/// The graph's inputs with the columns that each holds.
fn table_inputs(specs: &[Spec], columns: Option<&[String]>) -> Result<Vec<TableInput>, PipelineError> {
    let required: Vec<&Spec> = specs.iter().filter(|spec| !spec.optional).collect();
    let table = |spec: &Spec, columns: Vec<String>| -> Result<TableInput, PipelineError> {
        let refuse = |problem: &str| Err(setup(format!("input {:?} is {}: {problem}", spec.name, spec.ty)));
        let ValueType::Tensor { dtype, shape: Some(dims) } = &spec.ty else {
            return refuse("a column is a tensor of declared shape");
        };
        if !matches!(dtype, DType::Fp32 | DType::Fp64 | DType::Int64 | DType::Int32 | DType::String | DType::Bool) {
            return refuse("columns are FP32, FP64, INT64, INT32, BOOL or BYTES");
        }
        let width = match dims.as_slice() {
            [_] if columns.len() == 1 => 1,
            [_, Dim::Fixed(width)] => *width,
            [_, Dim::Dynamic(_)] => columns.len(),
            _ => return refuse("expected [rows, columns]"),
        };
        if width != columns.len() {
            return refuse(&format!("it takes {width} columns, but {} are named", columns.len()));
        }
        Ok(TableInput { name: spec.name.clone(), dtype: *dtype, rank: dims.len(), columns })
    };
    match (required.as_slice(), columns) {
        ([], _) => Err(setup("the graph has no input that must be given".to_owned())),
        (_, Some(columns)) if columns.len() > MAX_COLUMNS => Err(setup(format!("more than {MAX_COLUMNS} columns"))),
        (_, Some(columns)) if columns.iter().collect::<HashSet<_>>().len() < columns.len() => {
            Err(setup("columns of model.toml names a column twice".to_owned()))
        }
        ([spec], Some(columns)) => Ok(vec![table(spec, columns.to_vec())?]),
        ([spec], None) => table(spec, vec![spec.name.clone()]).map(|input| vec![input]).map_err(|_| {
            setup(format!(
                "input {:?} is {}: name its columns in their order, columns = [\"…\"] in [pipeline] of model.toml",
                spec.name, spec.ty
            ))
        }),
        (several, columns) => {
            let columns: Vec<String> = match columns {
                None => several.iter().map(|spec| spec.name.clone()).collect(),
                Some(columns) if columns.len() == several.len() => columns.to_vec(),
                Some(columns) => {
                    let problem =
                        format!("the graph has {} inputs, but {} columns are named", several.len(), columns.len());
                    return Err(setup(problem));
                }
            };
            several.iter().zip(columns).map(|(spec, column)| table(spec, vec![column])).collect()
        }
    }
}

impl TableInput {
    /// One row of the input.
    fn tensor(&self, record: &serde_json::Map<String, Json>) -> Result<Tensor, PipelineError> {
        let refuse = |problem: String| PipelineError::Item { index: 0, problem };
        let value =
            |column: &String| record.get(column).ok_or_else(|| refuse(format!("the record has no column {column:?}")));
        let shape = if self.rank == 1 { vec![1] } else { vec![1, self.columns.len()] };
        let made = match self.dtype {
            DType::String => {
                let texts = self.columns.iter().map(|column| match value(column)? {
                    Json::String(text) => Ok(text.clone()),
                    Json::Null => Ok(String::new()),
                    other => Err(refuse(format!("column {column:?}: expected a text, got {}", clip(other)))),
                });
                Tensor::from_strings(shape, texts.collect::<Result<Vec<String>, _>>()?)
            }
            DType::Fp32 | DType::Fp64 => {
                let numbers = self.columns.iter().map(|column| match value(column)? {
                    Json::Number(number) => Ok(number.as_f64().unwrap_or(f64::NAN)),
                    Json::Bool(flag) => Ok(f64::from(*flag)),
                    // As such models are trained on tables with gaps.
                    Json::Null => Ok(f64::NAN),
                    Json::String(text) => match text.as_str() {
                        "NaN" => Ok(f64::NAN),
                        "Infinity" => Ok(f64::INFINITY),
                        "-Infinity" => Ok(f64::NEG_INFINITY),
                        _ => Err(refuse(format!("column {column:?}: expected a number, got {}", clip(value(column)?)))),
                    },
                    other => Err(refuse(format!("column {column:?}: expected a number, got {}", clip(other)))),
                });
                let numbers = numbers.collect::<Result<Vec<f64>, _>>()?;
                match self.dtype {
                    DType::Fp64 => Tensor::from_vec(DType::Fp64, shape, numbers),
                    _ => Tensor::from_vec(DType::Fp32, shape, numbers.iter().map(|&x| x as f32).collect::<Vec<f32>>()),
                }
            }
            _ => {
                let whole = self.columns.iter().map(|column| match value(column)? {
                    Json::Bool(flag) => Ok(i64::from(*flag)),
                    Json::Number(number) => number
                        .as_i64()
                        .filter(|&whole| self.holds(whole))
                        .ok_or_else(|| refuse(format!("column {column:?}: {number} is not a value of {}", self.dtype))),
                    other => Err(refuse(format!("column {column:?}: expected a whole number, got {}", clip(other)))),
                });
                let whole = whole.collect::<Result<Vec<i64>, _>>()?;
                match self.dtype {
                    DType::Int32 => {
                        Tensor::from_vec(DType::Int32, shape, whole.iter().map(|&x| x as i32).collect::<Vec<i32>>())
                    }
                    DType::Bool => {
                        let flags: Vec<u8> = whole.iter().map(|&x| u8::from(x != 0)).collect();
                        Tensor::from_bytes(DType::Bool, shape, flags)
                    }
                    _ => Tensor::from_vec(DType::Int64, shape, whole),
                }
            }
        };
        made.map_err(|error| PipelineError::Setup(format!("input {:?}: {error}", self.name)))
    }

    fn holds(&self, whole: i64) -> bool {
        match self.dtype {
            DType::Int32 => i32::try_from(whole).is_ok(),
            DType::Bool => matches!(whole, 0 | 1),
            _ => true,
        }
    }
}

/// A foreign value, short enough for an error text.
fn clip(value: &Json) -> String {
    value.to_string().chars().take(64).collect()
}

impl Pipeline for Tabular {
    fn task(&self) -> &'static str {
        self.task
    }

    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn takes_records(&self) -> bool {
        true
    }

    fn preprocess_reads(&self, _parameter: &str) -> bool {
        false
    }

    fn preprocess(&self, item: &Item, _: &Parameters) -> Result<Prepared, PipelineError> {
        let refuse = |problem: String| PipelineError::Item { index: 0, problem };
        let Item::Record(record) = item else {
            return Err(refuse(format!("expected a record, an object of column to value, got {}", item.noun())));
        };
        let known = |name: &&String| !self.inputs.iter().any(|input| input.columns.contains(name));
        if let Some(name) = record.keys().find(known) {
            let columns = self.inputs.iter().flat_map(|input| &input.columns).take(32);
            let columns = columns.map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
            let name: String = name.chars().take(64).collect();
            return Err(refuse(format!("the model has no column {name:?}; its columns are {columns}")));
        }
        let tensors = self.inputs.iter().map(|input| Ok((input.name.clone(), input.tensor(record)?)));
        Ok(Prepared::one(tensors.collect::<Result<_, PipelineError>>()?))
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        _: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let top_k = self.read_parameters(parameters)?;
        let outputs = only_run(outputs)?;
        if self.task == REGRESSION {
            return regression(outputs);
        }
        let mut classes = match outputs.iter().find_map(|(_, value)| self.scores(value)) {
            Some(classes) => classes,
            // Without probabilities the label is all there is.
            None => match outputs.iter().find_map(|(_, value)| label(value)) {
                Some(label) => vec![ClassScore { label: self.named(label), score: 1.0 }],
                None => return Err(PipelineError::Outputs("the graph gave no label and no class scores".to_owned())),
            },
        };
        // NaN last, equal scores in the order of the classes.
        let best_first = |a: &ClassScore, b: &ClassScore| {
            b.score.partial_cmp(&a.score).unwrap_or_else(|| a.score.is_nan().cmp(&b.score.is_nan()))
        };
        classes.sort_by(best_first);
        classes.truncate(top_k);
        Ok(Prediction::Classes(classes))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        self.read_parameters(parameters).map(|_| ())
    }
}

impl Tabular {
    /// How many classes are given.
    fn read_parameters(&self, parameters: &Parameters) -> Result<usize, PipelineError> {
        let mut top_k = usize::MAX;
        if self.task != CLASSIFICATION {
            return read_each(self.task, "none", parameters, |_, _| Ok(false)).map(|()| top_k);
        }
        read_each(self.task, "top_k", parameters, |name, value| {
            match (name, value) {
                ("top_k", Json::Null) => {}
                ("top_k", value) => top_k = count_from(value)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(top_k)
    }

    /// The class scores that an output holds for one row; `None` where it holds none.
    fn scores(&self, value: &Value) -> Option<Vec<ClassScore>> {
        match value {
            // ZipMap: a map for each row.
            Value::Sequence(rows) => match rows.as_slice() {
                [row] => self.scores(row),
                _ => None,
            },
            Value::Map { keys, values } => {
                let scores = values.to_f32()?;
                let names: Vec<String> = match keys.dtype() {
                    DType::String => keys.strings().to_vec(),
                    _ => keys.elements::<i64>()?.iter().map(|&class| self.named(Label::Class(class))).collect(),
                };
                Some(names.into_iter().zip(scores.iter()).map(|(label, &score)| ClassScore { label, score }).collect())
            }
            Value::Tensor(tensor) => {
                let is_float = tensor.dtype().is_float();
                let scores = match tensor.shape() {
                    [1, _] if is_float => tensor.to_f32()?,
                    _ => return None,
                };
                let label = |class: usize| self.named(Label::Class(i64::try_from(class).unwrap_or(i64::MAX)));
                Some(
                    scores
                        .iter()
                        .enumerate()
                        .map(|(class, &score)| ClassScore { label: label(class), score })
                        .collect(),
                )
            }
            Value::None => None,
        }
    }

    fn named(&self, label: Label) -> String {
        match label {
            Label::Text(text) => text,
            Label::Class(class) => {
                let known = usize::try_from(class).ok().and_then(|class| self.labels.get(class));
                known.cloned().unwrap_or_else(|| class.to_string())
            }
        }
    }
}

/// A label as the graph gives it.
enum Label {
    Text(String),
    Class(i64),
}

fn label(value: &Value) -> Option<Label> {
    let tensor = value.as_tensor()?;
    if tensor.shape().iter().product::<usize>() != 1 {
        return None;
    }
    match tensor.dtype() {
        DType::String => tensor.strings().first().cloned().map(Label::Text),
        DType::Int64 => tensor.elements::<i64>()?.first().copied().map(Label::Class),
        _ => None,
    }
}

fn regression(outputs: &Outputs) -> Result<Prediction, PipelineError> {
    let numbers = outputs.iter().find_map(|(_, value)| {
        let tensor = value.as_tensor()?;
        (tensor.dtype().is_float() && !tensor.is_empty()).then(|| tensor.to_f32())?
    });
    match numbers.as_deref() {
        Some([number]) => Ok(Prediction::Number(*number)),
        Some(numbers) => Ok(Prediction::Embedding(numbers.to_vec())),
        None => Err(PipelineError::Outputs("the graph gave no number".to_owned())),
    }
}
