//! `image-segmentation`: a class for each pixel of a picture, as one mask for each class that is there.
//!
//! Semantic segmentation, as transformers' pipeline answers it: class scores are enlarged to the picture and the best class
//! of each pixel is taken. Masks come in the order of the classes. Instances and panoptic parts are not made: their graphs
//! have other outputs. A centre crop is undone, where the reference stretches what was cropped over the whole picture.

use super::maps::{Along, Taps, linear, png};
use super::{Pictures, Placed, Refusal};
use crate::pipelines::detect::{Made, Sources};
use crate::pipelines::labels::{self, numbered};
use crate::pipelines::outputs::{fixed_dim, floats_of_rank, names, tensor_named, unexpected};
use crate::pipelines::{
    Item, Mask, Notes, Outputs, Parameters, Pipeline, PipelineError, Prediction, Prepared, Segment, only_run,
};
use serde_json::Value;
use std::sync::Arc;

pub(crate) const TASK: &str = "image-segmentation";

/// Bytes of all masks of one picture, before they are compressed: seconds of work.
const MAX_MASK_BYTES: u64 = 1 << 31;

/// One model's segmentation of pictures.
pub struct ImageSegmentation {
    pictures: Pictures,
    /// Name of the output `[1, classes, height, width]`.
    output: String,
    /// By class; where shorter than the classes, the rest is `LABEL_n`.
    labels: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum MaskFormat {
    Png,
    Rle,
}

/// The class of every pixel of the picture, row by row.
struct ClassMap {
    width: usize,
    height: usize,
    /// Number of classes; each pixel's is less.
    classes: usize,
    pixels: Vec<u16>,
}

/// # Errors
/// [`PipelineError::Setup`] says what is missing, malformed or does not fit.
pub(crate) fn make(sources: &Sources<'_>) -> Result<Made, PipelineError> {
    let (pictures, prepared) = Pictures::of(sources)?;
    // Queries, each with a mask and a class, as MaskFormer's: as scores of classes their masks would be read wrongly.
    if sources.outputs.iter().any(|spec| spec.name == "masks_queries_logits") {
        return Err(PipelineError::Setup(
            "masks of queries (masks_queries_logits) are not put together: serve it with task = \"raw\"".to_owned(),
        ));
    }
    let maps = || floats_of_rank(sources.outputs, &[4]);
    let output = maps().find(|spec| spec.name == "logits").or_else(|| maps().find(|spec| spec.ty.shape().is_some()));
    let output = output.ok_or_else(|| {
        PipelineError::Setup(format!(
            "a class for each pixel needs a float output [1, classes, height, width]; the graph's outputs are {}: serve it \
             with task = \"raw\"",
            names(sources.outputs)
        ))
    })?;
    let classes = fixed_dim(output, 1);
    let labels = labels::find(sources.folder, sources.manifest.labels.as_ref(), sources.config()?, classes)?;
    let how = format!("masks are made of {}; {prepared}", output.name);
    Ok(Made { pipeline: Arc::new(ImageSegmentation { pictures, output: output.name.clone(), labels }), how })
}

fn read_parameters(parameters: &Parameters) -> Result<MaskFormat, PipelineError> {
    let mut format = MaskFormat::Png;
    for (name, value) in parameters {
        let wrong = |problem: String| Err(PipelineError::Parameter { name: name.clone(), problem });
        match (name.as_str(), value) {
            ("mask_format", Value::Null) => {}
            ("mask_format", value) => match value.as_str() {
                Some("png") => format = MaskFormat::Png,
                Some("rle") => format = MaskFormat::Rle,
                _ => return wrong(format!("expected \"png\" or \"rle\", got {value}")),
            },
            _ => return wrong(format!("{TASK} has no such parameter; it takes mask_format")),
        }
    }
    Ok(format)
}

impl Pipeline for ImageSegmentation {
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
        let format = read_parameters(parameters)?;
        let tensor = tensor_named(only_run(outputs)?, &self.output)?;
        let wrong = || unexpected(&self.output, "[1, classes, height, width]", tensor);
        let &[1, classes, height, width] = tensor.shape() else { return Err(wrong()) };
        if tensor.is_empty() || classes > usize::from(u16::MAX) {
            return Err(wrong());
        }
        let logits = tensor.to_f32().ok_or_else(wrong)?;
        let map = ClassMap::of(&logits, [classes, height, width], notes.get()?)?;
        let masks = match format {
            MaskFormat::Png => map.png_masks()?,
            MaskFormat::Rle => map.rle_masks(),
        };
        let label = |class: usize| self.labels.get(class).cloned().unwrap_or_else(|| numbered(class));
        let segment = |(class, mask)| Segment { score: None, label: label(class), mask };
        Ok(Prediction::Segments(masks.into_iter().map(segment).collect()))
    }

