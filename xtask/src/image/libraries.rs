//! The shared libraries that a binary needs, with the loader.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Parts of the C library before 2.34 that it loads by name when it looks up a name.
const LOADED_BY_NAME: &[&str] = &["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"];

/// Where the libraries of a binary lie; none for a static one.
///
/// # Errors
/// When there is no such binary, or one of its libraries is not found.
pub(crate) fn needed(binary: &Path) -> Result<Vec<PathBuf>> {
    if !binary.is_file() {
        bail!("{} is not there: build it first", binary.display());
    }
    let mut ldd = Command::new("ldd");
    // Its words are looked at.
    ldd.env("LC_ALL", "C").arg(binary);
    let out = ldd.output().with_context(|| format!("start {ldd:?}"))?;
    let said = String::from_utf8_lossy(&out.stdout);
    let complaint = String::from_utf8_lossy(&out.stderr);
    if said.contains("statically linked") || complaint.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    if !out.status.success() {
        bail!("{ldd:?}: {}", complaint.trim());
    }
    let mut libraries = parse(&said)?;
    let libc = libraries
        .iter()
        .find(|path| path.file_name().is_some_and(|name| name == "libc.so.6"));
    if let Some(folder) = libc.and_then(|path| path.parent()) {
        let more: Vec<PathBuf> = LOADED_BY_NAME
            .iter()
            .map(|name| folder.join(name))
            .filter(|path| path.is_file())
            .collect();
        libraries.extend(more);
    }
    libraries.sort();
    libraries.dedup();
    Ok(libraries)
}

/// Lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn parse(said: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in said.lines().map(str::trim) {
        let (name, place) = line.split_once(" => ").unwrap_or((line, line));
        if place.starts_with("not found") {
            bail!("{name} is not found");
        }
        let path = place.split(" (").next().unwrap_or_default();
        // The kernel's own page has no path.
        if path.starts_with('/') {
            libraries.push(PathBuf::from(path));
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_and_the_kernels_page_is_not() {
        let said = "\tlinux-vdso.so.1 (0x00007f2e)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2d)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f2e)\n";

        let libraries = parse(said).unwrap();

        assert_eq!(
            libraries,
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
            .map(PathBuf::from)
        );
    }

    #[test]
    fn library_that_is_missing_is_named() {
        let error = parse("\tlibodd.so.1 => not found\n").unwrap_err();

        assert_eq!(error.to_string(), "libodd.so.1 is not found");
    }

    #[test]
    fn binary_that_is_missing_says_so() {
        let error = needed(Path::new("/nonexistent/agent")).unwrap_err();

        assert!(error.to_string().contains("/nonexistent/agent"), "{error}");
    }
}
