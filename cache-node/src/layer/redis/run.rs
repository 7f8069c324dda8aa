//! Running a script for a client that waits for what it answers.

use redis::{Cmd, ErrorKind as Kind, FromRedisValue, RedisResult, ServerErrorKind};

use super::{Shared, link::Writing, scripts::Prepared, trouble::Trouble};
use crate::context::OperationContext;

// === impl Shared ===

impl Shared {
    /// Runs a script, over the connection that all writes share. `give` adds its arguments, of which so many bytes are
    /// those of a value.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        cx: &OperationContext,
        (script, what): (&Prepared, &'static str),
        keys: &[&[u8]],
        (give, bytes): (impl Fn(&mut Cmd), usize),
    ) -> Result<T, Trouble> {
        self.writable()?;
        let (mut named, mut whole) = (script.named(keys), script.whole(keys));
        give(&mut named);
        give(&mut whole);
        let query = async move |mut connection| {
            let answer: RedisResult<T> = named.query_async(&mut connection).await;
            match answer {
                // A server that was started, or made to forget its scripts, since it was asked last.
                Err(error) if error.kind() == Kind::Server(ServerErrorKind::NoScript) => {
                    whole.query_async(&mut connection).await
                }
                answer => answer,
            }
        };
        let errand = self.errand(cx, what, self.write_allowance(bytes));
        let writing = self.writing(&errand).await?;
        self.call(&self.writes, errand, query, writing.as_ref().map(Writing::connected)).await
    }
}
