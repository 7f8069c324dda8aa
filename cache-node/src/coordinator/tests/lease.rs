//! One filler per key, and no fill of what is older than the last change.

use super::{tags::tag_set, *};

const LIFE: Duration = Duration::from_secs(10);

impl Fixture {
    async fn lease(&self, name: &str) -> Leased {
        self.coordinator.get_or_lease(&self.cx(), &key(name), LIFE).await.unwrap()
    }

    async fn granted(&self, name: &str) -> Token {
        match self.lease(name).await {
            Leased::Granted(token, LIFE) => token,
            other => panic!("no lease, but {other:?}"),
        }
    }

    /// Fills with an entry that carries these tags, as a client does that was given the token.
    async fn fill(&self, name: &str, token: Token, value: &str, tags: &[&str]) -> bool {
        let tags = tag_set(tags);
        let meta = self.coordinator.meta(&self.cx(), None, None, tags.tags());
        let entry = Entry::new(name.as_bytes(), value.as_bytes(), meta);
        self.coordinator.fill(&self.cx(), token, entry).await.unwrap()
    }
}

#[tokio::test]
async fn of_a_thousand_who_miss_a_key_one_is_to_fetch_it() {
    let f = Arc::new(Fixture::over(Scripted::open(), QUEUE).await);
    let mut callers = JoinSet::new();
    for _ in 0..1000 {
        let f = Arc::clone(&f);
        callers.spawn(async move { f.lease("k").await });
    }
    let answers = callers.join_all().await;
    let tokens: Vec<Token> = answers
        .iter()
        .filter_map(|leased| if let Leased::Granted(token, _) = leased { Some(*token) } else { None })
        .collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(answers.iter().filter(|leased| matches!(leased, Leased::Wait(None, _))).count(), 999);
    assert!(f.fill("k", tokens[0], "v", &[]).await);
    assert!(matches!(f.lease("k").await, Leased::Value(entry) if text(&entry) == "v"));
    let counts = f.coordinator.leases();
    assert_eq!((counts.held, counts.granted, counts.waits, counts.filled), (0, 1, 999, 1));
}

#[tokio::test]
async fn a_value_below_is_found_without_a_lease() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    f.layer.put(entry("k", "below"));
    assert!(matches!(f.lease("k").await, Leased::Value(entry) if text(&entry) == "below"));
    assert_eq!(f.coordinator.leases(), LeaseCounts::default());
}

#[tokio::test]
async fn a_fill_that_began_before_any_change_of_its_key_is_refused() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    for change in ["set", "remove", "clear", "update"] {
        let token = f.granted("k").await;
        match change {
            "set" => f.set("k", "newer").await,
            "remove" => drop(f.remove("k").await),
            "clear" => drop(f.coordinator.clear(&f.cx()).await.unwrap()),
            _ => drop(f.coordinator.update(&f.cx(), &key("k"), |_| (Update::Set(entry("k", "newer")), ())).await),
        }
        assert!(!f.fill("k", token, "older", &[]).await, "{change}");
        assert_ne!(f.get("k").await.as_deref(), Some("older"), "{change}");
        f.remove("k").await;
    }
    assert_eq!(f.coordinator.leases().refused, 4);
    let token = f.granted("k").await;
    f.set("other", "1").await;
    assert!(f.fill("k", token, "v", &[]).await, "another key does not matter");
}

#[tokio::test]
async fn a_fill_whose_tag_was_removed_since_its_lease_is_refused() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let (token, other) = (f.granted("k").await, f.granted("o").await);
    f.coordinator.remove_tagged(&f.cx(), tag_set(&["t"]), Matching::Any).await.unwrap();
    assert!(!f.fill("k", token, "older", &["t"]).await);
    assert!(f.fill("o", other, "v", &["u"]).await);
    f.remove("k").await;
    let token = f.granted("k").await;
    assert!(f.fill("k", token, "v", &["t"]).await, "fetched after the removal");
    assert_eq!(f.get("k").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn a_value_under_a_lease_goes_with_the_next_removal_of_its_tag() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let token = f.granted("k").await;
    assert!(f.fill("k", token, "v", &["t"]).await);
    f.coordinator.remove_tagged(&f.cx(), tag_set(&["t"]), Matching::Any).await.unwrap();
    assert_eq!(f.get("k").await, None);
}

#[tokio::test]
async fn a_lease_is_good_for_one_fill_by_its_token_within_its_life() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let first = f.granted("k").await;
    assert!(!f.fill("k", Token(first.0 ^ 2), "guessed", &[]).await);
    assert!(matches!(f.lease("k").await, Leased::Wait(None, LIFE)));
    f.clock.advance(Duration::from_secs(4));
    assert!(matches!(f.lease("k").await, Leased::Wait(None, left) if left == Duration::from_secs(6)));
    f.clock.advance(Duration::from_secs(6));
    let second = f.granted("k").await;
    assert!(!f.fill("k", first, "late", &[]).await);
    assert!(f.fill("k", second, "v", &[]).await);
    assert!(!f.fill("k", second, "twice", &[]).await);
    assert_eq!(f.get("k").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn of_a_stale_value_one_caller_gets_a_lease_and_all_others_the_value() {
    for below in [Some(Scripted::open()), None] {
        let clock = Clock::manual(START);
        let cold = below.iter().map(|layer| Arc::clone(layer) as Arc<dyn Layer>).collect();
        let coordinator = Coordinator::open(parts(&clock, Policy::S3Fifo, cold), clock.clone()).await;
        let (expires_at, stale_until) = (START.after(Duration::from_secs(1)), START.after(Duration::from_secs(60)));
        let meta = EntryMeta { expires_at: Some(expires_at), stale_until: Some(stale_until), ..EntryMeta::default() };
        coordinator.set(&cx(&clock), Entry::new(b"k", b"old", meta)).await.unwrap();
        coordinator.flush(&cx(&clock)).await.unwrap();
        clock.advance(Duration::from_secs(2));
        let ask = || async { coordinator.get_or_lease(&cx(&clock), &key("k"), LIFE).await.unwrap() };
        assert!(matches!(ask().await, Leased::Granted(..)));
        assert!(matches!(ask().await, Leased::Wait(Some(old), _) if text(&old) == "old"));
        clock.advance(Duration::from_secs(60));
        assert!(matches!(ask().await, Leased::Granted(..)), "the stale life has ended, and so has the lease");
    }
}

#[tokio::test]
async fn who_knows_that_there_is_no_value_sends_nobody() {
    let f = Fixture::over(Scripted::open(), QUEUE).await;
    let meta = EntryMeta { negative: true, expires_at: Some(START.after(LIFE)), ..EntryMeta::default() };
    f.coordinator.set(&f.cx(), Entry::new(b"k", b"", meta)).await.unwrap();
    assert!(matches!(f.lease("k").await, Leased::Negative));
}
