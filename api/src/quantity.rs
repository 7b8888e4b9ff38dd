//! Resource quantities: exact decimal numbers with a suffix, `100m`, `1.5Gi`, `2e3`.
//!
//! The value is kept as an integer of nano units (10^-9), the smallest step that the API allows: finer digits round
//! up. That is exact in 128 bits for every quantity the format can hold usefully (up to about 10^29). The canonical form is
//! the one Kubernetes prints: no fraction, the largest suffix that needs none, in the family (binary, decimal,
//! exponent) that the quantity was written in.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Neg, Sub};

/// The family of suffixes a quantity is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `Ki`, `Mi`, ...
    Binary,
    /// `m`, none, `k`, `M`, ...
    #[default]
    Decimal,
    /// `e3`, `e6`, ...
    Exponent,
}

const NANO: i128 = 1_000_000_000;

/// One quantity. Ordered and compared by value: `1` equals `1000m`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The text is not a quantity. The message is the one clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::Decimal };

    /// A whole number of units.
    pub fn from_units(units: i64, format: Format) -> Self {
        Quantity { nanos: i128::from(units) * NANO, format }
    }

    /// A number of thousandths.
    pub fn from_millis(millis: i64, format: Format) -> Self {
        Quantity { nanos: i128::from(millis) * 1_000_000, format }
    }

    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Format);
        }
        let (negative, digits) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
        let (number, suffix) = digits.split_at(end);
        if number.is_empty() || !is_suffix_shaped(suffix) {
            return Err(QuantityError::Format);
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(QuantityError::Format);
        }
        let (scale, format) = Scale::of(suffix).ok_or(QuantityError::Suffix)?;
        // Only the binary family ends at 2^63 (as upstream); the others go on as far as they are exact here.
        let most = if format == Format::Binary { MAX_BINARY } else { MAX };
        let nanos = scaled(whole, fraction, scale).min(most);
        Ok(Quantity { nanos: if negative { -nanos } else { nanos }, format })
    }

    /// The quantity in a JSON value: a string (blanks around it do not count, as upstream) or a number.
    ///
    /// # Errors
    /// As [`Quantity::parse`]; what is neither is no quantity.
    pub fn read(value: &serde_json::Value) -> Result<Self, QuantityError> {
        match value {
            serde_json::Value::String(text) => Self::parse(text.trim_matches([' ', '\t', '\n', '\r'])),
            other => Self::parse(&other.to_string()),
        }
    }

    /// As [`Quantity::read`]; None for what is no quantity.
    pub fn from_value(value: &serde_json::Value) -> Option<Self> {
        Self::read(value).ok()
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Units, rounded up (away from zero).
    pub fn value(&self) -> i64 {
        clamp(div_up(self.nanos, NANO))
    }

    /// Thousandths, rounded up (away from zero).
    pub fn milli_value(&self) -> i64 {
        clamp(div_up(self.nanos, 1_000_000))
    }

    pub fn sign(&self) -> Ordering {
        self.nanos.cmp(&0)
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is a whole number of units.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// Rounded up (away from zero) to thousandths.
    pub fn rounded_to_millis(self) -> Self {
        Quantity { nanos: div_up(self.nanos, 1_000_000) * 1_000_000, ..self }
    }

    /// The ratio of two quantities, for limits on it.
    pub fn ratio(&self, other: &Quantity) -> f64 {
        self.nanos as f64 / other.nanos as f64
    }
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

fn div_up(n: i128, by: i128) -> i128 {
    let (quotient, rest) = (n / by, n % by);
    if rest == 0 { quotient } else { quotient + n.signum() }
}

fn is_suffix_shaped(suffix: &str) -> bool {
    let letters_end = suffix.find(|c: char| !"eEinumkKMGTP".contains(c)).unwrap_or(suffix.len());
    let rest = &suffix[letters_end..];
    let rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    rest.bytes().all(|c| c.is_ascii_digit())
}

enum Scale {
    Binary(u32),
    Decimal(i32),
}

impl Scale {
    fn of(suffix: &str) -> Option<(Scale, Format)> {
        if let Some((_, bits)) = BINARY.iter().find(|(name, _)| *name == suffix) {
            return Some((Scale::Binary(*bits), Format::Binary));
        }
        if let Some((_, exp)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
            return Some((Scale::Decimal(*exp), Format::Decimal));
        }
        let exponent = suffix.strip_prefix(['e', 'E'])?;
        Some((Scale::Decimal(exponent.parse().ok()?), Format::Exponent))
    }
}

/// `whole.fraction` times the scale, in nanos; rounds up what is finer, saturates what is larger than can be held.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    // A digit beyond these adds nothing that the result could hold.
    const DIGITS_MAX: usize = 36;
    let (multiplier, exp) = match scale {
        Scale::Binary(bits) => (1i128 << bits, 0),
        // Far beyond either end the result is the same: the largest quantity, or the smallest.
        Scale::Decimal(exp) => (1, exp.clamp(-1000, 1000)),
    };
    let kept = &fraction[..fraction.len().min(DIGITS_MAX.saturating_sub(whole.len().min(DIGITS_MAX)))];
    let lost = fraction[kept.len()..].bytes().any(|c| c != b'0');
    let mantissa =
        whole.bytes().chain(kept.bytes()).try_fold(0i128, |n, c| n.checked_mul(10)?.checked_add(i128::from(c - b'0')));
    let Some(mantissa) = mantissa.and_then(|m| m.checked_mul(multiplier)) else { return MAX };
    let power = 9 + exp - kept.len() as i32;
    let nanos = if power >= 0 {
        u32::try_from(power)
            .ok()
            .and_then(|p| 10i128.checked_pow(p))
            .and_then(|p| mantissa.checked_mul(p))
            .unwrap_or(if mantissa == 0 { 0 } else { MAX })
    } else {
        match 10i128.checked_pow(power.unsigned_abs()) {
            Some(divisor) => div_up(mantissa, divisor),
            None => i128::from(mantissa != 0),
        }
    };
    if lost && nanos == 0 { 1 } else { nanos.min(MAX) }
}

/// The largest quantity of the binary family: 2^63-1 units.
const MAX_BINARY: i128 = i64::MAX as i128 * NANO;
/// The largest of the others: 10^29 units.
const MAX: i128 = 10i128.pow(38);

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole_kibis = self.nanos % (1024 * NANO) == 0;
        let format = match self.format {
            // Below a kibi, or with a fraction, the binary family has no suffix: the decimal one does.
            Format::Binary if self.nanos.abs() >= 1024 * NANO && self.nanos % NANO == 0 => Format::Binary,
            Format::Binary => Format::Decimal,
            other => other,
        };
        if format == Format::Binary {
            let mut units = self.nanos / NANO;
            let mut suffix = "";
            if whole_kibis {
                for (name, _) in BINARY {
                    if units % 1024 != 0 {
                        break;
                    }
                    units /= 1024;
                    suffix = name;
                }
            }
            return write!(f, "{units}{suffix}");
        }
        let (mut mantissa, mut exp) = (self.nanos, -9);
        // The exponents go on where the letters end.
        while mantissa % 1000 == 0 && (exp < 18 || format == Format::Exponent) {
            mantissa /= 1000;
            exp += 3;
        }
        match format {
            Format::Exponent if exp != 0 => write!(f, "{mantissa}e{exp}"),
            _ => {
                let suffix = DECIMAL.iter().find(|(_, e)| *e == exp).map_or("", |(name, _)| name);
                write!(f, "{mantissa}{suffix}")
            }
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The sum keeps the format of the left side, unless that is zero.
impl Add for Quantity {
    type Output = Quantity;
    fn add(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}
impl Sub for Quantity {
    type Output = Quantity;
    fn sub(self, other: Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_sub(other.nanos), format }
    }
}
impl Neg for Quantity {
    type Output = Quantity;
    fn neg(self) -> Self {
        Quantity { nanos: -self.nanos, ..self }
    }
}
impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Quantity>>(iter: I) -> Self {
        iter.fold(Quantity::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, expect) in [
            ("0", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("100000", "100k"),
            ("1e3", "1e3"),
            ("1000e3", "1e6"),
            ("1E", "1E"),
            ("0.5Gi", "512Mi"),
            ("0.5Ki", "512"),
            ("100n", "100n"),
            ("0.0000000001", "1n"),
            ("-1.5", "-1500m"),
            ("+2", "2"),
            (".5", "500m"),
            ("5.", "5"),
            ("1Ki", "1Ki"),
            ("3000Ki", "3000Ki"),
            ("0.1Ki", "102400m"),
            ("010", "10"),
            ("1E3", "1e3"),
            ("10E", "10E"),
            ("100000E", "100000E"),
            ("9223372036854775808", "9223372036854775808"),
            ("12345678901234567890k", "12345678901234567890k"),
            ("1e21", "1e21"),
            ("2e25", "20e24"),
            ("-1e21", "-1e21"),
            ("8Ei", "9223372036854775807"),
            ("1e999", "100e27"),
        ] {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()), Ok(expect.to_string()), "{text}");
        }
    }

    #[test]
    fn blanks_around_a_json_text_do_not_count() {
        let check = |value: serde_json::Value, expect: Option<&str>| {
            assert_eq!(Quantity::from_value(&value).map(|q| q.to_string()).as_deref(), expect, "{value}");
        };
        check("1Gi ".into(), Some("1Gi"));
        check("\t100m\n".into(), Some("100m"));
        check("1 Gi".into(), None);
        check(" ".into(), None);
        check(serde_json::json!(1.5), Some("1500m"));
        check(serde_json::json!([1]), None);
    }

    #[test]
    fn refused() {
        for text in ["", "x", "1x", "1.2.3", ".", "1 ", " 1", "1Ki2", "1e", "--1", "Ki"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let q = |t: &str| Quantity::parse(t).expect("a quantity");
        assert_eq!((q("1") + q("500m")).to_string(), "1500m");
        assert_eq!((q("1Gi") - q("512Mi")).to_string(), "512Mi");
        assert_eq!(q("1"), q("1000m"));
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("1.1").value(), 2);
        assert_eq!(q("1.1").milli_value(), 1100);
        assert_eq!(q("99999999999999999999E").value(), i64::MAX);
        assert_eq!(q("1e2147483647").value(), i64::MAX);
        assert_eq!(q("1e-2147483648"), q("1n"));
    }
}