    fn check_parameters(&self, parameters: &Parameters) -> Result<(), PipelineError> {
        read_parameters(parameters).map(|_| ())
    }
}

impl ClassMap {
    /// The best class of each pixel of the picture. `logits` has `[classes, height, width]`, each at least 1.
    ///
    /// Where one class is the best at all four neighbours of a pixel, it is the best between them too: only the pixels at
    /// the borders of regions look at every class.
    fn of(logits: &[f32], [classes, height, width]: [usize; 3], placed: &Placed) -> Result<ClassMap, PipelineError> {
        let failed = || PipelineError::Outputs("the classes of the picture's pixels do not fit memory".to_owned());
        let places = height.checked_mul(width).ok_or_else(failed)?;
        // Place by place, so that the classes of a place are read together.
        let mut scores: Vec<f32> = Vec::new();
        scores.try_reserve_exact(logits.len()).map_err(|_| failed())?;
        scores.resize(logits.len(), 0.0);
        for (class, plane) in logits.chunks_exact(places).enumerate() {
            for (target, &logit) in scores.iter_mut().skip(class).step_by(classes).zip(plane) {
                *target = logit;
            }
        }
        let best: Vec<u16> = scores.chunks_exact(classes).map(|scores| argmax(scores.iter().copied())).collect();
        let at = |row: usize, column: usize| {
            let place = row * width + column;
            let scores = scores.get(place * classes..(place + 1) * classes).unwrap_or_default();
            (best.get(place).copied().unwrap_or_default(), scores)
        };
        let (rows, columns) = (linear(placed, Along::Rows, height), linear(placed, Along::Columns, width));
        let mut pixels: Vec<u16> = Vec::new();
        pixels.try_reserve_exact(rows.len().checked_mul(columns.len()).ok_or_else(failed)?).map_err(|_| failed())?;
        for Taps { places: [above, below], weights: [by_above, by_below] } in &rows {
            pixels.extend(columns.iter().map(|Taps { places: [left, right], weights: [by_left, by_right] }| {
                let corners = [at(*above, *left), at(*above, *right), at(*below, *left), at(*below, *right)];
                let [(class, _), rest @ ..] = corners;
                if rest.iter().all(|(other, _)| *other == class) {
                    return class;
                }
                let [(_, a), (_, b), (_, c), (_, d)] = corners;
                let between = a.iter().zip(b).zip(c.iter().zip(d)).map(|((a, b), (c, d))| {
                    by_above * (by_left * a + by_right * b) + by_below * (by_left * c + by_right * d)
                });
                argmax(between)
            }));
        }
        Ok(ClassMap { width: columns.len(), height: rows.len(), classes, pixels })
    }

    /// The classes that are there, in order.
    fn present(&self) -> Vec<usize> {
        let mut seen = vec![false; self.classes];
        for &class in &self.pixels {
            if let Some(seen) = seen.get_mut(usize::from(class)) {
                *seen = true;
            }
        }
        seen.into_iter().enumerate().filter_map(|(class, seen)| seen.then_some(class)).collect()
    }

    fn png_masks(&self) -> Result<Vec<(usize, Mask)>, PipelineError> {
        let present = self.present();
        if (self.pixels.len() as u64).saturating_mul(present.len() as u64) > MAX_MASK_BYTES {
            return Err(PipelineError::TooLarge {
                index: 0,
                problem: format!(
                    "{} masks of {}×{} pixels are more than is encoded as PNG; send a smaller picture, or mask_format \
                     \"rle\"",
                    present.len(),
                    self.width,
                    self.height
                ),
            });
        }
        let mut grey = vec![0u8; self.pixels.len()];
        let mut masks = Vec::with_capacity(present.len());
        for class in present {
            for (grey, &pixel) in grey.iter_mut().zip(&self.pixels) {
                *grey = if usize::from(pixel) == class { 255 } else { 0 };
            }
            // A picture's sides fit.
            let picture: Result<String, Refusal> = png(&grey, self.width as u32, self.height as u32);
            masks.push((class, Mask::Png(picture?)));
        }
        Ok(masks)
    }

