//! Several calls at the same time in one process, which share their locks and saves: killed before each of the system
//! calls that change files, or with each of these failing. Each call has happened or has not.

use tokio::runtime::Runtime;

use crate::every_call::{CALLS, calls_of, enlarge, go_writes, id, image, new, put};
use crate::operation::{NameChange, Operation};
use crate::run::{Bench, Setup};
use crate::support::peers::PeerSet;
use crate::support::{each_set, needs, require_driver};
use crate::worker::Remote;

/// A container, with a layer whose ID is that of the next letter.
fn container(letter: char) -> Operation {
    Operation::CreateContainer {
        image: Some(id('b')),
        new: new(letter, &[]),
        layer_id: id(char::from_u32(u32::from(letter) + 1).unwrap()),
    }
}

/// What is there before.
fn before() -> Vec<Operation> {
    vec![
        put('a', None),
        image('b', 'a'),
        container('c'),
        container('e'),
        put('0', None),
        Operation::Mount(id('e')),
    ]
}

/// The calls; none depends on another.
fn calls() -> Vec<Operation> {
    vec![
        Operation::DeleteContainer(id('c')),
        container('1'),
        Operation::Mount(id('a')),
        put('3', Some('a')),
        Operation::DeleteLayer(id('0')),
        Operation::Names {
            key: id('b'),
            change: NameChange::Set,
            names: vec!["another name".into()],
        },
        Operation::Unmount {
            key: id('e'),
            force: false,
        },
    ]
}

/// Returns how often.
fn kill_before_each(
    driver: &'static str,
    before: &[Operation],
    sets: &[&str],
    then_go: Option<PeerSet>,
) -> u32 {
    let runtime = Runtime::new().unwrap();
    let mut spare: Option<Remote> = None;
    let mut kills = 0;
    for set in sets {
        for count in 1.. {
            let mut setup = Setup {
                runtime: &runtime,
                driver,
                peers: then_go.unwrap_or(PeerSet::Installed),
                spare: &mut spare,
            };
            let mut bench = Bench::new(&mut setup, false).unwrap();
            let mut check = || -> Result<bool, String> {
                for operation in before {
                    bench.whole(operation, true)?;
                }
                let mut traced = Remote::start_killed(&bench.root, set, count);
                let opened = traced.try_open(&bench.location).transpose()?;
                if opened.is_none() {
                    traced.wait();
                    return Ok(false);
                }
                traced.begin_together(&calls());
                let outcomes = traced.end_together();
                traced.wait();
                if then_go.is_some() && outcomes.is_none() {
                    go_writes(&bench.root)?;
                }
                bench.after_kill_together(&calls(), outcomes.as_deref(), count % 2 == 0)?;
                bench.end(true)?;
                kills += u32::from(outcomes.is_none());
                Ok(outcomes.is_some())
            };
            let last = check()
                .unwrap_or_else(|error| panic!("killed at call {count} of {set}\n{}", bench.report(&error)));
            spare = Some(bench.into_spare());
            if last {
                break;
            }
        }
    }
    eprintln!("{driver}: killed {kills} times");
    kills
}

#[test]
fn killed_over_overlay() {
    needs!("strace");
    assert!(kill_before_each("overlay", &before(), &CALLS, None) >= 20);
}

#[test]
fn killed_over_vfs() {
    needs!("strace");
    assert!(kill_before_each("vfs", &before(), &CALLS[..1], None) >= 5);
}

#[test]
fn killed_over_btrfs() {
    needs!("strace");
    if require_driver("btrfs") {
        let calls: Vec<&str> = calls_of("btrfs").filter(|calls| *calls != CALLS[1]).collect();
        assert!(kill_before_each("btrfs", &before(), &calls, None) >= 10);
    }
}

#[test]
fn killed_with_large_records() {
    needs!("strace");
    let mut before = before();
    before.push(enlarge('a'));
    assert!(kill_before_each("overlay", &before, &CALLS[..2], None) >= 20);
}

fn killed_before_go_writes(set: PeerSet) {
    assert!(kill_before_each("overlay", &before(), &CALLS[..1], Some(set)) >= 5);
}

each_set!(fn killed_before_go_writes: "strace", "containers-storage");
