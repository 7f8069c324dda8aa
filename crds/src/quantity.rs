//! Sizes and durations in the forms that Kubernetes people write: `1Gi`, `30m`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes, written `64Mi`, `1Gi`, `500M` or as plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// A span of time, written `50ms`, `30s`, `15m`, `4h` or as a sum such as `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

/// A part of a whole, written as a number from 0 to 1, kept in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(pub u32);

/// Why a size or a duration can not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text is not a size.
    #[error("{0:?} is not a size; write a whole number with Ki, Mi, Gi, Ti, k, M, G or T, such as 64Mi")]
    Size(String),
    /// The text is not a duration.
    #[error("{0:?} is not a duration; write whole numbers with ms, s, m or h, such as 30s or 1h30m")]
    Duration(String),
}

const SIZE_UNITS: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

const DURATION_UNITS_MS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

// === impl Share ===

impl Share {
    /// A number from 0 to 1.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_f64())
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.as_f64())
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        if !(0.0..=1.0).contains(&number) {
            return Err(de::Error::custom(format!(
                "{number} is not a share; write a number from 0 to 1, such as 0.01"
            )));
        }
        // In the range of the type, as was just checked.
        Ok(Self((number * 1e6).round() as u32))
    }
}

// === impl ByteSize ===

impl ByteSize {
    /// So many mebibytes.
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }
}

impl FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || QuantityError::Size(text.to_owned());
        let (digits, factor) = SIZE_UNITS
            .iter()
            .find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits, *factor)))
            .unwrap_or((text, 1));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(error());
        }
        let count: u64 = digits.parse().map_err(|_| error())?;
        count.checked_mul(factor).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    /// The largest binary unit that divides the number, so that reading it back gives the same number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = SIZE_UNITS[..4].iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        match unit {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

// === impl HumanDuration ===

impl FromStr for HumanDuration {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || QuantityError::Duration(text.to_owned());
        let mut rest = text;
        let mut total_ms = 0_u64;
        if rest.is_empty() {
            return Err(error());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
            let unit = &rest[digits..digits + letters];
            let factor = DURATION_UNITS_MS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?.1;
            let count: u64 = rest[..digits].parse().map_err(|_| error())?;
            let part = count.checked_mul(factor).ok_or_else(error)?;
            total_ms = total_ms.checked_add(part).ok_or_else(error)?;
            rest = &rest[digits + letters..];
        }
        Ok(Self(Duration::from_millis(total_ms)))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, factor) in DURATION_UNITS_MS.iter().rev() {
            if rest >= *factor {
                write!(f, "{}{unit}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

// === serde ===

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

serde_as_text!(ByteSize);
serde_as_text!(HumanDuration);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_as_written() {
        for text in ["1", "64Mi", "1Gi", "1536Mi", "3Ti", "1000"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        assert_eq!("1k".parse::<ByteSize>().unwrap(), ByteSize(1000));
    }

    #[test]
    fn malformed_sizes_are_refused_with_the_text() {
        for text in ["", "Mi", "-1", "1.5Gi", "1 Mi", "1mi", "99999999999Ti", "0x10"] {
            let error = text.parse::<ByteSize>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn durations_read_back_as_written() {
        for text in ["50ms", "30s", "15m", "4h", "1h30m", "168h", "0s"] {
            assert_eq!(text.parse::<HumanDuration>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn malformed_durations_are_refused_with_the_text() {
        for text in ["", "5", "m", "7d", "-1s", "1.5h", "99999999999999999999s", "9999999999999999h"] {
            let error = text.parse::<HumanDuration>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn shares_are_numbers_from_0_to_1() {
        for (text, millionths) in [("0", 0), ("1", 1_000_000), ("0.01", 10_000), ("0.25", 250_000)] {
            let share: Share = serde_json::from_str(text).unwrap();
            assert_eq!(share, Share(millionths));
            assert_eq!(share.to_string(), text);
        }
        for text in ["-0.1", "1.1", "\"much\""] {
            assert!(serde_json::from_str::<Share>(text).is_err(), "{text}");
        }
    }
}
