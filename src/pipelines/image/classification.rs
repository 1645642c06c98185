//! `image-classification`: pictures to class scores, with the answers of transformers' pipeline.
//!
//! Knows nothing of files: what it needs is found by [`crate::pipelines::detect()`].

use super::settings::{ImageSettings, Pad};
use super::{ChannelOrder, ImageInput, Picture, Refusal, decode, resize, tensor};
use crate::pipelines::scores::{ScoreFunction, logits_of, ranked, scores};
use crate::pipelines::{
    Item, Notes, Outputs, Parameters, Pipeline, PipelineError, PipelineLimits, Prediction, Prepared, only_run,
};
use crate::tensor::{Dim, Spec};

const DEFAULT_TOP_K: usize = 5;

/// One model's classification of pictures.
pub struct ImageClassification {
    pub settings: ImageSettings,
    pub input: ImageInput,
    /// Name of the output that holds the logits.
    pub output: String,
    /// By class; where shorter than the logits, the rest is `LABEL_n`.
    pub labels: Vec<String>,
    /// `None`: softmax for several classes, sigmoid for one.
    pub function: Option<ScoreFunction>,
    pub limits: PipelineLimits,
}

/// The logits among `outputs` and their fixed number of classes: the output of that name, else the first float output
/// of rank 2 or more.
///
/// # Errors
/// Says in one sentence why there is none.
pub(crate) fn find_logits(outputs: &[Spec]) -> Result<(String, Option<usize>), String> {
    let is_logits = |spec: &&Spec| {
        let float = matches!(spec.ty.dtype(), Some(dtype) if dtype.is_float() && dtype.bits() >= 16);
        float && spec.ty.shape().is_none_or(|dims| dims.len() >= 2)
    };
    let named = outputs.iter().filter(|spec| spec.name == "logits").find(is_logits);
    let Some(spec) = named.or_else(|| outputs.iter().find(is_logits)) else {
        return Err("the graph has no float output of rank 2 or more that could hold the class scores".to_owned());
    };
    let Some(dims) = spec.ty.shape() else { return Ok((spec.name.clone(), None)) };
    let mut classes = None;
    for dim in dims.iter().skip(1) {
        match dim {
            Dim::Fixed(1) => {}
            Dim::Dynamic(_) => return Ok((spec.name.clone(), None)),
            Dim::Fixed(size) if classes.is_none() => classes = Some(*size),
            Dim::Fixed(_) => {
                return Err(format!("output {:?} is {}: expected one score for each class", spec.name, spec.ty));
            }
        }
    }
    match classes.unwrap_or(1) {
        0 => Err(format!("output {:?} is {}: it has no classes", spec.name, spec.ty)),
        classes => Ok((spec.name.clone(), Some(classes))),
    }
}

struct Checked {
    top_k: usize,
    function: Option<ScoreFunction>,
}

impl Pipeline for ImageClassification {
    fn task(&self) -> &'static str {
        "image-classification"
    }

    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn preprocess_reads(&self, _parameter: &str) -> bool {
        false
    }

    fn preprocess(&self, item: &Item, _: &Parameters) -> Result<Prepared, PipelineError> {
        let Item::Bytes(bytes) = item else {
            let problem = format!("expected a picture (bytes, {{\"b64\": …}} or a data: URL), got {}", item.noun());
            return Err(PipelineError::Item { index: 0, problem });
        };
        let picture = self.prepare(bytes)?;
        let (height, width) = self.size_in_tensor(&picture)?;
        let tensor = tensor::fill(&picture, height, width, &self.settings, &self.input)?;
        Ok(Prepared::one(vec![(self.input.name.clone(), tensor)]))
    }

    fn postprocess(
        &self,
        outputs: &[Outputs],
        _: &Notes,
        parameters: &Parameters,
    ) -> Result<Prediction, PipelineError> {
        let checked = read_parameters(parameters)?;
        let logits = logits_of(only_run(outputs)?, &self.output)?;
        Ok(self.classify(&logits, checked.function.or(self.function), checked.top_k))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        read_parameters(parameters).map(|_| ())
    }
}

