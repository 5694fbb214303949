//! Where the store is if nobody says so, and how that joins with what was said.

use std::path::PathBuf;

use graphroot::StoreOptions;

use crate::call::Failure;

/// What was said on the command line; empty for what was not.
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
    /// Whether none of those was said that keep the configuration away. The others do not count, as ever.
    pub(crate) fn says_nothing(&self) -> bool {
        self.graph.is_empty()
            && self.run.is_empty()
            && self.driver.is_empty()
            && self.driver_options.is_empty()
    }

    /// Configured options as if they had been said.
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

    /// The options to open the store with: what was said replaces the configuration as a whole, except that one root
    /// alone is completed from it.
    pub(crate) async fn complete(self, configured: Option<StoreOptions>) -> Result<StoreOptions, Failure> {
        if self.graph.is_empty() && self.run.is_empty() {
            return Err("no storage runroot or graphroot specified: missing necessary StoreOptions".into());
        }
        // Settings that have no flag come along if the configuration was taken.
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
