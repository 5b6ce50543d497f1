//! `cargo xtask image`: an image of every component, made without an engine.
//!
//! An image is one file in the layout of `docker save`, with one layer that holds the binary and the few files it
//! needs. `ctr -n k8s.io images import` takes it, `docker load` too. The same binaries make the same bytes.

pub(crate) mod archive;
pub(crate) mod binary;
mod component;
pub(crate) mod layer;
pub(crate) mod libraries;
mod names;
mod tar;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::image::archive::Image;
use crate::image::component::Component;
use crate::image::layer::Layer;
use crate::image::names::Names;
use crate::step::root;
use crate::up;

/// Options of `cargo xtask image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder for the images; made if it is not there. Default: target/images
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Take the binaries of target/debug with the libraries they need, instead of building static ones with
    /// optimisation.
    #[arg(long)]
    debug: bool,
    /// Only this component; may be repeated.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Tag of the images. Default: the chart's appVersion, which the chart asks for
    #[arg(long)]
    tag: Option<String>,
    /// Registry and its port, as the chart's image.registry. Default: none, for images that are imported on nodes
    #[arg(long, default_value = "")]
    registry: String,
}

/// Which binaries go into the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binaries {
    /// Static, built with optimisation when they are asked for.
    Static,
    /// Those of `target/debug` as they are, with the shared libraries they need. Nothing is built.
    Debug,
}

/// Which images are wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Which binaries.
    pub(crate) binaries: Binaries,
    /// Names of components; none means all that the workspace has.
    pub(crate) only: Vec<String>,
    /// Tag; none means the chart's.
    pub(crate) tag: Option<String>,
    /// Registry; may be empty.
    pub(crate) registry: String,
    /// Folder for the images; made if it is not there.
    pub(crate) out: PathBuf,
}

/// An image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Built {
    /// Name of the component.
    pub(crate) name: &'static str,
    /// What a manifest calls it, such as `terway-mesh/node-agent:0.0.0`.
    pub(crate) reference: String,
    /// The archive.
    pub(crate) path: PathBuf,
    /// Size of the binary in it, in bytes.
    pub(crate) binary: usize,
    /// Size of the archive, in bytes.
    pub(crate) size: usize,
}

/// Makes images and says how large they are.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let binaries = if args.debug {
        // The binaries of today: quick when nothing has changed.
        up::build(false)?;
        Binaries::Debug
    } else {
        Binaries::Static
    };
    let built = build(&Wanted {
        binaries,
        only: args.only.clone(),
        tag: args.tag.clone(),
        registry: args.registry.clone(),
        out: match &args.out {
            Some(out) => out.clone(),
            None => root()?.join("target").join("images"),
        },
    })?;
    say_table(&built);
    Ok(ExitCode::SUCCESS)
}

/// Writes one archive `<name>.tar` for each component that is wanted.
///
/// # Errors
/// When a name is unknown, a build fails, or a file can not be read or written.
pub(crate) fn build(wanted: &Wanted) -> Result<Vec<Built>> {
    let root = root()?;
    let components = component::choose(&root, &wanted.only)?;
    let names = Names::of_chart(&root, &wanted.registry, wanted.tag.as_deref())?;
    let target = root.join("target");
    let folder = match wanted.binaries {
        Binaries::Static => binary::build_static(&target, &components)?,
        Binaries::Debug => target.clone(),
    };
    std::fs::create_dir_all(&wanted.out).with_context(|| wanted.out.display().to_string())?;
    let scratch = tempfile::tempdir_in(&target).context("folder for stripped binaries")?;
    let mut built = Vec::new();
    for component in components {
        let profile = match wanted.binaries {
            Binaries::Static => component.profile,
            Binaries::Debug => "debug",
        };
        let binary = folder.join(profile).join(component.binary);
        let libraries = libraries::needed(&binary)?;
        if wanted.binaries == Binaries::Static && !libraries.is_empty() {
            anyhow::bail!("{} is not static: it needs {libraries:?}", binary.display());
        }
        let stripped = binary::stripped(&binary, scratch.path())?;
        let image = image(component, &names, &stripped, &libraries)?;
        let path = wanted.out.join(format!("{}.tar", component.name));
        let size = image.write(&path)?;
        built.push(Built {
            name: component.name,
            reference: image.reference,
            path,
            binary: stripped.len(),
            size,
        });
    }
    Ok(built)
}

fn image(
    component: &Component,
    names: &Names,
    binary: &[u8],
    libraries: &[PathBuf],
) -> Result<Image> {
    let mut layer = Layer::default();
    layer.add(component.binary, 0o755, binary.to_vec());
    for library in libraries {
        layer.add(inside(library), 0o755, read(library)?);
    }
    if component.has_mesh {
        layer.add_identity();
        layer.add_roots(&roots()?);
    }
    Ok(Image {
        reference: names.of(component.name),
        entry: format!("/{}", component.binary),
        layer,
    })
}

/// A path of the machine as one of the layer.
pub(crate) fn inside(path: &Path) -> &str {
    path.to_str().unwrap_or_default().trim_start_matches('/')
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// Where distributions keep the certificates of public authorities.
const ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// The machine's bundle of public authorities: the gateway speaks HTTPS to the cloud.
fn roots() -> Result<Vec<u8>> {
    let path = ROOTS
        .iter()
        .map(Path::new)
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no certificates of public authorities in any of {ROOTS:?}; install ca-certificates"
            )
        })?;
    read(path)
}

#[expect(clippy::print_stdout, reason = "the table is the product")]
fn say_table(built: &[Built]) {
    println!(
        "{:<14} {:>9} {:>9}  image",
        "component", "binary", "archive"
    );
    for one in built {
        println!(
            "{:<14} {:>9} {:>9}  {}  {}",
            one.name,
            mebibytes(one.binary),
            mebibytes(one.size),
            one.reference,
            one.path.display()
        );
    }
}

/// As people read it: `12.3 MiB`.
fn mebibytes(bytes: usize) -> String {
    let tenths = bytes.saturating_mul(10) / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests;
