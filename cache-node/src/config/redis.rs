//! The sections `redis` and `backplane`: their checks, and what becomes of them.

use std::{str::FromStr, time::Duration};

use crds::node_config::{
    self, Backplane, DiskMode, NodeConfig, Redis, RedisKind, RedisMode, RedisTls, WhenDisconnected, limits,
};

use super::{Checks, Config};
use crate::{
    backplane::BackplaneOptions,
    coordinator::Outbox,
    entry::envelope::Codec,
    layer::redis::{Endpoint, RedisOptions, TlsOptions, Topology},
};

// === impl Config ===

impl Config {
    /// How L2 is opened; none if there is none.
    pub fn redis(&self, codec: Codec) -> Option<RedisOptions> {
        let NodeConfig { cache, redis, disk, .. } = &self.effective;
        if redis.mode == RedisMode::Disabled {
            return None;
        }
        let topology = match (redis.kind, &redis.master_name) {
            (RedisKind::Sentinel, Some(master_name)) => Topology::Sentinel { master_name: master_name.clone() },
            _ => Topology::Standalone,
        };
        let tls = redis.tls.clone().map(|RedisTls { ca_file, cert_file, key_file, server_name }| TlsOptions {
            ca_file,
            client_files: cert_file.zip(key_file),
            server_name,
        });
        let endpoint = |text: &String| Endpoint::from_str(text).expect("endpoints were checked");
        Some(RedisOptions {
            node: self.node().to_owned(),
            topology,
            endpoints: redis.endpoints.iter().map(endpoint).collect(),
            username_file: redis.username_file.clone(),
            password_file: redis.password_file.clone(),
            tls,
            database: redis.database,
            cache_uid: match redis.lineage {
                0 => cache.uid.clone(),
                lineage => format!("{}.{lineage}", cache.uid),
            },
            max_ttl: redis.max_ttl.0,
            removals_kept: self.copies_live_max(),
            removals_max: self.removals_max(),
            timeout: redis.timeout.0,
            connections: redis.connections.into(),
            concurrency: redis.concurrency.into(),
            writer_file: (disk.mode == DiskMode::RocksDb).then(|| disk.path.join("redis-writer")),
            log_records: self.effective().backplane.log_records.into(),
            codec,
        })
    }

    /// How the log is followed.
    pub fn backplane(&self) -> BackplaneOptions {
        let Backplane { max_staleness, when_disconnected, serve_stale_for, log_records: _, outbox: _ } =
            &self.effective().backplane;
        let serve_stale_for = match when_disconnected {
            WhenDisconnected::Miss => Duration::ZERO,
            WhenDisconnected::ServeStale => serve_stale_for.0,
        };
        BackplaneOptions { max_staleness: max_staleness.0, serve_stale_for }
    }

    /// What becomes of a removal of which Redis can not be told.
    pub fn outbox(&self) -> Outbox {
        match self.effective().backplane.outbox {
            node_config::Outbox::Queue => Outbox::Queue,
            node_config::Outbox::Refuse => Outbox::Refuse,
        }
    }
}

// === impl Checks ===

