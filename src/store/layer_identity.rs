//! What image programs know the layers of an image by, and the IDs of layers and images that follow from it.
//!
//! A layer of which the whole content was verified is known by its diff ID. One that was put together by a table of
//! contents without tar-split data is known by the digest of that table alone: what its diff ID is was not found out. The
//! digest of the table then is in the layer's ID, in those of the layers above, and in the image's.

use crate::digest::Digest;
#[cfg(feature = "pull")]
use crate::store::views::Layer;

/// The flag of a layer that is known by its table of contents: the diff ID that the image's config has for it. Nobody has
/// verified it.
#[cfg(feature = "pull")]
pub(crate) const EXPECTED_DIFF_ID: &str = "expected-layer-diffid";

/// What a layer of an image is known by.
#[cfg_attr(
    not(feature = "pull"),
    expect(dead_code, reason = "only pulls find layers by their tables")
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LayerIdentity {
    /// The digest of its uncompressed tar stream.
    DiffId(Digest),
    /// The digest of its table of contents.
    Toc(Digest),
}

impl LayerIdentity {
    /// The ID of the layer on `parent`, as image programs compute it.
    pub(crate) fn layer_id(&self, parent: Option<&str>) -> String {
        match (self, parent) {
            (Self::DiffId(digest), None) => digest.encoded().to_owned(),
            (Self::DiffId(digest), Some(parent)) => hashed(format!("{parent}+{}", digest.encoded())),
            (Self::Toc(digest), parent) => {
                let parent = parent.unwrap_or_default();
                hashed(format!("{parent}+@TOC={}", digest.encoded()))
            }
        }
    }

    /// Whether `layer` is one with this identity.
    #[cfg(feature = "pull")]
    pub(crate) fn is_of(&self, layer: &Layer) -> bool {
        match self {
            Self::DiffId(digest) => layer.uncompressed_digest().as_ref() == Some(digest),
            // The digest of the table is lost when a program rewrites the record that does not know of tables; and where
            // the Go library has copied the layer, there is another diff ID than that of the image's config.
            Self::Toc(digest) => {
                layer.id() == self.layer_id(layer.parent())
                    || layer.toc_digest().as_ref() == Some(digest) && layer.uncompressed_digest().is_none()
            }
        }
    }
}

/// The ID of the image with this config and these layers, the lowest first.
///
/// Compat: before 5.40 the Go library's image programs left the config out of the ID of an image with layers that are known
/// by their tables: all images of the same such layers were one.
#[cfg(feature = "pull")]
pub(crate) fn image_id<'a>(config: &Digest, layers: impl IntoIterator<Item = &'a LayerIdentity>) -> String {
    let mut text = format!("@With TOC:{}|", config.encoded());
    let mut by_toc = false;
    for layer in layers {
        if let LayerIdentity::Toc(digest) = layer {
            by_toc = true;
            text.push_str(digest.as_str());
        }
        text.push('|');
    }
    match by_toc {
        true => hashed(text),
        false => config.encoded().to_owned(),
    }
}

fn hashed(text: String) -> String {
    Digest::sha256(text).encoded().to_owned()
}

#[cfg(all(test, feature = "pull"))]
mod tests {
    use super::*;

    fn diff_id(text: &str) -> LayerIdentity {
        LayerIdentity::DiffId(Digest::sha256(text))
    }

    #[test]
    fn layers_are_named_by_their_chain() {
        let first = diff_id("a").layer_id(None);
        assert_eq!(first, Digest::sha256("a").encoded());
        let second = diff_id("b").layer_id(Some(&first));
        let expected = Digest::sha256(format!("{first}+{}", Digest::sha256("b").encoded()));
        assert_eq!(second, expected.encoded());
    }

    #[test]
    fn tables_are_in_the_ids_of_layers_and_images() {
        let toc = Digest::sha256("t");
        let by_toc = LayerIdentity::Toc(toc.clone());
        let text = format!("+@TOC={}", toc.encoded());
        assert_eq!(by_toc.layer_id(None), Digest::sha256(text).encoded());
        let text = format!("below+@TOC={}", toc.encoded());
        assert_eq!(by_toc.layer_id(Some("below")), Digest::sha256(text).encoded());
        let config = Digest::sha256("config");
        assert_eq!(image_id(&config, &[diff_id("a")]), config.encoded());
        let text = format!("@With TOC:{}||{toc}|", config.encoded());
        assert_eq!(
            image_id(&config, &[diff_id("a"), by_toc]),
            Digest::sha256(text).encoded()
        );
    }
}
