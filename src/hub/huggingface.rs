//! HuggingFace: which files a repository has at which commit, and which of them are got.
//!
//! A branch or tag is asked for its commit once, and every file is of that commit. What the hub says is checked before it
//! is used: names of files and commits, hashes, and where the listing goes on. Files that HuggingFace's own cache has are
//! copied from there; offline that is all there is.

use super::choose::{Entry, choose, is_hex};
use super::hf_cache::{CachedRepository, Places};
use super::transfer::{self, Wanted};
use super::{FetchRequest, Fetched, Hub, HubError, ListedFile, Listing, Progress, Provenance, Source, WorkFolder};
use crate::telemetry::{now_ms, rfc3339};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use url::Url;

const PAGES_MAX: usize = 100;
const ENTRIES_MAX: usize = 10_000;
/// How long a copy that was cancelled may take to let go of its file.
const LET_GO: Duration = Duration::from_millis(700);
/// Longest text that is kept of what a hub says of a model, and how many tags.
const TEXT_MAX: usize = 200;
const TAGS_MAX: usize = 100;

/// What a repository is at one commit.
struct Found {
    commit: String,
    entries: Vec<Entry>,
    about: About,
}

/// What the hub says of a repository.
#[derive(Debug, Default, PartialEq)]
struct About {
    license: Option<String>,
    author: Option<String>,
    description: Option<String>,
    tags: Vec<String>,
    task: Option<String>,
}

pub(super) async fn check(hub: &Hub, request: &FetchRequest) -> Result<Listing, HubError> {
    let repository = repository(request)?;
    let found = look_up(hub, repository, request).await?;
    let chosen = chosen(hub, repository, &found.entries, request)?;
    Ok(Listing {
        revision: Some(found.commit),
        files: chosen.into_iter().map(|entry| ListedFile { path: entry.path, bytes: entry.bytes }).collect(),
        license: found.about.license,
        task: found.about.task,
    })
}

