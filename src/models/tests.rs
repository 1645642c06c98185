//! The manager over real folders and a runtime without graphs: what a model's file holds tells how its load goes.

mod engines;
mod half;
mod versions;

use super::*;
use crate::batching::{BatchSettings, Request};
use crate::pipelines::PipelineLimits;
use crate::runtime::fake::FakeRuntime;
use crate::runtime::{GraphSource, MemorySettings, OptimizationLevel, Runtime, RuntimeError, Session, SessionSettings};
use crate::tasks::Tasks;
use crate::telemetry::Stats;
use crate::telemetry::stats::{Protocol, RequestGuard};
use crate::tensor::{DType, Dim, Spec, Value, ValueType};
use bytes::Bytes;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// Files: `broken` does not load, `likes-basic` runs best at that level without an arena, `slow…` loads when [`Gate::open`] is called, `stuck` runs until it is interrupted.
struct TestRuntime {
    loads: Arc<AtomicUsize>,
    runs: Arc<AtomicUsize>,
    gate: Arc<Gate>,
    /// How the session was built that ran last.
    last: Arc<Mutex<SessionSettings>>,
}

#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
    }
}

fn spec(name: &str) -> Spec {
    let shape = Some(vec![Dim::Dynamic(None), Dim::Fixed(2)]);
    Spec { name: name.into(), ty: ValueType::Tensor { dtype: DType::Fp32, shape }, optional: false }
}

impl Runtime for TestRuntime {
    fn load(&self, source: &GraphSource, settings: &SessionSettings) -> Result<Box<dyn Session>, RuntimeError> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        let content = fs::read_to_string(&source.file).unwrap();
        match content.as_str() {
            "broken" => return Err(RuntimeError::Graph("the file is not an ONNX graph".into())),
            "panics" => panic!("on purpose"),
            slow if slow.starts_with("slow") => self.gate.pass(),
            _ => {}
        }
        let (runs, gate, last, settings) = (self.runs.clone(), self.gate.clone(), self.last.clone(), settings.clone());
        let built = settings.clone();
        let fake = FakeRuntime::new(vec![spec("x")], vec![spec("y")], move |inputs, _, interrupt| {
            runs.fetch_add(1, Ordering::SeqCst);
            *last.lock().unwrap() = built.clone();
            match content.as_str() {
                "refuses" => Err(RuntimeError::Run("not this input".into())),
                "likes-basic" => {
                    // Differences so large that other work does not turn them round.
                    let level = if built.optimization_level == OptimizationLevel::Basic { 1 } else { 4 };
                    let memory = if built.memory.arena { 4 } else { 1 };
                    std::thread::sleep(Duration::from_millis(2 * level * memory));
                    Ok(inputs.iter().map(|(_, value)| value.clone()).collect())
                }
                "waits" => {
                    // A run that ends when the test says so, or when it is stopped.
                    while !*gate.open.lock().unwrap() && !interrupt.is_fired() {
                        std::thread::yield_now();
                    }
                    Ok(inputs.iter().map(|(_, value)| value.clone()).collect())
                }
                _ => Ok(inputs.iter().map(|(_, value)| value.clone()).collect()),
            }
        });
        fake.load(source, &settings)
    }

    fn version(&self) -> &str {
        "test 1"
    }
}

/// Where a store is; a temporary folder goes with the last who knows it.
#[derive(Clone)]
struct Root {
    path: std::path::PathBuf,
    _folder: Option<Arc<tempfile::TempDir>>,
}

impl From<tempfile::TempDir> for Root {
    fn from(folder: tempfile::TempDir) -> Root {
        Root { path: folder.path().to_owned(), _folder: Some(Arc::new(folder)) }
    }
}

impl Root {
    fn path(&self) -> &std::path::Path {
        &self.path
    }
}

/// A store in a temporary folder and a manager over it.
struct House {
    root: Root,
    manager: ModelManager,
    loads: Arc<AtomicUsize>,
    runs: Arc<AtomicUsize>,
    gate: Arc<Gate>,
    last: Arc<Mutex<SessionSettings>>,
    tasks: Tasks,
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test must not leave a load waiting, or the process would wait for it.
        self.gate.open();
    }
}

impl House {
    fn new(autoload: bool, files: &[(&str, &str)]) -> House {
        House::with_poll(autoload, None, files)
    }

    fn with_poll(autoload: bool, poll_interval: Option<Duration>, files: &[(&str, &str)]) -> House {
        House::with_budget(autoload, poll_interval, None, files)
    }

    fn with_budget(
        autoload: bool,
        poll_interval: Option<Duration>,
        max_loaded_memory: Option<u64>,
        files: &[(&str, &str)],
    ) -> House {
        let root = Root::from(tempfile::tempdir().unwrap());
        let house = House::over(root, autoload, poll_interval, max_loaded_memory);
        for (file, content) in files {
            house.write(file, content);
        }
        house
    }

