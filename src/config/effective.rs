//! From the merged files and the environment to the store's options.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::config::environment::Environment;
use crate::config::keys::{KEYS, Key, Kind, Role};
use crate::config::merge::Settings;
use crate::config::paths;
use crate::config::value::{Origin, Value, Warning, quoted};
use crate::error::Result;
use crate::idmap::text::parse_ranges;
use crate::options::StoreOptions;
use crate::options::driver::DRIVER_NAMES;

/// The configuration in effect.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct Effective {
    /// What to open the store with.
    pub options: StoreOptions,
    /// What is set, and where it came from: first the roots and what else has a default, then the rest in the order
    /// of the keys' table. A key that is not set and that has no default is missing, and so is one whose value does
    /// not count.
    pub values: Vec<Value>,
    /// The warnings, in the order in which they were found.
    pub warnings: Vec<Warning>,
    /// The files that were read, the most important last.
    pub files: Vec<PathBuf>,
    /// Whether any file has the table of pull options.
    pub(super) has_pull_options: bool,
}

impl fmt::Display for Effective {
    /// One line for each value, then one for each warning.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for value in &self.values {
            writeln!(f, "{value}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

/// Computes the options.
pub(super) fn effective(
    environment: &Environment,
    mut settings: Settings,
    files: Vec<PathBuf>,
) -> Result<Effective> {
    let warnings = std::mem::take(&mut settings.warnings);
    let mut builder = Builder {
        environment,
        settings: &settings,
        out: Effective {
            warnings,
            files,
            has_pull_options: settings.has_pull_options,
            ..Effective::default()
        },
    };
    builder.driver()?;
    builder.roots()?;
    builder.fields()?;
    builder.driver_options()?;
    builder.pull_options();
    Ok(builder.out)
}

struct Builder<'a> {
    environment: &'a Environment,
    settings: &'a Settings,
    out: Effective,
}

impl Builder<'_> {
    fn value(&mut self, key: &str, value: impl Into<String>, origin: &Origin) {
        self.out.values.push(Value {
            key: key.into(),
            value: value.into(),
            origin: origin.clone(),
        });
    }

    fn warn(&mut self, key: &str, origin: &Origin, message: impl Into<String>) {
        self.out.warnings.push(Warning::new(origin.clone(), key, message));
    }

    fn driver(&mut self) -> Result<()> {
        let key = "storage.driver";
        let found = match self.environment.var("STORAGE_DRIVER") {
            Some(name) => Some((
                name.to_string_lossy().into_owned(),
                Origin::variable("STORAGE_DRIVER"),
            )),
            None => self
                .settings
                .text(key)
                .map(|(name, origin)| (name.to_owned(), origin.clone())),
        };
        if let Some((mut name, origin)) = found {
            if let Some(expected) = Kind::Driver.complaint(&name) {
                return Err(origin.error(key, expected, &quoted(&name)));
            }
            if name == "overlay2" {
                name = "overlay".into();
                self.warn(key, &origin, "deprecated: \"overlay2\" is called \"overlay\" now");
            }
            self.value(key, name.as_str(), &origin);
            self.out.options.driver = Some(name);
        }
        let key = "storage.driver_priority";
        for (name, origin) in self.settings.list(key) {
            if !DRIVER_NAMES.contains(&name.as_str()) {
                self.warn(key, origin, format!("{} is not a driver: skipped", quoted(name)));
            }
            self.value(key, name, origin);
            self.out.options.driver_priority.push(name.clone());
        }
        Ok(())
    }

    /// A configured directory, expanded.
    fn path(&mut self, key: &str) -> Option<(PathBuf, Origin)> {
        let (text, origin) = self.settings.text(key)?;
        let (path, relative) = paths::expand(self.environment, text);
        if relative {
            let message = format!("{} is relative to the working directory", quoted(text));
            self.warn(key, origin, message);
        }
        Some((path, origin.clone()))
    }

    fn roots(&mut self) -> Result<()> {
        let (key, old_key) = ("storage.graphroot", "storage.rootless_storage_path");
        let mut graph_root = self.path(key);
        if let Some((_, origin)) = self.settings.text(old_key) {
            let what = if graph_root.is_some() {
                "deprecated, and not used because storage.graphroot is set"
            } else if self.environment.is_per_user() {
                "deprecated: set storage.graphroot in storage.rootless.conf.d instead"
            } else {
                "deprecated, and not used here: it is for users without root's powers"
            };
            self.warn(old_key, origin, what);
            if graph_root.is_none() && self.environment.is_per_user() {
                graph_root = self.path(old_key);
            }
        }
        let (graph_root, origin) = match graph_root {
            Some(found) => found,
            None => paths::default_graph_root(self.environment)?,
        };
        self.value(key, graph_root.to_string_lossy(), &origin);

        let key = "storage.runroot";
        let (run_root, origin) = match self.path(key) {
            Some(found) => found,
            None => paths::default_run_root(self.environment)?,
        };
        self.value(key, run_root.to_string_lossy(), &origin);

        let key = "storage.imagestore";
        if let Some((image_store, origin)) = self.settings.text(key) {
            if Path::new(image_store) == graph_root {
                let expected = "another directory than the graph root";
                return Err(origin.error(key, expected, &quoted(image_store)));
            }
            if Path::new(image_store).is_relative() {
                let message = format!(
                    "{} is relative to the working directory (variables are not expanded here)",
                    quoted(image_store)
                );
                self.warn(key, origin, message);
            }
            self.value(key, image_store, origin);
            self.out.options.image_store = Some(image_store.into());
        }
        self.out.options.graph_root = graph_root;
        self.out.options.run_root = run_root;
        Ok(())
    }

