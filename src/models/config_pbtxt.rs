//! Triton's model configuration: reads `config.pbtxt` and the JSON of a load call, keeps what this server honours,
//! refuses what it cannot serve, and writes the configuration in force.
//!
//! Invariants: what would change a model's answers and is not done is an error, never ignored; what only tunes another
//! server is kept and shown. The schema is `proto/model_config.proto`, read by reflection. Touches no file.

use super::config_settings::{self, Settings};
use super::manifest::{VersionPolicy, is_contained};
use super::reshape::{Reshape, Reshapes};
use super::{ModelName, ModelOverrides, Version};
use crate::tensor::{DType, Dim, Spec, ValueType};
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions, Value};
use std::num::NonZeroUsize;
use std::sync::OnceLock;

/// The schema nests eight deep; a text that nests deeper is not a configuration and is not parsed.
const DEPTH_MAX: usize = 32;
/// Runs of one warm-up request.
const WARMUP_COUNT_MAX: u32 = 1_000;

/// What is wrong with a model configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{0}")]
    Syntax(String),
    #[error("{field}: {problem}")]
    Value { field: String, problem: String },
    /// Valid, and something this server does not do.
    #[error("{field}: {what} is not served; {instead}")]
    NotServed { field: &'static str, what: String, instead: &'static str },
}

/// A configuration as given, with what is honoured of it read out.
#[derive(Debug, Clone)]
pub(super) struct GivenConfig {
    message: DynamicMessage,
    pub(super) name: Option<String>,
    pub(super) graph_file: Option<String>,
    pub(super) version_policy: Option<VersionPolicy>,
    /// 0 where it is not stated: shapes are whole.
    pub(super) max_batch_size: u32,
    pub(super) inputs: Vec<GivenTensor>,
    pub(super) outputs: Vec<GivenTensor>,
    pub(super) settings: ModelOverrides,
    /// What the configuration asks for and this server does not do, since it changes no answer; for the log.
    pub(super) unused: Vec<String>,
    pub(super) warmup: Vec<GivenWarmup>,
}

/// One stated input or output.
#[derive(Debug, Clone)]
pub(super) struct GivenTensor {
    pub(super) name: String,
    data_type: i32,
    /// Empty where the configuration is silent.
    dims: Vec<i64>,
    /// Where the graph has another shape than `dims`.
    reshape: Option<Reshape>,
    /// Of an output: the file with its class names.
    pub(super) label_filename: Option<String>,
}

/// A request to run before a version is ready.
#[derive(Debug, Clone)]
pub(super) struct GivenWarmup {
    pub(super) name: String,
    pub(super) count: u32,
    pub(super) inputs: Vec<WarmupInput>,
}

#[derive(Debug, Clone)]
pub(super) struct WarmupInput {
    pub(super) name: String,
    pub(super) dtype: DType,
    /// With the batch dimension.
    pub(super) shape: Vec<usize>,
    pub(super) data: WarmupData,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum WarmupData {
    Zero,
    Random,
    /// Below the model folder's `warmup/`.
    File(String),
}

/// What is in force for a loaded version, for [`effective`].
pub(super) struct InForce<'a> {
    pub(super) name: &'a ModelName,
    pub(super) policy: &'a VersionPolicy,
    pub(super) graph_file: &'a str,
    pub(super) inputs: &'a [Spec],
    pub(super) outputs: &'a [Spec],
    pub(super) instances: usize,
    /// As the session reports it: `cpu`, `cuda:0`.
    pub(super) device: &'a str,
}

/// Triton's number for each type that it has.
const TYPES: [(DType, i32); 14] = [
    (DType::Bool, 1),
    (DType::Uint8, 2),
    (DType::Uint16, 3),
    (DType::Uint32, 4),
    (DType::Uint64, 5),
    (DType::Int8, 6),
    (DType::Int16, 7),
    (DType::Int32, 8),
    (DType::Int64, 9),
    (DType::Fp16, 10),
    (DType::Fp32, 11),
    (DType::Fp64, 12),
    (DType::String, 13),
    (DType::Bf16, 14),
];

fn type_number(dtype: Option<DType>) -> i32 {
    TYPES.iter().find(|(ours, _)| Some(*ours) == dtype).map_or(0, |(_, number)| *number)
}

fn dtype_of(number: i32) -> Option<DType> {
    TYPES.iter().find(|(_, theirs)| *theirs == number).map(|(dtype, _)| *dtype)
}

/// `TYPE_FP32` for a number, as the file spells it.
fn type_name(number: i32) -> String {
    match dtype_of(number) {
        Some(DType::String) => "TYPE_STRING".into(),
        Some(dtype) => format!("TYPE_{}", dtype.name()),
        None if number == 0 => "TYPE_INVALID".into(),
        None => format!("type {number}"),
    }
}

/// The message `inference.{name}` of the schema.
fn descriptor(name: &str) -> Result<MessageDescriptor, ConfigError> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let schema: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/model_config.fds"));
        DescriptorPool::decode(schema).ok()
    });
    let found = pool.as_ref().and_then(|pool| pool.get_message_by_name(&format!("inference.{name}")));
    found.ok_or_else(|| ConfigError::Syntax("the schema compiled into the server is damaged".into()))
}

