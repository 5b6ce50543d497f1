//! The binaries: static ones are built here; debug information never goes into an image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::image::component::Component;
use crate::step::{cargo, has, output, run, say};

/// Builds the components statically; gives the folder of their profiles' folders.
///
/// The C library is glibc's own archive: it is there wherever Rust links, and musl's target may not be.
///
/// # Errors
/// When cargo fails.
pub(crate) fn build_static(target: &Path, components: &[&Component]) -> Result<PathBuf> {
    let triple = host()?;
    let mut profiles: BTreeMap<&str, Vec<&Component>> = BTreeMap::new();
    for component in components {
        profiles
            .entry(component.profile)
            .or_default()
            .push(component);
    }
    for (profile, components) in profiles {
        let names: Vec<&str> = components.iter().map(|one| one.name).collect();
        say(&format!("building {} (static)", names.join(", ")));
        let mut build = cargo()?;
        // With a target of its own, flags are for the product and not for build scripts.
        build
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .args([
                "build",
                "--locked",
                "--target",
                &triple,
                "--profile",
                profile,
            ]);
        for component in components {
            build.args(["-p", component.package, "--bin", component.binary]);
        }
        run(&mut build)?;
    }
    Ok(target.join(triple))
}

/// The triple of this machine, as the compiler says.
fn host() -> Result<String> {
    let said = output(Command::new("rustc").arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say its host")?.to_owned())
}

/// The binary without debug information: names of functions stay, for backtraces.
///
/// # Errors
/// When it can not be read, or `strip` fails.
pub(crate) fn stripped(binary: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let name = binary.file_name().context("a binary has a name")?;
    let copy = scratch.join(name);
    if has("strip") {
        run(Command::new("strip")
            .args(["--strip-debug", "--enable-deterministic-archives", "-o"])
            .arg(&copy)
            .arg(binary))?;
    } else {
        say("there is no strip (package binutils): images will be large");
        std::fs::copy(binary, &copy).with_context(|| binary.display().to_string())?;
    }
    std::fs::read(&copy).with_context(|| copy.display().to_string())
}
