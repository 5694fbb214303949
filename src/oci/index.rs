//! Indexes of images, parsed from untrusted bytes without I/O.
//!
//! Only the entry that is wanted has to be whole: the others may lack a platform, a size or a digest.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::platform::Platform;
use super::reference;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::store::image_types;

/// The annotation of an index entry that names it.
pub(crate) const NAME: &str = "org.opencontainers.image.ref.name";

/// The annotation in which containerd and BuildKit give the whole name.
const WHOLE_NAME: &str = "io.containerd.image.name";

/// The annotation of an index entry whose layers are zstd's, and its value.
const ZSTD: (&str, &str) = ("io.github.containers.compression.zstd", "true");

/// A list of images: for several platforms, or of a layout.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(default)]
    manifests: Vec<Entry>,
}

/// One image of an index, or another index.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Entry {
    #[serde(default)]
    digest: String,
    platform: Option<EntryPlatform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
struct EntryPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl Entry {
    /// The digest of what it stands for.
    pub(crate) fn digest(&self) -> Result<Digest> {
        self.digest
            .parse()
            .map_err(|error: crate::error::Error| error.context("an entry of an index"))
    }

    /// Its name in a layout.
    fn name(&self) -> Option<&str> {
        self.annotations.get(NAME).map(String::as_str)
    }

    /// What the image is called elsewhere, if anything.
    pub(crate) fn image_name(&self) -> Option<&str> {
        let given = |key: &str| self.annotations.get(key).filter(|name| !name.is_empty());
        given(WHOLE_NAME).or_else(|| given(NAME)).map(String::as_str)
    }

    /// What it runs on; `None` if it does not say so.
    fn platform(&self) -> Option<Platform> {
        let platform = self.platform.as_ref()?;
        Some(Platform {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: Some(platform.variant.clone()).filter(|variant| !variant.is_empty()),
        })
    }

    fn is_zstd(&self) -> bool {
        let (key, value) = ZSTD;
        self.annotations.get(key).is_some_and(|found| found == value)
    }
}

/// How an image of a layout is named in a reference.
fn called((number, entry): (usize, &Entry)) -> String {
    let short = entry.name().map(|name| name.chars().take(200).collect());
    short.unwrap_or_else(|| format!("@{number}"))
}