impl GivenConfig {
    /// Reads protobuf's text format.
    ///
    /// # Errors
    /// The first mistake, by its field where it has one.
    pub(super) fn parse_text(text: &str) -> Result<GivenConfig, ConfigError> {
        let text = normalise(text)?;
        let message = DynamicMessage::parse_text_format(descriptor("ModelConfig")?, &text)
            .map_err(|error| ConfigError::Syntax(bounded(&error.to_string())))?;
        GivenConfig::new(message)
    }

    /// Reads protobuf's JSON, with field names as in the schema or in camel case.
    ///
    /// # Errors
    /// As [`GivenConfig::parse_text`].
    pub(super) fn parse_json(text: &str) -> Result<GivenConfig, ConfigError> {
        let syntax = |error: serde_json::Error| ConfigError::Syntax(bounded(&error.to_string()));
        let mut reader = serde_json::Deserializer::from_str(text);
        let options = DeserializeOptions::new().deny_unknown_fields(true);
        let message = DynamicMessage::deserialize_with_options(descriptor("ModelConfig")?, &mut reader, &options)
            .map_err(syntax)?;
        reader.end().map_err(syntax)?;
        GivenConfig::new(message)
    }

    fn new(message: DynamicMessage) -> Result<GivenConfig, ConfigError> {
        refuse_what_is_not_served(&message)?;
        let max_batch_size = u32::try_from(int(&message, "max_batch_size")).map_err(|_| {
            value("max_batch_size", format!("expected 0 or more, got {}", int(&message, "max_batch_size")))
        })?;
        let graph_file = some_text(&message, "default_model_filename");
        if let Some(file) = graph_file.as_deref().filter(|file| !is_contained(file)) {
            return Err(value(
                "default_model_filename",
                format!("expected a file inside the version's folder, got {file:?}"),
            ));
        }
        let Settings { overrides, unused } = config_settings::read(&message)?;
        Ok(GivenConfig {
            name: some_text(&message, "name"),
            version_policy: version_policy(&message)?,
            inputs: tensors(&message, "input", max_batch_size > 0)?,
            outputs: tensors(&message, "output", max_batch_size > 0)?,
            settings: overrides,
            unused,
            warmup: warmup(&message)?,
            graph_file,
            max_batch_size,
            message,
        })
    }

    /// The tensors that clients see in another shape than the graph.
    pub(super) fn reshapes(&self) -> Reshapes {
        let of = |tensors: &[GivenTensor]| {
            tensors.iter().filter_map(|tensor| Some((tensor.name.clone(), tensor.reshape.clone()?))).collect()
        };
        Reshapes { inputs: of(&self.inputs), outputs: of(&self.outputs) }
    }

    /// Checks what is stated of inputs and outputs against the graph as clients see it: reshapes are applied and hold.
    ///
    /// # Errors
    /// Names the tensor, what the graph declares and what the configuration states.
    pub(super) fn check_graph(&self, inputs: &[Spec], outputs: &[Spec]) -> Result<(), ConfigError> {
        for (field, given, specs) in [("input", &self.inputs, inputs), ("output", &self.outputs, outputs)] {
            for tensor in given {
                let Some(spec) = specs.iter().find(|spec| spec.name == tensor.name) else {
                    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
                    let problem = format!("the graph has no {field} of this name; it has {}", names.join(", "));
                    return Err(value(&format!("{field} '{}'", tensor.name), problem));
                };
                self.check_tensor(field, tensor, spec)?;
            }
            if self.max_batch_size > 0
                && let Some(spec) = specs.iter().find(|spec| !has_free_batch(&spec.ty))
            {
                let problem = format!(
                    "{} needs a first dimension of any size in each tensor, but {field} '{}' is {}; state max_batch_size: 0",
                    self.max_batch_size, spec.name, spec.ty
                );
                return Err(value("max_batch_size", problem));
            }
        }
        Ok(())
    }

    fn check_tensor(&self, field: &str, tensor: &GivenTensor, spec: &Spec) -> Result<(), ConfigError> {
        let place = || format!("{field} '{}'", tensor.name);
        let ValueType::Tensor { dtype, shape } = &spec.ty else {
            // The configuration in force shows such a value without a type; given back like that it changes nothing.
            if tensor.data_type == 0 {
                return Ok(());
            }
            return Err(value(&place(), format!("the graph declares {}, which a configuration cannot state", spec.ty)));
        };
        let declared = type_number(Some(*dtype));
        if tensor.data_type != declared {
            let problem = format!(
                "the graph declares {}, the configuration {}",
                type_name(declared),
                type_name(tensor.data_type)
            );
            return Err(value(&format!("{}: data_type", place()), problem));
        }
        let Some(shape) = shape.as_deref() else { return Ok(()) };
        if tensor.dims.is_empty() && !shape.is_empty() {
            return Ok(());
        }
        let batch = (self.max_batch_size > 0).then_some(-1);
        let stated: Vec<i64> = batch.into_iter().chain(tensor.dims.iter().copied()).collect();
        let agree = stated.len() == shape.len()
            && stated
                .iter()
                .zip(shape)
                .all(|(&stated, dim)| stated == -1 || dim.to_wire() == -1 || stated == dim.to_wire());
        if agree {
            return Ok(());
        }
        let batch_note = if batch.is_some() { " (the batch dimension first)" } else { "" };
        let problem = format!("the graph declares {}, the configuration {stated:?}{batch_note}", spec.ty);
        Err(value(&format!("{}: dims", place()), problem))
    }
}

