//! One typed configuration from a file, the environment and the command line.
//!
//! Later wins: the TOML file, then `TERWAY_<SECTION>__<KEY>` variables, then `--set a.b=value`.
//! What is unknown or malformed is refused with the path of the key and where it came from.
//! Values from variables and flags are texts that are read as whatever the key wants.

mod tree;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::config::tree::Tree;

/// Variables of ours start with this.
const PREFIX: &str = "TERWAY_";

/// Between the parts of a key in a variable's name. Names without it are not configuration.
const SEPARATOR: &str = "__";

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The TOML file, if there is one.
    pub file: Option<PathBuf>,
    /// Variables, as `(name, value)`.
    pub variables: Vec<(String, String)>,
    /// `a.b=value` texts from the command line.
    pub sets: Vec<String>,
}

impl Sources {
    /// Takes the process's variables. Names or values that are no UTF-8 are not ours.
    #[must_use]
    pub fn with_environment(mut self) -> Self {
        self.variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with(PREFIX) && name.contains(SEPARATOR))
            .collect();
        self
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file.
    File(PathBuf),
    /// A variable, by name.
    Variable(String),
    /// `--set`.
    Flag,
    /// Nowhere: the key is missing.
    Nowhere,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, " in {}", path.display()),
            Self::Variable(name) => write!(f, " in variable {name}"),
            Self::Flag => f.write_str(" in --set"),
            Self::Nowhere => Ok(()),
        }
    }
}

/// Why there is no configuration. All of these end a service with code 64.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("configuration file {} is not TOML: line {line}: {message}", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What the parser said.
        message: String,
    },
    /// A `--set` without `=`, or a variable's name with an empty part.
    #[error("{text:?}{origin} names no key; write a.b=value")]
    NoKey {
        /// As given.
        text: String,
        /// Where.
        origin: Origin,
    },
    /// A key is unknown, missing, or its value is not what it should be.
    #[error("configuration key {key:?}{origin}: {message}")]
    Key {
        /// Path of the key; empty for the whole.
        key: String,
        /// Where the value came from.
        origin: Origin,
        /// What is wrong with it.
        message: String,
    },
}

/// A value that parsed but makes no sense, as a service's own check finds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("configuration key {key:?}: {message}")]
pub struct Invalid {
    /// Path of the key, such as `grpc.listen`.
    pub key: String,
    /// What is wrong, with the value.
    pub message: String,
}

impl Invalid {
    /// Names a key and what is wrong with its value.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            message: message.into(),
        }
    }
}

/// Reads the sources into `T`, whose structs should deny unknown fields.
///
/// # Errors
/// [`ConfigError`], which names the key or the file.
pub fn load<T: DeserializeOwned>(sources: &Sources) -> Result<T, ConfigError> {
    let mut tree = match &sources.file {
        Some(path) => from_file(path)?,
        None => Tree::default(),
    };
    for (name, value) in &sources.variables {
        let origin = Origin::Variable(name.clone());
        let Some(key) = name
            .strip_prefix(PREFIX)
            .filter(|key| key.contains(SEPARATOR))
        else {
            continue;
        };
        let parts: Vec<String> = key.split(SEPARATOR).map(str::to_lowercase).collect();
        put(&mut tree, name, &parts, value, origin)?;
    }
    for text in &sources.sets {
        let (key, value) = text.split_once('=').ok_or_else(|| ConfigError::NoKey {
            text: text.clone(),
            origin: Origin::Flag,
        })?;
        let parts: Vec<String> = key.split('.').map(|part| part.trim().to_owned()).collect();
        put(&mut tree, text, &parts, value, Origin::Flag)?;
    }
    T::deserialize(tree.reader()).map_err(|error| ConfigError::Key {
        key: error.path.join("."),
        origin: tree.origin(&error.path),
        message: error.message,
    })
}

fn put(
    tree: &mut Tree,
    text: &str,
    parts: &[String],
    value: &str,
    origin: Origin,
) -> Result<(), ConfigError> {
    if parts.iter().any(String::is_empty) {
        return Err(ConfigError::NoKey {
            text: text.to_owned(),
            origin,
        });
    }
    tree.put(parts, value, &origin)
        .map_err(|taken| ConfigError::Key {
            key: taken,
            origin,
            message: "it holds a value, not a section".to_owned(),
        })
}

