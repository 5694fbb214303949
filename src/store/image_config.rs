//! Image configs: what an image runs, for whom, and how it was made. Read from untrusted bytes, written
//! as image programs write them. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::store::image_manifest::null_is_empty;
use crate::store::image_types;
use crate::time::Time;

/// Fields of Docker's configs that describe the container that an image was committed from, not the image.
const OF_A_CONTAINER: [&str; 12] = [
    "ArgsEscaped",
    "AttachStderr",
    "AttachStdin",
    "AttachStdout",
    "Domainname",
    "Hostname",
    "Image",
    "MacAddress",
    "NetworkDisabled",
    "OpenStdin",
    "StdinOnce",
    "Tty",
];

/// What a container made from an image runs, and how: the `config` object of an image config.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// User and group, as names or numbers: `USER[:GROUP]`. Empty: root.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports, each `PORT[/PROTOCOL]`.
    #[serde(
        deserialize_with = "keys",
        serialize_with = "as_keys",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub exposed_ports: BTreeSet<String>,
    /// Environment, each `NAME=VALUE`.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Words of the command in front of [`RunConfig::cmd`].
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Words of the command, or default arguments of [`RunConfig::entrypoint`].
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Directories whose content belongs to the container, not to the image.
    #[serde(
        deserialize_with = "keys",
        serialize_with = "as_keys",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub volumes: BTreeSet<String>,
    /// Directory to run in. Empty: the root directory.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// Signal that stops the container, as a name or a number.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Fields that this version does not know, such as `Healthcheck`.
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

impl RunConfig {
    /// The whole command: [`RunConfig::entrypoint`], then [`RunConfig::cmd`].
    pub fn command(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }

    /// The environment as names and values; an entry without `=` has an empty value.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.env
            .iter()
            .map(|entry| entry.split_once('=').unwrap_or((entry, "")))
    }

    /// Sets one variable in its place, or at the end.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        let known = self
            .env
            .iter_mut()
            .find(|known| known.split_once('=').map_or(known.as_str(), |(name, _)| name) == name);
        match known {
            Some(known) => *known = entry,
            None => self.env.push(entry),
        }
    }

    /// Drops what says something about the container that the image was made from.
    pub(crate) fn drop_container_fields(&mut self) {
        self.other
            .retain(|name, value| !OF_A_CONTAINER.contains(&name.as_str()) && !value.is_null());
    }
}

/// Reads the keys of a map whose values mean nothing.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let map: BTreeMap<String, serde::de::IgnoredAny> = null_is_empty(deserializer)?;
    Ok(map.into_keys().collect())
}

/// Writes a map with empty values.
fn as_keys<S: Serializer>(keys: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(keys.iter().map(|key| (key, BTreeMap::<(), ()>::new())))
}

/// One step in the making of an image.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// When it was done.
    pub created: Option<SystemTime>,
    /// The command that did it.
    pub created_by: String,
    /// Who did it.
    pub author: String,
    /// A remark.
    pub comment: String,
    /// Whether the step made no layer.
    pub empty_layer: bool,
}

impl History {
    /// A step that this command did and that made a layer.
    pub fn new(created_by: impl Into<String>) -> Self {
        Self {
            created_by: created_by.into(),
            ..Self::default()
        }
    }

    /// Sets [`History::created`].
    #[must_use]
    pub fn created(mut self, created: SystemTime) -> Self {
        self.created = Some(created);
        self
    }

    /// Sets [`History::author`].
    #[must_use]
    pub fn author(mut self, author: impl Into<String>) -> Self {
        self.author = author.into();
        self
    }

    /// Sets [`History::comment`].
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = comment.into();
        self
    }

    /// Sets [`History::empty_layer`].
    #[must_use]
    pub fn empty_layer(mut self) -> Self {
        self.empty_layer = true;
        self
    }
}

