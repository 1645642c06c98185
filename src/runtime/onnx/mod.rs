//! ONNX Runtime behind the room's traits: finding the library, reading graphs, sessions on devices.
//!
//! The only place that knows the `ort` crate. `graph` reads the file before ONNX Runtime sees it and refuses external
//! data outside the model's folder. ONNX Runtime's own texts hold paths and source lines: they pass through `message`.

mod arena;
mod convert;
mod empty_sequence;
mod graph;
mod library;
mod memory;
mod message;
mod options;
mod pinned;
mod provider;
mod raw;
mod recorded;
mod session;
mod tensorrt;
#[cfg(test)]
mod working_memory_tests;
mod written;

pub use library::{LibraryError, OnnxRuntime, find_library};
pub use memory::set_up_allocator;

/// The ONNX file format, generated from `proto/onnx-ml.proto`.
pub(crate) mod proto {
    #![expect(clippy::all, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{
        DeviceSettings, DeviceType, Execution, GraphFacts, GraphSource, Interrupt, Runtime, RuntimeError, Session,
        SessionSettings,
    };
    use crate::tensor::{DType, Tensor, Value};
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    fn load_file(file: PathBuf) -> Result<Box<dyn Session>, RuntimeError> {
        let folder = file.parent().unwrap().to_owned();
        let device = DeviceSettings { device_type: DeviceType::Cpu, ..DeviceSettings::default() };
        let settings = SessionSettings { device, ..SessionSettings::default() };
        let runtime = OnnxRuntime::open().expect("ONNX Runtime's library; `make test` installs it");
        runtime.load(&GraphSource { file, text_tower: None, folder, max_file_bytes: 1 << 30 }, &settings)
    }

    fn load(name: &str) -> Box<dyn Session> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store");
        load_file(root.join(name).join("1/model.onnx")).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    #[track_caller]
    fn run(name: &str, inputs: &[Value]) -> Vec<Value> {
        let mut session = load(name);
        let inputs: Vec<_> = inputs.iter().cloned().enumerate().collect();
        let outputs: Vec<usize> = (0..session.outputs().len()).collect();
        session.run(&inputs, &outputs, &Interrupt::new()).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn f32s(shape: &[usize], data: &[f32]) -> Value {
        Tensor::from_vec(DType::Fp32, shape.to_vec(), data.to_vec()).unwrap().into()
    }

    #[test]
    fn sequences_and_maps_come_out_as_such() {
        let outputs = run("sequence", &[f32s(&[2], &[1.0, 2.0]), f32s(&[1, 2], &[3.0, 4.0])]);
        let Value::Sequence(items) = &outputs[0] else { panic!("{outputs:?}") };
        assert_eq!(items.len(), 2);
        let outputs = run("zipmap", &[f32s(&[1, 3], &[0.1, 0.7, 0.2])]);
        let Value::Sequence(items) = &outputs[0] else { panic!("{outputs:?}") };
        let Value::Map { keys, values } = &items[0] else { panic!("{items:?}") };
        let index = keys.strings().iter().position(|key| key == "versicolor").unwrap();
        assert_eq!(values.to_f32().unwrap()[index], 0.7);
    }

    #[test]
    fn unaligned_and_empty_inputs_run() {
        let mut session = load("echo");
        let data: Vec<u8> = [7u8].into_iter().chain([1f32, 2.0].iter().flat_map(|x| x.to_le_bytes())).collect();
        let unaligned = bytes::Bytes::from(data).slice(1..);
        let tensor = Tensor::from_bytes(DType::Fp32, vec![1, 2], unaligned).unwrap();
        let outputs = session.run(&[(0, tensor.into())], &[0], &Interrupt::new()).unwrap();
        assert_eq!(outputs[0].as_tensor().unwrap().to_f32().unwrap(), [1.0, 2.0]);
        let outputs = session.run(&[(0, f32s(&[0, 5], &[]))], &[0], &Interrupt::new()).unwrap();
        assert_eq!(outputs[0].as_tensor().unwrap().shape(), [0, 5]);
    }

    #[test]
    fn large_outputs_outlive_their_session() {
        let mut session = load("echo");
        let data: Vec<f32> = (0..20_000).map(|i| i as f32).collect();
        let mut outputs = session.run(&[(0, f32s(&[1, 20_000], &data))], &[0], &Interrupt::new()).unwrap();
        let first = outputs.remove(0);
        session.run(&[(0, f32s(&[1, 20_000], &vec![0.0; 20_000]))], &[0], &Interrupt::new()).unwrap();
        drop(session);
        assert_eq!(first.as_tensor().unwrap().to_f32().unwrap(), data);
    }

    #[test]
    fn an_interrupt_stops_a_run() {
        let mut session = load("slow");
        let inputs: Vec<_> = session
            .inputs()
            .iter()
            .enumerate()
            .map(|(index, spec)| {
                let shape: Vec<usize> =
                    spec.ty.shape().unwrap().iter().map(|dim| usize::try_from(dim.to_wire()).unwrap_or(1)).collect();
                let count = shape.iter().product();
                let tensor = match spec.ty.dtype().unwrap() {
                    DType::Int64 => Tensor::from_vec(DType::Int64, shape, vec![1_000_000_000_000i64; count]),
                    _ => Tensor::from_vec(DType::Fp32, shape, vec![0.5f32; count]),
                };
                (index, tensor.unwrap().into())
            })
            .collect();
        let interrupt = Interrupt::new();
        let (other, started) = (interrupt.clone(), Instant::now());
        let result = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                other.fire();
            });
            session.run(&inputs, &[0], &interrupt)
        });
        assert!(matches!(result, Err(RuntimeError::Interrupted)), "{result:?}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_graph_without_a_declared_shape_takes_any() {
        assert_eq!(load("no-shape").inputs()[0].ty.shape(), None);
        assert_eq!(load("scalar").inputs()[0].ty.shape(), Some(&[][..]));
    }

    #[test]
    fn a_default_makes_an_input_optional() {
        let session = load("multi");
        let optional: Vec<_> = session.inputs().iter().map(|spec| (spec.name.as_str(), spec.optional)).collect();
        assert!(optional.contains(&("scale", true)) && optional.contains(&("a", false)), "{optional:?}");
    }

    /// F01, F33.
    #[test]
    fn hostile_files_are_refused_with_a_clean_reason() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hostile");
        let mut count = 0;
        for entry in std::fs::read_dir(&root).unwrap() {
            let file = entry.unwrap().path().join("1/model.onnx");
            if file.is_file() {
                let text = load_file(file.clone()).err().unwrap_or_else(|| panic!("{file:?} was loaded")).to_string();
                assert!(!text.contains(root.to_str().unwrap()) && !text.contains(".cc:"), "{text}");
                println!("{:?}: {text}", file.parent().unwrap().parent().unwrap().file_name().unwrap());
                count += 1;
            }
        }
        assert!(count > 10);
    }

    /// Values for every input: zeros and a half, of one row and eight of what is free.
    fn made_up(session: &dyn Session) -> Option<Vec<(usize, Value)>> {
        let make = |(index, spec): (usize, &crate::tensor::Spec)| {
            let dims = spec.ty.shape()?.iter().enumerate();
            let free = |place: usize| if place == 0 { 1 } else { 8 };
            let shape: Vec<usize> =
                dims.map(|(place, dim)| usize::try_from(dim.to_wire()).unwrap_or(free(place))).collect();
            let count = shape.iter().product();
            let tensor = match spec.ty.dtype()? {
                DType::Fp32 => Tensor::from_vec(DType::Fp32, shape, vec![0.5f32; count]),
                DType::Int64 => Tensor::from_vec(DType::Int64, shape, vec![1i64; count]),
                _ => return None,
            };
            Some((index, tensor.ok()?.into()))
        };
        session.inputs().iter().enumerate().filter(|(_, spec)| !spec.optional).map(make).collect()
    }

    #[test]
    fn what_is_written_of_a_graph_answers_as_the_graph_does() {
        let runtime = OnnxRuntime::open().expect("ONNX Runtime's library; `make test` installs it");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store");
        let settings = SessionSettings {
            device: DeviceSettings { device_type: DeviceType::Cpu, ..DeviceSettings::default() },
            ..SessionSettings::default()
        };
        assert!(runtime.form_key(&settings.device).unwrap().runtime.starts_with("onnxruntime 1."));
        let (mut written_count, mut compared) = (0, 0);
        for entry in std::fs::read_dir(&root).unwrap() {
            let folder = entry.unwrap().path().join("1");
            let (image, text) = (folder.join("vision_model.onnx"), folder.join("text_model.onnx"));
            let (file, text_tower) =
                if image.is_file() { (image, Some(text)) } else { (folder.join("model.onnx"), None) };
            // What sleeps in loops is of no use here.
            if !file.is_file() || folder.parent().unwrap().ends_with("slow") {
                continue;
            }
            let source = GraphSource { file, text_tower, folder: folder.clone(), max_file_bytes: 1 << 30 };
            let place = tempfile::tempdir().unwrap();
            let Ok(mut original) = runtime.load(&source, &settings) else { continue };
            let (session, graphs) = match runtime.load_writing(&source, &settings, place.path()) {
                Ok(written) => written,
                Err(error) => {
                    println!("{folder:?}: {error}");
                    continue;
                }
            };
            drop(session);
            // As it is kept.
            let graphs: Vec<crate::runtime::WrittenGraph> =
                serde_json::from_slice(&serde_json::to_vec(&graphs).unwrap()).unwrap();
            let mut warm = runtime.load_written(place.path(), &graphs, &settings).unwrap();
            written_count += 1;
            assert_eq!((warm.inputs(), warm.outputs()), (original.inputs(), original.outputs()), "{folder:?}");
            // Nodes are counted before the last fusions, which a written graph has behind it.
            let facts =
                |session: &dyn Session| GraphFacts { execution: Execution::default(), ..session.facts().clone() };
            assert_eq!(facts(warm.as_ref()), facts(original.as_ref()), "{folder:?}");
            let Some(inputs) = made_up(original.as_ref()) else { continue };
            let all: Vec<usize> = (0..original.outputs().len()).collect();
            let Ok(expected) = original.run(&inputs, &all, &Interrupt::new()) else { continue };
            let found = warm.run(&inputs, &all, &Interrupt::new()).unwrap();
            assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{folder:?}");
            compared += 1;
        }
        assert!(written_count > 15 && compared > 10, "{written_count} {compared}");
    }

    #[test]
    fn a_written_graph_that_is_damaged_is_refused() {
        let runtime = OnnxRuntime::open().expect("ONNX Runtime's library; `make test` installs it");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store/mlp/1");
        let file = folder.join("model.onnx");
        let source = GraphSource { file, text_tower: None, folder, max_file_bytes: 1 << 30 };
        let settings = SessionSettings {
            device: DeviceSettings { device_type: DeviceType::Cpu, ..DeviceSettings::default() },
            ..SessionSettings::default()
        };
        let place = tempfile::tempdir().unwrap();
        let (_, graphs) = runtime.load_writing(&source, &settings, place.path()).unwrap();
        assert!(graphs[0].operators.keys().any(|name| name.contains("Fused")), "{graphs:?}");
        for file in ["graph.bin", "graph.onnx"] {
            let whole = std::fs::read(place.path().join(file)).unwrap();
            std::fs::write(place.path().join(file), &whole[..whole.len() / 2]).unwrap();
            assert!(runtime.load_written(place.path(), &graphs, &settings).is_err(), "{file}");
            std::fs::write(place.path().join(file), whole).unwrap();
            assert!(runtime.load_written(place.path(), &graphs, &settings).is_ok(), "{file}");
        }
    }
}
