//! Automatic user namespaces of many processes on one store: no ID belongs to two containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use graphroot::{AutoUserNs, ContainerOptions, IdMap, ImageOptions, LayerOptions, Store};

use crate::support::oci::OciImage;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;
use crate::support::worker::{Worker, tell, wait_for_parent};
use crate::support::{each_set, needs};

const NAME: &str = "localhost/auto:1";

/// Whose IDs they are, where nothing else is configured.
const OWNER: &str = "containers";

/// Containers of each of four processes of ours, and of each of four loops of Podman.
const OURS: usize = 210;
const THEIRS: usize = 40;

/// First IDs and lengths. The first range holds less than half of what the containers have in the end.
const RANGES: [(u32, u32); 2] = [(500_000, 30_001), (900_000, 200_000)];

/// IDs of each container of Podman's.
const THEIR_SIZE: usize = 64;

/// Lays changed copies over the system's files in a mount namespace of its own. Arguments: directory with the copies,
/// command.
const SCRIPT: &str = r#"set -e
copies=$1
shift
for name in passwd subuid subgid; do mount --bind "$copies/$name" /etc/$name; done
exec "$@"
"#;

/// Files of a system in which the IDs are granted.
struct Grants(PathBuf);

impl Grants {
    fn new(dir: &Path) -> Self {
        let copies = dir.join("grants");
        fs::create_dir(&copies).unwrap();
        // Newer programs want the user to exist.
        let known = fs::read_to_string("/etc/passwd").unwrap();
        let user = format!("{OWNER}:x:61234:61234::/nonexistent:/usr/sbin/nologin\n");
        fs::write(copies.join("passwd"), known + &user).unwrap();
        let ranges = RANGES.map(|(first, count)| format!("{OWNER}:{first}:{count}\n"));
        for name in ["subuid", "subgid"] {
            fs::write(copies.join(name), ranges.concat()).unwrap();
        }
        Self(copies)
    }

    /// A command that runs `command` where the IDs are granted.
    fn with(&self, command: &Command) -> Command {
        let mut wrapped = Command::new("unshare");
        wrapped
            .args([
                "--mount",
                "--propagation",
                "private",
                "--",
                "sh",
                "-c",
                SCRIPT,
                "sh",
            ])
            .arg(&self.0)
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        wrapped
    }
}

async fn image(store: &Store) -> OciImage {
    let tar = Tar::new()
        .dir("etc/")
        .file("etc/passwd", "root:x:0:0::/:/bin/sh\n");
    let layer = put_bytes(store, None, LayerOptions::default(), tar.build())
        .await
        .unwrap();
    let image = OciImage::new(std::slice::from_ref(&layer));
    let options: ImageOptions = image.options(NAME);
    store.create_image(Some(layer.id()), options).await.unwrap();
    image
}

/// A process that creates containers with Podman, one after the other, and deletes every fifth.
fn podman(root: &TestRoot, grants: &Grants) -> Child {
    let create = format!(
        "for n in $(seq {THEIRS}); do
            id=$(\"$@\" create --userns=auto:size={THEIR_SIZE} --network=none {NAME} true)
            if [ $((n % 5)) = 0 ]; then \"$@\" rm \"$id\"; fi
        done"
    );
    let podman = root.podman();
    let mut shell = root.program("sh").with(["-e", "-c", &create, "sh"]);
    shell.arg(podman.get_program()).args(podman.get_args());
    let mut command = grants.with(&shell);
    command.stdout(Stdio::null()).spawn().unwrap()
}

/// What a process of ours does: as one of Podman's, with sizes that differ.
pub(crate) async fn work(image: &str, seed: usize) {
    let store = crate::worker::open().await;
    tell("ready");
    wait_for_parent();
    for n in 0..OURS {
        let size = u32::try_from(20 + (n * 7 + seed * 13) % 90).unwrap();
        let auto = AutoUserNs::default().size(size);
        let options = ContainerOptions::default().auto_userns(auto);
        let container = store.create_container(Some(image), options).await.unwrap();
        assert_eq!(container.uid_map().iter().map(|map| map.size).sum::<u32>(), size);
        if n % 5 == 4 {
            store.delete_container(container.id()).await.unwrap();
        }
    }
}

/// Panics unless the host IDs of all maps are granted ones and differ.
fn assert_disjoint(mut maps: Vec<IdMap>) {
    maps.sort_by_key(|map| map.host_id);
    for map in &maps {
        let within =
            |(first, count): (u32, u32)| map.host_id >= first && map.host_id + map.size <= first + count;
        assert!(RANGES.into_iter().any(within), "{map:?}");
    }
    for pair in maps.windows(2) {
        assert!(pair[0].host_id + pair[0].size <= pair[1].host_id, "{pair:?}");
    }
}

async fn eight_processes_of_both_kinds_take_a_thousand_times(set: PeerSet) {
    needs!("unshare", "mount");
    const { assert!(4 * (OURS + THEIRS) == 1000) }
    let root = TestRoot::in_memory().of(set);
    let store = root.open().await;
    let image = image(&store).await;
    let grants = Grants::new(root.path());
    let mut ours: Vec<Worker> = (0..4)
        .map(|seed| {
            let worker = Worker::command("auto-userns", &root, &[&image.id(), &seed.to_string()]);
            let mut command = grants.with(&worker);
            command.stdin(Stdio::piped());
            Worker::spawn(command)
        })
        .collect();
    for worker in &mut ours {
        worker.expect_line("ready");
    }
    let theirs: Vec<Child> = (0..4).map(|_| podman(&root, &grants)).collect();
    ours.iter_mut().for_each(Worker::go_on);
    for mut child in theirs {
        assert!(child.wait().unwrap().success());
    }
    for worker in ours {
        worker.finish();
    }
    let containers = store.containers().await.unwrap();
    assert_eq!(containers.len(), 4 * (OURS + THEIRS) / 5 * 4);
    let maps = |of: fn(&graphroot::Container) -> &[IdMap]| -> Vec<IdMap> {
        containers
            .iter()
            .flat_map(|container| of(container).to_vec())
            .collect()
    };
    let uids = maps(graphroot::Container::uid_map);
    // Some containers have IDs of both ranges.
    assert!(uids.len() > containers.len());
    assert_disjoint(uids);
    assert_disjoint(maps(graphroot::Container::gid_map));
}
each_set!(async eight_processes_of_both_kinds_take_a_thousand_times: "podman");
