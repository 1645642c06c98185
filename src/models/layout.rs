//! How many instances a model gets and how many threads a run of each, and how large its batches may be: what is chosen
//! without measuring, what there is to measure, and what follows from how far joining pays.
//!
//! Invariants: what the user set stays; what is chosen beside it never makes instances × threads exceed the cores. Pure:
//! knows no session, clock or file.

use super::ModelSettings;
use super::manifest::INSTANCES_MAX;
use crate::batching::worth::Worth;
use crate::batching::{BatchSettings, Joining};
use crate::runtime::{GraphFacts, MemorySettings, OptimizationLevel, TENSORRT};
use serde::{Deserialize, Serialize};

/// Instances that run at the same time, each with this many threads a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Layout {
    pub instances: usize,
    pub intra_threads: usize,
}

/// All that sessions are built by, where the device is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Setup {
    pub layout: Layout,
    pub optimization_level: OptimizationLevel,
    pub memory: MemorySettings,
}

/// Layouts that are measured at most: each is a load of its own.
const LAYOUTS_MAX: usize = 6;

/// Below this many weights, used once for each row, a run is a few microseconds: a second thread would take longer to wake
/// than it has to do. A net of 32-64-64-8 runs in 5 to 8 µs with one thread as with two.
const TINY_PARAMETERS: u64 = 64 << 10;

/// No file with less than [`TINY_PARAMETERS`] as 32-bit floats need be larger: twice what the weights take.
const TINY_BYTES: u64 = 8 * TINY_PARAMETERS;

/// Whether a file of this size may hold a tiny model. What it does hold is known when it has been read.
pub(super) fn may_be_tiny(size_bytes: u64) -> bool {
    size_bytes < TINY_BYTES
}

/// Whether one thread does a run of it best: a small file, few weights, and no operator that is known to use them more than
/// once for a row, as convolutions and loops do. Where a format does not tell, the size of the file decides.
pub(super) fn is_tiny(facts: &GraphFacts) -> bool {
    may_be_tiny(facts.size_bytes)
        && facts.num_parameters.is_none_or(|parameters| parameters < TINY_PARAMETERS)
        && !facts.repeats_weights
}

/// The layout without measuring: one instance with all cores, for the least latency at the same throughput; a tiny model has
/// one thread a run. What the settings name is kept, and the rest fills the cores.
pub(super) fn chosen(settings: &ModelSettings, cores: usize, tiny: bool) -> Layout {
    let cores = cores.max(1);
    let threads = |instances: usize| if tiny { 1 } else { (cores / instances).max(1) };
    match (settings.instances.map(bounded), settings.intra_threads) {
        (Some(instances), Some(threads)) => Layout { instances, intra_threads: threads.max(1) },
        (Some(instances), None) => Layout { instances, intra_threads: threads(instances) },
        // One thread of a tiny model answers more than the doors bring.
        (None, Some(threads)) if tiny => Layout { instances: 1, intra_threads: threads.max(1) },
        (None, Some(threads)) => Layout { instances: filling(cores, threads), intra_threads: threads.max(1) },
        (None, None) => Layout { instances: 1, intra_threads: threads(1) },
    }
}

/// The layouts worth measuring, with fewer instances first: those that fill the cores evenly. What the settings name is not
/// varied. Never empty.
pub(super) fn candidates(settings: &ModelSettings, cores: usize) -> Vec<Layout> {
    let cores = cores.max(1);
    let all: Vec<Layout> = match (settings.instances.map(bounded), settings.intra_threads.map(|threads| threads.max(1)))
    {
        (Some(instances), Some(intra_threads)) => vec![Layout { instances, intra_threads }],
        (Some(instances), None) => {
            let threads = divisors((cores / instances).max(1)).rev();
            threads.map(|intra_threads| Layout { instances, intra_threads }).collect()
        }
        (None, Some(intra_threads)) => {
            divisors(filling(cores, intra_threads)).map(|instances| Layout { instances, intra_threads }).collect()
        }
        (None, None) => {
            let layout = |instances| Layout { instances, intra_threads: cores / instances };
            divisors(cores).filter(|instances| *instances <= INSTANCES_MAX).map(layout).collect()
        }
    };
    let last = all.len() - 1;
    if last < LAYOUTS_MAX {
        return all;
    }
    // Both ends and what lies evenly between them.
    (0..LAYOUTS_MAX).filter_map(|place| all.get(place * last / (LAYOUTS_MAX - 1)).copied()).collect()
}

