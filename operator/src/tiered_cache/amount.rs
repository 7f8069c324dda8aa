//! Kubernetes' amounts (`500m`, `1.5Gi`), as far as they must be compared.

/// Suffixes and what they multiply by, in thousandths; longer ones first, so that `Mi` is not read as `M`.
const SUFFIXES: [(&str, i128); 14] = [
    ("Ki", 1000 << 10),
    ("Mi", 1000 << 20),
    ("Gi", 1000 << 30),
    ("Ti", 1000 << 40),
    ("Pi", 1000 << 50),
    ("Ei", 1000 << 60),
    ("k", 1_000_000),
    ("M", 1_000_000_000),
    ("G", 1_000_000_000_000),
    ("T", 1_000_000_000_000_000),
    ("P", 1_000_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000_000),
    ("m", 1),
    ("", 1000),
];

/// The amount in thousandths, rounded up as Kubernetes does; `None` if it is not an amount.
pub(super) fn milli(text: &str) -> Option<i128> {
    let (number, factor) = SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > 30 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let scaled = digits.parse::<i128>().ok()?.checked_mul(factor)?;
    let divisor = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    Some((scaled + divisor - 1) / divisor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_amount_has_many_forms() {
        for (left, right) in [("1Gi", "1024Mi"), ("1", "1000m"), ("1.5Gi", "1536Mi"), ("0.1", "100m"), ("2k", "2000")] {
            assert_eq!(milli(left), milli(right), "{left} {right}");
            assert!(milli(left).is_some());
        }
        assert!(milli("1G") < milli("1Gi"));
    }

    #[test]
    fn what_is_not_an_amount_is_refused() {
        for text in ["", "Mi", ".", "lots", "-1", "1 Gi", "1e3x", "99999999999999999999999999999999"] {
            assert_eq!(milli(text), None, "{text}");
        }
    }
}
