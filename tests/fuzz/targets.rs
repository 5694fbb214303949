//! One program for all targets, of which the environment names one, since each would take minutes to compile. See the
//! script `run`.
#![no_main]

mod blob;
mod seeds;

use std::path::PathBuf;
use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("GRAPHROOT_FUZZ_TARGET").expect("the name of a target");
    if let Some(dir) = std::env::var_os("GRAPHROOT_FUZZ_SEEDS") {
        seeds::write(&PathBuf::from(dir), &name).expect("inputs to begin with");
    }
    match &*name {
        "tar" => graphroot::fuzz::tar,
        "tar_split" => graphroot::fuzz::tar_split,
        "table" => graphroot::fuzz::table,
        "cache" => graphroot::fuzz::cache,
        "blob" => blob::run,
        other => panic!("no target {other}"),
    }
});

libfuzzer_sys::fuzz_target!(
    init: {
        LazyLock::force(&TARGET);
    },
    |data: &[u8]| TARGET(data)
);
