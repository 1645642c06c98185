//! `[hub]`, and what HuggingFace's own variables of the environment say.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq)]
pub struct HubSettings {
    /// HuggingFace's address, without a slash at the end.
    pub hf_endpoint: String,
    /// File with the token; comes before [`HubSettings::hf_token`].
    pub hf_token_file: Option<PathBuf>,
    /// The token that is sent to it and to no other host.
    pub hf_token: Option<Secret>,
    /// HuggingFace's cache (`HF_HUB_CACHE`); what is there is used and never written.
    pub hf_cache: Option<PathBuf>,
    /// Nothing is fetched: what HuggingFace's cache does not have is an error.
    pub offline: bool,
    /// Hosts that a URL may name, with `*.` in front for all below; empty = all that are public.
    pub allowed_hosts: Vec<String>,
    /// Folders that a local source may lie in; empty = none over the network, all for the command line.
    pub allowed_paths: Vec<PathBuf>,
    /// All files of a model together, in bytes.
    pub max_download_bytes: u64,
    /// Files fetched at the same time, of one model.
    pub parallel_files: usize,
    /// Models fetched at the same time.
    pub downloads_at_once: usize,
    /// Downloads that wait or run.
    pub max_downloads: usize,
    /// Files and folders of an archive.
    pub max_archive_entries: usize,
    /// Bytes that are left free on the disk.
    pub reserve_bytes: u64,
    /// How long a connection may take to be made, and how long it may be silent.
    pub idle_timeout: Duration,
    /// How long one model may take, conversion included.
    pub total_timeout: Duration,
    /// Interpreter that has the exporter; `None` = the one that `make exporter` sets up.
    pub python: Option<PathBuf>,
    /// Whether models of pytorch_hub are got, whose repositories' code the exporter runs.
    pub pytorch_hub: bool,
    /// How long a conversion may take.
    pub export_timeout: Duration,
    /// Memory of the exporter, in bytes.
    pub export_memory: u64,
}

impl Default for HubSettings {
    fn default() -> HubSettings {
        HubSettings {
            hf_endpoint: "https://huggingface.co".to_owned(),
            hf_token_file: None,
            hf_token: None,
            hf_cache: None,
            offline: false,
            allowed_hosts: Vec::new(),
            allowed_paths: Vec::new(),
            max_download_bytes: 64 << 30,
            parallel_files: 4,
            downloads_at_once: 2,
            max_downloads: 64,
            max_archive_entries: 10_000,
            reserve_bytes: 256 << 20,
            idle_timeout: Duration::from_secs(30),
            total_timeout: Duration::from_secs(24 * 3600),
            python: None,
            pytorch_hub: false,
            export_timeout: Duration::from_secs(1800),
            export_memory: 16 << 30,
        }
    }
}

impl HubSettings {
    /// `defaults`, and over them what the variables of the environment say that HuggingFace's own programs read. `get` gives
    /// a variable, `read` the text of a file.
    pub fn from_hf_environment(
        defaults: HubSettings,
        get: impl Fn(&str) -> Option<String>,
        read: impl Fn(&Path) -> Option<String>,
    ) -> HubSettings {
        let get = |name: &str| get(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let is_set = |name: &str| {
            get(name).is_some_and(|text| ["1", "ON", "YES", "TRUE"].contains(&text.to_ascii_uppercase().as_str()))
        };
        let home = get("HOME").map(PathBuf::from);
        let path = |name: &str| {
            let text = get(name)?;
            match (text.strip_prefix('~'), &home) {
                (Some(""), Some(home)) => Some(home.clone()),
                (Some(below), Some(home)) if below.starts_with('/') => Some(home.join(below.trim_start_matches('/'))),
                _ => Some(PathBuf::from(text)),
            }
        };
        let own = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(home.as_ref()?.join(".cache/huggingface")));
        let token = || {
            // The variables mean: nothing is sent unless it is asked for.
            if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
                return None;
            }
            let file = || read(&path("HF_TOKEN_PATH").or_else(|| Some(own.as_ref()?.join("token")))?);
            let text = get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN")).or_else(file)?;
            let text: String = text.trim().chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
            (!text.is_empty()).then(|| Secret::new(text))
        };
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| own.as_ref().map(|own| own.join("hub")));
        HubSettings {
            hf_endpoint: get("HF_ENDPOINT")
                .map_or(defaults.hf_endpoint, |endpoint| endpoint.trim_end_matches('/').to_owned()),
            hf_token: token().or(defaults.hf_token),
            hf_cache: cache.or(defaults.hf_cache),
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE") || defaults.offline,
            ..defaults
        }
    }
}

