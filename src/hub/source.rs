//! Where a model is to come from, as the user says it.

use super::HubError;
use super::choose::is_hex;
use std::fmt;
use std::path::PathBuf;

/// Longest `org/name`, URL or revision that is read, in bytes.
const TEXT_MAX: usize = 2048;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `org/name`, or `name` of the oldest repositories.
    HuggingFace { repository: String },
    /// A graph, an archive of a model's folder or a PyTorch file.
    Url { url: String },
    /// A file or folder of this machine.
    Local { path: PathBuf },
    /// A model of torchvision, by the name of its function.
    Torchvision { model: String },
    /// A model of a repository's `hubconf.py`, by the name of its function.
    PytorchHub { repository: String, entry: String },
}

/// What is wanted of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRequest {
    pub source: Source,
    /// Branch, tag or commit; `None` = the source's own default.
    pub revision: Option<String>,
    /// The graph's path in the source, where there are several.
    pub file: Option<String>,
    /// Which variant of the graph, where there are several.
    pub precision: Option<Precision>,
    /// Lower-case hex of the file that a URL names, or of the graph.
    pub sha256: Option<String>,
    pub export: ExportOptions,
}

/// Which variant of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    Fp32,
    Fp16,
    Int8,
    Q4,
}

/// What the exporter may be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportOptions {
    /// torchvision's name of pretrained weights, such as `DEFAULT`; `None` = `DEFAULT`; `none` = random ones.
    pub weights: Option<String>,
    /// Shape of the example input, batch included.
    pub input_shape: Option<Vec<u64>>,
    /// ONNX opset.
    pub opset: Option<u32>,
    /// The architecture that weights without one belong to: a function of torchvision.
    pub architecture: Option<String>,
}

impl Precision {
    /// # Errors
    /// Says what it may be.
    pub fn parse(text: &str) -> Result<Precision, HubError> {
        match text {
            "fp32" => Ok(Precision::Fp32),
            "fp16" => Ok(Precision::Fp16),
            "int8" => Ok(Precision::Int8),
            "q4" => Ok(Precision::Q4),
            other => Err(HubError::Invalid(format!("precision: expected fp32, fp16, int8 or q4, got {other:?}"))),
        }
    }
}

impl Source {
    /// The source that a command line names: `org/name` or `hf://org/name`, `https://…`, `torchvision/resnet18`,
    /// `pytorch_hub:owner/repo:entry`, `file:///path`, a local file or folder (which must begin with `.`, `/` or `~`, or be
    /// there).
    ///
    /// # Errors
    /// [`HubError::Invalid`] says what it may be.
    pub fn parse(text: &str) -> Result<Source, HubError> {
        check_text("source", text)?;
        if let Some(rest) = text.strip_prefix("pytorch_hub:") {
            let Some((repository, entry)) = rest.rsplit_once(':') else {
                return Err(HubError::Invalid(format!("{text:?}: expected pytorch_hub:owner/repo:entry")));
            };
            return Source::pytorch_hub(repository, entry);
        }
        if let Some(model) = text.strip_prefix("torchvision/") {
            return Source::torchvision(model);
        }
        if let Some(repository) = text.strip_prefix("hf://") {
            return Source::hugging_face(repository);
        }
        if let Some(path) = text.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(HubError::Invalid(format!("{text:?}: expected file:///path, with three slashes")));
            }
            return Ok(Source::Local { path: PathBuf::from(path) });
        }
        if text.contains("://") {
            return Ok(Source::Url { url: text.to_owned() });
        }
        let text = text.strip_prefix("hf:").unwrap_or(text);
        if text.starts_with(['.', '/', '~']) || std::path::Path::new(text).exists() {
            return Ok(Source::Local { path: PathBuf::from(text) });
        }
        Source::hugging_face(text)
    }

    /// # Errors
    /// Where `repository` is not `org/name` of a HuggingFace repository.
    pub fn hugging_face(repository: &str) -> Result<Source, HubError> {
        let parts: Vec<&str> = repository.split('/').collect();
        let good = (1..=2).contains(&parts.len()) && parts.iter().all(|part| is_repository_part(part));
        if !good || repository.len() > 200 {
            return Err(HubError::Invalid(format!(
                "{repository:?} is no repository of HuggingFace: expected org/name of letters, digits, '-', '_' and '.'"
            )));
        }
        Ok(Source::HuggingFace { repository: repository.to_owned() })
    }

    /// # Errors
    /// Where `model` could not be the name of a function.
    pub fn torchvision(model: &str) -> Result<Source, HubError> {
        if !is_identifier(model) {
            return Err(HubError::Invalid(format!(
                "{model:?} is no model of torchvision: expected one such as resnet18"
            )));
        }
        Ok(Source::Torchvision { model: model.to_owned() })
    }

    /// # Errors
    /// Where `repository` is not `owner/repo` (with `:branch` at most) or `entry` could not be the name of a function.
    pub fn pytorch_hub(repository: &str, entry: &str) -> Result<Source, HubError> {
        let name = repository.split(':').next().unwrap_or_default();
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() != 2 || !parts.iter().all(|part| is_repository_part(part)) || !is_identifier(entry) {
            return Err(HubError::Invalid(format!(
                "{repository:?}, {entry:?}: expected owner/repo and the name of a function of its hubconf.py"
            )));
        }
        Ok(Source::PytorchHub { repository: repository.to_owned(), entry: entry.to_owned() })
    }

    /// The word that stands for the kind in requests and answers.
    pub fn kind(&self) -> &'static str {
        match self {
            Source::HuggingFace { .. } => "huggingface",
            Source::Url { .. } => "url",
            Source::Local { .. } => "local",
            Source::Torchvision { .. } => "torchvision",
            Source::PytorchHub { .. } => "pytorch_hub",
        }
    }

    /// What it is called in its place; a URL without its query and user, a path's last part alone.
    pub fn id(&self) -> String {
        match self {
            Source::HuggingFace { repository } => repository.clone(),
            Source::Url { url } => super::url::shown(url),
            Source::Local { path } => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Source::Torchvision { model } => model.clone(),
            Source::PytorchHub { repository, entry } => format!("{repository}:{entry}"),
        }
    }

    /// The name that a model from here gets where none is given: the last part of [`Source::id`] without its ending, cut
    /// to what a model's name may be. `None` where nothing is left.
    pub fn default_name(&self) -> Option<String> {
        let id = match self {
            Source::PytorchHub { entry, .. } => entry.clone(),
            other => other.id(),
        };
        let last = id.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let endings = [".onnx", ".ort", ".zip", ".tar.gz", ".tgz", ".pt", ".pth", ".pt2"];
        let stem = endings.iter().find_map(|ending| last.strip_suffix(ending)).unwrap_or(last);
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let name: String = stem.chars().map(|c| if fits(c) { c } else { '-' }).take(100).collect();
        let mut name = name.trim_start_matches(['.', '_', '-']).to_owned();
        while name.contains("..") {
            name = name.replace("..", ".");
        }
        (!name.is_empty()).then_some(name)
    }
}

