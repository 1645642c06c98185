//! Tests of arenas and shared sessions with a graph whose working memory is a thousand times its input.

use super::OnnxRuntime;
use super::proto::type_proto::Value as TypeValue;
use super::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_shape_proto, type_proto,
};
use crate::runtime::{
    DeviceSettings, DeviceType, GraphSource, Interrupt, MemorySettings, Runtime, RuntimeError, Session, SessionSettings,
};
use crate::tensor::{DType, Tensor, Value};
use prost::Message;

const WIDE: usize = 4096;
const MIB: u64 = 1 << 20;

fn value(name: &str) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension};
    let dim = |value| Dimension { value: Some(value), ..Dimension::default() };
    let shape =
        TensorShapeProto { dim: vec![dim(dimension::Value::DimParam("N".into())), dim(dimension::Value::DimValue(4))] };
    let tensor = type_proto::Tensor { elem_type: Some(1), shape: Some(shape) };
    let ty = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(ty), ..ValueInfoProto::default() }
}

fn weights(name: &str, rows: usize, columns: usize) -> TensorProto {
    let data: Vec<u8> = std::iter::repeat_n(1f32.to_le_bytes(), rows * columns).flatten().collect();
    TensorProto {
        name: Some(name.into()),
        dims: vec![rows as i64, columns as i64],
        data_type: Some(1),
        raw_data: Some(data.into()),
        ..TensorProto::default()
    }
}

/// `x [N, 4]` → wide `[N, 4096]` → `y [N, 4]`: each row of `y` is 4096 times the sum of its row of `x`, where that is
/// positive.
fn wide_graph() -> ModelProto {
    let node = |op: &str, inputs: &[&str], output: &str| NodeProto {
        op_type: Some(op.into()),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("wide".into()),
        node: vec![node("MatMul", &["x", "a"], "w"), node("Relu", &["w"], "r"), node("MatMul", &["r", "b"], "y")],
        initializer: vec![weights("a", 4, WIDE), weights("b", WIDE, 4)],
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: Some(21), ..OperatorSetIdProto::default() };
    ModelProto { ir_version: Some(10), opset_import: vec![opset], graph: Some(graph), ..ModelProto::default() }
}

fn load() -> Box<dyn Session> {
    load_with(MemorySettings::default())
}

fn load_with(memory: MemorySettings) -> Box<dyn Session> {
    load_bounded(memory, None).unwrap()
}

fn load_bounded(memory: MemorySettings, run_memory: Option<u64>) -> Result<Box<dyn Session>, RuntimeError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.onnx");
    std::fs::write(&file, wide_graph().encode_to_vec()).unwrap();
    let device = DeviceSettings { device_type: DeviceType::Cpu, ..DeviceSettings::default() };
    let settings = SessionSettings { device, memory, run_memory, ..SessionSettings::default() };
    let source = GraphSource { file, text_tower: None, folder: folder.path().to_owned(), max_file_bytes: 1 << 30 };
    OnnxRuntime::open().unwrap().load(&source, &settings)
}

fn run(session: &mut dyn Session, rows: usize) -> Vec<Value> {
    let input = Tensor::from_vec(DType::Fp32, vec![rows, 4], vec![1f32; rows * 4]).unwrap();
    let outputs = session.run(&[(0, input.into())], &[0], &Interrupt::new()).unwrap();
    let tensor = outputs[0].as_tensor().unwrap();
    assert_eq!(tensor.shape(), [rows, 4]);
    assert!(tensor.to_f32().unwrap().iter().all(|value| *value == 4.0 * WIDE as f32));
    outputs
}

fn arena(session: &dyn Session) -> u64 {
    session.working_memory().unwrap().read().unwrap().arena_bytes
}

#[test]
fn the_arena_of_one_huge_run_comes_back() {
    let mut session = load();
    for _ in 0..20 {
        run(session.as_mut(), 8);
    }
    let before = arena(session.as_ref());
    run(session.as_mut(), 4096);
    let memory = session.working_memory().unwrap().read().unwrap();
    assert!(memory.arena_max_bytes >= 64 * MIB, "the run was not large: {memory:?}");
    for _ in 0..20 {
        run(session.as_mut(), 8);
    }
    assert!(arena(session.as_ref()) < before + 4 * MIB, "{before}, then {}", arena(session.as_ref()));
}

