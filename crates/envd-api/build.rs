//! With the feature `rpc`: compiles the .proto files to Rust. protox does it without an installed protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    #[cfg(feature = "rpc")]
    generate()?;
    Ok(())
}

#[cfg(feature = "rpc")]
fn generate() -> Result<(), Box<dyn std::error::Error>> {
    use protox::prost::Message;

    const FILES: [&str; 2] = ["process/process.proto", "filesystem/filesystem.proto"];

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    let set = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(&set, compiler.file_descriptor_set().encode_to_vec())?;

    connectrpc_build::Config::new()
        .files(&FILES)
        .descriptor_set(set)
        // It would name the file written above, which is newer than the run of this script: stale at each build.
        .emit_rerun_directives(false)
        .gate_client_feature(true)
        .include_file("generated.rs")
        .compile()?;
    Ok(())
}
