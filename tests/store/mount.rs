use graphroot::{ContainerOptions, ErrorKind, ImageOptions, MountOptions};

use crate::support::{PATIENCE, kind};

each_driver! {
    async fn a_container_is_mounted_written_and_counted(store) {
        store.put(None, "base", &[("etc/", ""), ("etc/file", "from the image")]).await;
        store.create_image(Some("base"), ImageOptions::default().name("image")).await.unwrap();
        let container = store.create_container(Some("image"), ContainerOptions::default().name("box")).await.unwrap();
        let path = store.mount("box", Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(path.join("etc/file")).unwrap(), "from the image");
        std::fs::write(path.join("etc/new"), "x").unwrap();
        assert_eq!(store.mount(container.layer_id(), Default::default()).await.unwrap(), path);
        // Without a mount in the kernel (vfs) a count is taken up again all the same.
        assert_eq!(store.mounted("box").await.unwrap(), 2);
        assert_eq!(store.layer(container.layer_id()).await.unwrap().mount_point(), Some(path.as_path()));
        assert_eq!(store.unmount("box").await.unwrap(), 1);
        assert_eq!(store.unmount("box").await.unwrap(), 0);
        assert_eq!(store.mounted("box").await.unwrap(), 0);
        assert_eq!(store.unmount("box").await.unwrap(), 0);
        let path = store.mount("box", Default::default()).await.unwrap();
        assert!(path.join("etc/new").exists());
        store.mount("box", Default::default()).await.unwrap();
        store.unmount_all("box").await.unwrap();
        assert_eq!(kind(store.mount("nobody", Default::default()).await), ErrorKind::LayerUnknown);
        assert_eq!(kind(store.unmount("nobody").await), ErrorKind::LayerUnknown);
        assert_eq!(kind(store.mounted("nobody").await), ErrorKind::LayerUnknown);
    }

    async fn a_count_beyond_all_bounds_takes_one_save(store) {
        store.put(None, "base", &[("file", "1")]).await;
        store.mount("base", Default::default()).await.unwrap();
        let dir = store.path().join("run").join(format!("{}-layers", store.graph_driver_name()));
        let counts = std::fs::read_to_string(dir.join("mountpoints.json")).unwrap();
        let hostile = counts.replace("\"count\":1", &format!("\"count\":{}", i64::MAX));
        assert_ne!(hostile, counts);
        std::fs::write(dir.join("mountpoints.json"), hostile).unwrap();
        std::fs::write(dir.join("mountpoints.lock"), "changed").unwrap();
        store.mount("base", Default::default()).await.unwrap();
        assert_eq!(store.mounted("base").await.unwrap(), i64::MAX.unsigned_abs());
        store.unmount_all("base").await.unwrap();
        assert_eq!(store.mounted("base").await.unwrap(), 0);
        store.delete_layer("base").await.unwrap();
    }

    async fn no_other_layer_is_mounted_for_a_containers_own(store) {
        let container = store.create_container(None, ContainerOptions::default().name("box")).await.unwrap();
        let layer = container.layer_id();
        // The layer alone: by its whole ID it would be the container that is deleted.
        store.delete(&layer[..20]).await.unwrap();
        store.create_layer(None, graphroot::LayerOptions::default().name(layer)).await.unwrap();
        assert_eq!(kind(store.mount("box", Default::default()).await), ErrorKind::LayerUnknown);
        assert_eq!(kind(store.mounted("box").await), ErrorKind::LayerUnknown);
        assert_eq!(kind(store.unmount("box").await), ErrorKind::LayerUnknown);
        assert_eq!(store.container("box").await.unwrap().layer_id(), layer);

        let base = store.put(None, "base", &[("file", "1")]).await;
        store.create_image(Some("base"), ImageOptions::default().name("image")).await.unwrap();
        store.delete("base").await.unwrap();
        store.create_layer(None, graphroot::LayerOptions::default().name(base.id())).await.unwrap();
        assert_eq!(kind(store.mount_image("image", Default::default()).await), ErrorKind::LayerUnknown);
        assert_eq!(kind(store.unmount_image("image").await), ErrorKind::LayerUnknown);
    }

    async fn an_image_is_mounted_to_look_at(store) {
        store.put(None, "base", &[("file", "1")]).await;
        store.create_image(Some("base"), ImageOptions::default().name("image")).await.unwrap();
        let path = store.mount_image("image", Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "1");
        if store.graph_driver_name() == "overlay" {
            assert!(std::fs::write(path.join("file"), "2").is_err());
        }
        assert_eq!(store.unmount_image("image").await.unwrap(), 0);
        assert_eq!(kind(store.mount_image("image", MountOptions::default().option("rw")).await), ErrorKind::NotSupported);
        assert_eq!(kind(store.mount_image("nobody", Default::default()).await), ErrorKind::ImageUnknown);
        assert_eq!(kind(store.unmount_image("nobody").await), ErrorKind::ImageUnknown);
    }

    async fn shutdown_minds_mounts_and_the_store_comes_back(store) {
        store.put(None, "base", &[("file", "1")]).await;
        let container = store.create_container(None, ContainerOptions::default().name("box")).await.unwrap();
        store.mount("box", Default::default()).await.unwrap();
        assert_eq!(kind(store.shutdown().await), ErrorKind::LayerUsedByContainer);
        assert_eq!(store.shutdown_force().await.unwrap(), [container.layer_id()]);
        let path = store.mount("box", Default::default()).await.unwrap();
        assert!(path.is_dir());
        store.unmount("box").await.unwrap();
        store.shutdown().await.unwrap();
    }
}

