//! Where log records go: standard error, as text or as JSON lines.
//!
//! Invariants: one record is one line; nothing in a value reaches a terminal as a control character; the records of
//! ONNX Runtime (target `ort`) are kept at `warn` unless the settings name that target.

use super::events::{Remember, keep_events};
use super::printable::{Printable, is_unsafe};
use super::refusals::{limit_refusals, writes_refusal};
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{FilterExt, dynamic_filter_fn, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    /// One JSON object a line.
    Json,
}

/// `[telemetry]`: how the server logs.
#[derive(Debug, Clone, PartialEq)]
pub struct LogSettings {
    pub format: LogFormat,
    /// A level, or `target=level` pairs after it: `info,ortus::models=debug`. See [`LogSettings::is_level`].
    pub level: String,
    /// Records that are kept for those who look without a log at hand; 1 at least.
    pub max_events: usize,
    /// Lines of a second on requests that are refused for one reason; 0 = all.
    pub refusal_lines_per_second: u32,
}

#[derive(Debug, PartialEq, thiserror::Error)]
pub enum LogError {
    #[error("telemetry.log_level: expected {expected}, got {0:?}", expected = LogSettings::LEVELS)]
    Level(String),
    #[error("logging was started twice")]
    Started,
}

impl Default for LogSettings {
    fn default() -> LogSettings {
        LogSettings {
            format: LogFormat::Text,
            level: "info".to_owned(),
            max_events: 1000,
            refusal_lines_per_second: 20,
        }
    }
}

impl LogSettings {
    /// What [`LogSettings::is_level`] accepts, in words.
    pub const LEVELS: &str =
        "off, error, warn, info, debug or trace, alone or with pairs such as info,ortus::models=debug";

    /// Whether `text` is a level or a list of levels for targets. Stricter than the filter itself, which takes a
    /// mistyped level for the name of a target and lets everything of it through.
    pub fn is_level(text: &str) -> bool {
        !text.is_empty()
            && text.len() <= 1000
            && text.split(',').all(|part| match part.split_once('=') {
                None => level(part).is_some(),
                Some((target, word)) => {
                    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
                    !target.is_empty() && target.chars().all(good) && level(word).is_some()
                }
            })
    }
}

fn level(word: &str) -> Option<LevelFilter> {
    // The filter also takes numbers and capitals; one spelling is enough.
    if word.bytes().all(|byte| byte.is_ascii_lowercase()) && !word.is_empty() { word.parse().ok() } else { None }
}

/// Sends the records of this process to standard error from here on: coloured where that is a terminal.
///
/// # Errors
/// Where the level is not one, or logging was started before.
pub fn start_logging(settings: &LogSettings) -> Result<(), LogError> {
    let (subscriber, level) = subscriber(settings, io::stderr, io::stderr().is_terminal())?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Started)?;
    *LEVEL.lock().unwrap_or_else(PoisonError::into_inner) = Some(level);
    keep_events(settings.max_events);
    limit_refusals(settings.refusal_lines_per_second);
    Ok(())
}

/// What the log calls the errors of ONNX Runtime that it leaves out.
const ORT: &str = "onnxruntime";

type AnySubscriber = Box<dyn Subscriber + Send + Sync>;
type AnyLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn subscriber<W>(settings: &LogSettings, writer: W, colours: bool) -> Result<(AnySubscriber, Level), LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(&settings.level)?);
    // A line for each run that it refuses: as many as somebody sends inputs that it does.
    let is_of_a_run =
        |metadata: &Metadata<'_>| *metadata.level() == tracing::Level::ERROR && metadata.target().starts_with("ort::");
    let few = dynamic_filter_fn(move |metadata, _| !is_of_a_run(metadata) || writes_refusal(ORT));
    let filter = filter.and(few);
    let layer = tracing_subscriber::fmt::layer();
    let lines: AnyLayer = match settings.format {
        LogFormat::Text => layer
            .with_ansi(colours)
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .with_writer(writer)
            .with_filter(filter)
            .boxed(),
        LogFormat::Json => {
            let writer = EscapingJson(writer);
            let json = layer.with_ansi(false).json().flatten_event(true).with_span_list(false);
            json.with_writer(writer).with_filter(filter).boxed()
        }
    };
    // Of its own level: what is remembered does not depend on how much is written.
    let remembered = Remember.with_filter(filter_fn(Remember::takes));
    let level = Level { text: settings.level.clone(), handle };
    Ok((Box::new(tracing_subscriber::registry().with(lines).with(remembered)), level))
}

/// The level in force, and how to change it.
struct Level {
    text: String,
    handle: reload::Handle<EnvFilter, Registry>,
}

/// Of the process's log.
static LEVEL: Mutex<Option<Level>> = Mutex::new(None);

/// `[telemetry] log_level` as it is in force; `None` where nothing is logged.
pub fn log_level() -> Option<String> {
    LEVEL.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|level| level.text.clone())
}

/// Changes what is logged from here on.
///
/// # Errors
/// Where `text` is no level; see [`LogSettings::is_level`].
pub fn set_log_level(text: &str) -> Result<(), LogError> {
    let filter = filter(text)?;
    if let Some(level) = LEVEL.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        // Fails only where the subscriber is gone, which lives as long as the process.
        let _ = level.handle.reload(filter);
        text.clone_into(&mut level.text);
    }
    Ok(())
}

