//! What of Triton's model configuration is a setting of this server: instances and device, batching and waiting, the cache,
//! and how ONNX Runtime is told to work.
//!
//! Invariant: what only tunes is either done or named in [`Settings::unused`], and what would change answers is done or an
//! error. `docs/triton.md` says of every field which it is.

use super::ModelOverrides;
use super::config_pbtxt::{ConfigError, bounded, child, int, messages, messages_or_numbers, some_text, text, value};
use super::manifest::INSTANCES_MAX;
use crate::batching::{Levels, OnTimeout, WaitingPolicy, WaitingSettings};
use crate::runtime::{DeviceType, OptimizationLevel, TensorrtPrecision, TensorrtSettings};
use prost_reflect::{DynamicMessage, MapKey, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// Levels of urgency: a request's level is one byte.
const LEVELS_MAX: i64 = u8::MAX as i64;
/// The longest that a batch waits for mates, as for `[batch] timeout_ms`.
const DELAY_MAX: Duration = Duration::from_secs(60);

/// Parameters that the ONNX Runtime backend of Triton reads, which change no answer and are not used here, each with the
/// values that ask for what this server does anyway.
const TUNING_PARAMETERS: [(&str, &[&str]); 12] = [
    ("arena_extend_strategy", &[]),
    ("cudnn_conv_algo_search", &[]),
    ("do_copy_in_default_stream", &[]),
    ("enable_mem_arena", &["1", "true"]),
    ("enable_mem_pattern", &["1", "true"]),
    ("execution_mode", &["0"]),
    ("gpu_mem_limit", &[]),
    ("inter_op_thread_count", &["0", "1"]),
    ("memory.enable_memory_arena_shrinkage", &[]),
    ("session.set_denormal_as_zero", &["0"]),
    ("session.use_device_allocator_for_initializers", &["0"]),
    ("share_session_between_instances", &[]),
];

/// Options of the TensorRT accelerator that are honoured, the one that is refused aside.
const TENSORRT_PARAMETERS: [&str; 2] = ["precision_mode", "max_workspace_size_bytes"];

pub(super) struct Settings {
    pub(super) overrides: ModelOverrides,
    /// Fields that are kept and shown only, though they would tune another server.
    pub(super) unused: Vec<String>,
}

/// # Errors
/// The first field that is wrong or not served.
pub(super) fn read(message: &DynamicMessage) -> Result<Settings, ConfigError> {
    let mut settings = Settings { overrides: ModelOverrides::default(), unused: Vec::new() };
    settings.instances(message)?;
    settings.optimization(message)?;
    settings.batching(message)?;
    settings.parameters(message)?;
    if let Some(cache) = child(message, "response_cache") {
        settings.overrides.cache.keeps_answers = Some(int(&cache, "enable") != 0);
    }
    if !is_empty_map(message, "cc_model_filenames") {
        settings.unused.push("cc_model_filenames".into());
    }
    Ok(settings)
}

impl Settings {
    /// `instance_group`.
    fn instances(&mut self, message: &DynamicMessage) -> Result<(), ConfigError> {
        const KIND_GPU: i64 = 1;
        const KIND_CPU: i64 = 2;
        let groups = messages(message, "instance_group");
        if groups.len() > 1 {
            // The first one chooses the device; the counts are added up.
            self.unused.push("instance_group: kind and gpus of the second group and further ones".into());
        }
        let mut instances = 0usize;
        for group in &groups {
            let count = usize::try_from(int(group, "count")).ok().filter(|count| *count <= INSTANCES_MAX);
            let Some(count) = count else {
                return Err(value(
                    "instance_group.count",
                    format!("expected 0 to {INSTANCES_MAX}, got {}", int(group, "count")),
                ));
            };
            instances = instances.saturating_add(count);
            self.unused_fields(
                "instance_group",
                group,
                &["rate_limiter", "secondary_devices", "profile", "passive", "host_policy"],
            );
        }
        self.overrides.batch.instances = (instances > 0).then_some(instances.min(INSTANCES_MAX));
        if let Some(group) = groups.first() {
            self.overrides.device.device_type = match int(group, "kind") {
                KIND_GPU => Some(DeviceType::Cuda),
                KIND_CPU => Some(DeviceType::Cpu),
                _ => None,
            };
            let gpus = messages_or_numbers(group, "gpus");
            if gpus.len() > 1 {
                self.unused.push("instance_group.gpus: the second entry and further ones".into());
            }
            let gpu = gpus.first().and_then(Value::as_i32);
            self.overrides.device.device_index = gpu.and_then(|gpu| u32::try_from(gpu).ok());
        }
        Ok(())
    }

    /// `optimization`.
    fn optimization(&mut self, message: &DynamicMessage) -> Result<(), ConfigError> {
        let Some(policy) = child(message, "optimization") else { return Ok(()) };
        if let Some(graph) = child(&policy, "graph") {
            // The numbers are those of Triton's backend, which does not count them in the order of the levels.
            self.overrides.optimization.optimization_level = match int(&graph, "level") {
                -1 => Some(OptimizationLevel::Basic),
                0 => None,
                1 => Some(OptimizationLevel::Balanced),
                2 => Some(OptimizationLevel::None),
                _ => Some(OptimizationLevel::Aggressive),
            };
        }
        self.unused_fields(
            "optimization",
            &policy,
            &["priority", "cuda", "gather_kernel_buffer_threshold", "eager_batching"],
        );
        for field in ["input_pinned_memory", "output_pinned_memory"] {
            if child(&policy, field).is_some_and(|pinned| int(&pinned, "enable") != 0) {
                self.unused.push(format!("optimization.{field}"));
            }
        }
        let Some(accelerators) = child(&policy, "execution_accelerators") else { return Ok(()) };
        for accelerator in messages(&accelerators, "cpu_execution_accelerator") {
            let name = bounded(&text(&accelerator, "name"));
            self.unused.push(format!("optimization.execution_accelerators.cpu_execution_accelerator \"{name}\""));
        }
        // Without a GPU they mean nothing, for Triton as well.
        if self.overrides.device.device_type == Some(DeviceType::Cpu) {
            return Ok(());
        }
        for accelerator in messages(&accelerators, "gpu_execution_accelerator") {
            self.gpu_accelerator(&accelerator)?;
        }
        Ok(())
    }

    fn gpu_accelerator(&mut self, accelerator: &DynamicMessage) -> Result<(), ConfigError> {
        let name = text(accelerator, "name");
        let place = format!("optimization.execution_accelerators.gpu_execution_accelerator \"{}\"", bounded(&name));
        let parameters = texts(accelerator, "parameters");
        let device = match name.as_str() {
            "tensorrt" => {
                self.overrides.device.tensorrt = Some(tensorrt(&parameters)?);
                DeviceType::Tensorrt
            }
            "cuda" => DeviceType::Cuda,
            _ => {
                self.unused.push(place);
                return Ok(());
            }
        };
        // TensorRT has CUDA behind it, whatever is named first.
        if self.overrides.device.device_type != Some(DeviceType::Tensorrt) {
            self.overrides.device.device_type = Some(device);
        }
        let honoured: &[&str] = if device == DeviceType::Tensorrt { &TENSORRT_PARAMETERS } else { &[] };
        for key in parameters.keys().filter(|key| !honoured.contains(&key.as_str())) {
            self.unused.push(format!("{place}: {}", bounded(key)));
        }
        Ok(())
    }

    /// `max_batch_size` and `dynamic_batching`.
    fn batching(&mut self, message: &DynamicMessage) -> Result<(), ConfigError> {
        let batch = &mut self.overrides.batch;
        if let Ok(max_batch_size @ 1..) = usize::try_from(int(message, "max_batch_size")) {
            batch.max_batch_size = Some(max_batch_size);
        }
        let Some(batching) = child(message, "dynamic_batching") else { return Ok(()) };
        let preferred = messages_or_numbers(&batching, "preferred_batch_size");
        let preferred = preferred.iter().filter_map(Value::as_i32).filter_map(|size| usize::try_from(size).ok()).max();
        batch.batch_size = preferred.filter(|size| *size > 0);
        if batching.has_field_by_name("max_queue_delay_microseconds") {
            batch.timeout = Some(micros(&batching, "max_queue_delay_microseconds").min(DELAY_MAX));
        }
        let waiting = waiting(&batching)?;
        // Where there is one level, its bound is that of the queue. Where there are several and each has one, the queue never
        // refuses what they take.
        batch.max_queue = match &waiting.policy {
            Some(policy) if waiting.levels.is_none_or(|levels| levels.count == 1) => policy.max_waiting,
            _ => {
                let levels = waiting.levels.map_or(0, |levels| levels.count);
                let bounds = (1..=levels).map(|level| waiting.policy(level)?.max_waiting);
                bounds
                    .collect::<Option<Vec<usize>>>()
                    .filter(|bounds| !bounds.is_empty())
                    .map(|bounds| bounds.into_iter().fold(0, usize::saturating_add))
            }
        };
        batch.waiting = (waiting != WaitingSettings::default()).then_some(waiting);
        Ok(())
    }

    /// What the backend reads of `parameters`.
    fn parameters(&mut self, message: &DynamicMessage) -> Result<(), ConfigError> {
        if let Some(count) = parameter(message, "intra_op_thread_count") {
            let problem =
                || value("parameters.intra_op_thread_count", format!("expected a number, got {:?}", bounded(&count)));
            let count: usize = count.trim().parse().map_err(|_| problem())?;
            // 0 is "as many as there are cores", which is the default here as well.
            self.overrides.batch.intra_threads = (count > 0).then_some(count.min(INSTANCES_MAX));
        }
        for (name, as_it_is) in TUNING_PARAMETERS {
            if parameter(message, name).is_some_and(|stated| !as_it_is.contains(&stated.trim())) {
                self.unused.push(format!("parameters.{name}"));
            }
        }
        Ok(())
    }

    fn unused_fields(&mut self, place: &str, message: &DynamicMessage, fields: &[&str]) {
        let stated = fields.iter().filter(|field| message.has_field_by_name(field));
        self.unused.extend(stated.map(|field| format!("{place}.{field}")));
    }
}

fn tensorrt(parameters: &BTreeMap<String, String>) -> Result<TensorrtSettings, ConfigError> {
    const PLACE: &str = "optimization.execution_accelerators.gpu_execution_accelerator \"tensorrt\"";
    let precision = match parameters.get("precision_mode").map(String::as_str) {
        None | Some("FP32") => None,
        Some("FP16") => Some(TensorrtPrecision::Fp16),
        Some("BF16") => Some(TensorrtPrecision::Bf16),
        Some("INT8") => {
            let instead =
                "it needs a calibration table, which is not read; use FP16, or a graph that is quantized itself";
            return Err(ConfigError::NotServed { field: "precision_mode", what: "INT8".into(), instead });
        }
        Some(other) => {
            let problem = format!("expected FP32, FP16 or BF16, got {:?}", bounded(other));
            return Err(value(&format!("{PLACE}: precision_mode"), problem));
        }
    };
    let max_workspace_bytes = match parameters.get("max_workspace_size_bytes") {
        Some(stated) => {
            let problem = || format!("expected a number of bytes, got {:?}", bounded(stated));
            let bytes = stated.trim().parse().ok();
            Some(bytes.ok_or_else(|| value(&format!("{PLACE}: max_workspace_size_bytes"), problem()))?)
        }
        None => None,
    };
    Ok(TensorrtSettings { precision, max_workspace_bytes, ..TensorrtSettings::default() })
}

/// Levels of urgency and what each allows.
fn waiting(batching: &DynamicMessage) -> Result<WaitingSettings, ConfigError> {
    let place = |field: &str| format!("dynamic_batching.{field}");
    let levels = match (int(batching, "priority_levels"), int(batching, "default_priority_level")) {
        (0, 0) => None,
        (count, _) if count > LEVELS_MAX => {
            let problem = format!("at most {LEVELS_MAX} levels are served, got {count}; state fewer");
            return Err(value(&place("priority_levels"), problem));
        }
        (count, default) if !(1..=count).contains(&default) => {
            let problem = format!("expected a level from 1 to priority_levels, which is {count}, got {default}");
            return Err(value(&place("default_priority_level"), problem));
        }
        (count, default) => {
            let level = |level: i64| u8::try_from(level).unwrap_or(u8::MAX);
            Some(Levels { count: level(count), default: level(default) })
        }
    };
    let mut of_level = BTreeMap::new();
    let map = batching.get_field_by_name("priority_queue_policy");
    for (key, policy) in map.as_ref().and_then(|map| map.as_map()).into_iter().flatten() {
        let (MapKey::U64(level), Some(policy)) = (key, policy.as_message()) else { continue };
        let count = levels.map_or(0, |levels| levels.count);
        let Some(level) = u8::try_from(*level).ok().filter(|level| (1..=count).contains(level)) else {
            let problem = format!("expected levels from 1 to priority_levels, which is {count}, got {level}");
            return Err(value(&place("priority_queue_policy"), problem));
        };
        of_level.insert(level, policy_of(policy));
    }
    Ok(WaitingSettings { levels, policy: child(batching, "default_queue_policy").as_ref().map(policy_of), of_level })
}

fn policy_of(policy: &DynamicMessage) -> WaitingPolicy {
    const DELAY: i64 = 1;
    WaitingPolicy {
        timeout: Some(micros(policy, "default_timeout_microseconds")).filter(|timeout| !timeout.is_zero()),
        on_timeout: if int(policy, "timeout_action") == DELAY { OnTimeout::Delay } else { OnTimeout::Reject },
        allows_own_timeout: int(policy, "allow_timeout_override") != 0,
        max_waiting: usize::try_from(int(policy, "max_queue_size")).ok().filter(|size| *size > 0),
    }
}

fn micros(message: &DynamicMessage, field: &str) -> Duration {
    Duration::from_micros(u64::try_from(int(message, field)).unwrap_or(0))
}

fn parameter(message: &DynamicMessage, name: &str) -> Option<String> {
    let parameters = message.get_field_by_name("parameters")?;
    let entry = parameters.as_map()?.get(&MapKey::String(name.to_owned()))?;
    some_text(entry.as_message()?, "string_value")
}

/// A map of texts.
fn texts(message: &DynamicMessage, field: &str) -> BTreeMap<String, String> {
    let map = message.get_field_by_name(field);
    let entries = map.as_ref().and_then(|map| map.as_map()).into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.as_str()?.to_owned(), value.as_str()?.to_owned()))).collect()
}

