//! Read-modify-write.

use super::*;

#[tokio::test]
async fn update_sees_the_value_on_disk_and_keeps_its_expiry() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let expires_at = START.after(Duration::from_secs(60));
    f.layer.put(entry_until("n", "41", expires_at));
    assert!(matches!(f.coordinator.try_update(&f.cx(), b"n", increment), TryUpdate::Cold));
    assert_eq!(f.coordinator.update(&f.cx(), &key("n"), increment).await, Ok(42));
    assert!(matches!(f.coordinator.try_update(&f.cx(), b"n", increment), TryUpdate::Done(43)));
    let Peek::Hit(entry) = f.coordinator.peek(&f.cx(), b"n") else { panic!("gone") };
    assert_eq!(entry.expires_at(), Some(expires_at));
}

#[tokio::test(start_paused = true)]
async fn update_of_an_unreadable_value_changes_nothing() {
    let f = Fixture::over(Scripted::gated(0, 1000), QUEUE).await;
    f.layer.put(entry("n", "41"));
    assert_eq!(f.coordinator.update(&f.cx(), &key("n"), increment).await, Err(WriteError::Unreadable));
    f.layer.read_gate.add_permits(1000);
    assert_eq!(f.get("n").await.as_deref(), Some("41"));
}

#[tokio::test]
async fn update_that_removes_is_acknowledged_by_the_layer() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    f.set("n", "1").await;
    f.flushed().await;
    let removed = f.coordinator.update(&f.cx(), &key("n"), |current| (Update::Remove, current.is_some())).await;
    assert_eq!((removed, f.layer.value("n")), (Ok(true), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn increments_of_many_tasks_are_all_counted_whatever_layer_holds_the_value() {
    const TASKS: u64 = 8;
    const EACH: u64 = 500;
    let f = Arc::new(Fixture::over(Scripted::open(), QUEUE).await);
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let f = Arc::clone(&f);
        tasks.spawn(async move {
            for round in 0..EACH {
                if task == 0 && round % 3 == 0 {
                    f.evict("n");
                }
                f.coordinator.update(&f.cx(), &key("n"), increment).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(f.get("n").await, Some((TASKS * EACH).to_string()));
    f.flushed().await;
    assert_eq!(f.layer.value("n"), Some((TASKS * EACH).to_string()));
}