pub(super) async fn fetch(
    hub: &Hub,
    request: &FetchRequest,
    work: &WorkFolder,
    progress: &Progress,
) -> Result<Fetched, HubError> {
    let repository = repository(request)?;
    let found = tokio::select! {
        // Nobody wants the files any more, however near the answer is.
        biased;
        () = progress.cancelled().cancelled() => Err(HubError::Cancelled),
        found = look_up(hub, repository, request) => found,
    };
    let Found { commit, entries, about } = found?;
    let chosen = chosen(hub, repository, &entries, request)?;
    progress.set_files(chosen.iter().map(|entry| (entry.path.clone(), entry.bytes)));
    let (version, keep) = (work.version(), chosen.iter().map(|entry| entry.path.clone()).collect());
    blocking(hub, move || remove_others(&version, &keep)).await?;
    let mut files = Vec::new();
    let mut wanted = Vec::new();
    let cached = open_cache(hub, repository).await?;
    for entry in chosen {
        let copied = match &cached {
            Some(cached) => copy(hub, cached, &commit, &entry, work, progress).await?,
            None => None,
        };
        match copied {
            Some(file) => files.push(file),
            None if hub.settings().offline => {
                return Err(HubError::Corrupt(format!(
                    "{:?} in HuggingFace's cache is damaged; get it again with HuggingFace's own programs, or go online",
                    entry.path
                )));
            }
            None => wanted.push(Wanted {
                url: format!(
                    "{}/{repository}/resolve/{commit}/{}",
                    hub.settings().hf_endpoint,
                    encode_path(&entry.path)
                ),
                path: entry.path,
                bytes: entry.bytes,
                sha256: entry.sha256,
                git_oid: entry.git_oid,
            }),
        }
    }
    if !wanted.is_empty() {
        files.extend(transfer::get_all(hub, wanted, work, progress).await?);
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let provenance = Provenance {
        source: request.source.kind().to_owned(),
        model_id: repository.to_owned(),
        revision: Some(commit),
        fetched_at: rfc3339(now_ms()),
        license: about.license,
        author: about.author,
        description: about.description,
        tags: about.tags,
        files,
        ..Provenance::default()
    };
    Ok(Fetched { folder: work.version(), provenance })
}

fn repository(request: &FetchRequest) -> Result<&str, HubError> {
    request.check()?;
    match &request.source {
        Source::HuggingFace { repository } => Ok(repository),
        Source::Url { .. } | Source::Local { .. } | Source::Torchvision { .. } | Source::PytorchHub { .. } => {
            Err(HubError::Invalid(format!("{} is no repository of HuggingFace", request.source.id())))
        }
    }
}

/// The files that are got, the graph first, with every hash that they must have.
fn chosen(hub: &Hub, repository: &str, entries: &[Entry], request: &FetchRequest) -> Result<Vec<Entry>, HubError> {
    let choice = choose(repository, entries, request)?;
    let mut files: Vec<Entry> = choice.files().cloned().collect();
    if let Some(wanted) = &request.sha256 {
        let ([_], Some(graph)) = (choice.graphs.as_slice(), files.first_mut()) else {
            return Err(HubError::Invalid(format!(
                "sha256 is that of one graph, and {repository} has one for pictures and one for texts; leave it out"
            )));
        };
        if let Some(listed) = graph.sha256.replace(wanted.clone()).filter(|listed| listed != wanted) {
            return Err(HubError::Corrupt(format!(
                "checksum: {repository} has {} with SHA-256 {listed}, not {wanted}",
                graph.path
            )));
        }
    }
    let max = hub.settings().max_download_bytes;
    let bytes = files.iter().filter_map(|entry| entry.bytes).fold(0, u64::saturating_add);
    if bytes > max {
        return Err(HubError::TooLarge(format!(
            "the files of {repository} have {} MiB, and [hub] max_download_mb allows {}",
            bytes.div_ceil(1 << 20),
            max >> 20
        )));
    }
    Ok(files)
}

async fn look_up(hub: &Hub, repository: &str, request: &FetchRequest) -> Result<Found, HubError> {
    let revision = request.revision.as_deref().unwrap_or("main");
    if hub.settings().offline {
        return look_up_offline(hub, repository, revision).await;
    }
    let api = format!("{}/api/models/{repository}", hub.settings().hf_endpoint);
    let info: Value = hub.0.client.json(&format!("{api}/revision/{}", encode(revision))).await?.value;
    let commit = commit_of(repository, revision, &info)?;
    let is_gated = info.get("gated").is_some_and(|gated| !matches!(gated, Value::Null | Value::Bool(false)));
    if is_gated && hub.settings().hf_token.is_none() {
        return Err(HubError::Denied(format!(
            "{repository} is gated: accept its terms at {}/{repository} and set HF_TOKEN to a token of that account",
            hub.settings().hf_endpoint
        )));
    }
    let first = format!("{api}/tree/{commit}?recursive=true&expand=false");
    let entries = list(hub, repository, first).await?;
    Ok(Found { commit, entries, about: About::read(repository, &info) })
}

/// The commit that the hub names for `revision`, which becomes part of URLs and paths.
fn commit_of(repository: &str, revision: &str, info: &Value) -> Result<String, HubError> {
    let commit = info.get("sha").and_then(Value::as_str).unwrap_or_default();
    if !is_hex(commit, 40) {
        return Err(HubError::Refused(format!(
            "the hub's answer for {repository} names no commit of 40 hexadecimal digits"
        )));
    }
    if is_hex(revision, 40) && commit != revision {
        return Err(HubError::Refused(format!(
            "the hub answered for commit {commit} of {repository}, not for {revision}"
        )));
    }
    Ok(commit.to_owned())
}

/// All pages of a listing.
async fn list(hub: &Hub, repository: &str, first: String) -> Result<Vec<Entry>, HubError> {
    let too_many = || {
        HubError::TooLarge(format!(
            "{repository} has more than {ENTRIES_MAX} files or {PAGES_MAX} pages of them, which is no model's repository"
        ))
    };
    let origin = Url::parse(&first).map(|url| url.origin());
    let mut entries = Vec::new();
    let mut url = first;
    for _ in 0..PAGES_MAX {
        let page = hub.0.client.json::<Vec<Value>>(&url).await?;
        for value in &page.value {
            entries.extend(read_entry(repository, value)?);
        }
        if entries.len() > ENTRIES_MAX {
            return Err(too_many());
        }
        let Some(next) = page.next else { return Ok(entries) };
        // The token goes along, so the listing may not go on elsewhere.
        if Url::parse(&next).map(|url| url.origin()) != origin {
            return Err(HubError::Refused(format!(
                "the listing of {repository} goes on at another address than hf_endpoint"
            )));
        }
        url = next;
    }
    Err(too_many())
}

/// `None` for a folder.
fn read_entry(repository: &str, value: &Value) -> Result<Option<Entry>, HubError> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    if text(value, "type").as_deref() == Some("directory") {
        return Ok(None);
    }
    let Some(path) = text(value, "path") else {
        return Err(HubError::Refused(format!("the listing of {repository} has a file without a name")));
    };
    // Of a large file, git itself has a pointer alone, of other content and size.
    let entry = match value.get("lfs").filter(|lfs| !lfs.is_null()) {
        Some(lfs) => Entry {
            path,
            bytes: lfs.get("size").or_else(|| value.get("size")).and_then(Value::as_u64),
            git_oid: None,
            sha256: text(lfs, "oid"),
        },
        None => {
            Entry { path, bytes: value.get("size").and_then(Value::as_u64), git_oid: text(value, "oid"), sha256: None }
        }
    };
    Ok(Some(entry))
}

