//! A layer that knows that there is no value, whatever the layers below it hold.

use super::*;

#[tokio::test]
async fn layer_that_stops_the_search_is_believed_and_the_next_one_is_not_asked() {
    let clock = Clock::manual(START);
    let [disk, redis] = [LayerId::Disk, LayerId::Redis].map(|id| Scripted::gated_as(id, 1000, 1000));
    let cold = vec![Arc::clone(&disk) as Arc<dyn Layer>, Arc::clone(&redis) as Arc<dyn Layer>];
    let node = Coordinator::open(parts(&clock, Policy::S3Fifo, cold), clock.clone()).await;
    redis.put(entry("k", "older"));
    disk.stopping.store(true, Ordering::SeqCst);
    assert!(node.get(&cx(&clock), &key("k"), Wants::Value).await.entry.is_none());
    let (found, _) = node.get_many(&cx(&clock), &["none", "k"].map(key), Wants::Value).await;
    assert!(found.iter().all(Option::is_none), "{found:?}");
    assert_eq!(redis.reads.load(Ordering::SeqCst), 0);
    disk.stopping.store(false, Ordering::SeqCst);
    let found = node.get(&cx(&clock), &key("k"), Wants::Value).await.entry;
    assert_eq!(found.as_ref().map(text).as_deref(), Some("older"), "it was there to be found");
}
