//! The commands by name: how many arguments each takes, and what COMMAND tells clients about it.

/// Declares [`Verb`] and [`SPECS`] in one place, so that neither can lack a command of the other.
macro_rules! commands {
    ($($verb:ident $name:literal $arity:literal $keys:ident $group:ident $flags:literal $summary:literal;)*) => {
        /// A command, by name only.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Verb {
            $(#[doc = $summary] $verb,)*
        }

        /// All commands, in the order of [`Verb`].
        pub const SPECS: &[Spec] = &[$(Spec {
            verb: Verb::$verb,
            name: $name,
            arity: $arity,
            keys: Keys::$keys,
            group: Group::$group,
            flags: $flags,
            summary: $summary,
        },)*];

        impl Verb {
            /// Finds a command by its name in any case, without copying or allocating.
            pub fn find(name: &[u8]) -> Option<Self> {
                mod packed {
                    $(#[allow(non_upper_case_globals, reason = "named after the variants")]
                    pub(super) const $verb: u128 = super::pack($name.as_bytes());)*
                }
                if name.len() > NAME_BYTES_MAX {
                    return None;
                }
                match pack(name) {
                    $(packed::$verb => Some(Self::$verb),)*
                    _ => None,
                }
            }
        }
    };
}

/// The longest name that [`pack`] can hold.
const NAME_BYTES_MAX: usize = 16;

/// What is known about a command.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// The command.
    pub verb: Verb,
    /// Its name in lower case.
    pub name: &'static str,
    /// Number of arguments with the name; if negative, the least number.
    pub arity: i8,
    /// Which arguments are keys.
    pub keys: Keys,
    /// What it is about.
    pub group: Group,
    /// As in COMMAND INFO, separated by spaces.
    pub flags: &'static str,
    /// One line for people.
    pub summary: &'static str,
}

/// Which arguments of a command are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// None.
    None,
    /// The first.
    First,
    /// All.
    All,
    /// Every other one, from the first.
    Pairs,
}

/// What a command is about, as Redis groups them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Strings.
    String,
    /// Keys of any kind.
    Generic,
    /// The connection itself.
    Connection,
    /// The server as a whole.
    Server,
}

commands! {
    Get "get" 2 First String "readonly fast" "Returns the value of a key.";
    Set "set" -3 First String "write denyoom" "Sets the value of a key, unless a condition forbids it.";
    Mget "mget" -2 All String "readonly fast" "Returns the values of several keys.";
    Mset "mset" -3 Pairs String "write denyoom" "Sets the values of several keys.";
    Strlen "strlen" 2 First String "readonly fast" "Returns the length of a value.";
    Append "append" 3 First String "write denyoom fast" "Appends to a value.";
    Incr "incr" 2 First String "write denyoom fast" "Adds one to a number.";
    Decr "decr" 2 First String "write denyoom fast" "Takes one from a number.";
    Incrby "incrby" 3 First String "write denyoom fast" "Adds to a number.";
    Decrby "decrby" 3 First String "write denyoom fast" "Takes from a number.";
    Del "del" -2 All Generic "write" "Removes keys.";
    Unlink "unlink" -2 All Generic "write fast" "Removes keys.";
    Exists "exists" -2 All Generic "readonly fast" "Counts how many of the keys exist.";
    Expire "expire" -3 First Generic "write fast" "Sets the remaining life of a key in seconds.";
    Pexpire "pexpire" -3 First Generic "write fast" "Sets the remaining life of a key in milliseconds.";
    Expireat "expireat" -3 First Generic "write fast" "Sets when a key expires, in seconds since 1970.";
    Pexpireat "pexpireat" -3 First Generic "write fast" "Sets when a key expires, in milliseconds since 1970.";
    Ttl "ttl" 2 First Generic "readonly fast" "Returns the remaining life of a key in seconds.";
    Pttl "pttl" 2 First Generic "readonly fast" "Returns the remaining life of a key in milliseconds.";
    Persist "persist" 2 First Generic "write fast" "Lets a key live until it is evicted.";
    Ping "ping" -1 None Connection "fast" "Answers PONG, or its argument.";
    Echo "echo" 2 None Connection "fast" "Answers its argument.";
    Hello "hello" -1 None Connection "noscript loading stale fast no_auth" "Chooses the protocol and tells about the server.";
    Auth "auth" -2 None Connection "noscript loading stale fast no_auth" "Answers that no password is configured.";
    Select "select" 2 None Connection "loading stale fast" "Accepts database 0, the only one.";
    Quit "quit" -1 None Connection "noscript loading stale fast no_auth" "Closes the connection.";
    Reset "reset" 1 None Connection "noscript loading stale fast no_auth" "Brings the connection into its first state.";
    Client "client" -2 None Connection "noscript loading stale" "Names and describes the connection.";
    Command "command" -1 None Server "loading stale" "Describes the commands.";
    Config "config" -2 None Server "admin noscript loading stale" "Returns settings under the names Redis gives them, and changes the capacity of memory.";
    Dbsize "dbsize" 1 None Server "readonly fast" "Estimates the number of keys.";
    Flushall "flushall" -1 None Server "write" "Removes all keys.";
    Flushdb "flushdb" -1 None Server "write" "Removes all keys.";
    Info "info" -1 None Server "loading stale" "Describes the server and its state.";
    Slowlog "slowlog" -2 None Server "admin loading stale" "Tells which commands took long, and which layer took the time.";
    TcSet "tc.set" -3 First String "write denyoom fast" "Sets a value with tags and a stale life, or says that there is none.";
    TcTags "tc.tags" 2 First Generic "readonly fast" "Returns the tags of a key.";
    TcDel "tc.del" -2 All Generic "write" "Removes keys, and tells whether all nodes hear of it.";
    TcInvalidate "tc.invalidate" -2 None Generic "write" "Removes all entries that carry one of the tags.";
    TcInvalidateall "tc.invalidateall" -2 None Generic "write" "Removes all entries that carry every one of the tags.";
    TcGetlease "tc.getlease" -2 First String "readonly fast" "Returns the value of a key, or for one caller at a time the right to fill it.";
    TcFill "tc.fill" -4 First String "write denyoom fast" "Sets a value under a lease, unless the key has changed since.";
    TcExplain "tc.explain" 2 First Server "readonly" "Tells what every layer knows about a key.";
    TcLayers "tc.layers" 1 None Server "loading stale" "Tells how well every layer does and what it has counted.";
    TcFlush "tc.flush" 1 None Server "write" "Waits until the layers have all writes accepted so far.";
    TcWait "tc.wait" -1 None Server "write" "Waits until every node has carried out all that this one has accepted so far, and tells which have.";
    Time "time" 1 None Server "loading stale fast" "Returns the server's time.";
}

