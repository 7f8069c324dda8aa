//! The disk read before Redis.

use super::*;

/// A disk that keeps values for two seconds, and a memory that keeps them for one.
fn start(folder: &TempDir, redis: &Server) -> Node {
    let redis = format!("redis: {{mode: External, endpoints: ['{}'], timeout: 200ms}}", redis.address());
    let more = format!("readOrder: [Disk, Redis]\nmemory: {{maxTtl: 1s}}\n{redis}");
    Node::start(&config_of_disk(folder, "minTtl: 0s, maxTtl: 2s", &more))
}

#[test]
fn what_the_disk_does_not_keep_any_more_is_read_from_redis_behind_it() {
    let (folder, redis) = (tempdir().unwrap(), Server::start(&[]));
    let node = start(&folder, &redis);
    let pipeline = Pipeline { folder, redis, node };
    pipeline.redis_is_used();
    pipeline.is_ready();
    let parts: Vec<String> = pipeline.outcomes("k").into_iter().map(|(part, _)| part).collect();
    assert_eq!(parts, ["memory", "writeQueue", "disk", "redis"], "as configured");
    let mut client = pipeline.client();
    client.call("SET k v");
    client.call("SET l v");
    eventually("all is written", || client.call("TC.FLUSH") == Reply::ok());
    let hits = |key: &str| -> Vec<String> {
        let outcomes = pipeline.outcomes(key).into_iter();
        outcomes.filter(|(_, outcome)| outcome == "hit").map(|(part, _)| part).collect()
    };
    eventually("memory and disk have given them up", || hits("k") == ["redis"] && hits("l") == ["redis"]);
    eventually("it is read", || client.call("GET k") == Reply::bulk("v"));
    eventually("both are read", || client.call("MGET l none") == Reply::Array(vec![Reply::bulk("v"), Reply::Null]));
    eventually("the disk has it again", || {
        client.call("GET k");
        hits("k").contains(&"disk".to_owned())
    });
    // What has ended by its own life is gone from all.
    client.call("SET brief v PX 300");
    eventually("it ends", || client.call("GET brief") == Reply::Null);
}
