//! The options of SET and of the EXPIRE family, parsed once into what they mean.

use std::time::Duration;

use super::{error, table::Verb};
use crate::{
    clock::UnixMillis,
    entry::{TAGS_MAX, TagSet},
    protocol::{Arguments, parse_i64},
};

/// When a value may be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Existing {
    /// Whatever is there.
    #[default]
    Any,
    /// NX.
    Absent,
    /// XX.
    Present,
}

/// What becomes of the key's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Life {
    /// It lives until evicted.
    #[default]
    Unlimited,
    /// KEEPTTL.
    Kept,
    /// Until a moment, which may be past.
    Until(UnixMillis),
}

/// `SET key value [NX|XX] [GET] [EX s|PX ms|EXAT s|PXAT ms|KEEPTTL]`, from the fourth word on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SetOptions {
    pub existing: Existing,
    pub life: Life,
    /// Whether the life was given from now on, and not as a moment.
    pub relative: bool,
    /// Whether the old value is the reply.
    pub get: bool,
}

/// `TC.SET key value [NX|XX] [EX s|PX ms|EXAT s|PXAT ms] [TAGS n tag …] [STALE ms] [NEGATIVE]`, from the fourth word on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OwnSetOptions {
    pub set: SetOptions,
    pub tags: TagSet,
    /// How long the value may be served after its expiry.
    pub stale: Option<Duration>,
    /// Whether this says that there is no value.
    pub negative: bool,
}

/// The words of SET as they come.
#[derive(Default)]
struct SetWords<'a> {
    options: SetOptions,
    expiry: Option<(TimeUnit, &'a [u8])>,
}

/// On which present life an expiry may be set. Words may be combined as in Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ExpireCondition {
    pub nx: bool,
    pub xx: bool,
    pub gt: bool,
    pub lt: bool,
}

/// How a number becomes a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeUnit {
    seconds: bool,
    absolute: bool,
}

/// What most tags take with their length. More is fine; it only has to be made room for.
const USUAL_TAG_BYTES: usize = 32;

/// Longest stale life: 30 days.
const STALE_MS_MAX: u64 = 30 * 24 * 3600 * 1000;

/// Milliseconds since 1970 that may lie before it, as EXPIRE allows.
pub(super) type SignedMillis = i64;

// === impl SetOptions ===

impl SetOptions {
    /// Parses the words after the value.
    ///
    /// # Errors
    /// The text of the reply.
    pub(super) fn parse(args: &Arguments<'_>, now: UnixMillis) -> Result<Self, String> {
        let mut taken = SetWords::default();
        let mut words = args.from(3);
        while let Some(word) = words.next() {
            taken.take(word, &mut words)?;
        }
        taken.finish("set", now)
    }
}

// === impl OwnSetOptions ===

impl OwnSetOptions {
    /// Parses the words after the value.
    ///
    /// # Errors
    /// The text of the reply.
    pub(super) fn parse(args: &Arguments<'_>, now: UnixMillis) -> Result<Self, String> {
        Self::parse_from("tc.set", args, 3, now)
    }

    /// Parses the words of TC.FILL after the value, which knows no NX and no XX.
    ///
    /// # Errors
    /// The text of the reply.
    pub(super) fn parse_fill(args: &Arguments<'_>, now: UnixMillis) -> Result<Self, String> {
        let own = Self::parse_from("tc.fill", args, 4, now)?;
        if own.set.existing != Existing::Any {
            return Err(error::SYNTAX.to_owned());
        }
        Ok(own)
    }

    /// Parses the words from `first` on, which come after the value.
    fn parse_from(command: &str, args: &Arguments<'_>, first: usize, now: UnixMillis) -> Result<Self, String> {
        let mut own = Self::default();
        let mut taken = SetWords::default();
        let mut words = args.from(first);
        while let Some(word) = words.next() {
            if word.eq_ignore_ascii_case(b"tags") {
                own.take_tags(&mut words)?;
            } else if word.eq_ignore_ascii_case(b"stale") {
                own.stale = Some(stale_life(words.next().ok_or(error::SYNTAX)?)?);
            } else if word.eq_ignore_ascii_case(b"negative") {
                own.negative = true;
            } else {
                taken.take(word, &mut words)?;
            }
        }
        own.set = taken.finish(command, now)?;
        if own.set.get || own.set.life == Life::Kept {
            return Err(error::SYNTAX.to_owned());
        }
        if own.stale.is_some() && own.set.life == Life::Unlimited && !own.negative {
            return Err("ERR STALE begins at the expiry, so it needs EX, PX, EXAT or PXAT".to_owned());
        }
        if own.negative && !args.at(first - 1).is_empty() {
            return Err("ERR NEGATIVE says that there is no value, so the value must be empty".to_owned());
        }
        Ok(own)
    }

