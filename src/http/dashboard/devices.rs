//! The GPUs and the execution providers, as `/v1/system` has them. Pure.

use super::chart;
use super::overview::Full;
use super::values::{list, number, text, text_or_dash};
use serde_json::Value;

/// One GPU.
pub(super) struct GpuRow {
    pub(super) device: String,
    pub(super) name: String,
    /// Memory and utilisation beside what there is.
    pub(super) fullness: Vec<Full>,
    pub(super) temperature: String,
    pub(super) power: String,
}

/// What can run models, and why it does not.
pub(super) struct ProviderRow {
    pub(super) name: String,
    pub(super) is_available: bool,
    pub(super) reason: String,
}

/// Empty where there is none.
pub(super) fn gpus(system: &Value) -> Vec<GpuRow> {
    let row = |gpu: &Value| {
        let mebibytes = |pointer: &str| (number(gpu, pointer).unwrap_or(0.0) * 1_048_576.0) as u64;
        let mut fullness = vec![Full::of("Memory", mebibytes("/memory_used_mb"), mebibytes("/memory_total_mb"))];
        fullness.extend(number(gpu, "/utilization").map(|share| {
            let value = format!("{:.0} %", share * 100.0);
            Full { what: "Computing".to_owned(), gauge: chart::progress(share, &format!("Computing: {value}")), value }
        }));
        let figure = |pointer: &str, unit: &str| {
            number(gpu, pointer).map_or_else(|| "–".to_owned(), |figure| format!("{figure:.0} {unit}"))
        };
        GpuRow {
            device: text_or_dash(gpu, "/device"),
            name: text_or_dash(gpu, "/name"),
            fullness,
            temperature: figure("/temperature_celsius", "°C"),
            power: figure("/power_watts", "W"),
        }
    };
    list(system, "/devices").iter().map(row).collect()
}

pub(super) fn providers(system: &Value) -> Vec<ProviderRow> {
    let row = |provider: &Value| ProviderRow {
        name: text_or_dash(provider, "/name"),
        is_available: provider.get("available").and_then(Value::as_bool) == Some(true),
        reason: text(provider, "/reason").unwrap_or_default(),
    };
    list(system, "/execution_providers").iter().map(row).collect()
}

/// How full the store's disk is; nothing where the system does not tell.
pub(super) fn disk(system: &Value) -> Option<Full> {
    let bytes = |pointer: &str| number(system, pointer).map(|mebibytes| (mebibytes * 1_048_576.0) as u64);
    let (total, free) = (bytes("/disk/total_mb")?, bytes("/disk/free_mb")?);
    Some(Full::of("Disk of the store", total.saturating_sub(free), total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_gpu_is_a_row_and_what_it_does_not_tell_a_dash() {
        let system = json!({"devices": [
            {"device": "cuda:0", "name": "NVIDIA H100 80GB HBM3", "memory_total_mb": 81559.0, "memory_used_mb": 684.81,
             "utilization": 0.42, "temperature_celsius": 37, "power_watts": 113.818},
            {"device": "cuda:1", "name": "<b>", "memory_total_mb": 0.0, "memory_used_mb": 0.0, "utilization": null,
             "temperature_celsius": null, "power_watts": null},
        ]});
        let rows = gpus(&system);
        let [first, second] = rows.as_slice() else { panic!("two rows") };
        assert_eq!((first.temperature.as_str(), first.power.as_str()), ("37 °C", "114 W"));
        let values: Vec<&str> = first.fullness.iter().map(|full| full.value.as_str()).collect();
        assert!(values[0].contains("of 79.6 GB") || values[0].contains("GiB"), "{values:?}");
        assert_eq!(values[1], "42 %");
        assert_eq!((second.temperature.as_str(), second.fullness.len()), ("–", 1));
        assert!(gpus(&json!({"devices": []})).is_empty() && gpus(&json!({})).is_empty());
    }

    #[test]
    fn a_disk_says_what_is_taken() {
        let full = disk(&json!({"disk": {"total_mb": 1000.0, "free_mb": 250.0}})).unwrap();
        assert_eq!(full.value, "750 MiB of 1000 MiB");
        assert!(disk(&json!({"disk": null})).is_none());
    }
}