impl FetchRequest {
    pub fn new(source: Source) -> FetchRequest {
        FetchRequest {
            source,
            revision: None,
            file: None,
            precision: None,
            sha256: None,
            export: ExportOptions::default(),
        }
    }

    /// A source with what is wanted of it in one text: `hf://org/name@REVISION` (or with a colon, as KServe writes it),
    /// `https://…#sha256=HEX`; else as [`Source::parse`].
    ///
    /// # Errors
    /// As [`Source::parse`] and [`FetchRequest::check`].
    pub fn parse(text: &str) -> Result<FetchRequest, HubError> {
        let (source, revision, sha256) = match (text.strip_prefix("hf://"), text.split_once("#sha256=")) {
            (Some(rest), _) => match rest.split_once(['@', ':']) {
                Some((repository, revision)) => (Source::hugging_face(repository)?, Some(revision), None),
                None => (Source::parse(text)?, None, None),
            },
            (None, Some((url, hash))) if url.contains("://") => (Source::parse(url)?, None, Some(hash)),
            (None, _) => (Source::parse(text)?, None, None),
        };
        let (revision, sha256) = (revision.map(str::to_owned), sha256.map(str::to_ascii_lowercase));
        let request = FetchRequest { revision, sha256, ..FetchRequest::new(source) };
        request.check()?;
        Ok(request)
    }

    /// Whether the same request may lead to other files later without anybody having asked for it: a branch of a repository
    /// moves, where a commit, an address or a path says what was wanted.
    pub fn may_move(&self) -> bool {
        matches!(self.source, Source::HuggingFace { .. })
            && !self.revision.as_deref().is_some_and(|revision| is_hex(revision, 40))
    }

    /// Checks what stands beside the source.
    ///
    /// # Errors
    /// [`HubError::Invalid`] names the field, what it may be and what came.
    pub fn check(&self) -> Result<(), HubError> {
        if let Some(revision) = &self.revision {
            check_text("revision", revision)?;
            let fits = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
            if revision.is_empty()
                || revision.contains("..")
                || revision.starts_with(['/', '-', '.'])
                || !revision.chars().all(fits)
            {
                return Err(HubError::Invalid(format!("revision: {revision:?} is no branch, tag or commit")));
            }
        }
        if let Some(file) = &self.file {
            check_text("file", file)?;
            if super::transfer::safe_path(file).is_none() {
                return Err(HubError::Invalid(format!("file: {file:?} is no relative path of a file in the source")));
            }
        }
        if let Some(hash) = &self.sha256
            && (hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)))
        {
            return Err(HubError::Invalid("sha256: expected 64 hexadecimal digits in lower case".to_owned()));
        }
        Ok(())
    }

    /// The same text for requests that ask for the same files.
    pub fn key(&self) -> String {
        format!("{self:?}")
    }
}

/// As [`FetchRequest::parse`] reads it, without what an address keeps secret.
impl fmt::Display for FetchRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::HuggingFace { repository } => write!(f, "hf://{repository}")?,
            Source::Url { .. } => f.write_str(&self.source.id())?,
            Source::Local { path } => path.display().fmt(f)?,
            Source::Torchvision { model } => write!(f, "torchvision/{model}")?,
            Source::PytorchHub { repository, entry } => write!(f, "pytorch_hub:{repository}:{entry}")?,
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        self.sha256.iter().try_for_each(|hash| write!(f, "#sha256={hash}"))
    }
}

