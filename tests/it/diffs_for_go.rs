//! What our diffs are compressed into, the Go library unpacks.

use graphroot::{Compression, DiffOptions, LayerOptions};
use tokio::io::AsyncReadExt as _;

use crate::support::each_set;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;

/// Files that compress in different ways, of more bytes than any encoder takes at a time.
fn large() -> Vec<u8> {
    let text: String = (0..700_000u32)
        .map(|number| format!("{}\n", number.wrapping_mul(2_654_435_761) % 9973))
        .collect();
    let noise: Vec<u8> = (0..1_500_000u32)
        .flat_map(|number| {
            number
                .wrapping_mul(2_654_435_761)
                .rotate_left(number % 31)
                .to_le_bytes()
        })
        .collect();
    Tar::new()
        .dir("large/")
        .file("large/text", text)
        .file("large/noise", noise)
        .file("large/zeros", vec![0; 5_000_000])
        .build()
}

async fn large_compressed_diffs_have_the_diff_id_of_the_layer(set: PeerSet) {
    let (ours, theirs) = (TestRoot::new().of(set), TestRoot::new().of(set));
    let store = ours.open().await;
    let layer = put_bytes(&store, None, LayerOptions::default().id("large"), large())
        .await
        .unwrap();
    let expected = layer.uncompressed_digest().unwrap().to_string();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut bytes = Vec::new();
        let options = DiffOptions::compressed(compression);
        let mut diff = store.diff(None, "large", options).await.unwrap();
        diff.read_to_end(&mut bytes).await.unwrap();
        let file = theirs.path().join(compression.extension());
        std::fs::write(&file, &bytes).unwrap();
        let id = compression.to_string();
        theirs
            .go()
            .with(["import-layer", "--id", &id, "--file"])
            .with([&file])
            .run();
        let found = theirs.open().await.layer(&id).await.unwrap();
        assert_eq!(
            found.uncompressed_digest().unwrap().to_string(),
            expected,
            "{compression}"
        );
        assert_eq!(found.compression(), compression);
    }
}
each_set!(async large_compressed_diffs_have_the_diff_id_of_the_layer: "containers-storage");
