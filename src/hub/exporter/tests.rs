//! The exporter's process, stood in for by `tests/fixtures/exporter/stand-in`, and the exporter itself where
//! `ORTUS_EXPORTER_PYTHON` names an interpreter that has PyTorch.

use super::*;
use crate::tasks::Tasks;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

struct Bench {
    folder: TempDir,
    hub: Hub,
    work: WorkFolder,
}

impl Bench {
    /// With the stand-in that behaves as `name` says.
    fn new(name: &str, change: impl FnOnce(&mut HubSettings)) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let python = folder.path().join(name);
        // A link, since a script that a test has just written may be busy while another test starts a process.
        symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/exporter/stand-in"), &python).unwrap();
        Bench::with_python(folder, python, change)
    }

    fn with_python(folder: TempDir, python: PathBuf, change: impl FnOnce(&mut HubSettings)) -> Bench {
        let mut settings =
            HubSettings { python: Some(python), export_timeout: Duration::from_secs(300), ..HubSettings::default() };
        change(&mut settings);
        let hub = Hub::new(settings, Tasks::new()).unwrap();
        let work = WorkFolder::fresh(&folder.path().join("downloads")).unwrap();
        Bench { folder, hub, work }
    }

    async fn fetch(&self) -> Result<Fetched, HubError> {
        let request = FetchRequest::new(Source::torchvision("resnet18").unwrap());
        self.hub.fetch(&request, &self.work, &Progress::default()).await
    }

    /// Whether the process that the stand-in started still runs.
    fn child_runs(&self) -> bool {
        let id: u32 = fs::read_to_string(self.work.root().join("child")).unwrap().trim().parse().unwrap();
        // The state stands behind the name; a zombie has ended.
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    fn is_clean(&self) -> bool {
        !self.work.root().join("export").exists()
    }
}

async fn wait_until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_the_exporter_made_becomes_a_version() {
    let bench = Bench::new("good", |_| {});
    fs::write(bench.work.version().join("left.pt"), "of an earlier try").unwrap();
    let fetched = bench.fetch().await.unwrap();
    assert_eq!(fetched.folder, bench.work.version());
    let provenance = fetched.provenance;
    assert_eq!((provenance.source.as_str(), provenance.model_id.as_str()), ("torchvision", "resnet18"));
    assert_eq!(provenance.export, Some(json!({"torch": "0"})));
    assert!(provenance.fetched_at.ends_with('Z'));
    let files: Vec<_> = provenance.files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
    assert_eq!(files, [("config.json", 3), ("model.onnx", 5)]);
    assert_eq!(provenance.files[1].sha256, super::super::work::sha256_hex(b"graph"));
    assert_eq!(fs::read(fetched.folder.join("model.onnx")).unwrap(), b"graph");
    assert!(!fetched.folder.join("left.pt").exists());
    assert!(bench.is_clean());
}

#[tokio::test]
async fn the_request_says_what_is_wanted() {
    let bench = Bench::new("asked", |settings| settings.pytorch_hub = true);
    let mut request = FetchRequest::new(Source::pytorch_hub("pytorch/vision", "resnet18").unwrap());
    request.revision = Some("v0.10.0".to_owned());
    request.export.opset = Some(18);
    request.export.input_shape = Some(vec![1, 3, 64, 64]);
    let fetched = bench.hub.fetch(&request, &bench.work, &Progress::default()).await.unwrap();
    let asked = fetched.provenance.export.unwrap();
    for (key, expected) in [
        ("kind", json!("pytorch_hub")),
        ("repository", json!("pytorch/vision:v0.10.0")),
        ("entry", json!("resnet18")),
        ("trust_repository", json!(true)),
        ("opset", json!(18)),
        ("input_shape", json!([1, 3, 64, 64])),
        ("weights", json!(null)),
    ] {
        assert_eq!(asked[key], expected, "{key}");
    }
    let file = bench.work.parts().join("net.pt");
    fs::write(&file, "x").unwrap();
    let options = ExportOptions { architecture: Some("resnet18".to_owned()), ..ExportOptions::default() };
    let fetched = bench.hub.convert(&file, &options, &bench.work, &Progress::default()).await.unwrap();
    let asked = fetched.provenance.export.unwrap();
    assert_eq!(
        (&asked["kind"], &asked["name"], &asked["architecture"]),
        (&json!("file"), &json!("net.pt"), &json!("resnet18"))
    );
    assert_eq!(fetched.provenance.model_id, "net.pt");
}