/// Whether dim 0 of a value is free to be a batch.
fn has_free_batch(ty: &ValueType) -> bool {
    match ty {
        ValueType::Tensor { shape: Some(dims), .. } => matches!(dims.first(), Some(Dim::Dynamic(_))),
        // Without a declared rank the first dimension may be anything.
        ValueType::Tensor { shape: None, .. } => true,
        ValueType::Sequence(_) | ValueType::Map { .. } | ValueType::Optional(_) => false,
    }
}

/// The configuration in force as JSON: field names as in the schema, 64-bit numbers as numbers, defaults written out.
///
/// # Errors
/// Where the schema compiled in is damaged.
pub(super) fn effective(given: Option<&GivenConfig>, in_force: &InForce<'_>) -> Result<serde_json::Value, ConfigError> {
    let mut message = match given {
        Some(given) => given.message.clone(),
        None => DynamicMessage::new(descriptor("ModelConfig")?),
    };
    let batched = given.is_some_and(|given| given.max_batch_size > 0);
    put(&mut message, "name", Value::String(in_force.name.to_string()))?;
    put(&mut message, "platform", Value::String("onnxruntime_onnx".into()))?;
    put(&mut message, "backend", Value::String("onnxruntime".into()))?;
    put(&mut message, "default_model_filename", Value::String(in_force.graph_file.to_owned()))?;
    put(&mut message, "version_policy", policy_message(in_force.policy)?)?;
    for (field, kind, specs) in [("input", "ModelInput", in_force.inputs), ("output", "ModelOutput", in_force.outputs)]
    {
        let stated = messages(&message, field);
        let list = specs
            .iter()
            .map(|spec| {
                tensor_message(kind, spec, batched, stated.iter().find(|tensor| text(tensor, "name") == spec.name))
            })
            .collect::<Result<_, _>>()?;
        put(&mut message, field, Value::List(list))?;
    }
    let group = group_message(in_force, messages(&message, "instance_group").first())?;
    put(&mut message, "instance_group", Value::List(vec![group]))?;
    let options =
        SerializeOptions::new().stringify_64_bit_integers(false).use_proto_field_name(true).skip_default_fields(false);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| ConfigError::Syntax(bounded(&error.to_string())))
}

fn tensor_message(
    kind: &str,
    spec: &Spec,
    batched: bool,
    stated: Option<&DynamicMessage>,
) -> Result<Value, ConfigError> {
    let mut tensor = match stated {
        Some(stated) => stated.clone(),
        None => DynamicMessage::new(descriptor(kind)?),
    };
    put(&mut tensor, "name", Value::String(spec.name.clone()))?;
    put(&mut tensor, "data_type", Value::EnumNumber(type_number(spec.ty.dtype())))?;
    if messages_or_numbers(&tensor, "dims").is_empty() {
        let dims = spec.ty.shape().unwrap_or_default().iter().skip(usize::from(batched));
        put(&mut tensor, "dims", Value::List(dims.map(|dim| Value::I64(dim.to_wire())).collect()))?;
    }
    if spec.optional && kind == "ModelInput" {
        put(&mut tensor, "optional", Value::Bool(true))?;
    }
    Ok(Value::Message(tensor))
}

fn group_message(in_force: &InForce<'_>, stated: Option<&DynamicMessage>) -> Result<Value, ConfigError> {
    const KIND_GPU: i32 = 1;
    const KIND_CPU: i32 = 2;
    let mut group = match stated {
        Some(stated) => stated.clone(),
        None => DynamicMessage::new(descriptor("ModelInstanceGroup")?),
    };
    if text(&group, "name").is_empty() {
        put(&mut group, "name", Value::String(in_force.name.to_string()))?;
    }
    put(&mut group, "count", Value::I32(i32::try_from(in_force.instances).unwrap_or(i32::MAX)))?;
    let gpu = in_force.device.strip_prefix("cuda").map(|rest| rest.trim_start_matches(':').parse().unwrap_or(0));
    put(&mut group, "kind", Value::EnumNumber(if gpu.is_some() { KIND_GPU } else { KIND_CPU }))?;
    put(&mut group, "gpus", Value::List(gpu.into_iter().map(Value::I32).collect()))?;
    Ok(Value::Message(group))
}

