//! What detectors give, as boxes: one decoder for each form of output that is in use.
//!
//! Invariants: a box is in pixels of the tensor; only those with a score above the threshold are made; no value of the
//! graph makes a panic. Which decoder a model needs is said in its manifest, or found by [`Decoder::guess`] where the
//! outputs cannot be mistaken.

use super::suppression::{Candidate, best, largest};
use super::{ImageInput, Placed, Size};
use crate::pipelines::outputs::{fixed_dim, floats_of_rank, names, tensor_named, unexpected};
use crate::pipelines::{Outputs, PipelineError};
use crate::tensor::{Dim, Spec};

/// The strides of the three grids that YOLO's heads stand on.
const STRIDES: [u32; 3] = [8, 16, 32];
/// Pairs of query and class that the descendants of Deformable DETR look at.
const MOST_PAIRS: usize = 100;
/// Detectors that suppress inside the graph give a few hundred rows.
const MAX_NMS_ROWS: usize = 1000;

/// A form of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoder {
    /// `logits` `[1, queries, classes + 1]`, the last class being no object, and boxes `[1, queries, 4]` as centre and size,
    /// 0 to 1.
    Detr,
    /// `logits` `[1, queries, classes]`, each class on its own, and boxes as [`Decoder::Detr`]'s.
    RtDetr,
    /// As [`Decoder::RtDetr`], but the best hundred pairs of query and class are looked at, however many queries there are.
    DeformableDetr,
    /// `[1, rows, 5 + classes]`: centre relative to its cell, logarithm of the size, both in strides; objectness; classes.
    Yolox,
    /// `[1, rows, 5 + classes]`: centre and size in pixels, objectness, classes.
    Yolov5,
    /// `[1, 4 + classes, columns]`: centre and size in pixels, classes.
    Yolov8,
    /// `[1, rows, 6]`: edges in pixels, score, class; suppressed already.
    YoloNms,
    /// `scores` `[1, rows, classes]`, class 0 being the background, and boxes `[1, rows, 4]` as edges, 0 to 1.
    Ssd,
}

/// The outputs that a decoder reads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Heads {
    pub(crate) decoder: Decoder,
    /// The scores, or all of it where there is one output.
    scores: String,
    /// The boxes, where they are an output of their own.
    boxes: Option<String>,
    /// Classes that have a label, where the graph declares them.
    pub(crate) classes: Option<usize>,
}

/// An output of shape `[1, rows, width]`.
struct Table {
    values: Vec<f32>,
    rows: usize,
    /// At least 1.
    width: usize,
}

impl Decoder {
    pub(crate) const ALL: [(&str, Decoder); 8] = [
        ("detr", Decoder::Detr),
        ("rt_detr", Decoder::RtDetr),
        ("deformable_detr", Decoder::DeformableDetr),
        ("yolox", Decoder::Yolox),
        ("yolov5", Decoder::Yolov5),
        ("yolov8", Decoder::Yolov8),
        ("yolo-nms", Decoder::YoloNms),
        ("ssd", Decoder::Ssd),
    ];

    /// The decoder of that name in a manifest, for a model whose `config.json` says `model_type`.
    pub(crate) fn from_name(name: &str, model_type: &str) -> Option<Decoder> {
        let (_, decoder) = Decoder::ALL.into_iter().find(|(known, _)| *known == name)?;
        Some(decoder.for_model_type(model_type))
    }

