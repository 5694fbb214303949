//! Authorities that may not give certificates, and certificates that make no sense: what Skopeo says of the same signatures.

use serde_json::json;

use crate::keyless::{EMAIL, Made, Signed, base64};
use crate::support::each_set;
use crate::support::peers::PeerSet;

/// A root, and whether it is good for a signer's certificate, and for one of another authority below it.
const ROOTS: [(&str, &str, bool, bool); 6] = [
    ("plain", "basicConstraints=critical,CA:TRUE\n", true, true),
    (
        "no-authority",
        "basicConstraints=critical,CA:FALSE\n",
        false,
        false,
    ),
    (
        "no-certificates",
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,digitalSignature\n",
        false,
        false,
    ),
    (
        "short",
        "basicConstraints=critical,CA:TRUE,pathlen:0\n",
        true,
        false,
    ),
    (
        "long",
        "basicConstraints=critical,CA:TRUE,pathlen:1\n",
        true,
        true,
    ),
    (
        "odd",
        "basicConstraints=critical,CA:TRUE\n1.2.3.4=critical,DER:05:00\n",
        false,
        false,
    ),
];

fn leaf(names: &str) -> String {
    format!("basicConstraints=critical,CA:FALSE\nsubjectAltName={names}\nextendedKeyUsage=codeSigning\n")
}

async fn roots_are_judged_as_by_skopeo(set: PeerSet) {
    let signed = Signed::start(set);
    let authority = &signed.authority;
    let names = leaf(&format!("email:{EMAIL}"));
    let days = ["250101", "450101"];
    let mut number = 0;
    for (root, extensions, is_good, is_good_above) in ROOTS {
        authority.issue_for_days(root, root, extensions, days);
        authority.issue("direct", root, &names);
        let mut images = Vec::new();
        let mut add = |signer, is_good| {
            number += 1;
            images.push((root, signed.add(number, &Made::by(signer)), is_good));
        };
        add("direct", is_good);
        let constraints = "basicConstraints=critical,CA:TRUE\n";
        authority.issue_for_days("below", root, constraints, days);
        authority.issue("indirect", "below", &names);
        add("indirect", is_good_above);
        // Which may not sign certificates.
        let mute = format!("{constraints}keyUsage=critical,digitalSignature\n");
        authority.issue_for_days("mute", root, &mute, days);
        authority.issue("of-mute", "mute", &names);
        add("of-mute", false);
        let between = ["below.pem", "mute.pem"].map(|name| std::fs::read(authority.dir.join(name)).unwrap());
        let requirement = json!({
            "type": "sigstoreSigned",
            "pki": {
                "caRootsPath": authority.dir.join(format!("{root}.pem")),
                "caIntermediatesData": base64(between.concat()),
                "subjectEmail": EMAIL,
            },
            "signedIdentity": {"type": "matchRepository"},
        });
        signed.compare(&requirement, &images).await;
    }
}
each_set!(newer async roots_are_judged_as_by_skopeo: "skopeo", "openssl");

async fn names_that_make_no_sense_are_refused_as_by_skopeo(set: PeerSet) {
    let signed = Signed::start(set);
    let authority = &signed.authority;
    // An address of mail and a host, and what stands behind them.
    let names = |tag: u8, more: &[u8]| {
        let mut names = Vec::new();
        let host = "build.team.example";
        for (tag, name) in [(0x81, EMAIL.as_bytes()), (0x82, host.as_bytes()), (tag, more)] {
            names.extend([tag, u8::try_from(name.len()).unwrap()]);
            names.extend(name);
        }
        let mut all = vec![0x30, u8::try_from(names.len()).unwrap()];
        all.extend(names);
        let all: Vec<String> = all.iter().map(|byte| format!("{byte:02x}")).collect();
        leaf(&format!("DER:{}", all.join(":")))
    };
    let cases: [(&str, u8, &[u8], bool); 6] = [
        ("an address", 0x87, &[192, 0, 2, 1], true),
        ("an address of five bytes", 0x87, &[192, 0, 2, 1, 5], false),
        ("mail", 0x81, b"a@b", true),
        ("mail beyond ASCII", 0x81, b"\xff@b", false),
        ("a host beyond ASCII", 0x82, b"\xff", false),
        ("a URI beyond ASCII", 0x86, b"x:\xff", false),
    ];
    let mut images = Vec::new();
    for (number, (what, tag, more, is_good)) in cases.into_iter().enumerate() {
        authority.issue("named", "ca", &names(tag, more));
        images.push((what, signed.add(number, &Made::by("named")), is_good));
    }
    for subject in [
        json!({"subjectEmail": EMAIL}),
        json!({"subjectHostname": "build.team.example"}),
    ] {
        let mut pki = json!({"caRootsPath": authority.dir.join("ca.pem")});
        pki.as_object_mut()
            .unwrap()
            .extend(subject.as_object().unwrap().clone());
        let requirement =
            json!({"type": "sigstoreSigned", "pki": pki, "signedIdentity": {"type": "matchRepository"}});
        signed.compare(&requirement, &images).await;
    }
}
each_set!(newer async names_that_make_no_sense_are_refused_as_by_skopeo: "skopeo", "openssl");