fn policy_message(policy: &VersionPolicy) -> Result<Value, ConfigError> {
    let (field, kind, inner) = match policy {
        VersionPolicy::Latest(count) => {
            ("latest", "Latest", Some(("num_versions", Value::U32(u32::try_from(count.get()).unwrap_or(u32::MAX)))))
        }
        VersionPolicy::All => ("all", "All", None),
        VersionPolicy::Specific(versions) => {
            let list =
                versions.iter().map(|version| Value::I64(i64::try_from(version.0).unwrap_or(i64::MAX))).collect();
            ("specific", "Specific", Some(("versions", Value::List(list))))
        }
    };
    let mut choice = DynamicMessage::new(descriptor(&format!("ModelVersionPolicy.{kind}"))?);
    if let Some((name, content)) = inner {
        put(&mut choice, name, content)?;
    }
    let mut message = DynamicMessage::new(descriptor("ModelVersionPolicy")?);
    put(&mut message, field, Value::Message(choice))?;
    Ok(Value::Message(message))
}

fn refuse_what_is_not_served(message: &DynamicMessage) -> Result<(), ConfigError> {
    for (field, served) in [("platform", "onnxruntime_onnx"), ("backend", "onnxruntime")] {
        let stated = text(message, field);
        if !stated.is_empty() && stated != served {
            let what = format!("\"{}\"", bounded(&stated));
            return Err(ConfigError::NotServed {
                field,
                what,
                instead: "ONNX models are: platform \"onnxruntime_onnx\", backend \"onnxruntime\"",
            });
        }
    }
    for (field, what, instead) in [
        ("ensemble_scheduling", "an ensemble of models", "call the models one after another"),
        ("sequence_batching", "sequence batching", "send each request with the state that the graph takes as an input"),
    ] {
        if message.has_field_by_name(field) {
            return Err(ConfigError::NotServed { field, what: what.into(), instead });
        }
    }
    let instead = "leave it out, or use a graph of ONNX's own operators";
    if child(message, "model_operations")
        .is_some_and(|operations| !messages_or_numbers(&operations, "op_library_filename").is_empty())
    {
        return Err(ConfigError::NotServed {
            field: "model_operations",
            what: "a library of operators".into(),
            instead,
        });
    }
    if child(message, "model_transaction_policy").is_some_and(|policy| int(&policy, "decoupled") != 0) {
        let instead = "every request has one answer";
        return Err(ConfigError::NotServed { field: "model_transaction_policy", what: "decoupled".into(), instead });
    }
    let agents =
        child(message, "model_repository_agents").map(|agents| messages(&agents, "agents")).unwrap_or_default();
    if let Some(agent) = agents.first() {
        let what = format!("the agent \"{}\"", bounded(&text(agent, "name")));
        let instead = "check or change the files before they are put into the store, and leave the agent out";
        return Err(ConfigError::NotServed { field: "model_repository_agents", what, instead });
    }
    for field in ["batch_input", "batch_output"] {
        if !messages(message, field).is_empty() {
            let instead = "send the tensor with the request";
            return Err(ConfigError::NotServed { field, what: "a tensor made by the scheduler".into(), instead });
        }
    }
    Ok(())
}

fn version_policy(message: &DynamicMessage) -> Result<Option<VersionPolicy>, ConfigError> {
    let Some(policy) = child(message, "version_policy") else { return Ok(None) };
    if let Some(latest) = child(&policy, "latest") {
        let count = usize::try_from(int(&latest, "num_versions")).unwrap_or(usize::MAX);
        return Ok(Some(VersionPolicy::Latest(NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN))));
    }
    if policy.has_field_by_name("all") {
        return Ok(Some(VersionPolicy::All));
    }
    let Some(specific) = child(&policy, "specific") else { return Ok(None) };
    let versions = messages_or_numbers(&specific, "versions")
        .iter()
        .map(|version| version.as_i64().and_then(|version| u64::try_from(version).ok()).map(Version))
        .collect::<Option<std::collections::BTreeSet<Version>>>()
        .filter(|versions| !versions.is_empty());
    match versions {
        Some(versions) => Ok(Some(VersionPolicy::Specific(versions))),
        None => Err(value("version_policy.specific.versions", "expected at least one version, none below 0".into())),
    }
}

fn tensors(message: &DynamicMessage, field: &'static str, batched: bool) -> Result<Vec<GivenTensor>, ConfigError> {
    messages(message, field)
        .iter()
        .map(|tensor| {
            let name = text(tensor, "name");
            let place = format!("{field} '{}'", bounded(&name));
            if name.is_empty() {
                return Err(value(field, "a tensor without a name".into()));
            }
            if int(tensor, "allow_ragged_batch") != 0 {
                let what = format!("allow_ragged_batch (of {place})");
                return Err(ConfigError::NotServed { field, what, instead: "send requests of one shape" });
            }
            let dims = numbers(tensor, "dims");
            if let Some(bad) = dims.iter().find(|&&dim| dim < -1) {
                return Err(value(&format!("{place}: dims"), format!("expected sizes, or -1 for any size, got {bad}")));
            }
            let reshape = match child(tensor, "reshape") {
                Some(reshape) => {
                    let shape = numbers(&reshape, "shape");
                    let reshape = Reshape::new(dims.clone(), shape, batched);
                    Some(reshape.map_err(|problem| value(&format!("{place}: reshape"), problem))?)
                }
                None => None,
            };
            let label_filename = some_text(tensor, "label_filename");
            if let Some(file) = label_filename.as_deref().filter(|file| !is_contained(file)) {
                let problem = format!("expected a file inside the model's folder, got {file:?}");
                return Err(value(&format!("{place}: label_filename"), problem));
            }
            let data_type = i32::try_from(int(tensor, "data_type")).unwrap_or(0);
            Ok(GivenTensor { name, data_type, dims, reshape, label_filename })
        })
        .collect()
}