    pub(crate) fn name(self) -> &'static str {
        Decoder::ALL.into_iter().find(|(_, decoder)| *decoder == self).map_or("", |(name, _)| name)
    }

    /// The names of all, for a sentence.
    pub(crate) fn names() -> String {
        Decoder::ALL.map(|(name, _)| format!("{name:?}")).join(", ")
    }

    /// Descendants of DETR whose classes are scored each on its own.
    fn for_model_type(self, model_type: &str) -> Decoder {
        let starts = |names: &[&str]| names.iter().any(|start| model_type.starts_with(start));
        match self {
            Decoder::Detr if starts(&["rt_detr", "d_fine"]) => Decoder::RtDetr,
            Decoder::Detr if starts(&["conditional_detr", "deformable_detr", "dab-detr"]) => Decoder::DeformableDetr,
            decoder => decoder,
        }
    }

    /// The decoder that the outputs' names and shapes allow alone.
    pub(crate) fn guess(outputs: &[Spec], input: &ImageInput, model_type: &str) -> Option<Decoder> {
        let has = |name: &str| outputs.iter().any(|spec| spec.name == name);
        if has("logits") && has("pred_boxes") {
            return Some(Decoder::Detr.for_model_type(model_type));
        }
        let [output] = outputs else { return None };
        let Some([_, Dim::Fixed(rows), Dim::Fixed(columns)]) = output.ty.shape() else { return None };
        // Cells of the three grids; YOLO with anchors has three rows for each.
        let side = |side: Option<usize>| u32::try_from(side?).ok();
        let size = side(input.height).zip(side(input.width)).map(|(height, width)| Size { height, width });
        let cells = size.map(|size| grids(size).map(|(_, height, width)| height * width).sum::<usize>());
        match (*rows, *columns) {
            (rows, 6) if rows <= MAX_NMS_ROWS && cells.is_none_or(|cells| rows != cells && rows != 3 * cells) => {
                Some(Decoder::YoloNms)
            }
            (5.., columns) if cells == Some(columns) => Some(Decoder::Yolov8),
            (rows, 6..) if cells.is_some_and(|cells| rows == 3 * cells) => Some(Decoder::Yolov5),
            _ => None,
        }
    }

    /// A score must exceed this where the request names none.
    pub(crate) fn default_threshold(self) -> f32 {
        match self {
            Decoder::Detr | Decoder::RtDetr | Decoder::DeformableDetr | Decoder::Ssd => 0.5,
            Decoder::Yolox | Decoder::Yolov5 | Decoder::Yolov8 | Decoder::YoloNms => 0.25,
        }
    }

    /// The overlap above which boxes are suppressed where the request names none; `None` where the model itself gives each
    /// object once.
    pub(crate) fn default_iou(self) -> Option<f64> {
        match self {
            Decoder::Detr | Decoder::RtDetr | Decoder::DeformableDetr | Decoder::YoloNms => None,
            Decoder::Yolox | Decoder::Yolov5 | Decoder::Yolov8 | Decoder::Ssd => Some(0.45),
        }
    }

    /// The outputs that hold what this decoder reads.
    ///
    /// # Errors
    /// Says in one sentence what is missing.
    pub(crate) fn heads(self, outputs: &[Spec]) -> Result<Heads, String> {
        let tables = || floats_of_rank(outputs, &[3]);
        let name = self.name();
        let missing = |what: &str| {
            format!(
                "the decoder {name:?} needs {what}; the graph's outputs are {}: choose another decoder",
                names(outputs)
            )
        };
        // Columns that are not classes.
        let (beside, axis) = match self {
            Decoder::Detr => (1, 2),
            Decoder::RtDetr | Decoder::DeformableDetr | Decoder::Ssd => (0, 2),
            Decoder::Yolox | Decoder::Yolov5 => (5, 2),
            Decoder::Yolov8 => (4, 1),
            Decoder::YoloNms => (0, usize::MAX),
        };
        let (scores, boxes) = match self {
            Decoder::Detr | Decoder::RtDetr | Decoder::DeformableDetr | Decoder::Ssd => {
                let is_boxes = |spec: &&Spec| fixed_dim(spec, 2).is_none_or(|width| width == 4);
                let boxes = tables().filter(|spec| spec.name.contains("box")).find(is_boxes);
                let boxes = boxes.or_else(|| tables().find(|spec| fixed_dim(spec, 2) == Some(4)));
                let boxes = boxes.ok_or_else(|| missing("boxes as a float output [1, n, 4]"))?;
                let scores = tables().find(|spec| spec.name != boxes.name);
                let scores = scores.ok_or_else(|| missing("scores as a float output [1, n, classes]"))?;
                (scores, Some(boxes.name.clone()))
            }
            Decoder::Yolox | Decoder::Yolov5 | Decoder::Yolov8 | Decoder::YoloNms => {
                (tables().next().ok_or_else(|| missing("a float output of rank 3"))?, None)
            }
        };
        let classes = match fixed_dim(scores, axis).map(|width| width.checked_sub(beside)) {
            Some(Some(0) | None) => {
                return Err(format!("output {:?} is {}: too narrow for {name}", scores.name, scores.ty));
            }
            Some(classes) => classes,
            None => None,
        };
        Ok(Heads { decoder: self, scores: scores.name.clone(), boxes, classes })
    }
}

/// The grids of a tensor, as stride, rows and columns.
fn grids(size: Size) -> impl Iterator<Item = (u32, usize, usize)> {
    STRIDES.into_iter().map(move |stride| (stride, (size.height / stride) as usize, (size.width / stride) as usize))
}

