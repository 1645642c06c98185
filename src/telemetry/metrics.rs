//! Every metric there is: its name, its labels and what it says.
//!
//! Invariant: the value of a label is a name of the model store or a word of a closed list, never text from a request. What
//! is counted in [`Stats`] is written here; a door adds what other rooms know.

use super::exposition::{Exposition, Family, Kind};
use super::stats::{CacheKind, CancelReason, ModelStats, Stage, Stats};

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Histogram, help }
}

const REQUESTS: Family = counter(
    "ortus_requests",
    "Requests by HTTP status; 202 = accepted as a job, 499 = the client went away. Model and version are empty where none was reached.",
);
const REQUEST_DURATION: Family = histogram(
    "ortus_request_duration_seconds",
    "Time of requests by stage; total, from arrival to the encoded answer, is of answered requests alone.",
);
const BATCH_SIZE: Family = histogram("ortus_batch_size", "Rows of a run.");
const QUEUE_DEPTH: Family = gauge("ortus_queue_depth", "Requests that wait for an instance.");
const IN_FLIGHT: Family = gauge("ortus_inflight", "Requests that reached the model and are not answered yet.");
const CANCELLED: Family =
    counter("ortus_cancelled", "Requests whose client went away or whose deadline passed, by reason.");
const CACHE_HITS: Family = counter("ortus_cache_hits", "Answers found in a cache.");
const CACHE_MISSES: Family = counter("ortus_cache_misses", "Answers not found in a cache that was asked.");
const LOADS: Family = counter("ortus_model_loads", "Loads of a version of a model, by result.");
const EVICTIONS: Family =
    counter("ortus_model_evictions", "Unloads of a model, all its versions, to make room for another.");
const DEVICE_FAILURES: Family = counter(
    "ortus_device_failures",
    "Runs that a device had no memory for or failed on; they were made smaller or elsewhere, or refused with 503.",
);
const SPOILED: Family = counter(
    "ortus_batches_spoiled",
    "Runs shared by several requests that failed on the input of one, and were made again one by one.",
);
const SET_APART: Family = counter(
    "ortus_senders_set_apart",
    "Senders whose inputs spoiled runs of others again and again, and that shared none with them for a minute.",
);
const REJECTED: Family =
    counter("ortus_rejected", "Requests turned away for a reason other than what they ask, by reason.");
const PANICS: Family = counter("ortus_panics", "Panics that were caught: faults of the server.");

/// `model`, `version`, `state`: 1 for the state that a version is in, 0 for the others.
pub const MODEL_STATE: Family = gauge("ortus_model_state", "1 for the state that a version of a model is in.");
/// `model`, `device`: all loaded versions together.
pub const MODEL_MEMORY: Family =
    gauge("ortus_model_memory_bytes", "Memory that the loaded versions of a model hold, by device.");
/// `model`, `version`, `provider`: of the versions that are loaded.
pub const MODEL_NODES: Family =
    gauge("ortus_model_nodes", "Nodes of a model's optimised graph, by the execution provider that runs them.");
/// `model`, `version`: of the versions that are loaded.
pub const MODEL_DEGRADED: Family = gauge(
    "ortus_model_degraded",
    "1 where a loaded version runs on another device than it should, or with less than its memory; else 0.",
);
/// `model`, `version`, `state` (`none`, `building`, `ready`, `failed`): of the versions that are loaded.
pub const ENGINE_STATE: Family =
    gauge("ortus_engine_state", "1 for the state that the TensorRT engine of a loaded version is in; else 0.");
/// `gpu`: its number. Absent where there is none.
pub const GPU_MEMORY_USED: Family = gauge("ortus_gpu_memory_used_bytes", "Memory of a GPU in use, by all processes.");
/// `gpu`.
pub const GPU_MEMORY_TOTAL: Family = gauge("ortus_gpu_memory_total_bytes", "Memory of a GPU.");
/// `gpu`.
pub const GPU_UTILIZATION: Family =
    gauge("ortus_gpu_utilization_ratio", "Share of the driver's last sampling period in which a GPU computed, 0 to 1.");
