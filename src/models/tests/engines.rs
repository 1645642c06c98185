//! TensorRT's engines over a runtime without graphs: built while the model serves, swapped in, kept, and given up.

use super::{Gate, Root, name, run, spec};
use crate::batching::BatchSettings;
use crate::models::*;
use crate::pipelines::PipelineLimits;
use crate::runtime::execution::{CPU, CUDA};
use crate::runtime::fake::FakeRuntime;
use crate::runtime::{
    DeviceSettings, DeviceType, EngineKey, Execution, GraphSource, Runtime, RuntimeError, Session, SessionSettings,
    TENSORRT,
};
use crate::tasks::Tasks;
use crate::telemetry::Stats;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// A machine with a GPU: `plain` and `engine` are loads without and with an engine, `build` is one that makes it.
#[derive(Clone, Default)]
struct Machine {
    loads: Arc<Mutex<Vec<&'static str>>>,
    /// A build waits here.
    gate: Arc<Gate>,
    /// What builds fail with.
    problem: Arc<Mutex<Option<&'static str>>>,
    /// Whether kept engines load.
    refuses: Arc<Mutex<bool>>,
    tensorrt: Arc<Mutex<&'static str>>,
    building: Arc<AtomicUsize>,
    building_most: Arc<AtomicUsize>,
}

impl Runtime for Machine {
    fn load(&self, _source: &GraphSource, settings: &SessionSettings) -> Result<Box<dyn Session>, RuntimeError> {
        let folder = settings.device.tensorrt.engines.as_ref();
        let what = match (settings.device.wants_tensorrt(), folder) {
            (false, _) => "plain",
            (true, Some(folder)) if folder.join("a.engine").is_file() => "engine",
            (true, _) => "build",
        };
        self.loads.lock().unwrap().push(what);
        match (what, folder) {
            ("build", Some(folder)) => {
                let building = self.building.fetch_add(1, Ordering::SeqCst) + 1;
                self.building_most.fetch_max(building, Ordering::SeqCst);
                self.gate.pass();
                self.building.fetch_sub(1, Ordering::SeqCst);
                if let Some(problem) = *self.problem.lock().unwrap() {
                    return Err(RuntimeError::Device(problem.into()));
                }
                fs::write(folder.join("a.engine"), "engine").unwrap();
            }
            ("engine", _) if *self.refuses.lock().unwrap() => {
                return Err(RuntimeError::Device("the engine is broken".into()));
            }
            _ => {}
        }
        let names: &[&str] = if what == "plain" { &[CUDA, CPU] } else { &[TENSORRT, CUDA, CPU] };
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let execution = Execution { asked: names.clone(), registered: names, ..Execution::default() };
        let fake = FakeRuntime::new(vec![spec("x")], vec![spec("y")], |inputs, _, _| {
            Ok(inputs.iter().map(|(_, value)| value.clone()).collect())
        });
        fake.on(execution).load(_source, settings)
    }

    fn engine_key(&self, _source: &GraphSource, settings: &SessionSettings) -> Option<EngineKey> {
        settings.device.wants_tensorrt().then(|| EngineKey {
            tensorrt: (*self.tensorrt.lock().unwrap()).to_owned(),
            runtime: "test 1".into(),
            gpu: "g".into(),
            options: String::new(),
            learns_shapes: false,
        })
    }

    fn version(&self) -> &str {
        "test 1"
    }
}

/// A store of models `m` and `n`, and a manager over it.
struct House {
    root: Root,
    machine: Machine,
    manager: ModelManager,
    tasks: Tasks,
}

impl Drop for House {
    fn drop(&mut self) {
        self.machine.gate.open();
    }
}

impl House {
    async fn new() -> House {
        let root = Root::from(tempfile::tempdir().unwrap());
        for model in ["m", "n"] {
            fs::create_dir(root.path().join(model)).unwrap();
            fs::write(root.path().join(model).join("model.onnx"), "graph").unwrap();
        }
        House::over(root, Machine::default(), true).await
    }

