//! What the node does although nobody asks.

use super::*;

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
