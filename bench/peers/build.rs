//! The contract that tonic is told.

fn main() -> anyhow::Result<()> {
    let files = protox::compile(["echo.proto"], ["."])?;
    tonic_prost_build::configure().compile_fds(files)?;
    println!("cargo::rerun-if-changed=echo.proto");
    Ok(())
}
