//! Compiles the ONNX file format (`proto/onnx-ml.proto`, from the `onnx` package, Apache-2.0), the schema of Triton's
//! model configuration and the gRPC service into the crate. `protox` is a protobuf compiler in Rust, so no `protoc` is needed.

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
    grpc(&out)
}

/// The service for the server, and the client that the tests call it with.
fn grpc(out: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let inference = protox::compile(["proto/inference.proto"], ["proto"])?;
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_file("inference.proto")?;
    std::fs::write(out.join("inference.fds"), compiler.encode_file_descriptor_set())?;
    let client = out.join("client");
    std::fs::create_dir_all(&client)?;
    for (folder, is_server) in [(out, true), (client.as_path(), false)] {
        let mut builder = tonic_prost_build::configure()
            .build_server(is_server)
            .build_client(!is_server)
            .build_transport(false)
            // Tensors are slices of the message that brought them.
            .bytes(".")
            // Calls that are not served are refused before they come here.
            .generate_default_stubs(true)
            .disable_comments(["."])
            .out_dir(folder);
        if is_server {
            builder = builder.codec_path("crate::grpc::codec::Protobuf");
        }
        builder.compile_fds(inference.clone())?;
    }
    Ok(())
}