    fn take_tags<'a>(&mut self, words: &mut impl Iterator<Item = &'a [u8]>) -> Result<(), String> {
        let word = words.next().ok_or(error::SYNTAX)?;
        let count = parse_i64(word).and_then(|count| usize::try_from(count).ok());
        let count = count
            .filter(|count| (1..=TAGS_MAX).contains(count))
            .ok_or_else(|| format!("ERR number of TAGS is '{}'; it must be 1 to {TAGS_MAX}", error::quoted(word)))?;
        if self.tags.tags().is_empty() {
            self.tags = TagSet::with_capacity(count * USUAL_TAG_BYTES);
        }
        for _ in 0..count {
            let tag = words.next().ok_or_else(|| format!("ERR TAGS announces {count} tags, and fewer follow"))?;
            self.tags.add(tag).map_err(|error| format!("ERR {error}"))?;
        }
        Ok(())
    }
}

/// A time of 1 to `max` milliseconds; none if the word is not one.
pub(super) fn millis_within(word: &[u8], max: u64) -> Option<Duration> {
    let ms = parse_i64(word).and_then(|ms| u64::try_from(ms).ok());
    ms.filter(|ms| (1..=max).contains(ms)).map(Duration::from_millis)
}

fn stale_life(word: &[u8]) -> Result<Duration, String> {
    millis_within(word, STALE_MS_MAX)
        .ok_or_else(|| format!("ERR STALE is '{}'; it must be 1 to {STALE_MS_MAX} ms", error::quoted(word)))
}

// === impl SetWords ===

impl<'a> SetWords<'a> {
    /// Takes one word, and the next if they belong together.
    fn take(&mut self, word: &[u8], words: &mut impl Iterator<Item = &'a [u8]>) -> Result<(), String> {
        let Self { options, expiry } = self;
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        if is("nx") && options.existing != Existing::Present {
            options.existing = Existing::Absent;
        } else if is("xx") && options.existing != Existing::Absent {
            options.existing = Existing::Present;
        } else if is("get") {
            options.get = true;
        } else if is("keepttl") && expiry.is_none() {
            options.life = Life::Kept;
        } else {
            let unit = TimeUnit::of_option(word).ok_or(error::SYNTAX)?;
            let other_life = options.life == Life::Kept || expiry.is_some_and(|(earlier, _)| earlier != unit);
            let amount = words.next().filter(|_| !other_life).ok_or(error::SYNTAX)?;
            *expiry = Some((unit, amount));
        }
        Ok(())
    }

    fn finish(self, command: &str, now: UnixMillis) -> Result<SetOptions, String> {
        let mut options = self.options;
        if let Some((unit, amount)) = self.expiry {
            let amount = parse_i64(amount).ok_or(error::NOT_INTEGER)?;
            let at = unit.moment(amount, now).filter(|_| amount > 0);
            let at = at.ok_or_else(|| error::invalid_expiry(command))?;
            options.life = Life::Until(UnixMillis(at.unsigned_abs()));
            options.relative = !unit.absolute;
        }
        Ok(options)
    }
}

// === impl ExpireCondition ===

impl ExpireCondition {
    /// Parses the words after the time.
    ///
    /// # Errors
    /// The text of the reply.
    pub(super) fn parse(args: &Arguments<'_>) -> Result<Self, String> {
        let mut condition = Self::default();
        for word in args.from(3) {
            match word.to_ascii_lowercase().as_slice() {
                b"nx" => condition.nx = true,
                b"xx" => condition.xx = true,
                b"gt" => condition.gt = true,
                b"lt" => condition.lt = true,
                _ => return Err(format!("ERR Unsupported option {}", error::quoted(word))),
            }
        }
        if condition.nx && (condition.xx || condition.gt || condition.lt) {
            return Err(error::NX_WITH_OTHERS.to_owned());
        }
        if condition.gt && condition.lt {
            return Err(error::GT_WITH_LT.to_owned());
        }
        Ok(condition)
    }

    /// Whether a key that expires at `current` may be given the expiry `at`. No expiry counts as the end of time.
    pub(super) fn allows(self, current: Option<UnixMillis>, at: SignedMillis) -> bool {
        let current = current.map(|current| i64::try_from(current.0).unwrap_or(i64::MAX));
        !(self.nx && current.is_some()
            || self.xx && current.is_none()
            || self.gt && current.is_none_or(|current| at <= current)
            || self.lt && current.is_some_and(|current| at >= current))
    }
}

// === impl TimeUnit ===

impl TimeUnit {
    fn of_option(word: &[u8]) -> Option<Self> {
        match word.to_ascii_lowercase().as_slice() {
            b"ex" => Some(Self { seconds: true, absolute: false }),
            b"px" => Some(Self { seconds: false, absolute: false }),
            b"exat" => Some(Self { seconds: true, absolute: true }),
            b"pxat" => Some(Self { seconds: false, absolute: true }),
            _ => None,
        }
    }

    /// The unit of a command of the EXPIRE family.
    pub(super) fn of_command(verb: Verb) -> Self {
        Self {
            seconds: matches!(verb, Verb::Expire | Verb::Expireat),
            absolute: matches!(verb, Verb::Expireat | Verb::Pexpireat),
        }
    }

    /// The moment that `amount` means, unless it is out of range.
    pub(super) fn moment(self, amount: i64, now: UnixMillis) -> Option<SignedMillis> {
        let ms = if self.seconds { amount.checked_mul(1000)? } else { amount };
        if self.absolute { Some(ms) } else { ms.checked_add(i64::try_from(now.0).ok()?) }
    }
}