impl Heads {
    /// The boxes with a score above `threshold`, in pixels of the tensor.
    ///
    /// # Errors
    /// [`PipelineError::Outputs`] where the outputs are not what the decoder reads.
    pub(crate) fn decode(
        &self,
        outputs: &Outputs,
        placed: &Placed,
        threshold: f32,
    ) -> Result<Vec<Candidate>, PipelineError> {
        let table = Table::read(outputs, &self.scores)?;
        let narrow = |least: usize| match table.width < least {
            true => Err(self.wrong(format!("expected at least {least} columns, got {}", table.width))),
            false => Ok(()),
        };
        match self.decoder {
            Decoder::Detr => narrow(2).and_then(|()| self.detr(outputs, &table, placed, threshold)),
            Decoder::RtDetr => self.each_class(outputs, &table, placed, threshold, table.rows),
            Decoder::DeformableDetr => self.each_class(outputs, &table, placed, threshold, MOST_PAIRS),
            Decoder::Ssd => narrow(2).and_then(|()| self.ssd(outputs, &table, placed, threshold)),
            Decoder::Yolox => narrow(6).and_then(|()| self.yolox(&table, placed, threshold)),
            Decoder::Yolov5 => narrow(6).map(|()| yolov5(&table, threshold)),
            Decoder::Yolov8 if table.rows < 5 => {
                Err(self.wrong(format!("expected at least 5 rows, got {}", table.rows)))
            }
            Decoder::Yolov8 => Ok(yolov8(&table, threshold)),
            Decoder::YoloNms if table.width != 6 => Err(self.wrong(format!("expected 6 columns, got {}", table.width))),
            Decoder::YoloNms => Ok(yolo_nms(&table, threshold)),
        }
    }

    fn wrong(&self, problem: String) -> PipelineError {
        PipelineError::Outputs(format!("output {:?}, decoder {:?}: {problem}", self.scores, self.decoder.name()))
    }

    /// The boxes of their own output, one for each row of `scores`.
    fn boxes(&self, outputs: &Outputs, scores: &Table) -> Result<Vec<[f32; 4]>, PipelineError> {
        let boxes = Table::read(outputs, self.boxes.as_deref().unwrap_or_default())?;
        if boxes.width != 4 || boxes.rows != scores.rows {
            return Err(self
                .wrong(format!("expected {} boxes of 4 numbers, got {} of {}", scores.rows, boxes.rows, boxes.width)));
        }
        Ok(boxes.values.as_chunks::<4>().0.to_vec())
    }

    fn detr(
        &self,
        outputs: &Outputs,
        logits: &Table,
        placed: &Placed,
        threshold: f32,
    ) -> Result<Vec<Candidate>, PipelineError> {
        let found = logits.rows().zip(self.boxes(outputs, logits)?).filter_map(|(logits, edges)| {
            let (_, peak) = largest(logits)?;
            let (_, classes) = logits.split_last()?;
            let (class, top) = largest(classes)?;
            let sum: f32 = logits.iter().map(|logit| (logit - peak).exp()).sum();
            let score = (top - peak).exp() / sum;
            (score > threshold).then(|| Candidate { class, score, edges: on_canvas(centred(edges), placed) })
        });
        Ok(best(found))
    }

    /// A query may be several classes; of all pairs the best `most` are looked at, as the reference does.
    fn each_class(
        &self,
        outputs: &Outputs,
        logits: &Table,
        placed: &Placed,
        threshold: f32,
        most: usize,
    ) -> Result<Vec<Candidate>, PipelineError> {
        let boxes = self.boxes(outputs, logits)?;
        let found = logits.rows().zip(boxes).flat_map(|(logits, edges)| {
            let edges = on_canvas(centred(edges), placed);
            logits.iter().enumerate().map(move |(class, logit)| Candidate { class, score: sigmoid(*logit), edges })
        });
        let mut found = best(found.filter(|candidate| candidate.score > threshold));
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        found.truncate(most);
        Ok(found)
    }

    fn ssd(
        &self,
        outputs: &Outputs,
        scores: &Table,
        placed: &Placed,
        threshold: f32,
    ) -> Result<Vec<Candidate>, PipelineError> {
        let boxes = self.boxes(outputs, scores)?;
        let found = scores.rows().zip(boxes).flat_map(|(scores, edges)| {
            let edges = on_canvas(edges.map(f64::from), placed);
            let things = scores.iter().enumerate().skip(1);
            things.map(move |(class, &score)| Candidate { class, score, edges })
        });
        Ok(best(found.filter(|candidate| candidate.score > threshold)))
    }

