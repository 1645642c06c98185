//! Trying a model: a form made from its task, the answer drawn, its times, and the same call as code.

use super::api::{Answer, Refusal};
use super::frame::{Frame, Visitor, page};
use super::snippets::{Kind, Snippet, body, example_inputs, with_file, with_json};
use super::values::{integer, list, number, plain, pretty_up_to, text, text_or_dash};
use super::{chart, format};
use crate::engine::{ModelName, picture_size};
use crate::http::extract::ModelPath;
use askama::Template;
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::time::Duration;

/// Bytes of a field that is no file.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// A picture or sound up to this size is shown again, with what was found in it.
const SHOWN_BYTES_MAX: usize = 6 << 20;
/// Pixels of one that boxes are drawn on.
const SHOWN_PIXELS_MAX: u64 = 40 << 20;
/// Rows of an answer that are drawn; all of it is in the JSON.
const ROWS_MAX: usize = 50;
/// Characters of the JSON that is shown.
const JSON_CHARS_MAX: usize = 20_000;

#[derive(Template)]
#[template(path = "try.html")]
struct TryIt {
    frame: Frame,
    name: String,
    task: String,
    kind: Kind,
    kind_pairs: bool,
    wants_labels: bool,
    given: Given,
    answer: Option<Shown>,
}

/// What was typed and chosen.
#[derive(Default)]
struct Given {
    text: String,
    second: String,
    labels: String,
    parameters: String,
    file: Option<File>,
}

struct File {
    name: String,
    bytes: bytes::Bytes,
}

/// The answer as it is shown.
struct Shown {
    problem: Option<String>,
    html: String,
    bar: String,
    timing: Vec<(&'static str, String)>,
    json: String,
    snippets: Vec<Snippet>,
}

pub(super) async fn show(visitor: Visitor, path: ModelPath) -> Response {
    let model = match visitor.dashboard.api.get(&format!("/v1/models/{}", path.name)).await {
        Ok(model) => model,
        Err(refusal) => return visitor.refused(&refusal),
    };
    let task = text(&model, "/task");
    let mut given = Given::default();
    if Kind::of(task.as_deref()) == Kind::Json {
        given.text = format!("{:#}", example_inputs(&model));
    }
    render(&visitor, &path.name, &model, given, None)
}

fn render(visitor: &Visitor, name: &ModelName, model: &Value, given: Given, answer: Option<Shown>) -> Response {
    let task = text(model, "/task");
    let kind = Kind::of(task.as_deref());
    let name = name.to_string();
    page(&TryIt {
        frame: visitor.frame(format!("Try {name}"), "/ui/models", format!("/ui/models/{name}/try")),
        task: task.clone().unwrap_or_else(|| "not loaded: the first request loads it".to_owned()),
        kind,
        kind_pairs: matches!(task.as_deref(), Some("feature-extraction" | "text-classification")),
        wants_labels: Kind::wants_labels(task.as_deref()),
        given,
        answer,
        name,
    })
}

pub(super) async fn run(visitor: Visitor, path: ModelPath, request: Request) -> Response {
    let model = match visitor.dashboard.api.get(&format!("/v1/models/{}", path.name)).await {
        Ok(model) => model,
        Err(refusal) => return visitor.refused(&refusal),
    };
    let given = match read(&visitor, request).await {
        Ok(given) => given,
        Err(detail) => return visitor.refused(&Refusal { status: StatusCode::BAD_REQUEST, detail }),
    };
    let task = text(&model, "/task");
    let settings = &visitor.dashboard.state.settings;
    let url = format!("{}://{}/v1/models/{}/predict", settings.scheme(), settings.listen, path.name);
    let (ask, snippets) = match ask(task.as_deref(), &given, &url) {
        Ok(ask) => ask,
        Err(problem) => {
            let shown = Shown::problem(problem, Vec::new());
            return render(&visitor, &path.name, &model, given, Some(shown));
        }
    };
    let call = format!("/v1/models/{}/predict", path.name);
    let shown = match visitor.dashboard.api.send(Method::POST, &call, Some(ask)).await {
        Ok(answer) => Shown::of(task.as_deref(), &given, &answer, snippets),
        Err(refusal) => Shown::problem(refusal.detail, snippets),
    };
    render(&visitor, &path.name, &model, given, Some(shown)).into_response()
}

async fn read(visitor: &Visitor, request: Request) -> Result<Given, String> {
    let unread = |_| "the form could not be read".to_owned();
    let most = visitor.dashboard.state.settings.max_body_bytes;
    let mut form = Multipart::from_request(request, &()).await.map_err(|_| "the form could not be read".to_owned())?;
    let mut given = Given::default();
    while let Some(mut field) = form.next_field().await.map_err(unread)? {
        let key = field.name().unwrap_or("").to_owned();
        let (file_name, limit) = match key.as_str() {
            "file" => (field.file_name().unwrap_or("file").to_owned(), most),
            _ => (String::new(), TEXT_BYTES_MAX),
        };
        let mut bytes = bytes::BytesMut::new();
        while let Some(chunk) = field.chunk().await.map_err(unread)? {
            if bytes.len() + chunk.len() > limit {
                return Err(format!("{key} is larger than {}", format::bytes(limit as u64)));
            }
            bytes.extend_from_slice(&chunk);
        }
        if key == "file" {
            given.file = Some(File { name: file_name, bytes: bytes.freeze() });
            continue;
        }
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| format!("{key} is no UTF-8"))?;
        match key.as_str() {
            "text" => given.text = text,
            "second" => given.second = text,
            "labels" => given.labels = text,
            "parameters" => given.parameters = text,
            _ => {}
        }
    }
    Ok(given)
}