fn warmup(message: &DynamicMessage) -> Result<Vec<GivenWarmup>, ConfigError> {
    let mut samples = Vec::new();
    for sample in messages(message, "model_warmup") {
        let name = bounded(&text(&sample, "name"));
        let batch_size = usize::try_from(int(&sample, "batch_size")).unwrap_or(0);
        let count = u32::try_from(int(&sample, "count")).unwrap_or(u32::MAX).clamp(1, WARMUP_COUNT_MAX);
        let mut inputs = Vec::new();
        let map = sample.get_field_by_name("inputs");
        for (key, entry) in map.as_ref().and_then(|map| map.as_map()).into_iter().flatten() {
            let (Some(input), Some(entry)) = (key.as_str(), entry.as_message()) else { continue };
            inputs.push(warmup_input(&name, input, entry, batch_size)?);
        }
        // A map has no order: the same file makes the same run.
        inputs.sort_by(|a, b| a.name.cmp(&b.name));
        samples.push(GivenWarmup { name, count, inputs });
    }
    Ok(samples)
}

fn warmup_input(
    sample: &str,
    name: &str,
    entry: &DynamicMessage,
    batch_size: usize,
) -> Result<WarmupInput, ConfigError> {
    let place = format!("model_warmup '{sample}': input '{}'", bounded(name));
    let number = i32::try_from(int(entry, "data_type")).unwrap_or(0);
    let dtype =
        dtype_of(number).ok_or_else(|| value(&place, format!("data_type: {} has no data", type_name(number))))?;
    let dims = messages_or_numbers(entry, "dims");
    let mut shape: Vec<usize> = if batch_size > 0 { vec![batch_size] } else { vec![] };
    for dim in dims.iter().filter_map(Value::as_i64) {
        let size = usize::try_from(dim).map_err(|_| value(&place, format!("dims: expected sizes, got {dim}")))?;
        shape.push(size);
    }
    let data = match (some_text(entry, "input_data_file"), int(entry, "random_data") != 0) {
        (Some(file), _) if !is_contained(&file) => {
            return Err(value(
                &place,
                format!("input_data_file: expected a file inside the folder warmup, got {file:?}"),
            ));
        }
        (Some(_), _) if dtype == DType::String => {
            return Err(value(&place, "input_data_file: text from a file is not served; use zero_data".into()));
        }
        (Some(file), _) => WarmupData::File(file),
        (None, true) => WarmupData::Random,
        (None, false) => WarmupData::Zero,
    };
    Ok(WarmupInput { name: name.to_owned(), dtype, shape, data })
}

/// The text as the parser takes it: with the colon that Triton's files leave out before a list (`input [ … ]`).
///
/// Refuses a text that nests deeper than the schema: the parser recurses for each level.
fn normalise(text: &str) -> Result<String, ConfigError> {
    let mut normal = String::with_capacity(text.len());
    let mut copied = 0;
    let mut depth = 0usize;
    let mut quote = None;
    // Whether a name or a word stood last, blanks and comments not counted.
    let mut after_word = false;
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match (quote, byte) {
            (Some(_), b'\\') => drop(bytes.next()),
            (Some(_), b'\n') => return Err(ConfigError::Syntax("a string without an end".into())),
            (Some(open), _) => quote = (byte != open).then_some(open),
            (None, b'#') => drop(bytes.find(|&(_, byte)| byte == b'\n')),
            (None, _) if byte.is_ascii_whitespace() => {}
            (None, _) => {
                match byte {
                    b'"' | b'\'' => quote = Some(byte),
                    b'[' if after_word => {
                        // All the bytes before an ASCII one are whole characters.
                        normal.push_str(text.get(copied..at).unwrap_or_default());
                        normal.push(':');
                        copied = at;
                        depth += 1;
                    }
                    b'{' | b'<' | b'[' => depth += 1,
                    b'}' | b'>' | b']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                after_word = byte.is_ascii_alphanumeric() || byte == b'_';
            }
        }
        if depth > DEPTH_MAX {
            return Err(ConfigError::Syntax(format!("nested deeper than {DEPTH_MAX} levels")));
        }
    }
    normal.push_str(text.get(copied..).unwrap_or_default());
    Ok(normal)
}

pub(super) fn value(field: &str, problem: String) -> ConfigError {
    ConfigError::Value { field: bounded(field), problem }
}

