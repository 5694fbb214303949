//! The global arguments: where the store is, and how the configuration completes what the command line says.

use std::path::PathBuf;

use graphroot::StoreOptions;

use crate::flags::{DEBUG, UNSHARE, global};
use crate::mflag::{FlagValue, Flags};
use crate::outcome::CommandError;
use crate::user_namespace;

/// The values of the global arguments that describe the store. An empty one is not given.
#[derive(Clone, Debug, Default)]
pub(crate) struct GlobalArguments {
    pub(crate) graph: String,
    pub(crate) run: String,
    pub(crate) image_store: String,
    pub(crate) transient: bool,
    pub(crate) driver: String,
    pub(crate) driver_options: Vec<String>,
}

impl GlobalArguments {
    /// The values that the flags have.
    pub(crate) fn from_flags(flags: &Flags) -> Self {
        Self {
            graph: flags.text(&global::GRAPH).to_owned(),
            run: flags.text(&global::RUN).to_owned(),
            image_store: flags.text(&global::IMAGE_STORE).to_owned(),
            transient: flags.is_on(&global::TRANSIENT),
            driver: flags.text(&global::DRIVER).to_owned(),
            driver_options: flags.list(&global::DRIVER_OPTION).to_vec(),
        }
    }

    /// The values of configured options.
    pub(crate) fn from_options(options: &StoreOptions) -> Self {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        Self {
            graph: text(&options.graph_root),
            run: text(&options.run_root),
            image_store: options.image_store.as_ref().map(text).unwrap_or_default(),
            transient: options.transient,
            driver: options.driver.clone().unwrap_or_default(),
            driver_options: options.driver_options.clone(),
        }
    }

    /// Adds every global argument to the flags, with these values as defaults.
    pub(crate) fn add_to(&self, flags: &mut Flags, debug: bool) {
        flags.add_with(global::RUN, FlagValue::Text(self.run.clone()));
        flags.add_with(global::GRAPH, FlagValue::Text(self.graph.clone()));
        flags.add_with(global::IMAGE_STORE, FlagValue::Text(self.image_store.clone()));
        flags.add_with(global::TRANSIENT, FlagValue::Bool(self.transient));
        flags.add_with(global::DRIVER, FlagValue::Text(self.driver.clone()));
        flags.add_with(
            global::DRIVER_OPTION,
            FlagValue::List(self.driver_options.clone()),
        );
        flags.add_with(DEBUG, FlagValue::Bool(debug));
        // As in containers-storage, `--unshare` before the command's name has no effect.
        let rootless = user_namespace::is_rootless();
        let unshare = if rootless {
            global::UNSHARE_ROOTLESS
        } else {
            UNSHARE
        };
        flags.add_with(unshare, FlagValue::Bool(rootless));
    }

    /// Whether the configuration is used: none of the arguments that replace it is given. `--image-store` and
    /// `--transient-store` do not replace it, as in containers-storage.
    pub(crate) fn use_configuration(&self) -> bool {
        self.graph.is_empty()
            && self.run.is_empty()
            && self.driver.is_empty()
            && self.driver_options.is_empty()
    }

    /// The options to open the store with. Given arguments replace the whole configuration, except that a missing root
    /// comes from it if the other root is given.
    pub(crate) async fn complete(
        self,
        configured: Option<StoreOptions>,
    ) -> Result<StoreOptions, CommandError> {
        if self.graph.is_empty() && self.run.is_empty() {
            return Err("no storage runroot or graphroot specified: missing necessary StoreOptions".into());
        }
        // Settings without a flag come from the configuration where it is used.
        let mut options = configured.clone().unwrap_or_default();
        options.graph_root = PathBuf::from(self.graph);
        options.run_root = PathBuf::from(self.run);
        options.image_store = Some(self.image_store)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        options.transient = self.transient;
        options.driver = Some(self.driver).filter(|name| !name.is_empty());
        options.driver_options = self.driver_options;
        if options.graph_root.as_os_str().is_empty() || options.run_root.as_os_str().is_empty() {
            let configured = match configured {
                Some(configured) => configured,
                None => StoreOptions::default_for_user().await?,
            };
            if options.graph_root.as_os_str().is_empty() {
                options.graph_root = configured.graph_root;
            } else {
                options.run_root = configured.run_root;
            }
        }
        Ok(options)
    }
}
