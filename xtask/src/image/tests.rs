//! Images of the binaries as they were built, read back and run.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::component::COMPONENTS;
use super::tar::reading::{Entry, entries};
use super::*;

fn wanted(out: &Path) -> Wanted {
    Wanted {
        binaries: Binaries::Debug,
        only: Vec::new(),
        tag: None,
        registry: String::new(),
        out: out.to_owned(),
    }
}

/// What an archive holds, looked up as a runtime does.
struct Opened {
    reference: String,
    config: Value,
    files: Vec<Entry>,
}

fn open(path: &Path) -> Opened {
    let bytes = std::fs::read(path).unwrap();
    let parts: BTreeMap<String, Vec<u8>> = entries(&bytes)
        .into_iter()
        .map(|entry| (entry.path, entry.content))
        .collect();
    let manifest: Value = serde_json::from_slice(&parts["manifest.json"]).unwrap();
    let text = |pointer: &str| {
        manifest
            .pointer(pointer)
            .unwrap()
            .as_str()
            .unwrap()
            .to_owned()
    };
    let config = &parts[&text("/0/Config")];
    Opened {
        reference: text("/0/RepoTags/0"),
        config: serde_json::from_slice(config).unwrap(),
        files: entries(&parts[&text("/0/Layers/0")]),
    }
}

fn unpack(files: &[Entry], root: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    for file in files {
        let path = root.join(&file.path);
        if file.is_directory {
            std::fs::create_dir(&path).unwrap();
        } else {
            std::fs::write(&path, &file.content).unwrap();
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(file.mode)).unwrap();
    }
}

/// Every image is made of the binaries in target/debug, unpacked, and its entry point is run with nothing else around
/// it. Needs root, and binaries that were built.
#[test]
fn image_of_every_component_runs_with_nothing_but_its_layer() {
    let out = tempfile::tempdir().unwrap();

    let built = build(&wanted(out.path())).unwrap();

    let root = root().unwrap();
    let there = COMPONENTS
        .iter()
        .filter(|one| root.join(one.package).join("Cargo.toml").is_file());
    assert_eq!(built.len(), there.count());
    for one in &built {
        let image = open(&one.path);
        assert_eq!(image.reference, one.reference);
        let entry = image.config["config"]["Entrypoint"][0].as_str().unwrap();
        let file = image.files.iter().find(|f| format!("/{}", f.path) == entry);
        let file = file.unwrap_or_else(|| panic!("{}: no {entry} in the layer", one.name));
        assert_eq!((file.mode, file.mtime), (0o755, 0), "{}", one.name);
        let paths: Vec<&str> = image.files.iter().map(|f| f.path.as_str()).collect();
        assert!(paths.is_sorted(), "{paths:?}");

        let unpacked = tempfile::tempdir().unwrap();
        unpack(&image.files, unpacked.path());
        let mut chroot = Command::new("chroot");
        chroot
            .arg(unpacked.path())
            .args([entry, "--version"])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let ran = chroot.output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{}: {ran:?}", one.name);
        let name = entry.trim_start_matches('/');
        assert!(said.starts_with(name), "{}: {said}", one.name);
    }
}

#[test]
fn image_that_is_made_twice_is_the_same() {
    let out = tempfile::tempdir().unwrap();
    let make = |folder: &str| {
        let wanted = Wanted {
            only: vec!["cni".to_owned()],
            ..wanted(&out.path().join(folder))
        };
        let built = build(&wanted).unwrap();
        std::fs::read(&built[0].path).unwrap()
    };

    assert!(make("a") == make("b"), "the archives differ");
}

#[test]
fn dockerfile_has_a_stage_with_the_entry_point_of_every_component() {
    let root = root().unwrap();
    let dockerfile = std::fs::read_to_string(root.join("Dockerfile")).unwrap();

    for component in COMPONENTS {
        let stage = format!(
            "FROM image AS {}\nENTRYPOINT [\"/{}\"]\n",
            component.name, component.binary
        );
        assert!(dockerfile.contains(&stage), "no stage\n{stage}");
    }
}