/// The API's body for what was given, and the same call as code.
fn ask(task: Option<&str>, given: &Given, url: &str) -> Result<(Value, Vec<Snippet>), String> {
    let parameters = parameters(task, given)?;
    let inputs = match Kind::of(task) {
        Kind::Image | Kind::Audio => {
            let file = given.file.as_ref().filter(|file| !file.bytes.is_empty()).ok_or("Choose a file first.")?;
            let inputs = json!({"b64": STANDARD.encode(&file.bytes)});
            return Ok((body(inputs, &parameters), with_file(url, &file.name, &parameters)));
        }
        Kind::Question => json!({"question": given.second, "context": given.text}),
        Kind::Text if given.second.is_empty() => json!(given.text),
        Kind::Text if task == Some("feature-extraction") => json!([given.text, given.second]),
        Kind::Text => json!({"text": given.text, "text_pair": given.second}),
        Kind::Json => serde_json::from_str(&given.text).map_err(|error| format!("The inputs are no JSON: {error}"))?,
    };
    let body = body(inputs, &parameters);
    let snippets = with_json(url, &body);
    Ok((body, snippets))
}

fn parameters(task: Option<&str>, given: &Given) -> Result<Value, String> {
    let mut all: Map<String, Value> = match given.parameters.trim() {
        "" => Map::new(),
        text => serde_json::from_str(text).map_err(|error| format!("The parameters are no JSON object: {error}"))?,
    };
    if task == Some("token-classification") && !all.contains_key("aggregation_strategy") {
        // Words, not pieces of words.
        all.insert("aggregation_strategy".to_owned(), "simple".into());
    }
    if Kind::wants_labels(task) {
        let labels: Vec<&str> = given.labels.split(',').map(str::trim).filter(|label| !label.is_empty()).collect();
        all.insert("candidate_labels".to_owned(), json!(labels));
    }
    Ok(if all.is_empty() { Value::Null } else { Value::Object(all) })
}

impl Shown {
    fn problem(problem: String, snippets: Vec<Snippet>) -> Shown {
        Shown {
            problem: Some(problem),
            html: String::new(),
            bar: String::new(),
            timing: Vec::new(),
            json: String::new(),
            snippets,
        }
    }

