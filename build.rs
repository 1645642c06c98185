//! Compiles the ONNX file format (`proto/onnx-ml.proto`, from the `onnx` package, Apache-2.0) and the schema of Triton's
//! model configuration into the crate. `protox` is a protobuf compiler in Rust, so no `protoc` is needed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // `bytes` fields are slices of the file's buffer: weights are not copied when a graph is read.
    let onnx = protox::compile(["proto/onnx-ml.proto"], ["proto"])?;
    prost_build::Config::new().bytes(["."]).disable_comments(["."]).compile_fds(onnx)?;
    // Read at run time through `prost-reflect`, which brings the text format and JSON; so no Rust code is made of it.
    let model_config = protox::Compiler::new(["proto"])?
        .include_imports(true)
        .open_file("model_config.proto")?
        .encode_file_descriptor_set();
    std::fs::write(out.join("model_config.fds"), model_config)?;
    Ok(())
}
