//! Names and versions of models, safe as a path, a label and a URL.

use std::fmt;

/// `[A-Za-z0-9][A-Za-z0-9._-]{0,99}` without `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a model name is a letter or digit, then up to 99 letters, digits, '.', '_' or '-', without '..'")]
pub struct NameError;

impl ModelName {
    /// # Errors
    /// Where `name` does not follow the rule.
    pub fn parse(name: &str) -> Result<ModelName, NameError> {
        let bytes = name.as_bytes();
        let good = bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.len() <= 100
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
            && !name.contains("..");
        if good { Ok(ModelName(name.to_owned())) } else { Err(NameError) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A model's version: digits without a sign or leading zero, as its folder is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub u64);

impl Version {
    /// `None` where `text` is not a version.
    pub fn parse(text: &str) -> Option<Version> {
        let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
        if canonical { text.parse().ok().map(Version) } else { None }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F05.
    #[test]
    fn names_that_could_leave_the_store_are_refused() {
        let long = "a".repeat(101);
        for bad in
            ["", ".", "..", "a..b", "../a", "a/b", "a\\b", "a\0", "a\nb", "-a", "_a", ".a", "ä", "a b", "%2e%2e", &long]
        {
            assert_eq!(ModelName::parse(bad), Err(NameError), "{bad:?}");
        }
        for good in ["a", "0", "resnet50", "all-MiniLM-L6-v2", "squeezenet1.1", &"a".repeat(100)] {
            assert!(ModelName::parse(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_version_has_one_spelling() {
        assert_eq!(Version::parse("10"), Some(Version(10)));
        for bad in ["", "01", "+1", "-1", "1.0", "v1", "99999999999999999999"] {
            assert_eq!(Version::parse(bad), None, "{bad:?}");
        }
    }
}
