//! The library as another program uses it: what the example promises is what it does.

#[path = "../../cache-node/examples/embedded.rs"]
#[allow(dead_code, reason = "its main is for those who run it")]
mod example;

use cache_node::{
    clock::Clock,
    config::{Config, Environment},
    metrics::Metrics,
    node::{Pipeline, PipelineError, SetOptions},
};
use tempfile::tempdir;

#[tokio::test(flavor = "multi_thread")]
async fn the_example_uses_every_call_and_closes_what_it_opened() {
    let folder = tempdir().unwrap();
    // Twice on one folder: the second finds the database closed by the first.
    for _ in 0..2 {
        let mut told = Vec::new();
        example::tour(folder.path(), &mut told).await.unwrap();
        let told = String::from_utf8(told).unwrap();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(
            lines[..4],
            [
                "page:1 is Some(\"<h1>Offers</h1>\")",
                "page:1 after the prices changed is None",
                "page:2 was there: true",
                "page:2 was there: false",
            ],
        );
        for part in ["memory", "writeQueue", "disk"] {
            assert!(
                lines[4..].iter().any(|line| line.starts_with(part) && line.contains("Healthy")),
                "{part} in {told}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_beyond_the_limit_is_refused_with_its_length_and_the_limit() {
    let yaml = "disk: {mode: Disabled}\nlimits: {valueBytesMax: 1Ki}";
    let config = Config::from_yaml(yaml, &Environment::read()).unwrap();
    let cache = Pipeline::open(&config, &Metrics::new("embedded"), Clock::system()).await.unwrap();
    let options = SetOptions::default();
    cache.set(b"k", &[7; 1024], options).await.unwrap();
    let refused = cache.set(b"k", &[8; 1025], options).await.unwrap_err();
    assert!(matches!(refused, PipelineError::ValueTooLarge { .. }), "{refused:?}");
    assert_eq!(refused.to_string(), "value has 1025 bytes; limits.valueBytesMax is 1Ki");
    assert_eq!(cache.get("k").await.unwrap(), Some(vec![7; 1024]), "nothing was stored");
    cache.shutdown().await;
}
