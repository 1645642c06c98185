//! A graph in the form that a runtime made of it, written to disk so that the next load need not make it again: what that form
//! depends on, and where its files are.

use super::GraphFacts;
use std::collections::BTreeMap;

/// One graph that was written.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct WrittenGraph {
    /// Of the graph that it was made of.
    pub facts: GraphFacts,
    /// The written graph's nodes by their operator.
    pub operators: BTreeMap<String, u64>,
}

/// What a written form is good for, besides the graph and the level that it was made of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FormKey {
    /// The library that made it.
    pub runtime: String,
    /// The instructions of the processor: layouts are chosen for them.
    pub cpu: String,
    /// The device and its provider.
    pub device: String,
}

impl FormKey {
    /// The first thing that `now` has otherwise, in words; `None` where all agrees.
    pub fn difference(&self, now: &FormKey) -> Option<String> {
        let pairs = [
            ("the runtime", &self.runtime, &now.runtime),
            ("the processor", &self.cpu, &now.cpu),
            ("the device", &self.device, &now.device),
        ];
        pairs
            .into_iter()
            .find(|(_, then, now)| then != now)
            .map(|(what, then, now)| format!("{what} was {then} and is {now}"))
    }
}

/// The instructions of this machine's processor that ONNX Runtime chooses layouts and kernels by.
pub(super) fn processor() -> String {
    let mut words = vec![std::env::consts::ARCH];
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            ("sse4.1", std::is_x86_feature_detected!("sse4.1")),
            ("avx", std::is_x86_feature_detected!("avx")),
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("fma", std::is_x86_feature_detected!("fma")),
            ("f16c", std::is_x86_feature_detected!("f16c")),
            ("avx512f", std::is_x86_feature_detected!("avx512f")),
            ("avx512bw", std::is_x86_feature_detected!("avx512bw")),
            ("avx512dq", std::is_x86_feature_detected!("avx512dq")),
            ("avx512vl", std::is_x86_feature_detected!("avx512vl")),
            ("avx512vnni", std::is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", std::is_x86_feature_detected!("avx512bf16")),
            ("avxvnni", std::is_x86_feature_detected!("avxvnni")),
        ];
        words.extend(found.into_iter().filter(|(_, has)| *has).map(|(name, _)| name));
    }
    #[cfg(target_arch = "aarch64")]
    {
        let found = [
            ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
            ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
            ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
            ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
            ("sve", std::arch::is_aarch64_feature_detected!("sve")),
        ];
        words.extend(found.into_iter().filter(|(_, has)| *has).map(|(name, _)| name));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_is_named() {
        let key = |runtime: &str, cpu: &str| FormKey { runtime: runtime.into(), cpu: cpu.into(), device: "cpu".into() };
        assert_eq!(key("1", "a").difference(&key("1", "a")), None);
        assert_eq!(key("1", "a").difference(&key("2", "b")).as_deref(), Some("the runtime was 1 and is 2"));
        assert_eq!(key("1", "a").difference(&key("1", "b")).as_deref(), Some("the processor was a and is b"));
        assert!(processor().starts_with(std::env::consts::ARCH));
    }
}
