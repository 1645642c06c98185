//! Where the time of runs goes, by operator and by node: what ONNX Runtime timed, summed up.
//!
//! ONNX Runtime writes a trace in Chrome's format, with an event for each node of each run; runs that only warm up are left out.
//! A loop's or branch's time holds that of its body.

use super::RuntimeError;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

/// What so many runs spent their time on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Profile {
    pub runs: usize,
    /// Of all runs together.
    pub time: Duration,
    /// The longest first.
    pub operators: Vec<OperatorTime>,
    /// The longest first.
    pub nodes: Vec<NodeTime>,
}

/// All nodes of an operator that one provider runs.
#[derive(Debug, Clone, PartialEq)]
pub struct OperatorTime {
    pub operator: String,
    pub provider: String,
    pub nodes: usize,
    pub calls: u64,
    pub time: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NodeTime {
    /// As ONNX Runtime calls it after optimising the graph.
    pub name: String,
    pub operator: String,
    pub provider: String,
    pub calls: u64,
    pub time: Duration,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    cat: Cow<'a, str>,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    /// Microseconds.
    #[serde(default)]
    ts: u64,
    #[serde(default)]
    dur: u64,
    #[serde(borrow, default)]
    args: Arguments<'a>,
}

#[derive(Default, Deserialize)]
struct Arguments<'a> {
    #[serde(borrow, default)]
    op_name: Cow<'a, str>,
    #[serde(borrow, default)]
    provider: Cow<'a, str>,
}

/// Sums up the traces of a session's graphs, of each of which the first `warm_ups` runs do not count.
///
/// # Errors
/// Where a trace is not what ONNX Runtime writes.
pub fn read(traces: &[String], warm_ups: usize) -> Result<Profile, RuntimeError> {
    let mut profile = Profile::default();
    let mut nodes: BTreeMap<(String, String, String), (u64, Duration)> = BTreeMap::new();
    for trace in traces {
        let events: Vec<Event<'_>> = serde_json::from_str(trace)
            .map_err(|_| RuntimeError::Graph("ONNX Runtime's profile of this graph cannot be read".to_owned()))?;
        let mut runs: Vec<(u64, u64)> =
            events.iter().filter(|event| event.name == "model_run").map(|event| (event.ts, event.dur)).collect();
        runs.sort_unstable();
        let begin = runs.get(warm_ups).map_or(u64::MAX, |(ts, _)| *ts);
        let counted = runs.get(warm_ups..).unwrap_or_default();
        profile.runs = profile.runs.max(counted.len());
        profile.time += Duration::from_micros(counted.iter().map(|(_, dur)| dur).sum());
        for event in events.iter().filter(|event| event.cat == "Node" && event.ts >= begin) {
            let Some(name) = event.name.strip_suffix("_kernel_time") else { continue };
            let key = (name.to_owned(), event.args.op_name.to_string(), event.args.provider.to_string());
            let (calls, time) = nodes.entry(key).or_default();
            *calls += 1;
            *time += Duration::from_micros(event.dur);
        }
    }
    let mut operators: BTreeMap<(&str, &str), OperatorTime> = BTreeMap::new();
    for ((_, operator, provider), (calls, time)) in &nodes {
        let sum = operators.entry((operator, provider)).or_insert_with(|| OperatorTime {
            operator: operator.clone(),
            provider: provider.clone(),
            nodes: 0,
            calls: 0,
            time: Duration::ZERO,
        });
        sum.nodes += 1;
        sum.calls += calls;
        sum.time += *time;
    }
    profile.operators = operators.into_values().collect();
    profile.operators.sort_by_key(|operator| std::cmp::Reverse(operator.time));
    profile.nodes = nodes
        .into_iter()
        .map(|((name, operator, provider), (calls, time))| NodeTime { name, operator, provider, calls, time })
        .collect();
    profile.nodes.sort_by_key(|node| std::cmp::Reverse(node.time));
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, operator: &str, ts: u64, dur: u64) -> String {
        format!(
            r#"{{"cat":"Node","pid":1,"tid":1,"dur":{dur},"ts":{ts},"ph":"X","name":"{name}_kernel_time","args":{{"op_name":"{operator}","provider":"CPUExecutionProvider","node_index":"0","thread_scheduling_stats":{{}}}}}}"#
        )
    }

    fn run(ts: u64, dur: u64) -> String {
        format!(r#"{{"cat":"Session","dur":{dur},"ts":{ts},"ph":"X","name":"model_run","args":{{}}}}"#)
    }

    #[test]
    fn time_is_summed_by_operator_and_node_without_the_warm_up() {
        let events = [
            r#"{"cat":"Session","dur":9,"ts":0,"ph":"X","name":"session_initialization","args":{}}"#.to_owned(),
            node("a", "Conv", 10, 900),
            run(10, 1000),
            node("a", "Conv", 2000, 30),
            node("b", "Conv", 2030, 20),
            node("c", "Relu", 2050, 10),
            run(2000, 70),
            node("a", "Conv", 3000, 40),
            node("b", "Conv", 3040, 10),
            node("c", "Relu", 3050, 10),
            run(3000, 80),
        ];
        let profile = read(&[format!("[{}]", events.join(","))], 1).unwrap();
        assert_eq!((profile.runs, profile.time), (2, Duration::from_micros(150)));
        let operators: Vec<_> = profile
            .operators
            .iter()
            .map(|sum| (sum.operator.as_str(), sum.nodes, sum.calls, sum.time.as_micros()))
            .collect();
        assert_eq!(operators, [("Conv", 2, 4, 100), ("Relu", 1, 2, 20)]);
        assert_eq!(profile.operators[0].provider, "CPUExecutionProvider");
        let nodes: Vec<_> = profile.nodes.iter().map(|node| (node.name.as_str(), node.time.as_micros())).collect();
        assert_eq!(nodes, [("a", 70), ("b", 30), ("c", 20)]);
    }

    #[test]
    fn what_is_no_trace_is_refused_and_an_empty_one_is_empty() {
        assert_eq!(read(&["[]".to_owned()], 1).unwrap(), Profile::default());
        for text in ["", "{}", "[{\"name\":3}]", "[{\"cat\":\"Node\","] {
            assert!(read(&[text.to_owned()], 0).is_err(), "{text}");
        }
    }
}
