use std::task::Waker;

use super::*;
use crate::{
    entry::{EntryMeta, Position, TagSet},
    protocol::{Protocol, Replies},
    testing::{START, entry_until, eventually},
};

fn table(items_max: usize) -> (Arc<Table>, Clock) {
    let clock = Clock::manual(START);
    (Arc::new(Table::open(items_max, clock.clone())), clock)
}

/// What a client is told now.
fn news(client: &Mailbox) -> String {
    let mut out = Replies::default();
    out.speak(Protocol::Resp3);
    client.deliver(Waker::noop(), &mut out);
    String::from_utf8(out.pieces().collect::<Vec<_>>().concat()).unwrap()
}

fn told(client: &Mailbox, name: &str) -> bool {
    news(client).contains(&format!("\r\n{name}\r\n"))
}

fn told_everything(client: &Mailbox) -> bool {
    news(client).ends_with("_\r\n")
}

fn tags(words: &[&str]) -> TagSet {
    let mut set = TagSet::default();
    words.iter().for_each(|word| set.add(word.as_bytes()).unwrap());
    set
}

fn tagged(name: &str, words: &[&str]) -> Entry {
    Entry::new(name.as_bytes(), b"v", EntryMeta { tags: tags(words).tags(), ..EntryMeta::default() })
}

fn removal(words: &[&str], matching: Matching) -> TagRemoval {
    TagRemoval { tags: tags(words), matching, position: Position::from_parts(START.0, 0) }
}

#[test]
fn a_change_is_told_once_to_everybody_who_has_read_the_key() {
    let (table, _) = table(1000);
    let [one, two, other] = [table.join(), table.join(), table.join()];
    table.remember(b"k", &two);
    table.remember(b"k", &one);
    table.remember(b"k", &one);
    table.remember(b"x", &other);
    assert_eq!((table.held().keys, table.held().items), (2, 3));
    table.spread(1, What::Key(b"k"));
    assert!(told(&one, "k") && told(&two, "k"));
    assert_eq!(news(&other), "");
    table.spread(2, What::Key(b"k"));
    assert_eq!(news(&one), "", "whoever does not read again does not hear again");
    assert_eq!((table.held().keys, table.told(Reason::Changed)), (1, 1));
}

#[test]
fn a_clear_tells_every_client_to_forget_everything() {
    let (table, _) = table(1000);
    let (reader, follower) = (table.join(), table.join());
    table.remember(b"k", &reader);
    table.broadcast(b"a", &follower);
    table.spread(1, What::Everything);
    assert!(told_everything(&reader) && told_everything(&follower));
    assert_eq!(table.held().items, 0);
}

#[test]
fn prefixes_hear_of_every_key_that_begins_so() {
    let (table, _) = table(1000);
    let (some, all) = (table.join(), table.join());
    table.broadcast(b"user:", &some);
    table.broadcast(b"", &all);
    table.spread(1, What::Key(b"user:1"));
    table.spread(1, What::Key(b"other"));
    let heard = news(&some);
    assert!(heard.contains("user:1") && !heard.contains("other"));
    assert!(told(&all, "other"));
}

#[test]
fn over_the_bound_keys_are_told_as_if_they_had_changed() {
    let (table, _) = table(160);
    let client = table.join();
    for number in 0..10_000 {
        table.remember(format!("k{number}").as_bytes(), &client);
    }
    let held = table.held();
    assert!(held.items <= 160, "{held:?}");
    let heard = news(&client).matches("\r\nk").count() as u64;
    assert_eq!(heard + held.keys as u64, 10_000, "each is kept or told");
    assert_eq!(table.told(Reason::Evicted), heard);
}

#[test]
fn tags_count_against_the_bound() {
    let (table, _) = table(160);
    let client = table.join();
    for number in 0..1000 {
        let name = format!("k{number}");
        table.remember(name.as_bytes(), &client);
        table.learn(&tagged(&name, &["a", "b", &name]));
    }
    assert!(table.held().items <= 160, "{:?}", table.held());
}

/// Runs the table's task until the condition holds.
async fn while_it_runs(table: &Table, what: &str, condition: impl Fn() -> bool) {
    tokio::select! { () = table.run() => {}, () = eventually(what, condition) => {} }
}