/// A name as one number, in lower case; the length shows in the position of the highest byte, because no name contains a zero or a one.
const fn pack(name: &[u8]) -> u128 {
    let mut packed = 0;
    let mut index = name.len();
    while index > 0 {
        index -= 1;
        let byte = name[index].to_ascii_lowercase();
        // A zero would be invisible at the end of a name.
        packed = packed << 8 | (if byte == 0 { 1 } else { byte }) as u128;
    }
    packed
}

// === impl Verb ===

impl Verb {
    /// What is known about it.
    pub fn spec(self) -> &'static Spec {
        &SPECS[self as usize]
    }
}

// === impl Spec ===

impl Spec {
    /// Whether it reads the values of its keys, so that a client may keep what it answers.
    pub fn reads_keys(&self) -> bool {
        self.keys != Keys::None && self.group != Group::Server && self.flags.starts_with("readonly")
    }

    /// Whether a request of `count` arguments, the name included, can be this command.
    pub const fn takes(&self, count: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { count >= least } else { count == least }
    }
}

// === impl Keys ===

impl Keys {
    /// First key, last key and step, as in COMMAND INFO; a negative last key counts from the end.
    pub const fn range(self) -> (i64, i64, i64) {
        match self {
            Self::None => (0, 0, 0),
            Self::First => (1, 1, 1),
            Self::All => (1, -1, 1),
            Self::Pairs => (1, -1, 2),
        }
    }
}

// === impl Group ===

impl Group {
    /// As in COMMAND DOCS.
    pub const fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Generic => "generic",
            Self::Connection => "connection",
            Self::Server => "server",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_by_its_name_in_any_case() {
        for spec in SPECS {
            for name in [spec.name.to_owned(), spec.name.to_uppercase()] {
                assert_eq!(Verb::find(name.as_bytes()), Some(spec.verb));
            }
            assert_eq!(spec.verb.spec().name, spec.name);
        }
        assert_eq!(Verb::find(b"gEt"), Some(Verb::Get));
    }

    #[test]
    fn nothing_but_its_name_finds_a_command() {
        for name in ["", "g", "ge", "gett", "get ", "get\0", " get", "GE\u{14}", "getgetgetgetgetgetget"] {
            assert_eq!(Verb::find(name.as_bytes()), None, "{name:?}");
        }
        assert_eq!(Verb::find(b"tc\x0eset"), None, "a dot has no other case");
    }
}