    fn fields(&mut self) -> Result<()> {
        self.out.options.transient = self.switch("storage.transient_store");
        self.out.options.disable_volatile = self.switch("storage.options.disable-volatile");
        self.out.options.root_auto_userns_user = self.optional("storage.options.root-auto-userns-user");
        self.out.options.auto_userns_min_size = self.count("storage.options.auto-userns-min-size");
        self.out.options.auto_userns_max_size = self.count("storage.options.auto-userns-max-size");
        self.out.options.remap.uids = self.ranges("storage.options.remap-uids");
        self.out.options.remap.gids = self.ranges("storage.options.remap-gids");
        self.out.options.remap.user = self.optional("storage.options.remap-user");
        self.out.options.remap.group = self.optional("storage.options.remap-group");
        Ok(())
    }

    fn switch(&mut self, key: &str) -> bool {
        let (switch, origin) = self.settings.switch(key).unwrap_or((false, &Origin::Default));
        self.value(key, switch.to_string(), origin);
        switch
    }

    fn optional(&mut self, key: &str) -> Option<String> {
        let (text, origin) = self.settings.text(key)?;
        self.value(key, text, origin);
        Some(text.to_owned())
    }

    fn count(&mut self, key: &str) -> u32 {
        let Some((count, origin)) = self.settings.count(key) else {
            return 0;
        };
        self.value(key, count.to_string(), origin);
        count
    }

    fn ranges(&mut self, key: &str) -> Vec<crate::idmap::IdMap> {
        let Some((text, origin)) = self.settings.text(key) else {
            return Vec::new();
        };
        let Some(ranges) = parse_ranges(text) else {
            // A warning as for every removed key: other programs accept it.
            let message = format!(
                "removed, and {} is no list of ranges CONTAINER:HOST:SIZE: ignored",
                quoted(text)
            );
            self.warn(key, origin, message);
            return Vec::new();
        };
        self.value(key, text, origin);
        ranges
    }

    fn driver_options(&mut self) -> Result<()> {
        if let Some(list) = self.environment.set_var("STORAGE_OPTS") {
            // It replaces the options of the files, also if it is empty.
            let (list, origin) = (list.to_string_lossy(), Origin::variable("STORAGE_OPTS"));
            for option in list.split(',').filter(|_| !list.is_empty()) {
                self.value("driver-options", option, &origin);
                self.out.options.driver_options.push(option.to_owned());
            }
            return Ok(());
        }
        for key in KEYS {
            let Role::DriverOption(driver, option) = key.role else {
                continue;
            };
            let found: Vec<(String, Origin)> = match key.kind {
                Kind::List | Kind::Directories => self.settings.list(key.name).to_vec(),
                // Of these only a file mode becomes a driver option.
                Kind::Count => {
                    let mode = self.settings.count(key.name);
                    mode.map(|(mode, origin)| (format!("{mode:o}"), origin.clone()))
                        .into_iter()
                        .collect()
                }
                _ => {
                    let text = self.settings.text(key.name);
                    text.map(|(text, origin)| (text.to_owned(), origin.clone()))
                        .into_iter()
                        .collect()
                }
            };
            for (text, origin) in found {
                self.check(key, driver, &text, &origin)?;
                self.value(key.name, text.as_str(), &origin);
                let prefix = if driver.is_empty() {
                    String::new()
                } else {
                    format!("{driver}.")
                };
                self.out
                    .options
                    .driver_options
                    .push(format!("{prefix}{option}={text}"));
            }
        }
        Ok(())
    }

    /// Refuses a value that the driver to be opened would refuse, since this error can name the file. Values for other
    /// drivers have no effect, so they cause a warning.
    fn check(&mut self, key: &Key, driver: &str, text: &str, origin: &Origin) -> Result<()> {
        // Drivers trim what they are given.
        let Some(expected) = key.kind.complaint(text.trim()) else {
            return Ok(());
        };
        let options = &self.out.options;
        let first = options.driver.as_ref().or(options.driver_priority.first());
        let opened = first.map_or("overlay", String::as_str);
        // The vfs driver does not check its image stores before it needs them.
        let unchecked = key.kind == Kind::Directories && opened == "vfs";
        if (driver.is_empty() || driver == opened) && !unchecked {
            return Err(origin.error(key.name, expected, &quoted(text)));
        }
        self.warn(
            key.name,
            origin,
            format!("expected {expected}, found {}", quoted(text)),
        );
        Ok(())
    }

    fn pull_options(&mut self) {
        for (key, (text, origin)) in &self.settings.pull_options {
            let dotted = format!("storage.options.pull_options.{key}");
            let is_switch = matches!(
                key.as_str(),
                "enable_partial_images"
                    | "use_hard_links"
                    | "convert_images"
                    | "insecure_allow_unpredictable_image_contents"
            );
            let lower = text.to_ascii_lowercase();
            if is_switch && !matches!(lower.as_str(), "" | "true" | "false") {
                let message = format!(
                    "expected \"true\" or \"false\", found {}: taken as false",
                    quoted(text)
                );
                self.warn(&dotted, origin, message);
            }
            self.value(&dotted, text, origin);
            self.out.options.pull_options.insert(key.clone(), text.clone());
        }
    }
}
