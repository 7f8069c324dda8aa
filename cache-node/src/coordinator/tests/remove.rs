//! Removals of keys.

use super::*;

#[tokio::test(start_paused = true)]
async fn removal_that_is_late_takes_effect_whatever_was_written_while_it_looked() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 1000), QUEUE).await);
    f.layer.put(entry("k", "old"));
    let patience = Duration::from_secs(10);
    let (remover, cx) = (Arc::clone(&f), cx_within(&f.clock, patience));
    let mut removing = JoinSet::new();
    removing.spawn(async move { remover.coordinator.remove_many(&cx, &[key("k")]).await });
    eventually("it looks below", || f.layer.reads.load(Ordering::SeqCst) == 1).await;
    f.set("k", "new").await;
    f.flushed().await;
    f.evict("k");
    f.clock.advance(patience);
    assert_eq!(removing.join_next().await.unwrap().unwrap(), Err(WriteError::Unconfirmed));
    f.layer.read_gate.add_permits(1000);
    assert_eq!(f.get("k").await, None, "an error, but no lie: it is under way");
    eventually("the layer has forgotten it", || f.layer.value("k").is_none()).await;
}
