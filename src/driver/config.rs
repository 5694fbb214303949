//! What a driver is started with.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use crate::tree_driver::TreeDriver;

/// The settings of a store that concern its driver.
#[derive(Clone, Debug, Default)]
pub(crate) struct DriverConfig {
    /// Name of the driver that the caller asks for.
    pub(crate) name: Option<String>,
    /// The graph root; the driver's home is a directory in it.
    pub(crate) root: PathBuf,
    /// The run root.
    pub(crate) run_root: PathBuf,
    /// Root of a separate image store.
    pub(crate) image_store: Option<PathBuf>,
    /// Drivers to try, in this order; empty for the built-in order.
    pub(crate) priority: Vec<String>,
    /// Option strings.
    pub(crate) options: Vec<String>,
    /// A driver of the program.
    pub(crate) tree_driver: Option<Arc<dyn TreeDriver>>,
    /// Directories in which programs are looked for; `None` for `$PATH`.
    pub(crate) search_path: Option<OsString>,
}
