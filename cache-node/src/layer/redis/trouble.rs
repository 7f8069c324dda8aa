//! What an error of Redis or of its connection means: for the caller, for the breaker, for health.

use redis::{ErrorKind as Kind, RedisError, RedisResult, ServerErrorKind};

use crate::layer::{ErrorKind, LayerError, LayerId};

/// What went wrong, in the words of this layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Stable word for health.
    pub(super) reason: &'static str,
    pub(super) kind: ErrorKind,
    pub(super) message: String,
    pub(super) consequence: Consequence,
    /// It is certain that Redis did nothing of what it was to be asked.
    pub(super) untouched: bool,
}

/// What follows from it, besides the failure of the call; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Consequence {
    /// Nothing: Redis works and refused this one call.
    None,
    /// Redis does not work: the breaker counts it.
    Failure,
    /// The connection is of no use any more.
    Reconnect,
}

// === impl Trouble ===

impl Trouble {
    /// No answer in time.
    pub(super) fn timeout(what: &str) -> Self {
        Self::new("Slow", ErrorKind::Timeout, Consequence::Failure, format!("no answer to {what} in time"))
    }

    /// Nothing to send the call over.
    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        Self::new("Unreachable", ErrorKind::Unreachable, Consequence::Reconnect, message.into())
    }

    /// Something about the server is not as it must be.
    pub(super) fn refused(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(reason, ErrorKind::Refused, Consequence::Failure, message.into())
    }

    /// What was read is not what was written.
    pub(super) fn corrupt(message: impl Into<String>) -> Self {
        Self::new("Corrupt", ErrorKind::Corrupt, Consequence::None, message.into())
    }

    /// An answer that is none to what was asked: what comes next over the connection may not be one either.
    pub(super) fn no_answer(message: impl Into<String>) -> Self {
        Self::new("Corrupt", ErrorKind::Corrupt, Consequence::Reconnect, message.into())
    }

    /// The same, before anything was sent.
    pub(super) fn unsent(self) -> Self {
        Self { untouched: true, ..self }
    }

    /// The same, after something was sent.
    pub(super) fn after_more(self) -> Self {
        Self { untouched: false, ..self }
    }

    const fn new(reason: &'static str, kind: ErrorKind, consequence: Consequence, message: String) -> Self {
        Self { reason, kind, message, consequence, untouched: false }
    }
}

/// How an answer is told from here on that was read whole and is none to what was asked. The client library itself says
/// this only of what it was given to send.
pub(super) const NO_ANSWER: Kind = Kind::Client;

/// The answers, if there is one to each question.
pub(super) fn all_of<T>(questions: usize, answers: Vec<T>) -> RedisResult<Vec<T>> {
    if answers.len() == questions {
        return Ok(answers);
    }
    let found = format!("{} answers to {questions} questions", answers.len());
    Err(RedisError::from((NO_ANSWER, "the answer is damaged", found)))
}

impl From<&RedisError> for Trouble {
    fn from(error: &RedisError) -> Self {
        let (reason, kind, consequence) = match (error.kind(), error.code()) {
            (_, Some("OOM")) => ("OutOfMemory", ErrorKind::Full, Consequence::None),
            (_, Some("MISCONF")) => ("WritesRefused", ErrorKind::Refused, Consequence::None),
            (_, Some("WRONGPASS" | "NOAUTH")) | (Kind::AuthenticationFailed, _) => {
                ("WrongPassword", ErrorKind::Refused, Consequence::Reconnect)
            }
            (Kind::Server(ServerErrorKind::ReadOnly), _) => ("ReadOnly", ErrorKind::Refused, Consequence::Reconnect),
            (Kind::Server(ServerErrorKind::NoPerm), _) => ("NoPermission", ErrorKind::Refused, Consequence::None),
            (Kind::Server(ServerErrorKind::BusyLoading), _) => ("Loading", ErrorKind::Refused, Consequence::Failure),
            (Kind::Server(ServerErrorKind::MasterDown | ServerErrorKind::ClusterDown), _) => {
                ("MasterDown", ErrorKind::Refused, Consequence::Failure)
            }
            // A Lua script or a save that Redis can not interrupt.
            (_, Some("BUSY")) => ("Slow", ErrorKind::Refused, Consequence::Failure),
            (Kind::Server(_) | Kind::Extension, _) => ("Refused", ErrorKind::Refused, Consequence::None),
            // What comes next over this connection may be the answer to another question.
            (NO_ANSWER, _) => ("Corrupt", ErrorKind::Corrupt, Consequence::Reconnect),
            _ => ("Unreachable", ErrorKind::Unreachable, Consequence::Reconnect),
        };
        Self::new(reason, kind, consequence, error.to_string())
    }
}

impl From<Trouble> for LayerError {
    fn from(trouble: Trouble) -> Self {
        let Trouble { kind, message, untouched, .. } = trouble;
        Self { layer: LayerId::Redis, kind, message, untouched }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use redis::{Value, parse_redis_value};

    use super::*;

    fn of_reply(reply: &str) -> Trouble {
        let value = parse_redis_value(format!("-{reply}\r\n").as_bytes()).unwrap();
        let Value::ServerError(error) = value else { panic!("{reply} is an error") };
        Trouble::from(&RedisError::from(error))
    }

    #[test]
    fn every_refusal_has_its_reason_and_only_a_redis_that_does_not_work_counts_for_the_breaker() {
        use Consequence::{Failure, None, Reconnect};
        for (reply, reason, kind, consequence) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", "OutOfMemory", ErrorKind::Full, None),
            ("READONLY You can't write against a read only replica.", "ReadOnly", ErrorKind::Refused, Reconnect),
            ("NOPERM this user has no permissions", "NoPermission", ErrorKind::Refused, None),
            ("NOAUTH Authentication required.", "WrongPassword", ErrorKind::Refused, Reconnect),
            ("WRONGPASS invalid username-password pair", "WrongPassword", ErrorKind::Refused, Reconnect),
            ("LOADING Redis is loading the dataset in memory", "Loading", ErrorKind::Refused, Failure),
            ("MASTERDOWN Link with MASTER is down", "MasterDown", ErrorKind::Refused, Failure),
            ("MISCONF Redis is configured to save RDB snapshots", "WritesRefused", ErrorKind::Refused, None),
            ("BUSY Redis is busy running a script.", "Slow", ErrorKind::Refused, Failure),
            ("WRONGTYPE Operation against a key", "Refused", ErrorKind::Refused, None),
            ("ERR unknown command", "Refused", ErrorKind::Refused, None),
        ] {
            let trouble = of_reply(reply);
            assert_eq!((trouble.reason, trouble.kind, trouble.consequence), (reason, kind, consequence), "{reply}");
        }
    }

    #[test]
    fn an_answer_that_is_none_ends_the_connection_since_all_that_follow_may_be_out_of_step() {
        assert_eq!(all_of(2, vec!["a", "b"]).unwrap(), ["a", "b"]);
        let short = Trouble::from(&all_of(2, vec!["a"]).unwrap_err());
        for trouble in [short, Trouble::no_answer("the place of a record makes no sense")] {
            assert_eq!(
                (trouble.reason, trouble.kind, trouble.consequence),
                ("Corrupt", ErrorKind::Corrupt, Consequence::Reconnect)
            );
        }
    }

    #[test]
    fn a_broken_connection_is_unreachable() {
        let trouble = Trouble::from(&RedisError::from(io::Error::from(io::ErrorKind::ConnectionReset)));
        assert_eq!((trouble.reason, trouble.consequence), ("Unreachable", Consequence::Reconnect));
    }
}
