//! The layers inside a Rust program, without a port: open them, use them, ask how they are, close them.
//!
//! `cargo run -p cache-node --example embedded`

use std::{
    error::Error,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use cache_node::{
    clock::Clock,
    config::{Config, Environment},
    metrics::Metrics,
    node::{Pipeline, SetOptions},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("tieredcache-embedded-{}", std::process::id()));
    let toured = tour(&folder, &mut io::stdout()).await;
    // Whatever happened, nothing stays behind.
    let _ = std::fs::remove_dir_all(&folder);
    toured
}

/// Uses every call once, with its data in `folder`, and tells what came of it.
pub(crate) async fn tour(folder: &Path, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let yaml = format!("memory: {{capacity: 64Mi}}\ndisk: {{path: '{}'}}", folder.display());
    let config = Config::from_yaml(&yaml, &Environment::read())?;
    let metrics = Metrics::new("embedded");
    let cache = Pipeline::open(&config, &metrics, Clock::system()).await?;

    let page = SetOptions { ttl: Some(Duration::from_secs(600)), tags: &["shop", "prices"], ..SetOptions::default() };
    cache.set(b"page:1", b"<h1>Offers</h1>", page).await?;
    cache.set(b"page:2", b"<h1>Contact</h1>", SetOptions::default()).await?;
    writeln!(out, "page:1 is {:?}", text(cache.get("page:1").await?))?;

    cache.remove_by_tag(&["prices"]).await?;
    writeln!(out, "page:1 after the prices changed is {:?}", text(cache.get("page:1").await?))?;

    writeln!(out, "page:2 was there: {}", cache.remove("page:2").await?)?;
    writeln!(out, "page:2 was there: {}", cache.remove("page:2").await?)?;

    let (health, stats) = (cache.health(), cache.stats());
    writeln!(out, "all parts   {:?}, {} hits, {} misses", health.state, stats.hits, stats.misses)?;
    for part in cache.parts() {
        writeln!(out, "{:<11} {:?}, {} operations", part.name(), part.health().state, part.stats().operations)?;
    }
    // Writes what is queued, then closes the database.
    cache.shutdown().await;
    Ok(())
}

fn text(value: Option<Vec<u8>>) -> Option<String> {
    value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