    fn over(root: Root, autoload: bool, poll_interval: Option<Duration>, max_loaded_memory: Option<u64>) -> House {
        let (loads, runs, gate, tasks) = (Arc::default(), Arc::default(), Arc::<Gate>::default(), Tasks::new());
        let last = Arc::<Mutex<SessionSettings>>::default();
        let runtime =
            TestRuntime { loads: Arc::clone(&loads), runs: Arc::clone(&runs), gate: gate.clone(), last: last.clone() };
        let store = StoreSettings {
            models_dir: root.path().to_owned(),
            autoload,
            poll_interval,
            max_model_bytes: 1 << 20,
            max_loaded_memory,
            optimized_dir: None,
            reserve_bytes: 0,
            trial_load: TrialLoad::Off,
            trial_load_timeout: Duration::ZERO,
        };
        // Runs are counted, and some never end: none may be a trial of the loader's.
        let batch = BatchSettings { dynamic_batching: false, ..BatchSettings::default() };
        let settings = ModelSettings { warmup_iterations: 0, batch, ..ModelSettings::default() };
        let limits = PipelineLimits { max_pixels: 1, ..PipelineLimits::default() };
        let manager = ModelManager::new(Arc::new(runtime), tasks.clone(), store, settings, limits, Stats::default());
        House { root, manager, loads, runs, gate, last, tasks }
    }

