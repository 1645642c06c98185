//! `use_fp16` on CUDA: real graphs on ONNX Runtime's CPU, which says that it is a GPU and takes its time with numbers of 32 bits.

use super::{Root, name};
use crate::models::*;
use crate::pipelines::PipelineLimits;
use crate::runtime::execution::{CPU, CUDA};
use crate::runtime::onnx::OnnxRuntime;
use crate::runtime::{
    DeviceSettings, DeviceType, Execution, GraphFacts, GraphSource, Input, Interrupt, Runtime, RuntimeError, Session,
    SessionSettings,
};
use crate::tasks::Tasks;
use crate::telemetry::Stats;
use crate::tensor::{Spec, Value};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a run takes with numbers of 32 and of 16 bits.
#[derive(Clone, Copy)]
struct Times(u64, u64);

struct Gpu(OnnxRuntime, Times);

struct OnGpu(Box<dyn Session>, GraphFacts, Duration);

impl Runtime for Gpu {
    fn load(&self, source: &GraphSource, settings: &SessionSettings) -> Result<Box<dyn Session>, RuntimeError> {
        let device = DeviceSettings { device_type: DeviceType::Cpu, ..settings.device.clone() };
        let session = self.0.load(source, &SessionSettings { device, ..settings.clone() })?;
        let names = vec![CUDA.to_owned(), CPU.to_owned()];
        let execution = Execution { asked: names.clone(), registered: names, ..Execution::default() };
        let facts = GraphFacts { device: "cuda:0".into(), execution, ..session.facts().clone() };
        let time = if facts.precision.as_deref() == Some("fp32") { self.1.0 } else { self.1.1 };
        Ok(Box::new(OnGpu(session, facts, Duration::from_millis(time))))
    }

    fn version(&self) -> &str {
        self.0.version()
    }
}

impl Session for OnGpu {
    fn inputs(&self) -> &[Spec] {
        self.0.inputs()
    }

    fn outputs(&self) -> &[Spec] {
        self.0.outputs()
    }

    fn facts(&self) -> &GraphFacts {
        &self.1
    }

    fn run(&mut self, inputs: &[Input], outputs: &[usize], interrupt: &Interrupt) -> Result<Vec<Value>, RuntimeError> {
        std::thread::sleep(self.2);
        self.0.run(inputs, outputs, interrupt)
    }
}

async fn loaded(use_fp16: bool, times: Times) -> (Root, ModelManager, Arc<LoadedModel>) {
    let root = Root::from(tempfile::tempdir().unwrap());
    let folder = root.path().join("mlp/1");
    fs::create_dir_all(&folder).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store/mlp/1/model.onnx");
    fs::copy(fixture, folder.join("model.onnx")).unwrap();
    let store = StoreSettings {
        models_dir: root.path().to_owned(),
        autoload: false,
        poll_interval: None,
        max_model_bytes: 1 << 30,
        max_loaded_memory: None,
        optimized_dir: None,
        reserve_bytes: 0,
        trial_load: TrialLoad::Off,
        trial_load_timeout: Duration::ZERO,
    };
    let settings = ModelSettings {
        device: DeviceSettings { use_fp16, ..DeviceSettings::default() },
        warmup_iterations: 0,
        ..ModelSettings::default()
    };
    let runtime = OnnxRuntime::open().expect("ONNX Runtime's library; `make test` installs it");
    let (runtime, limits) = (Arc::new(Gpu(runtime, times)), PipelineLimits::default());
    let manager = ModelManager::new(runtime, Tasks::new(), store, settings, limits, Stats::default());
    manager.keep_states().await;
    manager.start().await;
    manager.load(&name("mlp"), LoadOverrides::default()).await.unwrap();
    let model = manager.get_or_load(&name("mlp"), None).await.unwrap();
    (root, manager, model)
}

fn left(root: &Root) -> usize {
    fs::read_dir(root.path().join(".ortus/optimized")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_graph_of_16_bits_serves_where_it_is_faster_and_goes_with_its_model() {
    let (root, manager, model) = loaded(true, Times(20, 1)).await;
    let found = model.optimization.halved.clone().unwrap();
    assert!(found.adopted && found.cosine.is_some_and(|cosine| cosine > 0.999), "{found:?}");
    assert_eq!(model.facts.precision.as_deref(), Some("fp16"));
    // What is loaded beside it is the same graph, and the model is known by its own file.
    let again = manager.bare_session(&model, None).await.unwrap();
    assert_eq!(again.facts().precision.as_deref(), Some("fp16"));
    assert!(model.source.file.ends_with("mlp/1/model.onnx"));
    assert_eq!(left(&root), 1);
    drop((again, model));
    manager.unload(&name("mlp")).await.unwrap();
    // Whoever held the graph last removes it, which may be after the unload has been answered.
    let gone = async {
        while left(&root) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("the made graph goes with its model");
}

#[tokio::test]
async fn a_graph_of_16_bits_that_is_not_faster_is_told_and_not_served() {
    let (root, _manager, model) = loaded(true, Times(1, 20)).await;
    let found = model.optimization.halved.clone().unwrap();
    assert!(!found.adopted && found.speed.is_some_and(|speed| speed < 1.0), "{found:?}");
    assert_eq!((model.facts.precision.as_deref(), left(&root)), (Some("fp32"), 0));
    let (_root, _manager, model) = loaded(false, Times(20, 1)).await;
    assert_eq!((model.optimization.halved.clone(), model.facts.precision.as_deref()), (None, Some("fp32")));
}
