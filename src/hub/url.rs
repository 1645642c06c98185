//! A URL: a graph, an archive of a model's folder, or a PyTorch file.
//!
//! What it is says its path's ending, and where that says nothing its first bytes. What a server calls the file is not
//! asked for.

use super::archive::{Archive, ArchiveLimits};
use super::client::page_for_people;
use super::transfer::{self, Wanted};
use super::work::disk_error;
use super::{
    FetchRequest, Fetched, Hub, HubError, ListedFile, Listing, Phase, Progress, Provenance, ProvenanceFile, Source,
    WorkFolder,
};
use crate::telemetry::{now_ms, rfc3339};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// Bytes that tell what a file is.
const FIRST: usize = 64;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A graph, and its name in a version.
    Graph(&'static str),
    Archive,
    /// A PyTorch file, and its ending.
    PyTorch(&'static str),
}

impl Kind {
    /// What a name says.
    pub(super) fn named(name: &str) -> Option<Kind> {
        let name = name.to_ascii_lowercase();
        let kinds = [
            (".onnx", Kind::Graph("model.onnx")),
            (".ort", Kind::Graph("model.ort")),
            (".zip", Kind::Archive),
            (".tar.gz", Kind::Archive),
            (".tgz", Kind::Archive),
            (".pt", Kind::PyTorch("pt")),
            (".pth", Kind::PyTorch("pth")),
            (".pt2", Kind::PyTorch("pt2")),
        ];
        kinds.into_iter().find_map(|(ending, kind)| name.ends_with(ending).then_some(kind))
    }

    /// What the first bytes say, which a name goes before.
    ///
    /// # Errors
    /// Where they are no model's, and in what else they are.
    pub(super) fn of(named: Option<Kind>, first: &[u8], what: &str) -> Result<Kind, HubError> {
        let text = first.trim_ascii_start();
        if text.first() == Some(&b'<') {
            return Err(page_for_people(what));
        }
        if text.starts_with(b"version https://git-lfs") {
            return Err(HubError::Refused(format!(
                "{what} is a pointer of Git LFS and not the file itself; name the address of the file"
            )));
        }
        let kind = named.or_else(|| {
            if Archive::of(first).is_some() {
                Some(Kind::Archive)
            } else if first.first() == Some(&0x08) {
                // The version of ONNX, the first field that every exporter writes.
                Some(Kind::Graph("model.onnx"))
            } else if first.get(4..8) == Some(b"ORTM") {
                Some(Kind::Graph("model.ort"))
            } else {
                None
            }
        });
        let kind = kind.ok_or_else(|| {
            HubError::Refused(format!(
                "{what} is no model: expected an ONNX graph (.onnx, .ort), a folder as .zip or .tar.gz, or a PyTorch file \
                 (.pt, .pth, .pt2)"
            ))
        })?;
        if kind == Kind::Archive && Archive::of(first).is_none() {
            return Err(HubError::Corrupt(format!("{what} is called an archive and is neither .zip nor .tar.gz")));
        }
        Ok(kind)
    }
}

/// Refuses what can only be asked of a repository.
pub(super) fn check_request(request: &FetchRequest) -> Result<(), HubError> {
    request.check()?;
    let kind = request.source.kind();
    let given = [
        ("revision", request.revision.is_some()),
        ("file", request.file.is_some()),
        ("precision", request.precision.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(HubError::Invalid(format!("{field}: a source of kind {kind} has none"))),
        None => Ok(()),
    }
}

fn address(request: &FetchRequest) -> Result<&str, HubError> {
    check_request(request)?;
    match &request.source {
        Source::Url { url } => Ok(url),
        _ => Err(HubError::Invalid("source: expected a URL".to_owned())),
    }
}

/// What the URL's path says.
fn named(url: &str) -> Option<Kind> {
    Kind::named(url.split(['?', '#']).next().unwrap_or_default())
}

pub(super) async fn check(hub: &Hub, request: &FetchRequest) -> Result<Listing, HubError> {
    let url = address(request)?;
    let reply = hub.0.client.get(url, None).await.map_err(|failed| failed.error)?;
    if reply.is_page() {
        return Err(page_for_people(url));
    }
    let path = match named(url) {
        Some(Kind::Graph(name)) => name.to_owned(),
        _ => {
            let last = shown(url).rsplit('/').next().unwrap_or_default().to_owned();
            transfer::safe_path(&last).map_or_else(|| "file".to_owned(), |_| last)
        }
    };
    Ok(Listing { revision: None, files: vec![ListedFile { path, bytes: reply.length() }], license: None, task: None })
}

pub(super) async fn fetch(
    hub: &Hub,
    request: &FetchRequest,
    work: &WorkFolder,
    progress: &Progress,
) -> Result<Fetched, HubError> {
    let url = address(request)?;
    let named = named(url);
    let name = match named {
        Some(Kind::Graph(name)) => name.to_owned(),
        Some(Kind::PyTorch(ending)) => format!("file.{ending}"),
        Some(Kind::Archive) | None => "file".to_owned(),
    };
    let wanted =
        Wanted { url: url.to_owned(), path: name.clone(), bytes: None, sha256: request.sha256.clone(), git_oid: None };
    let folder = download_folder(work)?;
    let files = transfer::get_into(hub, vec![wanted], work, &folder, progress).await?;
    let mut fetched = turn_into_version(hub, request, folder.join(name), files, named, work, progress).await?;
    fetched.provenance.model_id = shown(url);
    Ok(fetched)
}

/// Where a file lies that is not a version yet.
pub(super) fn download_folder(work: &WorkFolder) -> Result<PathBuf, HubError> {
    let folder = work.parts().join("download");
    match fs::create_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(disk_error(error)),
        _ => Ok(folder),
    }
}

/// Makes a version of one verified file that lies in `work`.
pub(super) async fn turn_into_version(
    hub: &Hub,
    request: &FetchRequest,
    file: PathBuf,
    files: Vec<ProvenanceFile>,
    named: Option<Kind>,
    work: &WorkFolder,
    progress: &Progress,
) -> Result<Fetched, HubError> {
    let provenance = Provenance {
        source: request.source.kind().to_owned(),
        model_id: request.source.id(),
        fetched_at: rfc3339(now_ms()),
        ..Provenance::default()
    };
    progress.set_phase(Phase::Verifying);
    let what = request.source.id();
    let stop = progress.cancelled().child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let (version, limits, path) = (work.version(), ArchiveLimits::of(&hub.0.settings), file.clone());
    let made = hub.0.tasks.spawn_blocking(move || {
        let made = make_version(&path, named, &what, &version, &limits, &stop);
        if matches!(made, Err(HubError::Refused(_) | HubError::Corrupt(_) | HubError::TooLarge(_))) {
            // Of no use to another try.
            let _ = fs::remove_file(&path);
        }
        made
    });
    match made.await.map_err(|_| HubError::Disk("the work on a file broke off".to_owned()))?? {
        Made::Graph(name) => {
            let files = files.into_iter().map(|file| ProvenanceFile { path: name.to_owned(), ..file }).collect();
            Ok(Fetched { folder: work.version(), provenance: Provenance { files, ..provenance } })
        }
        Made::Folder(files) => Ok(Fetched { folder: work.version(), provenance: Provenance { files, ..provenance } }),
        Made::PyTorch => {
            let fetched = hub.convert(&file, &request.export, work, progress).await?;
            let provenance =
                Provenance { source: provenance.source, model_id: provenance.model_id, ..fetched.provenance };
            Ok(Fetched { folder: fetched.folder, provenance })
        }
    }
}

enum Made {
    Graph(&'static str),
    Folder(Vec<ProvenanceFile>),
    /// Nothing: it is to be converted.
    PyTorch,
}

/// Blocks.
fn make_version(
    file: &Path,
    named: Option<Kind>,
    what: &str,
    version: &Path,
    limits: &ArchiveLimits,
    stop: &CancellationToken,
) -> Result<Made, HubError> {
    let mut first = Vec::new();
    let opened = File::open(file).map_err(disk_error)?;
    opened.take(FIRST as u64).read_to_end(&mut first).map_err(disk_error)?;
    let kind = Kind::of(named, &first, what)?;
    clear(version)?;
    match kind {
        Kind::PyTorch(_) => Ok(Made::PyTorch),
        Kind::Graph(name) => {
            fs::rename(file, version.join(name)).map_err(disk_error)?;
            File::open(version).and_then(|folder| folder.sync_all()).map_err(disk_error)?;
            Ok(Made::Graph(name))
        }
        Kind::Archive => {
            let Some(archive) = Archive::of(&first) else {
                return Err(HubError::Corrupt(format!("{what} is no archive")));
            };
            archive.unpack_until(file, version, limits, stop)?;
            let files = ProvenanceFile::all_in(version)?;
            // As large as what is in it.
            fs::remove_file(file).map_err(disk_error)?;
            Ok(Made::Folder(files))
        }
    }
}

/// Removes what an earlier try may have left. Blocks.
pub(super) fn clear(folder: &Path) -> Result<(), HubError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk_error(error)),
        _ => {}
    }
    fs::create_dir(folder).map_err(disk_error)
}