    fn yolox(&self, table: &Table, placed: &Placed, threshold: f32) -> Result<Vec<Candidate>, PipelineError> {
        let cells = grids(placed.tensor).map(|(_, height, width)| height * width).sum::<usize>();
        if cells != table.rows {
            return Err(self.wrong(format!(
                "expected {cells} rows for an input of {}×{}, got {}",
                placed.tensor.width, placed.tensor.height, table.rows
            )));
        }
        let cells = grids(placed.tensor).flat_map(|(stride, height, width)| {
            (0..height).flat_map(move |y| (0..width).map(move |x| (f64::from(stride), x as f64, y as f64)))
        });
        let found = table.rows().zip(cells).filter_map(|(row, (stride, column, line))| {
            let [x, y, width, height, objectness, classes @ ..] = row else { return None };
            let (class, top) = largest(classes)?;
            let score = objectness * top;
            let edges = || {
                let centre = ((f64::from(*x) + column) * stride, (f64::from(*y) + line) * stride);
                around(centre, (f64::from(*width).exp() * stride, f64::from(*height).exp() * stride))
            };
            (score > threshold).then(|| Candidate { class, score, edges: edges() })
        });
        Ok(best(found))
    }
}

fn yolov5(table: &Table, threshold: f32) -> Vec<Candidate> {
    let found = table.rows().filter_map(|row| {
        let [x, y, width, height, objectness, classes @ ..] = row else { return None };
        let (class, top) = largest(classes)?;
        let score = objectness * top;
        (score > threshold).then(|| Candidate { class, score, edges: centred([*x, *y, *width, *height]) })
    });
    best(found)
}

fn yolov8(table: &Table, threshold: f32) -> Vec<Candidate> {
    // The columns are the boxes: the best class of each is found row by row, as the numbers lie.
    let mut rows = table.rows();
    let (Some(x), Some(y), Some(width), Some(height)) = (rows.next(), rows.next(), rows.next(), rows.next()) else {
        return Vec::new();
    };
    let mut tops = vec![(0usize, f32::NEG_INFINITY); table.width];
    for (class, scores) in rows.enumerate() {
        for (top, &score) in tops.iter_mut().zip(scores) {
            // NaN is kept and never exceeds the threshold.
            if score > top.1 || score.is_nan() {
                *top = (class, score);
            }
        }
    }
    let boxes = x.iter().zip(y).zip(width.iter().zip(height));
    let found = boxes.zip(tops).filter(|(_, (_, score))| *score > threshold);
    best(found.map(|(((&x, &y), (&width, &height)), (class, score))| {
        let edges = centred([x, y, width, height]);
        Candidate { class, score, edges }
    }))
}

fn yolo_nms(table: &Table, threshold: f32) -> Vec<Candidate> {
    let found = table.rows().filter_map(|row| {
        let &[xmin, ymin, xmax, ymax, score, class] = row else { return None };
        let is_class = (0.0..16_777_216.0).contains(&class);
        (score > threshold && is_class).then(|| Candidate {
            class: class as usize,
            score,
            edges: [xmin, ymin, xmax, ymax].map(f64::from),
        })
    });
    best(found)
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// Edges of a box given as centre and size.
fn centred(edges: [f32; 4]) -> [f64; 4] {
    let [x, y, width, height] = edges.map(f64::from);
    around((x, y), (width, height))
}

fn around((x, y): (f64, f64), (width, height): (f64, f64)) -> [f64; 4] {
    [x - width / 2.0, y - height / 2.0, x + width / 2.0, y + height / 2.0]
}

/// Pixels of the tensor from shares of the picture in it, which stands at its top left.
fn on_canvas([xmin, ymin, xmax, ymax]: [f64; 4], placed: &Placed) -> [f64; 4] {
    let (width, height) = (f64::from(placed.canvas.width), f64::from(placed.canvas.height));
    [xmin * width, ymin * height, xmax * width, ymax * height]
}

impl Table {
    fn read(outputs: &Outputs, wanted: &str) -> Result<Table, PipelineError> {
        let tensor = tensor_named(outputs, wanted)?;
        let table = match *tensor.shape() {
            [1, rows, width] if width > 0 => tensor.to_f32().map(|values| Table { values, rows, width }),
            _ => None,
        };
        table.ok_or_else(|| unexpected(wanted, "[1, rows, columns]", tensor))
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width)
    }
}