/// The rows of a run worth measuring, ascending; never empty. `None`: the graph's own number, or what one request brings.
/// `row_tokens` are those of a row that is measured, where rows are padded to one length.
pub(super) fn batches(joining: Joining, settings: &ModelSettings, row_tokens: Option<usize>) -> Vec<Option<usize>> {
    let by_tokens = row_tokens.map_or(usize::MAX, |tokens| settings.batch.max_batch_tokens / tokens.max(1));
    let most = settings.batch.max_batch_size.min(by_tokens).max(1);
    let is_set = !is_joining_open(settings, row_tokens.is_some());
    match joining {
        Joining::Alone | Joining::Fixed(_) => vec![None],
        Joining::Rows if is_set => vec![Some(most)],
        Joining::Rows => {
            let doubled = std::iter::successors(Some(1usize), |rows| rows.checked_mul(2));
            doubled.take_while(|rows| *rows < most).chain([most]).map(Some).collect()
        }
    }
}

/// The graph levels worth measuring; the first is what holds without measuring. A level that is set is not varied. A file in
/// ONNX Runtime's own format is optimised already, and TensorRT builds engines of its own for minutes.
pub(super) fn levels(settings: &ModelSettings, facts: &GraphFacts) -> Vec<OptimizationLevel> {
    let first = settings.optimization_level;
    let has_engines = facts.execution.registered.iter().any(|name| name == TENSORRT);
    let is_open = !settings.optimization_level_is_set && facts.format != "ort" && !has_engines;
    let all =
        [OptimizationLevel::Aggressive, OptimizationLevel::Balanced, OptimizationLevel::Basic, OptimizationLevel::None];
    std::iter::once(first).chain(all.into_iter().filter(|level| is_open && *level != first)).collect()
}

/// The same of working memory; other devices than the CPU have theirs managed otherwise.
pub(super) fn memories(settings: &ModelSettings, facts: &GraphFacts) -> Vec<MemorySettings> {
    let first = settings.memory();
    let all = [(true, true), (true, false), (false, true), (false, false)];
    let others = all.into_iter().map(|(arena, pattern)| MemorySettings { arena, pattern }).filter(|memory| {
        *memory != first
            && facts.device == "cpu"
            && settings.memory_arena.is_none_or(|arena| arena == memory.arena)
            && settings.memory_pattern.is_none_or(|pattern| pattern == memory.pattern)
    });
    std::iter::once(first).chain(others).collect()
}

/// Whether the settings leave open how many rows share a run. `padded`: rows are padded to one length.
pub(super) fn is_joining_open(settings: &ModelSettings, padded: bool) -> bool {
    !(settings.max_batch_size_is_set || (padded && settings.max_batch_tokens_is_set))
}

/// The settings of batches where joining pays as far as `worth` says, and what to say of it; empty where there is nothing.
/// What is set stays, and a preferred size is never out of reach. `row_tokens` are those of a row that was measured, where
/// rows are padded to one length.
pub(super) fn joined_as_far_as_it_pays(
    worth: &Worth,
    row_tokens: Option<usize>,
    settings: &ModelSettings,
) -> (BatchSettings, String) {
    let mut batch = settings.batch.clone();
    let Some(rows) = worth.rows.filter(|_| is_joining_open(settings, row_tokens.is_some())) else {
        return (batch, String::new());
    };
    let rows = rows.max(batch.batch_size.unwrap_or(1));
    match row_tokens {
        None if rows < batch.max_batch_size => {
            batch.max_batch_size = rows;
            let words = match rows {
                1 => "; more than one row at once gains nothing".to_owned(),
                rows => format!("; more than {rows} rows at once gain nothing"),
            };
            (batch, words)
        }
        // A run's time follows its tokens, not its rows: short rows may be more at the same latency.
        Some(tokens) if rows.saturating_mul(tokens) < batch.max_batch_tokens => {
            let tokens = rows.saturating_mul(tokens);
            batch.max_batch_tokens = tokens;
            (batch, format!("; more than {tokens} tokens at once gain nothing"))
        }
        None | Some(_) => (batch, String::new()),
    }
}

fn bounded(instances: usize) -> usize {
    instances.clamp(1, INSTANCES_MAX)
}

fn filling(cores: usize, threads: usize) -> usize {
    bounded(cores / threads.max(1))
}

