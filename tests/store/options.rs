//! Options: setters, defaults, their text and JSON, and what an open store says to other ones.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use graphroot::{
    Compression, ContainerOptions, DiffOptions, Digest, Durability, ErrorKind, Flag, IdMap, IdMappingOptions,
    ImageOptions, LayerOptions, MountOptions, MultiListOptions, Store, StoreOptions,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::{Layout, TestStore};

/// The public structs of a source file with their attributes and public fields.
fn structs(source: &str) -> Vec<(String, String, Vec<String>)> {
    let mut found = Vec::new();
    let mut attributes = String::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("#[") {
            attributes.push_str(line);
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
            let body = lines.by_ref().take_while(|line| *line != "}");
            let fields = body.filter_map(|line| {
                let field = line.trim().strip_prefix("pub ")?;
                Some(field.split(':').next()?.to_owned())
            });
            let fields = fields.collect();
            found.push((name, std::mem::take(&mut attributes), fields));
        } else if !line.starts_with("///") {
            attributes.clear();
        }
    }
    found
}

#[test]
fn every_public_field_has_a_setter_and_every_struct_may_grow() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/options");
    let (mut seen, mut count) = (Vec::new(), 0);
    for entry in std::fs::read_dir(dir).unwrap() {
        let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for (name, attributes, fields) in structs(&source) {
            assert!(attributes.contains("#[non_exhaustive]"), "{name}");
            let methods: String = source
                .split(&format!("\nimpl {name} {{"))
                .skip(1)
                .filter_map(|rest| rest.split("\n}\n").next())
                .collect();
            for field in fields {
                let setters = [
                    format!("pub fn {field}(mut self"),
                    format!("pub fn with_{field}(mut self"),
                ];
                assert!(
                    setters.iter().any(|setter| methods.contains(setter)),
                    "{name}::{field}"
                );
                count += 1;
            }
            seen.push(name);
        }
    }
    for name in [
        "StoreOptions",
        "LayerOptions",
        "ImageOptions",
        "ContainerOptions",
        "ImageBigData",
        "Remap",
    ] {
        assert!(seen.iter().any(|seen| seen == name), "{name} is not found");
    }
    assert!(count > 60, "{count} fields");
}

/// Its JSON, which is read back to the same.
fn read_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) -> Value {
    let json = serde_json::to_value(value).unwrap();
    assert_eq!(&serde_json::from_value::<T>(json.clone()).unwrap(), value);
    json
}

#[test]
fn setters_set_what_their_names_say() {
    let digest = Digest::sha256("x");
    let layer = LayerOptions::default()
        .id("id")
        .name("one")
        .names(["two", "three"])
        .mount_label("label")
        .writeable(true)
        .metadata("text")
        .template("below")
        .original_digest(digest.clone())
        .original_size(7)
        .verify_uncompressed_digest(digest.clone())
        .volatile(true)
        .big_data("key", "data")
        .flag("f", true)
        .flag("g", vec!["a".to_owned()])
        .storage_opt("size", "1G")
        .id_mappings(IdMappingOptions::mapped(
            [IdMap::new(0, 1000, 10)],
            [IdMap::new(0, 2000, 10)],
        ));
    let json = read_back(&layer);
    assert_eq!(json["id"], "id");
    assert_eq!(json["names"], json!(["one", "two", "three"]));
    assert_eq!(json["mount_label"], "label");
    assert_eq!(json["original_size"], 7);
    assert_eq!(json["verify"], true);
    assert_eq!(json["big_data"], json!([{"key": "key", "data": "ZGF0YQ=="}]));
    assert_eq!(json["flags"], json!({"f": true, "g": ["a"]}));
    assert_eq!(json["id_mappings"]["uid_map"][0]["host_id"], 1000);

    let image = ImageOptions::default()
        .id("id")
        .names(["n"])
        .metadata("text")
        .creation_date(std::time::UNIX_EPOCH)
        .digest(digest.clone())
        .big_data("manifest", "{}")
        .big_data_item(graphroot::ImageBigData::new("odd", "x").digest(digest.clone()))
        .names_history(["old"])
        .flags([("f".to_owned(), Flag::from("text"))]);
    let json = read_back(&image);
    assert_eq!(json["names_history"], json!(["old"]));
    assert_eq!(json["big_data"][1]["digest"], digest.as_str());
    assert_eq!(json["flags"], json!({"f": "text"}));

    let container = ContainerOptions::default()
        .id("id")
        .name("n")
        .layer_id("layer")
        .metadata("text")
        .process_label("p")
        .mount_label("m")
        .label_opt("type:t")
        .label_opts(["level:s0"])
        .mount_opt("nodev")
        .mount_opts(["nosuid"])
        .volatile(true)
        .storage_opt("size", "1G")
        .big_data("key", vec![0xff, 0])
        .flag("f", "text");
    let json = read_back(&container);
    assert_eq!(json["layer_id"], "layer");
    assert_eq!(json["mount_opts"], json!(["nodev", "nosuid"]));
    assert_eq!(json["label_opts"], json!(["type:t", "level:s0"]));
    assert_eq!(json["big_data"][0]["data"], "/wA=");

    let store = StoreOptions::new("/graph", "/run")
        .image_store("/images")
        .driver("overlay")
        .driver_priority(["overlay", "vfs"])
        .driver_option("mountopt=nodev")
        .driver_options(["a=b"])
        .pull_option("k", "v")
        .transient(true)
        .disable_volatile(true)
        .root_auto_userns_user("user")
        .auto_userns_min_size(5)
        .auto_userns_max_size(6)
        .durability(Durability::Full)
        .lock_timeout(Duration::from_secs(3));
    let json = read_back(&store);
    assert_eq!(json["driver_options"], json!(["mountopt=nodev", "a=b"]));
    assert_eq!(json["pull_options"], json!({"k": "v"}));
    assert_eq!(json["durability"], "full");
    assert_eq!(store.clone().lock_timeout(None).lock_timeout, None);

    let json = read_back(&DiffOptions::default().compression(Compression::Zstd));
    assert_eq!(json["compression"], "zstd");
    let json = read_back(&MountOptions::default().label("l").options(["ro"]).option("nodev"));
    assert_eq!(json, json!({"label": "l", "options": ["ro", "nodev"]}));
    let all = MultiListOptions::default()
        .layers(true)
        .images(true)
        .containers(true);
    assert_eq!(all, MultiListOptions::ALL);
    assert_eq!(
        read_back(&all),
        json!({"layers": true, "images": true, "containers": true})
    );
}

