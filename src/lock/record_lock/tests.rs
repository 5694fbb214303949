//! Locks between tasks, threads and processes.

use std::future::poll_fn;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::error::ErrorKind;
use crate::lock::last_write::Token;
use crate::lock::peer::Peer;
use crate::lock::record_lock::lock_file::{LockFile, LockMode, REGISTRY, locked};

const SOON: Option<Duration> = Some(Duration::from_millis(50));
/// Fails a test that would hang.
const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

fn open(path: &Path) -> Arc<LockFile> {
    LockFile::open(path, LockMode::ReadWrite).unwrap()
}

/// How many threads wait for the kernel's lock on this file.
fn waiting(file: &LockFile) -> usize {
    file.waiting.load(std::sync::atomic::Ordering::SeqCst)
}

async fn until_waiting(file: &LockFile) {
    while waiting(file) == 0 {
        tokio::task::yield_now().await;
    }
}

/// Polls once.
async fn start<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    let mut future = std::pin::Pin::new(future);
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}

fn assert_send<T: Send + Sync + 'static>(value: T) -> T {
    value
}

fn assert_send_future<T: Send>(value: T) -> T {
    value
}

#[tokio::test]
async fn what_another_process_holds_is_waited_for() {
    let Some(mut peer) = Peer::start() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("layers.lock");
    let file = open(&path);
    for exclusive in [true, false] {
        assert!(if exclusive {
            peer.try_exclusive(&path)
        } else {
            peer.try_shared(&path)
        });
        assert!(file.try_exclusive().unwrap().is_none());
        assert_eq!(file.try_shared().unwrap().is_some(), !exclusive);

        let mut waiter = Box::pin(assert_send_future(file.exclusive(LIMIT)));
        assert!(start(&mut waiter).await.is_pending());
        until_waiting(&file).await;
        peer.unlock(&path);
        let guard = assert_send(waiter.await.unwrap());
        assert!(!peer.try_shared(&path));
        drop(guard);

        assert!(peer.try_exclusive(&path));
        let mut waiter = Box::pin(assert_send_future(file.shared(LIMIT)));
        assert!(start(&mut waiter).await.is_pending());
        until_waiting(&file).await;
        peer.unlock(&path);
        drop(assert_send(waiter.await.unwrap()));
    }
}

#[tokio::test]
async fn what_we_hold_another_process_does_not_get() {
    let Some(mut peer) = Peer::start() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("layers.lock");
    let file = open(&path);

    let guard = file.exclusive(None).await.unwrap();
    assert!(!peer.try_shared(&path));
    assert!(!peer.try_exclusive(&path));
    drop(guard);

    let (one, two) = (file.shared(None).await.unwrap(), file.shared(None).await.unwrap());
    assert!(!peer.try_exclusive(&path));
    assert!(peer.try_shared(&path), "two shared locks");
    peer.unlock(&path);
    drop(one);
    assert!(!peer.try_exclusive(&path), "the other guard still has it");
    // Opening and closing the file elsewhere loses nothing, other than with classic locks.
    drop(std::fs::File::open(&path).unwrap());
    assert!(!peer.try_exclusive(&path));
    drop(two);
    assert!(peer.try_exclusive(&path));
}

