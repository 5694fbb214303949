//! Which images may be pulled: what Skopeo says of the same policies.

use graphroot::ErrorKind;
use graphroot::oci::{ImageRef, Policy, PullOptions, Puller};

use crate::fake_registry::layer;
use crate::odd_registry::{OCI_MANIFEST, OddRegistry, Parts, good_config};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;

const ACCEPT: &str = r#"[{"type": "insecureAcceptAnything"}]"#;
const REJECT: &str = r#"[{"type": "reject"}]"#;

fn policies(host: &str, dir: &str) -> Vec<String> {
    let with = |default: &str, transports: &str| {
        format!(r#"{{"default": {default}, "transports": {{{transports}}}}}"#)
    };
    let docker = |scope: &str, what: &str| format!(r#""docker": {{"{scope}": {what}}}"#);
    let mut all = vec![with(ACCEPT, ""), with(REJECT, ""), with("[]", "")];
    let (address, _port) = host.split_once(':').unwrap();
    for scope in [
        "",
        host,
        address,
        &format!("{host}/team"),
        &format!("{host}/tea"),
        &format!("{host}/team/app"),
        &format!("{host}/team/app:v1"),
        &format!("{host}/team/app:v2"),
        "*.0.0.1",
        "*.0.1",
        "*",
        "team/app",
    ] {
        all.push(with(REJECT, &docker(scope, ACCEPT)));
        all.push(with(ACCEPT, &docker(scope, REJECT)));
    }
    let both = format!(r#""docker": {{"{host}": {REJECT}, "{host}/team": {ACCEPT}}}"#);
    all.push(with(REJECT, &both));
    all.push(with(
        ACCEPT,
        &format!(r#""docker": {{"": {REJECT}}}, "oci": {{"": {ACCEPT}}}"#),
    ));
    all.push(with(REJECT, &format!(r#""oci": {{"{dir}": {ACCEPT}}}"#)));
    all.push(with(REJECT, &format!(r#""oci": {{"{dir}/layout": {ACCEPT}}}"#)));
    all.push(with(ACCEPT, &format!(r#""oci-archive": {{"": {REJECT}}}"#)));
    let signed = r#"[{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/no/such/key"}]"#;
    all.push(with(signed, ""));
    all.push(with(ACCEPT, &docker(host, signed)));
    for bad in [
        "",
        "{}",
        // The values without their names.
        r#"[[{"type": "insecureAcceptAnything"}], {}]"#,
        r#"{"default": [{"type": "x"}]}"#,
        r#"{"default": [{"type": "reject", "a": 1}]}"#,
    ] {
        all.push(bad.into());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_beside_skopeo() {
    let set = PeerSet::Forky;
    if !set.is_ready(&["skopeo"]) {
        return;
    }
    let registry = OddRegistry::start(|_| None);
    registry.add(
        "team/app",
        &Parts::new(OCI_MANIFEST, good_config(), &[layer("a", 0)]),
    );
    let root = TestRoot::in_memory().of(set);
    let image = registry.image("team/app");
    let layout = format!("oci:{}/layout:v1", root.path().display());
    let skopeo = |policy: &str| {
        let file = root.path().join("policy.json");
        std::fs::write(&file, policy).unwrap();
        root.skopeo().with(["--policy"]).with([&file])
    };
    let everything = format!(r#"{{"default": {ACCEPT}}}"#);
    let copy = ["copy", "--quiet", "--src-tls-verify=false", &image, &layout];
    skopeo(&everything).with(copy).run();
    let store = root.open().await;
    for policy in policies(registry.address(), &root.path().display().to_string()) {
        for from in [&image, &layout] {
            let copied = skopeo(&policy)
                .words("copy --quiet --src-tls-verify=false")
                .with([from]);
            let to = format!("dir:{}", root.scratch("to").display());
            let theirs = copied.with([to]).output().unwrap();
            let ours = match Policy::parse(&policy) {
                Err(error) => Err(error),
                Ok(policy) => {
                    let puller = Puller::new(&store, PullOptions::default().policy(policy));
                    puller
                        .pull_as(&from.parse::<ImageRef>().unwrap(), &[])
                        .await
                        .map(drop)
                }
            };
            let said = String::from_utf8_lossy(&theirs.stderr);
            assert_eq!(ours.is_ok(), theirs.status.success(), "{from}: {policy}: {said}");
            if let Err(error) = ours {
                let kind = error.kind();
                assert!(
                    matches!(kind, ErrorKind::Rejected | ErrorKind::InvalidInput),
                    "{error}"
                );
                let rejected = "Source image rejected: ";
                assert_eq!(
                    error.chain().contains(rejected),
                    said.contains(rejected),
                    "{error:?}: {said}"
                );
            }
        }
    }
}