    fn of(task: Option<&str>, given: &Given, answer: &Answer, snippets: Vec<Snippet>) -> Shown {
        let times = stages(answer);
        let class = |word: &str| match word {
            "prepare" => "pre",
            "finish" => "post",
            "queue" => "queue",
            _ => "run",
        };
        let parts: Vec<(&str, f64)> = times.iter().map(|(word, ms)| (class(word), *ms)).collect();
        Shown {
            problem: None,
            html: draw(task, given, &answer.body),
            bar: chart::parts(&parts, "Share of each stage"),
            timing: times
                .iter()
                .map(|(word, ms)| (*word, format::time(Duration::from_secs_f64(ms.max(0.0) / 1e3))))
                .collect(),
            json: pretty_up_to(&answer.body, JSON_CHARS_MAX),
            snippets,
        }
    }
}

/// The stages of `Server-Timing`, in milliseconds.
fn stages(answer: &Answer) -> Vec<(&'static str, f64)> {
    let words = [("queue", "queue"), ("preprocess", "prepare"), ("inference", "run"), ("postprocess", "finish")];
    let header = answer.headers.get("server-timing").and_then(|value| value.to_str().ok()).unwrap_or("");
    let stage = |part: &str| {
        let (name, ms) = part.trim().split_once(";dur=")?;
        let (_, word) = words.iter().find(|(key, _)| *key == name)?;
        Some((*word, ms.parse().ok()?))
    };
    header.split(',').filter_map(stage).collect()
}

/// The answer as HTML. Every text of it is escaped.
fn draw(task: Option<&str>, given: &Given, answer: &Value) -> String {
    let predictions = list(answer, "/predictions");
    let Some(first) = predictions.first() else { return tensors(answer) };
    match task.unwrap_or("raw") {
        "object-detection" => picture(given, &boxes(given, first)) + &scores(first),
        "image-segmentation" => picture(given, &masks(first)) + &scores(first),
        "depth-estimation" => match text(first, "/depth") {
            Some(png) => format!(
                "<div class=\"picture\"><img alt=\"Depth: near is bright\" src=\"data:image/png;base64,{}\"></div>",
                escaped(&png)
            ),
            None => String::new(),
        },
        "token-classification" => highlighted(&given.text, first),
        "feature-extraction" => similarity(predictions),
        "question-answering" => answers(first),
        "automatic-speech-recognition" => {
            sound(given) + &format!("<blockquote>{}</blockquote>", escaped(&text_or_dash(first, "/text")))
        }
        "voice-activity-detection" => sound(given) + &spoken(first),
        "audio-classification" => sound(given) + &scores(first),
        "zero-shot-classification" => ranked(first),
        "fill-mask" => filled(first),
        "image-classification" | "zero-shot-image-classification" => picture(given, "") + &scores(first),
        _ => scores(first),
    }
}

/// `[{label, score}]` as bars.
fn scores(prediction: &Value) -> String {
    let items = prediction.as_array().map_or(std::slice::from_ref(prediction), Vec::as_slice);
    let rows: Vec<(String, f64)> = items
        .iter()
        .take(ROWS_MAX)
        .filter_map(|item| Some((text(item, "/label")?, number(item, "/score").unwrap_or(f64::NAN))))
        .collect();
    bars(&rows)
}

fn bars(rows: &[(String, f64)]) -> String {
    if rows.is_empty() {
        return "<p class=\"soft\">Nothing was found.</p>".to_owned();
    }
    let mut html =
        "<table class=\"scores\"><thead><tr><th>Label</th><th>Score</th><th class=\"number\"></th></tr></thead><tbody>"
            .to_owned();
    for (label, score) in rows {
        let (shown, bar) = if score.is_finite() {
            (format!("{score:.4}"), chart::progress(*score, label))
        } else {
            ("–".to_owned(), String::new())
        };
        let _ = write!(
            html,
            "<tr><td class=\"name\">{}</td><td>{bar}</td><td class=\"number\">{shown}</td></tr>",
            escaped(label)
        );
    }
    html.push_str("</tbody></table>");
    html
}