impl ImageClassification {
    fn prepare(&self, bytes: &[u8]) -> Result<Picture, Refusal> {
        let grey = self.settings.channel_order == ChannelOrder::Grey;
        let picture = decode::decode(bytes, grey, self.limits.max_pixels)?;
        let picture = resize::resize(picture, &self.settings.geometry, self.settings.resample, self.limits.max_pixels)?;
        let (height, width) = self.canvas(&picture);
        let fits = |declared: Option<usize>, side: usize| declared.is_none_or(|declared| declared == side);
        if picture.height as usize > height || picture.width as usize > width {
            return Err(Refusal::Bad(format!(
                "the picture is {}×{} when resized, larger than the model's {width}×{height}",
                picture.width, picture.height
            )));
        }
        if self.settings.pad != Pad::Largest && !(fits(self.input.height, height) && fits(self.input.width, width)) {
            let side = |side: Option<usize>| side.map_or("any".to_owned(), |side| side.to_string());
            return Err(Refusal::Bad(format!(
                "the picture is {width}×{height} when resized, but the model takes {}×{}",
                side(self.input.width),
                side(self.input.height)
            )));
        }
        Ok(picture)
    }

    /// Height and width that `picture` takes in the tensor.
    fn canvas(&self, picture: &Picture) -> (usize, usize) {
        match self.settings.pad {
            Pad::To(size) => (size.height as usize, size.width as usize),
            Pad::None | Pad::Largest => (picture.height as usize, picture.width as usize),
        }
    }

    /// The size in the graph's tensor. A processor that pads to the largest picture of a batch pads to the graph's fixed
    /// size where there is one, and not at all where there is none: every item is prepared alone.
    fn size_in_tensor(&self, picture: &Picture) -> Result<(usize, usize), Refusal> {
        let (height, width) = self.canvas(picture);
        if self.settings.pad != Pad::Largest {
            return Ok((height, width));
        }
        let side = |declared: Option<usize>, size: usize| match declared {
            Some(declared) if size > declared => {
                Err(Refusal::Bad(format!("the picture has a side of {size} when resized, the model takes {declared}")))
            }
            declared => Ok(declared.unwrap_or(size)),
        };
        let (height, width) = (side(self.input.height, height)?, side(self.input.width, width)?);
        // Padding multiplies the pixels again.
        let most = self.limits.max_pixels;
        if (height as u64).saturating_mul(width as u64) > most {
            return Err(Refusal::TooLarge(format!("padded to {width}×{height} the picture exceeds {most} pixels")));
        }
        Ok((height, width))
    }

    fn classify(&self, logits: &[f32], function: Option<ScoreFunction>, top_k: usize) -> Prediction {
        let function = match function {
            Some(function) => function,
            None if logits.len() > 1 => ScoreFunction::Softmax,
            None => ScoreFunction::Sigmoid,
        };
        Prediction::Classes(ranked(scores(logits, function), &self.labels, top_k))
    }
}

