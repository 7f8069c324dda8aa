//! The library as another program uses it: what the example promises is what it does.

#[path = "../../cache-node/examples/embedded.rs"]
#[allow(dead_code, reason = "its main is for those who run it")]
mod example;

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