/// The picture that was sent, with `over` on it.
fn picture(given: &Given, over: &str) -> String {
    let Some(file) = given.file.as_ref().filter(|file| file.bytes.len() <= SHOWN_BYTES_MAX) else {
        return String::new();
    };
    let kind = match file.bytes.get(..4) {
        Some([0x89, b'P', b'N', b'G']) => "image/png",
        Some([0xff, 0xd8, ..]) => "image/jpeg",
        Some(b"GIF8") => "image/gif",
        Some(b"RIFF") => "image/webp",
        _ => "image/bmp",
    };
    format!(
        "<div class=\"picture\"><img alt=\"The picture that was sent\" src=\"data:{kind};base64,{}\">{over}</div>",
        STANDARD.encode(&file.bytes)
    )
}

/// The sound that was sent, to be heard again.
fn sound(given: &Given) -> String {
    let Some(file) = given.file.as_ref().filter(|file| file.bytes.len() <= SHOWN_BYTES_MAX) else {
        return String::new();
    };
    let kind = match file.bytes.get(..4) {
        Some(b"RIFF") => "audio/wav",
        Some(b"fLaC") => "audio/flac",
        Some(b"OggS") => "audio/ogg",
        Some([b'I', b'D', b'3', _] | [0xff, 0xe0..=0xff, ..]) => "audio/mpeg",
        _ => "audio/mp4",
    };
    format!(
        "<audio controls preload=\"metadata\" aria-label=\"The sound that was sent\" src=\"data:{kind};base64,{}\"></audio>",
        STANDARD.encode(&file.bytes)
    )
}

/// Boxes over a picture, in its own pixels.
fn boxes(given: &Given, prediction: &Value) -> String {
    let size = given.file.as_ref().and_then(|file| picture_size(&file.bytes, SHOWN_PIXELS_MAX));
    let Some((width, height)) = size else { return String::new() };
    let letters = (width.max(height) / 45).max(8);
    let mut html = format!("<svg viewBox=\"0 0 {width} {height}\" aria-hidden=\"true\">");
    for found in list(prediction, "").iter().take(ROWS_MAX) {
        let side = |key: &str| number(found, &format!("/box/{key}")).unwrap_or(0.0);
        let (x, y) = (side("xmin"), side("ymin"));
        let _ = write!(
            html,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" vector-effect=\"non-scaling-stroke\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{}\" font-size=\"{letters}\" stroke-width=\"{}\">{}</text>",
            (side("xmax") - x).max(0.0),
            (side("ymax") - y).max(0.0),
            x.max(0.0) + f64::from(letters) * 0.2,
            (y.max(0.0) + f64::from(letters)).min(f64::from(height)),
            f64::from(letters) * 0.15,
            escaped(&text_or_dash(found, "/label")),
        );
    }
    html + "</svg>"
}

fn masks(prediction: &Value) -> String {
    let mut html = String::new();
    for segment in list(prediction, "").iter().take(ROWS_MAX) {
        if let Some(png) = text(segment, "/mask") {
            let label = escaped(&text_or_dash(segment, "/label"));
            let _ = write!(
                html,
                "<img class=\"mask\" alt=\"Where {label} is\" src=\"data:image/png;base64,{}\">",
                escaped(&png)
            );
        }
    }
    html
}

/// The text with its entities marked. Places are in characters.
fn highlighted(given: &str, prediction: &Value) -> String {
    let letters: Vec<char> = given.chars().collect();
    let part = |from: usize, to: usize| {
        letters.get(from..to.max(from)).map_or_else(String::new, |part| escaped(&part.iter().collect::<String>()))
    };
    let (mut html, mut at) = ("<p>".to_owned(), 0);
    for found in list(prediction, "") {
        let place = |key: &str| usize::try_from(integer(found, key)).unwrap_or(usize::MAX).min(letters.len());
        let (from, to) = (place("/start"), place("/end"));
        if from < at || to <= from {
            continue;
        }
        let label = text(found, "/entity_group").or_else(|| text(found, "/entity")).unwrap_or_default();
        let _ = write!(html, "{}<mark>{} <small>{}</small></mark>", part(at, from), part(from, to), escaped(&label));
        at = to;
    }
    html + &part(at, letters.len()) + "</p>"
}