#[test]
fn what_is_left_out_of_json_is_the_default_and_what_is_unknown_is_refused() {
    let options: LayerOptions = serde_json::from_value(json!({"names": ["n"]})).unwrap();
    assert_eq!(options, LayerOptions::default().name("n"));
    let options: StoreOptions = serde_json::from_value(json!({})).unwrap();
    assert_eq!(options, StoreOptions::default());
    let error = serde_json::from_value::<LayerOptions>(json!({"name": "n"})).unwrap_err();
    assert!(error.to_string().contains("unknown field `name`"), "{error}");
    let item = json!({"big_data": [{"key": "k", "data": "no base64"}]});
    assert!(serde_json::from_value::<LayerOptions>(item).is_err());
}

#[test]
fn durability_is_read_as_it_is_written() {
    for durability in [Durability::None, Durability::Default, Durability::Full] {
        assert_eq!(durability.to_string().parse::<Durability>().unwrap(), durability);
        assert_eq!(read_back(&durability), durability.to_string());
    }
    assert!(Durability::None < Durability::Default && Durability::Default < Durability::Full);
    let error = "half".parse::<Durability>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn an_empty_id_is_no_id() {
    let Some(store) = TestStore::open("vfs", Layout::Plain).await else {
        return;
    };
    let layer = store.create_layer(None, LayerOptions::default().id("")).await;
    assert_eq!(layer.unwrap_err().kind(), ErrorKind::UnsafePath);
    let image = store.create_image(None, ImageOptions::default().id("")).await;
    assert_eq!(image.unwrap_err().kind(), ErrorKind::UnsafePath);
    let container = store
        .create_container(None, ContainerOptions::default().layer_id(""))
        .await;
    assert_eq!(container.unwrap_err().kind(), ErrorKind::UnsafePath);
}

/// Collects the warnings of this thread.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

struct Text<'a>(&'a mut String);

impl tracing::field::Visit for Text<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        use std::fmt::Write as _;
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN && !metadata.is_span()
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(&mut Text(&mut text));
        self.0.lock().unwrap().push(text);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

impl Warnings {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[tokio::test]
async fn an_open_store_warns_of_options_that_differ() {
    let warnings = Warnings::default();
    let _installed = tracing::subscriber::set_default(warnings.clone());
    let dir = tempfile::tempdir().unwrap();
    let options = || {
        StoreOptions::new(dir.path().join("graph"), dir.path().join("run"))
            .driver("vfs")
            .durability(Durability::None)
            .lock_timeout(Duration::from_secs(60))
    };
    let first = Store::open(options()).await.unwrap();
    warnings.take();
    let _same = Store::open(options()).await.unwrap();
    let mut unnamed = options();
    unnamed.driver = None;
    let _same = Store::open(unnamed).await.unwrap();
    assert_eq!(warnings.take(), Vec::<String>::new());

    let other = options()
        .durability(Durability::Full)
        .lock_timeout(None)
        .driver_option("vfs.ignore_chown_errors=true");
    let second = Store::open(other.clone()).await.unwrap();
    assert_eq!(second.graph_options(), first.graph_options());
    let told = warnings.take();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("driver_options, durability, lock_timeout"),
        "{told:?}"
    );
    assert!(told[0].contains(dir.path().to_str().unwrap()), "{told:?}");

    // A store that was let go of is opened anew, with these options.
    first.free();
    let third = Store::open(other).await.unwrap();
    assert_eq!(third.graph_options(), ["vfs.ignore_chown_errors=true"]);
    assert_eq!(warnings.take(), Vec::<String>::new());
}