    async fn over(root: Root, machine: Machine, keeps: bool) -> House {
        let tasks = Tasks::new();
        let store = StoreSettings {
            models_dir: root.path().to_owned(),
            autoload: false,
            poll_interval: None,
            max_model_bytes: 1 << 20,
            max_loaded_memory: None,
            optimized_dir: None,
            reserve_bytes: 0,
            trial_load: TrialLoad::Off,
            trial_load_timeout: Duration::ZERO,
        };
        let device = DeviceSettings { device_type: DeviceType::Tensorrt, ..DeviceSettings::default() };
        let batch = BatchSettings { dynamic_batching: false, ..BatchSettings::default() };
        let settings = ModelSettings { device, batch, warmup_iterations: 0, ..ModelSettings::default() };
        let runtime = Arc::new(machine.clone());
        let limits = PipelineLimits::default();
        let manager = ModelManager::new(runtime, tasks.clone(), store, settings, limits, Stats::default());
        if keeps {
            manager.keep_states().await;
        }
        manager.start().await;
        House { root, machine, manager, tasks }
    }

    async fn load(&self, model: &str) -> Arc<LoadedModel> {
        self.manager.load(&name(model), LoadOverrides::default()).await.unwrap();
        self.manager.get_or_load(&name(model), None).await.unwrap()
    }

    async fn get(&self, model: &str) -> Arc<LoadedModel> {
        self.manager.get_or_load(&name(model), None).await.unwrap()
    }

