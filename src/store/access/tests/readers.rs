//! Readers beside a step that holds locks.

use std::sync::mpsc;

use futures::FutureExt as _;

use crate::record::image::ImageRow;
use crate::store::access::tests::{numbered, open};
use crate::store::access::{Held, Needs};
use crate::store::views::Image;

/// From the second step on: the first has the only tables.
#[tokio::test]
async fn readers_do_not_wait_for_a_step_that_holds_locks() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path()).await;
    for (number, id) in numbered(2).into_iter().enumerate() {
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (release, released) = mpsc::channel::<()>();
        let (writer, new) = (store.clone(), id.clone());
        let step = tokio::spawn(async move {
            let step = move |held: &mut Held| {
                begin.send(()).unwrap();
                released.recv().unwrap();
                let row = ImageRow {
                    id: new.as_str().into(),
                    ..ImageRow::default()
                };
                held.images()?.table_mut().insert(row, 0).map(drop)
            };
            writer.step(Needs::ALL, step).await
        });
        begun.await.unwrap();
        let mut images = Box::pin(store.images());
        let mut layers = Box::pin(store.unlocked_layers());
        let mut containers = Box::pin(store.containers());
        if number == 0 {
            assert!(futures::poll!(&mut images).is_pending());
            assert!(futures::poll!(&mut layers).is_pending());
            assert!(futures::poll!(&mut containers).is_pending());
            release.send(()).unwrap();
            drop((
                images.await.unwrap(),
                layers.await.unwrap(),
                containers.await.unwrap(),
            ));
        } else {
            let images = images.now_or_never().unwrap().unwrap();
            let seen: Vec<&str> = images.iter().map(Image::id).collect();
            assert_eq!(seen, ["image-0"], "as saved");
            assert!(layers.now_or_never().unwrap().unwrap().is_empty());
            assert!(containers.now_or_never().unwrap().unwrap().is_empty());
            release.send(()).unwrap();
        }
        step.await.unwrap().unwrap();
        assert!(store.exists(&id).await.unwrap());
    }
}