#[tokio::test]
async fn the_process_has_limits_and_none_of_our_surroundings() {
    let bench = Bench::new("surroundings", |settings| settings.export_memory = 512 << 20);
    let report = bench.fetch().await.unwrap().provenance.export.unwrap();
    let names = report["names"].as_str().unwrap();
    let known = [
        "PATH",
        "LANG",
        "HOME",
        "XDG_CACHE_HOME",
        "TORCH_HOME",
        "HF_HOME",
        "TMPDIR",
        "PYTHONUNBUFFERED",
        "CUDA_VISIBLE_DEVICES",
        // Of the shell itself.
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
    ];
    assert!(names.split_whitespace().all(|name| known.contains(&name)), "{names}");
    assert_eq!(report["args"], "-s -B -m ortus_exporter");
    assert!(report["code"].as_str().unwrap().contains("__main__.py"));
    if cfg!(target_os = "linux") {
        assert_eq!((&report["data"], &report["nice"]), (&json!("524288"), &json!("10")));
    }
}

#[tokio::test]
async fn failures_are_told_without_paths() {
    let bench = Bench::new("fails", |_| {});
    let error = bench.fetch().await.unwrap_err();
    assert_eq!(error, HubError::Export("no … of … at https://example.org/a here".to_owned()));
    assert!(bench.is_clean());
    for (code, expected) in [
        ("no_torch", HubError::NoExporter),
        ("bad_request", HubError::Invalid("why".to_owned())),
        ("unknown_model", HubError::NotFound("why".to_owned())),
        ("refused", HubError::Refused("why".to_owned())),
        ("memory", HubError::TooLarge("why".to_owned())),
        ("download_failed", HubError::Unreachable("why".to_owned())),
        ("mismatch", HubError::Export("why".to_owned())),
    ] {
        let bench = Bench::new(&format!("says-{code}"), |_| {});
        assert_eq!(bench.fetch().await.unwrap_err(), expected);
    }
    let text = without_paths("a (/usr/x.py:7) '/b' x=/y file:///z ~/q: not/a/path and/or 1/2 \u{1b}[31m \"/tmp/a b\"");
    assert_eq!(text, "a … … … … … not/a/path and/or 1/2 [31m … b\"");
    assert!(without_paths(&"word ".repeat(10_000)).len() <= 500);
}

#[tokio::test]
async fn an_exporter_that_says_nothing_useful_is_an_error() {
    for (name, expected) in [
        ("silent", "ended without an answer"),
        ("long-line", "could not be read"),
        ("many-lines", "could not be read"),
        ("no-json", "could not be read"),
        ("no-graph", "no graph"),
        ("empty-graph", "no graph"),
        ("link", "a link where a file is expected"),
        ("hard-link", "a link where a file is expected"),
        ("folder", "a link where a file is expected"),
        ("other-file", "no part of a model"),
        ("large", "2000000 bytes, more than it may"),
    ] {
        let bench = Bench::new(name, |_| {});
        let error = bench.fetch().await.unwrap_err();
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert_eq!(fs::read_dir(bench.work.version()).unwrap().count(), 0, "{name}");
    }
    let bench = Bench::new("good", |settings| settings.max_download_bytes = 4);
    assert!(matches!(bench.fetch().await, Err(HubError::Export(_) | HubError::TooLarge(_))));
    // However much its libraries print.
    assert!(Bench::new("chatters", |_| {}).fetch().await.is_ok());
}

#[tokio::test]
async fn nothing_of_the_process_outlives_the_call() {
    let bench = Bench::new("hangs", |settings| settings.export_timeout = Duration::from_secs(1));
    let error = bench.fetch().await.unwrap_err();
    assert!(error.to_string().contains("took longer than 1 s"), "{error}");
    wait_until(|| !bench.child_runs()).await;
    assert!(bench.is_clean());

    let bench = Bench::new("leaves", |_| {});
    bench.fetch().await.unwrap();
    wait_until(|| !bench.child_runs()).await;

    // Cancelled, and then simply dropped.
    let bench = Bench::new("hangs", |_| {});
    let request = FetchRequest::new(Source::torchvision("resnet18").unwrap());
    let cancelled = CancellationToken::new();
    let progress = Progress::new(cancelled.clone());
    let started = || bench.work.root().join("child").metadata().is_ok_and(|data| data.len() > 0);
    let cancel = async {
        wait_until(started).await;
        cancelled.cancel();
    };
    let (result, ()) = tokio::join!(bench.hub.fetch(&request, &bench.work, &progress), cancel);
    assert_eq!(result.unwrap_err(), HubError::Cancelled);
    wait_until(|| !bench.child_runs()).await;

    let bench = Bench::new("hangs", |_| {});
    let started = || bench.work.root().join("child").metadata().is_ok_and(|data| data.len() > 0);
    tokio::select! {
        _ = bench.fetch() => panic!("it hangs"),
        () = wait_until(started) => {}
    }
    wait_until(|| !bench.child_runs()).await;
}

