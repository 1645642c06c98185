//! `object-detection`: pictures to labelled boxes, in pixels of the picture that came.
//!
//! Boxes are not clipped to the picture, as transformers' pipeline does not clip them; unlike it, coordinates are not cut to
//! whole pixels, and the best object comes first. What a model's outputs mean is known by [`Decoder`].

use super::boxes::{Decoder, Heads};
use super::suppression::{Candidate, suppress};
use super::{Pictures, Placed};
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::labels::{self, numbered};
use crate::pipelines::{
    BoundingBox, Detection, Item, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared, only_run,
};
use serde_json::Value;
use std::sync::Arc;

pub(crate) const TASK: &str = "object-detection";

const DEFAULT_MAX_DETECTIONS: usize = 300;
/// More objects than anyone finds in a picture; bounds the work of suppression.
const MOST_DETECTIONS: usize = 1000;

/// One model's detection of objects.
pub struct ObjectDetection {
    pictures: Pictures,
    heads: Heads,
    /// By class; where shorter than the classes, the rest is `LABEL_n`.
    labels: Vec<String>,
}

/// The request's parameters, checked.
struct Checked {
    threshold: f32,
    iou: Option<f64>,
    max_detections: usize,
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let (pictures, prepared) = Pictures::of(sources)?;
    let config = sources.config()?;
    let model_type = config.and_then(|config| config.get("model_type")).and_then(Value::as_str).unwrap_or_default();
    let decoder = match &sources.manifest.decoder {
        Some(name) => Decoder::from_name(name, model_type).ok_or_else(|| {
            let names = Decoder::names();
            PipelineError::Setup(format!("[pipeline] decoder of model.toml: expected one of {names}, got {name:?}"))
        })?,
        None => Decoder::guess(sources.outputs, &pictures.input, model_type).ok_or_else(|| {
            PipelineError::Setup(format!(
                "the graph's outputs do not tell how boxes are read from them: name the decoder in [pipeline] of \
                 model.toml, one of {}",
                Decoder::names()
            ))
        })?,
    };
    let heads = decoder.heads(sources.outputs).map_err(PipelineError::Setup)?;
    let labels = labels::find(sources.folder, sources.manifest.labels.as_ref(), config, heads.classes)?;
    let how = format!("boxes are read by the decoder {:?}; {prepared}", decoder.name());
    Ok(Made { pipeline: Arc::new(ObjectDetection { pictures, heads, labels }), how })
}

impl ObjectDetection {
    fn read_parameters(&self, parameters: &Parameters) -> Result<Checked, PipelineError> {
        let decoder = self.heads.decoder;
        let mut checked = Checked {
            threshold: decoder.default_threshold(),
            iou: decoder.default_iou(),
            max_detections: DEFAULT_MAX_DETECTIONS,
        };
        for (name, value) in parameters {
            let wrong = |problem: String| Err(PipelineError::Parameter { name: name.clone(), problem });
            let share = value.as_f64().filter(|share| (0.0..=1.0).contains(share));
            match (name.as_str(), value, share) {
                ("threshold" | "iou" | "max_detections", Value::Null, _) => {}
                ("threshold", _, Some(share)) => checked.threshold = share as f32,
                ("iou", _, Some(share)) => checked.iou = Some(share),
                ("threshold" | "iou", value, None) => {
                    return wrong(format!("expected a number from 0 to 1, got {value}"));
                }
                ("max_detections", value, _) => match value.as_u64().and_then(|count| usize::try_from(count).ok()) {
                    Some(count) if (1..=MOST_DETECTIONS).contains(&count) => checked.max_detections = count,
                    _ => return wrong(format!("expected an integer from 1 to {MOST_DETECTIONS}, got {value}")),
                },
                _ => {
                    return wrong(format!("{TASK} has no such parameter; it takes threshold, iou and max_detections"));
                }
            }
        }
        Ok(checked)
    }

    fn detection(&self, candidate: Candidate) -> Detection {
        let [xmin, ymin, xmax, ymax] = candidate.edges.map(|edge| edge as f32);
        Detection {
            label: self.labels.get(candidate.class).cloned().unwrap_or_else(|| numbered(candidate.class)),
            score: candidate.score,
            bounds: BoundingBox { xmin, ymin, xmax, ymax },
        }
    }
}

