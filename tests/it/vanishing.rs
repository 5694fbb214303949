//! Items that something new refers to vanish at the worst moment: what is created is whole, or an error.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use graphroot::{ContainerOptions, ErrorKind, ImageOptions, LayerOptions};

use crate::support::locks::{kernel_locks, wait_for_waiter, wait_until};
use crate::support::needs;
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;

/// A process that holds one record lock, and removes all rows of a file of records if it gets that one's lock too.
struct Rival {
    child: Child,
}

impl Rival {
    fn hold(lock: &Path) -> Self {
        const PROGRAM: &str = "import fcntl, os, sys\n\
            held = open(sys.argv[1], 'r+b')\n\
            fcntl.lockf(held, fcntl.LOCK_EX)\n\
            print('held', flush=True)\n\
            while True:\n\
            \x20   line = sys.stdin.readline().split()\n\
            \x20   if not line: break\n\
            \x20   lock = held if line[0] == sys.argv[1] else open(line[0], 'r+b')\n\
            \x20   try:\n\
            \x20       if lock is not held: fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n\
            \x20       lock.seek(0); lock.write(os.urandom(64)); lock.flush()\n\
            \x20       open(line[1], 'w').write('[]')\n\
            \x20       print('removed', flush=True)\n\
            \x20   except OSError: print('busy', flush=True)\n";
        let child = Command::new("python3")
            .args(["-c", PROGRAM])
            .arg(lock)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut rival = Self { child };
        assert_eq!(rival.line(), "held");
        rival
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::with_capacity(1, self.child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        line.trim().to_owned()
    }

    /// Whether it could remove them.
    fn remove_rows(&mut self, lock: &Path, file: &Path) -> bool {
        let line = format!("{} {}\n", lock.display(), file.display());
        self.child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(line.as_bytes())
            .unwrap();
        self.line() == "removed"
    }

    fn let_go(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

async fn store_with_a_layer() -> (TestRoot, graphroot::Store) {
    let root = TestRoot::new();
    let store = root.open().await;
    let tar = Tar::new().file("file", "content").build();
    put_bytes(&store, None, LayerOptions::default().id("layer"), tar)
        .await
        .unwrap();
    store
        .create_image(Some("layer"), ImageOptions::default().id("image"))
        .await
        .unwrap();
    (root, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layer_of_a_new_image() {
    needs!("python3");
    let (root, store) = store_with_a_layer().await;
    store.delete("image").await.unwrap();
    let images = root.metadata_dir("images").join("images.lock");
    let mut rival = Rival::hold(&images);
    let creator = store.clone();
    let creating = tokio::spawn(async move {
        let options = ImageOptions::default().id("new");
        creator.create_image(Some("layer"), options).await
    });
    wait_for_waiter(&images);
    rival.remove_rows(
        &root.layers_lock(),
        &root.metadata_dir("layers").join("layers.json"),
    );
    rival.let_go();
    let created = creating.await.unwrap();
    let there = store.exists("layer").await.unwrap();
    assert_eq!(created.is_ok(), there, "{created:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_and_the_layer_of_a_new_container() {
    needs!("python3");
    let (root, store) = store_with_a_layer().await;
    store
        .create_container(None, ContainerOptions::default().id("first"))
        .await
        .unwrap();
    let containers = root.metadata_dir("containers").join("containers.lock");
    let mut rival = Rival::hold(&containers);
    let creator = store.clone();
    let creating = tokio::spawn(async move {
        let options = ContainerOptions::default().id("new");
        creator.create_container(Some("image"), options).await
    });
    wait_for_waiter(&containers);
    let images = root.metadata_dir("images");
    rival.remove_rows(&images.join("images.lock"), &images.join("images.json"));
    rival.remove_rows(
        &root.layers_lock(),
        &root.metadata_dir("layers").join("layers.json"),
    );
    rival.let_go();
    let created = creating.await.unwrap().unwrap();
    assert!(store.exists("image").await.unwrap() && store.exists("layer").await.unwrap());
    assert!(store.exists(created.layer_id()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_container_of_a_new_directory() {
    needs!("python3");
    let (root, store) = store_with_a_layer().await;
    store
        .create_container(None, ContainerOptions::default().id("box"))
        .await
        .unwrap();
    let dir = root.metadata_dir("containers");
    let lock = dir.join("containers.lock");
    let mut rival = Rival::hold(&lock);
    let asker = store.clone();
    let asking = tokio::spawn(async move { asker.set_container_directory_file("box", "file", "data").await });
    wait_until("a directory, or a waiter for the lock", || {
        dir.join("box/userdata/file").exists() || kernel_locks(&lock).iter().any(|lock| lock.waiting)
    });
    assert!(rival.remove_rows(&lock, &dir.join("containers.json")));
    rival.let_go();
    let asked = asking.await.unwrap();
    assert_eq!(asked.unwrap_err().kind(), ErrorKind::ContainerUnknown);
    assert!(!dir.join("box").exists());
}

/// A stream that deletes the layer when it has been read.
fn deleting(
    store: graphroot::Store,
    layer: &'static str,
    content: Vec<u8>,
) -> impl tokio::io::AsyncRead + Send {
    use futures::StreamExt as _;
    let last = futures::stream::once(async move {
        store.delete_layer(layer).await.unwrap();
        Ok::<_, std::io::Error>(bytes::Bytes::new())
    });
    let first = futures::stream::once(async move { Ok(bytes::Bytes::from(content)) });
    tokio_util::io::StreamReader::new(Box::pin(first.chain(last)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layer_below_a_new_one_and_that_of_an_item() {
    let (root, store) = store_with_a_layer().await;
    store.delete("image").await.unwrap();
    let tar = Tar::new().file("upper", "content").build();
    let options = LayerOptions::default().id("upper");
    let put = store
        .put_layer(Some("layer"), options, deleting(store.clone(), "layer", tar))
        .await;
    assert_eq!(put.unwrap_err().kind(), ErrorKind::LayerUnknown);
    let tar = Tar::new().file("file", "content").build();
    put_bytes(&store, None, LayerOptions::default().id("layer"), tar)
        .await
        .unwrap();
    let set = store
        .set_layer_big_data("layer", "item", deleting(store.clone(), "layer", vec![1; 10]))
        .await;
    assert_eq!(set.unwrap_err().kind(), ErrorKind::LayerUnknown);
    assert!(store.layers().await.unwrap().is_empty());
    assert!(root.layer_directories().is_empty());
    assert!(!root.metadata_dir("layers").join("layer").exists());
    wait_until("temporary files are removed", || {
        root.temporary_files().is_empty()
    });
}