    fn write(&self, file: &str, content: &str) {
        let path = self.root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    async fn load(&self, model: &str) -> Result<(), ModelError> {
        self.manager.load(&name(model), LoadOverrides::default()).await
    }

    async fn get(&self, model: &str) -> Result<Arc<LoadedModel>, ModelError> {
        self.manager.get_or_load(&name(model), None).await
    }

    /// `1:ready 3:failed`.
    fn states(&self, model: &str) -> String {
        let Ok(status) = self.manager.status(&name(model)) else { return "none".into() };
        let versions: Vec<String> =
            status.versions.iter().map(|version| format!("{}:{}", version.version, version.state)).collect();
        versions.join(" ")
    }

    fn loads(&self) -> usize {
        self.loads.load(Ordering::SeqCst)
    }

    /// Waits for something that another thread brings about.
    async fn until(&self, claim: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !claim() {
            assert!(Instant::now() < deadline, "it did not come about");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

fn config(text: &str) -> LoadOverrides {
    LoadOverrides { config_json: Some(text.into()), files: vec![] }
}

async fn run(model: &LoadedModel) -> bool {
    let tensor = crate::tensor::Tensor::from_vec(DType::Fp32, vec![1, 2], vec![1f32, 2.0]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let request = Request {
        parts: vec![vec![(0, Value::Tensor(tensor))]],
        outputs: vec![0],
        deadline,
        priority: 0,
        queue_timeout: None,
        progress: None,
        sender: None,
    };
    model.handle.run(request).await.is_ok()
}

/// F84.
#[tokio::test]
async fn a_store_starts_with_its_good_models_and_lists_its_bad_ones() {
    let house = House::new(
        true,
        &[
            ("good/model.onnx", "a"),
            ("versions/1/model.onnx", "a"),
            ("versions/3/model.onnx", "a"),
            ("all/1/model.onnx", "a"),
            ("all/3/model.onnx", "a"),
            ("all/model.toml", "version_policy = \"all\""),
            ("one/1/model.onnx", "a"),
            ("one/3/model.onnx", "a"),
            ("one/config.pbtxt", "version_policy { specific { versions: [1] } }"),
            ("broken/model.onnx", "broken"),
            ("panics/model.onnx", "panics"),
            ("manifest/model.toml", "descripton = \"x\""),
            ("manifest/model.onnx", "a"),
            ("cut/config.pbtxt", "input {"),
            ("cut/1/model.onnx", "a"),
            ("empty/README.md", "a"),
            (".ortus/overrides/x/1/model.onnx", "left over"),
        ],
    );
    assert!(!house.manager.is_started());
    house.manager.forget_overrides().await;
    house.manager.start().await;
    assert!(house.manager.is_started());
    assert_eq!(house.states("good"), "1:ready");
    assert_eq!(house.states("versions"), "1:unloaded 3:ready");
    assert_eq!(house.states("all"), "1:ready 3:ready");
    assert_eq!(house.states("one"), "1:ready 3:unloaded");
    assert_eq!(house.states("broken"), "1:failed");
    assert_eq!(house.states("panics"), "1:failed");
    for (model, reason) in [
        ("manifest", "did you mean 'description'?"),
        ("cut", "config.pbtxt: "),
        ("empty", "there is no version"),
        ("broken", "the file is not an ONNX graph"),
        ("panics", "abnormally"),
    ] {
        let status = house.manager.status(&name(model)).unwrap();
        assert_eq!(status.state, ModelState::Failed, "{model}");
        assert!(status.last_error.as_ref().unwrap().contains(reason), "{:?}", status.last_error);
        let error = house.get(model).await.unwrap_err();
        assert!(matches!(&error, ModelError::NotReady { state: ModelState::Failed, .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert_eq!(house.manager.list().len(), 9);
    assert!(!house.root.path().join(".ortus/overrides").exists());
    assert_eq!(house.get("versions").await.unwrap().version, Version(3));
    let old = house.manager.get_or_load(&name("versions"), Some(Version(1))).await.unwrap_err();
    assert!(old.to_string().contains("latest:1"), "{old}");
    let none = house.manager.get_or_load(&name("versions"), Some(Version(2))).await.unwrap_err();
    assert!(matches!(none, ModelError::VersionNotFound { available, .. } if available == [Version(1), Version(3)]));
    assert!(run(&house.get("good").await.unwrap()).await);
    house.manager.close().await;
    assert!(house.tasks.close(Duration::from_secs(20)).await);
}

#[tokio::test]
async fn concurrent_first_requests_share_one_load() {
    let house = House::new(true, &[]);
    house.manager.start().await;
    assert!(matches!(house.get("m").await, Err(ModelError::NotFound { .. })));
    house.write("m/model.onnx", "slow");
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let manager = house.manager.clone();
            house.tasks.spawn("request", async move { manager.get_or_load(&name("m"), None).await })
        })
        .collect();
    house.until(|| house.loads() == 1).await;
    assert_eq!(house.states("m"), "1:loading");
    house.gate.open();
    for task in tasks {
        assert!(task.await.unwrap().is_ok());
    }
    assert_eq!(house.loads(), 1);
}

#[tokio::test]
async fn a_load_goes_on_when_its_caller_goes_away() {
    let house = House::new(true, &[("m/model.onnx", "slow")]);
    let request = house.get("m");
    assert!(tokio::time::timeout(Duration::from_millis(100), request).await.is_err());
    house.gate.open();
    house.until(|| house.states("m") == "1:ready").await;
    assert_eq!(house.loads(), 1);
}

#[tokio::test]
async fn what_serves_stays_until_its_successor_is_ready() {
    let house = House::new(true, &[("m/1/model.onnx", "a"), ("other/model.onnx", "a")]);
    house.manager.start().await;
    let first = house.get("m").await.unwrap();
    house.write("m/2/model.onnx", "slow");
    let manager = house.manager.clone();
    let load = house.tasks.spawn("load", async move { manager.load(&name("m"), LoadOverrides::default()).await });
    house.until(|| house.states("m") == "1:ready 2:loading").await;
    assert_eq!(house.get("m").await.unwrap().version, Version(1));
    assert!(run(&first).await);
    assert!(house.get("other").await.is_ok());
    drop(first);
    house.gate.open();
    load.await.unwrap().unwrap();
    assert_eq!(house.get("m").await.unwrap().version, Version(2));
    assert_eq!(house.states("m"), "1:unloaded 2:ready");
}

#[tokio::test]
async fn a_failed_reload_keeps_the_old_one_serving() {
    let house = House::new(true, &[("m/1/model.onnx", "a"), ("bare/model.onnx", "a")]);
    house.manager.start().await;
    house.write("m/2/model.onnx", "broken");
    assert!(matches!(house.load("m").await, Err(ModelError::Load { version: Version(2), .. })));
    assert_eq!(house.states("m"), "1:ready 2:failed");
    assert_eq!(house.get("m").await.unwrap().version, Version(1));

    house.write("bare/model.onnx", "broken");
    let error = house.load("bare").await.unwrap_err().to_string();
    assert_eq!(error, "model 'bare', version 1, could not be loaded: the file is not an ONNX graph");
    let status = house.manager.status(&name("bare")).unwrap();
    assert_eq!((status.state, status.versions[0].reason.is_some()), (ModelState::Ready, true));
    // A status holds its models: the reload below waits until the replaced one is let go.
    drop(status);
    assert!(run(&house.get("bare").await.unwrap()).await);

    house.write("bare/model.toml", "x = 1");
    assert!(matches!(house.load("bare").await, Err(ModelError::Invalid { .. })));
    assert!(run(&house.get("bare").await.unwrap()).await);

    fs::remove_file(house.root.path().join("bare/model.toml")).unwrap();
    house.write("bare/model.onnx", "good again");
    house.load("bare").await.unwrap();
    let status = house.manager.status(&name("bare")).unwrap();
    assert_eq!((status.state, status.last_error), (ModelState::Ready, None));
}

#[tokio::test]
async fn a_failed_model_is_not_tried_on_each_request() {
    let house = House::new(true, &[("m/model.onnx", "broken")]);
    house.manager.start().await;
    for _ in 0..10 {
        assert!(house.get("m").await.is_err());
    }
    assert_eq!(house.loads(), 1);
    assert!(house.load("m").await.is_err());
    assert_eq!(house.loads(), 2);
    house.write("m/model.onnx", "mended");
    // A request looks at the disk again after a while.
    tokio::time::sleep(registry::RECHECK_AFTER).await;
    assert!(house.get("m").await.is_ok());
}

#[tokio::test]
async fn an_unload_waits_for_runs_and_holds() {
    let house = House::new(true, &[("m/model.onnx", "waits")]);
    house.manager.start().await;
    let model = house.get("m").await.unwrap();
    let ended = model.handle.ended();
    let in_flight = house.tasks.spawn("run", async move { run(&model).await });
    house.until(|| house.runs.load(Ordering::SeqCst) == 1).await;
    let manager = house.manager.clone();
    let unload = house.tasks.spawn("unload", async move { manager.unload(&name("m")).await });
    house.until(|| house.states("m") == "1:unloading").await;
    let error = house.get("m").await.unwrap_err();
    assert!(matches!(error, ModelError::NotReady { state: ModelState::Unloading, .. }));
    assert!(!unload.is_finished());
    house.gate.open();
    assert!(in_flight.await.unwrap());
    unload.await.unwrap().unwrap();
    assert!(ended.is_cancelled());
    assert_eq!(house.states("m"), "1:unloaded");
    let error = house.get("m").await.unwrap_err().to_string();
    assert_eq!(error, "model 'm' is unloaded: load it with POST /v1/models/m/load");
    house.load("m").await.unwrap();
    assert!(house.get("m").await.is_ok());
    assert!(matches!(house.manager.unload(&name("none")).await, Err(ModelError::NotFound { .. })));
}

#[tokio::test]
async fn without_autoload_models_wait_to_be_loaded() {
    let house = House::new(false, &[("m/model.onnx", "a")]);
    house.manager.start().await;
    assert_eq!(house.states("m"), "1:unloaded");
    assert!(matches!(house.get("m").await, Err(ModelError::NotReady { state: ModelState::Unloaded, .. })));
    assert!(matches!(house.get("none").await, Err(ModelError::NotFound { .. })));
    assert!(matches!(house.load("none").await, Err(ModelError::NotFound { .. })));
    house.load("m").await.unwrap();
    assert!(house.get("m").await.is_ok());
}

#[tokio::test]
async fn polling_follows_the_store() {
    let house =
        House::with_poll(true, Some(Duration::from_millis(20)), &[("m/1/model.onnx", "a"), ("held/model.onnx", "a")]);
    house.manager.start().await;
    house.manager.unload(&name("held")).await.unwrap();
    let loaded_at = || {
        let status = house.manager.status(&name("m")).unwrap();
        status.versions[0].loaded.as_ref().map(|model| model.loaded_at)
    };
    let first = loaded_at();
    house.write("m/1/model.onnx", "changed");
    house.write("new/model.onnx", "a");
    house.until(|| house.states("new") == "1:ready").await;
    house.until(|| loaded_at() != first).await;
    assert_eq!(house.states("held"), "1:unloaded");
    fs::remove_dir_all(house.root.path().join("m")).unwrap();
    fs::remove_dir_all(house.root.path().join("held")).unwrap();
    house.until(|| house.states("m") == "none" && house.states("held") == "none").await;
    house.manager.close().await;
    assert!(house.tasks.close(Duration::from_secs(20)).await);
}

#[tokio::test]
async fn a_call_may_bring_a_configuration_and_files() {
    let house = House::new(true, &[("m/1/model.onnx", "a")]);
    house.manager.start().await;
    house.manager.load(&name("m"), config("{\"max_batch_size\": 4}")).await.unwrap();
    assert_eq!(house.get("m").await.unwrap().max_batch_size, 4);
    assert_eq!(house.get("m").await.unwrap().config_json["input"][0]["dims"], serde_json::json!([2]));
    house.load("m").await.unwrap();
    assert_eq!(house.get("m").await.unwrap().max_batch_size, 0);

    let files = |list: &[(&str, &'static str)]| LoadOverrides {
        config_json: Some("{}".into()),
        files: list
            .iter()
            .map(|(name, content)| ((*name).to_owned(), Bytes::from_static(content.as_bytes())))
            .collect(),
    };
    // What fails leaves everything as it was, on disk and in memory.
    for bad in [
        files(&[("7/model.onnx", "broken")]),
        files(&[("../1/model.onnx", "a")]),
        files(&[("/etc/x", "a")]),
        files(&[("1/..\\x", "a")]),
        files(&[("1/README", "a")]),
        LoadOverrides { config_json: None, ..files(&[("1/model.onnx", "a")]) },
        config("{"),
        config("{\"name\": \"other\"}"),
        config("{\"platform\": \"pytorch_libtorch\"}"),
        config("{\"input\": [{\"name\": \"x\", \"data_type\": \"TYPE_INT8\"}]}"),
    ] {
        let shown = format!("{bad:?}");
        assert!(house.manager.load(&name("m"), bad.clone()).await.is_err(), "{shown}");
        assert_eq!(house.states("m"), "1:ready", "{shown}");
        assert!(house.manager.load(&name("brought"), bad).await.is_err(), "{shown}");
        assert_eq!(house.states("brought"), "none", "{shown}");
    }
    let kept =
        |model: &str| fs::read_dir(house.root.path().join(".ortus/overrides").join(model)).map_or(0, Iterator::count);
    assert_eq!((kept("m"), kept("brought")), (0, 0));

    house.manager.load(&name("m"), files(&[("7/model.onnx", "a")])).await.unwrap();
    assert_eq!(house.states("m"), "7:ready");
    house.manager.load(&name("m"), files(&[("8/model.onnx", "a")])).await.unwrap();
    assert_eq!((house.states("m").as_str(), kept("m")), ("8:ready", 1));
    house.load("m").await.unwrap();
    assert_eq!((house.states("m").as_str(), kept("m")), ("1:ready", 0));

    house.manager.load(&name("brought"), files(&[("1/model.onnx", "a")])).await.unwrap();
    assert!(run(&house.get("brought").await.unwrap()).await);
    house.manager.unload(&name("brought")).await.unwrap();
    assert_eq!((house.states("brought").as_str(), kept("brought")), ("none", 0));
}

#[tokio::test]
async fn a_warm_up_that_the_model_brings_must_run() {
    let warmup = "model_warmup { name: \"w\" count: 3 inputs { key: \"x\" value { data_type: TYPE_FP32 dims: [5, 2] random_data: true } } }";
    let house = House::new(
        true,
        &[
            ("runs/1/model.onnx", "a"),
            ("runs/config.pbtxt", warmup),
            ("refuses/1/model.onnx", "refuses"),
            ("refuses/config.pbtxt", warmup),
            ("shape/1/model.onnx", "a"),
            ("shape/config.pbtxt", &warmup.replace("[5, 2]", "[5, 3]")),
            ("made-up/1/model.onnx", "refuses"),
            ("made-up/model.toml", "[performance]\nwarmup_iterations = 2\n[batch]\ninstances = 2"),
            ("raw/model.onnx", "a"),
            ("raw/model.toml", "[[warmup]]\nfile = \"a.txt\""),
            ("file/model.onnx", "a"),
            ("file/warmup/data", "01234567"),
            (
                "file/config.pbtxt",
                &warmup.replace("random_data: true", "input_data_file: \"data\"").replace("[5, 2]", "[1, 2]"),
            ),
        ],
    );
    house.manager.start().await;
    assert_eq!(house.states("runs"), "1:ready");
    assert_eq!(house.states("file"), "1:ready");
    assert_eq!(house.runs.load(Ordering::SeqCst), 3 + 3 + 1 + 1);
    assert_eq!(house.states("made-up"), "1:ready");
    assert_eq!(house.get("made-up").await.unwrap().instances, 2);
    for (model, reason) in [("refuses", "not this input"), ("shape", "expected shape"), ("raw", "no task")] {
        let error = house.get(model).await.unwrap_err().to_string();
        assert!(error.contains("warm-up with") && error.contains(reason), "{error}");
    }
}

#[tokio::test]
async fn a_tuned_model_serves_with_what_was_measured_and_keeps_what_is_set() {
    let house = House::new(
        true,
        &[
            ("plain/model.onnx", "a"),
            ("tuned/model.onnx", "likes-basic"),
            ("tuned/model.toml", "[performance]\ntune = true\n[batch]\ndynamic_batching = true"),
            ("set/model.onnx", "a"),
            (
                "set/model.toml",
                "[performance]\ntarget_p99_ms = 60000\n[batch]\ndynamic_batching = true\ninstances = 3\n\
                 intra_threads = 2\nmax_batch_size = 6\n\
                 [optimization]\noptimization_level = \"balanced\"\nmemory_arena = false\nmemory_pattern = true",
            ),
            ("refuses/model.onnx", "refuses"),
            ("refuses/model.toml", "[performance]\ntune = true"),
        ],
    );
    house.manager.start().await;
    assert_eq!(house.get("plain").await.unwrap().tuned, None);
    let model = house.get("tuned").await.unwrap();
    let tuned = model.tuned.as_ref().unwrap();
    assert_eq!(
        (model.instances, model.intra_threads),
        (tuned.chosen.setup.layout.instances, tuned.chosen.setup.layout.intra_threads)
    );
    assert_eq!(Some(model.settings.batch.max_batch_size), tuned.chosen.batch_size);
    let setup = tuned.chosen.setup;
    assert_eq!((setup.optimization_level, setup.memory.arena), (OptimizationLevel::Basic, false), "{tuned:?}");
    assert!(tuned.measured.len() > 1 && run(&model).await);
    // What answers is built as what was chosen, and says so.
    let last = house.last.lock().unwrap().clone();
    assert_eq!((last.optimization_level, last.memory), (setup.optimization_level, setup.memory));
    assert_eq!((model.settings.optimization_level, model.settings.memory()), (last.optimization_level, last.memory));
    let model = house.get("set").await.unwrap();
    let tuned = model.tuned.as_ref().unwrap();
    assert_eq!((model.instances, model.intra_threads, model.settings.batch.max_batch_size), (3, 2, 6));
    assert_eq!((tuned.measured.len(), tuned.target_p99), (1, Some(Duration::from_secs(60))));
    let setup = tuned.chosen.setup;
    let memory = MemorySettings { arena: false, pattern: true };
    assert_eq!((setup.optimization_level, setup.memory), (OptimizationLevel::Balanced, memory));
    // Nothing runs, so nothing is measured; the model is served all the same.
    assert_eq!(house.get("refuses").await.unwrap().tuned, None);
}

fn begin_request(house: &House, name: &str) -> RequestGuard {
    let mut request = house.manager.stats().begin(Protocol::ALL[0], std::time::Instant::now());
    request.reach(&house.manager.stats().model(name, 1));
    request
}

#[tokio::test]
async fn a_model_is_tuned_anew_and_not_beside_its_traffic() {
    let quick = "[batch]\ninstances = 1\nintra_threads = 1\nmax_batch_size = 1\n[optimization]\n\
                 optimization_level = \"basic\"\nmemory_arena = true";
    let house = House::new(true, &[("m/1/model.onnx", "a"), ("m/model.toml", quick)]);
    house.manager.start().await;
    let (name, request) = (ModelName::parse("m").unwrap(), TuneRequest::default());
    assert!(matches!(
        house.manager.tune(&ModelName::parse("other").unwrap(), None, request).await,
        Err(ModelError::NotFound { .. })
    ));
    let before = house.get("m").await.unwrap();
    let busy = begin_request(&house, "m");
    let refused = house.manager.tune(&name, None, request).await.unwrap_err();
    assert!(matches!(&refused, ModelError::Conflict { problem, .. } if problem.contains("in flight")), "{refused}");
    busy.finish(200, None);
    let refused = house.manager.tune(&name, None, request).await.unwrap_err();
    assert!(matches!(&refused, ModelError::Conflict { problem, .. } if problem.contains("answered")), "{refused}");
    assert_eq!(before.tuned, None);

    // The one that serves is in use to the end; the new one takes its place.
    let request = TuneRequest { objective: Objective::Latency, force: true, ..request };
    let (tune, used) = (house.manager.tune(&name, Some(Version(1)), request), before.clone());
    let (tuned, answered) = tokio::join!(tune, async move {
        let answered = run(&used).await;
        drop((used, before));
        answered
    });
    let tuned = tuned.unwrap();
    assert!(answered && run(&tuned).await);
    let outcome = tuned.tuned.clone().unwrap();
    assert_eq!((outcome.objective, outcome.measured.len()), (Objective::Latency, 2), "{outcome:?}");
    assert_eq!(house.get("m").await.unwrap().tuned, Some(outcome));
}

#[tokio::test]
async fn a_load_beside_traffic_is_not_tuned_and_says_why() {
    let house = House::new(true, &[("m/1/model.onnx", "a"), ("m/model.toml", "")]);
    house.manager.start().await;
    begin_request(&house, "m").finish(200, None);
    house.write("m/model.toml", "[performance]\ntune = true");
    house.write("m/1/model.onnx", "another");
    house.load("m").await.unwrap();
    let model = house.get("m").await.unwrap();
    assert_eq!(model.tuned, None);
    assert!(model.untuned.as_ref().unwrap().contains("answered a request"), "{:?}", model.untuned);
    assert!(run(&model).await);
}

/// Collects the events of the log that tell of memory.
#[derive(Clone, Default)]
struct MemoryLog(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for MemoryLog {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Find(Option<String>);
        impl tracing::field::Visit for Find {
            fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
                if field.name() == "event" {
                    self.0 = Some(value.to_owned());
                }
            }

            fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
        }
        let mut find = Find(None);
        event.record(&mut find);
        self.0.lock().unwrap().extend(find.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn memory_is_logged_where_that_is_asked_for() {
    let log = MemoryLog::default();
    let _log = tracing::subscriber::set_default(log.clone());
    let asks = "[performance]\nlog_memory_usage = true";
    let house =
        House::new(true, &[("silent/1/model.onnx", "a"), ("told/1/model.onnx", "a"), ("told/model.toml", asks)]);
    house.manager.start().await;
    assert_eq!(*log.0.lock().unwrap(), ["load"]);
    for name in ["silent", "told"] {
        house.manager.unload(&ModelName::parse(name).unwrap()).await.unwrap();
    }
    assert_eq!(*log.0.lock().unwrap(), ["load", "unload"]);
}

#[tokio::test]
async fn a_stop_ends_tuning() {
    let house = House::new(
        true,
        &[("m/1/model.onnx", "waits"), ("m/model.toml", "[performance]\ntune = true\n[batch]\ninstances = 2")],
    );
    let manager = house.manager.clone();
    let start = house.tasks.spawn("start", async move { manager.start().await });
    house.until(|| house.runs.load(Ordering::SeqCst) == 1).await;
    house.tasks.stop();
    start.await.unwrap();
    house.manager.close().await;
    assert!(house.tasks.close(Duration::from_secs(20)).await);
}

#[tokio::test]
async fn a_stop_ends_a_warm_up_and_refuses_loads() {
    let warmup = "model_warmup { inputs { key: \"x\" value { data_type: TYPE_FP32 dims: [1, 2] } } }";
    let house = House::new(true, &[("m/1/model.onnx", "waits"), ("m/config.pbtxt", warmup)]);
    let manager = house.manager.clone();
    let start = house.tasks.spawn("start", async move { manager.start().await });
    house.until(|| house.runs.load(Ordering::SeqCst) == 1).await;
    house.tasks.stop();
    start.await.unwrap();
    assert!(matches!(house.load("m").await, Err(ModelError::Stopping)));
    house.manager.close().await;
    assert!(house.tasks.close(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_loads_and_unloads_never_gives_a_wrong_answer() {
    let house = Arc::new(House::new(true, &[("m/1/model.onnx", "a")]));
    house.manager.start().await;
    let until = Instant::now() + Duration::from_millis(400);
    let mut work = Vec::new();
    for index in 0..6 {
        let (manager, root) = (house.manager.clone(), house.root.path().to_owned());
        work.push(house.tasks.spawn("storm", async move {
            let mut answered = 0usize;
            while Instant::now() < until {
                match index {
                    0 => {
                        let _ = manager.load(&name("m"), LoadOverrides::default()).await;
                    }
                    1 => {
                        let _ = manager.unload(&name("m")).await;
                    }
                    2 => {
                        fs::write(root.join("m/1/model.onnx"), format!("{answered}")).unwrap();
                        answered += 1;
                        tokio::task::yield_now().await;
                    }
                    _ => match manager.get_or_load(&name("m"), None).await {
                        // A model once handed out runs to the end, whatever happens to its entry.
                        Ok(model) => assert!(run(&model).await),
                        Err(ModelError::NotReady { .. }) => tokio::task::yield_now().await,
                        Err(error) => panic!("{error}"),
                    },
                }
            }
        }));
    }
    for task in work {
        task.await.unwrap();
    }
    house.load("m").await.unwrap();
    assert_eq!(house.states("m"), "1:ready");
    house.manager.close().await;
    assert!(house.tasks.close(Duration::from_secs(20)).await);
}

/// Room for two: what a tiny model takes is put at 2 MiB.
const TWO: Option<u64> = Some(5 << 20);

fn three() -> [(&'static str, &'static str); 3] {
    [("a/model.onnx", "a"), ("b/model.onnx", "b"), ("c/model.onnx", "c")]
}

/// F89.
#[tokio::test]
async fn the_least_recently_used_makes_room_and_comes_back() {
    // Without polls: a model that one looks at in that moment is not evicted, and the next goes.
    let house = House::with_budget(true, None, TWO, &three());
    house.manager.start().await;
    // Nobody waits for any of them: the first two that come have their place.
    let ready = ["a", "b", "c"].iter().filter(|model| house.states(model) == "1:ready").count();
    assert_eq!((ready, house.loads()), (2, 2));
    for model in ["a", "b", "c"] {
        house.get(model).await.unwrap();
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert_eq!([house.states("a"), house.states("b"), house.states("c")], ["1:unloaded", "1:ready", "1:ready"]);
    let status = house.manager.status(&name("a")).unwrap();
    assert!(status.versions[0].reason.as_ref().unwrap().contains("next request loads it"), "{status:?}");
    house.get("b").await.unwrap();
    assert!(run(&house.get("a").await.unwrap()).await);
    assert_eq!([house.states("a"), house.states("b"), house.states("c")], ["1:ready", "1:ready", "1:unloaded"]);
    assert!(house.manager.memory_totals().models_bytes <= TWO.unwrap());
}

#[tokio::test]
async fn a_poll_brings_back_nobody_whom_nobody_asked_for() {
    let house = House::with_budget(true, Some(Duration::from_millis(5)), TWO, &three());
    house.manager.start().await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let ready = ["a", "b", "c"].iter().filter(|model| house.states(model) == "1:ready").count();
    assert_eq!((ready, house.loads()), (2, 2));
}

/// F89.
#[tokio::test]
async fn busy_models_stay_and_the_newcomer_is_told_to_come_back() {
    let house = House::with_budget(false, None, TWO, &three());
    house.load("a").await.unwrap();
    house.load("b").await.unwrap();
    let (a, b) = (house.get("a").await.unwrap(), house.get("b").await.unwrap());
    let refused = house.load("c").await.unwrap_err();
    assert!(matches!(refused, ModelError::Load { source: LoadError::MemoryBusy { .. }, .. }), "{refused}");
    assert_eq!(house.states("c"), "1:unloaded");
    drop(b);
    house.load("c").await.unwrap();
    assert_eq!([house.states("a"), house.states("b"), house.states("c")], ["1:ready", "1:unloaded", "1:ready"]);
    drop(a);
    // Loaded by hand once and evicted: a request loads it also without autoload.
    house.get("b").await.unwrap();
    // Unloaded by hand: it does not.
    house.manager.unload(&name("b")).await.unwrap();
    assert!(matches!(house.get("b").await, Err(ModelError::NotReady { .. })));
}

#[tokio::test]
async fn what_can_never_fit_is_refused_before_it_is_read() {
    let house = House::with_budget(true, None, Some(1 << 20), &[("a/model.onnx", "a")]);
    house.manager.start().await;
    for refused in [house.load("a").await.unwrap_err(), house.get("a").await.unwrap_err()] {
        assert!(matches!(refused, ModelError::Load { source: LoadError::NoMemory { .. }, .. }), "{refused}");
        assert!(refused.to_string().contains("max_loaded_memory_mb leaves 1 MiB"), "{refused}");
    }
    assert_eq!((house.states("a").as_str(), house.loads()), ("1:unloaded", 0));
}

#[tokio::test]
async fn what_the_machine_cannot_hold_is_refused_before_it_is_read() {
    let house = House::new(false, &[("a/model.onnx", "a")]);
    // A file with a hole: 1 TiB that no disk has to hold.
    let file = fs::OpenOptions::new().write(true).open(house.root.path().join("a/model.onnx")).unwrap();
    file.set_len(1 << 40).unwrap();
    let refused = house.load("a").await.unwrap_err();
    assert!(refused.to_string().contains("the machine or its container leaves"), "{refused}");
    assert_eq!(house.loads(), 0);
}

#[tokio::test]
async fn a_model_that_the_disk_does_not_have_is_never_evicted() {
    let house = House::with_budget(false, None, TWO, &three());
    let files = vec![("1/model.onnx".to_owned(), Bytes::from_static(b"x"))];
    let brought = LoadOverrides { config_json: Some("{}".into()), files };
    house.manager.load(&name("brought"), brought).await.unwrap();
    house.load("a").await.unwrap();
    house.load("b").await.unwrap();
    assert_eq!([house.states("brought"), house.states("a")], ["1:ready", "1:unloaded"]);
}

#[tokio::test]
async fn a_new_version_needs_room_beside_the_old_one() {
    let house = House::with_budget(false, None, TWO, &[("a/1/model.onnx", "a"), ("b/model.onnx", "b")]);
    house.load("a").await.unwrap();
    house.load("b").await.unwrap();
    house.write("a/2/model.onnx", "a");
    house.load("a").await.unwrap();
    assert_eq!([house.states("a"), house.states("b")], ["1:unloaded 2:ready", "1:unloaded"]);
}

/// F89.
#[tokio::test]
async fn requests_for_more_models_than_fit_are_all_answered() {
    let house = Arc::new(House::with_budget(true, None, TWO, &three()));
    let mut requests = Vec::new();
    for index in 0..60usize {
        let (house, tasks) = (house.clone(), house.tasks.clone());
        requests.push(tasks.spawn("request", async move {
            let model = ["a", "b", "c"][index % 3];
            loop {
                match house.get(model).await {
                    Ok(model) => return run(&model).await,
                    // As a client does that is told to come back.
                    Err(
                        ModelError::Load { source: LoadError::MemoryBusy { .. }, .. } | ModelError::NotReady { .. },
                    ) => {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }));
    }
    for request in requests {
        assert!(request.await.unwrap());
    }
    house.until(|| house.manager.memory_totals().models_bytes <= TWO.unwrap()).await;
}
