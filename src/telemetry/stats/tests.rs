//! Counting as the doors and the instances do it.

use super::*;
use std::borrow::Cow;
use std::time::{Duration, Instant};

fn model() -> (Stats, std::sync::Arc<ModelStats>) {
    let stats = Stats::new(Duration::from_secs(300));
    let model = stats.model("m", 1);
    (stats, model)
}

#[test]
fn every_request_is_counted_once() {
    let (stats, model) = model();
    model.begin(Protocol::V1).finish(200, None);
    model.begin(Protocol::V1).finish(422, Some(Cow::Borrowed("invalid_input")));
    model.begin(Protocol::V2).finish(504, Some(Cow::Borrowed("deadline_exceeded")));
    drop(model.begin(Protocol::V2));
    let mut late = stats.begin(Protocol::V1, Instant::now());
    late.reach(&model);
    assert_eq!(stats.totals()[0].in_flight, 1);
    late.finish(200, None);
    stats.begin(Protocol::V1, Instant::now()).finish(404, Some(Cow::Borrowed("model_not_found")));

    let totals = model.totals();
    let counted: Vec<(&str, u16, u64)> = totals.requests.iter().map(|(p, s, n)| (p.name(), *s, *n)).collect();
    assert_eq!(counted, [("v1", 200, 2), ("v1", 422, 1), ("v2", 499, 1), ("v2", 504, 1)]);
    assert_eq!((totals.answered.count, totals.refused.count), (2, 2));
    let window = model.window();
    assert_eq!(
        window.errors.iter().map(|(code, n)| (&**code, *n)).collect::<Vec<_>>(),
        [("deadline_exceeded", 1), ("invalid_input", 1)]
    );
    assert_eq!(window.cancelled, [1, 1]);
    assert_eq!(window.stages[Stage::Total as usize].count, 2);
    assert_eq!(stats.totals()[0].in_flight, 0);
    assert_eq!(stats.nowhere().totals().requests, [(Protocol::V1, 404, 1)]);
}

/// F84.
#[test]
fn a_panic_while_a_request_runs_is_a_refusal_of_ours() {
    let (_, model) = model();
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _guard = model.begin(Protocol::V1);
        panic!("as a handler might");
    }));
    assert!(unwound.is_err());
    assert_eq!(model.totals().requests, [(Protocol::V1, 500, 1)]);
    assert_eq!(model.window().errors.get("internal_error"), Some(&1));
}

/// F84.
#[test]
fn a_panic_is_counted_once_however_often_it_is_seen() {
    let (stats, model) = model();
    let catch = |work: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
    assert!(catch(&|| {
        let _guard = model.panic_guard();
        panic!("as a run might");
    }));
    assert!(catch(&|| {
        let _guard = stats.panic_guard();
        panic!("as preprocessing might");
    }));
    drop((model.panic_guard(), stats.panic_guard()));
    assert_eq!(stats.panics(), 2);
}

#[test]
fn an_accepted_job_is_a_request_and_no_prediction() {
    let (stats, model) = model();
    model.begin(Protocol::V1).finish(202, None);
    model.begin(Protocol::V1).finish(503, Some(Cow::Borrowed("queue_full")));
    let totals = model.totals();
    assert_eq!(totals.requests, [(Protocol::V1, 202, 1), (Protocol::V1, 503, 1)]);
    assert_eq!((totals.answered.count, totals.refused.count), (0, 1));
    assert_eq!(model.window().stage(Stage::Total).count, 0);
    assert_eq!(stats.totals()[0].in_flight, 0);
}

