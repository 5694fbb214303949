use super::*;
use crate::lock::peer::Peer;
use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn layout_and_life() {
    fn assert_shareable<T: Send + Sync + 'static>(_: &T) {}
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("tempdirs");
    let mut temp = TempDir::create(&root).unwrap();
    assert_shareable(&temp);
    let suffix = temp
        .path()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .strip_prefix("temp-dir-")
        .unwrap()
        .to_owned();
    assert!(
        suffix.starts_with('0') && suffix.parse::<u32>().is_ok(),
        "{suffix}"
    );
    assert_eq!(
        names(&root),
        [format!("lock-{suffix}"), format!("temp-dir-{suffix}")].into()
    );
    assert_eq!((mode(&root), mode(temp.path())), (0o700, 0o700));
    assert_eq!(mode(&root.join(format!("lock-{suffix}"))), 0o600);

    let layer = tmp.path().join("layer");
    fs::create_dir(&layer).unwrap();
    fs::write(layer.join("file"), "").unwrap();
    assert!(temp.stage_deletion(&layer).unwrap());
    assert!(!temp.stage_deletion(&layer).unwrap(), "it is gone");
    assert!(!temp.stage_deletion(&tmp.path().join("no/parent")).unwrap());
    assert_eq!(
        temp.stage_deletion(Path::new("..")).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    let addition = temp.addition();
    assert_eq!(addition, temp.path().join("3-addition"));
    fs::write(&addition, "").unwrap();
    assert_eq!(
        names(temp.path()),
        ["0-layer".to_owned(), "3-addition".to_owned()].into()
    );
    fs::rename(&addition, tmp.path().join("committed")).unwrap();

    temp.remove().unwrap();
    assert!(names(&root).is_empty());
    drop(TempDir::create(&root).unwrap());
    assert!(names(&root).is_empty());
}

#[test]
fn what_goes_with_a_directory_goes_first() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("tempdirs");
    let other = tmp.path().join("other");
    let fill = |temp: &mut TempDir| {
        fs::write(&other, "").unwrap();
        let (dir, other) = (temp.path().to_owned(), other.clone());
        temp.set_companion(move || {
            assert!(dir.exists());
            std::fs::remove_file(&other).at("removing", &other)
        });
    };
    let mut temp = TempDir::create(&root).unwrap();
    fill(&mut temp);
    drop(temp);
    assert!(!other.exists() && names(&root).is_empty());

    let mut temp = TempDir::create(&root).unwrap();
    fill(&mut temp);
    temp.forget_companion();
    drop(temp);
    assert!(other.exists() && names(&root).is_empty());

    // What cannot be removed now is removed by the next recovery.
    let mut temp = TempDir::create(&root).unwrap();
    let number = temp.number().to_owned();
    fill(&mut temp);
    fs::remove_file(&other).unwrap();
    temp.remove().unwrap_err();
    assert_eq!(names(&root).len(), 2);
    let mut seen = Vec::new();
    let error = recover_with(&root, &mut |number| {
        seen.push(number.to_owned());
        Err(ErrorKind::Io.err("no"))
    });
    assert_eq!(error.unwrap_err().chain(), "no");
    assert_eq!((seen, names(&root).len()), (vec![number], 2));
    recover(&root).unwrap();
    assert!(names(&root).is_empty());
}

#[test]
fn what_is_stale_is_told_of_and_stays() {
    let tmp = tempfile::tempdir().unwrap();
    assert!(stale(&tmp.path().join("missing")).unwrap().is_empty());
    let root = tmp.path().join("tempdirs");
    let temp = TempDir::create(&root).unwrap();
    for name in ["temp-dir-1", "temp-dir-2", "other"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    for name in ["lock-2", "lock-3"] {
        fs::write(root.join(name), "").unwrap();
    }
    let before = names(&root);
    let found = stale(&root).unwrap();
    assert_eq!(found, [root.join("temp-dir-1"), root.join("temp-dir-2")]);
    assert_eq!(names(&root), before);
    drop(temp);
    recover(&root).unwrap();
    assert!(stale(&root).unwrap().is_empty());
}

#[test]
fn recovery_removes_what_is_not_locked_and_nothing_else() {
    let Some(mut peer) = Peer::start() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("tmp");
    recover(&root).unwrap();
    assert!(!root.exists());

    let ours = TempDir::create(&root).unwrap();
    fs::write(ours.path().join("0-addition"), "").unwrap();
    let make = |n: u32| {
        fs::create_dir(root.join(format!("temp-dir-{n}"))).unwrap();
        fs::write(root.join(format!("temp-dir-{n}/0-layer")), "").unwrap();
    };
    // Another process is at work in 1; 2 was left by a killed one; 3 and 4 are halves; the rest is not ours.
    make(1);
    assert!(peer.try_exclusive(&root.join("lock-1")));
    make(2);
    fs::write(root.join("lock-2"), "").unwrap();
    make(3);
    fs::write(root.join("lock-4"), "").unwrap();
    fs::write(root.join("other"), "").unwrap();
    recover(&root).unwrap();

    let our_name = ours.path().file_name().unwrap().to_str().unwrap().to_owned();
    let our_lock = our_name.replace("temp-dir-", "lock-");
    let left = [
        our_name,
        our_lock,
        "lock-1".into(),
        "temp-dir-1".into(),
        "other".into(),
    ];
    assert_eq!(names(&root), left.into());
    assert!(ours.path().join("0-addition").exists());
    assert!(root.join("temp-dir-1/0-layer").exists());

    drop(peer);
    ours.remove().unwrap();
    recover(&root).unwrap();
    assert_eq!(names(&root), ["other".to_owned()].into());
}

/// The Go library locks the file a moment after it has created it, and does not see whether it still has its name.
#[test]
fn a_lock_file_that_go_may_be_about_to_lock_stays() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let make = |number: &str| fs::File::create(root.join(format!("lock-{number}"))).unwrap();
    let fresh = make("1452287245");
    // With its directory it has been locked; others are not of the Go library, or not of this moment.
    make("1452287246");
    fs::create_dir(root.join("temp-dir-1452287246")).unwrap();
    make("01452287247");
    make("name");
    let old = SystemTime::now() - MOMENT;
    make("1452287248").set_modified(old).unwrap();
    recover(root).unwrap();
    assert_eq!(names(root), ["lock-1452287245".to_owned()].into());
    fresh.set_modified(old).unwrap();
    recover(root).unwrap();
    assert!(names(root).is_empty());
}