#[tokio::test]
async fn a_time_out_names_file_and_holder_and_leaves_nothing_held() {
    let Some(mut peer) = Peer::start() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("layers.lock");
    let file = open(&path);
    assert!(peer.try_exclusive(&path));
    let by = format!("held by process {} (python3", peer.pid());
    for round in 0..3 {
        let error = match round {
            0 => file.shared(SOON).await.unwrap_err(),
            1 => file.exclusive(SOON).await.unwrap_err(),
            _ => file.exclusive(Some(Duration::ZERO)).await.unwrap_err(),
        };
        assert_eq!(error.kind(), ErrorKind::LockTimeout);
        assert_eq!(error.path(), Some(&*path));
        let text = error.to_string();
        assert!(text.starts_with("waited ") && text.contains(&by), "{text}");
        assert!(
            text.ends_with(&format!("on {}: lock time-out", path.display())),
            "{text}"
        );
    }
    peer.unlock(&path);
    // The waiting threads, one after the other, get it and give it back.
    drop(file.exclusive(LIMIT).await.unwrap());
    assert!(peer.try_exclusive(&path));
    peer.unlock(&path);

    let guard = file.shared(None).await.unwrap();
    let text = file.exclusive(SOON).await.unwrap_err().to_string();
    assert!(text.contains("held by another task of this process"), "{text}");
    drop(guard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_waiters_leave_no_lock_and_no_second_thread_waits() {
    let Some(mut peer) = Peer::start() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("layers.lock");
    let file = open(&path);
    for round in 0..8u8 {
        assert!(peer.try_exclusive(&path));
        let random = Token::new().unwrap();
        let random = &random.as_bytes()[20..];
        let tasks: Vec<_> = (0..32)
            .map(|n| {
                let file = Arc::clone(&file);
                let exclusive = (random[n] ^ round) & 1 == 0;
                tokio::spawn(async move {
                    if exclusive {
                        file.exclusive(None).await.map(drop)
                    } else {
                        file.shared(None).await.map(drop)
                    }
                })
            })
            .collect();
        until_waiting(&file).await;
        for (n, task) in tasks.iter().enumerate() {
            assert!(waiting(&file) <= 1);
            if random[n] & 2 == 0 {
                task.abort();
            }
            tokio::task::yield_now().await;
        }
        peer.unlock(&path);
        for task in tasks {
            match task.await {
                Ok(result) => result.unwrap(),
                Err(error) => assert!(error.is_cancelled()),
            }
        }
        // An orphan may be about to give it back; behind it, it is free.
        drop(file.exclusive(LIMIT).await.unwrap());
        assert!(peer.try_exclusive(&path), "round {round}");
        peer.unlock(&path);
        assert_eq!(*locked(&file.sharing), 0);
    }
}

/// A paused clock goes on at once when nothing else is to be done; another process does not go on with it.
#[tokio::test(start_paused = true)]
async fn time_outs_are_real_time_under_a_paused_clock() {
    const HELD: Duration = Duration::from_millis(200);
    let Some(mut peer) = Peer::start() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("layers.lock");
    let file = open(&path);
    assert!(peer.try_exclusive(&path));

    let started = Instant::now();
    let error = file.shared(Some(HELD)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LockTimeout);
    assert!(started.elapsed() >= HELD);

    let started = Instant::now();
    peer.send(&format!(
        "(time.sleep({}), unlock({path:?}))[1]",
        HELD.as_secs_f64()
    ));
    drop(file.exclusive(LIMIT).await.unwrap());
    assert!(started.elapsed() >= HELD / 2, "the holder released it first");
    assert_eq!(peer.answer(), "unlocked");

    // The same between tasks of this process.
    let guard = file.exclusive(None).await.unwrap();
    let started = Instant::now();
    assert_eq!(
        file.exclusive(Some(HELD)).await.unwrap_err().kind(),
        ErrorKind::LockTimeout
    );
    assert!(started.elapsed() >= HELD);
    let releaser = std::thread::spawn(move || {
        std::thread::sleep(HELD);
        drop(guard);
    });
    drop(file.shared(LIMIT).await.unwrap());
    releaser.join().unwrap();
}

/// A runtime without a time driver.
#[test]
fn time_outs_need_no_timers_of_the_runtime() {
    let tmp = tempfile::tempdir().unwrap();
    let file = open(&tmp.path().join("layers.lock"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let guard = file.exclusive(None).await.unwrap();
        assert_eq!(
            file.shared(SOON).await.unwrap_err().kind(),
            ErrorKind::LockTimeout
        );
        drop(guard);
        drop(file.exclusive(Some(Duration::MAX)).await.unwrap());
    });
}

/// Two numbers in a file that are equal whenever no writer holds the lock, incremented by tasks here and by other processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_two_processes_exclude_each_other_and_readers() {
    const TIMES: usize = 150;
    let (Some(mut one), Some(mut two)) = (Peer::start(), Peer::start()) else {
        return;
    };
    let tmp = tempfile::tempdir().unwrap();
    let (path, data) = (tmp.path().join("layers.lock"), tmp.path().join("data"));
    std::fs::write(&data, format!("{:20} {:20}", 0, 0)).unwrap();
    let file = open(&path);
    let read = |data: &Path| -> (u64, u64) {
        let text = std::fs::read_to_string(data).unwrap();
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    };
    for peer in [&mut one, &mut two] {
        peer.send(&format!("add({path:?}, {data:?}, {TIMES})"));
    }
    let tasks: Vec<_> = (0..6)
        .map(|n| {
            let (file, data) = (Arc::clone(&file), data.clone());
            tokio::spawn(async move {
                for _ in 0..TIMES {
                    if n % 3 == 0 {
                        let guard = file.exclusive(LIMIT).await.unwrap();
                        let (first, second) = read(&data);
                        assert_eq!(first, second);
                        let out = std::fs::File::options().write(true).open(&data).unwrap();
                        out.write_all_at(format!("{:20}", first + 1).as_bytes(), 0)
                            .unwrap();
                        out.write_all_at(format!(" {:20}", second + 1).as_bytes(), 20)
                            .unwrap();
                        drop(guard);
                    } else {
                        let guard = file.shared(LIMIT).await.unwrap();
                        let (first, second) = read(&data);
                        assert_eq!(first, second);
                        drop(guard);
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(
        (one.answer(), two.answer()),
        ("added".to_owned(), "added".to_owned())
    );
    let expected = u64::try_from(4 * TIMES).unwrap();
    assert_eq!(read(&data), (expected, expected));
}

#[test]
fn blocking_threads_wait_too_without_a_runtime() {
    let Some(mut peer) = Peer::start() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("layers.lock");
    let file = open(&path);
    assert!(peer.try_exclusive(&path));
    for error in [
        file.shared_blocking(SOON).unwrap_err(),
        file.exclusive_blocking(SOON).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::LockTimeout);
    }
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| file.exclusive_blocking(None).unwrap());
        while waiting(&file) == 0 {
            std::thread::yield_now();
        }
        peer.unlock(&path);
        let guard = waiter.join().unwrap();
        assert!(!peer.try_shared(&path));
        drop(guard);
    });
    let guard = file.shared_blocking(LIMIT).unwrap();
    assert!(peer.try_shared(&path));
    drop(guard);
    assert!(peer.try_exclusive(&path));
}

#[tokio::test]
async fn a_lock_file_that_was_removed_or_replaced_gives_no_exclusive_lock() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("layers.lock");
    let file = open(&path);
    drop(file.exclusive(LIMIT).await.unwrap());
    std::fs::remove_file(&path).unwrap();
    for _ in 0..2 {
        for error in [
            file.exclusive(LIMIT).await.unwrap_err(),
            file.try_exclusive().unwrap_err(),
            file.exclusive_blocking(LIMIT).unwrap_err(),
        ] {
            assert_eq!((error.kind(), error.path()), (ErrorKind::Io, Some(&*path)));
            assert!(
                !error.is_not_found() && error.to_string().contains("removed or replaced"),
                "{error}"
            );
        }
        drop(std::fs::File::create(&path).unwrap());
    }
    drop(open(&path).exclusive(LIMIT).await.unwrap());
}

#[tokio::test]
async fn tokens_tell_of_every_write() {
    let Some(mut peer) = Peer::start() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("layers.lock");
    let file = open(&path);
    let never = file.shared(None).await.unwrap().token().unwrap();
    assert_eq!(never.as_bytes(), b"");

    let guard = file.exclusive(None).await.unwrap();
    let first = guard.write_token().unwrap();
    assert_eq!(guard.token().unwrap(), first);
    let second = guard.write_token().unwrap();
    assert_ne!(first, second);
    drop(guard);
    assert_eq!(std::fs::read(&path).unwrap(), second.as_bytes());

    assert!(peer.try_exclusive(&path));
    assert_eq!(
        peer.eval(&format!("os.pwrite(fd({path:?}), bytes(range(64)), 0)")),
        "64"
    );
    peer.unlock(&path);
    let theirs = file.shared(None).await.unwrap().token().unwrap();
    assert_ne!(theirs, second);
    assert_eq!(theirs.as_bytes(), (0..64).collect::<Vec<u8>>());
}

#[test]
fn one_object_per_file_however_it_is_spelt() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("store/layers.lock");
    let file = open(&path);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(&path) & 0o600, 0o600);
    assert_eq!(file.path(), path);
    for other in [
        "store/./layers.lock",
        "store//layers.lock",
        "x/../store/layers.lock",
    ] {
        assert!(Arc::ptr_eq(&file, &open(&tmp.path().join(other))), "{other}");
    }
    let read_only = LockFile::open(&path, LockMode::ReadOnly).unwrap();
    assert!(!Arc::ptr_eq(&file, &read_only));
    let guard = file.try_exclusive().unwrap().unwrap();
    assert!(
        read_only.try_shared().unwrap().is_none(),
        "the two exclude each other all the same"
    );
    drop(guard);
    assert!(read_only.try_shared().unwrap().is_some());
    for error in [
        read_only.try_exclusive().unwrap_err(),
        read_only.exclusive_blocking(None).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::StoreIsReadOnly);
        assert_eq!(error.path(), Some(&*path));
    }

    let key = (path.clone(), LockMode::ReadWrite);
    drop(file);
    assert!(
        !locked(&REGISTRY).contains_key(&key),
        "nothing is kept of what is not in use"
    );
}