/// F34.
#[test]
fn runs_stay_within_their_bound_each_session_within_its_own() {
    let bounded = |mebibytes| load_bounded(MemorySettings::default(), Some(mebibytes * MIB)).unwrap();
    // A run of 4096 rows takes 64 MiB at the least.
    let (mut narrow, mut wide, mut free) = (bounded(16), bounded(256), load());
    let mut shared = narrow.share().unwrap();
    for _ in 0..3 {
        for session in [&mut narrow, &mut shared] {
            let input = Tensor::from_vec(DType::Fp32, vec![4096, 4], vec![1f32; 4096 * 4]).unwrap();
            let error = session.run(&[(0, input.into())], &[0], &Interrupt::new()).unwrap_err();
            let RuntimeError::OutOfMemory(text) = &error else { panic!("{error}") };
            assert!(
                text.ends_with("the model's runs may take 16 MiB, which [performance] run_memory_mb sets"),
                "{text}"
            );
            run(session.as_mut(), 8);
            assert!(arena(session.as_ref()) < 20 * MIB);
        }
        run(wide.as_mut(), 4096);
        run(free.as_mut(), 4096);
    }
    // What is given back counts no more.
    wide.working_memory().unwrap().shrink();
    assert!(arena(wide.as_ref()) < 8 * MIB);
    run(wide.as_mut(), 4096);
    // Outputs outlive the session and its arena.
    let outputs = run(wide.as_mut(), 8);
    drop(wide);
    assert_eq!(outputs[0].as_tensor().unwrap().to_f32().unwrap()[0], 4.0 * WIDE as f32);
}

#[test]
fn what_earlier_runs_left_in_an_arena_takes_nothing_of_its_bound() {
    let mut session = load_bounded(MemorySettings::default(), Some(48 * MIB)).unwrap();
    // 5, 11, 23 and 35 MiB, for which the arena had as much apart from each other before it gave anything back.
    for rows in [320, 700, 1500, 2200].repeat(3) {
        run(session.as_mut(), rows);
        assert!(arena(session.as_ref()) <= 50 * MIB);
    }
}

#[test]
fn sessions_that_are_loaded_at_the_same_time_have_their_own_bounds() {
    std::thread::scope(|scope| {
        for mebibytes in [0u64, 16, 256, 0, 16, 256] {
            scope.spawn(move || {
                let bound = Some(mebibytes * MIB).filter(|bytes| *bytes > 0);
                for _ in 0..5 {
                    let mut session = load_bounded(MemorySettings::default(), bound).unwrap();
                    let input = Tensor::from_vec(DType::Fp32, vec![4096, 4], vec![1f32; 4096 * 4]).unwrap();
                    let ran = session.run(&[(0, input.into())], &[0], &Interrupt::new());
                    assert_eq!(ran.is_ok(), mebibytes != 16, "{mebibytes}");
                }
            });
        }
    });
}

#[test]
fn sizes_that_recur_keep_the_arena() {
    let mut session = load();
    run(session.as_mut(), 2048);
    for _ in 0..5 {
        run(session.as_mut(), 8);
        run(session.as_mut(), 2048);
    }
    assert!(arena(session.as_ref()) >= 32 * MIB);
}

#[test]
fn an_arena_is_shrunk_from_outside_and_the_session_runs_on() {
    // The very first run is the largest: also what it left comes back.
    let mut session = load();
    run(session.as_mut(), 2048);
    let memory = session.working_memory().unwrap();
    assert!(memory.read().unwrap().arena_bytes >= 32 * MIB);
    memory.shrink();
    assert!(memory.read().unwrap().arena_bytes < 8 * MIB, "{:?}", memory.read());
    run(session.as_mut(), 2048);
    drop(session);
    // The session is gone for everybody.
    assert_eq!(memory.read(), None);
    memory.shrink();
}

#[test]
fn an_output_that_is_held_survives_the_shrink() {
    let mut session = load();
    let outputs = run(session.as_mut(), 4096);
    session.working_memory().unwrap().shrink();
    run(session.as_mut(), 8);
    assert!(outputs[0].as_tensor().unwrap().to_f32().unwrap().iter().all(|value| *value == 4.0 * WIDE as f32));
}

#[test]
fn shared_sessions_run_at_the_same_time_beside_shrinks() {
    let mut first = load();
    let mut second = first.share().unwrap();
    let memory = first.working_memory().unwrap();
    assert!(std::sync::Arc::ptr_eq(&memory, &second.working_memory().unwrap()));
    std::thread::scope(|scope| {
        for session in [&mut first, &mut second] {
            scope.spawn(move || {
                for rows in (0..200).map(|index| 1 + index * 7 % 300) {
                    run(session.as_mut(), rows);
                }
            });
        }
        for _ in 0..50 {
            memory.shrink();
        }
    });
    drop(first);
    run(second.as_mut(), 3);
    assert!(memory.read().is_some());
}

#[test]
fn runs_are_the_same_without_arena_and_pattern() {
    for (arena, pattern) in [(true, false), (false, true), (false, false)] {
        let mut session = load_with(MemorySettings { arena, pattern });
        let mut other = session.share().unwrap();
        for rows in [8, 64, 8, 2048, 8] {
            run(session.as_mut(), rows);
            run(other.as_mut(), rows);
        }
        assert_eq!(session.working_memory().is_some(), arena);
        let kept = session.working_memory().and_then(|memory| memory.read()).map_or(0, |memory| memory.arena_bytes);
        assert!(if arena { kept >= 32 * MIB } else { kept == 0 }, "{arena} {pattern}: {kept}");
    }
}