impl Checks {
    pub(super) fn redis(&mut self, redis: &Redis) {
        let Redis {
            mode,
            kind,
            endpoints,
            master_name,
            username_file,
            password_file,
            tls,
            database,
            lineage: _,
            max_ttl,
            timeout,
            connections,
            concurrency,
            write_mode: _,
        } = redis;
        self.within("redis.database", database, &limits::REDIS_DATABASE);
        self.within("redis.maxTtl", max_ttl, &limits::REDIS_MAX_TTL);
        self.within("redis.timeout", timeout, &limits::REDIS_TIMEOUT);
        self.within("redis.connections", connections, &limits::REDIS_CONNECTIONS);
        self.within("redis.concurrency", concurrency, &limits::REDIS_CONCURRENCY);
        for endpoint in endpoints {
            if let Err(error) = Endpoint::from_str(endpoint) {
                self.require("redis.endpoints", format!("{endpoint:?}"), false, || error.to_string());
            }
        }
        let (least, most) = (limits::REDIS_ENDPOINTS.start(), limits::REDIS_ENDPOINTS.end());
        let enough = *mode == RedisMode::Disabled || endpoints.len() >= *least;
        self.require("redis.endpoints", "[]", enough, || "names no server; redis.mode External needs one".to_owned());
        let count = format!("{} endpoints", endpoints.len());
        self.require("redis.endpoints", count, endpoints.len() <= *most, || format!("are above the maximum of {most}"));
        let named = master_name.as_ref().is_some_and(|name| !name.is_empty());
        let sentinel = *kind == RedisKind::Sentinel;
        let shown = format!("{:?}", master_name.as_deref().unwrap_or_default());
        self.require("redis.masterName", &shown, named || !sentinel, || "is needed for kind Sentinel".to_owned());
        let foreign = master_name.is_none() || sentinel;
        self.require("redis.masterName", &shown, foreign, || "is for kind Sentinel only".to_owned());
        if let (Some(file), None) = (username_file, password_file) {
            let problem = || "needs redis.passwordFile: Redis knows no user without a password".to_owned();
            self.require("redis.usernameFile", file.display(), false, problem);
        }
        if let Some(tls) = tls {
            self.redis_tls(tls);
        }
    }

    pub(super) fn backplane(&mut self, backplane: &Backplane) {
        let Backplane { max_staleness, when_disconnected: _, serve_stale_for, log_records, outbox: _ } = backplane;
        self.within("backplane.maxStaleness", max_staleness, &limits::MAX_STALENESS);
        self.within("backplane.serveStaleFor", serve_stale_for, &limits::SERVE_STALE_FOR);
        self.within("backplane.logRecords", log_records, &limits::LOG_RECORDS);
    }