/// Foreign text in a message, cut where it is long.
pub(super) fn bounded(text: &str) -> String {
    const SHOWN: usize = 300;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn put(message: &mut DynamicMessage, field: &str, content: Value) -> Result<(), ConfigError> {
    message.try_set_field_by_name(field, content).map_err(|error| ConfigError::Syntax(format!("{field}: {error}")))
}

pub(super) fn text(message: &DynamicMessage, field: &str) -> String {
    message.get_field_by_name(field).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

pub(super) fn some_text(message: &DynamicMessage, field: &str) -> Option<String> {
    Some(text(message, field)).filter(|text| !text.is_empty())
}

/// A number, an enumeration or a boolean as a number; 0 where it is not stated.
pub(super) fn int(message: &DynamicMessage, field: &str) -> i64 {
    match message.get_field_by_name(field).as_deref() {
        Some(Value::Bool(value)) => i64::from(*value),
        Some(Value::I32(value) | Value::EnumNumber(value)) => i64::from(*value),
        Some(Value::U32(value)) => i64::from(*value),
        Some(Value::I64(value)) => *value,
        Some(Value::U64(value)) => i64::try_from(*value).unwrap_or(i64::MAX),
        _ => 0,
    }
}

pub(super) fn child(message: &DynamicMessage, field: &str) -> Option<DynamicMessage> {
    if !message.has_field_by_name(field) {
        return None;
    }
    message.get_field_by_name(field)?.as_message().cloned()
}

pub(super) fn messages(message: &DynamicMessage, field: &str) -> Vec<DynamicMessage> {
    messages_or_numbers(message, field).iter().filter_map(|value| value.as_message().cloned()).collect()
}

fn numbers(message: &DynamicMessage, field: &str) -> Vec<i64> {
    messages_or_numbers(message, field).iter().filter_map(Value::as_i64).collect()
}

pub(super) fn messages_or_numbers(message: &DynamicMessage, field: &str) -> Vec<Value> {
    message.get_field_by_name(field).and_then(|value| value.as_list().map(<[Value]>::to_vec)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::DeviceType;
    use serde_json::json;

    fn spec(name: &str, dtype: DType, dims: &[i64]) -> Spec {
        let shape = dims.iter().map(|&dim| usize::try_from(dim).map_or(Dim::Dynamic(None), Dim::Fixed)).collect();
        Spec { name: name.into(), ty: ValueType::Tensor { dtype, shape: Some(shape) }, optional: false }
    }

    #[test]
    fn both_spellings_give_the_same_configuration() {
        // Triton's files mostly leave out the colon before a list, and end lists of messages in any way.
        let text = r#"
            name: "m"  # a comment with { and "
            platform: "onnxruntime_onnx"
            max_batch_size: 8
            input [ { name: "x", data_type: TYPE_FP32, dims: [ 3, -1 ] } ]
            output { name: 'y' data_type: TYPE_INT64 dims: 1 label_filename: "labels.txt" }
            instance_group [ { kind: KIND_CPU count: 2 }, { count: 1 } ]
            version_policy: { latest { num_versions: 2 } }
            dynamic_batching { default_queue_policy { max_queue_size: 7 } }
            parameters { key: "intra_op_thread_count" value { string_value: "3" } }
            model_warmup { name: "w" batch_size: 2 inputs { key: "x" value { data_type: TYPE_FP32 dims: [3, 4] zero_data: true } } }
        "#;
        let json = json!({
            "name": "m", "platform": "onnxruntime_onnx", "maxBatchSize": 8,
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["3", -1]}],
            "output": [{"name": "y", "dataType": "TYPE_INT64", "dims": [1], "label_filename": "labels.txt"}],
            "instance_group": [{"kind": "KIND_CPU", "count": 2}, {"count": 1}],
            "version_policy": {"latest": {"num_versions": 2}},
            "dynamic_batching": {"default_queue_policy": {"max_queue_size": 7}},
            "parameters": {"intra_op_thread_count": {"string_value": "3"}},
            "model_warmup": [{"name": "w", "batch_size": 2, "inputs": {"x": {"data_type": "TYPE_FP32", "dims": [3, 4], "zero_data": true}}}],
        });
        for config in [GivenConfig::parse_text(text), GivenConfig::parse_json(&json.to_string())] {
            let config = config.unwrap();
            assert_eq!(config.max_batch_size, 8);
            assert_eq!(config.version_policy, Some(VersionPolicy::Latest(NonZeroUsize::new(2).unwrap())));
            assert_eq!(config.settings.batch.instances, Some(3));
            assert_eq!(config.settings.batch.max_queue, Some(7));
            assert_eq!(config.settings.batch.intra_threads, Some(3));
            assert_eq!(config.settings.device.device_type, Some(DeviceType::Cpu));
            assert_eq!(config.outputs[0].label_filename.as_deref(), Some("labels.txt"));
            assert_eq!(config.warmup[0].inputs[0].shape, [2, 3, 4]);
            let graph = [spec("x", DType::Fp32, &[-1, 3, -1])];
            config.check_graph(&graph, &[spec("y", DType::Int64, &[-1, 1])]).unwrap();
        }
    }

    #[test]
    fn accelerators_choose_the_device() {
        #[track_caller]
        fn check(text: &str, expected: Option<DeviceType>) {
            assert_eq!(GivenConfig::parse_text(text).unwrap().settings.device.device_type, expected, "{text}");
        }
        let tensorrt =
            "optimization { execution_accelerators { gpu_execution_accelerator : [ { name : \"tensorrt\" } ] } }";
        check(tensorrt, Some(DeviceType::Tensorrt));
        check(&format!("{tensorrt} instance_group {{ kind: KIND_CPU }}"), Some(DeviceType::Cpu));
        check("instance_group { kind: KIND_GPU gpus: [ 1 ] }", Some(DeviceType::Cuda));
        check("instance_group { kind: KIND_AUTO }", None);
        check("", None);
    }

    #[test]
    fn what_is_wrong_or_not_served_is_named() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let error = GivenConfig::parse_text(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.len() < 1_000);
        }
        check(
            "platform: \"tensorflow_savedmodel\"",
            "platform: \"tensorflow_savedmodel\" is not served; ONNX models are",
        );
        check("backend: \"python\"", "backend");
        check("ensemble_scheduling { step { model_name: \"a\" } }", "ensemble");
        check("sequence_batching { }", "sequence batching is not served");
        check(
            "input { name: \"x\" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }",
            "input 'x': reshape: an empty shape needs max_batch_size above 0",
        );
        check(
            "output { name: \"y\" data_type: TYPE_FP32 dims: [ 4 ] reshape { shape: [ 2, 3 ] } }",
            "output 'y': reshape: dims [4] and shape [2, 3]",
        );
        check("model_repository_agents { agents [ { name: \"checksum\" } ] }", "the agent \"checksum\" is not served");
        check("max_batch_size: -1", "max_batch_size: expected 0 or more, got -1");
        check("max_batchsize: 1", "max_batchsize");
        check("input { data_type: TYPE_FP32 }", "without a name");
        check("input { name: \"x\" dims: -2 }", "dims");
        check("instance_group { count: -1 }", "instance_group.count");
        check("instance_group { count: 100000 }", "instance_group.count");
        check("version_policy { specific { versions: [] } }", "version");
        check("version_policy { specific { versions: [-1] } }", "version");
        check("default_model_filename: \"/etc/passwd\"", "default_model_filename");
        check("output { name: \"y\" label_filename: \"../x\" }", "label_filename");
        check("model_operations { op_library_filename: \"x.so\" }", "library of operators");
        check("model_transaction_policy { decoupled: true }", "decoupled");
        check(
            "model_warmup { inputs { key: \"x\" value { data_type: TYPE_STRING input_data_file: \"f\" } } }",
            "input_data_file",
        );
        check(
            "model_warmup { inputs { key: \"x\" value { data_type: TYPE_FP32 input_data_file: \"../f\" } } }",
            "input_data_file",
        );
        check("name: \"a", "");
        check("{", "");
        check(&"[a/inference.ModelConfig] {".repeat(50_000), "nested deeper");
        check(&"optimization { ".repeat(50_000), "nested deeper");
        check(&"x".repeat(100_000), "");
        let deep = format!("{{\"input\":{}", "[".repeat(100_000));
        assert!(GivenConfig::parse_json(&deep).is_err());
        assert!(GivenConfig::parse_json("{\"unknown\": 1}").is_err());
        assert!(GivenConfig::parse_json("{} x").is_err());
    }

    #[test]
    fn what_is_stated_must_agree_with_the_graph() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let config = GivenConfig::parse_text(text).unwrap();
            let inputs = [spec("x", DType::Fp32, &[-1, 3])];
            let got = config.check_graph(&inputs, &[spec("y", DType::String, &[-1])]);
            assert_eq!(got.err().map(|error| error.to_string()).unwrap_or_default(), expected);
        }
        check("", "");
        check("input { name: \"x\" data_type: TYPE_FP32 dims: [ -1, 3 ] }", "");
        check("input { name: \"x\" data_type: TYPE_FP32 dims: [ 4, -1 ] }", "");
        check(
            "max_batch_size: 4 input { name: \"x\" data_type: TYPE_FP32 dims: 3 } output { name: \"y\" data_type: TYPE_STRING }",
            "",
        );
        check(
            "input { name: \"z\" data_type: TYPE_FP32 dims: 3 }",
            "input 'z': the graph has no input of this name; it has x",
        );
        check(
            "input { name: \"x\" data_type: TYPE_FP16 dims: [ -1, 3 ] }",
            "input 'x': data_type: the graph declares TYPE_FP32, the configuration TYPE_FP16",
        );
        check(
            "input { name: \"x\" data_type: TYPE_FP32 dims: [ -1, 4 ] }",
            "input 'x': dims: the graph declares FP32[-1, 3], the configuration [-1, 4]",
        );
        let config = GivenConfig::parse_text("max_batch_size: 4").unwrap();
        let error = config.check_graph(&[spec("x", DType::Fp32, &[1, 3])], &[]).unwrap_err().to_string();
        assert!(error.contains("state max_batch_size: 0"), "{error}");
    }

    #[test]
    fn the_configuration_in_force_is_complete() {
        let name = ModelName::parse("m").unwrap();
        let inputs = [spec("x", DType::Fp32, &[-1, 3])];
        let outputs = [spec("y", DType::String, &[-1]), spec("z", DType::Int4, &[])];
        let in_force = InForce {
            name: &name,
            policy: &VersionPolicy::default(),
            graph_file: "model.onnx",
            inputs: &inputs,
            outputs: &outputs,
            instances: 2,
            device: "cuda:1",
        };
        let config = effective(None, &in_force).unwrap();
        assert_eq!(config["name"], "m");
        assert_eq!(config["platform"], "onnxruntime_onnx");
        assert_eq!(config["max_batch_size"], 0);
        assert_eq!(config["input"][0]["dims"], json!([-1, 3]));
        assert_eq!(config["input"][0]["data_type"], "TYPE_FP32");
        assert_eq!(config["output"][0]["data_type"], "TYPE_STRING");
        assert_eq!(config["output"][1]["data_type"], "TYPE_INVALID");
        assert_eq!(config["version_policy"], json!({"latest": {"num_versions": 1}}));
        assert_eq!(config["instance_group"][0]["count"], 2);
        assert_eq!(config["instance_group"][0]["kind"], "KIND_GPU");
        assert_eq!(config["instance_group"][0]["gpus"], json!([1]));
        assert_eq!(config["default_model_filename"], "model.onnx");
        assert!(config.get("sequence_batching").is_none(), "{config}");

        let given = GivenConfig::parse_text(
            "max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 9 } metric_tags { key: 'a' value: 'b' }",
        );
        let config = effective(Some(&given.unwrap()), &in_force).unwrap();
        assert_eq!(config["max_batch_size"], 4);
        assert_eq!(config["input"][0]["dims"], json!([3]));
        assert_eq!(config["dynamic_batching"]["max_queue_delay_microseconds"], 9);
        assert_eq!(config["metric_tags"], json!({"a": "b"}));
        // What is written can be read again.
        GivenConfig::parse_json(&config.to_string()).unwrap();
    }

    /// The messages that a configuration is made of, by name, with the names of their fields.
    fn messages_of(message: &MessageDescriptor, into: &mut std::collections::BTreeMap<String, Vec<String>>) {
        let name = message.full_name().trim_start_matches("inference.").to_owned();
        if !message.is_map_entry() {
            if into.contains_key(&name) {
                return;
            }
            into.insert(name, message.fields().map(|field| field.name().to_owned()).collect());
        }
        message
            .fields()
            .filter_map(|field| field.kind().as_message().cloned())
            .for_each(|inner| messages_of(&inner, into));
    }

    #[test]
    fn the_page_names_every_field_of_the_schema_and_no_other() {
        let mut schema = std::collections::BTreeMap::new();
        messages_of(&descriptor("ModelConfig").unwrap(), &mut schema);
        assert!(schema.len() > 30, "{schema:?}");
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/triton.md"));
        let mut named = std::collections::BTreeMap::new();
        for section in page.split("\n## ").skip(1) {
            let (title, text) = section.split_once('\n').unwrap();
            let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
            let fields: Vec<String> = rows
                .map(|(field, words)| {
                    let kinds = ["honoured", "shown", "named", "refused", "see ", "of "];
                    assert!(kinds.iter().any(|kind| words.starts_with(kind)), "{title}: {field}: {words}");
                    field.to_owned()
                })
                .collect();
            assert!(named.insert(title.to_owned(), fields).is_none(), "{title} stands twice");
        }
        for fields in schema.values_mut().chain(named.values_mut()) {
            fields.sort();
        }
        assert_eq!(named, schema);
    }

    use proptest::prelude::*;

    proptest! {
        /// Pieces of configurations in any order, and any text at all.
        #[test]
        fn no_text_makes_the_parser_panic(
            pieces in proptest::collection::vec(prop_oneof![
                proptest::sample::select(vec![
                    "input", "output", "parameters", "model_warmup", "inputs", "key", "value", "dims", "name", "optimization",
                    "version_policy", "specific", "versions", "instance_group", "count", "data_type", "TYPE_FP32", "max_batch_size",
                    "{", "}", "[", "]", "<", ">", ":", ",", ";", "-", "1", "-9223372036854775808", "99999999999999999999", "0x1f",
                    "1e400", "\"a\"", "'b'", "\"\\377\"", "\"\\", "#", "\n", " ", "\0", "ä",
                ]).prop_map(str::to_owned),
                ".{0,6}",
            ], 0..40),
        ) {
            let text = pieces.join(" ");
            let _ = GivenConfig::parse_text(&text);
            let _ = GivenConfig::parse_text(&pieces.concat());
            let _ = GivenConfig::parse_json(&text);
            let _ = crate::models::Manifest::parse(&text);
        }
    }
}
