//! What the nodes have said about how far they have come with the log, for whoever waits for them.

use std::sync::Arc;

use super::{
    Redis, Shared,
    log::{CensusReply, census},
    place,
    scripts::Prepared,
    trouble::Trouble,
};
use crate::{
    context::OperationContext,
    entry::Position,
    layer::{LayerError, followers::Followers, log::Census},
};
use async_trait::async_trait;

/// KEYS log; ARGV origin, records kept. A record that changes nothing: whoever reads it says at once how far it has come.
/// Answers the id.
const ASK: &str = "#!lua flags=allow-oom
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'k', 'a', 'w', '', 'o', ARGV[1])";

/// The followers of a cache.
pub struct RedisFollowers {
    shared: Arc<Shared>,
    ask: Prepared,
}

// === impl Redis ===

impl Redis {
    /// The nodes that follow the log that this layer keeps.
    pub fn followers(&self) -> RedisFollowers {
        RedisFollowers { shared: Arc::clone(&self.shared), ask: Prepared::new(ASK) }
    }
}

// === impl RedisFollowers ===

#[async_trait]
impl Followers for RedisFollowers {
    async fn ask(&self, cx: &OperationContext) -> Result<Position, LayerError> {
        let shared = &self.shared;
        let keys = [shared.keys.log().as_bytes()];
        let give = |call: &mut redis::Cmd| {
            call.arg(&shared.origin).arg(shared.log_kept());
        };
        let id: Vec<u8> = shared.run(cx, (&self.ask, "a question to all nodes"), &keys, (give, 0)).await?;
        let position = place::position(&id).ok_or_else(|| Trouble::corrupt("the place of a record makes no sense"))?;
        shared.log.published(position);
        Ok(position)
    }

    fn newest(&self) -> Position {
        self.shared.log.newest()
    }

    async fn census(&self, cx: &OperationContext) -> Result<Census, LayerError> {
        let shared = &self.shared;
        let keys = [shared.keys.nodes(), shared.keys.history()].map(str::as_bytes);
        let script = (&shared.scripts.census, "a look at the nodes");
        let reply: CensusReply = shared.run(cx, script, &keys, (|_| {}, 0)).await?;
        let settled = shared.settled.load();
        Ok(census(reply, settled.as_deref().map_or("", String::as_str)))
    }
}