fn is_empty_map(message: &DynamicMessage, field: &str) -> bool {
    message.get_field_by_name(field).is_none_or(|map| map.as_map().is_none_or(|map| map.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::super::config_pbtxt::GivenConfig;
    use super::*;
    use crate::cache::CacheSettings;
    use crate::models::ModelSettings;

    fn given(text: &str) -> GivenConfig {
        GivenConfig::parse_text(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn in_force(text: &str) -> ModelSettings {
        given(text).settings.apply(&ModelSettings::default())
    }

    fn refusal(text: &str) -> String {
        GivenConfig::parse_text(text).unwrap_err().to_string()
    }

    #[test]
    fn a_wait_for_mates_is_kept_to_the_microsecond() {
        #[track_caller]
        fn check(micros: u64, expected: Duration) {
            let text = format!("dynamic_batching {{ max_queue_delay_microseconds: {micros} }}");
            assert_eq!(in_force(&text).batch.timeout, expected);
        }
        check(0, Duration::ZERO);
        check(150, Duration::from_micros(150));
        check(2_500, Duration::from_micros(2_500));
        check(u64::MAX, DELAY_MAX);
        let base = ModelSettings::default();
        let waits = crate::models::Manifest::parse("[batch]\ntimeout_ms = 7").unwrap().overrides;
        let given = given("dynamic_batching { max_queue_delay_microseconds: 150 }").settings.apply(&base);
        assert_eq!(waits.apply(&given).batch.timeout, Duration::from_millis(7), "model.toml goes first");
        assert_eq!(ModelOverrides::default().apply(&given).batch.timeout, Duration::from_micros(150));
    }

    #[test]
    fn levels_and_policies_are_read() {
        let settings = in_force(
            "dynamic_batching { preserve_ordering: true priority_levels: 12 default_priority_level: 3
               default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 700 max_queue_size: 4 }
               priority_queue_policy { key: 1 value { allow_timeout_override: true max_queue_size: 9 } } }",
        );
        let usual = WaitingPolicy {
            timeout: Some(Duration::from_micros(700)),
            on_timeout: OnTimeout::Delay,
            allows_own_timeout: false,
            max_waiting: Some(4),
        };
        let first = WaitingPolicy { allows_own_timeout: true, max_waiting: Some(9), ..WaitingPolicy::default() };
        let expected = WaitingSettings {
            levels: Some(Levels { count: 12, default: 3 }),
            policy: Some(usual),
            of_level: [(1, first)].into(),
        };
        assert_eq!(settings.batch.waiting, expected);
        assert_eq!(settings.batch.max_queue, 9 + 11 * 4);
    }

    #[test]
    fn the_queue_is_bounded_as_its_levels_are() {
        #[track_caller]
        fn check(batching: &str, expected: Option<usize>) {
            let given = given(&format!("dynamic_batching {{ {batching} }}"));
            assert_eq!(given.settings.batch.max_queue, expected, "{batching}");
        }
        check("", None);
        check("default_queue_policy { max_queue_size: 7 }", Some(7));
        check("default_queue_policy { }", None);
        check("priority_levels: 1 default_priority_level: 1 default_queue_policy { max_queue_size: 7 }", Some(7));
        let two = "priority_levels: 2 default_priority_level: 1";
        check(&format!("{two} default_queue_policy {{ max_queue_size: 7 }}"), Some(14));
        check(&format!("{two} priority_queue_policy {{ key: 2 value {{ max_queue_size: 7 }} }}"), None);
        check(two, None);
    }

    #[test]
    fn levels_that_make_no_sense_are_refused_by_name() {
        let check = |batching: &str, expected: &str| {
            let error = refusal(&format!("dynamic_batching {{ {batching} }}"));
            assert!(error.contains(expected), "{error}");
        };
        check("priority_levels: 256 default_priority_level: 1", "dynamic_batching.priority_levels: at most 255");
        check("priority_levels: 18446744073709551615 default_priority_level: 1", "at most 255");
        check(
            "priority_levels: 3",
            "default_priority_level: expected a level from 1 to priority_levels, which is 3, got 0",
        );
        check("priority_levels: 3 default_priority_level: 4", "which is 3, got 4");
        check("default_priority_level: 1", "which is 0, got 1");
        check("priority_queue_policy { key: 1 value { } }", "priority_queue_policy: expected levels");
        let beyond = "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { } }";
        check(beyond, "which is 2, got 3");
        check(&beyond.replace("key: 3", "key: 0"), "which is 2, got 0");
    }

    #[test]
    fn the_numbers_of_graph_levels_are_tritons() {
        #[track_caller]
        fn check(level: i64, expected: Option<OptimizationLevel>) {
            let given = given(&format!("optimization {{ graph {{ level: {level} }} }}"));
            assert_eq!(given.settings.optimization.optimization_level, expected);
        }
        check(-1, Some(OptimizationLevel::Basic));
        check(0, None);
        check(1, Some(OptimizationLevel::Balanced));
        check(2, Some(OptimizationLevel::None));
        check(3, Some(OptimizationLevel::Aggressive));
    }

    #[test]
    fn a_response_cache_has_a_size_where_none_is_set() {
        #[track_caller]
        fn check(text: &str, base: u64, expected: u64) {
            let cache = CacheSettings { response_bytes: base, ..CacheSettings::default() };
            let base = ModelSettings { cache, ..ModelSettings::default() };
            assert_eq!(given(text).settings.apply(&base).cache.response_bytes, expected, "{text} {base:?}");
        }
        check("response_cache { enable: true }", 0, 64 << 20);
        check("response_cache { enable: true }", 1 << 20, 1 << 20);
        check("response_cache { enable: false }", 1 << 20, 0);
        check("", 1 << 20, 1 << 20);
        check("", 0, 0);
    }

    #[test]
    fn tensorrt_is_told_its_precision_and_its_workspace() {
        let text = |parameters: &str| {
            format!(
                "optimization {{ execution_accelerators {{ gpu_execution_accelerator [ {{ name: \"tensorrt\" {parameters} }}, {{ name: \"cuda\" }} ] }} }}"
            )
        };
        let parameter = |key: &str, value: &str| format!("parameters {{ key: \"{key}\" value: \"{value}\" }}");
        let both = [parameter("precision_mode", "FP16"), parameter("max_workspace_size_bytes", "1073741824")].join(" ");
        let device = in_force(&text(&both)).device;
        assert_eq!(device.device_type, DeviceType::Tensorrt);
        let expected = TensorrtSettings {
            precision: Some(TensorrtPrecision::Fp16),
            max_workspace_bytes: Some(1 << 30),
            ..TensorrtSettings::default()
        };
        assert_eq!(device.tensorrt, expected);
        assert_eq!(in_force(&text(&parameter("precision_mode", "FP32"))).device.tensorrt, TensorrtSettings::default());
        let cached = given(&text(&parameter("trt_engine_cache_enable", "1")));
        assert_eq!(
            cached.unused,
            ["optimization.execution_accelerators.gpu_execution_accelerator \"tensorrt\": trt_engine_cache_enable"]
        );
        assert!(refusal(&text(&parameter("precision_mode", "INT8"))).contains("INT8 is not served"));
        assert!(refusal(&text(&parameter("precision_mode", "FP8"))).contains("expected FP32, FP16 or BF16"));
        assert!(refusal(&text(&parameter("max_workspace_size_bytes", "-1"))).contains("a number of bytes"));
    }

    #[test]
    fn what_only_tunes_is_named() {
        #[track_caller]
        fn check(text: &str, expected: &[&str]) {
            assert_eq!(given(text).unused, expected, "{text}");
        }
        check("", &[]);
        check(
            "name: \"m\" metric_tags { key: 'a' value: 'b' } parameters { key: \"mine\" value { string_value: \"1\" } }",
            &[],
        );
        check(
            "instance_group [ { count: 1 }, { count: 1 } ]",
            &["instance_group: kind and gpus of the second group and further ones"],
        );
        check(
            "instance_group { kind: KIND_GPU gpus: [ 0, 1 ] }",
            &["instance_group.gpus: the second entry and further ones"],
        );
        check(
            "instance_group { rate_limiter { priority: 1 } host_policy: \"a\" }",
            &["instance_group.rate_limiter", "instance_group.host_policy"],
        );
        check(
            "optimization { priority: PRIORITY_MAX cuda { graphs: true } input_pinned_memory { enable: true } output_pinned_memory { enable: false } eager_batching: true }",
            &[
                "optimization.priority",
                "optimization.cuda",
                "optimization.eager_batching",
                "optimization.input_pinned_memory",
            ],
        );
        check(
            "optimization { execution_accelerators { cpu_execution_accelerator { name: \"openvino\" } } }",
            &["optimization.execution_accelerators.cpu_execution_accelerator \"openvino\""],
        );
        check("cc_model_filenames { key: \"7.5\" value: \"a.onnx\" }", &["cc_model_filenames"]);
        for (name, as_it_is) in TUNING_PARAMETERS {
            let stated =
                |value: &str| format!("parameters {{ key: \"{name}\" value {{ string_value: \"{value}\" }} }}");
            check(&stated("7"), &[&format!("parameters.{name}")]);
            for value in as_it_is {
                check(&stated(value), &[]);
            }
        }
    }
}
