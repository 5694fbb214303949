//! The examples, as far as they are more than a main function: run on a store, with the programs that they serve.

use std::io::Cursor;

use graphroot::{CommitOptions, ContainerOptions, Image, ImageBuilder, MountOptions, Store};

use crate::support::debian::{self, Form};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::exported;
use crate::support::tar::Tar;
use crate::support::{each_set, needs, oci};

#[expect(dead_code, reason = "its main function is not called")]
#[path = "../../examples/image_runner.rs"]
mod image_runner;
#[expect(dead_code, reason = "its main function is not called")]
#[path = "../../examples/registry.rs"]
mod registry;

/// An image with a layer from a gzip blob and one committed from a container.
async fn image(store: &Store) -> Image {
    let tar = Tar::new().dir("etc/").file("etc/name", "app\n").build_gzip();
    let layer = store.put_image_layer(None, Cursor::new(tar)).await.unwrap();
    let base = ImageBuilder::new().top_layer(layer.id()).name("localhost/app:1");
    let base = base.build(store).await.unwrap();
    let options = ContainerOptions::default().name("c");
    store.create_container(Some(base.id()), options).await.unwrap();
    let root = store.mount("c", MountOptions::default()).await.unwrap();
    std::fs::write(root.join("etc/more"), vec![7; 100_000]).unwrap();
    store.unmount("c").await.unwrap();
    let options = CommitOptions::new().name("localhost/app:1");
    let image = store.commit("c", options).await.unwrap();
    store.delete_container("c").await.unwrap();
    image
}

async fn skopeo_copies_what_the_registry_serves(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    let image = image(&store).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(registry::serve(store.clone(), listener));
    let manifest = store.image_manifest(image.id()).await.unwrap();
    for reference in ["app:1".to_owned(), format!("app@{}", manifest.digest)] {
        let layout = root.path().join("layout");
        let (from, to) = (
            format!("docker://{address}/{reference}"),
            format!("oci:{}:latest", layout.display()),
        );
        let mut copy = root
            .skopeo()
            .words("copy --quiet --src-tls-verify=false --preserve-digests");
        copy.args([from, to]).run();
        assert_eq!(
            oci::layout_blob(&layout, manifest.digest.as_str()),
            manifest.bytes
        );
        for (layer, blob) in store
            .image_layers(image.id())
            .await
            .unwrap()
            .iter()
            .zip(&manifest.layers)
        {
            let bytes = oci::layout_blob(&layout, blob.digest.as_str());
            assert_eq!(
                (bytes.len() as u64, blob.digest.clone()),
                (blob.size, exported(&store, layer.id()).await.0)
            );
        }
        std::fs::remove_dir_all(&layout).unwrap();
    }
    // The rest of a layer, as a client asks for it that was interrupted.
    let blob = &manifest.layers[1];
    let url = format!("http://{address}/v2/app/blobs/{}", blob.digest);
    let (whole, rest) = (root.path().join("whole"), root.path().join("rest"));
    for (file, range) in [(&whole, "0-"), (&rest, "1000-")] {
        let mut fetch = root
            .program("curl")
            .words("--silent --fail --range")
            .with([range, "--output"]);
        fetch.arg(file).arg(&url);
        fetch.run();
    }
    let (whole, rest) = (std::fs::read(whole).unwrap(), std::fs::read(rest).unwrap());
    assert_eq!((whole.len() as u64, &whole[1000..]), (blob.size, &rest[..]));
    server.abort();
}
each_set!(async skopeo_copies_what_the_registry_serves: "skopeo", "curl");

#[tokio::test(flavor = "multi_thread")]
async fn the_runner_runs_what_the_image_says() {
    needs!("unshare");
    let Some(layer) = debian::layer(Form::Gzip) else {
        return;
    };
    let root = TestRoot::new();
    let store = root.open().await;
    let blob = tokio::fs::File::open(layer).await.unwrap();
    let layer = store.put_image_layer(None, blob).await.unwrap();
    ImageBuilder::new()
        .top_layer(layer.id())
        .name("localhost/app:1")
        .env("GREETING", "hello")
        .working_dir("/opt")
        .entrypoint(["sh", "-c"])
        .cmd(["exit 0"])
        .build(&store)
        .await
        .unwrap();
    let run = async |command: &[&str], commit: Option<&str>| {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let status = image_runner::run(&store, "localhost/app:1", command, commit.map(str::to_owned));
        status.await.unwrap().code()
    };
    assert_eq!(run(&[], None).await, Some(0));
    let script = "echo $GREETING $PWD > said; exit 3";
    assert_eq!(run(&[script], Some("localhost/run:1")).await, Some(3));
    let config = store.image_config("localhost/run:1").await.unwrap();
    assert_eq!(
        config.history.last().unwrap().created_by,
        format!("sh -c {script}")
    );
    let mounted = store
        .mount_image("localhost/run:1", MountOptions::default())
        .await
        .unwrap();
    assert_eq!(
        std::fs::read_to_string(mounted.join("opt/said")).unwrap(),
        "hello /opt\n"
    );
    assert!(store.containers().await.unwrap().is_empty());
}
