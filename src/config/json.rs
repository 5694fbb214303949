//! The options as the Go library's command prints them (`containers-storage config`).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::effective::Effective;
use crate::error::{Error, Result};
use crate::idmap::IdMap;

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_false(switch: &bool) -> bool {
    !switch
}

/// Fields in the Go library's order and under its names; what is empty is left out, but for the pull options.
#[derive(Serialize)]
struct GoOptions<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    runroot: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    root: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    imagestore: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    driver: &'a str,
    #[serde(rename = "driver-priority", skip_serializing_if = "<[_]>::is_empty")]
    driver_priority: &'a [String],
    #[serde(rename = "driver-options", skip_serializing_if = "<[_]>::is_empty")]
    driver_options: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    uidmap: &'a [IdMap],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    gidmap: &'a [IdMap],
    #[serde(rename = "root_auto_ns_user", skip_serializing_if = "str::is_empty")]
    root_auto_userns_user: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    auto_userns_min_size: u32,
    #[serde(skip_serializing_if = "is_zero")]
    auto_userns_max_size: u32,
    #[serde(rename = "PullOptions")]
    pull_options: Option<&'a BTreeMap<String, String>>,
    #[serde(rename = "disable-volatile", skip_serializing_if = "is_false")]
    disable_volatile: bool,
    #[serde(rename = "transient_store", skip_serializing_if = "is_false")]
    transient: bool,
}

impl Effective {
    /// The options in one line of JSON, byte for byte what the Go library's `containers-storage config` prints for
    /// them (without the final newline). Bytes of paths that are not UTF-8 are replaced.
    ///
    /// # Errors
    /// None that is known of: JSON can say everything that the options hold.
    pub fn to_json(&self) -> Result<String> {
        let options = &self.options;
        let image_store = options.image_store.as_deref().unwrap_or("".as_ref());
        let any_pull_options = self.has_pull_options || !options.pull_options.is_empty();
        let printed = GoOptions {
            runroot: &options.run_root.to_string_lossy(),
            root: &options.graph_root.to_string_lossy(),
            imagestore: &image_store.to_string_lossy(),
            driver: options.driver.as_deref().unwrap_or_default(),
            driver_priority: &options.driver_priority,
            driver_options: &options.driver_options,
            uidmap: &options.id_mappings.uids,
            gidmap: &options.id_mappings.gids,
            root_auto_userns_user: options.root_auto_userns_user.as_deref().unwrap_or_default(),
            auto_userns_min_size: options.auto_userns_min_size,
            auto_userns_max_size: options.auto_userns_max_size,
            pull_options: any_pull_options.then_some(&options.pull_options),
            disable_volatile: options.disable_volatile,
            transient: options.transient,
        };
        let action = "writing the configuration as JSON";
        let bytes = crate::json::to_bytes(&printed).map_err(|error| Error::io(action, error))?;
        String::from_utf8(bytes).map_err(|error| Error::io(action, std::io::Error::other(error)))
    }
}