fn read_parameters(parameters: &Parameters) -> Result<Checked, PipelineError> {
    let mut checked = Checked { top_k: DEFAULT_TOP_K, function: None };
    for (name, value) in parameters {
        let wrong = |problem: String| Err(PipelineError::Parameter { name: name.clone(), problem });
        match (name.as_str(), value) {
            ("top_k" | "function_to_apply", serde_json::Value::Null) => {}
            ("top_k", value) => match value.as_u64() {
                Some(top_k) if top_k >= 1 => checked.top_k = usize::try_from(top_k).unwrap_or(usize::MAX),
                _ => return wrong(format!("expected an integer of at least 1, got {value}")),
            },
            ("function_to_apply", value) => match value.as_str().and_then(ScoreFunction::from_name) {
                Some(function) => checked.function = Some(function),
                None => return wrong(format!("expected \"softmax\", \"sigmoid\" or \"none\", got {value}")),
            },
            _ => {
                return wrong(
                    "image-classification has no such parameter; it takes top_k and function_to_apply".to_owned(),
                );
            }
        }
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::super::input::tests::spec;
    use super::super::{Geometry, Size};
    use super::*;
    use crate::tensor::{DType, Tensor, Value};
    use serde_json::json;

    fn pipeline(geometry: Geometry, pad: Pad) -> ImageClassification {
        let input = ImageInput::find(&[spec("pixel_values", DType::Fp32, &[-1, 3, -1, -1])]).unwrap();
        let settings = ImageSettings { geometry, pad, ..ImageSettings::exact(4, 4) };
        let labels = ["ant", "bee", "cat"].map(String::from).to_vec();
        let limits = PipelineLimits { max_pixels: 1000, ..PipelineLimits::default() };
        ImageClassification { settings, input, output: "logits".into(), labels, function: None, limits }
    }

    fn square() -> ImageClassification {
        pipeline(Geometry::Exact { size: Size { height: 4, width: 4 }, crop: None }, Pad::None)
    }

    fn parameters(value: serde_json::Value) -> Parameters {
        value.as_object().unwrap().clone()
    }

    fn output(dtype: DType, shape: &[usize], values: &[f32]) -> Vec<(String, Value)> {
        let shape = shape.to_vec();
        let tensor = match dtype {
            DType::Fp16 => Tensor::from_vec(dtype, shape, values.iter().map(|&x| half::f16::from_f32(x)).collect()),
            DType::Int32 => Tensor::from_vec(dtype, shape, values.iter().map(|&x| x as i32).collect()),
            _ => Tensor::from_vec(dtype, shape, values.to_vec()),
        };
        vec![("other".into(), Value::None), ("logits".into(), tensor.unwrap().into())]
    }

    #[track_caller]
    fn check(shape: &[usize], values: &[f32], given: serde_json::Value, expected: &[(&str, f32)]) {
        let outputs = output(DType::Fp32, shape, values);
        let Prediction::Classes(got) = square().postprocess(&[outputs], &Notes::default(), &parameters(given)).unwrap()
        else {
            panic!("classes")
        };
        let names: Vec<_> = got.iter().map(|class| class.label.as_str()).collect();
        assert_eq!(names, expected.iter().map(|class| class.0).collect::<Vec<_>>());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got.score - expected.1).abs() < 1e-6 || got.score.is_nan() && expected.1.is_nan(), "{got:?}");
        }
    }

    #[test]
    fn scores_are_best_first() {
        let third = 1.0 / 3.0;
        check(&[1, 3], &[0.0, 0.0, 0.0], json!({}), &[("ant", third), ("bee", third), ("cat", third)]);
        check(&[1, 3], &[1e30, 0.0, 2e30], json!({"top_k": 1}), &[("cat", 1.0)]);
        check(
            &[1, 3, 1, 1],
            &[0.0, 2.0, 1.0],
            json!({"top_k": 2, "function_to_apply": "none"}),
            &[("bee", 2.0), ("cat", 1.0)],
        );
        check(&[1, 1], &[0.0], json!({}), &[("ant", 0.5)]);
        check(&[1, 2], &[0.0, 100.0], json!({"function_to_apply": "sigmoid"}), &[("bee", 1.0), ("ant", 0.5)]);
        check(
            &[1, 4],
            &[0.0, 1.0, 2.0, 3.0],
            json!({"top_k": 99, "function_to_apply": "none"}),
            &[("LABEL_3", 3.0), ("cat", 2.0), ("bee", 1.0), ("ant", 0.0)],
        );
        let nan = f32::NAN;
        check(
            &[1, 3],
            &[nan, 1.0, 2.0],
            json!({"function_to_apply": "none"}),
            &[("cat", 2.0), ("bee", 1.0), ("ant", nan)],
        );
    }

    #[test]
    fn outputs_of_odd_shapes_are_errors() {
        for (dtype, shape, count) in [
            (DType::Fp32, vec![2, 3], 6),
            (DType::Fp32, vec![], 1),
            (DType::Fp32, vec![1], 1),
            (DType::Fp32, vec![1, 0], 0),
            (DType::Fp32, vec![1, 2, 2], 4),
            (DType::Int32, vec![1, 3], 3),
        ] {
            let outputs = output(dtype, &shape, &vec![0.0; count]);
            let got = square().postprocess(&[outputs], &Notes::default(), &Parameters::new());
            assert!(matches!(got, Err(PipelineError::Outputs(_))), "{dtype} {shape:?}: {got:?}");
        }
        assert!(matches!(
            square().postprocess(&[vec![]], &Notes::default(), &Parameters::new()),
            Err(PipelineError::Outputs(_))
        ));
        assert!(
            square()
                .postprocess(&[output(DType::Fp16, &[1, 3], &[0.0; 3])], &Notes::default(), &Parameters::new())
                .is_ok()
        );
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (given, expected) in [
            (json!({"top_k": 0}), "parameters.top_k: expected an integer of at least 1, got 0"),
            (json!({"top_k": "5"}), "parameters.top_k: expected an integer"),
            (json!({"function_to_apply": "tanh"}), "parameters.function_to_apply: expected \"softmax\""),
            (json!({"topk": 5}), "parameters.topk: image-classification has no such parameter; it takes top_k and"),
        ] {
            let error = square().check_parameters(&parameters(given)).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(square().check_parameters(&parameters(json!({"top_k": null}))).is_ok());
    }

    fn png(width: u32, height: u32) -> Item {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(width, height).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        Item::Bytes(bytes.into_inner().into())
    }

    #[track_caller]
    fn prepared(pipeline: &ImageClassification, item: &Item, expected: Result<&[usize], &str>) {
        match (pipeline.preprocess(item, &Parameters::new()), expected) {
            (Ok(prepared), Ok(shape)) => {
                let (name, tensor) = &prepared.runs[0][0];
                assert_eq!((name.as_str(), tensor.shape()), ("pixel_values", shape));
            }
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (got, expected) => panic!("{got:?} is not {expected:?}"),
        }
    }

    #[test]
    fn a_picture_becomes_a_tensor_or_an_error() {
        prepared(&square(), &png(9, 3), Ok(&[1, 3, 4, 4]));
        prepared(&square(), &Item::Text("x".into()), Err("expected a picture"));
        prepared(&square(), &png(50, 50), Err("the picture's dimensions are 50×50; the limit is 1000"));
    }

    #[test]
    fn pictures_of_any_size_are_padded_only_where_the_processor_pads() {
        prepared(&pipeline(Geometry::Keep { crop: None }, Pad::None), &png(9, 3), Ok(&[1, 3, 3, 9]));
        prepared(&pipeline(Geometry::Keep { crop: None }, Pad::Largest), &png(2, 5), Ok(&[1, 3, 5, 2]));
        let to = Pad::To(Size { height: 6, width: 9 });
        prepared(&pipeline(Geometry::Keep { crop: None }, to), &png(2, 5), Ok(&[1, 3, 6, 9]));
        prepared(&pipeline(Geometry::Keep { crop: None }, to), &png(10, 1), Err("larger than the model's 9×6"));
        let mut fixed = pipeline(Geometry::ShortestEdge { edge: 4, longest: None, crop: None }, Pad::None);
        fixed.input.width = Some(4);
        prepared(&fixed, &png(8, 4), Err("the picture is 8×4 when resized, but the model takes 4×any"));
        let mut fixed = pipeline(Geometry::Keep { crop: None }, Pad::Largest);
        (fixed.input.height, fixed.input.width) = (Some(20), Some(40));
        prepared(&fixed, &png(8, 4), Ok(&[1, 3, 20, 40]));
        prepared(&fixed, &png(41, 4), Err("a side of 41 when resized, the model takes 40"));
        fixed.input.width = Some(60);
        prepared(&fixed, &png(8, 4), Err("padded to 60×20 the picture exceeds 1000 pixels"));
    }

    #[test]
    fn logits_are_found_by_name_or_type() {
        let (ids, hidden) = (spec("ids", DType::Int64, &[-1, 4]), spec("hidden", DType::Fp32, &[-1, 7, 7]));
        let logits = spec("logits", DType::Fp16, &[-1, 10, 1, 1]);
        assert_eq!(find_logits(&[ids.clone(), hidden.clone(), logits]), Ok(("logits".into(), Some(10))));
        assert_eq!(find_logits(&[spec("a", DType::Fp32, &[-1, -1])]), Ok(("a".into(), None)));
        assert_eq!(find_logits(&[spec("a", DType::Fp32, &[-1, 1])]), Ok(("a".into(), Some(1))));
        assert!(find_logits(&[ids]).unwrap_err().contains("no float output"));
        assert!(find_logits(&[hidden]).unwrap_err().contains("expected one score"));
    }
}