/// The config of an image: its platform, its layers, its history, and what a container made from it runs.
///
/// Made by [`Store::image_config`](crate::Store::image_config).
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// The JSON document, byte for byte.
    pub bytes: Bytes,
    /// Digest of [`ImageConfig::bytes`]; its hexadecimal part is the image's ID.
    pub digest: Digest,
    /// When the image was made.
    pub created: Option<SystemTime>,
    /// Who made it.
    pub author: String,
    /// Processor architecture, in the words of Go: `amd64`, `arm64`.
    pub architecture: String,
    /// Variant of the architecture, such as `v8`, or empty.
    pub variant: String,
    /// Operating system: `linux`.
    pub os: String,
    /// What a container made from it runs.
    pub run: RunConfig,
    /// Digests of the uncompressed layers (diff IDs), the lowest first.
    pub diff_ids: Vec<Digest>,
    /// How it was made, the oldest step first. May be empty.
    pub history: Vec<History>,
}

/// The JSON document, fields in the order in which they are written.
#[derive(Serialize, Deserialize)]
struct Raw {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "String::is_empty"
    )]
    author: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    architecture: String,
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "String::is_empty"
    )]
    variant: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    os: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    config: RunConfig,
    #[serde(default)]
    rootfs: RawRootFs,
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    history: Vec<RawHistory>,
}

#[derive(Default, Serialize, Deserialize)]
struct RawRootFs {
    #[serde(rename = "type", default = "layers")]
    kind: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    diff_ids: Vec<Digest>,
}

fn layers() -> String {
    "layers".to_owned()
}

#[derive(Serialize, Deserialize)]
struct RawHistory {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "String::is_empty"
    )]
    created_by: String,
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "String::is_empty"
    )]
    author: String,
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "String::is_empty"
    )]
    comment: String,
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "std::ops::Not::not"
    )]
    empty_layer: bool,
}

/// Go's zero time stands for an unknown one.
pub(crate) fn read_time(text: Option<&str>) -> Result<Option<SystemTime>> {
    let time: Option<Time> = text.map(str::parse).transpose()?;
    Ok(time
        .as_ref()
        .filter(|time| !time.is_go_zero())
        .map(Time::system_time))
}

pub(super) fn write_time(time: SystemTime) -> String {
    Time::from(time).to_string()
}

impl ImageConfig {
    /// An empty config for this platform.
    pub(crate) fn empty(os: &str, architecture: &str) -> Self {
        Self {
            bytes: Bytes::new(),
            digest: Digest::sha256(b""),
            created: None,
            author: String::new(),
            architecture: architecture.to_owned(),
            variant: String::new(),
            os: os.to_owned(),
            run: RunConfig::default(),
            diff_ids: Vec::new(),
            history: Vec::new(),
        }
    }

    /// Reads a config.
    pub(crate) fn parse(bytes: Bytes, digest: Digest) -> Result<Self> {
        let raw: Raw = image_types::read_config(&bytes)?;
        let step = |raw: RawHistory| -> Result<History> {
            Ok(History {
                created: read_time(raw.created.as_deref())?,
                created_by: raw.created_by,
                author: raw.author,
                comment: raw.comment,
                empty_layer: raw.empty_layer,
            })
        };
        Ok(Self {
            bytes,
            digest,
            created: read_time(raw.created.as_deref())?,
            author: raw.author,
            architecture: raw.architecture,
            variant: raw.variant,
            os: raw.os,
            run: raw.config,
            diff_ids: raw.rootfs.diff_ids,
            history: raw.history.into_iter().map(step).collect::<Result<_>>()?,
        })
    }

