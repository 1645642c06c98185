//! `depth-estimation`: how far the pixels of a picture are, as the model's numbers and as a grey picture.
//!
//! As transformers' pipeline: the graph's map is enlarged by cubic convolution to the picture that came, which is
//! `predicted_depth`, and spread from the least (0) to the greatest depth (255), which is the picture. Knows no unit: some
//! models give metres, others the inverse.

use super::maps::{Along, Taps, cubic, png};
use super::{Pictures, Placed, Size};
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::outputs::{floats_of_rank, names, tensor_named, unexpected};
use crate::pipelines::{
    DepthMap, Item, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared, Rows, only_run,
};
use serde_json::Value;
use std::sync::Arc;

pub(crate) const TASK: &str = "depth-estimation";

/// Numbers of one `predicted_depth`: ten bytes each in JSON.
const MAX_NUMBERS: u64 = 1 << 24;

/// One model's estimates of depth.
pub struct DepthEstimation {
    pictures: Pictures,
    /// Name of the output `[1, height, width]` or `[1, 1, height, width]`.
    output: String,
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let (pictures, prepared) = Pictures::of(sources)?;
    let maps = || floats_of_rank(sources.outputs, &[3, 4]);
    let output = maps().find(|spec| spec.name == "predicted_depth");
    let output = output.or_else(|| maps().find(|spec| spec.ty.shape().is_some())).ok_or_else(|| {
        PipelineError::Setup(format!(
            "the depth of each pixel needs a float output [1, height, width]; the graph's outputs are {}: serve it with task \
             = \"raw\"",
            names(sources.outputs)
        ))
    })?;
    let how = format!("depths are those of {}; {prepared}", output.name);
    Ok(Made { pipeline: Arc::new(DepthEstimation { pictures, output: output.name.clone() }), how })
}

impl Pipeline for DepthEstimation {
    fn task(&self) -> &'static str {
        TASK
    }

    fn preprocess_reads(&self, _parameter: &str) -> bool {
        false
    }

    fn preprocess(&self, item: &Item, _: &Parameters) -> Result<Prepared, PipelineError> {
        self.pictures.prepare(item)
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        notes: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let with_numbers = read_parameters(parameters)?;
        let tensor = tensor_named(only_run(outputs)?, &self.output)?;
        let wrong = || unexpected(&self.output, "[1, height, width]", tensor);
        let (&[1, height, width] | &[1, 1, height, width]) = tensor.shape() else { return Err(wrong()) };
        if height == 0 || width == 0 {
            return Err(wrong());
        }
        let values = tensor.to_f32().ok_or_else(wrong)?;
        let placed: &Placed = notes.get()?;
        let Size { height: pixel_rows, width: pixel_columns } = placed.source;
        if with_numbers && u64::from(pixel_rows) * u64::from(pixel_columns) > MAX_NUMBERS {
            return Err(PipelineError::TooLarge {
                index: 0,
                problem: format!(
                    "the depths of {pixel_columns}×{pixel_rows} pixels are more numbers than are written; send a smaller picture, \
                     or predicted_depth false for the grey picture alone"
                ),
            });
        }
        let map = Enlarged::new(&values, height, width, placed);
        let depth = png(&map.grey()?, pixel_columns, pixel_rows)?;
        let predicted_depth = match with_numbers {
            true => Some(Rows { width: pixel_columns as usize, values: map.numbers()? }),
            false => None,
        };
        Ok(Prediction::Depth(DepthMap { predicted_depth, depth }))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        read_parameters(parameters).map(|_| ())
    }
}

/// Whether the numbers are asked for.
fn read_parameters(parameters: &Parameters) -> Result<bool, PipelineError> {
    let mut with_numbers = true;
    for (name, value) in parameters {
        let wrong = |problem: String| Err(PipelineError::Parameter { name: name.clone(), problem });
        match (name.as_str(), value) {
            ("predicted_depth", Value::Null) => {}
            ("predicted_depth", Value::Bool(given)) => with_numbers = *given,
            ("predicted_depth", value) => return wrong(format!("expected true or false, got {value}")),
            _ => return wrong(format!("{TASK} has no such parameter; it takes predicted_depth")),
        }
    }
    Ok(with_numbers)
}

/// A map of `height`×`width` places, looked up at each pixel of the picture.
struct Enlarged<'a> {
    values: &'a [f32],
    width: usize,
    rows: Vec<Taps<4>>,
    columns: Vec<Taps<4>>,
}