    /// Lengths of runs, column by column, beginning with those outside of the mask, as COCO's.
    fn rle_masks(&self) -> Vec<(usize, Mask)> {
        let mut masks: Vec<(Vec<u32>, u32)> = vec![(Vec::new(), 0); self.classes];
        // A run that ends before pixel `end`.
        let mut close = |class: u16, start: u32, end: u32| {
            if let Some((counts, covered)) = masks.get_mut(usize::from(class)) {
                counts.push(start - *covered);
                counts.push(end - start);
                *covered = end;
            }
        };
        let columns = (0..self.width).flat_map(|column| self.pixels.iter().skip(column).step_by(self.width.max(1)));
        let (mut run, mut at) = (None, 0u32);
        for &class in columns {
            match run {
                Some((current, _)) if current == class => {}
                Some((current, start)) => {
                    close(current, start, at);
                    run = Some((class, at));
                }
                None => run = Some((class, at)),
            }
            at += 1;
        }
        if let Some((current, start)) = run {
            close(current, start, at);
        }
        let size = [self.height as u32, self.width as u32];
        let present = masks.into_iter().enumerate().filter(|(_, (counts, _))| !counts.is_empty());
        let mask = present.map(|(class, (mut counts, covered))| {
            if covered < at {
                counts.push(at - covered);
            }
            (class, Mask::Rle { size, counts })
        });
        mask.collect()
    }
}

/// The first of the largest scores; one that is no number is never the largest.
fn argmax(scores: impl Iterator<Item = f32>) -> u16 {
    let (mut best, mut class) = (f32::NEG_INFINITY, 0);
    for (at, score) in scores.enumerate() {
        if score > best {
            (best, class) = (score, at);
        }
    }
    // Fewer classes than fit were let in.
    class as u16
}

#[cfg(test)]
mod tests {
    use super::super::{Size, maps};
    use super::*;
    use crate::tensor::{DType, Tensor};
    use proptest::prelude::*;
    use serde_json::json;

    fn segmentation() -> ImageSegmentation {
        let labels = ["sky", "sea"].map(String::from).to_vec();
        ImageSegmentation { pictures: Pictures::exact(4, 4), output: "logits".into(), labels }
    }

    fn placed(height: u32, width: u32) -> Placed {
        Placed::stretched(Size { height, width }, Size { height: 4, width: 4 })
    }

    fn outputs(shape: &[usize], values: &[f32]) -> Outputs {
        vec![("logits".into(), Tensor::from_vec(DType::Fp32, shape.to_vec(), values.to_vec()).unwrap().into())]
    }

