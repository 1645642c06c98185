//! The tuner's choice against an exhaustive sweep of the same candidates, with real models: the MLP of the fixtures, and
//! `encoder` and `resnet18` of `target/bench-models` where they are there.
//!
//! Every combination of layout, batch, graph level and memory is loaded and measured as tuning would measure it, by naming all
//! of it in the settings. Then the best of the sweep and the tuner's choice are measured by turns; printed is the ratio of
//! the medians, and the time that the sweep and the tuner took. `MODELS=mlp,resnet18` chooses models, `OBJECTIVE=latency`
//! what is best.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measurement that cannot go on says so"
)]

use ortus::models::{LoadedModel, Measured, ModelManager, ModelName, ModelSettings, Objective, Setup, StoreSettings};
use ortus::pipelines::PipelineLimits;
use ortus::runtime::onnx::OnnxRuntime;
use ortus::runtime::{DeviceType, MemorySettings, OptimizationLevel, Runtime};
use ortus::tasks::{Tasks, cores};
use ortus::telemetry::Stats;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

const TURNS: usize = 5;
const BATCHES: [usize; 5] = [1, 2, 4, 8, 16];
const LEVELS: [OptimizationLevel; 4] =
    [OptimizationLevel::Aggressive, OptimizationLevel::Balanced, OptimizationLevel::Basic, OptimizationLevel::None];

fn main() {
    // `cargo test --benches` and `--list` pass arguments of the test harness; there is nothing to list.
    if std::env::args().any(|argument| argument == "--list" || argument == "--test") {
        return;
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let objective = match std::env::var("OBJECTIVE").as_deref() {
        Ok("latency") => Objective::Latency,
        _ => Objective::Throughput,
    };
    let wanted = std::env::var("MODELS").unwrap_or_else(|_| "mlp,resnet18,encoder".to_owned());
    let async_runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let runtime: Arc<dyn Runtime> = Arc::new(OnnxRuntime::open().unwrap());
    println!("{} cores; {objective:?}", cores());
    for name in wanted.split(',') {
        let folders = [root.join("tests/fixtures/store").join(name), root.join("target/bench-models").join(name)];
        let Some(from) = folders.into_iter().find(|folder| folder.is_dir()) else {
            println!("{name}: left out, its files are not there");
            continue;
        };
        let store = tempfile::tempdir().unwrap();
        assert!(Command::new("cp").arg("-r").arg(from).arg(store.path().join(name)).status().unwrap().success());
        let house = House { runtime: runtime.clone(), store: store.path(), name: ModelName::parse(name).unwrap() };
        async_runtime.block_on(house.compare(objective));
    }
}

struct House<'a> {
    runtime: Arc<dyn Runtime>,
    store: &'a Path,
    name: ModelName,
}

impl House<'_> {
    async fn compare(&self, objective: Objective) {
        let begun = Instant::now();
        let mut all: Vec<Measured> = Vec::new();
        for instances in (1..=cores()).filter(|instances| cores().is_multiple_of(*instances)) {
            for optimization_level in LEVELS {
                for (arena, pattern) in [(true, true), (true, false), (false, true), (false, false)] {
                    let layout = ortus::models::Layout { instances, intra_threads: cores() / instances };
                    let memory = MemorySettings { arena, pattern };
                    let setup = Setup { layout, optimization_level, memory };
                    for batch_size in BATCHES {
                        all.extend(self.measured(setup, batch_size, objective).await);
                    }
                }
            }
        }
        let sweep = begun.elapsed();
        let Some(best) = all.iter().max_by(|one, two| value(one, objective).total_cmp(&value(two, objective))) else {
            println!("{}: nothing could be measured", self.name);
            return;
        };
        let begun = Instant::now();
        let mut settings = settings();
        settings.tuning.objective = objective;
        let model = self.load(settings).await;
        let tuner = begun.elapsed();
        let tuned = model.tuned.clone().unwrap_or_else(|| panic!("not tuned: {:?}", model.untuned));
        drop(model);
        let (mut of_best, mut of_tuner) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            for (one, figures) in [(best, &mut of_best), (&tuned.chosen, &mut of_tuner)] {
                let again = self.measured(one.setup, one.batch_size.unwrap_or(1), objective).await;
                figures.extend(again.map(|again| value(&again, objective)));
            }
        }
        println!("{}: {} candidates in {:.1} s", self.name, all.len(), sweep.as_secs_f64());
        print_one("  sweep", best);
        print_one("  tuner", &tuned.chosen);
        println!(
            "  tuner: {} candidates measured, {:.1} s, with the load {:.1} s; by turns {:.3} of the sweep's best",
            tuned.measured.len(),
            tuned.took.as_secs_f64(),
            tuner.as_secs_f64(),
            median(&mut of_tuner) / median(&mut of_best)
        );
    }

    /// One candidate: a load whose settings name it all has nothing else to measure.
    async fn measured(&self, setup: Setup, batch_size: usize, objective: Objective) -> Option<Measured> {
        let mut settings = settings();
        settings.instances = Some(setup.layout.instances);
        settings.intra_threads = Some(setup.layout.intra_threads);
        settings.optimization_level = setup.optimization_level;
        settings.optimization_level_is_set = true;
        settings.memory_arena = Some(setup.memory.arena);
        settings.memory_pattern = Some(setup.memory.pattern);
        settings.batch.max_batch_size = batch_size;
        settings.max_batch_size_is_set = true;
        settings.tuning.objective = objective;
        Some(self.load(settings).await.tuned.as_ref()?.chosen)
    }

    async fn load(&self, settings: ModelSettings) -> Arc<LoadedModel> {
        let store = StoreSettings {
            models_dir: self.store.to_owned(),
            autoload: true,
            poll_interval: None,
            max_model_bytes: 4 << 30,
            max_loaded_memory: None,
            optimized_dir: None,
            reserve_bytes: 0,
        };
        let (tasks, limits) = (Tasks::new(), PipelineLimits::default());
        let manager = ModelManager::new(self.runtime.clone(), tasks, store, settings, limits, Stats::default());
        let model = manager.get_or_load(&self.name, None).await.unwrap();
        manager.close().await;
        model
    }
}

fn settings() -> ModelSettings {
    let mut settings = ModelSettings { warmup_iterations: 0, ..ModelSettings::default() };
    settings.device.device_type = DeviceType::Cpu;
    settings.tuning.tune = true;
    settings
}

fn value(one: &Measured, objective: Objective) -> f64 {
    match objective {
        Objective::Throughput => one.rows_per_second,
        Objective::Latency => 1.0 / one.p99.as_secs_f64(),
    }
}

fn median(all: &mut [f64]) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn print_one(what: &str, one: &Measured) {
    let Setup { layout, optimization_level, memory } = one.setup;
    println!(
        "{what}: {} x {} threads, batch {:?}, {optimization_level:?}, arena {}, pattern {}: {:.1} rows/s, p99 {:.2} ms",
        layout.instances,
        layout.intra_threads,
        one.batch_size,
        memory.arena,
        memory.pattern,
        one.rows_per_second,
        one.p99.as_secs_f64() * 1e3
    );
}
