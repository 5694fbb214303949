//! OpenPGP keys of which several files, or several copies, say different things: what Skopeo makes of the same ones.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::signed::{Signed, with_default};
use crate::support::needs;
use crate::support::peers::Run as _;

/// A file of keys that holds these ones.
fn joined(signed: &Signed, name: &str, files: &[&Path]) -> PathBuf {
    let all: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let file = signed.root.path().join(name);
    std::fs::write(&file, all.concat()).unwrap();
    file
}

/// What we and Skopeo say of an image under the keys in files.
async fn compare(signed: &Signed, image: &str, cases: &[(&[&Path], bool)]) {
    let store = signed.root.open().await;
    for (files, is_good) in cases {
        let requirement = json!([{"type": "signedBy", "keyType": "GPGKeys", "keyPaths": files}]);
        let policy = with_default(&requirement);
        let (copies, said) = signed.skopeo_copies(&policy, &signed.docker(image));
        assert_eq!(copies, *is_good, "{files:?}: {said}");
        let pulled = signed.pull(&store, &policy, &signed.docker(image)).await;
        assert_eq!(pulled.is_ok(), *is_good, "{files:?}: {pulled:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_counts_wherever_it_stands() {
    needs!("gpg", "docker-registry");
    let Some(signed) = Signed::start_beside_newest() else {
        return;
    };
    let keys = &signed.keys;
    keys.add("dave", "--quick-gen-key dave@example rsa2048 sign never");
    let signature = keys.sign("-u dave@example", &signed.manifest, &signed.name("app"));
    signed.put("app", 1, &signature);
    let export = |name: &str, options: &str| {
        let file = signed.root.path().join(name);
        let line = format!("{options} --output {} --export dave@example", file.display());
        keys.gpg(&line).run();
        file
    };
    let (plain, armored) = (export("plain", ""), export("armored", "--armor"));
    // GnuPG does not read it before it is made ready.
    let unready = keys
        .home
        .join(format!("openpgp-revocs.d/{}.rev", keys.fingerprint("dave")));
    let unready = joined(&signed, "unready", &[&armored, &unready]);
    let revocation = keys.revocation("dave");
    keys.gpg(&format!("--import {}", revocation.display())).run();
    let revoked = export("revoked", "");
    let appended = joined(&signed, "appended", &[&armored, &revocation]);
    let twice = joined(&signed, "twice", &[&plain, &revoked]);
    let cases: [(&[&Path], bool); 10] = [
        (&[&plain], true),
        (&[&armored], true),
        (&[&unready], true),
        (&[&plain, &armored], true),
        (&[&revoked], false),
        (&[&appended], false),
        (&[&plain, &revocation], false),
        (&[&plain, &revoked], false),
        (&[&revoked, &plain], false),
        (&[&twice], false),
    ];
    compare(&signed, "app", &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_copy_says_when_a_key_expires() {
    needs!("gpg", "docker-registry");
    let Some(signed) = Signed::start_beside_newest() else {
        return;
    };
    let keys = &signed.keys;
    let year = |year: u32| format!("--faked-system-time {year}0101T000000");
    let early = format!("{} --quick-gen-key erin@example rsa2048 sign never", year(2020));
    let long = keys.add("erin", &early);
    let signature = keys.sign("-u erin@example", &signed.manifest, &signed.name("app"));
    signed.put("app", 1, &signature);
    let copy = signed.root.path().join("long");
    std::fs::rename(long, &copy).unwrap();
    let fingerprint = keys.fingerprint("erin");
    let shorten = format!("{} --quick-set-expire {fingerprint} 1y", year(2021));
    let short = keys.add("erin", &shorten);
    let cases: [(&[&Path], bool); 4] = [
        (&[&copy], true),
        (&[&short], false),
        (&[&copy, &short], false),
        (&[&short, &copy], false),
    ];
    compare(&signed, "app", &cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_is_older_than_its_key_is_none() {
    needs!("gpg", "docker-registry");
    let Some(signed) = Signed::start_beside_newest() else {
        return;
    };
    let early =
        "-u alice@example --faked-system-time 20200101T000000 --ignore-time-conflict --ignore-valid-from";
    for (image, options, is_good) in [("app", early, false), ("bob", "-u alice@example", true)] {
        let signature = signed.keys.sign(options, &signed.manifest, &signed.name(image));
        signed.put(image, 1, &signature);
        let public = signed.keys.home.join("alice.pub");
        compare(&signed, image, &[(&[&public], is_good)]).await;
    }
}
