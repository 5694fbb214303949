//! Images built by Buildah, in a registry filled by Skopeo and in an OCI layout. Made once for all tests that run
//! concurrently.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::registry::Registry;
use crate::support::peers::Run as _;
use crate::support::root::TestRoot;

/// Small layers above the root of the base image.
pub(crate) const SMALL_LAYERS: usize = 20;
/// Images on the base image, each with a layer of its own.
pub(crate) const APPS: usize = 8;

/// The images and where they lie.
#[derive(Debug)]
pub(crate) struct Library {
    pub(crate) registry: Registry,
    root: TestRoot,
}

static SHARED: Mutex<Weak<Library>> = Mutex::new(Weak::new());

impl Library {
    /// The library, made if it is not there.
    pub(crate) fn open() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = shared.upgrade() {
            return library;
        }
        let library = Arc::new(Self::make());
        *shared = Arc::downgrade(&library);
        library
    }

    /// A registry of the same images for one test.
    pub(crate) fn own_registry(&self, root: &TestRoot) -> Registry {
        Registry::start(&root.scratch("registry"), &self.root.path().join("data"))
    }

    /// Reference of an image in the registry.
    pub(crate) fn docker(&self, name: &str) -> String {
        format!("docker://{}", self.name(name))
    }

    /// Its name there.
    pub(crate) fn name(&self, name: &str) -> String {
        self.registry.image(name)
    }

    /// Names of the images that have their base in common.
    pub(crate) fn apps() -> Vec<String> {
        (0..APPS).map(|index| format!("app{index}")).collect()
    }

    /// The OCI layout, with the images `base`, `zstd` and `multi`.
    pub(crate) fn layout(&self) -> PathBuf {
        self.root.path().join("layout")
    }

    /// Reference of an image in the layout.
    pub(crate) fn oci(&self, name: &str) -> String {
        format!("oci:{}:{name}", self.layout().display())
    }

    fn make() -> Self {
        // In memory: what is built here is thrown away again.
        let root = TestRoot::in_memory();
        let registry = Registry::start(&root.path().join("registry"), &root.path().join("data"));
        let library = Self { registry, root };
        library.build();
        library.fill();
        library
    }

    fn build(&self) {
        let context = self.root.scratch("context");
        for dir in ["root/etc", "root/usr/bin", "root/var"] {
            fs::create_dir_all(context.join(dir)).unwrap();
        }
        fs::write(context.join("root/etc/hello"), "hello\n").unwrap();
        fs::copy("/bin/ls", context.join("root/usr/bin/ls")).unwrap();
        std::os::unix::fs::symlink("usr/bin", context.join("root/bin")).unwrap();
        let mut file = "FROM scratch\nCOPY root/ /\nCMD [\"/bin/ls\"]\n".to_owned();
        for index in 1..=SMALL_LAYERS {
            fs::write(context.join(format!("file{index}")), "x".repeat(index * 100)).unwrap();
            // Some layers replace what others brought.
            writeln!(file, "COPY file{index} /var/{}/", index % 7).unwrap();
        }
        self.bud("base", &file);
        for app in Self::apps() {
            fs::write(context.join(&app), &app).unwrap();
            self.bud(&app, &format!("FROM localhost/base\nCOPY {app} /app\n"));
        }
        self.bud("arm", "FROM scratch\nCOPY file1 /arm\n");
    }

    fn bud(&self, name: &str, file: &str) {
        let context = self.root.scratch("context");
        let dockerfile = context.join("Dockerfile");
        fs::write(&dockerfile, file).unwrap();
        let arch = if name == "arm" { "arm64" } else { "amd64" };
        self.root
            .buildah()
            .with(["bud", "--quiet", "--layers", "--platform"])
            .with([
                format!("linux/{arch}"),
                "--tag".into(),
                name.into(),
                "--file".into(),
            ])
            .with([dockerfile, context])
            .run();
    }

    fn fill(&self) {
        let stored = |name: &str| self.root.image_reference(&format!("localhost/{name}"));
        let copy = |from: &str, to: &str| {
            self.root
                .skopeo()
                .words("copy --quiet --dest-tls-verify=false --src-tls-verify=false")
                .with([from, to])
                .run()
        };
        copy(&stored("base"), &self.oci("base"));
        copy(&self.oci("base"), &self.docker("base"));
        for app in Self::apps() {
            copy(&stored(&app), &self.docker(&app));
        }
        let push = |words: &str, from: &str, to: String| {
            let command = self.root.buildah().words(words);
            command.with([from.to_owned(), to]).run()
        };
        push(
            "push --quiet --tls-verify=false --compression-format zstd",
            "localhost/base",
            self.docker("zstd"),
        );
        for words in [
            "manifest create multi",
            "manifest add multi localhost/base",
            "manifest add --arch arm64 multi localhost/arm",
        ] {
            self.root.buildah().words(words).run();
        }
        push(
            "manifest push --all --tls-verify=false",
            "multi",
            self.docker("multi"),
        );
        let options = "copy --quiet --all --src-tls-verify=false";
        for name in ["multi", "zstd"] {
            let command = self.root.skopeo().words(options);
            command.with([self.docker(name), self.oci(name)]).run();
        }
    }
}
