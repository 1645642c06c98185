//! `depth-estimation`: how far the pixels of a picture are, as the model's numbers and as a grey picture.
//!
//! `predicted_depth` is the graph's own map. The picture is that of transformers' pipeline: enlarged by cubic convolution
//! to the picture that came, and spread from the least (0) to the greatest depth (255). Knows no unit: some models give
//! metres, others the inverse.

use super::maps::{Along, Taps, cubic, png};
use super::{Pictures, Placed};
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::outputs::{floats_of_rank, names, tensor_named, unexpected};
use crate::pipelines::{
    DepthMap, Item, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared, Rows, only_run,
};
use std::sync::Arc;

pub(crate) const TASK: &str = "depth-estimation";

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

    fn postprocess(&self, outputs: &[Outputs], notes: &Notes, _: &Parameters) -> Result<Prediction, PipelineError> {
        let tensor = tensor_named(only_run(outputs)?, &self.output)?;
        let wrong = || unexpected(&self.output, "[1, height, width]", tensor);
        let (&[1, height, width] | &[1, 1, height, width]) = tensor.shape() else { return Err(wrong()) };
        if height == 0 || width == 0 {
            return Err(wrong());
        }
        let values = tensor.to_f32().ok_or_else(wrong)?;
        let placed: &Placed = notes.get()?;
        let grey = grey(&values, height, width, placed)?;
        let depth = png(&grey, placed.source.width, placed.source.height)?;
        Ok(Prediction::Depth(DepthMap { predicted_depth: Rows { width, values }, depth }))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        match parameters.keys().next() {
            Some(name) => {
                let problem = format!("{TASK} has no such parameter; it takes none");
                Err(PipelineError::Parameter { name: name.clone(), problem })
            }
            None => Ok(()),
        }
    }
}

/// A byte for each pixel of the picture. Depths that are no numbers are 0.
fn grey(values: &[f32], height: usize, width: usize, placed: &Placed) -> Result<Vec<u8>, PipelineError> {
    let (rows, columns) = (cubic(placed, Along::Rows, height), cubic(placed, Along::Columns, width));
    let row = |place: usize| values.get(place * width..(place + 1) * width).unwrap_or_default();
    let line = |taps: &Taps<4>| -> Vec<f32> {
        let mut line = vec![0.0; width];
        for (&place, by) in taps.places.iter().zip(taps.weights) {
            line.iter_mut().zip(row(place)).for_each(|(sum, value)| *sum += value * by);
        }
        line
    };
    let pixels = |line: &[f32], each: &mut dyn FnMut(f32)| {
        for taps in &columns {
            let values = taps.places.iter().map(|&place| line.get(place).copied().unwrap_or_default());
            each(values.zip(taps.weights).map(|(value, by)| value * by).sum());
        }
    };
    // Computed twice rather than kept: four bytes a pixel are more than the picture itself.
    let (mut least, mut greatest) = (f32::INFINITY, f32::NEG_INFINITY);
    for taps in &rows {
        pixels(&line(taps), &mut |depth| (least, greatest) = (least.min(depth), greatest.max(depth)));
    }
    let failed = || PipelineError::Outputs("the picture of the depths does not fit memory".to_owned());
    let mut grey: Vec<u8> = Vec::new();
    grey.try_reserve_exact(rows.len().checked_mul(columns.len()).ok_or_else(failed)?).map_err(|_| failed())?;
    let span = greatest - least;
    for taps in &rows {
        // Cut to whole levels as the reference does; the cast gives 0 for what is no number.
        pixels(&line(taps), &mut |depth| grey.push(((depth - least) / span * 255.0) as u8));
    }
    Ok(grey)
}

#[cfg(test)]
mod tests {
    use super::super::Size;
    use super::*;
    use crate::tensor::{DType, Tensor};
    use serde_json::json;

    fn estimate(shape: &[usize], values: &[f32]) -> Result<DepthMap, PipelineError> {
        let pipeline = DepthEstimation { pictures: Pictures::exact(4, 4), output: "predicted_depth".into() };
        let placed = Placed::stretched(Size { height: 1, width: 2 }, Size { height: 4, width: 4 });
        let tensor = Tensor::from_vec(DType::Fp32, shape.to_vec(), values.to_vec()).unwrap();
        let outputs = vec![("predicted_depth".into(), tensor.into())];
        match pipeline.postprocess(&[outputs], &Notes::new(placed, 0), &Parameters::new())? {
            Prediction::Depth(map) => Ok(map),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_map_is_the_graphs_own_and_the_picture_is_spread() {
        for shape in [vec![1, 1, 4], vec![1, 1, 1, 4]] {
            let got = estimate(&shape, &[3.0, 3.0, 5.0, 5.0]).unwrap();
            assert_eq!(got.predicted_depth, Rows { width: 4, values: vec![3.0, 3.0, 5.0, 5.0] });
            assert_eq!(got.depth, png(&[0, 255], 2, 1).unwrap());
        }
    }

    #[test]
    fn a_flat_map_or_one_that_is_no_number_is_black() {
        for values in [[2.0; 4], [f32::NAN; 4], [f32::INFINITY; 4]] {
            assert_eq!(estimate(&[1, 1, 4], &values).unwrap().depth, png(&[0, 0], 2, 1).unwrap());
        }
    }

    #[test]
    fn outputs_of_odd_shapes_are_errors() {
        for (shape, count) in [(vec![1, 4], 4), (vec![2, 1, 2], 4), (vec![1, 2, 1, 2], 4), (vec![1, 0, 4], 0)] {
            let got = estimate(&shape, &vec![0.0; count]);
            assert!(matches!(got, Err(PipelineError::Outputs(_))), "{shape:?}: {got:?}");
        }
    }

    #[test]
    fn it_takes_no_parameter() {
        let pipeline = DepthEstimation { pictures: Pictures::exact(4, 4), output: "predicted_depth".into() };
        let error = pipeline.check_parameters(json!({"top_k": 1}).as_object().unwrap()).unwrap_err().to_string();
        assert_eq!(error, "parameters.top_k: depth-estimation has no such parameter; it takes none");
        assert!(pipeline.check_parameters(&Parameters::new()).is_ok());
    }
}
