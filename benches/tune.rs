//! The tuner's choice against an exhaustive sweep of the same candidates, with real models: the MLP of the fixtures, and
//! `encoder` and `resnet18` of `target/bench-models` where they are there.
//!
//! Every combination of layout, batch up to `LARGEST` (8), graph level and arena is loaded and measured as tuning would measure
//! it, by naming all of it in the settings; memory patterns stay on, for the tuner too. Then the three best of the sweep, since
//! chance makes one of them first, and the tuner's choice are measured by turns. Printed is a table: what the sweep and the
//! tuner took, both choices, the medians of the turns and their ratio; 1 is as good, 0.95 the aim.
//!
//! `MODELS=mlp,resnet18` chooses models, `OBJECTIVE=latency` what is best, `SECONDS` (150) when a model's sweep ends though
//! candidates are left, which the table then says. Three models take at most three times the sweep, 45 s and 40 s: under 12
//! minutes. Run it on an idle machine.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measurement that cannot go on says so"
)]

use ortus::models::{
    Layout, Measured, ModelManager, ModelName, ModelSettings, Objective, Setup, StoreSettings, TrialLoad, Tuned,
    TuningSettings,
};
use ortus::pipelines::PipelineLimits;
use ortus::runtime::onnx::OnnxRuntime;
use ortus::runtime::{DeviceType, MemorySettings, OptimizationLevel, Runtime};
use ortus::tasks::{Tasks, cores};
use ortus::telemetry::Stats;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TURNS: usize = 5;
/// Of the sweep's candidates, as many of the best are measured again.
const BEST: usize = 3;
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
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
    };
    let (largest, sweep_max) = (number("LARGEST", 8) as usize, Duration::from_secs(number("SECONDS", 150)));
    let unit = if objective == Objective::Latency { "p99 µs" } else { "rows/s" };
    println!(
        "{} cores; {objective:?}; batches up to {largest}; figures are {unit}, medians of {TURNS} turns\n",
        cores()
    );
    println!(
        "{:10} {:>10} {:>8} {:>8} {:>9}  {:44} {:>10}  {:44} {:>10} {:>6}",
        "MODEL",
        "CANDIDATES",
        "SWEEP S",
        "TUNER S",
        "MEASURED",
        "SWEEP'S BEST",
        "AGAIN",
        "TUNER'S CHOICE",
        "AGAIN",
        "RATIO"
    );
    for name in wanted.split(',') {
        let folders = [root.join("tests/fixtures/store").join(name), root.join("target/bench-models").join(name)];
        let Some(from) = folders.into_iter().find(|folder| folder.is_dir()) else {
            println!("{name}: left out, its files are not there");
            continue;
        };
        let store = tempfile::tempdir().unwrap();
        assert!(Command::new("cp").arg("-r").arg(from).arg(store.path().join(name)).status().unwrap().success());
        let name = ModelName::parse(name).unwrap();
        let house = House { runtime: runtime.clone(), store: store.path(), name, largest, sweep_max };
        async_runtime.block_on(house.compare(objective));
    }
}

struct House<'a> {
    runtime: Arc<dyn Runtime>,
    store: &'a Path,
    name: ModelName,
    largest: usize,
    sweep_max: Duration,
}

