//! What other nodes have changed, while this one is reading.

use super::*;
use crate::{
    backplane::Effects,
    layer::log::{Author, Cursor, Record, Recorded},
};

#[tokio::test]
async fn a_read_that_began_before_the_disk_failed_to_forget_brings_nothing_back() {
    let f = Arc::new(Fixture::over(Scripted::gated(0, 0), QUEUE).await);
    f.layer.put(entry("k", "old"));
    let (mut hearing, mut reading) = (JoinSet::new(), JoinSet::new());
    let told = Arc::clone(&f);
    hearing.spawn(async move {
        let position = Position::from_parts(START.0, 7);
        let record = Record { position, author: Author::Other, what: Recorded::Key(key("k")) };
        told.coordinator.stores.apply(&[record], &Cursor::default()).await
    });
    // Until the disk holds it up.
    let_others_go_on().await;
    let reader = Arc::clone(&f);
    reading.spawn(async move { reader.get("k").await });
    eventually("the read has begun", || f.layer.reads.load(Ordering::SeqCst) == 1).await;
    f.layer.failing.store(true, Ordering::SeqCst);
    f.layer.write_gate.add_permits(1);
    hearing.join_next().await.unwrap().unwrap();
    f.layer.failing.store(false, Ordering::SeqCst);
    f.layer.read_gate.add_permits(1);
    // Whoever asked before the removal was told may get it; nobody after that.
    reading.join_next().await.unwrap().unwrap();
    assert!(!matches!(f.coordinator.peek(&f.cx(), b"k"), Peek::Hit(_)));
}
