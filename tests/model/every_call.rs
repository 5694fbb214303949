//! Calls that change several files, killed before each of the system calls that do.
//!
//! What random kills find sooner or later is found here for certain.

use tokio::runtime::Runtime;

use crate::operation::{Blob, Data, NameChange, New, Operation};
use crate::run::{Bench, Setup};
use crate::support::needs;
use crate::worker::Remote;

/// Renames make changes take place, one each. The others come before and after. Of a set, each is counted for itself.
const CALLS: [&str; 3] = [
    "rename,renameat,renameat2",
    "pwrite64",
    "mkdirat,mkdir,unlinkat,unlink,rmdir,symlinkat,symlink,mount,move_mount,umount2",
];

fn id(letter: char) -> String {
    String::from(letter).repeat(64)
}

fn new(letter: char, names: &[&str]) -> New {
    New {
        id: id(letter),
        names: names.iter().map(ToString::to_string).collect(),
        items: vec![("manifest".into(), data(1))],
        ..New::default()
    }
}

fn data(fill: u8) -> Data {
    Data { fill, length: 1000 }
}

fn put(letter: char, parent: Option<char>) -> Operation {
    let files = [(format!("file-{letter}"), Some(data(0)))].into();
    Operation::PutLayer {
        parent: parent.map(id),
        new: new(letter, &[]),
        blob: Blob {
            files,
            ..Blob::default()
        },
    }
}

fn image(letter: char, layer: char) -> Operation {
    Operation::CreateImage {
        layer: Some(id(layer)),
        new: new(letter, &["an image"]),
    }
}

/// With a layer whose ID is that of the next letter.
fn container(letter: char, image: Option<char>, names: &[&str], volatile: bool) -> Operation {
    let mut new = new(letter, names);
    new.volatile = volatile;
    Operation::CreateContainer {
        image: image.map(id),
        new,
        layer_id: id(char::from_u32(u32::from(letter) + 1).unwrap()),
    }
}

/// Makes the call in a process that is killed before one of the system calls, one after the other, each time on a new
/// store that `before` has been done to. Returns how often.
fn kill_before_each(driver: &'static str, before: &[Operation], operation: &Operation) -> u32 {
    let runtime = Runtime::new().unwrap();
    let mut spare: Option<Remote> = None;
    let mut kills = 0;
    for calls in CALLS {
        for count in 1.. {
            let mut setup = Setup {
                runtime: &runtime,
                driver,
                spare: &mut spare,
            };
            let mut bench = Bench::new(&mut setup, false).unwrap();
            let moment = format!("{operation:?}, killed at call {count} of {calls}");
            let mut check = || -> Result<bool, String> {
                for operation in before {
                    bench.whole(operation, true)?;
                }
                let mut traced = Remote::start_traced(&bench.root, calls, count);
                let opened = traced.try_open(&bench.location).transpose()?;
                if opened.is_none() {
                    traced.wait();
                    return Ok(false);
                }
                traced.begin(operation);
                let outcome = traced.end();
                traced.wait();
                bench.after_kill(operation, outcome.as_ref(), count % 2 == 0)?;
                bench.end(true)?;
                kills += u32::from(outcome.is_none());
                Ok(outcome.is_some())
            };
            let last = check().unwrap_or_else(|error| panic!("{moment}\n{}", bench.report(&error)));
            spare = Some(bench.into_spare());
            if last {
                break;
            }
        }
    }
    eprintln!("{driver}: killed {kills} times in {operation:?}");
    kills
}

/// One test each.
macro_rules! killed {
    ($($name:ident: $driver:literal, [$($before:expr),* $(,)?], $operation:expr;)*) => {$(
        #[test]
        fn $name() {
            needs!("strace");
            let kills = kill_before_each($driver, &[$($before),*], &$operation);
            assert!(kills >= 2, "only {kills} moments");
        }
    )*};
}

killed! {
    creating_a_container: "overlay", [put('a', None), image('b', 'a')], container('c', Some('b'), &["c"], false);
    creating_a_container_with_vfs: "vfs", [put('a', None), image('b', 'a')], container('c', Some('b'), &["c"], false);
    deleting_a_mounted_container: "overlay",
        [container('c', None, &[], false), Operation::Mount(id('c')), Operation::Mount(id('c'))],
        Operation::DeleteContainer(id('c'));
    deleting_a_container_with_another_layer: "vfs",
        [container('c', None, &[], false), Operation::Delete("dd".into()), put('d', None)],
        Operation::DeleteContainer(id('c'));
    deleting_an_image_with_its_layers: "overlay",
        [put('a', None), put('b', Some('a')), image('c', 'b'), Operation::MountImage(id('c'))],
        Operation::DeleteImage { key: id('c'), commit: true };
    deleting_a_mounted_layer: "overlay",
        [put('a', None), Operation::Mount(id('a')), Operation::Mount(id('a'))],
        Operation::DeleteLayer(id('a'));
    deleting_whatever_it_is: "vfs",
        [put('a', None), image('b', 'a'), container('c', Some('b'), &[], false)],
        Operation::Delete(id('c'));
    mounting: "overlay", [put('a', None)], Operation::Mount(id('a'));
    unmounting: "overlay", [put('a', None), Operation::Mount(id('a'))], Operation::Unmount {
        key: id('a'),
        force: false,
    };
    replacing_an_image_item: "vfs", [put('a', None), image('b', 'a')], Operation::SetImageData {
        key: id('b'),
        item: "manifest".into(),
        data: data(2),
    };
    replacing_a_container_item: "vfs", [container('a', None, &[], false)], Operation::SetContainerData {
        key: id('a'),
        item: "manifest".into(),
        data: data(2),
    };
    taking_names_from_a_volatile_container: "vfs",
        [container('a', None, &["x", "y"], true), container('c', None, &["old"], false)],
        Operation::Names { key: id('c'), change: NameChange::Set, names: vec!["x".into(), "new".into()] };
    taking_names_for_a_volatile_container: "vfs",
        [container('a', None, &["old"], true), container('c', None, &["x", "y"], false)],
        Operation::Names { key: id('a'), change: NameChange::Set, names: vec!["x".into(), "new".into()] };
}