#[tokio::test(start_paused = true)]
async fn a_removal_by_tag_is_told_for_the_keys_that_carry_it() {
    let (table, _) = table(1000);
    let client = table.join();
    for (name, words) in [("both", &["a", "b"][..]), ("a", &["a"]), ("c", &["c"])] {
        table.remember(name.as_bytes(), &client);
        table.learn(&tagged(name, words));
    }
    table.spread(1, What::Tagged(&removal(&["a", "b"], Matching::All)));
    while_it_runs(&table, "one key is told", || table.told(Reason::Tagged) == 1).await;
    assert!(told(&client, "both"));
    table.spread(1, What::Tagged(&removal(&["b", "a"], Matching::Any)));
    while_it_runs(&table, "another is told", || table.told(Reason::Tagged) == 2).await;
    assert!(told(&client, "a"));
    assert_eq!(table.held().keys, 1);
}

#[tokio::test(start_paused = true)]
async fn a_removal_by_tag_tells_followers_of_prefixes_to_forget_everything() {
    let (table, _) = table(1000);
    let client = table.join();
    table.broadcast(b"a", &client);
    table.spread(1, What::Tagged(&removal(&["t"], Matching::Any)));
    assert!(told_everything(&client));
}

#[test]
fn more_removals_by_tag_than_can_wait_become_one_of_everything() {
    let (table, _) = table(1000);
    let client = table.join();
    for _ in 0..=REMOVALS_MAX {
        table.spread(1, What::Tagged(&removal(&["t"], Matching::Any)));
    }
    assert!(told_everything(&client));
    assert!(lock(&table.removals).is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_life_is_told_and_not_before() {
    let (table, clock) = table(1000);
    let client = table.join();
    table.remember(b"k", &client);
    table.learn(&entry_until("k", "v", START.after(Duration::from_secs(1))));
    table.forget_expired(clock.now()).await;
    assert_eq!(news(&client), "");
    clock.advance(Duration::from_secs(1));
    while_it_runs(&table, "it is told", || table.told(Reason::Expired) == 1).await;
    assert!(told(&client, "k"));
    assert_eq!(table.held().items, 0);
}

#[tokio::test(start_paused = true)]
async fn of_two_values_that_were_read_the_life_and_the_tags_of_both_count() {
    let (table, clock) = table(1000);
    let client = table.join();
    table.remember(b"k", &client);
    // The reader of the older value comes late.
    table.learn(&tagged("k", &["new"]));
    table.learn(&tagged("k", &["old"]));
    table.forget_tagged(&removal(&["new"], Matching::Any)).await;
    assert!(told(&client, "k"));
    table.remember(b"k", &client);
    table.learn(&entry_until("k", "v", START.after(Duration::from_secs(9))));
    table.learn(&entry_until("k", "v", START.after(Duration::from_secs(99))));
    clock.advance(Duration::from_secs(9));
    table.forget_expired(clock.now()).await;
    assert!(told(&client, "k"));
}

#[test]
fn what_a_client_read_is_forgotten_when_the_last_client_leaves() {
    let (table, _) = table(1000);
    let (one, two) = (table.join(), table.join());
    table.remember(b"k", &one);
    table.leave(&one);
    assert_eq!(table.held().keys, 1);
    table.spread(1, What::Key(b"x"));
    table.leave(&two);
    assert_eq!(table.held(), Held { items_max: 1000, ..Held::default() });
}

#[tokio::test(start_paused = true)]
async fn what_a_clear_forgets_is_dropped_by_the_task() {
    let (table, _) = table(1000);
    let client = table.join();
    (0..100).for_each(|number| table.remember(format!("k{number}").as_bytes(), &client));
    table.spread(1, What::Everything);
    assert!(!lock(&table.forgotten).is_empty());
    while_it_runs(&table, "it is dropped", || lock(&table.forgotten).is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_behind_by_any_mixture_of_calls() {
    let (table, clock) = table(400);
    let clients = [table.join(), table.join(), table.join()];
    for number in 0..20_000_u64 {
        let random: u32 = rand::random();
        let name = format!("k{}", random % 97);
        match random >> 8 & 7 {
            0..=2 => table.remember(name.as_bytes(), &clients[(random >> 16 & 1) as usize]),
            3 => table.learn(&tagged(&name, &[&format!("t{}", random >> 16 & 3), "x"])),
            4 => table.learn(&entry_until(&name, "v", START.after(Duration::from_millis(number)))),
            5 => table.spread(number, What::Key(name.as_bytes())),
            _ => {
                clock.advance(Duration::from_millis(1));
                table.forget_tagged(&removal(&["t1"], Matching::Any)).await;
                table.forget_expired(clock.now()).await;
            }
        }
    }
    for number in 0..97 {
        table.spread(0, What::Key(format!("k{number}").as_bytes()));
    }
    assert_eq!((table.held().keys, table.held().items), (0, 0));
    assert!(table.shards.iter().all(|shard| lock(shard).is_empty_of_links()));
}
