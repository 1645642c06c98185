//! The parameters of an inference request that the protocol reserves.

use crate::codec::clip;
use crate::engine::{Parameters, RunOptions, WaitingSettings};
use serde_json::Value as Json;
use std::time::Duration;
use tokio::time::Instant;

/// A parameter that is not taken.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("parameters.{name}: {problem}")]
pub struct ParameterError {
    pub name: String,
    pub problem: &'static str,
}

/// What bounds a request before its parameters say more.
#[derive(Debug, Clone, Copy)]
pub struct RequestBounds {
    pub arrival: Instant,
    /// The longest that it may take from then on.
    pub timeout: Duration,
}

/// Checks the request's reserved parameters and gives deadline and priority. Others are the client's own and mean nothing here.
///
/// Where the model's configuration states a queue policy, `timeout` is what it is for Triton: how long the request may wait for
/// an instance, as far as the policy lets it say so. Elsewhere it bounds the whole request.
///
/// # Errors
/// Where a reserved parameter has no value of its kind, or asks for what is not served.
pub fn options_of(
    parameters: &Parameters,
    bounds: RequestBounds,
    waiting: &WaitingSettings,
) -> Result<RunOptions, ParameterError> {
    let refuse = |name: &str, problem: &'static str| Err(ParameterError { name: clip(name), problem });
    let (mut timeout, mut priority) = (None, None);
    for (name, value) in parameters {
        match name.as_str() {
            "timeout" => match value.as_u64() {
                // 0 asks for the server's own timeout.
                Some(0) => {}
                Some(micros) => timeout = Some(Duration::from_micros(micros)),
                None => return refuse(name, "must be a whole number of microseconds"),
            },
            "priority" => match value.as_u64() {
                Some(value) => priority = Some(value),
                None => return refuse(name, "must be a whole number; 1 is served first, 0 is the default"),
            },
            "sequence_id" | "sequence_start" | "sequence_end" if !is_unset(value) => {
                return refuse(name, "sequences are not served: send what belongs together in one request");
            }
            "headers" => return refuse(name, "the name is reserved; request headers are not passed to models"),
            name if name.starts_with("triton_") => {
                return refuse(name, "names that begin with triton_ are reserved, and none is served");
            }
            name if name.starts_with("shared_memory_") => {
                return refuse(name, "shared memory is not served; send the data in the body");
            }
            _ => {}
        }
    }
    // As Triton has it: a level that the model does not have is the default one.
    let priority = priority.filter(|priority| waiting.levels.is_none_or(|levels| *priority <= u64::from(levels.count)));
    let options = RunOptions::until(bounds.arrival + bounds.timeout).with_priority(priority);
    if waiting.policy(waiting.level(options.priority)).is_some() {
        return Ok(RunOptions { queue_timeout: timeout, ..options });
    }
    let deadline = bounds.arrival + timeout.unwrap_or(bounds.timeout).min(bounds.timeout);
    Ok(RunOptions { deadline, ..options })
}

/// Whether a sequence parameter says that there is no sequence.
fn is_unset(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Bool(value) => !value,
        Json::Number(number) => number.as_u64() == Some(0),
        Json::String(text) => text.is_empty(),
        Json::Array(_) | Json::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Levels, WaitingPolicy};
    use serde_json::json;

    fn bounds() -> RequestBounds {
        RequestBounds { arrival: Instant::now(), timeout: Duration::from_secs(10) }
    }

    #[track_caller]
    fn check_parameters(parameters: Json, expected: Result<Duration, &str>) {
        let bounds = bounds();
        let Json::Object(parameters) = parameters else { panic!("not an object") };
        match (options_of(&parameters, bounds, &WaitingSettings::default()), expected) {
            (Ok(options), Ok(expected)) => assert_eq!(options.deadline - bounds.arrival, expected, "{parameters:?}"),
            (Err(error), Err(words)) => {
                assert!(error.to_string().contains(words), "{error}");
            }
            (got, expected) => panic!("{parameters:?}: got {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_timeout_is_in_microseconds_and_never_above_the_servers() {
        let default = Ok(Duration::from_secs(10));
        check_parameters(json!({}), default);
        check_parameters(json!({"timeout": 0}), default);
        check_parameters(json!({"timeout": 1500}), Ok(Duration::from_micros(1500)));
        check_parameters(json!({"timeout": u64::MAX}), default);
        for bad in [json!(-1), json!(1.5), json!("1"), json!(null)] {
            check_parameters(
                json!({"timeout": bad}),
                Err("parameters.timeout: must be a whole number of microseconds"),
            );
        }
    }

    #[test]
    fn a_stated_policy_makes_the_timeout_one_of_the_queue_and_levels_are_the_models() {
        let levels = Some(Levels { count: 3, default: 2 });
        let policy = WaitingPolicy::default();
        let waiting = WaitingSettings { levels, policy: None, of_level: [(1, policy)].into() };
        let bounds = bounds();
        let options = |parameters: Json| {
            let Json::Object(parameters) = parameters else { panic!("not an object") };
            options_of(&parameters, bounds, &waiting).unwrap()
        };
        let urgent = options(json!({"priority": 1, "timeout": 5}));
        assert_eq!((urgent.priority, urgent.queue_timeout), (1, Some(Duration::from_micros(5))));
        assert_eq!(urgent.deadline, bounds.arrival + bounds.timeout);
        let other = options(json!({"priority": 3, "timeout": 5}));
        assert_eq!((other.priority, other.queue_timeout), (3, None));
        assert_eq!(other.deadline, bounds.arrival + Duration::from_micros(5));
        assert_eq!(options(json!({"priority": 4})).priority, 0);
        assert_eq!(options(json!({})).priority, 0);
    }

    #[test]
    fn reserved_parameters_that_are_not_served_are_refused() {
        let default = Ok(Duration::from_secs(10));
        check_parameters(json!({"priority": 2, "binary_data_output": true, "mine": {"a": [1]}}), default);
        check_parameters(json!({"sequence_id": 0, "sequence_start": false, "sequence_end": false}), default);
        check_parameters(json!({"sequence_id": ""}), default);
        check_parameters(json!({"priority": "high"}), Err("parameters.priority"));
        for (name, value) in [("sequence_id", json!(7)), ("sequence_id", json!("a")), ("sequence_start", json!(true))] {
            check_parameters(json!({name: value}), Err("sequences are not served"));
        }
        for name in ["headers", "triton_enable_empty_final_response", "shared_memory_region"] {
            check_parameters(json!({name: 1}), Err(name));
        }
        check_parameters(json!({format!("triton_{}", "x".repeat(5000)): 1}), Err("parameters.triton_x"));
    }
}