impl House<'_> {
    /// All that is measured. The level comes first: what is kept of a level for the next load is of no use to another.
    fn candidates(&self) -> Vec<(Setup, usize)> {
        let mut all = Vec::new();
        let doubled =
            || std::iter::successors(Some(1usize), |rows| Some(rows * 2)).take_while(|rows| *rows <= self.largest);
        for optimization_level in LEVELS {
            for arena in [true, false] {
                for instances in (1..=cores()).filter(|instances| cores().is_multiple_of(*instances)) {
                    let layout = Layout { instances, intra_threads: cores() / instances };
                    let memory = MemorySettings { arena, pattern: true };
                    all.extend(doubled().map(|rows| (Setup { layout, optimization_level, memory }, rows)));
                }
            }
        }
        all
    }

    async fn compare(&self, objective: Objective) {
        let begun = Instant::now();
        let (candidates, mut all) = (self.candidates(), Vec::<Measured>::new());
        let mut tried = 0;
        for (setup, batch_size) in &candidates {
            if begun.elapsed() > self.sweep_max {
                break;
            }
            tried += 1;
            all.extend(self.measured(*setup, *batch_size, objective).await);
        }
        let sweep = begun.elapsed();
        all.sort_by(|one, two| value(two, objective).total_cmp(&value(one, objective)));
        all.truncate(BEST);
        let begun = Instant::now();
        let mut settings = settings(objective);
        settings.batch.max_batch_size = self.largest;
        let tuned = self.load(settings).await.unwrap_or_else(|| panic!("{} is not tuned", self.name));
        let tuner = begun.elapsed();
        // The tuner's last: which comes first makes no difference over turns that begin elsewhere each time.
        let contestants: Vec<Measured> = all.into_iter().chain([tuned.chosen]).collect();
        let mut figures = vec![Vec::new(); contestants.len()];
        for turn in 0..TURNS {
            for place in (0..contestants.len()).map(|offset| (turn + offset) % contestants.len()) {
                let one = &contestants[place];
                let again = self.measured(one.setup, one.batch_size.unwrap_or(1), objective).await;
                figures[place].extend(again.map(|again| value(&again, objective)));
            }
        }
        let mut medians: Vec<f64> = figures.iter_mut().map(|figures| median(figures)).collect();
        let of_tuner = medians.pop().unwrap();
        let best = (0..medians.len()).max_by(|one, two| medians[*one].total_cmp(&medians[*two]));
        let Some(best) = best else {
            println!("{:10} nothing could be measured", self.name.as_str());
            return;
        };
        println!(
            "{:10} {:>10} {:>8.1} {:>8.1} {:>9}  {:44} {:>10.1}  {:44} {:>10.1} {:>6.3}",
            self.name.as_str(),
            candidates.len(),
            sweep.as_secs_f64(),
            tuner.as_secs_f64(),
            tuned.measured.len(),
            described(&contestants[best]),
            shown(medians[best], objective),
            described(&tuned.chosen),
            shown(of_tuner, objective),
            of_tuner / medians[best]
        );
        if tried < candidates.len() {
            println!("{:10} NOT EXHAUSTIVE: time for {tried} of {} candidates", "", candidates.len());
        }
    }

    /// One candidate: a load whose settings name it all has nothing else to measure.
    async fn measured(&self, setup: Setup, batch_size: usize, objective: Objective) -> Option<Measured> {
        let mut settings = settings(objective);
        settings.instances = Some(setup.layout.instances);
        settings.intra_threads = Some(setup.layout.intra_threads);
        settings.optimization_level = setup.optimization_level;
        settings.optimization_level_is_set = true;
        settings.memory_arena = Some(setup.memory.arena);
        settings.memory_pattern = Some(setup.memory.pattern);
        settings.batch.max_batch_size = batch_size;
        settings.max_batch_size_is_set = true;
        Some(self.load(settings).await?.chosen)
    }

    /// What a load found.
    async fn load(&self, settings: ModelSettings) -> Option<Tuned> {
        let store = StoreSettings {
            models_dir: self.store.to_owned(),
            autoload: true,
            poll_interval: None,
            max_model_bytes: 4 << 30,
            max_loaded_memory: None,
            optimized_dir: None,
            reserve_bytes: 0,
            trial_load: TrialLoad::Off,
            trial_load_timeout: Duration::ZERO,
        };
        let (tasks, limits) = (Tasks::new(), PipelineLimits::default());
        let manager = ModelManager::new(self.runtime.clone(), tasks, store, settings, limits, Stats::default());
        let model = manager.get_or_load(&self.name, None).await.unwrap();
        let tuned = model.tuned.clone();
        // Closing waits for whoever holds it.
        drop(model);
        manager.close().await;
        tuned
    }
}

fn settings(objective: Objective) -> ModelSettings {
    let mut settings = ModelSettings { warmup_iterations: 0, memory_pattern: Some(true), ..ModelSettings::default() };
    settings.device.device_type = DeviceType::Cpu;
    // Insisting takes no figure that an earlier load kept.
    settings.tuning = TuningSettings { tune: true, insists: true, objective, ..settings.tuning };
    settings
}

/// Larger is better.
fn value(one: &Measured, objective: Objective) -> f64 {
    match objective {
        Objective::Throughput => one.rows_per_second,
        Objective::Latency => 1.0 / one.p99.as_secs_f64(),
    }
}

fn shown(value: f64, objective: Objective) -> f64 {
    match objective {
        Objective::Throughput => value,
        Objective::Latency => 1e6 / value,
    }
}

fn median(all: &mut [f64]) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

fn described(one: &Measured) -> String {
    let Setup { layout, optimization_level, memory } = one.setup;
    let arena = if memory.arena { "arena" } else { "no arena" };
    let batch = one.batch_size.map_or_else(|| "-".to_owned(), |rows| rows.to_string());
    format!("{} x {} threads, batch {batch}, {optimization_level:?}, {arena}", layout.instances, layout.intra_threads)
}