/// A server may have another clock, and a clock may be set back.
#[test]
fn a_lock_file_from_the_future_stays_for_no_longer_than_others() {
    let tmp = tempfile::tempdir().unwrap();
    let made = |number: u32, ahead: Duration| {
        let file = fs::File::create(tmp.path().join(format!("lock-{number}"))).unwrap();
        file.set_modified(SystemTime::now() + ahead).unwrap();
    };
    // What is ahead by less than a moment when it is looked at.
    made(1_452_287_245, MOMENT - Duration::from_millis(1));
    made(1_452_287_246, Duration::from_secs(3600));
    made(1_452_287_247, Duration::from_secs(1 << 32));
    recover(tmp.path()).unwrap();
    assert_eq!(names(tmp.path()), ["lock-1452287245".to_owned()].into());
}

#[test]
fn a_recovery_keeps_few_files_open() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().canonicalize().unwrap();
    let count: u32 = 1000;
    for number in 0..count {
        let number = LEAST_OF_GO + number;
        fs::write(root.join(format!("lock-{number}")), "").unwrap();
        fs::create_dir(root.join(format!("temp-dir-{number}"))).unwrap();
    }
    let most = Cell::new(0);
    let recovered = recover_with(&root, &mut |_number| {
        let open = fs::read_dir("/proc/self/fd").unwrap().filter(|entry| {
            let leads = fs::read_link(entry.as_ref().unwrap().path());
            leads.is_ok_and(|leads| leads.starts_with(&root))
        });
        most.set(most.get().max(open.count()));
        Ok(())
    });
    recovered.unwrap();
    assert!((1..=MAX_UNLINKED + 2).contains(&most.get()), "{most:?}");
    assert!(names(&root).is_empty());
}

#[test]
fn what_is_no_lock_file_is_locked_by_nobody() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let others: [fn(&Path); 4] = [
        |path| fs::create_dir(path).unwrap(),
        |path| std::os::unix::fs::symlink("elsewhere", path).unwrap(),
        |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        |path| rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU).unwrap(),
    ];
    for (number, other) in others.into_iter().enumerate() {
        other(&root.join(format!("lock-{number}")));
        fs::create_dir(root.join(format!("temp-dir-{number}"))).unwrap();
    }
    let dirs = [0, 1, 2, 3].map(|number| root.join(format!("temp-dir-{number}")));
    assert_eq!(stale(root).unwrap(), dirs);
    // A pipe can be locked, and is not waited for.
    recover(root).unwrap_err();
    assert!(!dirs[3].exists() && dirs[0].exists());
}

#[test]
fn one_that_cannot_be_recovered_does_not_stop_the_others() {
    let tmp = tempfile::tempdir().unwrap();
    // No lock file can be opened in place of a directory.
    fs::create_dir(tmp.path().join("lock-1")).unwrap();
    fs::create_dir(tmp.path().join("temp-dir-1")).unwrap();
    fs::create_dir(tmp.path().join("temp-dir-2")).unwrap();
    let error = recover(tmp.path()).unwrap_err();
    assert_eq!(error.path(), Some(&*tmp.path().join("lock-1")));
    assert_eq!(
        names(tmp.path()),
        ["lock-1".to_owned(), "temp-dir-1".to_owned()].into()
    );
}

/// Creators and recoverers side by side: no directory may vanish under its owner, and nothing may be left.
#[test]
fn recovery_never_takes_a_directory_from_its_owner() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let at_work = AtomicUsize::new(3);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let mut temp = TempDir::create(root).unwrap();
                    let file = temp.addition();
                    fs::write(&file, "x").unwrap();
                    assert!(temp.stage_deletion(&file).unwrap());
                    temp.remove().unwrap();
                }
                at_work.fetch_sub(1, Ordering::SeqCst);
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                while at_work.load(Ordering::SeqCst) > 0 {
                    recover(root).unwrap();
                }
            });
        }
    });
    recover(root).unwrap();
    assert!(names(root).is_empty());
}