    fn segments(shape: &[usize], values: &[f32], size: (u32, u32), format: &str) -> Vec<Segment> {
        let notes = Notes::new(placed(size.0, size.1), 0);
        let parameters = json!({"mask_format": format}).as_object().unwrap().clone();
        match segmentation().postprocess(&[outputs(shape, values)], &notes, &parameters).unwrap() {
            Prediction::Segments(segments) => segments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_class_that_is_there_has_a_mask_of_the_pictures_size() {
        // Three classes on 1×2 places: the first is best at the left, the third at the right, the second nowhere.
        let logits = [4.0, 0.0, 1.0, 1.0, 0.0, 4.0];
        let got = segments(&[1, 3, 1, 2], &logits, (2, 4), "rle");
        let labels: Vec<_> = got.iter().map(|segment| (segment.score, segment.label.as_str())).collect();
        assert_eq!(labels, [(None, "sky"), (None, "LABEL_2")]);
        assert_eq!(got[0].mask, Mask::Rle { size: [2, 4], counts: vec![0, 4, 4] });
        assert_eq!(got[1].mask, Mask::Rle { size: [2, 4], counts: vec![4, 4] });
        let got = segments(&[1, 3, 1, 2], &logits, (2, 4), "png");
        let expected = maps::png(&[255, 255, 0, 0, 255, 255, 0, 0], 4, 2).unwrap();
        assert_eq!(got[0].mask, Mask::Png(expected));
    }

    #[test]
    fn a_class_may_be_the_best_only_between_two_places() {
        let got = segments(&[1, 3, 1, 2], &[4.0, 0.0, 3.0, 3.0, 0.0, 4.0], (1, 6), "rle");
        let masks: Vec<_> = got.iter().map(|segment| &segment.mask).collect();
        let runs = |counts: &[u32]| Mask::Rle { size: [1, 6], counts: counts.to_vec() };
        assert_eq!(masks, [&runs(&[0, 2, 4]), &runs(&[2, 2, 2]), &runs(&[4, 2])]);
    }

    #[test]
    fn scores_that_are_no_numbers_are_never_the_best() {
        let got = segments(&[1, 2, 1, 1], &[f32::NAN, -5.0], (1, 1), "rle");
        assert_eq!(got[0].label, "sea");
        let got = segments(&[1, 2, 1, 1], &[f32::NAN, f32::NAN], (1, 1), "rle");
        assert_eq!(got[0].label, "sky");
    }

    #[test]
    fn outputs_of_odd_shapes_are_errors() {
        for (shape, count) in [(vec![2, 1, 1, 1], 2), (vec![1, 2, 2], 4), (vec![1, 2, 0, 2], 0)] {
            let notes = Notes::new(placed(2, 2), 0);
            let got = segmentation().postprocess(&[outputs(&shape, &vec![0.0; count])], &notes, &Parameters::new());
            assert!(matches!(got, Err(PipelineError::Outputs(_))), "{shape:?}: {got:?}");
        }
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (given, expected) in [
            (json!({"mask_format": "jpeg"}), "parameters.mask_format: expected \"png\" or \"rle\", got \"jpeg\""),
            (json!({"threshold": 1}), "parameters.threshold: image-segmentation has no such parameter; it takes"),
        ] {
            let error = segmentation().check_parameters(given.as_object().unwrap()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn runs_cover_every_pixel_once(
            width in 1..6usize,
            pixels in prop::collection::vec(0..4u16, 1..40),
        ) {
            let height = pixels.len().div_ceil(width);
            let mut pixels = pixels;
            pixels.resize(width * height, 0);
            let map = ClassMap { width, height, classes: 4, pixels };
            let mut drawn = vec![None; width * height];
            for (class, mask) in map.rle_masks() {
                let Mask::Rle { size, counts } = mask else { panic!("runs") };
                prop_assert_eq!(size, [height as u32, width as u32]);
                prop_assert_eq!(counts.iter().sum::<u32>() as usize, width * height);
                let mut at = 0;
                for (place, count) in counts.into_iter().enumerate() {
                    for pixel in at..at + count as usize {
                        if place % 2 == 1 {
                            let (column, row) = (pixel / height, pixel % height);
                            prop_assert_eq!(drawn[row * width + column].replace(class), None);
                        }
                    }
                    at += count as usize;
                }
            }
            let expected: Vec<_> = map.pixels.iter().map(|&class| Some(usize::from(class))).collect();
            prop_assert_eq!(drawn, expected);
        }

        #[test]
        fn looking_only_at_borders_changes_nothing(
            logits in prop::collection::vec((-3..3i32).prop_map(|step| step as f32), 36),
            height in 1..12u32,
            width in 1..12u32,
        ) {
            let placed = placed(height, width);
            let map = ClassMap::of(&logits, [3, 3, 4], &placed).unwrap();
            let (rows, columns) = (linear(&placed, Along::Rows, 3), linear(&placed, Along::Columns, 4));
            for (y, row) in rows.iter().enumerate() {
                for (x, column) in columns.iter().enumerate() {
                    let score = |class: usize| {
                        let at = |r: usize, c: usize| logits[class * 12 + row.places[r] * 4 + column.places[c]];
                        let line = |r: usize| column.weights[0] * at(r, 0) + column.weights[1] * at(r, 1);
                        row.weights[0] * line(0) + row.weights[1] * line(1)
                    };
                    let got = usize::from(map.pixels[y * width as usize + x]);
                    // Rounding decides between equal ones.
                    prop_assert!((0..3).all(|class| score(class) <= score(got) + 1e-5));
                }
            }
        }
    }
}
