//! Memory: what models take and give back, the budget, and cleaning up.

use crate::server::{PATIENCE, Server, store_of};
use crate::stats::Metrics;
use prost::Message;
use proto::tensor_shape_proto::{Dimension, dimension};
use proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The ONNX file format, generated from `proto/onnx-ml.proto`.
mod proto {
    #![expect(clippy::all, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

const MIB: f64 = (1 << 20) as f64;

/// `x [N, 64]` → `MatMul` with `a [64, wide]` → `MatMul` with `b [wide, 64]` → `y [N, 64]`, in the folder's version 1.
pub fn write_wide_model(folder: &Path, wide: usize) {
    write_products(folder, &[64], [(64, wide), (wide, 64)]);
}

/// `x [N, 1024, 1]` → `w [N, 1024, 1024]`, 4 MiB a row → `y [N, 1024, 1]`: hardly any weights.
fn write_growing_model(folder: &Path) {
    write_products(folder, &[1024, 1], [(1, 1024), (1024, 1)]);
}

/// `x [N, …]` → `MatMul` with a matrix of this size → another → `y [N, …]`.
fn write_products(folder: &Path, row: &[i64], [a, b]: [(usize, usize); 2]) {
    let dim = |value| Dimension { value: Some(value), ..Dimension::default() };
    let value = |name: &str| {
        let rows = dim(dimension::Value::DimParam("N".into()));
        let rest = row.iter().map(|size| dim(dimension::Value::DimValue(*size)));
        let dims: Vec<Dimension> = std::iter::once(rows).chain(rest).collect();
        let tensor = type_proto::Tensor { elem_type: Some(1), shape: Some(TensorShapeProto { dim: dims }) };
        let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
        ValueInfoProto { name: Some(name.into()), r#type: Some(ty), ..ValueInfoProto::default() }
    };
    let weights = |name: &str, rows: usize, columns: usize| TensorProto {
        name: Some(name.into()),
        dims: vec![rows as i64, columns as i64],
        data_type: Some(1),
        raw_data: Some(varied(rows, rows * columns).into()),
        ..TensorProto::default()
    };
    let node = |inputs: [&str; 2], output: &str| NodeProto {
        op_type: Some("MatMul".into()),
        input: inputs.map(str::to_owned).to_vec(),
        output: vec![output.into()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("wide".into()),
        node: vec![node(["x", "a"], "w"), node(["w", "b"], "y")],
        initializer: vec![weights("a", a.0, a.1), weights("b", b.0, b.1)],
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    write_graph(folder, graph);
}

/// `size i64[1]` → so many zeros → their largest, `y []`: a few bytes that ask for any amount of memory.
pub fn write_hungry_model(folder: &Path) {
    let value = |name: &str, element: i32, sizes: &[i64]| {
        let dim = |size: &i64| Dimension { value: Some(dimension::Value::DimValue(*size)), ..Dimension::default() };
        let shape = TensorShapeProto { dim: sizes.iter().map(dim).collect() };
        let tensor = type_proto::Tensor { elem_type: Some(element), shape: Some(shape) };
        let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
        ValueInfoProto { name: Some(name.into()), r#type: Some(ty), ..ValueInfoProto::default() }
    };
    let node = |kind: &str, input: &str, output: &str, attribute: Vec<AttributeProto>| NodeProto {
        op_type: Some(kind.into()),
        input: vec![input.into()],
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    };
    // 2: a whole number.
    let keepdims =
        AttributeProto { name: Some("keepdims".into()), r#type: Some(2), i: Some(0), ..AttributeProto::default() };
    let graph = GraphProto {
        name: Some("hungry".into()),
        node: vec![
            node("ConstantOfShape", "size", "zeros", Vec::new()),
            node("ReduceMax", "zeros", "y", vec![keepdims]),
        ],
        input: vec![value("size", 7, &[1])],
        output: vec![value("y", 1, &[])],
        ..GraphProto::default()
    };
    write_graph(folder, graph);
}

/// `x i64[1]` → `x` plus the result of many products of matrices of zeros, `y`: ONNX Runtime computes them while it loads the graph,
/// which takes a second or more.
pub fn write_slow_to_load_model(folder: &Path) {
    const PRODUCTS: usize = 300;
    let dim = Dimension { value: Some(dimension::Value::DimValue(1)), ..Dimension::default() };
    let tensor = type_proto::Tensor { elem_type: Some(1), shape: Some(TensorShapeProto { dim: vec![dim] }) };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    let value =
        |name: &str| ValueInfoProto { name: Some(name.into()), r#type: Some(ty.clone()), ..ValueInfoProto::default() };
    let node = |kind: &str, inputs: &[&str], output: &str| NodeProto {
        op_type: Some(kind.into()),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    };
    let size = TensorProto {
        name: Some("size".into()),
        dims: vec![2],
        data_type: Some(7),
        int64_data: vec![512, 512],
        ..TensorProto::default()
    };
    let mut nodes = vec![node("ConstantOfShape", &["size"], "m0")];
    for index in 0..PRODUCTS {
        let (from, to) = (format!("m{index}"), format!("m{}", index + 1));
        nodes.push(node("MatMul", &[&from, &from], &to));
    }
    nodes.push(node("ReduceMax", &[&format!("m{PRODUCTS}")], "most"));
    nodes.push(node("Reshape", &["most", "one"], "flat"));
    nodes.push(node("Add", &["x", "flat"], "y"));
    let one = TensorProto { name: Some("one".into()), dims: vec![1], int64_data: vec![1], ..size.clone() };
    let graph = GraphProto {
        name: Some("slow to load".into()),
        node: nodes,
        initializer: vec![size, one],
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    write_graph(folder, graph);
}

/// The model of this graph, in the folder's version 1.
fn write_graph(folder: &Path, graph: GraphProto) {
    let opset = OperatorSetIdProto { version: Some(21), ..OperatorSetIdProto::default() };
    let model =
        ModelProto { ir_version: Some(10), opset_import: vec![opset], graph: Some(graph), ..ModelProto::default() };
    std::fs::create_dir_all(folder.join("1")).unwrap();
    std::fs::write(folder.join("1/model.onnx"), model.encode_to_vec()).unwrap();
}

/// Small floats, no two runs of them alike: ONNX Runtime keeps one copy of equal weights.
fn varied(seed: usize, count: usize) -> Vec<u8> {
    let mut state = seed as u32;
    let numbers = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 * 1e-10
    });
    numbers.take(count).flat_map(f32::to_le_bytes).collect()
}

/// Ends the traffic also where the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// 50 MB of weights.
const WIDE_50_MB: usize = 100_000;

fn rows(count: usize) -> Value {
    json!({ "inputs": vec![vec![0.5; 64]; count] })
}

fn resident(server: &Server) -> f64 {
    server.get_json("/v1/system")["memory"]["resident_mb"].as_f64().unwrap()
}

fn memory(server: &Server, model: &str) -> f64 {
    server.get_json(&format!("/v1/models/{model}/memory"))["cpu_memory_mb"].as_f64().unwrap()
}

fn state(server: &Server, model: &str) -> String {
    server.get_json(&format!("/v1/models/{model}"))["state"].as_str().unwrap().to_owned()
}

#[test]
fn memory_comes_back_after_loads_and_unloads_beside_traffic() {
    let store = store_of(&["mlp"]);
    write_wide_model(&store.path().join("wide"), WIDE_50_MB);
    let server = Server::on(store, &[]);
    let mlp = json!({"inputs": [vec![0.5; 32]]});
    let cycle = |load: &str| assert_eq!(server.post_json(&format!("/v1/models/wide/{load}"), &json!({})).0, 200);
    // What the process takes only once, such as its threads' buffers, is there before the start is measured.
    for _ in 0..20 {
        assert_eq!(server.post_json("/v1/models/mlp/predict", &mlp).0, 200);
    }
    assert_eq!(server.post_json("/v1/models/wide/predict", &rows(2)).0, 200);
    cycle("unload");
    let start = resident(&server);
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(server.post_json("/v1/models/mlp/predict", &mlp).0, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..5 {
            cycle("load");
            assert!(resident(&server) > start + 40.0, "the model was meant to be large");
            let (status, answer) = server.post_json("/v1/models/wide/predict", &rows(2));
            assert_eq!(status, 200, "{answer}");
            cycle("unload");
        }
    });
    let end = resident(&server);
    assert!(answered.load(Ordering::Relaxed) > 0);
    assert!(end < start + 15.0, "{start} MiB at the start, {end} at the end");
}

#[test]
fn a_models_memory_is_measured() {
    let store = store_of(&["mlp"]);
    write_wide_model(&store.path().join("wide"), WIDE_50_MB);
    // Two instances: one copy of the weights.
    let server = Server::on(store, &[("ORTUS_BATCH__INSTANCES", "2")]);
    let answer = server.get_json("/v1/models/wide/memory");
    let fields: Vec<&String> = answer.as_object().unwrap().keys().collect();
    let expected = [
        "gpu_allocated_mb",
        "gpu_reserved_mb",
        "gpu_max_allocated_mb",
        "cpu_memory_mb",
        "total_params",
        "trainable_params",
        "model_size_mb",
        "activation",
    ];
    assert_eq!(fields, expected);
    assert_eq!(answer["gpu_allocated_mb"], Value::Null);
    assert_eq!(answer["total_params"], 2 * 64 * WIDE_50_MB);
    let size = answer["model_size_mb"].as_f64().unwrap();
    assert!((size - (2 * 64 * WIDE_50_MB * 4) as f64 / MIB).abs() < 1.0, "{answer}");
    let taken = answer["cpu_memory_mb"].as_f64().unwrap();
    assert!(taken > 0.8 * size && taken < 1.8 * size, "{answer}");
    assert_eq!(server.get_json("/v1/models/wide")["memory_usage"]["model_size_mb"], answer["model_size_mb"]);
    let system = server.get_json("/v1/system");
    assert!(system["memory"]["models_mb"].as_f64().unwrap() >= taken, "{system}");
    assert_eq!(server.get("/v1/models/nope/memory").status(), 404);
    // Not loaded: nothing is known.
    assert_eq!(server.post_json("/v1/models/wide/unload", &json!({})).0, 200);
    assert_eq!(server.get_json("/v1/models/wide/memory")["cpu_memory_mb"], Value::Null);
}

/// The bytes that a row of the growing model really takes: what lies between its products, and what comes out.
const GROWING_ROW: f64 = (4 << 20) as f64 + 4096.0;

#[test]
fn what_a_row_takes_is_measured_and_bounds_the_batch() {
    let store = store_of(&[]);
    write_growing_model(&store.path().join("growing"));
    // Of the budget, 2 MiB are for the model; half of the rest is for two instances, whose arenas take twice what is in use.
    let server = Server::on(
        store,
        &[
            ("ORTUS_STORE__MAX_LOADED_MEMORY_MB", "162"),
            ("ORTUS_DEVICE__DEVICE_TYPE", "cpu"),
            ("ORTUS_DEVICE__MEMORY_FRACTION", "0.5"),
            ("ORTUS_BATCH__INSTANCES", "2"),
            ("ORTUS_BATCH__MAX_BATCH_SIZE", "64"),
        ],
    );
    let activation = server.get_json("/v1/models/growing/memory")["activation"].clone();
    let number = |key: &str| activation[key].as_f64().unwrap();
    let row = number("bytes_per_row");
    assert!(row > GROWING_ROW / 1.25 && row < GROWING_ROW * 1.25, "{activation}");
    assert!(number("fixed_bytes") < GROWING_ROW, "{activation}");
    assert_eq!((&activation["measured_by"], &activation["tokens_per_row"]), (&json!("arena"), &Value::Null));
    assert_eq!((number("input_bytes_per_row"), number("lowered_from")), (4096.0, 64.0), "{activation}");
    let (budget, rows) = (number("budget_bytes"), number("optimal_batch_size"));
    assert!(budget > 70.0 * MIB && budget < 80.0 * MIB, "{activation}");
    assert!((3.0..=5.0).contains(&rows), "{activation}");
    let model = server.get_json("/v1/models/growing");
    assert_eq!(model["config"]["batch"]["max_batch_size"].as_f64(), Some(rows), "{model}");
    assert_eq!(model["memory_usage"]["activation"], activation);
    assert!(model["batching"]["evidence"].as_str().unwrap().contains("rows at once fit the memory"), "{model}");
    // More rows are split, and what their runs take stays within the budget.
    let request = json!({ "inputs": vec![vec![[0.5]; 1024]; 24] });
    let (status, answer) = server.post_json("/v1/models/growing/predict", &request);
    assert_eq!((status, answer["outputs"]["y"].as_array().map(Vec::len)), (200, Some(24)));
    assert!(memory(&server, "growing") * MIB < budget + 8.0 * MIB, "{}", memory(&server, "growing"));
    server.assert_well();
}

#[test]
fn without_an_arena_the_peak_of_the_process_tells_what_a_row_takes() {
    let store = store_of(&[]);
    write_growing_model(&store.path().join("growing"));
    let server = Server::on(store, &[("ORTUS_OPTIMIZATION__MEMORY_ARENA", "false")]);
    let activation = server.get_json("/v1/models/growing/memory")["activation"].clone();
    let row = activation["bytes_per_row"].as_f64().unwrap();
    assert_eq!(activation["measured_by"], "process");
    assert!(row > GROWING_ROW / 2.0 && row < GROWING_ROW * 2.0, "{activation}");
    // Nothing is lowered on a machine that has the room.
    assert_eq!(activation["lowered_from"], Value::Null, "{activation}");
}

/// F74.
#[test]
fn what_one_large_request_took_is_given_back() {
    let store = store_of(&[]);
    write_wide_model(&store.path().join("wide"), 32_000);
    // Large requests are runs of their own: by default they are split.
    std::fs::write(store.path().join("wide/model.toml"), "[batch]\nmax_batch_size = 1000\n").unwrap();
    let server = Server::on(store, &[]);
    for _ in 0..20 {
        assert_eq!(server.post_json("/v1/models/wide/predict", &rows(1)).0, 200);
    }
    let usual = memory(&server, "wide");
    // 128 MB between the two products, given back by the model itself.
    assert_eq!(server.post_json("/v1/models/wide/predict", &rows(1000)).0, 200);
    for _ in 0..20 {
        assert_eq!(server.post_json("/v1/models/wide/predict", &rows(1)).0, 200);
    }
    assert!(memory(&server, "wide") < usual + 20.0, "{usual}, then {}", memory(&server, "wide"));
    // Sizes that recur keep their memory, until somebody asks.
    for _ in 0..3 {
        assert_eq!(server.post_json("/v1/models/wide/predict", &rows(1000)).0, 200);
    }
    assert!(memory(&server, "wide") > usual + 100.0, "{usual}, then {}", memory(&server, "wide"));
    let (status, cleaned) = server.post_json("/v1/models/wide/cleanup", &json!({}));
    assert_eq!(status, 200);
    assert!(cleaned["arena_bytes_freed"].as_u64().unwrap() > 100 << 20, "{cleaned}");
    assert!(cleaned["bytes_freed"].as_u64().unwrap() > 50 << 20, "{cleaned}");
    assert!(memory(&server, "wide") < usual + 20.0);
    assert_eq!(server.post_json("/v1/models/wide/predict", &rows(3)).0, 200);
    let (status, cleaned) = server.post_json("/v1/cleanup", &json!({}));
    assert_eq!((status, &cleaned["unloaded"]), (200, &Value::Null));
    assert_eq!(server.post_json("/v1/models/nope/cleanup", &json!({})).0, 404);
}

#[test]
fn a_cleanup_unloads_all_models_where_it_is_asked_to() {
    let store = store_of(&["versions"]);
    write_wide_model(&store.path().join("wide"), WIDE_50_MB);
    let server = Server::on(store, &[]);
    assert_eq!(server.post_json("/v1/models/wide/predict", &rows(3)).0, 200);
    let (status, cleaned) = server.post_json("/v1/cleanup?unload=true", &json!({}));
    assert_eq!((status, &cleaned["unloaded"]), (200, &json!(["versions", "wide"])), "{cleaned}");
    assert!(cleaned["bytes_freed"].as_u64().unwrap() > 40 << 20, "{cleaned}");
    for model in server.get_json("/v1/models")["models"].as_array().unwrap() {
        assert_eq!(model["state"], "unloaded", "{model}");
    }
    assert_eq!(server.post_json("/v1/models/wide/predict", &rows(3)).0, 503);
    assert_eq!(server.post_json("/v1/cleanup?unload=true", &json!({})).1["unloaded"], json!([]));
    assert_eq!(server.post_json("/v1/cleanup?unlode=true", &json!({})).0, 400);
    assert_eq!(server.post_json("/v1/models/wide/load", &json!({})).0, 200);
    assert_eq!(server.post_json("/v1/models/wide/predict", &rows(3)).0, 200);
}

/// F89.
#[test]
fn models_beyond_the_budget_take_turns() {
    let store = store_of(&[]);
    for model in ["a", "b", "c"] {
        // 20 MB each.
        write_wide_model(&store.path().join(model), 40_000);
    }
    let server = Server::on(store, &[("ORTUS_STORE__MAX_LOADED_MEMORY_MB", "50")]);
    for round in 0..2 {
        for model in ["a", "b", "c"] {
            let (status, answer) = server.post_json(&format!("/v1/models/{model}/predict"), &rows(1));
            assert_eq!(status, 200, "round {round}, {model}: {answer}");
        }
    }
    // One or two, by how the first loads, side by side, were measured; the last asked for is among them.
    let ready = ["a", "b", "c"].iter().filter(|model| state(&server, model) == "ready").count();
    assert!((1..=2).contains(&ready), "{ready}");
    assert_eq!(state(&server, "c"), "ready");
    let metrics = Metrics::of(&server);
    assert!(metrics.sum("ortus_model_evictions_total", &[("model", "a")]) >= 1);
    // What is not loaded holds nothing.
    assert!(metrics.sum("ortus_model_memory_bytes", &[]) <= 50 << 20);
    assert!(metrics.sum("ortus_model_memory_bytes", &[("model", "c"), ("device", "cpu")]) > 15 << 20);
    let memory = &server.get_json("/v1/system")["memory"];
    assert_eq!(memory["budget_mb"], 50.0);
    assert!(memory["models_mb"].as_f64().unwrap() <= 50.0, "{memory}");
    server.assert_well();
}

/// F89.
#[test]
fn a_model_over_the_budget_is_refused_before_it_is_loaded() {
    let store = store_of(&["mlp"]);
    write_wide_model(&store.path().join("wide"), WIDE_50_MB);
    let server = Server::on(store, &[("ORTUS_STORE__MAX_LOADED_MEMORY_MB", "40")]);
    for (path, body) in [("/v1/models/wide/load", json!({})), ("/v1/models/wide/predict", rows(1))] {
        let (status, answer) = server.post_json(path, &body);
        assert_eq!((status, &answer["code"]), (507, &json!("insufficient_memory")), "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains("max_loaded_memory_mb"), "{answer}");
    }
    assert_eq!(server.post_json("/v2/repository/models/wide/load", &json!({})).0, 507);
    assert_eq!(state(&server, "wide"), "unloaded");
    // What serves serves on.
    assert_eq!(server.post_json("/v1/models/mlp/predict", &json!({"inputs": [vec![0.5; 32]]})).0, 200);
    server.assert_well();
}

/// F89.
#[test]
fn a_busy_model_is_not_evicted() {
    let store = store_of(&["slow"]);
    write_wide_model(&store.path().join("wide"), 40_000);
    // `slow` is put at 2 MiB and `wide` at 28: not both.
    let server = Server::on(store, &[("ORTUS_STORE__MAX_LOADED_MEMORY_MB", "29"), ("ORTUS_STORE__AUTOLOAD", "false")]);
    assert_eq!(server.post_json("/v1/models/slow/load", &json!({})).0, 200);
    let endless = json!({"inputs": slow_inputs(&server), "timeout_ms": 3000});
    std::thread::scope(|scope| {
        let request = scope.spawn(|| {
            // 503: `wide` was being loaded in that moment.
            let answers = std::iter::repeat_with(|| server.post_json("/v1/models/slow/predict", &endless).0);
            answers.take(1000).find(|status| *status != 503)
        });
        let deadline = Instant::now() + PATIENCE;
        let refused = loop {
            let response = server.post("/v1/models/wide/load").send().unwrap();
            if response.status() == 503 {
                break response;
            }
            // The long request has not come yet: `slow` was idle and had to go. It comes back with the request.
            assert!(Instant::now() < deadline, "{}", response.status());
            std::thread::sleep(Duration::from_millis(100));
        };
        assert!(refused.headers().contains_key("retry-after"));
        assert!(refused.text().unwrap().contains("memory_busy"));
        assert_eq!(request.join().unwrap(), Some(504));
    });
    assert_eq!(server.post_json("/v1/models/wide/load", &json!({})).0, 200);
    assert_eq!((state(&server, "slow"), state(&server, "wide")), ("unloaded".to_owned(), "ready".to_owned()));
}

/// Inputs of `slow` that run until they are stopped.
fn slow_inputs(server: &Server) -> Value {
    let meta = server.get_json("/v2/models/slow");
    let inputs = meta["inputs"].as_array().unwrap().iter().map(|input| {
        let dims = input["shape"].as_array().unwrap().iter().map(|dim| dim.as_i64().unwrap().max(1));
        let shape: Vec<i64> = dims.collect();
        let count = usize::try_from(shape.iter().product::<i64>()).unwrap();
        let number = if input["datatype"] == "INT64" { json!(1_000_000_000_000u64) } else { json!(0.5) };
        let tensor = json!({"dtype": input["datatype"], "shape": shape, "data": vec![number; count]});
        (input["name"].as_str().unwrap().to_owned(), tensor)
    });
    Value::Object(inputs.collect())
}
