//! What the options for pulling images say of partial pulls.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The part of [`StoreOptions::pull_options`](crate::StoreOptions::pull_options) that is about partial pulls, with the
/// Go library's defaults.
///
/// ```
/// use graphroot::{PartialPullOptions, StoreOptions};
///
/// let parts = PartialPullOptions::default().enable_partial_images(true);
/// let options = StoreOptions::default().partial_pulls(parts.clone());
/// assert_eq!(options.pull_options["enable_partial_images"], "true");
/// assert_eq!(PartialPullOptions::new(&options.pull_options), parts);
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PartialPullOptions {
    /// Layers with a table of contents are pulled in parts. Without, all others of these options have no effect.
    pub enable_partial_images: bool,
    /// Layers without a table of contents get one while they are unpacked, so that later pulls find their files
    /// ([`ConvertingDiffer`](crate::ConvertingDiffer)). A layer that can have none is pulled all the same, where the Go library
    /// fails.
    pub convert_images: bool,
    /// Files that another layer of the store has, the same in content, owner, mode, time of last modification and attributes,
    /// become hard links to them. The Go library does not look at the time. Whoever changes a file of a layer in its directory
    /// changes it for all layers then: for stores whose layers nobody mounts for writing. Containers write elsewhere.
    ///
    /// Without, content is shared where the file system can, else copied.
    pub use_hard_links: bool,
    /// Layers are accepted of which nobody can know the diff ID, and pulled in parts: those of eStargz, and of zstd:chunked
    /// without tar-split data. What makes sure of their content is the digest of the table of contents, which is in the IDs
    /// of such layers and of their images: whoever makes an image can have a table of contents say another thing than the
    /// tar stream, which other programs unpack. Such a layer can be sent only to where its blob is already.
    ///
    /// Layers with tar-split data have their diff IDs verified all the same, other than by the Go library. A layer of the
    /// store that is known by its table of contents is used by pulls whether this is set or not, as by the Go library.
    pub insecure_allow_unpredictable_image_contents: bool,
    /// OSTree repositories that contents are taken from. Colons separate them in `storage.conf`, so no path can have one.
    pub ostree_repos: Vec<PathBuf>,
}

impl PartialPullOptions {
    /// Reads the pairs of key and value as they are in `storage.conf`. A switch is on if its value is `true`, in any
    /// case; repositories are separated by colons.
    pub fn new(pull_options: &BTreeMap<String, String>) -> Self {
        let text = |key: &str| pull_options.get(key).map_or("", String::as_str);
        let is_on = |key: &str| text(key).eq_ignore_ascii_case("true");
        Self {
            enable_partial_images: is_on("enable_partial_images"),
            convert_images: is_on("convert_images"),
            use_hard_links: is_on("use_hard_links"),
            insecure_allow_unpredictable_image_contents: is_on("insecure_allow_unpredictable_image_contents"),
            ostree_repos: text("ostree_repos")
                .split(':')
                .filter(|repo| !repo.is_empty())
                .map(PathBuf::from)
                .collect(),
        }
    }

    /// The pairs that [`PartialPullOptions::new`] reads.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (String, String)> {
        let repos: Vec<_> = self
            .ostree_repos
            .iter()
            .map(|repo| repo.to_string_lossy())
            .collect();
        [
            ("enable_partial_images", self.enable_partial_images.to_string()),
            ("convert_images", self.convert_images.to_string()),
            ("use_hard_links", self.use_hard_links.to_string()),
            (
                "insecure_allow_unpredictable_image_contents",
                self.insecure_allow_unpredictable_image_contents.to_string(),
            ),
            ("ostree_repos", repos.join(":")),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
    }

    /// Sets [`PartialPullOptions::enable_partial_images`].
    #[must_use]
    pub fn enable_partial_images(mut self, enable: bool) -> Self {
        self.enable_partial_images = enable;
        self
    }

    /// Sets [`PartialPullOptions::convert_images`].
    #[must_use]
    pub fn convert_images(mut self, convert: bool) -> Self {
        self.convert_images = convert;
        self
    }

    /// Sets [`PartialPullOptions::use_hard_links`].
    #[must_use]
    pub fn use_hard_links(mut self, use_hard_links: bool) -> Self {
        self.use_hard_links = use_hard_links;
        self
    }

    /// Sets [`PartialPullOptions::insecure_allow_unpredictable_image_contents`].
    #[must_use]
    pub fn insecure_allow_unpredictable_image_contents(mut self, allow: bool) -> Self {
        self.insecure_allow_unpredictable_image_contents = allow;
        self
    }

    /// Sets [`PartialPullOptions::ostree_repos`].
    #[must_use]
    pub fn ostree_repos(mut self, repos: impl IntoIterator<Item = PathBuf>) -> Self {
        self.ostree_repos = repos.into_iter().collect();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> PartialPullOptions {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        PartialPullOptions::new(&pairs.iter().map(own).collect())
    }

    #[test]
    fn everything_is_off_without_options() {
        assert_eq!(read(&[]), PartialPullOptions::default());
        assert_eq!(read(&[("ostree_repos", "")]), PartialPullOptions::default());
    }

    #[test]
    fn a_switch_is_on_if_it_says_true() {
        for (value, expected) in [
            ("true", true),
            ("TRUE", true),
            ("True", true),
            ("1", false),
            ("yes", false),
            ("", false),
            (" true", false),
        ] {
            let found = read(&[
                ("enable_partial_images", value),
                ("convert_images", value),
                ("use_hard_links", value),
                ("insecure_allow_unpredictable_image_contents", value),
            ]);
            let switches = [
                found.enable_partial_images,
                found.convert_images,
                found.use_hard_links,
                found.insecure_allow_unpredictable_image_contents,
            ];
            assert_eq!(switches, [expected; 4], "{value:?}");
        }
    }

    #[test]
    fn repositories_are_separated_by_colons() {
        let found = read(&[("ostree_repos", ":/a::/b c:")]);
        assert_eq!(found.ostree_repos, [PathBuf::from("/a"), PathBuf::from("/b c")]);
    }

    #[test]
    fn what_is_written_is_read() {
        for on in [false, true] {
            let options = PartialPullOptions::default()
                .enable_partial_images(on)
                .convert_images(!on)
                .use_hard_links(on)
                .insecure_allow_unpredictable_image_contents(!on)
                .ostree_repos(["/a".into(), "/b c".into()]);
            assert_eq!(PartialPullOptions::new(&options.pairs().collect()), options);
        }
    }
}
