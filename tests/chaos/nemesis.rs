//! What happens to the fleet. Every fault begins, lasts, and is healed.

use std::time::Duration;

use clap::ValueEnum;
use rand::{RngExt, rngs::SmallRng};
use rustix::process::Signal;

use crate::{
    fleet::{CACHE, Fleet},
    run::rest,
};

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// Nothing: what the others are compared with.
    None,
    /// A node is killed, and started again on the same data.
    Kill,
    /// A node is stopped in the middle of whatever it does, and goes on later.
    Pause,
    /// What a node and Redis send each other is held up, and delivered later.
    Cut,
    /// The same, and lost.
    Drop,
    /// Redis is stopped and goes on later.
    RedisPause,
    /// Redis is killed and started again with its data.
    RedisKill,
    /// Redis is killed and started again without its data.
    RedisEmpty,
    /// Redis is killed and started again with older data.
    RedisOld,
    /// Somebody empties Redis while it runs.
    RedisFlush,
    /// The log in Redis is trimmed while a node is cut off.
    LogTrimmed,
    /// Redis fails over to a replica that lacks the latest changes.
    Failover,
    /// A node's clock is an hour fast or slow.
    Clock,
    /// The clock of Redis is: it says what comes after what, and when lives and leases end.
    RedisClock,
    /// A node's disk is full.
    DiskFull,
}

/// A fault that is not healed yet.
pub(crate) struct Active {
    fault: Fault,
    node: usize,
}

// === impl Fault ===

impl Fault {
    /// All that break something.
    pub(crate) fn all() -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|fault| *fault != Self::None).collect()
    }

    /// Its name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether both can be there at once: what one Redis has, it has one of.
    pub(crate) fn goes_with(self, other: Self) -> bool {
        let of_redis = |fault| {
            matches!(
                fault,
                Self::RedisPause
                    | Self::RedisKill
                    | Self::RedisEmpty
                    | Self::RedisOld
                    | Self::RedisFlush
                    | Self::LogTrimmed
                    | Self::Failover
            )
        };
        self != other && self != Self::None && !(of_redis(self) && of_redis(other))
    }

    /// Lets it begin, at a node of chance.
    ///
    /// # Errors
    /// If the fleet can not be brought into that state.
    pub(crate) fn begin(self, fleet: &mut Fleet, random: &mut SmallRng) -> anyhow::Result<Active> {
        let nodes = fleet.members.len();
        // Only the first node has a disk that can be full.
        let node = if self == Self::DiskFull { 0 } else { random.random_range(0..nodes) };
        fleet.note(format!("begins: {} (node {node})", self.name()));
        match self {
            Self::None => {}
            Self::Kill => fleet.kill_node(node),
            Self::Pause => fleet.signal_node(node, Signal::STOP),
            Self::Cut | Self::Drop | Self::LogTrimmed => fleet.members[node].to_redis.hold(),
            Self::RedisPause => fleet.store.master().freeze(),
            Self::RedisKill | Self::RedisEmpty => fleet.store.kill(),
            Self::RedisOld => fleet.store.copy()?,
            Self::RedisFlush => drop(fleet.store.master().cli(&["FLUSHALL"])),
            Self::Failover => {
                fleet.store.add_replica()?;
                fleet.store.cut_replica();
                fleet.note("the replica hears nothing more".to_owned());
            }
            Self::Clock => fleet.step_clock(node, if random.random() { 3600 } else { -3600 })?,
            Self::RedisClock => fleet.store.step_clock(if random.random() { 3600 } else { -3600 })?,
            Self::DiskFull => {
                if let Some(volume) = &fleet.members[node].volume {
                    volume.fill_but(0);
                }
            }
        }
        Ok(Active { fault: self, node })
    }
}

// === impl Active ===

impl Active {
    /// Ends it. Of some the worst comes now.
    ///
    /// # Errors
    /// If the fleet can not be brought back.
    pub(crate) fn end(self, fleet: &mut Fleet) -> anyhow::Result<()> {
        let Self { fault, node } = self;
        fleet.note(format!("ends: {} (node {node})", fault.name()));
        match fault {
            Fault::None | Fault::RedisFlush => {}
            Fault::Kill => {
                if !fleet.runs(node) {
                    fleet.start_node(node);
                }
            }
            Fault::Pause => fleet.signal_node(node, Signal::CONT),
            Fault::Cut => fleet.members[node].to_redis.release(),
            Fault::Drop => fleet.members[node].to_redis.reset(),
            Fault::LogTrimmed => {
                let log = format!("{{tc:{CACHE}}}:log");
                fleet.store.master().cli(&["XTRIM", &log, "MAXLEN", "0"]);
                fleet.members[node].to_redis.reset();
            }
            Fault::RedisPause => fleet.store.master().thaw(),
            Fault::RedisKill => fleet.store.restart(),
            Fault::RedisEmpty => {
                fleet.store.wipe()?;
                fleet.store.restart();
            }
            Fault::RedisOld => {
                fleet.store.kill();
                rest(Duration::from_millis(300));
                fleet.store.restore()?;
                fleet.store.restart();
            }
            Fault::Failover => {
                fleet.store.fail_over();
                fleet.follow_master();
            }
            Fault::Clock => fleet.step_clock(node, 0)?,
            Fault::RedisClock => fleet.store.step_clock(0)?,
            Fault::DiskFull => {
                if let Some(volume) = &fleet.members[node].volume {
                    std::fs::remove_file(volume.path().join("ballast"))?;
                }
            }
        }
        fleet.note(format!("healed: {} (node {node})", fault.name()));
        Ok(())
    }
}