#[tokio::test]
async fn an_exporter_that_is_not_there_is_said() {
    for python in ["/nonexistent/python", "no-such-python-anywhere"] {
        let bench = Bench::with_python(tempfile::tempdir().unwrap(), python.into(), |_| {});
        assert_eq!(bench.fetch().await.unwrap_err(), HubError::NoExporter);
    }
    let request = FetchRequest::new(Source::torchvision("resnet18").unwrap());
    let bench = Bench::with_python(tempfile::tempdir().unwrap(), "/nonexistent/python".into(), |_| {});
    assert_eq!(bench.hub.check(&request).await.unwrap_err(), HubError::NoExporter);
    let bench = Bench::new("good", |_| {});
    assert_eq!(bench.hub.check(&request).await.unwrap().files[0].path, "model.onnx");
    // In the store, where neither the settings nor the current folder have one.
    let work = bench.folder.path().join(".ortus/downloads/x");
    let settings = HubSettings::default();
    let own = bench.folder.path().join(".ortus/exporter/bin");
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("python"), "").unwrap();
    assert!(interpreter(&settings, &work).unwrap().ends_with("bin/python"));
}

#[tokio::test]
async fn code_of_repositories_and_downloads_need_to_be_allowed() {
    let hub_model = FetchRequest::new(Source::pytorch_hub("a/b", "net").unwrap());
    let weights = FetchRequest::new(Source::torchvision("resnet18").unwrap());
    let mut random = weights.clone();
    random.export.weights = Some("none".to_owned());
    let bench = Bench::new("good", |_| {});
    let error = bench.hub.fetch(&hub_model, &bench.work, &Progress::default()).await.unwrap_err();
    assert!(matches!(&error, HubError::Refused(text) if text.contains("pytorch_hub = true")), "{error}");
    assert_eq!(bench.hub.check(&hub_model).await.unwrap_err(), error);
    let bench = Bench::new("good", |settings| (settings.offline, settings.pytorch_hub) = (true, true));
    for request in [&hub_model, &weights] {
        assert!(matches!(bench.hub.check(request).await, Err(HubError::Unreachable(_))));
    }
    assert!(bench.hub.fetch(&random, &bench.work, &Progress::default()).await.is_ok());
}

/// With PyTorch itself: everything that can be converted, and what must not be.
#[tokio::test]
async fn models_of_pytorch_are_converted() {
    let Some(python) = std::env::var_os("ORTUS_EXPORTER_PYTHON").map(PathBuf::from) else {
        eprintln!("skipped: ORTUS_EXPORTER_PYTHON names no interpreter that has PyTorch");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let made = std::process::Command::new(&python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/exporter/tests/make_files.py"))
        .arg(folder.path())
        .status()
        .unwrap();
    assert!(made.success());
    let files = folder.path().to_owned();
    let bench = Bench::with_python(folder, python, |_| {});
    let small = ExportOptions {
        weights: Some("none".to_owned()),
        input_shape: Some(vec![1, 3, 64, 64]),
        ..ExportOptions::default()
    };
    let mut request = FetchRequest::new(Source::torchvision("resnet18").unwrap());
    request.export = small.clone();
    let fetched = bench.hub.fetch(&request, &bench.work, &Progress::default()).await.unwrap();
    let report = fetched.provenance.export.unwrap();
    eprintln!("resnet18: {report}");
    assert!(report["max_relative_difference"].as_f64().unwrap() < 1e-3);
    assert_eq!((&report["batch"], &report["task"]), (&json!("dynamic"), &json!("image-classification")));
    let names: Vec<_> = fetched.provenance.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, ["config.json", "model.onnx", "preprocessor_config.json"]);

    let convert = async |name: &str, architecture: Option<&str>| {
        let options = ExportOptions { architecture: architecture.map(str::to_owned), ..small.clone() };
        bench.hub.convert(&files.join(name), &options, &bench.work, &Progress::default()).await
    };
    for (name, architecture) in [("script.pt", None), ("program.pt2", None), ("weights.pth", Some("squeezenet1_1"))] {
        let report = convert(name, architecture).await.unwrap().provenance.export.unwrap();
        eprintln!("{name}: {report}");
        assert!(report["max_relative_difference"].as_f64().unwrap() < 1e-3, "{name}");
    }
    for (name, expected) in [
        ("whole.pth", "holds more than weights"),
        ("evil.pth", "holds more than weights"),
        ("evil.pt", "is not for computing"),
        ("evil.pt2", "no operator that can be exported"),
        ("nothing.pt", "no file of PyTorch"),
    ] {
        let error = convert(name, None).await.unwrap_err();
        assert!(matches!(&error, HubError::Refused(text) if text.contains(expected)), "{name}: {error:?}");
    }
    assert!(
        matches!(convert("weights.pth", None).await, Err(HubError::Invalid(text)) if text.contains("architecture"))
    );
    assert!(!files.join("marker").exists(), "code of a file was run");

    let tight =
        Bench::with_python(tempfile::tempdir().unwrap(), bench.hub.settings().python.clone().unwrap(), |settings| {
            settings.export_memory = 200 << 20;
        });
    let error = tight.hub.fetch(&request, &tight.work, &Progress::default()).await.unwrap_err();
    assert!(matches!(error, HubError::TooLarge(_) | HubError::Export(_) | HubError::NoExporter), "{error:?}");
    eprintln!("200 MiB: {error}");
}