fn check_text(field: &str, text: &str) -> Result<(), HubError> {
    if text.len() > TEXT_MAX || text.chars().any(char::is_control) {
        return Err(HubError::Invalid(format!(
            "{field}: expected at most {TEXT_MAX} bytes without control characters"
        )));
    }
    Ok(())
}

fn is_repository_part(part: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !part.is_empty()
        && part.len() <= 96
        && part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part.chars().all(fits)
        && !part.contains("..")
        && !part.contains("--")
        && !part.ends_with(".git")
}

fn is_identifier(text: &str) -> bool {
    text.len() <= 100
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_names_every_kind_of_source() {
        for (text, kind, id, name) in [
            (
                "sentence-transformers/all-MiniLM-L6-v2",
                "huggingface",
                "sentence-transformers/all-MiniLM-L6-v2",
                "all-MiniLM-L6-v2",
            ),
            ("gpt2", "huggingface", "gpt2", "gpt2"),
            ("https://a.example/m/x.tar.gz?token=secret", "url", "https://a.example/m/x.tar.gz", "x"),
            ("./dir/model.onnx", "local", "model.onnx", "model"),
            ("/dir/_odd name..v1", "local", "_odd name..v1", "odd-name.v1"),
            ("torchvision/resnet18", "torchvision", "resnet18", "resnet18"),
            (
                "pytorch_hub:pytorch/vision:v0.10.0:resnet18",
                "pytorch_hub",
                "pytorch/vision:v0.10.0:resnet18",
                "resnet18",
            ),
        ] {
            let source = Source::parse(text).unwrap();
            assert_eq!((source.kind(), source.id().as_str()), (kind, id), "{text}");
            assert_eq!(source.default_name().as_deref(), Some(name), "{text}");
        }
    }

    #[test]
    fn one_text_says_what_is_wanted_of_a_source() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let hash = "0a".repeat(32);
        for (text, shown, may_move) in [
            ("hf://org/n", "hf://org/n".to_owned(), true),
            ("org/n", "hf://org/n".to_owned(), true),
            ("hf://org/n@refs/pr/1", "hf://org/n@refs/pr/1".to_owned(), true),
            (&format!("hf://org/n@{commit}"), format!("hf://org/n@{commit}"), false),
            (&format!("hf://org/n:{commit}"), format!("hf://org/n@{commit}"), false),
            ("https://u:p@a.example/x.onnx?token=1", "https://a.example/x.onnx".to_owned(), false),
            (
                &format!("https://a.example/x.onnx#sha256={}", hash.to_uppercase()),
                format!("https://a.example/x.onnx#sha256={hash}"),
                false,
            ),
            ("file:///models/x.onnx", "/models/x.onnx".to_owned(), false),
            ("./x@1", "./x@1".to_owned(), false),
            ("torchvision/resnet18", "torchvision/resnet18".to_owned(), false),
        ] {
            let request = FetchRequest::parse(text).unwrap();
            assert_eq!((request.to_string(), request.may_move()), (shown, may_move), "{text}");
        }
        for bad in
            ["", "hf://", "hf://a/b/c", "hf://org/n@", "hf://org/n@a..b", "file://x", "https://a/x#sha256=1", "a\nb"]
        {
            assert!(FetchRequest::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_that_could_lead_elsewhere_are_refused() {
        for bad in
            ["", "a/b/c", "../a", "a/..", "a/.b", "a b/c", "a\0/b", "a/b.git", "-a/b", "a/b?c", "a/%2e%2e", "ä/b"]
        {
            assert!(Source::hugging_face(bad).is_err(), "{bad:?}");
        }
        for bad in [
            "torchvision/../x",
            "torchvision/",
            "torchvision/a-b",
            "pytorch_hub:a/b",
            "pytorch_hub:a:b",
            "pytorch_hub:a/b:c;d",
        ] {
            assert!(Source::parse(bad).is_err(), "{bad:?}");
        }
        let request = |revision: Option<&str>, file: Option<&str>, sha256: Option<&str>| FetchRequest {
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
            sha256: sha256.map(str::to_owned),
            ..FetchRequest::new(Source::hugging_face("a/b").unwrap())
        };
        assert!(request(Some("refs/pr/1"), Some("onnx/model.onnx"), Some(&"0a".repeat(32))).check().is_ok());
        for bad in ["", "../x", "a..b", "/x", "-x", "a b", "a\nb"] {
            assert!(request(Some(bad), None, None).check().is_err(), "{bad:?}");
        }
        for bad in ["", "/x", "../x", "a/../b", "a\\b", "a//b", "a\0"] {
            assert!(request(None, Some(bad), None).check().is_err(), "{bad:?}");
        }
        for bad in ["", "abc", &"0A".repeat(32), &"0g".repeat(32)] {
            assert!(request(None, None, Some(bad)).check().is_err(), "{bad:?}");
        }
    }
}