    /// Writes the document and its digest anew from the other fields.
    pub(crate) fn write(&mut self) -> Result<()> {
        let step = |step: &History| RawHistory {
            created: step.created.map(write_time),
            created_by: step.created_by.clone(),
            author: step.author.clone(),
            comment: step.comment.clone(),
            empty_layer: step.empty_layer,
        };
        let raw = Raw {
            created: self.created.map(write_time),
            author: self.author.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
            os: self.os.clone(),
            config: self.run.clone(),
            rootfs: RawRootFs {
                kind: layers(),
                diff_ids: self.diff_ids.clone(),
            },
            history: self.history.iter().map(step).collect(),
        };
        let bytes = crate::json::to_bytes(&raw).map_err(|error| {
            ErrorKind::InvalidInput
                .err("writing an image config")
                .with_source(error)
        })?;
        self.digest = Digest::sha256(&bytes);
        self.bytes = bytes.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As buildah writes one.
    const BUILDAH: &str = r#"{"created":"2026-11-28T07:05:28.84009926Z","author":"me","architecture":"amd64","os":"linux","config":{"User":"1:2","ExposedPorts":{"80":{}},"Env":["A=b"],"Entrypoint":["/bin/sh","-c"],"Cmd":["/bin/true"],"Volumes":{"/data":{}},"WorkingDir":"/w","Labels":{"l":"v"},"StopSignal":"SIGINT"},"rootfs":{"type":"layers","diff_ids":["sha256:6fc9300d6510ca9290d76799fa82036a0d5986a66ed7d695637b23ded043c55e"]},"history":[{"created":"2026-11-28T07:05:28.841014668Z","created_by":"COPY x","author":"me"}]}"#;

    fn parse(text: &str) -> Result<ImageConfig> {
        ImageConfig::parse(Bytes::copy_from_slice(text.as_bytes()), Digest::sha256(text))
    }

    #[test]
    fn a_config_of_buildah_is_written_as_it_was_read() {
        let read = parse(BUILDAH).unwrap();
        assert_eq!(read.run.command(), ["/bin/sh", "-c", "/bin/true"]);
        assert_eq!(read.run.environment().collect::<Vec<_>>(), [("A", "b")]);
        assert_eq!(read.history[0].created_by, "COPY x");
        let mut written = read.clone();
        written.write().unwrap();
        assert_eq!(String::from_utf8_lossy(&written.bytes), BUILDAH);
        assert_eq!(written, read);
    }

    #[test]
    fn docker_configs_are_read_and_lose_what_is_about_a_container() {
        let text = r#"{"created":"0001-01-01T00:00:00Z","container":"x","config":{"Hostname":"h","Tty":false,"Env":null,"Cmd":["a"],"ExposedPorts":null,"OnBuild":[],"Healthcheck":{"Test":["CMD","b"]},"Labels":null},"rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let mut config = parse(text).unwrap();
        assert_eq!((config.created, &config.run.cmd), (None, &vec!["a".to_owned()]));
        config.run.drop_container_fields();
        config.write().unwrap();
        let text = String::from_utf8(config.bytes.to_vec()).unwrap();
        assert!(text.contains(r#""Healthcheck":{"Test":["CMD","b"]}"#), "{text}");
        assert!(!text.contains("Hostname") && !text.contains("Tty"), "{text}");
        assert!(text.contains(r#""diff_ids":[]"#), "{text}");
    }

    #[test]
    fn what_cannot_be_a_config_is_refused() {
        for bad in [
            "{",
            r#"{"rootfs":{"diff_ids":["sha256:x"]}}"#,
            r#"{"created":"yesterday","rootfs":{}}"#,
            r#"{"created":"","rootfs":{}}"#,
            r#"{"config":{"Env":"A=b"},"rootfs":{}}"#,
            r#"{"history":[{"created":""}]}"#,
            r#"{"config":{"Healthcheck":{"Retries":"3"}}}"#,
        ] {
            assert_eq!(parse(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
        for good in [r#"{"rootfs":{}}"#, "{}", "null"] {
            assert!(parse(good).unwrap().diff_ids.is_empty());
        }
        let folded = parse(r#"{"Created":"2024-01-02T3:04:05Z","config":{"cmd":["a"],"env":null}}"#).unwrap();
        assert!(folded.created.is_some());
        assert_eq!(folded.run.cmd, ["a"]);
    }

    #[test]
    fn a_variable_is_set_where_it_is() {
        let mut run = RunConfig::default();
        for (name, value) in [("A", "1"), ("B", "2"), ("A", "3"), ("AB", "4")] {
            run.set_env(name, value);
        }
        assert_eq!(run.env, ["A=3", "B=2", "AB=4"]);
    }
}