fn from_file(path: &Path) -> Result<Tree, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
        ConfigError::NotToml {
            path: path.to_owned(),
            line,
            message: error.message().to_owned(),
        }
    })?;
    Ok(Tree::of(table, &Origin::File(path.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::PathBuf;

    use serde::{Deserialize, Serialize};

    use super::{ConfigError, Sources, load};
    use crate::secret::Secret;

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Whole {
        grpc: Grpc,
        #[serde(default)]
        pool: Pool,
    }

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Grpc {
        listen: SocketAddr,
        token: Option<Secret>,
        dir: Option<PathBuf>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Pool {
        min: u32,
        ratio: f64,
        on: bool,
        zones: Vec<String>,
        mode: Mode,
        name: String,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        #[default]
        Plain,
        Fancy,
    }

    fn sources(
        file: &str,
        variables: &[(&str, &str)],
        sets: &[&str],
    ) -> (tempfile::TempDir, Sources) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        std::fs::write(&path, file).unwrap();
        let sources = Sources {
            file: Some(path),
            variables: variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            sets: sets.iter().map(|text| (*text).to_owned()).collect(),
        };
        (dir, sources)
    }

    fn error(file: &str, variables: &[(&str, &str)], sets: &[&str]) -> String {
        let (_dir, sources) = sources(file, variables, sets);
        load::<Whole>(&sources).unwrap_err().to_string()
    }

    const GOOD: &str = "[grpc]\nlisten = \"127.0.0.1:1\"\n";

    #[test]
    fn later_source_wins() {
        let (_dir, sources) = sources(
            "[grpc]\nlisten = \"127.0.0.1:1\"\n[pool]\nmin = 1\nratio = 1\n",
            &[
                ("TERWAY_POOL__MIN", "2"),
                ("TERWAY_GRPC__LISTEN", "[::1]:2"),
            ],
            &[
                "pool.min=3",
                "pool.on=true",
                "pool.zones=[\"a\", \"b\"]",
                "pool.mode=fancy",
                "pool.name=12",
            ],
        );

        let whole: Whole = load(&sources).unwrap();

        assert_eq!(whole.grpc.listen, "[::1]:2".parse().unwrap());
        let expected = Pool {
            min: 3,
            ratio: 1.0,
            on: true,
            zones: vec!["a".to_owned(), "b".to_owned()],
            mode: Mode::Fancy,
            name: "12".to_owned(),
        };
        assert_eq!(whole.pool, expected);
    }

    #[test]
    fn unknown_key_is_named_with_its_path_and_origin() {
        let in_file = error("[grpc]\nlisten = \"127.0.0.1:1\"\nlisen = 1\n", &[], &[]);
        assert!(
            in_file.contains("\"grpc.lisen\"") && in_file.contains("x.toml"),
            "{in_file}"
        );

        let in_variable = error(GOOD, &[("TERWAY_POOL__MAXX", "1")], &[]);
        assert!(
            in_variable.contains("\"pool.maxx\"") && in_variable.contains("TERWAY_POOL__MAXX"),
            "{in_variable}"
        );

        let in_flag = error(GOOD, &[], &["nothing.here=1"]);
        assert!(
            in_flag.contains("\"nothing\"") && in_flag.contains("--set"),
            "{in_flag}"
        );
    }

    #[test]
    fn value_of_the_wrong_type_is_named() {
        for (variables, sets, key) in [
            (&[("TERWAY_POOL__MIN", "many")][..], &[][..], "pool.min"),
            (&[], &["pool.min=-1"], "pool.min"),
            (&[], &["pool.on=yes"], "pool.on"),
            (&[], &["grpc.listen=here"], "grpc.listen"),
            (&[], &["pool.mode=odd"], "pool.mode"),
            (&[], &["pool.zones=[1, 2]"], "pool.zones.0"),
            (&[], &["pool=3"], "pool"),
        ] {
            let text = error(GOOD, variables, sets);
            assert!(text.contains(&format!("{key:?}")), "{key}: {text}");
        }
    }

    #[test]
    fn missing_key_names_its_section() {
        let text = error("[grpc]\n", &[], &[]);

        assert!(
            text.contains("\"grpc\"") && text.contains("listen"),
            "{text}"
        );
    }

    #[test]
    fn broken_file_names_its_line() {
        let text = error("[grpc]\nlisten = \n", &[], &[]);

        assert!(text.contains("x.toml") && text.contains("line 2"), "{text}");
    }

    #[test]
    fn file_that_is_not_there_is_named() {
        let sources = Sources {
            file: Some("/nowhere/x.toml".into()),
            ..Sources::default()
        };

        let error = load::<Whole>(&sources).unwrap_err();

        assert!(matches!(error, ConfigError::Unreadable { .. }));
        assert!(error.to_string().contains("/nowhere/x.toml"));
    }

    #[test]
    fn flag_without_a_key_is_refused() {
        for set in ["pool.min", "=1", "pool.=1", "grpc.listen.port=1"] {
            let text = error(GOOD, &[], &[set]);
            assert!(
                text.contains("pool") || text.contains('=') || text.contains("grpc"),
                "{text}"
            );
        }
    }

    #[test]
    fn secret_is_read_and_never_shown() {
        let (_dir, sources) = sources(GOOD, &[("TERWAY_GRPC__TOKEN", "hunter2")], &[]);

        let whole: Whole = load(&sources).unwrap();

        assert_eq!(whole.grpc.token.as_ref().unwrap().expose(), "hunter2");
        let shown = format!("{whole:?} {}", serde_json::to_string(&whole).unwrap());
        assert!(
            !shown.contains("hunter2") && shown.contains("<redacted>"),
            "{shown}"
        );
    }
}