/// `model`, `cache`: all loaded versions together.
pub const CACHE_BYTES: Family = gauge("ortus_cache_bytes", "Memory of the caches that are switched on.");
/// Of all downloads.
pub const DOWNLOAD_BYTES: Family = counter("ortus_download_bytes", "Bytes of models that came over the network.");
/// No labels. Absent where there is no TLS.
pub const CERTIFICATE_EXPIRY: Family = gauge(
    "ortus_tls_certificate_expiry_timestamp_seconds",
    "When the TLS certificate in force ends, in seconds since 1970.",
);
/// No labels.
pub const RESIDENT_MEMORY: Family =
    gauge("ortus_process_resident_memory_bytes", "Memory of the process that is in RAM.");
/// `version`, `onnxruntime`; the value is 1.
pub const BUILD_INFO: Family = gauge("ortus_build_info", "Versions of the server and of ONNX Runtime; always 1.");

/// Writes everything that `stats` counts.
pub fn write_stats(stats: &Stats, out: &mut Exposition) {
    requests(stats, out);
    let models = stats.totals();

    let mut samples = out.family(&REQUEST_DURATION);
    for model in &models {
        for (stage, times) in Stage::ALL.into_iter().zip(&model.stages).filter(|(_, times)| times.count > 0) {
            samples.histogram(&[("model", &model.name), ("stage", stage.name())], times, 1e9);
        }
    }
    let mut samples = out.family(&BATCH_SIZE);
    for model in models.iter().filter(|model| model.batches.count > 0) {
        samples.histogram(&[("model", &model.name)], &model.batches, 1.0);
    }
    let mut samples = out.family(&QUEUE_DEPTH);
    models.iter().for_each(|model| samples.put(&[("model", &model.name)], model.queued));
    let mut samples = out.family(&IN_FLIGHT);
    models.iter().for_each(|model| samples.put(&[("model", &model.name)], model.in_flight));
    let mut samples = out.family(&CANCELLED);
    let of_models = models.iter().map(|model| (model.name.as_str(), model.cancelled));
    // As among the requests: those that reached no model have no name.
    for (model, counts) in std::iter::once(("", stats.cancelled_nowhere())).chain(of_models) {
        for (reason, count) in CancelReason::ALL.into_iter().zip(counts) {
            samples.put(&[("model", model), ("reason", reason.name())], count);
        }
    }
    for (family, is_hit) in [(&CACHE_HITS, true), (&CACHE_MISSES, false)] {
        let mut samples = out.family(family);
        for model in &models {
            for (cache, [misses, hits]) in CacheKind::ALL.into_iter().zip(model.cache) {
                samples.put(&[("model", &model.name), ("cache", cache.name())], if is_hit { hits } else { misses });
            }
        }
    }
    let mut samples = out.family(&LOADS);
    for model in &models {
        samples.put(&[("model", &model.name), ("result", "ok")], model.loads_done);
        samples.put(&[("model", &model.name), ("result", "failed")], model.loads_failed);
    }
    let mut samples = out.family(&EVICTIONS);
    models.iter().for_each(|model| samples.put(&[("model", &model.name)], model.evictions));
    let mut samples = out.family(&DEVICE_FAILURES);
    models.iter().for_each(|model| samples.put(&[("model", &model.name)], model.device_failures));
    let mut samples = out.family(&SPOILED);
    models.iter().for_each(|model| samples.put(&[("model", &model.name)], model.spoiled));
    let mut samples = out.family(&SET_APART);
    models.iter().for_each(|model| samples.put(&[("model", &model.name)], model.set_apart));
    let mut samples = out.family(&REJECTED);
    stats.rejected().for_each(|(reason, count)| samples.put(&[("reason", reason.name())], count));
    out.family(&PANICS).put(&[], stats.panics());
}

fn requests(stats: &Stats, out: &mut Exposition) {
    let mut samples = out.family(&REQUESTS);
    let mut write = |model: &ModelStats, version: &str| {
        for (protocol, status, count) in model.totals().requests {
            let labels = [
                ("model", model.name()),
                ("version", version),
                ("protocol", protocol.name()),
                ("code", &status.to_string()),
            ];
            samples.put(&labels, count);
        }
    };
    write(&stats.nowhere(), "");
    stats.all().iter().for_each(|model| write(model, &model.version().to_string()));
}
