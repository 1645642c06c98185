//! Predictions in the form of TorchServe's default handlers: classes as `{label: probability}`, objects as
//! `{label: [x1, y1, x2, y2], "score"}`, all else as the native routes have it, outputs as nested arrays.

use super::body::AnswerForm;
use crate::codec::json::{write_string, write_value};
use crate::engine::{ClassScore, Prediction};
use crate::http::v1::encode::value_size;
use crate::tensor::Value;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::collections::HashSet;

/// What the engine gave.
#[derive(Debug)]
pub(in crate::http::dialects) enum Answer {
    /// One for each item.
    Predictions(Vec<Prediction>),
    /// By name.
    Outputs(Vec<(String, Value)>),
}

impl Answer {
    /// Roughly the bytes that the answer is made of.
    pub(in crate::http::dialects) fn size(&self) -> usize {
        match self {
            Answer::Predictions(predictions) => predictions.iter().map(Prediction::bytes).sum(),
            Answer::Outputs(outputs) => outputs.iter().map(|(_, value)| value_size(value)).sum(),
        }
    }

    /// The answer's body. Computing: large answers are written off the async threads.
    ///
    /// # Errors
    /// Where a prediction cannot be written, which is a fault of ours.
    pub(in crate::http::dialects) fn write(&self, form: AnswerForm) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = Vec::new();
        if form == AnswerForm::Envelope {
            out.extend_from_slice(b"{\"predictions\":");
        }
        match self {
            Answer::Predictions(predictions) => match (form, predictions.as_slice()) {
                (AnswerForm::One, [one]) => serde_json::to_writer(&mut out, &Handled(one))?,
                (_, all) => serde_json::to_writer(&mut out, &all.iter().map(Handled).collect::<Vec<_>>())?,
            },
            Answer::Outputs(outputs) => write_outputs(outputs, &mut out),
        }
        if form == AnswerForm::Envelope {
            out.push(b'}');
        }
        Ok(out)
    }
}

/// The only output as it is, several by their names.
fn write_outputs(outputs: &[(String, Value)], out: &mut Vec<u8>) {
    if let [(_, value)] = outputs {
        return write_value(value, out);
    }
    out.push(b'{');
    for (index, (name, value)) in outputs.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(name, out);
        out.push(b':');
        write_value(value, out);
    }
    out.push(b'}');
}

/// A prediction as the default handler of its task gives it.
struct Handled<'a>(&'a Prediction);

impl Serialize for Handled<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Prediction::Classes(classes) => by_label(classes, serializer),
            Prediction::Objects(objects) => serializer.collect_seq(objects.iter().map(|object| {
                let bounds = &object.bounds;
                let corners = [bounds.xmin, bounds.ymin, bounds.xmax, bounds.ymax].map(Number);
                Found { label: &object.label, corners, score: Number(object.score) }
            })),
            other => other.serialize(serializer),
        }
    }
}

/// Best first; a label that comes again has the better number already.
fn by_label<S: Serializer>(classes: &[ClassScore], serializer: S) -> Result<S::Ok, S::Error> {
    let mut seen = HashSet::new();
    let mut map = serializer.serialize_map(None)?;
    for class in classes.iter().filter(|class| seen.insert(class.label.as_str())) {
        map.serialize_entry(&class.label, &Number(class.score))?;
    }
    map.end()
}

struct Found<'a> {
    label: &'a str,
    corners: [Number; 4],
    score: Number,
}

impl Serialize for Found<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry(self.label, &self.corners)?;
        map.serialize_entry("score", &self.score)?;
        map.end()
    }
}

/// Numbers that are not finite are text, as in all answers.
struct Number(f32);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            value if value.is_finite() => serializer.serialize_f32(value),
            value if value.is_nan() => serializer.serialize_str("NaN"),
            value if value > 0.0 => serializer.serialize_str("Infinity"),
            _ => serializer.serialize_str("-Infinity"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Tensor};

    fn classes(classes: &[(&str, f32)]) -> Prediction {
        let class = |(label, score): &(&str, f32)| ClassScore { label: (*label).to_owned(), score: *score };
        Prediction::Classes(classes.iter().map(class).collect())
    }

    #[track_caller]
    fn check(answer: &Answer, form: AnswerForm, expected: &str) {
        assert_eq!(String::from_utf8(answer.write(form).unwrap()).unwrap(), expected);
    }

    #[test]
    fn classes_are_an_object_of_labels_best_first() {
        let one = Answer::Predictions(vec![classes(&[("cat", 0.5), ("dog", 0.25), ("cat", 0.125), ("x", f32::NAN)])]);
        let expected = r#"{"cat":0.5,"dog":0.25,"x":"NaN"}"#;
        check(&one, AnswerForm::One, expected);
        check(&one, AnswerForm::List, &format!("[{expected}]"));
        check(&one, AnswerForm::Envelope, &format!("{{\"predictions\":[{expected}]}}"));
    }

    #[test]
    fn outputs_are_nested_arrays() {
        let tensor = |values: &[f32]| {
            Value::from(Tensor::from_vec(DType::Fp32, vec![1, values.len()], values.to_vec()).unwrap())
        };
        let one = Answer::Outputs(vec![("y".to_owned(), tensor(&[1.5, 2.0]))]);
        check(&one, AnswerForm::One, "[[1.5,2.0]]");
        check(&one, AnswerForm::Envelope, r#"{"predictions":[[1.5,2.0]]}"#);
        let two = Answer::Outputs(vec![("y".to_owned(), tensor(&[1.5])), ("z\"".to_owned(), tensor(&[2.0]))]);
        check(&two, AnswerForm::One, r#"{"y":[[1.5]],"z\"":[[2.0]]}"#);
    }
}
