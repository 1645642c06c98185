//! The value of a key: as written, and as it is in force.

use crate::telemetry::printable;
use std::fmt;

/// A value in force. Displays as TOML.
#[derive(Debug, Clone, PartialEq)]
pub enum Setting {
    /// Chosen by the server.
    Unset,
    Boolean(bool),
    Integer(u64),
    Fraction(f64),
    Text(String),
    List(Vec<String>),
}

/// A value as written. Displays as the user wrote it, shortened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Given {
    /// Not typed yet: from a variable or a flag.
    Plain(String),
    Boolean(bool),
    /// As text, because it may be negative or larger than any integer here.
    Integer {
        digits: String,
        radix: u32,
    },
    /// As text, which may be no number that a computer has.
    Fraction(String),
    Text(String),
    List(Vec<Given>),
    /// A kind that no key takes: what it is.
    Other(&'static str),
}

impl Given {
    pub(super) fn boolean(&self) -> Option<bool> {
        match self {
            Given::Boolean(value) => Some(*value),
            Given::Plain(text) => text.parse().ok(),
            Given::Integer { .. } | Given::Fraction(_) | Given::Text(_) | Given::List(_) | Given::Other(_) => None,
        }
    }

    /// A number, with or without a fraction.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Given::Fraction(text) | Given::Plain(text) => text.parse().ok().filter(|value: &f64| value.is_finite()),
            Given::Integer { .. } => self.integer().map(|value| value as f64),
            Given::Boolean(_) | Given::Text(_) | Given::List(_) | Given::Other(_) => None,
        }
    }

    pub(super) fn integer(&self) -> Option<u64> {
        match self {
            Given::Integer { digits, radix } => u64::from_str_radix(digits, *radix).ok(),
            Given::Plain(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            Given::Boolean(_)
            | Given::Plain(_)
            | Given::Fraction(_)
            | Given::Text(_)
            | Given::List(_)
            | Given::Other(_) => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Given::Text(text) | Given::Plain(text) => Some(text),
            Given::Boolean(_) | Given::Integer { .. } | Given::Fraction(_) | Given::List(_) | Given::Other(_) => None,
        }
    }

    /// A list of texts; plain text is split at commas.
    pub(super) fn list(&self) -> Option<Vec<String>> {
        match self {
            Given::Plain(text) if text.trim().is_empty() => Some(Vec::new()),
            Given::Plain(text) => Some(text.split(',').map(|item| item.trim().to_owned()).collect()),
            Given::List(items) => items.iter().map(|item| item.text().map(str::to_owned)).collect(),
            Given::Boolean(_) | Given::Integer { .. } | Given::Fraction(_) | Given::Text(_) | Given::Other(_) => None,
        }
    }
}

/// Longer values are cut in messages.
const SHOWN_CHARS: usize = 80;

/// `text` in quotes, cut and without control characters.
pub(super) fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    let more = if shown.len() < text.len() { "…" } else { "" };
    printable(&format!("{shown:?}{more}")).into_owned()
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Given::Plain(text) | Given::Text(text) => f.write_str(&quoted(text)),
            Given::Boolean(value) => value.fmt(f),
            Given::Fraction(text) => f.write_str(text.get(..SHOWN_CHARS).unwrap_or(text)),
            Given::Integer { digits, radix: 10 } => f.write_str(digits.get(..SHOWN_CHARS).unwrap_or(digits)),
            Given::Integer { digits, radix } => {
                write!(f, "{} (base {radix})", digits.get(..SHOWN_CHARS).unwrap_or(digits))
            }
            Given::List(items) => {
                let shown: Vec<String> = items.iter().take(4).map(Given::to_string).collect();
                write!(f, "[{}{}]", shown.join(", "), if items.len() > 4 { ", …" } else { "" })
            }
            Given::Other(kind) => write!(f, "a {kind}"),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::Unset => Ok(()),
            Setting::Boolean(value) => value.fmt(f),
            Setting::Integer(value) => value.fmt(f),
            // With a point in any case, as TOML writes them.
            Setting::Fraction(value) => write!(f, "{value:?}"),
            Setting::Text(text) => f.write_str(&toml_string(text)),
            Setting::List(items) => {
                write!(f, "[{}]", items.iter().map(|item| toml_string(item)).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

fn toml_string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_read_as_what_the_key_takes() {
        let plain = |text: &str| Given::Plain(text.to_owned());
        assert_eq!(plain("true").boolean(), Some(true));
        assert_eq!(plain("yes").boolean(), None);
        assert_eq!(plain("10").integer(), Some(10));
        for bad in ["", "-1", "+1", "1.0", "0x10", " 1", "99999999999999999999"] {
            assert_eq!(plain(bad).integer(), None, "{bad:?}");
        }
        assert_eq!(plain("a, b").list(), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(plain("").list(), Some(vec![]));
    }

    #[test]
    fn a_long_or_hostile_value_is_shown_short_and_on_one_line() {
        let shown = Given::Text(format!("a\n\u{1b}{}", "x".repeat(10_000))).to_string();
        assert!(shown.len() < 200 && !shown.contains(['\n', '\u{1b}']), "{shown}");
        let digits = "9".repeat(10_000);
        assert!(Given::Integer { digits, radix: 10 }.to_string().len() < 200);
    }
}