impl About {
    fn read(repository: &str, info: &Value) -> About {
        let card = info.get("cardData").unwrap_or(&Value::Null);
        let tags = info.get("tags").and_then(Value::as_array).into_iter().flatten();
        let tags: Vec<String> = tags.take(TAGS_MAX).filter_map(short).collect();
        let license = match card.get("license") {
            Some(Value::Array(all)) => {
                let all: Vec<String> = all.iter().take(8).filter_map(short).collect();
                (!all.is_empty()).then(|| all.join(", "))
            }
            Some(Value::String(other)) if other == "other" => {
                card.get("license_name").and_then(short).or_else(|| Some(other.clone()))
            }
            Some(one) => short(one),
            None => None,
        };
        let owner = || repository.split_once('/').map(|(owner, _)| owner.to_owned());
        About {
            license: license.or_else(|| tags.iter().find_map(|tag| Some(tag.strip_prefix("license:")?.to_owned()))),
            author: info.get("author").and_then(short).or_else(owner),
            description: card.get("description").or_else(|| card.get("summary")).and_then(short),
            task: info.get("pipeline_tag").and_then(short),
            tags,
        }
    }
}

/// A text of the hub's, without what would not be one line.
fn short(value: &Value) -> Option<String> {
    let text: String = value.as_str()?.trim().chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect();
    (!text.is_empty()).then_some(text)
}

async fn look_up_offline(hub: &Hub, repository: &str, revision: &str) -> Result<Found, HubError> {
    let missing = |what: &str| {
        HubError::NotFound(format!(
            "nothing is fetched while [hub] offline is set, and HuggingFace's cache on this machine {what}"
        ))
    };
    let Some(cached) = open_cache(hub, repository).await? else {
        return Err(missing(&format!("has nothing of {repository}")));
    };
    let wanted = revision.to_owned();
    let found = blocking(hub, move || {
        let Some(commit) = cached.commit(&wanted) else { return Ok(None) };
        let entries = cached.entries(&commit)?;
        Ok(Some((commit, entries)))
    });
    match found.await? {
        Some((commit, entries)) => Ok(Found { commit, entries, about: About::read(repository, &Value::Null) }),
        None => Err(missing(&format!("does not have {revision} of {repository}"))),
    }
}

async fn open_cache(hub: &Hub, repository: &str) -> Result<Option<CachedRepository>, HubError> {
    let Some(cache) = hub.settings().hf_cache.clone() else { return Ok(None) };
    let repository = repository.to_owned();
    blocking(hub, move || Ok(CachedRepository::open(&cache, &repository))).await
}

/// Copies a file from the cache, where it is there. One that the hub gives no hash for is not taken from there.
async fn copy(
    hub: &Hub,
    cached: &CachedRepository,
    commit: &str,
    entry: &Entry,
    work: &WorkFolder,
    progress: &Progress,
) -> Result<Option<super::ProvenanceFile>, HubError> {
    if !hub.settings().offline && entry.sha256.is_none() && entry.git_oid.is_none() {
        return Ok(None);
    }
    let stop = CancellationToken::new();
    // The copy ends with this future, which may be dropped.
    let _stops = stop.clone().drop_guard();
    let (cached, commit, entry) = (cached.clone(), commit.to_owned(), entry.clone());
    let (places, watched) = (Places::of(work, hub.settings().reserve_bytes), progress.clone());
    let copied = blocking(hub, move || cached.copy(&commit, &entry, &places, &watched, &stop));
    let given_up = async {
        progress.cancelled().cancelled().await;
        tokio::time::sleep(LET_GO).await;
    };
    tokio::select! {
        copied = copied => copied,
        () = given_up => Err(HubError::Cancelled),
    }
}

async fn blocking<T: Send + 'static>(
    hub: &Hub,
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    // It ends early where the process does.
    hub.0.tasks.spawn_blocking(work).await.unwrap_or(Err(HubError::Cancelled))
}