/// Of one text its first numbers, of two how alike they are.
fn similarity(predictions: &[Value]) -> String {
    let vector =
        |value: &Value| value.as_array().map(|items| items.iter().filter_map(Value::as_f64).collect::<Vec<f64>>());
    let vectors: Vec<Vec<f64>> = predictions.iter().filter_map(vector).filter(|numbers| !numbers.is_empty()).collect();
    match vectors.as_slice() {
        [first, second, ..] => {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let cosine = dot(first, second) / (dot(first, first) * dot(second, second)).sqrt();
            bars(&[("Cosine of the two".to_owned(), cosine)])
        }
        [only] => {
            let shown: Vec<String> = only.iter().take(8).map(|number| format!("{number:.4}")).collect();
            format!("<p>{} numbers: {}, …</p>", only.len(), shown.join(", "))
        }
        [] => String::new(),
    }
}

fn answers(prediction: &Value) -> String {
    let items = prediction.as_array().map_or(std::slice::from_ref(prediction), Vec::as_slice);
    let row = |item: &Value| Some((text(item, "/answer")?, number(item, "/score").unwrap_or(f64::NAN)));
    bars(&items.iter().take(ROWS_MAX).filter_map(row).collect::<Vec<_>>())
}

fn ranked(prediction: &Value) -> String {
    let labels = list(prediction, "/labels").iter().filter_map(plain);
    let scores = list(prediction, "/scores").iter().map(|score| score.as_f64().unwrap_or(f64::NAN));
    bars(&labels.zip(scores).take(ROWS_MAX).collect::<Vec<_>>())
}

fn filled(prediction: &Value) -> String {
    let row = |item: &Value| Some((text(item, "/sequence")?, number(item, "/score").unwrap_or(f64::NAN)));
    bars(&list(prediction, "").iter().take(ROWS_MAX).filter_map(row).collect::<Vec<_>>())
}

fn spoken(prediction: &Value) -> String {
    let row = |item: &Value| {
        let time = |key: &str| number(item, key).map_or_else(|| "–".to_owned(), |seconds| format!("{seconds:.2} s"));
        (format!("{} to {}", time("/start"), time("/end")), number(item, "/score").unwrap_or(f64::NAN))
    };
    bars(&list(prediction, "/segments").iter().take(ROWS_MAX).map(row).collect::<Vec<_>>())
}

/// The outputs of a model that takes tensors: their names and the beginning of their numbers.
fn tensors(answer: &Value) -> String {
    const CHARS: usize = 400;
    let outputs = answer.pointer("/outputs").and_then(Value::as_object);
    let mut html = "<dl class=\"facts\">".to_owned();
    for (name, value) in outputs.into_iter().flatten() {
        let mut shown: String = value.to_string().chars().take(CHARS).collect();
        if shown.len() >= CHARS {
            shown.push('…');
        }
        let _ = write!(html, "<dt>{}</dt><dd><code>{}</code></dd>", escaped(name), escaped(&shown));
    }
    html + "</dl>"
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entities_are_marked_where_they_stand() {
        let given = "Zoë <b> lives";
        let found = json!([{"entity_group": "P<", "start": 0, "end": 3}, {"entity": "X", "start": 2, "end": 3}, {"entity": "Y", "start": 4, "end": 900}]);
        let html = highlighted(given, &found);
        assert_eq!(html, "<p><mark>Zoë <small>P&lt;</small></mark> <mark>&lt;b&gt; lives <small>Y</small></mark></p>");
    }

    #[test]
    fn no_text_of_an_answer_is_markup() {
        let evil = "<img src=x onerror=alert(1)>";
        let given = Given { text: evil.to_owned(), ..Given::default() };
        let label = json!([{"label": evil, "score": 0.5, "answer": evil, "sequence": evil, "mask": evil, "box": {}}]);
        for task in [
            "image-classification",
            "object-detection",
            "image-segmentation",
            "token-classification",
            "fill-mask",
            "question-answering",
        ] {
            let html = draw(Some(task), &given, &json!({"predictions": [label]}));
            assert!(!html.contains("<img src=x"), "{task}: {html}");
        }
        assert!(!draw(None, &given, &json!({"outputs": {evil: [evil]}})).contains("<img src=x"));
    }
}