impl Enlarged<'_> {
    fn new<'a>(values: &'a [f32], height: usize, width: usize, placed: &Placed) -> Enlarged<'a> {
        let (rows, columns) = (cubic(placed, Along::Rows, height), cubic(placed, Along::Columns, width));
        Enlarged { values, width, rows, columns }
    }

    /// The depth of each pixel, row by row. Computed at each call rather than kept: four bytes a pixel are more than the
    /// picture itself.
    fn each(&self, mut give: impl FnMut(f32)) {
        let mut line = vec![0.0; self.width];
        for Taps { places, weights } in &self.rows {
            line.fill(0.0);
            for (place, by) in places.iter().zip(weights) {
                let row = self.values.get(place * self.width..(place + 1) * self.width).unwrap_or_default();
                line.iter_mut().zip(row).for_each(|(sum, value)| *sum += value * by);
            }
            for Taps { places, weights } in &self.columns {
                let values = places.iter().map(|&place| line.get(place).copied().unwrap_or_default());
                give(values.zip(weights).map(|(value, by)| value * by).sum());
            }
        }
    }

    fn room<T>(&self) -> Result<Vec<T>, PipelineError> {
        let failed = || PipelineError::Outputs("the picture of the depths does not fit memory".to_owned());
        let mut room = Vec::new();
        let count = self.rows.len().checked_mul(self.columns.len()).ok_or_else(failed)?;
        room.try_reserve_exact(count).map_err(|_| failed())?;
        Ok(room)
    }

    fn numbers(&self) -> Result<Vec<f32>, PipelineError> {
        let mut numbers = self.room()?;
        self.each(|depth| numbers.push(depth));
        Ok(numbers)
    }

    /// A byte for each pixel. Depths that are no numbers are 0.
    fn grey(&self) -> Result<Vec<u8>, PipelineError> {
        let (mut least, mut greatest) = (f32::INFINITY, f32::NEG_INFINITY);
        self.each(|depth| (least, greatest) = (least.min(depth), greatest.max(depth)));
        let mut grey = self.room()?;
        let span = greatest - least;
        // Cut to whole levels as the reference does; the cast gives 0 for what is no number.
        self.each(|depth| grey.push(((depth - least) / span * 255.0) as u8));
        Ok(grey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Tensor};
    use serde_json::json;

    fn estimate(shape: &[usize], values: &[f32], given: Value) -> Result<DepthMap, PipelineError> {
        let pipeline = DepthEstimation { pictures: Pictures::exact(4, 4), output: "predicted_depth".into() };
        let placed = Placed::stretched(Size { height: 1, width: 2 }, Size { height: 4, width: 4 });
        let tensor = Tensor::from_vec(DType::Fp32, shape.to_vec(), values.to_vec()).unwrap();
        let outputs = vec![("predicted_depth".into(), tensor.into())];
        match pipeline.postprocess(&[outputs], &Notes::new(placed, 0), given.as_object().unwrap())? {
            Prediction::Depth(map) => Ok(map),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_pixel_has_a_number_and_the_picture_is_spread() {
        for shape in [vec![1, 1, 4], vec![1, 1, 1, 4]] {
            let got = estimate(&shape, &[3.0, 3.0, 5.0, 5.0], json!({})).unwrap();
            let numbers = got.predicted_depth.unwrap();
            // Weights at a half: -3/32, 19/32, 19/32, -3/32.
            assert_eq!(numbers.width, 2);
            assert!(numbers.values.iter().zip([2.8125, 5.1875]).all(|(got, expected)| (got - expected).abs() < 1e-5));
            assert_eq!(got.depth, png(&[0, 255], 2, 1).unwrap());
            let got = estimate(&shape, &[3.0, 3.0, 5.0, 5.0], json!({"predicted_depth": false})).unwrap();
            assert_eq!((got.predicted_depth, got.depth), (None, png(&[0, 255], 2, 1).unwrap()));
        }
    }

    #[test]
    fn more_numbers_than_are_written_are_refused_with_the_way_out() {
        let pipeline = DepthEstimation { pictures: Pictures::exact(4, 4), output: "predicted_depth".into() };
        let placed = Placed::stretched(Size { height: 4097, width: 4096 }, Size { height: 4, width: 4 });
        let tensor = Tensor::from_vec(DType::Fp32, vec![1, 1, 1], vec![1.0f32]).unwrap();
        let outputs = vec![("predicted_depth".into(), tensor.into())];
        let error =
            pipeline.postprocess(&[outputs], &Notes::new(placed, 0), &Parameters::new()).unwrap_err().to_string();
        assert!(error.contains("4096×4097") && error.contains("predicted_depth false"), "{error}");
    }

    #[test]
    fn a_flat_map_or_one_that_is_no_number_is_black() {
        for values in [[2.0; 4], [f32::NAN; 4], [f32::INFINITY; 4]] {
            assert_eq!(estimate(&[1, 1, 4], &values, json!({})).unwrap().depth, png(&[0, 0], 2, 1).unwrap());
        }
    }

    #[test]
    fn outputs_of_odd_shapes_are_errors() {
        for (shape, count) in [(vec![1, 4], 4), (vec![2, 1, 2], 4), (vec![1, 2, 1, 2], 4), (vec![1, 0, 4], 0)] {
            let got = estimate(&shape, &vec![0.0; count], json!({}));
            assert!(matches!(got, Err(PipelineError::Outputs(_))), "{shape:?}: {got:?}");
        }
    }

    #[test]
    fn wrong_parameters_are_named() {
        let pipeline = DepthEstimation { pictures: Pictures::exact(4, 4), output: "predicted_depth".into() };
        for (given, expected) in [
            (json!({"top_k": 1}), "parameters.top_k: depth-estimation has no such parameter; it takes predicted_depth"),
            (json!({"predicted_depth": 1}), "parameters.predicted_depth: expected true or false, got 1"),
        ] {
            let error = pipeline.check_parameters(given.as_object().unwrap()).unwrap_err().to_string();
            assert_eq!(error, expected);
        }
        assert!(pipeline.check_parameters(&Parameters::new()).is_ok());
    }
}