    fn loads(&self) -> Vec<&'static str> {
        self.machine.loads.lock().unwrap().clone()
    }

    fn engines(&self, model: &str) -> PathBuf {
        self.root.path().join(".ortus/optimized").join(model).join("1.engines")
    }

    /// What lies among the states and is no model's.
    fn begun(&self) -> usize {
        let entries = fs::read_dir(self.root.path().join(".ortus/optimized")).into_iter().flatten();
        entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')).count()
    }

    async fn state(&self, model: &str, wanted: EngineState) -> EngineStatus {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.get(model).await.engine.status();
            if status.state == wanted {
                return status;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn until(&self, claim: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !claim() {
            assert!(Instant::now() < deadline, "it did not come about: {:?}", self.loads());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn a_model_serves_while_its_engine_is_built_and_with_it_afterwards() {
    let house = House::new().await;
    let first = house.load("m").await;
    house.until(|| house.loads() == ["plain", "build"]).await;
    let status = house.state("m", EngineState::Building).await;
    assert!(status.since.is_some() && status.seconds.is_some(), "{status:?}");
    let execution = first.execution();
    assert_eq!((execution.asked[0].as_str(), execution.is_fallback), (TENSORRT, false));
    assert!(execution.missing[0].reason.contains("is being built"), "{execution:?}");
    assert_eq!(first.settings.device.device_type, DeviceType::Tensorrt);
    assert!(run(&first).await);
    house.machine.gate.open();
    // Whoever asks is answered all the time, by the one or the other.
    let mut answered = 0;
    while house.get("m").await.engine.status().state != EngineState::Ready {
        let model = house.get("m").await;
        assert!(run(&model).await);
        answered += 1;
        assert!(answered < 1_000_000);
    }
    let model = house.get("m").await;
    assert!(!Arc::ptr_eq(&first, &model) && run(&model).await && run(&first).await);
    assert_eq!(model.execution().registered[0], TENSORRT);
    assert_eq!(house.loads(), ["plain", "build", "engine"]);
    assert!(house.engines("m").join("a.engine").is_file());
    assert_eq!(house.begun(), 0);
    // The next start has it from the beginning.
    drop((first, model));
    house.manager.close().await;
    let next = House::over(house.root.clone(), house.machine.clone(), true).await;
    let status = next.load("m").await.engine.status();
    assert_eq!((status.state, status.reason.as_deref()), (EngineState::Ready, None));
    assert_eq!(next.loads()[3..], ["engine"]);
    assert!(house.tasks.close(Duration::from_secs(20)).await);
}

#[tokio::test]
async fn a_build_that_fails_leaves_what_serves_and_says_why() {
    let house = House::new().await;
    house.machine.gate.open();
    *house.machine.problem.lock().unwrap() = Some("a layer is not supported");
    let model = house.load("m").await;
    let status = house.state("m", EngineState::Failed).await;
    assert!(status.reason.as_ref().unwrap().contains("a layer is not supported"), "{status:?}");
    assert!(Arc::ptr_eq(&model, &house.get("m").await) && run(&model).await);
    let execution = model.execution();
    assert!(execution.is_fallback && execution.problem().contains("a layer is not supported"), "{execution:?}");
    assert_eq!((house.begun(), house.engines("m").exists()), (0, false));
    // What is loaded again tries again.
    drop(model);
    *house.machine.problem.lock().unwrap() = None;
    house.manager.unload(&name("m")).await.unwrap();
    house.load("m").await;
    house.state("m", EngineState::Ready).await;
}

#[tokio::test]
async fn an_engine_that_does_not_load_leaves_what_serves_and_is_not_built_for_ever() {
    let house = House::new().await;
    house.machine.gate.open();
    *house.machine.refuses.lock().unwrap() = true;
    let model = house.load("m").await;
    let status = house.state("m", EngineState::Failed).await;
    assert!(status.reason.as_ref().unwrap().contains("the engine is broken"), "{status:?}");
    assert!(Arc::ptr_eq(&model, &house.get("m").await) && run(&model).await);
    assert_eq!(house.loads(), ["plain", "build", "engine"]);
    assert!(!house.engines("m").exists());
    let status = house.manager.status(&name("m")).unwrap();
    assert_eq!((status.state, &status.versions[0].reason), (ModelState::Ready, &None));
}

#[tokio::test]
async fn kept_engines_that_do_not_load_are_built_again() {
    let house = House::new().await;
    house.machine.gate.open();
    house.load("m").await;
    house.state("m", EngineState::Ready).await;
    house.manager.unload(&name("m")).await.unwrap();
    *house.machine.refuses.lock().unwrap() = true;
    let model = house.load("m").await;
    assert_eq!(house.loads()[3..5], ["engine", "plain"]);
    assert!(run(&model).await);
    house.state("m", EngineState::Failed).await;
}

#[tokio::test]
async fn another_version_of_tensorrt_has_them_built_again() {
    let house = House::new().await;
    house.machine.gate.open();
    house.load("m").await;
    house.state("m", EngineState::Ready).await;
    house.manager.unload(&name("m")).await.unwrap();
    *house.machine.tensorrt.lock().unwrap() = "11";
    house.load("m").await;
    house.state("m", EngineState::Ready).await;
    assert_eq!(house.loads(), ["plain", "build", "engine", "plain", "build", "engine"]);
}

#[tokio::test]
async fn what_is_unloaded_or_deleted_gives_its_build_up() {
    let house = House::new().await;
    drop(house.load("m").await);
    house.until(|| house.loads() == ["plain", "build"]).await;
    house.manager.unload(&name("m")).await.unwrap();
    // Nothing waits for the build, which cannot be stopped: the model is deleted under it.
    house.manager.delete(&name("m"), None).await.unwrap();
    house.machine.gate.open();
    house.until(|| house.begun() == 0 && house.machine.building.load(Ordering::SeqCst) == 0).await;
    assert_eq!(house.loads(), ["plain", "build"]);
    assert!(!house.engines("m").exists());
    // The GPU is free for the next.
    house.load("n").await;
    house.state("n", EngineState::Ready).await;
    assert!(house.engines("n").exists());
    house.manager.delete(&name("n"), None).await.unwrap();
    assert!(!house.engines("n").exists());
}

#[tokio::test]
async fn one_engine_is_built_at_a_time() {
    let house = House::new().await;
    house.load("m").await;
    house.until(|| house.loads() == ["plain", "build"]).await;
    house.load("n").await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while house.get("n").await.engine.status().reason.is_none() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(house.state("n", EngineState::Building).await.reason.unwrap().contains("waits for another engine"));
    house.machine.gate.open();
    house.state("m", EngineState::Ready).await;
    house.state("n", EngineState::Ready).await;
    assert_eq!(house.machine.building_most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_build() {
    let house = House::new().await;
    drop(house.load("m").await);
    house.until(|| house.loads() == ["plain", "build"]).await;
    house.tasks.stop();
    house.manager.close().await;
    assert!(!house.tasks.close(Duration::from_millis(50)).await);
    house.machine.gate.open();
    assert!(house.tasks.close(Duration::from_secs(20)).await);
    assert_eq!((house.begun(), house.engines("m").exists()), (0, false));
}

#[tokio::test]
async fn a_process_that_keeps_nothing_uses_engines_and_else_builds_within_the_load() {
    let house = House::new().await;
    house.machine.gate.open();
    let other = House::over(house.root.clone(), house.machine.clone(), false).await;
    let status = other.load("m").await.engine.status();
    assert_eq!(status.state, EngineState::Ready);
    assert!(status.reason.unwrap().contains("not kept"));
    assert_eq!(house.loads(), ["build"]);
    house.load("m").await;
    house.state("m", EngineState::Ready).await;
    let third = House::over(house.root.clone(), house.machine.clone(), false).await;
    third.load("m").await;
    assert_eq!(house.loads().last(), Some(&"engine"));
}