fn divisors(number: usize) -> impl DoubleEndedIterator<Item = usize> {
    (1..=number).filter(move |divisor| number.is_multiple_of(*divisor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Execution;
    use proptest::prelude::*;

    fn settings(instances: Option<usize>, intra_threads: Option<usize>) -> ModelSettings {
        ModelSettings { instances, intra_threads, ..ModelSettings::default() }
    }

    fn pair(layout: Layout) -> (usize, usize) {
        (layout.instances, layout.intra_threads)
    }

    #[test]
    fn without_measuring_the_cores_are_filled_but_for_tiny_models() {
        #[track_caller]
        fn check(instances: Option<usize>, threads: Option<usize>, large: (usize, usize), tiny: (usize, usize)) {
            let settings = settings(instances, threads);
            assert_eq!((pair(chosen(&settings, 8, false)), pair(chosen(&settings, 8, true))), (large, tiny));
        }
        check(None, None, (1, 8), (1, 1));
        check(Some(2), None, (2, 4), (2, 1));
        check(Some(3), None, (3, 2), (3, 1));
        check(Some(20), None, (20, 1), (20, 1));
        check(None, Some(1), (8, 1), (1, 1));
        check(None, Some(3), (2, 3), (1, 3));
        check(None, Some(16), (1, 16), (1, 16));
        check(Some(4), Some(4), (4, 4), (4, 4));
    }

    #[test]
    fn a_model_is_tiny_by_its_weights_and_what_is_done_with_them() {
        let facts = |size_bytes, num_parameters, repeats_weights| GraphFacts {
            size_bytes,
            num_parameters,
            repeats_weights,
            ..GraphFacts::default()
        };
        assert!(is_tiny(&facts(30_000, Some(7_000), false)));
        assert!(is_tiny(&facts(30_000, None, false)));
        assert!(!is_tiny(&facts(30_000, Some(7_000), true)));
        assert!(!is_tiny(&facts(90_000, Some(80_000), false)));
        assert!(!is_tiny(&facts(900_000, None, false)));
    }

    #[test]
    fn candidates_are_the_even_ways_to_fill_the_cores() {
        let pairs = |instances, threads, cores| -> Vec<(usize, usize)> {
            candidates(&settings(instances, threads), cores).into_iter().map(pair).collect()
        };
        assert_eq!(pairs(None, None, 2), [(1, 2), (2, 1)]);
        assert_eq!(pairs(None, None, 1), [(1, 1)]);
        assert_eq!(pairs(None, None, 6), [(1, 6), (2, 3), (3, 2), (6, 1)]);
        assert_eq!(pairs(None, None, 64), [(1, 64), (2, 32), (4, 16), (8, 8), (16, 4), (64, 1)]);
        assert_eq!(pairs(Some(2), None, 8), [(2, 4), (2, 2), (2, 1)]);
        assert_eq!(pairs(None, Some(2), 8), [(1, 2), (2, 2), (4, 2)]);
        assert_eq!(pairs(Some(3), Some(7), 8), [(3, 7)]);
    }

    #[test]
    fn levels_and_memory_are_varied_where_they_are_open() {
        let facts = |format, device: &str, provider: &str| GraphFacts {
            format,
            device: device.into(),
            execution: Execution { registered: vec![provider.into()], ..Execution::default() },
            ..GraphFacts::default()
        };
        let (cpu, cuda) =
            (facts("onnx", "cpu", "CPUExecutionProvider"), facts("onnx", "cuda:0", "CUDAExecutionProvider"));
        let open = ModelSettings::default();
        assert_eq!((levels(&open, &cpu).len(), memories(&open, &cpu).len()), (4, 4));
        assert_eq!(levels(&open, &cpu)[0], OptimizationLevel::Aggressive);
        assert_eq!((levels(&open, &cuda).len(), memories(&open, &cuda)), (4, vec![MemorySettings::default()]));
        assert_eq!(levels(&open, &facts("onnx", "cuda:0", "TensorrtExecutionProvider")).len(), 1);
        assert_eq!(levels(&open, &facts("ort", "cpu", "CPUExecutionProvider")).len(), 1);
        let set = ModelSettings {
            optimization_level: OptimizationLevel::Basic,
            optimization_level_is_set: true,
            memory_arena: Some(false),
            ..open
        };
        assert_eq!(levels(&set, &cpu), [OptimizationLevel::Basic]);
        let patterns: Vec<_> = memories(&set, &cpu).iter().map(|memory| (memory.arena, memory.pattern)).collect();
        assert_eq!(patterns, [(false, true), (false, false)]);
    }

    #[test]
    fn batches_double_up_to_the_most_where_rows_join() {
        let of = |most, is_set| {
            let mut settings = ModelSettings { max_batch_size_is_set: is_set, ..ModelSettings::default() };
            settings.batch.max_batch_size = most;
            batches(Joining::Rows, &settings, None)
        };
        assert_eq!(of(16, false), [1, 2, 4, 8, 16].map(Some));
        assert_eq!(of(12, false), [1, 2, 4, 8, 12].map(Some));
        assert_eq!(of(1, false), [Some(1)]);
        assert_eq!(of(12, true), [Some(12)]);
        for joining in [Joining::Alone, Joining::Fixed(4)] {
            assert_eq!(batches(joining, &ModelSettings::default(), None), [None]);
        }
        let mut settings = ModelSettings::default();
        settings.batch.max_batch_tokens = 300;
        assert_eq!(batches(Joining::Rows, &settings, Some(64)), [1, 2, 4].map(Some));
        settings.max_batch_tokens_is_set = true;
        assert_eq!(batches(Joining::Rows, &settings, Some(64)), [Some(4)]);
        assert_eq!(batches(Joining::Rows, &settings, Some(640)), [Some(1)]);
    }

    #[test]
    fn batches_are_no_larger_than_pays_and_what_is_set_stays() {
        #[track_caller]
        fn check(
            rows: Option<usize>,
            row_tokens: Option<usize>,
            set: fn(&mut ModelSettings),
            expected: (usize, usize, &str),
        ) {
            let mut settings = ModelSettings::default();
            set(&mut settings);
            let worth = Worth { rows, row_bytes: None };
            let (batch, words) = joined_as_far_as_it_pays(&worth, row_tokens, &settings);
            assert_eq!((batch.max_batch_size, batch.max_batch_tokens, words.as_str()), expected);
        }
        let tokens = 16_384;
        check(None, None, |_| {}, (16, tokens, ""));
        check(Some(4), None, |_| {}, (4, tokens, "; more than 4 rows at once gain nothing"));
        check(Some(1), None, |_| {}, (1, tokens, "; more than one row at once gains nothing"));
        check(Some(4), None, |settings| settings.max_batch_size_is_set = true, (16, tokens, ""));
        check(
            Some(4),
            None,
            |settings| settings.max_batch_tokens_is_set = true,
            (4, tokens, "; more than 4 rows at once gain nothing"),
        );
        check(
            Some(4),
            None,
            |settings| settings.batch.batch_size = Some(6),
            (6, tokens, "; more than 6 rows at once gain nothing"),
        );
        check(Some(4), None, |settings| settings.batch.batch_size = Some(20), (16, tokens, ""));
        // Texts are bounded in tokens.
        check(Some(4), Some(32), |_| {}, (16, 128, "; more than 128 tokens at once gain nothing"));
        check(
            Some(4),
            Some(32),
            |settings| settings.batch.batch_size = Some(8),
            (16, 256, "; more than 256 tokens at once gain nothing"),
        );
        check(Some(4), Some(32), |settings| settings.max_batch_size_is_set = true, (16, tokens, ""));
        check(Some(4), Some(32), |settings| settings.max_batch_tokens_is_set = true, (16, tokens, ""));
        check(None, Some(32), |_| {}, (16, tokens, ""));
    }

    proptest! {
        #[test]
        fn what_is_set_stays_and_what_is_chosen_fits_the_cores(
            instances in proptest::option::of(1usize..300), threads in proptest::option::of(1usize..300),
            cores in 1usize..300, tiny: bool,
        ) {
            let settings = settings(instances, threads);
            let all = candidates(&settings, cores);
            prop_assert!((1..=LAYOUTS_MAX).contains(&all.len()));
            for layout in all.into_iter().chain([chosen(&settings, cores, tiny)]) {
                let (count, each) = pair(layout);
                prop_assert!(count >= 1 && each >= 1);
                prop_assert!(instances.is_none_or(|instances| count == instances.min(INSTANCES_MAX)));
                prop_assert!(threads.is_none_or(|threads| each == threads));
                // Only what was set can exceed the cores, and then nothing is added to it.
                let least = instances.map_or(1, |instances| instances.min(INSTANCES_MAX)) * threads.unwrap_or(1);
                prop_assert!(count * each <= cores.max(least), "{count} x {each}");
            }
        }
    }
}
