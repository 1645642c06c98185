//! Engines: what TensorRT compiles of a graph, for minutes, and what they are good for besides the graph's files.

use serde::{Deserialize, Serialize};

/// What an engine depends on besides the graph. Each is a text for people; another text is another engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineKey {
    /// TensorRT's version, or that it is unknown: it refuses engines of other versions itself.
    pub tensorrt: String,
    /// The library that hands graphs to TensorRT.
    pub runtime: String,
    /// The GPU's name and compute capability.
    pub gpu: String,
    /// Precision, shapes, workspace and the graph's level, as the library is told them.
    pub options: String,
    /// Whether TensorRT learns the shapes from the runs, since more than the rows is free: it then builds an engine anew, and
    /// writes it again, when a run is larger or smaller than all before.
    pub learns_shapes: bool,
}

impl EngineKey {
    /// The first thing that `now` has otherwise, in words; `None` where all agrees.
    pub fn difference(&self, now: &EngineKey) -> Option<String> {
        let pairs = [
            ("TensorRT", &self.tensorrt, &now.tensorrt),
            ("the runtime", &self.runtime, &now.runtime),
            ("the GPU", &self.gpu, &now.gpu),
            ("what TensorRT is told", &self.options, &now.options),
        ];
        let found = pairs.into_iter().find(|(_, then, now)| then != now);
        found.map(|(what, then, now)| format!("{what} was \"{then}\" and is \"{now}\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_is_named() {
        let key = |tensorrt: &str, options: &str| EngineKey {
            tensorrt: tensorrt.into(),
            runtime: "onnxruntime 1".into(),
            gpu: "g".into(),
            options: options.into(),
            learns_shapes: false,
        };
        let old = key("10.1.0", "trt_fp16_enable=0");
        assert_eq!(old.difference(&old), None);
        assert_eq!(
            old.difference(&key("10.2.0", "trt_fp16_enable=1")).as_deref(),
            Some("TensorRT was \"10.1.0\" and is \"10.2.0\"")
        );
        assert!(old.difference(&key("10.1.0", "trt_fp16_enable=1")).is_some_and(|text| text.contains("fp16_enable=1")));
    }
}