/// Removes what an earlier try, of another commit, left in the version. Blocks.
fn remove_others(version: &Path, keep: &BTreeSet<String>) -> Result<(), HubError> {
    let mut pending = vec![String::new()];
    while let Some(below) = pending.pop() {
        for entry in fs::read_dir(version.join(&below)).map_err(super::work::disk_error)? {
            let entry = entry.map_err(super::work::disk_error)?;
            let name = entry.file_name();
            let path = match (name.to_str(), below.as_str()) {
                (Some(name), "") => name.to_owned(),
                (Some(name), below) => format!("{below}/{name}"),
                (None, _) => String::new(),
            };
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() && keep.iter().any(|kept| is_below(kept, &path)) => {
                    pending.push(path);
                    Ok(())
                }
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
                Ok(kind) if kind.is_file() && keep.contains(&path) => Ok(()),
                Ok(_) | Err(_) => fs::remove_file(entry.path()),
            };
            removed.map_err(super::work::disk_error)?;
        }
    }
    Ok(())
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

fn encode_path(path: &str) -> String {
    path.split('/').map(encode).collect::<Vec<_>>().join("/")
}

/// `text` as one part of a URL's path.
fn encode(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            // Writing to a string does not fail.
            other => drop(write!(encoded, "%{other:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::hf_cache::tests::fill;
    use crate::hub::testing::{FakeHub, Fault, RepositoryFile, Side, sha256};
    use crate::hub::{HubSettings, Precision, Secret};
    use crate::tasks::Tasks;
    use serde_json::json;
    use std::os::unix::fs::symlink;
    use std::sync::Arc;

    const NAME: &str = "org/name";
    const GRAPH: &[u8] = b"the graph's bytes";
    const DATA: &[u8] = b"the weights of the graph";
    const CONFIG: &[u8] = br#"{"architectures": []}"#;
    const FILES: [(&str, &[u8], bool); 8] = [
        ("README.md", b"# a model", false),
        ("config.json", CONFIG, false),
        ("modeling.py", b"import os", false),
        ("onnx/model.onnx", GRAPH, true),
        ("onnx/model.onnx_data", DATA, true),
        ("onnx/model_fp16.onnx", b"half of the graph", true),
        ("pytorch_model.bin", b"a pickle", true),
        ("tokenizer.json", b"{}", false),
    ];
    const CHOSEN: [&str; 4] = ["config.json", "onnx/model.onnx", "onnx/model.onnx_data", "tokenizer.json"];

    fn fake() -> FakeHub {
        let fake = FakeHub::start();
        fake.add(NAME, &FILES);
        fake
    }

    fn settings(fake: &FakeHub) -> HubSettings {
        let allowed_hosts = vec![fake.cdn_host()];
        HubSettings { hf_endpoint: fake.endpoint(), allowed_hosts, ..HubSettings::default() }
    }

    fn hub(settings: HubSettings) -> Hub {
        Hub::new(settings, Tasks::new()).unwrap()
    }

    fn request() -> FetchRequest {
        FetchRequest::new(Source::hugging_face(NAME).unwrap())
    }

    fn at(revision: &str) -> FetchRequest {
        FetchRequest { revision: Some(revision.to_owned()), ..request() }
    }

    fn names(listing: &Listing) -> Vec<&str> {
        let mut names: Vec<&str> = listing.files.iter().map(|file| file.path.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// Files below a folder, with their content.
    fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        let mut pending = vec![folder.to_owned()];
        while let Some(next) = pending.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    pending.push(path);
                } else {
                    let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                    found.push((name, fs::read(path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    fn expected() -> Vec<(String, Vec<u8>)> {
        let chosen = FILES.iter().filter(|(path, ..)| CHOSEN.contains(path));
        chosen.map(|(path, content, _)| ((*path).to_owned(), content.to_vec())).collect()
    }

    #[tokio::test]
    async fn a_listing_is_read_over_all_its_pages_and_pinned_to_the_commit() {
        let fake = fake();
        fake.page(3);
        fake.edit(NAME, |repository| {
            let card = json!({"license": "apache-2.0"});
            repository.info = json!({"pipeline_tag": "fill-mask", "cardData": card, "author": "org", "tags": ["onnx"]});
            let old = "0a".repeat(20);
            let file = RepositoryFile { content: Arc::new(b"old".to_vec()), lfs: false };
            repository.commits.insert(old.clone(), [("model.onnx".to_owned(), file)].into());
            repository.refs.insert("refs/pr/1".to_owned(), old);
        });
        let hub = hub(settings(&fake));
        let listing = hub.check(&request()).await.unwrap();
        assert_eq!(names(&listing), CHOSEN);
        assert_eq!(
            listing.files[0],
            ListedFile { path: "onnx/model.onnx".to_owned(), bytes: Some(GRAPH.len() as u64) }
        );
        let commit = fake.commit(NAME);
        assert_eq!(listing.revision.as_ref(), Some(&commit));
        assert_eq!((listing.license.as_deref(), listing.task.as_deref()), (Some("apache-2.0"), Some("fill-mask")));
        let log = fake.log();
        assert!(log.len() > 3 && log[0].path == "/api/models/org/name/revision/main");
        assert!(log[1..].iter().all(|seen| seen.path == format!("/api/models/org/name/tree/{commit}")));
        // Another revision, which has a slash; a commit; and another variant.
        let old = hub.check(&at("refs/pr/1")).await.unwrap();
        assert_eq!(
            (old.revision, names(&hub.check(&at(&commit)).await.unwrap())),
            (Some("0a".repeat(20)), CHOSEN.into())
        );
        assert_eq!(fake.log()[log.len()].path, "/api/models/org/name/revision/refs%2Fpr%2F1");
        let half = FetchRequest { precision: Some(Precision::Fp16), ..request() };
        assert_eq!(names(&hub.check(&half).await.unwrap()), ["config.json", "onnx/model_fp16.onnx", "tokenizer.json"]);
    }

    #[tokio::test]
    async fn what_a_hub_says_never_becomes_a_path_unchecked() {
        let refused = async |change: &dyn Fn(&FakeHub), request: FetchRequest| {
            let fake = fake();
            change(&fake);
            match hub(settings(&fake)).check(&request).await {
                Err(HubError::Refused(text)) => text,
                other => panic!("{other:?}"),
            }
        };
        for bad in ["../../evil.onnx", "/etc/evil.json", "a\\evil.json", "a\0.json", "a/../../b"] {
            let text = refused(&|fake| fake.add(NAME, &[(bad, b"x", false)]), request()).await;
            assert!(text.starts_with("unsafe file name"), "{text}");
        }
        for sha in [json!("../../../evil"), json!("main"), json!("A".repeat(40)), json!(7), Value::Null] {
            let text = refused(&|fake| fake.edit(NAME, |found| found.info = json!({"sha": sha})), request()).await;
            assert!(text.contains("names no commit"), "{text}");
        }
        let wanted = "0b".repeat(20);
        let other = |fake: &FakeHub| {
            fake.edit(NAME, |found| {
                found.commits.insert("0b".repeat(20), [].into());
                found.info = json!({"sha": "0c".repeat(20)});
            });
        };
        assert!(refused(&other, at(&wanted)).await.contains("answered for commit"));
        for next in ["<http://127.0.0.1:9/api>; rel=\"next\"", "<https://evil.example/api>; rel=\"next\""] {
            let elsewhere = |fake: &FakeHub| {
                let commit = fake.commit(NAME);
                fake.fault(Side::Hub, &format!("/tree/{commit}"), 1, &[Fault::Header("link", next.to_owned())]);
            };
            assert!(refused(&elsewhere, request()).await.contains("goes on at another address"));
        }
    }

    #[tokio::test]
    async fn endless_listings_and_too_large_models_are_refused() {
        let fake = fake();
        let many: Vec<String> = (0..PAGES_MAX + 1).map(|place| format!("{place}.txt")).collect();
        let many: Vec<(&str, &[u8], bool)> = many.iter().map(|path| (path.as_str(), &b""[..], false)).collect();
        fake.add(NAME, &many);
        fake.page(1);
        let error = hub(settings(&fake)).check(&request()).await.unwrap_err();
        assert!(matches!(&error, HubError::TooLarge(text) if text.contains("100 pages")), "{error}");
        fake.page(1000);
        assert!(hub(settings(&fake)).check(&request()).await.is_ok());
        let small = HubSettings { max_download_bytes: 10, ..settings(&fake) };
        let error = hub(small).check(&request()).await.unwrap_err();
        assert!(matches!(&error, HubError::TooLarge(text) if text.contains("max_download_mb")), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_there_or_not_for_us_is_said() {
        let fake = fake();
        fake.add("org/gated", &FILES);
        fake.edit("org/gated", |repository| repository.gated = Some("hf_secret".to_owned()));
        fake.add("org/private", &FILES);
        fake.edit("org/private", |repository| repository.private = Some("hf_secret".to_owned()));
        let check = async |name: &str, revision: Option<&str>, token: Option<&str>| {
            let token = token.map(|text| Secret::new(text.to_owned()));
            let request = FetchRequest {
                revision: revision.map(str::to_owned),
                ..FetchRequest::new(Source::hugging_face(name).unwrap())
            };
            hub(HubSettings { hf_token: token, ..settings(&fake) }).check(&request).await.map(|_| ())
        };
        let gated = check("org/gated", None, None).await;
        assert!(matches!(&gated, Err(HubError::Denied(text)) if text.contains("accept its terms")), "{gated:?}");
        assert_eq!(check("org/gated", None, Some("hf_secret")).await, Ok(()));
        assert!(matches!(check("org/private", None, None).await, Err(HubError::NotFound(_))));
        let wrong = check("org/private", None, Some("hf_other_secret")).await;
        assert!(matches!(&wrong, Err(HubError::NotFound(text)) if !text.contains("hf_other")), "{wrong:?}");
        assert_eq!(check("org/private", None, Some("hf_secret")).await, Ok(()));
        assert!(matches!(check("org/absent", None, None).await, Err(HubError::NotFound(_))));
        let revision = check(NAME, Some("v9"), None).await;
        assert!(matches!(&revision, Err(HubError::NotFound(text)) if text.contains("revision")), "{revision:?}");
        assert!(matches!(check(NAME, Some("../x"), None).await, Err(HubError::Invalid(_))));
    }

    #[tokio::test]
    async fn the_hash_of_the_graph_must_be_the_listed_one() {
        let fake = fake();
        let hub = hub(settings(&fake));
        let check = async |hash: String| hub.check(&FetchRequest { sha256: Some(hash), ..request() }).await.map(|_| ());
        assert_eq!(check(sha256(GRAPH)).await, Ok(()));
        let other = check(sha256(DATA)).await;
        assert!(matches!(&other, Err(HubError::Corrupt(text)) if text.starts_with("checksum")), "{other:?}");
        fake.add(NAME, &[("vision_model.onnx", b"v", true), ("text_model.onnx", b"t", true)]);
        fake.edit(NAME, |repository| {
            for tree in repository.commits.values_mut() {
                tree.retain(|path, _| !path.starts_with("onnx/"));
            }
        });
        assert!(matches!(check(sha256(b"v")).await, Err(HubError::Invalid(_))));
    }

    #[tokio::test]
    async fn offline_the_cache_is_all_there_is() {
        let (fake, cache, store) = (fake(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let commit = fake.commit(NAME);
        fill(cache.path(), NAME, &commit, &FILES);
        let offline = HubSettings { offline: true, hf_cache: Some(cache.path().to_owned()), ..settings(&fake) };
        let hub = hub(offline.clone());
        for request in [request(), at("main"), at(&commit)] {
            let work = WorkFolder::open(store.path(), &request).unwrap();
            let progress = Progress::default();
            let fetched = hub.fetch(&request, &work, &progress).await.unwrap();
            assert_eq!(content(&fetched.folder), expected());
            assert_eq!(fetched.provenance.revision.as_ref(), Some(&commit));
            assert!(progress.snapshot().files.iter().all(|file| file.done));
        }
        assert_eq!(names(&hub.check(&request()).await.unwrap()), CHOSEN);
        let missing = hub.check(&at("v1")).await;
        assert!(matches!(&missing, Err(HubError::NotFound(text)) if text.contains("v1")), "{missing:?}");
        let other = FetchRequest::new(Source::hugging_face("org/other").unwrap());
        assert!(matches!(hub.check(&other).await, Err(HubError::NotFound(_))));
        let none = super::tests::hub(HubSettings { hf_cache: None, ..offline });
        assert!(matches!(none.check(&request()).await, Err(HubError::NotFound(_))));
        // A damaged file, and a link that leads out of the cache.
        let root = cache.path().join("models--org--name");
        fs::write(root.join("blobs").join(sha256(DATA)), b"other weights, same size").unwrap();
        let work = WorkFolder::fresh(store.path()).unwrap();
        let damaged = hub.fetch(&request(), &work, &Progress::default()).await;
        assert!(matches!(&damaged, Err(HubError::Corrupt(text)) if text.contains("model.onnx_data")), "{damaged:?}");
        symlink("/etc/passwd", root.join("snapshots").join(&commit).join("labels.txt")).unwrap();
        assert!(matches!(hub.fetch(&request(), &work, &Progress::default()).await, Err(HubError::Refused(_))));
        assert!(fake.log().is_empty());
    }

    #[tokio::test]
    async fn what_the_cache_has_is_not_fetched() {
        let (fake, cache, store) = (fake(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // As fetched for an older commit: the blobs count, not the snapshot.
        fill(cache.path(), NAME, &"0d".repeat(20), &FILES);
        let hub = hub(HubSettings { hf_cache: Some(cache.path().to_owned()), ..settings(&fake) });
        let work = WorkFolder::open(store.path(), &request()).unwrap();
        // An earlier try of another commit left these.
        for stale in ["labels.txt", "onnx/model.onnx", "onnx/old.onnx", "old/er/model.onnx"] {
            let file = work.version().join(stale);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "stale").unwrap();
        }
        let progress = Progress::default();
        let fetched = hub.fetch(&request(), &work, &progress).await.unwrap();
        assert_eq!(content(&fetched.folder), expected());
        assert!(!work.version().join("old").exists());
        assert!(fake.log().iter().all(|seen| seen.path.starts_with("/api/models/")), "files were fetched");
        let provenance = fetched.provenance;
        assert_eq!((provenance.source.as_str(), provenance.model_id.as_str()), ("huggingface", NAME));
        assert_eq!((provenance.revision, provenance.author.as_deref()), (Some(fake.commit(NAME)), Some("org")));
        let hashes: Vec<_> = provenance.files.iter().map(|file| (file.path.as_str(), file.sha256.clone())).collect();
        let expected: Vec<_> = expected().into_iter().map(|(path, content)| (path, sha256(&content))).collect();
        assert!(hashes.into_iter().eq(expected.iter().map(|(path, hash)| (path.as_str(), hash.clone()))));
        let seen = progress.snapshot();
        assert_eq!(Some(seen.bytes_done), seen.bytes_total);
    }

    #[tokio::test]
    async fn files_come_from_the_commit_and_only_those_that_are_needed() {
        let (fake, store) = (fake(), tempfile::tempdir().unwrap());
        let work = WorkFolder::open(store.path(), &request()).unwrap();
        let progress = Progress::default();
        let fetched = hub(settings(&fake)).fetch(&request(), &work, &progress).await.unwrap();
        assert_eq!(content(&fetched.folder), expected());
        let commit = fake.commit(NAME);
        let files = fake.log().into_iter().filter(|seen| !seen.path.starts_with("/api/models/"));
        let files: Vec<String> = files.map(|seen| seen.path).collect();
        assert!(files.iter().all(|path| path.contains(&commit)), "{files:?}");
        assert!(!files.iter().any(|path| path.ends_with(".py") || path.ends_with(".bin")), "{files:?}");
        let names: Vec<&str> = fetched.provenance.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, CHOSEN);
        assert!(progress.snapshot().files.iter().all(|file| file.done));
    }

    #[tokio::test]
    async fn the_cache_spares_what_it_has_and_damaged_files_are_fetched() {
        let (fake, cache, store) = (fake(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let some: Vec<_> =
            FILES.into_iter().filter(|(path, ..)| path.ends_with("_data") || *path == "config.json").collect();
        fill(cache.path(), NAME, &fake.commit(NAME), &some);
        let hub = hub(HubSettings { hf_cache: Some(cache.path().to_owned()), ..settings(&fake) });
        let work = WorkFolder::fresh(store.path()).unwrap();
        let progress = Progress::default();
        let fetched = hub.fetch(&request(), &work, &progress).await.unwrap();
        assert_eq!(content(&fetched.folder), expected());
        assert_eq!(fake.cdn_sent(), GRAPH.len() as u64);
        assert!(fake.seen(Side::Hub, "config.json").is_empty());
        let seen = progress.snapshot();
        let all = expected().iter().map(|(_, content)| content.len() as u64).sum();
        assert_eq!((seen.bytes_done, seen.bytes_total, seen.files.len()), (all, Some(all), CHOSEN.len()));
        assert!(seen.files.iter().all(|file| file.done));
        // Of the same size, so that it is noticed while it is copied.
        let blob = cache.path().join("models--org--name/blobs").join(sha256(DATA));
        fs::write(blob, vec![b'x'; DATA.len()]).unwrap();
        let work = WorkFolder::fresh(store.path()).unwrap();
        let fetched = hub.fetch(&request(), &work, &Progress::default()).await.unwrap();
        assert_eq!(content(&fetched.folder), expected());
        assert_eq!(fake.cdn_sent(), (2 * GRAPH.len() + DATA.len()) as u64);
    }

    #[tokio::test]
    async fn a_branch_that_moves_between_tries_never_gives_a_mix() {
        let (fake, cache, store) = (fake(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = fake.commit(NAME);
        let second = "0e".repeat(20);
        let other: &[u8] = b"the other's bytes";
        assert_eq!(other.len(), GRAPH.len());
        fake.edit(NAME, |repository| {
            let mut tree = repository.commits[&first].clone();
            let file = RepositoryFile { content: Arc::new(other.to_vec()), lfs: true };
            tree.insert("onnx/model.onnx".to_owned(), file);
            repository.commits.insert(second.clone(), tree);
        });
        let point = |commit: &str| fake.edit(NAME, |found| drop(found.refs.insert("main".into(), commit.into())));
        fill(cache.path(), NAME, &second, &[("onnx/model.onnx", other, true)]);
        let hub = hub(HubSettings { hf_cache: Some(cache.path().to_owned()), ..settings(&fake) });
        let work = WorkFolder::open(store.path(), &request()).unwrap();
        // Fetched, then copied from the cache, then fetched again, in the same folder.
        for (commit, graph) in [(&first, GRAPH), (&second, other), (&first, GRAPH)] {
            point(commit);
            let fetched = hub.fetch(&request(), &work, &Progress::default()).await.unwrap();
            assert_eq!(fetched.provenance.revision.as_ref(), Some(commit));
            assert_eq!(fs::read(fetched.folder.join("onnx/model.onnx")).unwrap(), graph);
        }
    }

    #[tokio::test]
    async fn nothing_wrong_comes_under_a_final_name() {
        let (fake, store) = (fake(), tempfile::tempdir().unwrap());
        let hub = hub(settings(&fake));
        for (side, file) in [(Side::Cdn, "onnx/model.onnx"), (Side::Hub, "config.json")] {
            // The redirect, then the content.
            fake.fault(side, file, 9, &[Fault::WrongContent]);
            let work = WorkFolder::fresh(store.path()).unwrap();
            let fetched = hub.fetch(&request(), &work, &Progress::default()).await;
            assert!(matches!(&fetched, Err(HubError::Corrupt(text)) if text.contains("checksum")), "{fetched:?}");
            assert!(!work.version().join(file).exists());
        }
    }

    #[tokio::test]
    async fn a_fetch_is_over_soon_after_it_was_cancelled() {
        let (fake, store) = (fake(), tempfile::tempdir().unwrap());
        let hub = hub(settings(&fake));
        for (side, ending) in [(Side::Hub, "/revision/main"), (Side::Cdn, "model.onnx")] {
            fake.fault(side, ending, 1, &[Fault::Stall(3)]);
            let work = WorkFolder::fresh(store.path()).unwrap();
            let progress = Progress::default();
            let wanted = request();
            let fetch = hub.fetch(&wanted, &work, &progress);
            let cancel = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                progress.cancelled().cancel();
                tokio::time::Instant::now()
            };
            let (fetched, cancelled_at) = tokio::join!(fetch, cancel);
            assert!(matches!(fetched, Err(HubError::Cancelled)), "{fetched:?}");
            assert!(cancelled_at.elapsed() < Duration::from_secs(2));
        }
    }

    #[test]
    fn what_a_hub_says_of_a_model_is_bounded_and_of_one_line() {
        let of = |info: Value| About::read(NAME, &info);
        assert_eq!(of(json!({"tags": ["a", "license:mit", 7]})).license.as_deref(), Some("mit"));
        let card = |card: Value| of(json!({"cardData": card})).license;
        assert_eq!(card(json!({"license": ["mit", "apache-2.0"]})).as_deref(), Some("mit, apache-2.0"));
        assert_eq!(card(json!({"license": "other", "license_name": "own"})).as_deref(), Some("own"));
        assert_eq!(card(json!({"license": "other"})).as_deref(), Some("other"));
        assert_eq!(card(json!({"license": {}})), None);
        let long = of(json!({"author": format!("a\n{}", "b".repeat(999)), "tags": vec!["t"; 999]}));
        assert_eq!((long.author.map(|text| text.len()), long.tags.len()), (Some(TEXT_MAX), TAGS_MAX));
        for odd in [Value::Null, json!([]), json!({"tags": {}, "cardData": 7, "pipeline_tag": []})] {
            assert_eq!(of(odd), About { author: Some("org".to_owned()), ..About::default() });
        }
    }

    #[test]
    fn parts_of_a_url_are_encoded() {
        assert_eq!(encode("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(encode_path("a b/ü?#%.onnx"), "a%20b/%C3%BC%3F%23%25.onnx");
    }
}