fn filter(text: &str) -> Result<EnvFilter, LogError> {
    let wrong = || LogError::Level(text.to_owned());
    if !LogSettings::is_level(text) {
        return Err(wrong());
    }
    // The last bare level is the one in force for what no pair names.
    let general = text.split(',').filter_map(level).next_back().unwrap_or(LevelFilter::OFF);
    // The filter compares the beginnings of targets, so `ort` would also hold for all of `ortus`. Later directives for
    // the same target replace these, and longer targets go before shorter ones.
    let ort = general.min(LevelFilter::WARN);
    let directives = format!("ort={ort},ortus={general},{text}");
    EnvFilter::builder().parse(directives).map_err(|_| wrong())
}

/// `message key=value`: strings in quotes, everything else as it displays itself, made printable.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug) -> std::fmt::Result {
    if field.name() != "message" {
        write!(writer, "{}=", field.name())?;
    }
    write!(Printable(writer), "{value:?}")
}

/// Writes as `\u009b` what JSON allows raw inside a string and a terminal acts on. Outside of strings, JSON has no such
/// characters but the line's end.
struct EscapingJson<W>(W);

struct EscapingJsonWriter<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for EscapingJson<W> {
    type Writer = EscapingJsonWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        EscapingJsonWriter(self.0.make_writer())
    }
}

impl<W: io::Write> io::Write for EscapingJsonWriter<W> {
    /// Takes all of `line`: the formatter hands over whole lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let body = text.strip_suffix('\n').unwrap_or(&text);
        if !body.contains(is_unsafe) {
            self.0.write_all(line)?;
            return Ok(line.len());
        }
        let mut safe = String::with_capacity(line.len() + 16);
        for c in body.chars() {
            if is_unsafe(c) {
                // All of them are in the basic plane, so one escape is the character.
                let _ = write!(safe, "\\u{:04x}", u32::from(c));
            } else {
                safe.push(c);
            }
        }
        safe.push_str(text.get(body.len()..).unwrap_or(""));
        self.0.write_all(safe.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(format: LogFormat, level: &str, work: impl FnOnce()) -> String {
        let captured = Captured::default();
        let copy = captured.clone();
        let settings = LogSettings { format, level: level.to_owned(), ..LogSettings::default() };
        let (subscriber, _) = subscriber(&settings, move || copy.clone(), false).unwrap();
        tracing::subscriber::with_default(subscriber, work);
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const HOSTILE: &str = "a\u{1b}[2Jb\nERROR forged\u{9b}31m\u{7f}\u{202e}\r";

    fn log_hostile() {
        let span = tracing::info_span!("request", path = %HOSTILE);
        let _entered = span.enter();
        tracing::info!(shown = %HOSTILE, text = HOSTILE, debugged = ?HOSTILE, "message {HOSTILE}");
    }

    /// F52.
    #[test]
    fn nothing_in_a_value_reaches_the_terminal_as_a_control_character() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let output = log(format, "info", log_hostile);
            let line = output.strip_suffix('\n').unwrap();
            assert!(!line.contains(is_unsafe), "{line:?}");
            assert!(line.contains("forged"), "{line:?}");
        }
    }

    #[test]
    fn a_json_line_keeps_the_value_and_is_flat() {
        let output = log(LogFormat::Json, "info", log_hostile);
        let json: serde_json::Value = serde_json::from_str(&output).unwrap();
        assert_eq!(json["text"], HOSTILE);
        assert_eq!(json["message"], format!("message {HOSTILE}"));
        assert_eq!(json["span"]["path"], HOSTILE);
        assert_eq!(json["level"], "INFO");
    }

    #[test]
    fn text_has_the_message_then_the_fields() {
        let output = log(LogFormat::Text, "info", || tracing::info!(model = "m", rows = 2, "loaded"));
        assert!(output.ends_with("loaded model=\"m\" rows=2\n"), "{output:?}");
    }

    #[test]
    fn onnx_runtime_speaks_from_warn_unless_the_user_sets_it() {
        let check = |level: &str, expected: &[&str]| {
            let output = log(LogFormat::Text, level, || {
                tracing::error!(target: "ort", "ort-error");
                tracing::warn!(target: "ort::session", "ort-warn");
                tracing::info!(target: "ort", "ort-info");
                tracing::info!("our-info");
                tracing::debug!("our-debug");
            });
            let words = ["ort-error", "ort-warn", "ort-info", "our-info", "our-debug"];
            let seen: Vec<&str> = words.into_iter().filter(|word| output.contains(word)).collect();
            assert_eq!(seen, expected, "{level}");
        };
        check("info", &["ort-error", "ort-warn", "our-info"]);
        check("debug", &["ort-error", "ort-warn", "our-info", "our-debug"]);
        check("info,ort=info", &["ort-error", "ort-warn", "ort-info", "our-info"]);
        check("error", &["ort-error"]);
        check("off", &[]);
        check("info,ortus::telemetry=debug", &["ort-error", "ort-warn", "our-info", "our-debug"]);
        check("ort=info", &["ort-error", "ort-warn", "ort-info"]);
    }

    #[test]
    fn a_mistyped_level_is_not_a_target() {
        for bad in
            ["", "inof", "INFO", "3", "info,", "=info", "info,ort=loud", "ort", "a b=info", "[span]=info", "in\nfo"]
        {
            assert!(!LogSettings::is_level(bad), "{bad:?}");
        }
        for good in ["off", "info", "warn,ortus=debug", "ortus::models=trace,info"] {
            assert!(LogSettings::is_level(good), "{good:?}");
            assert!(filter(good).is_ok(), "{good:?}");
        }
    }
}
