//! TC.WAIT: which nodes have carried out what this one has accepted.

use std::time::Duration;

use super::{Call, Commands, Step, error, later::Later, options::millis_within};
use crate::{
    context::{OperationContext, Trail},
    coordinator::Applied,
    entry::Position,
    protocol::Replies,
};

/// How much longer than it takes for a node to count as silent the wait is, if the client does not say. Should Redis have
/// lost the list of the nodes, a new one is begun within this.
const BEYOND_SILENCE: Duration = Duration::from_secs(2);
/// The longest wait.
const LIMIT_MS_MAX: u64 = 60_000;

// === impl Commands ===

impl Commands {
    /// `TC.WAIT [ms]`
    pub(super) fn wait(&self, call: &Call<'_>, out: &mut Replies) -> Step {
        let given = call.args.get(1);
        if call.args.len() > 2 {
            out.error(error::SYNTAX);
            return Step::Done;
        }
        let limit = match given {
            None => Some(self.coordinator.silent_after() + BEYOND_SILENCE),
            Some(ms) => millis_within(ms, LIMIT_MS_MAX),
        };
        match limit {
            Some(limit) => Step::Later(Later::wait(limit)),
            None => {
                let given = error::quoted(given.unwrap_or_default());
                out.error(&format!("ERR timeout is '{given}'; it is 1 to {LIMIT_MS_MAX} ms"));
                Step::Done
            }
        }
    }

    pub(super) async fn wait_later(
        &self,
        (cx, trail): (&OperationContext, &mut Trail),
        limit: Duration,
        out: &mut Replies,
    ) {
        let cx = &OperationContext { deadline: self.clock.monotonic() + limit, ..*cx };
        match self.coordinator.applied((cx, trail), &self.settings.identity.node).await {
            Ok(Some(applied)) => tell(&applied, out),
            Ok(None) => out.simple("QUEUED"),
            Err(error) => error::write(out, &error),
        }
    }
}

fn tell(applied: &Applied, out: &mut Replies) {
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let position = Some(applied.position).filter(|position| *position != Position::NONE);
    out.map(5);
    out.bulk(b"position");
    match position {
        Some(position) => out.bulk(position.to_string().as_bytes()),
        None => out.null(),
    }
    out.bulk(b"applied");
    out.integer(number(applied.applied.len()));
    out.bulk(b"nodes");
    out.integer(number(applied.nodes()));
    for (name, nodes) in [("behind", &applied.behind), ("silent", &applied.silent)] {
        out.bulk(name.as_bytes());
        out.array(nodes.len());
        nodes.iter().for_each(|node| out.bulk(node.as_bytes()));
    }
}
