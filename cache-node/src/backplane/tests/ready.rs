//! When a node that is started may be given clients.

use super::*;

#[tokio::test]
async fn a_node_whose_log_can_not_be_reached_starts_fenced_after_a_while() {
    let mut f = Fixture::open();
    f.paper.0.lock().unwrap().is_away = true;
    f.backplane.known().trouble = Some("away".to_owned());
    f.steps(1).await;
    assert!(f.backplane.keeps_from_ready().is_some_and(|why| why.contains("away")));
    f.clock.advance(Duration::from_secs(5));
    assert_eq!((f.backplane.keeps_from_ready(), f.trust()), (None, Trust::None));
    // Of one that was reached meanwhile, which takes longer than that to catch up with, one failed look says nothing.
    f.backplane.note_trouble(None);
    f.clock.advance(Duration::from_secs(60));
    f.backplane.note_trouble(Some("late".to_owned()));
    assert!(f.backplane.keeps_from_ready().is_some());
    f.clock.advance(Duration::from_secs(5));
    assert_eq!(f.backplane.keeps_from_ready(), None);
}
