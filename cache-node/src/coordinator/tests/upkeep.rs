//! What the node does although nobody asks.

use super::{
    tags::{tag_set, tagged},
    *,
};

#[tokio::test(start_paused = true)]
async fn what_has_expired_leaves_memory_although_nobody_asks_for_it() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    for number in 0..100 {
        let entry = entry_until(&format!("k{number}"), "v", START.after(Duration::from_secs(1)));
        f.coordinator.set(&f.cx(), entry).await.unwrap();
    }
    f.set("lasting", "v").await;
    f.clock.advance(Duration::from_secs(1));
    assert_eq!(f.coordinator.memory().entries(), 101);
    // One sweep is due every ten seconds.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let expired = f.coordinator.memory().stats().extras.into_iter().find(|(name, _)| *name == "expired");
    assert_eq!((f.coordinator.memory().entries(), expired), (1, Some(("expired", 100))));
}

/// How many entries memory holds, and what they weigh.
fn held(f: &Fixture) -> (Option<u64>, Option<u64>) {
    let stats = f.coordinator.memory().stats();
    (stats.entries, stats.bytes)
}

#[tokio::test(start_paused = true)]
async fn what_was_removed_by_tag_leaves_memory_although_nobody_asks_for_it() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let red = tag_set(&["red"]);
    f.coordinator.try_set(&f.cx(), tagged(&f, "blue", "v", &tag_set(&["blue"]))).unwrap();
    let only_blue = held(&f);
    for number in 0..100 {
        f.coordinator.try_set(&f.cx(), tagged(&f, &format!("k{number}"), "v", &red)).unwrap();
    }
    f.coordinator.remove_tagged(&f.cx(), red, Matching::Any).await.unwrap();
    assert_eq!(held(&f).0, Some(101), "a removal is one position, however many entries it concerns");
    // One sweep is due every ten seconds.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(held(&f), only_blue);
}
