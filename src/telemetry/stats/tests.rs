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