impl Pipeline for ObjectDetection {
    fn task(&self) -> &'static str {
        TASK
    }

    fn labels(&self) -> &[String] {
        &self.labels
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
        let checked = self.read_parameters(parameters)?;
        let placed: &Placed = notes.get()?;
        let mut found = self.heads.decode(only_run(outputs)?, placed, checked.threshold)?;
        for candidate in &mut found {
            let [xmin, ymin, xmax, ymax] = candidate.edges;
            let ((xmin, ymin), (xmax, ymax)) = (placed.to_source((xmin, ymin)), placed.to_source((xmax, ymax)));
            candidate.edges = [xmin, ymin, xmax, ymax];
        }
        let kept = suppress(found, checked.iou, checked.max_detections);
        Ok(Prediction::Objects(kept.into_iter().map(|candidate| self.detection(candidate)).collect()))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        self.read_parameters(parameters).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Size, input_spec as spec};
    use super::*;
    use crate::pipelines::{PipelineLimits, PipelineManifest, detect};
    use crate::tensor::{DType, Spec, Tensor, Value as TensorValue};
    use proptest::prelude::*;
    use serde_json::json;

    type Shape<'a> = (&'a str, &'a [usize]);

    /// A pipeline for pictures of 32×32 whose graph gives outputs of these shapes.
    fn made(manifest: &str, config: &str, outputs: &[Shape<'_>]) -> Result<Arc<dyn Pipeline>, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let manifest: PipelineManifest = toml::from_str(&format!("task = \"object-detection\"\n{manifest}")).unwrap();
        let specs = outputs.iter().map(|(name, shape)| {
            spec(name, DType::Fp32, &shape.iter().map(|&side| i64::try_from(side).unwrap()).collect::<Vec<_>>())
        });
        let inputs = [spec("x", DType::Fp32, &[1, 3, 32, 32])];
        let outputs: Vec<Spec> = specs.collect();
        let got = detect(folder.path(), &manifest, &inputs, &outputs, &PipelineLimits::default());
        got.map(|got| got.pipeline.unwrap()).map_err(|error| error.to_string())
    }

    fn notes() -> Notes {
        // Twice as wide as the tensor.
        let placed = Placed::stretched(Size { height: 32, width: 64 }, Size { height: 32, width: 32 });
        Notes::new(placed, 0)
    }

    fn outputs(tensors: &[(Shape<'_>, &[f32])]) -> Outputs {
        let tensor = |((name, shape), values): &(Shape<'_>, &[f32])| {
            let tensor = Tensor::from_vec(DType::Fp32, shape.to_vec(), values.to_vec()).unwrap();
            ((*name).to_owned(), TensorValue::from(tensor))
        };
        tensors.iter().map(tensor).collect()
    }

    /// `expected`: label, score and edges.
    #[track_caller]
    fn check(
        (manifest, config): (&str, &str),
        tensors: &[(Shape<'_>, &[f32])],
        parameters: Value,
        expected: &[(&str, f32, [f32; 4])],
    ) {
        let shapes: Vec<_> = tensors.iter().map(|(shape, _)| *shape).collect();
        let pipeline = made(manifest, config, &shapes).unwrap();
        let parameters = parameters.as_object().unwrap();
        let Prediction::Objects(got) = pipeline.postprocess(&[outputs(tensors)], &notes(), parameters).unwrap() else {
            panic!("objects")
        };
        assert_eq!(got.len(), expected.len(), "{got:?}");
        for (got, (label, score, edges)) in got.iter().zip(expected) {
            assert_eq!(got.label, *label, "{got:?}");
            assert!((got.score - score).abs() < 1e-5, "{got:?}");
            let bounds = got.bounds;
            for (got, expected) in [bounds.xmin, bounds.ymin, bounds.xmax, bounds.ymax].iter().zip(edges) {
                assert!((got - expected).abs() < 1e-3, "{bounds:?} is not {edges:?}");
            }
        }
    }

    const NAMES: &str = r#"{"id2label": {"0": "ant", "1": "bee"}}"#;

    #[test]
    fn detr_has_a_class_for_no_object() {
        let logits = [9.0, 0.0, 0.0, 0.0, 0.0, 9.0, f32::NAN, 9.0, 0.0];
        let boxes = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.1, 0.1, 0.5, 0.5, 0.1, 0.1];
        let tensors: [(Shape<'_>, &[f32]); 2] =
            [(("logits", &[1, 3, 3]), &logits), (("pred_boxes", &[1, 3, 4]), &boxes)];
        let ant = ("ant", 0.999_753, [16.0, 8.0, 48.0, 24.0]);
        check(("", NAMES), &tensors, json!({}), &[ant]);
        let weak = 1.0 / (9.0f32.exp() + 2.0);
        check(("", NAMES), &tensors, json!({"threshold": 0}), &[ant, ("ant", weak, [28.8, 14.4, 35.2, 17.6])]);
    }

    #[test]
    fn classes_of_rt_detr_are_scored_each_on_its_own() {
        let config = r#"{"model_type": "rt_detr_v2", "id2label": {"0": "ant", "1": "bee"}}"#;
        let boxes = [0.5, 0.5, 1.0, 1.0, 0.25, 0.25, 0.5, 0.5];
        let tensors: [(Shape<'_>, &[f32]); 2] =
            [(("logits", &[1, 2, 2]), &[2.0, 3.0, 1.0, -9.0]), (("pred_boxes", &[1, 2, 4]), &boxes)];
        let all = [("bee", 0.952_574, [0.0, 0.0, 64.0, 32.0]), ("ant", 0.880_797, [0.0, 0.0, 64.0, 32.0])];
        check(("", config), &tensors, json!({}), &all);
        check(("decoder = \"rt_detr\"", NAMES), &tensors, json!({"max_detections": 1}), &all[..1]);
    }

    /// 16 cells of stride 8, four of 16 and one of 32.
    fn yolox_rows(row: usize, values: [f32; 7]) -> Vec<f32> {
        let mut rows = vec![0.0; 21 * 7];
        rows[row * 7..][..7].copy_from_slice(&values);
        rows
    }

    #[test]
    fn yolox_stands_on_grids_of_three_strides() {
        let shape: Shape<'_> = ("output", &[1, 21, 7]);
        let yolox = ("decoder = \"yolox\"", NAMES);
        let row = [0.5, 0.25, 0.0, 2.0f32.ln(), 0.8, 0.1, 0.9];
        // Line 1, column 2 of the first grid.
        check(yolox, &[(shape, &yolox_rows(6, row))], json!({}), &[("bee", 0.72, [32.0, 2.0, 48.0, 18.0])]);
        check(yolox, &[(shape, &yolox_rows(20, row))], json!({}), &[("bee", 0.72, [0.0, -24.0, 64.0, 40.0])]);
        check(yolox, &[(shape, &yolox_rows(6, row))], json!({"threshold": 0.73}), &[]);
        let endless = [0.5, 0.5, 1e30, 0.0, 0.8, 0.1, 0.9];
        check(yolox, &[(shape, &yolox_rows(6, endless))], json!({}), &[]);
        let wrong: Shape<'_> = ("output", &[1, 20, 7]);
        let pipeline = made("decoder = \"yolox\"", NAMES, &[wrong]).unwrap();
        let error = pipeline.postprocess(&[outputs(&[(wrong, &[0.0; 140])])], &notes(), &Parameters::new());
        assert!(error.unwrap_err().to_string().contains("expected 21 rows for an input of 32×32, got 20"));
    }

    #[test]
    fn decoded_heads_of_yolo_are_read_as_they_lie() {
        let bee = ("bee", 0.72, [8.0, 6.0, 24.0, 14.0]);
        let row = [8.0, 10.0, 8.0, 8.0, 0.8, 0.1, 0.9];
        let near = [8.0, 10.0, 8.0, 9.0, 0.7, 0.1, 0.9];
        let mut rows = vec![0.0; 63 * 7];
        rows[..7].copy_from_slice(&row);
        rows[7..14].copy_from_slice(&near);
        let tensors: [(Shape<'_>, &[f32]); 1] = [(("output0", &[1, 63, 7]), &rows)];
        check(("", NAMES), &tensors, json!({}), &[bee]);
        let both = [bee, ("bee", 0.63, [8.0, 5.5, 24.0, 14.5])];
        check(("", NAMES), &tensors, json!({"iou": 0.95}), &both);

        let mut columns = vec![0.0; 6 * 21];
        for (place, value) in [8.0, 10.0, 8.0, 8.0, 0.1, 0.72].into_iter().enumerate() {
            columns[place * 21 + 3] = value;
        }
        check(("", NAMES), &[(("output0", &[1, 6, 21]), &columns)], json!({}), &[bee]);

        let rows = [4.0, 6.0, 12.0, 14.0, 0.72, 1.0, 4.0, 6.0, 12.0, 14.0, 0.9, -1.0];
        check(("", NAMES), &[(("output0", &[1, 2, 6]), &rows)], json!({}), &[bee]);
        check(("", NAMES), &[(("output0", &[1, 0, 6]), &[])], json!({}), &[]);
    }

    #[test]
    fn ssd_leaves_out_the_background() {
        let manifest = "decoder = \"ssd\"\nlabels = [\"background\", \"face\"]";
        let boxes = [0.25, 0.25, 0.5, 0.5, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0];
        let tensors: [(Shape<'_>, &[f32]); 2] =
            [(("scores", &[1, 3, 2]), &[0.1, 0.9, 0.2, 0.8, 0.9, 0.1]), (("boxes", &[1, 3, 4]), &boxes)];
        check((manifest, "{}"), &tensors, json!({}), &[("face", 0.9, [16.0, 8.0, 32.0, 16.0])]);
    }

    #[test]
    fn a_decoder_that_is_unknown_or_does_not_fit_is_said() {
        let one: &[Shape<'_>] = &[("output", &[1, 21, 7])];
        for (manifest, config, outputs, expected) in [
            ("", NAMES, one, "name the decoder in [pipeline] of model.toml, one of \"detr\", \"rt_detr\""),
            ("decoder = \"yolo\"", NAMES, one, "decoder of model.toml: expected one of \"detr\""),
            (
                "decoder = \"detr\"",
                NAMES,
                one,
                "needs boxes as a float output [1, n, 4]; the graph's outputs are output",
            ),
            (
                "decoder = \"yolox\"",
                r#"{"id2label": ["a"]}"#,
                one,
                "has 1 labels, but the graph's output has 2 classes",
            ),
            ("decoder = \"yolox\"", NAMES, &[("output", &[1, 21, 5])], "too narrow for yolox"),
        ] {
            let error = made(manifest, config, outputs).err().unwrap_or_default();
            assert!(error.contains(expected), "{error:?}");
        }
    }

    #[test]
    fn outputs_of_odd_shapes_are_errors() {
        let shapes: [Shape<'_>; 2] = [("logits", &[1, 2, 3]), ("pred_boxes", &[1, 2, 4])];
        let pipeline = made("", NAMES, &shapes).unwrap();
        for tensors in [
            vec![],
            vec![((shapes[0]), [0.0; 6].as_slice())],
            vec![(shapes[0], &[0.0; 6]), (("pred_boxes", &[1, 1, 4]), &[0.0; 4])],
            vec![(("logits", &[2, 1, 3]), &[0.0; 6]), (shapes[1], &[0.0; 8])],
            vec![(("logits", &[1, 2, 1]), &[0.0; 2]), (shapes[1], &[0.0; 8])],
        ] {
            let got = pipeline.postprocess(&[outputs(&tensors)], &notes(), &Parameters::new());
            assert!(matches!(got, Err(PipelineError::Outputs(_))), "{got:?}");
        }
    }

    #[test]
    fn wrong_parameters_are_named() {
        let pipeline = made("", NAMES, &[("logits", &[1, 2, 3]), ("pred_boxes", &[1, 2, 4])]).unwrap();
        for (given, expected) in [
            (json!({"threshold": 1.5}), "parameters.threshold: expected a number from 0 to 1, got 1.5"),
            (json!({"iou": "x"}), "parameters.iou: expected a number from 0 to 1, got \"x\""),
            (json!({"max_detections": 0}), "parameters.max_detections: expected an integer from 1 to 1000, got 0"),
            (json!({"top_k": 5}), "parameters.top_k: object-detection has no such parameter; it takes threshold, iou"),
        ] {
            let error = pipeline.check_parameters(given.as_object().unwrap()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let nothing = json!({"threshold": null, "iou": null, "max_detections": null});
        assert!(pipeline.check_parameters(nothing.as_object().unwrap()).is_ok());
    }

    fn any_number() -> impl Strategy<Value = f32> {
        prop_oneof![6 => -2.0..40.0f32, 2 => 0.0..1.0f32, 1 => any::<f32>(), 1 => Just(f32::NAN)]
    }

    proptest! {
        #[test]
        fn whatever_the_graph_gives_boxes_are_numbers(
            values in prop::collection::vec(any_number(), 21 * 6),
            boxes in prop::collection::vec(any_number(), 21 * 4),
        ) {
            for (name, _) in Decoder::ALL {
                let one: [(Shape<'_>, &[f32]); 1] = [(("output", &[1, 21, 6]), &values)];
                let two: [(Shape<'_>, &[f32]); 2] = [(("scores", &[1, 21, 6]), &values), (("boxes", &[1, 21, 4]), &boxes)];
                let tensors: &[(Shape<'_>, &[f32])] = if name.starts_with("yolo") { &one } else { &two };
                let shapes: Vec<_> = tensors.iter().map(|(shape, _)| *shape).collect();
                let pipeline = made(&format!("decoder = {name:?}"), "{}", &shapes).unwrap();
                let parameters = json!({"threshold": 0, "max_detections": 50});
                let got = pipeline.postprocess(&[outputs(tensors)], &notes(), parameters.as_object().unwrap());
                let Prediction::Objects(got) = got.unwrap() else { panic!("objects") };
                prop_assert!(got.len() <= 50);
                for one in got {
                    let BoundingBox { xmin, ymin, xmax, ymax } = one.bounds;
                    prop_assert!([one.score, xmin, ymin, xmax, ymax].iter().all(|number| number.is_finite()), "{name}");
                    prop_assert!(xmin <= xmax && ymin <= ymax);
                }
            }
        }
    }
}