impl Index {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        image_types::read_index(bytes)
    }

    /// The entry for the platform that fits best, and behind those one that does not say what it is for; of equals one
    /// with zstd's layers, and the first.
    pub(crate) fn choose(&self, wanted: &Platform) -> Result<Digest> {
        let mut best: Option<((usize, bool), &Entry)> = None;
        let mut offers = Vec::new();
        for entry in &self.manifests {
            let fit = match entry.platform() {
                Some(offered) => {
                    let fit = wanted.rank(&offered);
                    offers.push(offered.to_string());
                    fit
                }
                None => Some(usize::MAX),
            };
            let Some(fit) = fit else { continue };
            let rank = (fit, !entry.is_zstd());
            if best.is_none_or(|(known, _)| rank < known) {
                best = Some((rank, entry));
            }
        }
        match best {
            Some((_, entry)) => entry.digest(),
            None => {
                let what = format!("no image for {wanted} among those for {}", offers.join(", "));
                Err(ErrorKind::NotFound.err(what))
            }
        }
    }

    /// The entry of a layout's index that is meant: by its name, or as `@0` for the first.
    pub(crate) fn pick(&self, name: Option<&str>) -> Result<&Entry> {
        let entries = &self.manifests;
        let Some(wanted) = name else {
            return match (entries.first(), entries.len()) {
                (Some(entry), 1) => Ok(entry),
                (None, _) => Err(ErrorKind::NotFound.err("an empty layout")),
                (Some(_), _) => {
                    let names: Vec<String> = entries.iter().enumerate().map(called).collect();
                    let what = format!(
                        "more than one image in oci, choose an image: {}",
                        names.join(", ")
                    );
                    Err(ErrorKind::InvalidInput.err(what))
                }
            };
        };
        if let Some(index) = wanted.strip_prefix('@') {
            return reference::by_number(entries.iter(), index);
        }
        let found = entries.iter().find(|entry| entry.name() == Some(wanted));
        let what = || format!("no descriptor found for reference {wanted:?}");
        found.ok_or_else(|| ErrorKind::NotFound.err(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: &[String]) -> Index {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        Index::parse(text.as_bytes()).unwrap()
    }

    fn digest(text: &str) -> Digest {
        Digest::sha256(text)
    }

    fn entry(name: &str, more: &str) -> String {
        format!(r#"{{"digest":"{}","size":1{more}}}"#, digest(name))
    }

    fn platform(os: &str, arch: &str) -> String {
        format!(r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#)
    }

    #[test]
    fn the_entry_for_the_platform_is_chosen() {
        let two = index(&[
            entry("unknown", &platform("unknown", "unknown")),
            entry("arm", &platform("linux", "arm64")),
            entry("amd", &platform("linux", "amd64")),
        ]);
        let chosen = |index: &Index, platform: &str| index.choose(&platform.parse().unwrap());
        assert_eq!(chosen(&two, "linux/amd64").unwrap(), digest("amd"));
        assert_eq!(chosen(&two, "linux/arm64").unwrap(), digest("arm"));
        let error = chosen(&two, "linux/s390x").unwrap_err();
        assert!(error.chain().contains("linux/arm64, linux/amd64"), "{error:?}");
        let only = index(&[entry("only", "")]);
        assert_eq!(chosen(&only, "linux/amd64").unwrap(), digest("only"));
        let silent = index(&[entry("one", ""), entry("arm", &platform("linux", "arm64"))]);
        assert_eq!(chosen(&silent, "linux/amd64").unwrap(), digest("one"));
        assert_eq!(chosen(&silent, "linux/arm64").unwrap(), digest("arm"));
        let zstd = format!(
            r#"{},"annotations":{{"{}":"{}"}}"#,
            platform("linux", "amd64"),
            ZSTD.0,
            ZSTD.1
        );
        let twice = index(&[entry("gzip", &platform("linux", "amd64")), entry("zstd", &zstd)]);
        assert_eq!(chosen(&twice, "linux/amd64").unwrap(), digest("zstd"));
    }

    #[test]
    fn entries_beside_the_wanted_one_may_lack_everything() {
        let odd = index(&[
            "null".to_owned(),
            "{}".to_owned(),
            r#"{"digest":"","platform":{}}"#.to_owned(),
            r#"{"platform":{"os":"linux","architecture":"amd64","variant":"v9"}}"#.to_owned(),
            r#"{"digest":"x","platform":{"os":"linux"},"annotations":null}"#.to_owned(),
            entry("amd", &platform("linux", "amd64")),
        ]);
        let amd = "linux/amd64".parse().unwrap();
        assert_eq!(odd.choose(&amd).unwrap(), digest("amd"));
        let broken = index(&[r#"{"platform":{"os":"linux","architecture":"amd64"}}"#.to_owned()]);
        let error = broken.choose(&amd).unwrap_err();
        assert!(error.chain().contains("entry of an index"), "{error:?}");
    }

    #[test]
    fn an_entry_of_a_layout_is_picked_by_name() {
        let named = |name: &str| entry(name, &format!(r#","annotations":{{"{NAME}":"{name}"}}"#));
        let index = index(&[named("a"), "{}".to_owned(), named("b")]);
        for name in ["b", "@2"] {
            assert_eq!(index.pick(Some(name)).unwrap().digest().unwrap(), digest("b"));
        }
        let error = index.pick(None).unwrap_err();
        assert!(error.chain().contains("choose an image: a, @1, b"), "{error:?}");
        for name in ["c", "@3", "@-1", "@", "@x", ""] {
            assert_eq!(
                index.pick(Some(name)).unwrap_err().kind(),
                ErrorKind::NotFound,
                "{name}"
            );
        }
    }

    #[test]
    fn the_name_that_containerd_gives_counts_more() {
        let of = |annotations: &str| {
            let index = index(&[entry("a", &format!(r#","annotations":{{{annotations}}}"#))]);
            index.pick(None).unwrap().image_name().map(str::to_owned)
        };
        let own = format!(r#""{NAME}":"1""#);
        assert_eq!(of(&own).as_deref(), Some("1"));
        assert_eq!(
            of(&format!(r#"{own},"{WHOLE_NAME}":"h.io/a:1""#)).as_deref(),
            Some("h.io/a:1")
        );
        assert_eq!(of(&format!(r#"{own},"{WHOLE_NAME}":"""#)).as_deref(), Some("1"));
        assert_eq!(of(&format!(r#""{NAME}":"""#)), None);
        assert_eq!(of(""), None);
    }
}