    fn redis_tls(&mut self, RedisTls { ca_file: _, cert_file, key_file, server_name }: &RedisTls) {
        if let (Some(file), None) = (cert_file, key_file) {
            self.require("redis.tls.certFile", file.display(), false, || "needs redis.tls.keyFile".to_owned());
        }
        if let (None, Some(file)) = (cert_file, key_file) {
            self.require("redis.tls.keyFile", file.display(), false, || "needs redis.tls.certFile".to_owned());
        }
        if let Some(name) = server_name {
            self.require("redis.tls.serverName", "\"\"", !name.is_empty(), || "is no name".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use super::*;
    use crate::config::Environment;

    fn config(text: &str) -> Result<Config, String> {
        Config::from_yaml(text, &Environment::read()).map_err(|error| error.to_string())
    }

    #[test]
    fn there_is_no_redis_unless_asked_for() {
        assert_eq!(config("").unwrap().redis(Codec::default()), None);
        assert_eq!(config("redis: {endpoints: ['a:1']}").unwrap().redis(Codec::default()), None);
    }

    #[test]
    fn every_setting_reaches_the_layer() {
        let text = "cache: {uid: u-7, node: n}\n\
                    redis:\n  mode: External\n  kind: Sentinel\n  masterName: main\n  endpoints: ['a:26379', '[::1]:2']\n  \
                    usernameFile: /s/user\n  passwordFile: /s/password\n  database: 3\n  maxTtl: 200h\n  timeout: 20ms\n  \
                    connections: 5\n  concurrency: 9\n  \
                    tls: {caFile: /s/ca, certFile: /s/cert, keyFile: /s/key, serverName: redis.local}\nbackplane: {logRecords: 5000}";
        let options = config(text).unwrap().redis(Codec::default()).unwrap();
        let path = |text: &str| Some(PathBuf::from(text));
        let expected = RedisOptions {
            node: "n".to_owned(),
            topology: Topology::Sentinel { master_name: "main".to_owned() },
            endpoints: vec!["a:26379".parse().unwrap(), "[::1]:2".parse().unwrap()],
            username_file: path("/s/user"),
            password_file: path("/s/password"),
            tls: Some(TlsOptions {
                ca_file: path("/s/ca"),
                client_files: path("/s/cert").zip(path("/s/key")),
                server_name: Some("redis.local".to_owned()),
            }),
            database: 3,
            cache_uid: "u-7".to_owned(),
            max_ttl: Duration::from_secs(200 * 3600),
            removals_kept: Duration::from_secs(200 * 3600),
            removals_max: 250_000,
            timeout: Duration::from_millis(20),
            connections: 5,
            concurrency: 9,
            writer_file: path("./tieredcache-data/redis-writer"),
            log_records: 5000,
            codec: Codec::default(),
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn another_lineage_is_another_name_for_all_keys() {
        let text = "cache: {uid: u-7}\nredis: {mode: External, endpoints: ['a:1'], lineage: 1700000000}";
        let uid = |text: &str| config(text).unwrap().redis(Codec::default()).unwrap().cache_uid;
        assert_eq!(uid(text), "u-7.1700000000");
        assert_eq!(uid(&text.replace(", lineage: 1700000000", "")), "u-7");
    }

    #[test]
    fn a_fenced_node_serves_what_it_holds_for_a_minute_unless_told_otherwise() {
        let of = |text: &str| config(text).unwrap().backplane();
        let lenient =
            BackplaneOptions { max_staleness: Duration::from_secs(3), serve_stale_for: Duration::from_secs(60) };
        assert_eq!(of(""), lenient);
        let strict = BackplaneOptions { serve_stale_for: Duration::ZERO, ..lenient };
        assert_eq!(of("backplane: {whenDisconnected: Miss, serveStaleFor: 10s}"), strict);
        for (section, message) in [
            ("maxStaleness: 100ms", "backplane.maxStaleness: 100ms is below the minimum of 1s"),
            ("serveStaleFor: 25h", "backplane.serveStaleFor: 25h is above the maximum of 24h"),
            ("logRecords: 10", "backplane.logRecords: 10 is below the minimum of 1000"),
        ] {
            assert_eq!(config(&format!("backplane: {{{section}}}")).unwrap_err(), message);
        }
    }

    #[test]
    fn removals_are_kept_as_long_as_an_entry_lives_in_any_layer() {
        let text = "redis: {mode: External, endpoints: ['a:1']}\ndisk: {maxTtl: 300h}\nmemory: {maxTtl: 24h}";
        let options = config(text).unwrap().redis(Codec::default()).unwrap();
        assert_eq!(options.removals_kept, Duration::from_secs(300 * 3600));
    }

    #[test]
    fn every_limit_names_field_value_and_limit() {
        let seventeen = format!("endpoints: [{}]", ["'a:1'"; 17].join(", "));
        for (section, message) in [
            ("mode: External", "redis.endpoints: [] names no server; redis.mode External needs one"),
            ("endpoints: [a]", "redis.endpoints: \"a\" is no host and port, such as redis.example:6379 or [::1]:6379"),
            (&seventeen, "redis.endpoints: 17 endpoints are above the maximum of 16"),
            ("kind: Sentinel", "redis.masterName: \"\" is needed for kind Sentinel"),
            ("kind: Sentinel, masterName: ''", "redis.masterName: \"\" is needed for kind Sentinel"),
            ("masterName: main", "redis.masterName: \"main\" is for kind Sentinel only"),
            (
                "usernameFile: /u",
                "redis.usernameFile: /u needs redis.passwordFile: Redis knows no user without a password",
            ),
            ("tls: {certFile: /c}", "redis.tls.certFile: /c needs redis.tls.keyFile"),
            ("tls: {keyFile: /k}", "redis.tls.keyFile: /k needs redis.tls.certFile"),
            ("tls: {serverName: ''}", "redis.tls.serverName: \"\" is no name"),
            ("database: 1024", "redis.database: 1024 is above the maximum of 1023"),
            ("maxTtl: 100ms", "redis.maxTtl: 100ms is below the minimum of 1s"),
            ("timeout: 11s", "redis.timeout: 11s is above the maximum of 10s"),
            ("connections: 1", "redis.connections: 1 is below the minimum of 2"),
            ("concurrency: 0", "redis.concurrency: 0 is below the minimum of 1"),
        ] {
            assert_eq!(config(&format!("redis: {{{section}}}")).unwrap_err(), message);
        }
    }
}
