//! Images of the test bed: the product's, and a few of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::image::archive::Image;
use crate::image::layer::Layer;
use crate::image::{Binaries, Wanted, binary, build, inside, libraries};
use crate::step::{root, say};

/// The program that runs in pods.
const PROBE: &str = "terway-probe";
/// Images of it: what runs in pods, and what holds a pod's namespaces, which is the same without arguments.
const OF_PROBE: &[&str] = &["test-probe", "test-pause"];

/// Writes all of them; gives their folder. `target/debug` must be built, from which at least those of the tests come.
///
/// # Errors
/// When a binary is missing or a file can not be written.
pub(crate) fn make(programs: &Path, binaries: Binaries) -> Result<PathBuf> {
    let folder = match binaries {
        Binaries::Static => "target/k8s/images-release",
        Binaries::Debug => "target/k8s/images",
    };
    let out = root()?.join(folder);
    say("images of the product and of the test bed");
    build(&Wanted {
        binaries,
        only: Vec::new(),
        tag: None,
        registry: String::new(),
        out: out.clone(),
    })?;
    let probe = root()?.join("target/debug").join(PROBE);
    for name in OF_PROBE {
        write(name, PROBE, program(&probe)?, &out)?;
    }
    let coredns = programs.join("coredns");
    let archive = out.join("test-coredns.tar");
    if is_older(&archive, &coredns)? {
        let mut layer = Layer::default();
        let bytes = std::fs::read(&coredns).with_context(|| coredns.display().to_string())?;
        layer.add("coredns", 0o755, bytes);
        write("test-coredns", "coredns", layer, &out)?;
    }
    Ok(out)
}

/// A layer with a program and the libraries that it needs.
fn program(path: &Path) -> Result<Layer> {
    let scratch = tempfile::tempdir().context("folder for a stripped binary")?;
    let mut layer = Layer::default();
    layer.add(PROBE, 0o755, binary::stripped(path, scratch.path())?);
    for library in libraries::needed(path)? {
        let bytes = std::fs::read(&library).with_context(|| library.display().to_string())?;
        layer.add(inside(&library), 0o755, bytes);
    }
    Ok(layer)
}

fn write(name: &str, program: &str, layer: Layer, out: &Path) -> Result<()> {
    let image = Image {
        reference: format!("terway-mesh/{name}:1"),
        entry: format!("/{program}"),
        layer,
    };
    image.write(&out.join(format!("{name}.tar")))?;
    Ok(())
}

/// Whether an archive must be made anew from a binary.
fn is_older(archive: &Path, binary: &Path) -> Result<bool> {
    let time = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified());
    let of = time(binary).with_context(|| binary.display().to_string())?;
    Ok(time(archive).map_or(true, |archive| archive < of))
}
