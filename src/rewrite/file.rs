//! Graph files with the data that they keep elsewhere.

use super::RewriteError;
use crate::runtime::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, StringStringEntryProto, TensorProto, tensor_proto,
};
use bytes::Bytes;
use prost::Message;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Component, Path};

/// A protobuf message may have 2 GiB; with what lies around the weights in mind.
const FILE_BYTES_MAX: usize = 1 << 30;
/// Tensors from this size on go into the file of the data.
const OUTSIDE_BYTES_MIN: usize = 1 << 10;
/// Where data begin in their file, so that it can be mapped.
const ALIGNMENT: u64 = 4096;

pub(super) struct Read {
    pub(super) model: ModelProto,
    /// The other files in which data lay, by their paths from the graph's folder.
    pub(super) data_files: Vec<String>,
    /// Of all files.
    pub(super) bytes: u64,
}

/// The model with all its data in it. Blocks.
///
/// # Errors
/// Where it cannot be read, or is no ONNX graph.
pub(super) fn read(path: &Path) -> Result<Read, RewriteError> {
    let bytes = Bytes::from(std::fs::read(path)?);
    if bytes.get(4..8) == Some(b"ORTM") {
        return Err(RewriteError::Graph(
            "the model is in the ORT format, which cannot be rewritten; give the .onnx file".into(),
        ));
    }
    let mut total = bytes.len() as u64;
    let mut model =
        ModelProto::decode(bytes).map_err(|_| RewriteError::Graph("the model is no readable ONNX graph".into()))?;
    let mut outside: HashMap<String, Bytes> = HashMap::new();
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut graphs: Vec<&mut GraphProto> = model.graph.as_mut().into_iter().collect();
    while let Some(graph) = graphs.pop() {
        for tensor in &mut graph.initializer {
            take_in(tensor, folder, &mut outside)?;
        }
        for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
            let AttributeProto { t, tensors, g, graphs: inner, .. } = attribute;
            for tensor in t.iter_mut().chain(tensors) {
                take_in(tensor, folder, &mut outside)?;
            }
            graphs.extend(g.iter_mut().chain(inner));
        }
    }
    total += outside.values().map(|bytes| bytes.len() as u64).sum::<u64>();
    Ok(Read { model, data_files: outside.into_keys().collect(), bytes: total })
}

/// Puts what a tensor keeps in another file into the tensor.
fn take_in(tensor: &mut TensorProto, folder: &Path, outside: &mut HashMap<String, Bytes>) -> Result<(), RewriteError> {
    if tensor.data_location() != tensor_proto::DataLocation::External {
        return Ok(());
    }
    let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
    let wrong = || RewriteError::Graph(format!("the external data of tensor {:?} is not where it says", tensor.name()));
    let location = entry("location").ok_or_else(wrong)?;
    // A model that was loaded has been looked at more closely.
    if !Path::new(location).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(wrong());
    }
    let number = |key: &str| entry(key).map(|text| text.parse::<usize>().map_err(|_| wrong())).transpose();
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    let all = match outside.get(location) {
        Some(bytes) => bytes.clone(),
        None => {
            let bytes = Bytes::from(std::fs::read(folder.join(location))?);
            outside.insert(location.to_owned(), bytes.clone());
            bytes
        }
    };
    let end = length.map_or(Some(all.len()), |length| offset.checked_add(length)).filter(|end| *end <= all.len());
    let Some(end) = end.filter(|end| offset <= *end) else { return Err(wrong()) };
    tensor.raw_data = Some(all.slice(offset..end));
    tensor.external_data.clear();
    tensor.data_location = None;
    Ok(())
}

/// Writes the model, its large tensors beside it where `outside` or where one file would not hold them. Gives the bytes of
/// both. Blocks.
pub(super) fn write(mut model: ModelProto, path: &Path, outside: bool) -> Result<u64, RewriteError> {
    let mut data_bytes = 0;
    if outside || model.encoded_len() > FILE_BYTES_MAX {
        let no_name = || RewriteError::Graph("the file to write has no name".into());
        let name = format!("{}.data", path.file_name().and_then(|name| name.to_str()).ok_or_else(no_name)?);
        let mut file = std::io::BufWriter::new(File::create(path.with_file_name(&name))?);
        for tensor in model.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
            let Some(raw) = tensor.raw_data.take_if(|raw| raw.len() >= OUTSIDE_BYTES_MIN) else { continue };
            let offset = u64::next_multiple_of(data_bytes, ALIGNMENT);
            let gap = usize::try_from(offset - data_bytes).unwrap_or(0);
            file.write_all(&vec![0; gap])?;
            file.write_all(&raw)?;
            data_bytes = offset + raw.len() as u64;
            let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
            tensor.external_data = vec![
                entry("location", name.clone()),
                entry("offset", offset.to_string()),
                entry("length", raw.len().to_string()),
            ];
            tensor.data_location = Some(tensor_proto::DataLocation::External as i32);
        }
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    }
    let bytes = model.encode_to_vec();
    let mut file = File::create(path)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    Ok(bytes.len() as u64 + data_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_in_a_file_of_its_own_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let tensor = |name: &str, bytes: usize| TensorProto {
            name: Some(name.into()),
            raw_data: Some((0..bytes).map(|at| at as u8).collect::<Vec<u8>>().into()),
            ..TensorProto::default()
        };
        let initializer = vec![tensor("small", 8), tensor("a", 5000), tensor("b", 3000)];
        let model = || ModelProto {
            graph: Some(GraphProto { initializer: initializer.clone(), ..GraphProto::default() }),
            ..ModelProto::default()
        };
        for outside in [true, false] {
            let written = write(model(), &path, outside).unwrap();
            let found = read(&path).unwrap();
            let data_files = if outside { vec!["model.onnx.data".to_owned()] } else { Vec::new() };
            assert_eq!((found.model, found.data_files), (model(), data_files));
            let files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
            assert_eq!(outside.then_some(files.sum::<u64>()), outside.then_some(written));
            if outside {
                assert!(std::fs::metadata(&path).unwrap().len() < 2000);
                assert_eq!(found.bytes, written);
            }
        }
        // Nothing outside the folder is read.
        let mut stolen = model();
        let first = &mut stolen.graph.as_mut().unwrap().initializer[0];
        let entry =
            |key: &str, value: &str| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
        first.external_data = vec![entry("location", "../secret")];
        first.data_location = Some(tensor_proto::DataLocation::External as i32);
        std::fs::write(&path, stolen.encode_to_vec()).unwrap();
        assert!(read(&path).is_err_and(|error| error.to_string().contains("is not where it says")));
    }
}
