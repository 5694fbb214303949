//! How something is mounted.

use serde::{Deserialize, Serialize};

/// How to mount a layer, a container's layer or an image.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MountOptions {
    /// SELinux label of the mount; `None`: the layer's own.
    pub label: Option<String>,
    /// Options as in `mount -o`, one each, besides a container's own. If there are none at all, those that the
    /// driver is configured with count.
    pub options: Vec<String>,
}

impl MountOptions {
    /// Sets [`MountOptions::label`].
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Adds one option to [`MountOptions::options`].
    #[must_use]
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Adds to [`MountOptions::options`].
    #[must_use]
    pub fn options(mut self, options: impl IntoIterator<Item: Into<String>>) -> Self {
        self.options.extend(options.into_iter().map(Into::into));
        self
    }
}
