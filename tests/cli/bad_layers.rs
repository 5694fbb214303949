//! Layer archives that cannot be unpacked, plain and in every compression.

use std::fs;
use std::path::Path;

use crate::support::peers::Run as _;
use crate::support::tar::{BLOCK, Header, Tar};

/// How archives are compressed: the end of the file's name and the program.
pub(crate) const COMPRESSIONS: [&str; 4] = ["gzip", "bzip2", "xz", "zstd"];

/// Bytes that do not compress, always the same.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// An archive with a directory, two small files and a large one.
fn good() -> Vec<u8> {
    Tar::new()
        .dir("d/")
        .file("d/f", "content")
        .file("e", "more")
        .file("noise", noise(40_000))
        .build()
}

/// Writes the archives into `dir`.
pub(crate) fn write(dir: &Path) {
    let good = good();
    let file = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).unwrap();
    let archive = |name: &str, archive: Tar| file(name, &archive.build());
    file("good.tar", &good);
    file("junk", &[b'x'; 4096]);
    file("short-junk", &[b'x'; 100]);
    file("zeros", &[0; 100]);
    file("cut-header.tar", &good[..300]);
    file("cut-content.tar", &good[..20_000]);
    file("cut-end.tar", &good[..good.len() - BLOCK + 10]);
    file("junk-behind.tar", &[&good[..BLOCK], &[b'x'; 1024]].concat());
    let mut damaged = good.clone();
    damaged[150] ^= 1;
    file("checksum.tar", &damaged);
    archive(
        "size.tar",
        Tar::new().entry(Header::file("f", "").size_field(*b"zzzzzzzzzzz\0")),
    );
    archive("on-a-file.tar", Tar::new().file("f", "x").file("f/g", "y"));
    archive("hard-link.tar", Tar::new().hard_link("h", "nosuch"));
    archive("odd-type.tar", Tar::new().entry(Header::new(b'Z', "o")));
    archive("whiteout.tar", Tar::new().file(".wh.", ""));
    archive("long-name.tar", Tar::new().file("n".repeat(300), ""));
    archive(
        "long-device.tar",
        Tar::new().entry(Header::char_device("n".repeat(300), 1, 3)),
    );
    let attribute: (&str, &[u8]) = ("SCHILY.xattr.user.large", &[b'v'; 70_000]);
    archive("attribute.tar", Tar::new().pax(&[attribute]).file("f", "x"));
    for program in COMPRESSIONS {
        let packed = |name: &str, bytes: &[u8]| {
            file("plain", bytes);
            let input = fs::File::open(dir.join("plain")).unwrap();
            let mut command = std::process::Command::new(program).words("-c");
            let output = command.stdin(input).output().unwrap();
            assert!(output.status.success(), "{program}");
            file(&format!("{name}.{program}"), &output.stdout);
            output.stdout
        };
        let whole = packed("good", &good);
        packed("junk", &[b'x'; 4096]);
        packed("text", b"some text");
        packed("cut-inside", &good[..20_000]);
        let at = |name: &str| format!("{name}.{program}");
        file(&at("cut"), &whole[..whole.len() / 2]);
        file(&at("cut-at-8"), &whole[..8]);
        file(&at("cut-trailer"), &whole[..whole.len() - 3]);
        let mut damaged = whole.clone();
        for byte in &mut damaged[whole.len() / 2..][..20] {
            *byte ^= 0xff;
        }
        file(&at("damaged"), &damaged);
        file(&at("short-trailer"), &[&whole[..], b"junkjunk"].concat());
        file(&at("trailer"), &[&whole[..], &[b'x'; 64]].concat());
    }
}
