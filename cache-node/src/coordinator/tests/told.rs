//! What the listener of the backplane hears.

use std::sync::Mutex;

use super::{tags::tag_set, *};
use crate::backplane::{Listener, Notice, What};

/// Writes down what it hears.
#[derive(Default)]
pub(super) struct Diary(Mutex<Vec<String>>);

impl Listener for Diary {
    fn changed(&self, notice: &Notice<'_>) {
        let what = match notice.what {
            What::Key(key) => format!("key {}", key.escape_ascii()),
            What::Tagged(removal) => format!("tags {}", removal.tags.tags().iter().count()),
            What::Everything => "everything".to_owned(),
        };
        self.0.lock().unwrap().push(format!("{:?} {what}", notice.origin));
    }
}

impl Diary {
    /// What was heard since the last call.
    pub(super) fn read(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[tokio::test]
async fn every_change_of_this_node_is_told_once_memory_has_it() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let diary = Arc::new(Diary::default());
    f.coordinator.backplane().listen(Arc::clone(&diary) as Arc<dyn Listener>);
    f.set("a", "1").await;
    assert_eq!(diary.read(), ["Client key a"]);
    f.coordinator.update(&f.cx(), &key("n"), increment).await.unwrap();
    assert_eq!(diary.read(), ["Client key n"]);
    f.remove("a").await;
    assert_eq!(diary.read(), ["Client key a"]);
    f.coordinator.remove_tagged(&f.cx(), tag_set(&["red", "blue"]), Matching::Any).await.unwrap();
    assert_eq!(diary.read(), ["Client tags 2"]);
    f.coordinator.clear(&f.cx()).await.unwrap();
    assert_eq!(diary.read(), ["Client everything"]);
    f.get("absent").await;
    assert!(diary.read().is_empty(), "a read is no change");
}