/// A token, which nothing prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What variables, and files at paths, make of the defaults: endpoint, token, cache and whether it is offline.
    #[track_caller]
    fn check(variables: &[(&str, &str)], files: &[(&str, &str)], expected: (&str, Option<&str>, Option<&str>, bool)) {
        let find = |list: &[(&str, &str)], key: &str| {
            list.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned())
        };
        let settings = HubSettings::from_hf_environment(
            HubSettings::default(),
            |name| find(variables, name),
            |path| find(files, path.to_str().unwrap()),
        );
        let got = (
            settings.hf_endpoint.as_str(),
            settings.hf_token.as_ref().map(Secret::expose),
            settings.hf_cache.as_deref().and_then(Path::to_str),
            settings.offline,
        );
        assert_eq!(got, expected);
        assert!(!format!("{settings:?}").contains("hf_secret"));
    }

    const HUB: &str = "https://huggingface.co";

    #[test]
    fn the_variables_of_huggingface_are_read_as_its_programs_read_them() {
        check(&[], &[], (HUB, None, None, false));
        let home = ("HOME", "/home/a");
        let usual = Some("/home/a/.cache/huggingface/hub");
        check(&[home], &[], (HUB, None, usual, false));
        check(
            &[("HF_ENDPOINT", "https://mirror.example/hf/"), home],
            &[],
            ("https://mirror.example/hf", None, usual, false),
        );
        check(&[("HF_ENDPOINT", " "), home], &[], (HUB, None, usual, false));
        check(&[("XDG_CACHE_HOME", "/x"), home], &[], (HUB, None, Some("/x/huggingface/hub"), false));
        check(&[("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x"), home], &[], (HUB, None, Some("/home/a/hf/hub"), false));
        let both = [("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/hf")];
        check(&both, &[], (HUB, None, Some("/new"), false));
        check(&both[1..], &[], (HUB, None, Some("/old"), false));
        check(&both[2..], &[], (HUB, None, Some("/hf/hub"), false));
        for (variable, value, offline) in [
            ("HF_HUB_OFFLINE", "1", true),
            ("HF_HUB_OFFLINE", "true", true),
            ("TRANSFORMERS_OFFLINE", "Yes", true),
            ("TRANSFORMERS_OFFLINE", "ON", true),
            ("HF_HUB_OFFLINE", "0", false),
            ("HF_HUB_OFFLINE", "", false),
        ] {
            check(&[(variable, value)], &[], (HUB, None, None, offline));
        }
    }

    #[test]
    fn a_token_comes_from_the_environment_and_else_from_the_file_of_the_login() {
        let cache = Some("/hf/hub");
        let home = ("HF_HOME", "/hf");
        let login = ("/hf/token", "hf_secret_file\n");
        check(&[home], &[login], (HUB, Some("hf_secret_file"), cache, false));
        check(&[home, ("HF_TOKEN", " hf_secret ")], &[login], (HUB, Some("hf_secret"), cache, false));
        check(
            &[home, ("HUGGING_FACE_HUB_TOKEN", "hf_secret_old")],
            &[login],
            (HUB, Some("hf_secret_old"), cache, false),
        );
        let other = ("/run/token", "hf_secret_other");
        check(&[home, ("HF_TOKEN_PATH", "/run/token")], &[login, other], (HUB, Some("hf_secret_other"), cache, false));
        check(&[home, ("HF_TOKEN_PATH", "/absent")], &[login], (HUB, None, cache, false));
        check(&[home], &[("/hf/token", " \n")], (HUB, None, cache, false));
        let off = ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1");
        check(&[home, off, ("HF_TOKEN", "hf_secret")], &[login], (HUB, None, cache, false));
    }
}