#[test]
fn a_reset_empties_the_window_and_nothing_else() {
    let (stats, model) = model();
    model.begin(Protocol::V1).finish(200, None);
    model.begin(Protocol::V1).finish(503, Some(Cow::Borrowed("queue_full")));
    model.record_stage(Stage::Inference, Duration::from_millis(3));
    model.record_batch(4, Duration::ZERO, Duration::from_millis(3), Duration::ZERO);
    model.record_cache(CacheKind::Response, false);
    let since = model.window().since;
    model.reset();
    let window = model.window();
    assert!(window.since >= since);
    assert!(window.stages.iter().all(|stage| stage.count == 0), "{window:?}");
    assert!(window.batches.is_empty() && window.errors.is_empty(), "{window:?}");
    assert_eq!(window.cache(CacheKind::Response), (0, 0));
    assert_eq!(model.totals().requests.len(), 2);
    assert_eq!(model.totals().batches.len(), 1);
    let totals = &stats.totals()[0];
    assert_eq!((totals.batches.count, totals.batches.sum), (1, 4));
    assert_eq!(totals.stages[Stage::Inference as usize].count, 1);
}

#[test]
fn versions_are_counted_apart_and_the_model_together() {
    let stats = Stats::new(Duration::from_secs(300));
    let (one, two) = (stats.model("m", 1), stats.model("m", 2));
    one.begin(Protocol::V1).finish(200, None);
    two.begin(Protocol::V1).finish(200, None);
    two.record_load(true);
    two.record_load(false);
    stats.record_eviction("m");
    stats.record_eviction("unknown");
    two.queue_changed(3);
    one.queue_changed(-1);
    assert_eq!(stats.all().iter().map(|model| model.version()).collect::<Vec<_>>(), [1, 2]);
    assert!(std::sync::Arc::ptr_eq(&one, &stats.model("m", 1)));
    stats.keep_versions("m", |version| version == 2);
    assert_eq!(stats.all().len(), 1);
    let totals = &stats.totals()[0];
    assert_eq!((totals.stages[0].count, totals.queued, totals.loads_done, totals.loads_failed), (2, 2, 1, 1));
    assert_eq!(totals.evictions, 1);
    stats.forget("m");
    assert!(stats.all().is_empty() && stats.totals().is_empty());
    // What is still running counts into nothing.
    two.begin(Protocol::V1).finish(200, None);
    assert_eq!(stats.model("m", 2).totals().requests, []);
}

#[test]
fn what_is_recorded_takes_bounded_memory() {
    let (_, model) = model();
    for rows in (1..10_000).chain([usize::MAX, 1 << 40]) {
        model.record_batch(rows, Duration::MAX, Duration::MAX, Duration::MAX);
    }
    assert!(model.totals().batches.len() <= 128 + 64);
    for code in 0..1000 {
        model.begin(Protocol::Grpc).finish(418, Some(Cow::Owned(format!("code_{code}"))));
    }
    let errors = model.window().errors;
    assert_eq!(errors.len(), 65);
    assert_eq!(errors.values().sum::<u64>(), 1000);
    // A status that no route gives is one of ours that nobody listed.
    assert_eq!(model.totals().requests, [(Protocol::Grpc, 500, 1000)]);
}

#[test]
fn counts_of_many_threads_add_up() {
    let (stats, model) = model();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let model = &model;
            scope.spawn(move || {
                for index in 0..500u64 {
                    model.record_stage(Stage::Queue, Duration::from_micros(index));
                    model.queue_changed(1);
                    let guard = model.begin(Protocol::V1);
                    match (thread + index) % 3 {
                        0 => guard.finish(200, None),
                        1 => guard.finish(422, Some(Cow::Borrowed("invalid_input"))),
                        _ => drop(guard),
                    }
                    model.queue_changed(-1);
                }
            });
        }
    });
    let totals = model.totals();
    let requests: u64 = totals.requests.iter().map(|(_, _, count)| count).sum();
    let window = model.window();
    assert_eq!(requests, 2000);
    assert_eq!(totals.answered.count + totals.refused.count + window.cancelled(CancelReason::Disconnected), 2000);
    assert_eq!(window.stage(Stage::Total).count, totals.answered.count);
    assert_eq!(window.stage(Stage::Queue).count, 2000);
    assert_eq!(totals.queue.count, 2000);
    let shared = &stats.totals()[0];
    assert_eq!((shared.in_flight, shared.queued), (0, 0));
}