/// A URL without user, query and fragment, for people and for provenance.
pub(super) fn shown(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let url = url.get(..end).unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
            format!("{scheme}://{host}/{path}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FakeHub, Fault, Side, sha256};
    use super::super::{Client, HubSettings, Inner};
    use super::*;
    use crate::tasks::Tasks;
    use std::io::Write;
    use std::sync::Arc;
    use std::time::Duration;

    const GRAPH: &[u8] = b"\x08\x08graph";

    fn hub_of(fake: &FakeHub) -> Hub {
        let settings = HubSettings {
            hf_endpoint: fake.endpoint(),
            allowed_hosts: vec![fake.cdn_host()],
            reserve_bytes: 0,
            idle_timeout: Duration::from_millis(400),
            ..HubSettings::default()
        };
        let mut client = Client::new(&settings).unwrap();
        client.delay = Duration::from_millis(2);
        Hub(Arc::new(Inner { settings, client, tasks: Tasks::new() }))
    }

    fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, content) in files {
            writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    /// What a URL with `path` and `content` becomes: its files, or why not.
    async fn fetch_one(fake: &FakeHub, path: &str, content: &[u8]) -> Result<Vec<(String, Vec<u8>)>, HubError> {
        let url = format!("{}?token=secret", fake.put(path, content));
        let root = tempfile::tempdir().unwrap();
        let request = FetchRequest { sha256: Some(sha256(content)), ..FetchRequest::new(Source::Url { url }) };
        let work = WorkFolder::open(root.path(), &request).unwrap();
        let hub = hub_of(fake);
        let fetched = hub.fetch(&request, &work, &Progress::default()).await?;
        let provenance = &fetched.provenance;
        assert_eq!((provenance.source.as_str(), provenance.model_id.as_str()), ("url", fake.cdn_url(path).as_str()));
        assert!(provenance.fetched_at.ends_with('Z'));
        assert_eq!(ProvenanceFile::all_in(&fetched.folder).unwrap(), provenance.files);
        let read = |file: &ProvenanceFile| (file.path.clone(), fs::read(fetched.folder.join(&file.path)).unwrap());
        Ok(provenance.files.iter().map(read).collect())
    }

    #[tokio::test]
    async fn a_url_becomes_a_version_by_its_ending_or_its_first_bytes() {
        let fake = FakeHub::start();
        let graph = |name: &str| vec![(name.to_owned(), GRAPH.to_vec())];
        let ort = b"\x20\0\0\0ORTM.....".as_slice();
        for (path, content, expected) in [
            ("/m/net.onnx", GRAPH, graph("model.onnx")),
            ("/m/NET.ONNX", GRAPH, graph("model.onnx")),
            ("/m/net.ort", ort, vec![("model.ort".to_owned(), ort.to_vec())]),
            ("/m/download", GRAPH, graph("model.onnx")),
            ("/m/other", ort, vec![("model.ort".to_owned(), ort.to_vec())]),
        ] {
            assert_eq!(fetch_one(&fake, path, content).await.unwrap(), expected, "{path}");
        }
        let packed = zip(&[("net/model.onnx", GRAPH), ("net/labels.txt", b"a")]);
        let folder = vec![("labels.txt".to_owned(), b"a".to_vec()), ("model.onnx".to_owned(), GRAPH.to_vec())];
        for path in ["/m/net.zip", "/m/zipped"] {
            assert_eq!(fetch_one(&fake, path, &packed).await.unwrap(), folder, "{path}");
        }
    }

    #[tokio::test]
    async fn what_is_no_model_is_refused() {
        let fake = FakeHub::start();
        for (path, content, said) in [
            ("/a.onnx", b"<!DOCTYPE html>".as_slice(), "a page for people"),
            ("/b.onnx", b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
            ("/c.zip", b"no archive", "neither .zip nor .tar.gz"),
            ("/d.tar.gz", b"", "neither .zip nor .tar.gz"),
            ("/e.pkl", b"\x80\x04pickle", "expected an ONNX graph"),
            ("/f", b"", "expected an ONNX graph"),
            ("/g.zip", &zip(&[("../../x", b"x")]), "no plain relative name"),
        ] {
            let error = fetch_one(&fake, path, content).await.unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("secret"), "{path}: {error}");
        }
        fake.put("/x.onnx", GRAPH);
        fake.fault(Side::Cdn, "/x.onnx", 1, &[Fault::Html]);
        let error = fetch_one(&fake, "/x.onnx", GRAPH).await.unwrap_err().to_string();
        assert!(error.contains("a page for people"), "{error}");
        fake.fault(Side::Cdn, "/x.onnx", 1, &[Fault::WrongContent]);
        let error = fetch_one(&fake, "/x.onnx", GRAPH).await.unwrap_err().to_string();
        assert!(error.contains("checksum"), "{error}");
        // What a server calls the file is of no interest.
        fake.fault(
            Side::Cdn,
            "/x.onnx",
            1,
            &[Fault::Header("content-disposition", "attachment; filename=../../x".to_owned())],
        );
        assert!(fetch_one(&fake, "/x.onnx", GRAPH).await.is_ok());
    }

    #[tokio::test]
    async fn a_url_is_looked_at_without_being_got() {
        let fake = FakeHub::start();
        let hub = hub_of(&fake);
        let request = |url: String| FetchRequest::new(Source::Url { url });
        let listing = hub.check(&request(fake.put("/m/net.onnx", GRAPH))).await.unwrap();
        assert_eq!(listing.files, [ListedFile { path: "model.onnx".to_owned(), bytes: Some(GRAPH.len() as u64) }]);
        let listing = hub.check(&request(fake.put("/m/net.zip", b"x"))).await.unwrap();
        assert_eq!(listing.files, [ListedFile { path: "net.zip".to_owned(), bytes: Some(1) }]);
        for (url, revision) in
            [("https://10.0.0.1/x.onnx", None), ("file:///x.onnx", None), ("https://a.example/x", Some("main"))]
        {
            let request = FetchRequest { revision: revision.map(str::to_owned), ..request(url.to_owned()) };
            assert!(matches!(hub.check(&request).await, Err(HubError::Refused(_) | HubError::Invalid(_))), "{url}");
        }
    }

    #[test]
    fn secrets_of_a_url_are_not_shown() {
        assert_eq!(shown("https://u:p@a.example/b/c.onnx?token=x#y"), "https://a.example/b/c.onnx");
        assert_eq!(shown("https://a.example/b@c.onnx"), "https://a.example/b@c.onnx");
    }
}
