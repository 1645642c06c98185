//! Foreign text made safe for a terminal or a line of a log.
//!
//! Names, labels and messages come from model files and requests. A raw escape sequence in them could rewrite what a
//! person sees, a raw line break could forge a line.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// `text` with control characters (ASCII and C1), line separators and direction overrides written as `\n` or `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    // Writing to a string cannot fail.
    let _ = Printable(&mut safe).write_str(text);
    Cow::Owned(safe)
}

/// Passes text on as [`printable`] gives it.
pub(super) struct Printable<'a>(pub(super) &'a mut dyn fmt::Write);

impl fmt::Write for Printable<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((safe, found, after)) = split_at_unsafe(rest) {
            self.0.write_str(safe)?;
            write!(self.0, "{}", found.escape_default())?;
            rest = after;
        }
        self.0.write_str(rest)
    }
}

fn split_at_unsafe(text: &str) -> Option<(&str, char, &str)> {
    let (index, found) = text.char_indices().find(|(_, c)| is_unsafe(*c))?;
    let (safe, after) = text.split_at_checked(index)?;
    Some((safe, found, after.get(found.len_utf8()..)?))
}

/// Whether a terminal may act on `c` instead of showing it.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_written_out() {
        for (text, safe) in [
            ("plain ünï 猫", "plain ünï 猫"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[2Jx", "\\u{1b}[2Jx"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("file\u{202e}gpj.exe", "file\\u{202e}gpj.exe"),
            ("", ""),
        ] {
            assert_eq!(printable(text), safe);
        }
    }
}