#[test]
fn a_store_made_anew_gets_a_new_lock() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("store/layers.lock");
    let old = open(&path);
    let held = old.try_exclusive().unwrap().unwrap();
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    let new = open(&path);
    assert!(!Arc::ptr_eq(&old, &new));
    let guard = new.try_exclusive().unwrap().unwrap();
    drop((held, old));
    assert!(
        Arc::ptr_eq(&new, &open(&path)),
        "the old one must not unregister the new one"
    );
    drop(guard);
}

#[test]
fn a_read_only_file_system_is_no_obstacle_to_sharing() {
    if !rustix::process::geteuid().is_root() {
        crate::skip::skip("mounting needs root");
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("store");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("layers.lock"), "token").unwrap();
    let run = |command: &str, arguments: &[&str]| {
        let status = std::process::Command::new(command)
            .args(arguments)
            .arg(&dir)
            .status()
            .unwrap();
        assert!(status.success(), "{command} {arguments:?}");
    };
    run("mount", &["--bind", dir.to_str().unwrap()]);
    run("mount", &["-o", "remount,bind,ro"]);
    let result = std::panic::catch_unwind(|| {
        let file = LockFile::open(&dir.join("layers.lock"), LockMode::ReadOnly).unwrap();
        let guard = file.shared_blocking(None).unwrap();
        assert_eq!(guard.token().unwrap().as_bytes(), b"token");
        assert_eq!(guard.file().path(), dir.join("layers.lock"));
        drop(guard);
        for (name, mode) in [
            ("layers.lock", LockMode::ReadWrite),
            ("images.lock", LockMode::ReadOnly),
        ] {
            let error = LockFile::open(&dir.join(name), mode).unwrap_err();
            assert_eq!(
                error.io_kind(),
                Some(std::io::ErrorKind::ReadOnlyFilesystem),
                "{error:?}"
            );
            assert_eq!(error.path(), Some(&*dir.join(name)));
        }
    });
    run("umount", &[]);
    result.unwrap();
}
