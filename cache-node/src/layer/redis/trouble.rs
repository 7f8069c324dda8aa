//! What an error of Redis or of its connection means: for the caller, for the breaker, for health.

use redis::{RedisError, ServerErrorKind};

use crate::layer::{ErrorKind, LayerError, LayerId};

/// What went wrong, in the words of this layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Stable word for health.
    pub(super) reason: &'static str,
    pub(super) kind: ErrorKind,
    pub(super) message: String,
    pub(super) consequence: Consequence,
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

    const fn new(reason: &'static str, kind: ErrorKind, consequence: Consequence, message: String) -> Self {
        Self { reason, kind, message, consequence }
    }
}

impl From<&RedisError> for Trouble {
    fn from(error: &RedisError) -> Self {
        use redis::ErrorKind as Kind;
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
            _ => ("Unreachable", ErrorKind::Unreachable, Consequence::Reconnect),
        };
        Self::new(reason, kind, consequence, error.to_string())
    }
}

impl From<Trouble> for LayerError {
    fn from(trouble: Trouble) -> Self {
        Self { layer: LayerId::Redis, kind: trouble.kind, message: trouble.message }
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
    fn a_broken_connection_is_unreachable() {
        let trouble = Trouble::from(&RedisError::from(io::Error::from(io::ErrorKind::ConnectionReset)));
        assert_eq!((trouble.reason, trouble.consequence), ("Unreachable", Consequence::Reconnect));
    }
}