/// A store on overlay with a container `box`, and the ID of its layer.
async fn with_box() -> Option<(crate::support::TestStore, String)> {
    let test = crate::support::TestStore::open("overlay", crate::support::Layout::Plain).await?;
    test.put(None, "base", &[("file", "1")]).await;
    let image = ImageOptions::default().name("image");
    test.create_image(Some("base"), image).await.unwrap();
    let options = ContainerOptions::default().name("box");
    let container = test.create_container(Some("image"), options).await.unwrap();
    let layer = container.layer_id().to_owned();
    Some((test, layer))
}

/// Unmounts as a reboot does: the counts stay.
fn unmount_in_kernel(path: &std::path::Path) {
    rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// As [`unmount_in_kernel`]; a process that another test has started meanwhile has copied the mount, which ends with it.
async fn unmount_everywhere(path: &std::path::Path) {
    unmount_in_kernel(path);
    let is_copied = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let mut tables =
            processes.filter_map(|process| std::fs::read_to_string(process.path().join("mountinfo")).ok());
        tables.any(|table| table.lines().any(|line| line.split(' ').nth(4) == path.to_str()))
    };
    let ended = async {
        while is_copied() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
}

fn is_mounted(path: &std::path::Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

#[tokio::test]
async fn a_count_for_a_mount_that_is_not_there_is_zero() {
    let Some((test, _layer)) = with_box().await else {
        return;
    };
    for _ in 0..3 {
        test.mount("box", Default::default()).await.unwrap();
    }
    let path = test.mount("box", Default::default()).await.unwrap();
    assert_eq!(test.unmount("box").await.unwrap(), 3);
    unmount_everywhere(&path).await;
    let store = test.reopen().await;
    assert_eq!(store.mounted("box").await.unwrap(), 0);
    assert_eq!(store.mount("box", Default::default()).await.unwrap(), path);
    assert_eq!(store.mounted("box").await.unwrap(), 1);
    assert_eq!(store.mount("box", Default::default()).await.unwrap(), path);
    assert_eq!(store.unmount("box").await.unwrap(), 1);
    assert_eq!(store.unmount("box").await.unwrap(), 0);
    assert!(!is_mounted(&path));
    // Nor does it keep the driver from being stopped, or take several unmounts.
    for end in ["shutdown", "unmount"] {
        store.mount("box", Default::default()).await.unwrap();
        store.mount("box", Default::default()).await.unwrap();
        unmount_everywhere(&path).await;
        match end {
            "shutdown" => store.shutdown().await.unwrap(),
            _ => assert_eq!(store.unmount("box").await.unwrap(), 0),
        }
    }
}

#[tokio::test]
async fn a_mount_of_another_mount_namespace_counts() {
    use std::io::{BufRead as _, BufReader};
    let Some((test, _layer)) = with_box().await else {
        return;
    };
    let path = test.mount("box", Default::default()).await.unwrap();
    let mut other = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", "echo ready; read line"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(other.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    unmount_in_kernel(&path);
    assert_eq!(test.mounted("box").await.unwrap(), 1);
    assert_eq!(test.mount("box", Default::default()).await.unwrap(), path);
    assert_eq!(test.mounted("box").await.unwrap(), 2);
    assert_eq!(test.unmount("box").await.unwrap(), 1);
    unmount_in_kernel(&path);
    drop(other.stdin.take());
    other.wait().unwrap();
    assert_eq!(test.mounted("box").await.unwrap(), 0);
}

#[tokio::test]
async fn a_mount_that_a_killed_process_did_not_count_ends_with_the_last_unmount() {
    let Some((test, _layer)) = with_box().await else {
        return;
    };
    let path = test.mount("box", Default::default()).await.unwrap();
    std::fs::remove_file(test.run_root().join("overlay-layers/mountpoints.json")).unwrap();
    std::fs::write(test.run_root().join("overlay-layers/mountpoints.lock"), [7; 64]).unwrap();
    let store = test.reopen().await;
    assert_eq!(store.mounted("box").await.unwrap(), 0);
    assert!(is_mounted(&path));
    assert_eq!(store.mount("box", Default::default()).await.unwrap(), path);
    assert_eq!(store.mounted("box").await.unwrap(), 1);
    assert_eq!(store.unmount("box").await.unwrap(), 0);
    assert!(!is_mounted(&path));
    store.delete_container("box").await.unwrap();
}

#[tokio::test]
async fn files_in_a_mount_point_keep_no_container_from_being_deleted() {
    let Some((test, layer)) = with_box().await else {
        return;
    };
    let dir = test.graph_root().join("overlay").join(layer);
    std::fs::write(dir.join("merged/file"), "by a confused process").unwrap();
    let path = test.mount("box", Default::default()).await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "1");
    assert_eq!(test.unmount("box").await.unwrap(), 0);
    assert!(!dir.join("merged.1").exists());
    test.mount("box", Default::default()).await.unwrap();
    test.delete_container("box").await.unwrap();
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_layer_on_a_full_disk_can_be_unmounted() {
    let root = tempfile::tempdir().unwrap();
    let (graph, run) = (root.path().join("graph"), root.path().join("run"));
    std::fs::create_dir(&graph).unwrap();
    let small = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m,nr_inodes=300", "tmpfs"])
        .arg(&graph)
        .status();
    if !small.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    let store = graphroot::Store::open(graphroot::StoreOptions::new(&graph, &run).driver("overlay"))
        .await
        .unwrap();
    store
        .create_container(None, ContainerOptions::default().name("box"))
        .await
        .unwrap();
    let path = store.mount("box", Default::default()).await.unwrap();
    let mut number = 0;
    while std::fs::write(graph.join(format!("filler{number}")), "").is_ok() {
        number += 1;
    }
    assert_eq!(store.unmount("box").await.unwrap(), 0);
    assert!(!is_mounted(&path));
    assert_eq!(store.mounted("box").await.unwrap(), 0);
    for number in 0..20 {
        std::fs::remove_file(graph.join(format!("filler{number}"))).unwrap();
    }
    store.mount("box", Default::default()).await.unwrap();
    assert_eq!(store.unmount("box").await.unwrap(), 0);
    store.shutdown().await.unwrap();
    drop(store);
    unmount_in_kernel(&graph);
}

/// The layers of some machines are in a directory of the same file system that is mounted where they have to be.
#[tokio::test]
async fn a_shutdown_leaves_what_somebody_has_mounted_for_the_layers() {
    let Some((test, layer)) = with_box().await else {
        return;
    };
    let (home, data) = (test.graph_root().join("overlay"), test.path().join("data"));
    std::fs::rename(&home, &data).unwrap();
    std::fs::create_dir(&home).unwrap();
    rustix::mount::mount_bind(&data, &home).unwrap();
    let store = test.reopen().await;
    for is_forced in [false, true] {
        store.mount("box", Default::default()).await.unwrap();
        store.unmount("box").await.unwrap();
        match is_forced {
            true => drop(store.shutdown_force().await.unwrap()),
            false => store.shutdown().await.unwrap(),
        }
        assert!(is_mounted(&home) && home.join(&layer).exists());
    }
    store.free();
    unmount_in_kernel(&home);
    std::fs::remove_dir(&home).unwrap();
    std::fs::rename(&data, &home).unwrap();
}

#[tokio::test]
async fn messages_about_mounts_say_each_thing_once() {
    let Some((test, layer)) = with_box().await else {
        return;
    };
    let dir = test.graph_root().join("overlay").join(&layer);
    std::fs::remove_dir_all(dir.join("work")).unwrap();
    let text = test.mount("box", Default::default()).await.unwrap_err().chain();
    assert_eq!(text.matches("mounting layer").count(), 1, "{text}");
    assert!(text.contains("No such file or directory"), "{text}");
    std::fs::remove_dir_all(&dir).unwrap();
    let mount = test.mount("box", Default::default()).await.unwrap_err();
    let diff = test.diff(None, &layer, Default::default()).await.unwrap_err();
    for error in [mount, diff] {
        let text = error.chain();
        assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{text}");
        assert!(text.contains(&layer) && text.contains("files are lost"), "{text}");
        assert!(!text.contains("not known"), "{text}");
    }
}

/// What one mounted directory of this process's namespace is mounted with.
fn mounted_with(path: &std::path::Path) -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == path.to_str());
    line.unwrap_or_else(|| panic!("{} is not mounted", path.display()))
        .to_owned()
}

#[tokio::test]
async fn volatile_mounts_can_be_forbidden() {
    let Some(test) = crate::support::TestStore::open("overlay", crate::support::Layout::Plain).await else {
        return;
    };
    let store = test.store.clone();
    let mut volatile = ContainerOptions::default().name("box");
    volatile.volatile = true;
    store.create_container(None, volatile).await.unwrap();
    let path = store.mount("box", Default::default()).await.unwrap();
    assert!(mounted_with(&path).contains("volatile"));
    store.shutdown_force().await.unwrap();
    store.free();

    let mut options = graphroot::StoreOptions::new(store.graph_root(), store.run_root()).driver("overlay");
    options.disable_volatile = true;
    let store = graphroot::Store::open(options).await.unwrap();
    let path = store.mount("box", Default::default()).await.unwrap();
    assert!(!mounted_with(&path).contains("volatile"));
    store.unmount_all("box").await.unwrap();
}
