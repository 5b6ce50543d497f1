//! Generates the wire types from the `.proto` files beside it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let full = std::env::var_os("CARGO_FEATURE_FULL").is_some();
    let mut files = vec!["terway/node/v1/node.proto"];
    if full {
        files.extend([
            "terway/cloud/v1/cloud.proto",
            "terway/control/v1/control.proto",
            "terway/ipam/v1/ipam.proto",
            "terway/policy/v1/policy.proto",
        ]);
    }
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .build_server(full)
        .build_client(true)
        .build_transport(false)
        .file_descriptor_set_path(out.join("descriptor.bin"))
        .compile_protos(&files, &["."])?;
    if full {
        // kubelet's API is no part of our own wire, and so not in its descriptor set.
        tonic_prost_build::configure()
            .build_transport(false)
            .compile_protos(&["kubelet/deviceplugin/v1beta1.proto"], &["."])?;
    }
    Ok(())
}
