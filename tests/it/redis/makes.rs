//! Servers of other makes than the system's Redis.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    server::{Program, Server},
    *,
};
use ::tests::stock_clients::{installed, succeed};

/// Who made a server. Those that are no program of the system come from packages of another release of Debian, unpacked
/// once under the cache folder.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Make {
    /// The one of the system.
    Redis,
    Valkey,
    /// From before what the layer needs.
    OldRedis,
}

/// Runs each of these tests, which take a [`Make`], with every make that the layer works with.
macro_rules! on_every_make {
    ($($test:ident)*) => {
        mod on_redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test($crate::redis::makes::Make::Redis).await;
            })*
        }

        mod on_valkey {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test($crate::redis::makes::Make::Valkey).await;
            })*
        }
    };
}
pub(super) use on_every_make;

// === impl Make ===

impl Make {
    /// Starts a server that keeps nothing on disk, with more options.
    pub(crate) fn start(self, more: &[&str]) -> Server {
        Server::start_of(self.program(), more)
    }

    /// Starts a server with these options alone, of which one must be the port.
    pub(super) fn start_as(self, port: u16, args: Vec<&str>) -> Server {
        Server::start_of_as(self.program(), port, args)
    }

    const fn program(self) -> Program {
        match self {
            Self::Redis => || Command::new("redis-server"),
            Self::Valkey => valkey,
            Self::OldRedis => old_redis,
        }
    }
}

fn valkey() -> Command {
    let folder = unpacked("bookworm-backports", &["valkey-tools"]);
    // The package has the server under the name of one of its uses; what it does depends on how it is called.
    let mut command = Command::new(folder.join("usr/bin/valkey-check-rdb"));
    command.arg0("valkey-server");
    command
}

fn old_redis() -> Command {
    let folder = unpacked("bullseye", &["redis-tools", "liblua5.1-0", "lua-bitop", "lua-cjson", "libssl1.1"]);
    let mut command = Command::new(folder.join("usr/bin/redis-check-rdb"));
    command.arg0("redis-server");
    command.env("LD_LIBRARY_PATH", folder.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH)));
    command
}

/// The folder with these packages of this release of Debian.
fn unpacked(release: &str, packages: &[&str]) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/redis/unpack.sh");
    installed(&format!("{}-{release}", packages[0]), |folder| {
        succeed(Command::new("sh").arg(script).arg(release).arg(folder).args(packages));
    })
}

#[test]
fn what_is_tested_as_valkey_is_one_that_the_readme_names() {
    let server = Make::Valkey.start(&[]);
    let told = server.cli(&["INFO", "server"]);
    let version = told.lines().find_map(|line| line.strip_prefix("valkey_version:")).expect("only Valkey says that");
    let mut numbers = version.trim().split('.').map(|number| number.parse::<u32>().unwrap());
    assert!((numbers.next().unwrap(), numbers.next().unwrap()) >= (7, 2), "{version}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_too_old_is_not_used_and_told_what_is_needed() {
    let server = Make::OldRedis.start(&[]);
    let redis = Redis::open(options(&[server.port]), Clock::system());
    let health = healthy_as(&redis, HealthState::Unavailable, "TooOld").await;
    for word in ["older than 6.2", "Redis 7.0", "Valkey 7.2", &server.port.to_string()] {
        assert!(health.message.contains(word), "{}", health.message);
    }
    assert_eq!(got(&redis, "a").await, "NotHandled");
    assert!(redis.apply(&cx(), &[Change::Set(entry("a", "v"))]).await.is_err());
    assert_eq!(server.cli(&["DBSIZE"]), "0", "nothing is written to it");
}
