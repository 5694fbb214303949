//! The creation time of a record: RFC 3339 text that is written back as it was read.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::tz::Offset;
use jiff::{Timestamp, civil};
use serde::ser::{Serialize, Serializer};

use crate::error::{Error, ErrorKind, Result};

/// `0001-01-01T00:00:00Z`, Go's zero time, in seconds since the epoch.
const GO_ZERO: i64 = -62_135_596_800;

/// `0000-01-01T00:00:00Z`, the first moment that Go can write.
const FIRST: i64 = GO_ZERO - 366 * 86_400;

/// A point in time with nanoseconds. The text of another program that this one would write differently (an offset,
/// trailing zeros) is kept and written back unchanged.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Time {
    seconds: i64,
    nanoseconds: u32,
    /// The original text, if it differs from the text of the value.
    original: Option<Box<str>>,
}

impl Time {
    /// The current time.
    pub(crate) fn now() -> Self {
        SystemTime::now().into()
    }

    /// The time as the standard library has it.
    pub(crate) fn system_time(&self) -> SystemTime {
        let whole = Duration::from_secs(self.seconds.unsigned_abs());
        let base = if self.seconds < 0 {
            UNIX_EPOCH.checked_sub(whole)
        } else {
            UNIX_EPOCH.checked_add(whole)
        };
        base.and_then(|base| base.checked_add(Duration::from_nanos(self.nanoseconds.into())))
            .unwrap_or(UNIX_EPOCH)
    }

    /// Seconds and nanoseconds since the epoch; `None` for a time that Go cannot write, outside of the years 0 to 9999.
    pub(crate) fn at(seconds: i64, nanoseconds: u32) -> Option<Self> {
        let timestamp = Timestamp::new(seconds, i32::try_from(nanoseconds).ok()?).ok()?;
        (seconds >= FIRST && timestamp.as_second() == seconds).then_some(Self {
            seconds,
            nanoseconds,
            original: None,
        })
    }

    /// Seconds since the epoch, and nanoseconds that count on from there.
    pub(crate) fn since_epoch(&self) -> (i64, u32) {
        (self.seconds, self.nanoseconds)
    }

    /// Whether this is Go's zero time, which stands for "unknown".
    pub(crate) fn is_go_zero(&self) -> bool {
        self.seconds == GO_ZERO && self.nanoseconds == 0
    }

    /// Whether Go also writes it as JSON: not with an offset of a day.
    pub(crate) fn is_written_by_go(&self) -> bool {
        let text = self.original.as_deref().unwrap_or_default();
        let offset = text.len().checked_sub(6).and_then(|at| text.get(at..));
        let Some(offset) = offset.and_then(|text| text.strip_prefix(['+', '-'])) else {
            return true;
        };
        let hours = digits(offset, 2).zip(digits(offset.get(3..).unwrap_or_default(), 2));
        hours.is_none_or(|((hours, _), (minutes, _))| hours * 60 + minutes < 24 * 60)
    }

    fn timestamp(&self) -> Timestamp {
        let nanoseconds = i32::try_from(self.nanoseconds).unwrap_or(0);
        Timestamp::new(self.seconds, nanoseconds).unwrap_or(Timestamp::MAX)
    }
}

impl Default for Time {
    /// Go's zero time.
    fn default() -> Self {
        Self {
            seconds: GO_ZERO,
            nanoseconds: 0,
            original: None,
        }
    }
}

impl From<SystemTime> for Time {
    /// Times before the year 0 or after 9999 become the first or last that can be written.
    fn from(time: SystemTime) -> Self {
        let timestamp = Timestamp::try_from(time).unwrap_or(if time < UNIX_EPOCH {
            Timestamp::MIN
        } else {
            Timestamp::MAX
        });
        // The nanoseconds count on from the whole second below, also before the epoch.
        let nanoseconds = timestamp.as_nanosecond();
        let whole = |value: i128| i64::try_from(value).unwrap_or(GO_ZERO);
        let (seconds, rest) = (
            whole(nanoseconds.div_euclid(1_000_000_000)),
            nanoseconds.rem_euclid(1_000_000_000),
        );
        if seconds < FIRST {
            return Self {
                seconds: FIRST,
                nanoseconds: 0,
                original: None,
            };
        }
        Self {
            seconds,
            nanoseconds: u32::try_from(rest).unwrap_or(0),
            original: None,
        }
    }
}

/// Splits `count` digits off the front.
fn digits(text: &str, count: usize) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at_checked(count)?;
    let value = digits.bytes().try_fold(0u32, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    });
    Some((value?, rest))
}

/// `YYYY-MM-DDTHH:MM:SS[.fraction](Z|±HH:MM)`: what Go accepts, no more. Beyond RFC 3339 that is an hour of one digit, a
/// comma for the point, and an offset of 24 hours or 60 minutes.
fn parse(text: &str) -> Option<Time> {
    let (year, rest) = digits(text, 4)?;
    let (month, rest) = digits(rest.strip_prefix('-')?, 2)?;
    let (day, rest) = digits(rest.strip_prefix('-')?, 2)?;
    let rest = rest.strip_prefix('T')?;
    let (hour, rest) = digits(rest, 2).or_else(|| digits(rest, 1))?;
    let (minute, rest) = digits(rest.strip_prefix(':')?, 2)?;
    let (second, mut rest) = digits(rest.strip_prefix(':')?, 2)?;
    let (mut nanoseconds, mut fraction_length) = (0, 0);
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
        // Finer than nanoseconds is cut off.
        let (value, _) = digits(fraction, length.min(9))?;
        if length == 0 {
            return None;
        }
        nanoseconds = value * 10u32.pow(9 - u32::try_from(length.min(9)).ok()?);
        rest = fraction.get(length..)?;
        fraction_length = length;
    }
    let offset = if rest == "Z" {
        0
    } else {
        let sign = match rest.chars().next()? {
            '+' => 1,
            '-' => -1,
            _ => return None,
        };
        let (hours, rest) = digits(rest.get(1..)?, 2)?;
        let (minutes, rest) = digits(rest.strip_prefix(':')?, 2)?;
        if hours > 24 || minutes > 60 || !rest.is_empty() {
            return None;
        }
        sign * i32::try_from(hours * 3600 + minutes * 60).ok()?
    };
    let small = |value: u32| i8::try_from(value).ok();
    let civil = civil::DateTime::new(
        i16::try_from(year).ok()?,
        small(month)?,
        small(day)?,
        small(hour)?,
        small(minute)?,
        small(second)?,
        0,
    )
    .ok()?;
    let timestamp = Offset::UTC.to_timestamp(civil);
    // What the value gives: UTC, and no more digits than the fraction needs.
    let usual = timestamp.is_ok()
        && text.ends_with('Z')
        && text.as_bytes().get(13) == Some(&b':')
        && !text.contains(',')
        && fraction_length <= 9
        && (fraction_length == 0 || !text.ends_with("0Z"));
    // The last day of 9999 is beyond a timestamp's range.
    let epoch = civil::date(1970, 1, 1).at(0, 0, 0, 0);
    let seconds = civil.duration_since(epoch).as_secs() - i64::from(offset);
    let mut time = Time {
        seconds,
        nanoseconds,
        original: None,
    };
    if !usual {
        time.original = Some(text.into());
    }
    Some(time)
}

impl FromStr for Time {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text)
            .ok_or_else(|| ErrorKind::InvalidInput.err(format!("{text:?} is not a time as in RFC 3339")))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.original {
            Some(text) => f.write_str(text),
            None => write!(f, "{}", self.timestamp()),
        }
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_stays_as_it_was_written() {
        for (text, seconds, nanoseconds) in [
            ("0001-01-01T00:00:00Z", GO_ZERO, 0),
            ("1970-01-01T00:00:00Z", 0, 0),
            ("1969-12-31T23:59:59.5Z", -1, 500_000_000),
            ("2024-06-19T19:22:45.123456789Z", 1_718_824_965, 123_456_789),
            ("2024-06-19T21:22:45.1+02:00", 1_718_824_965, 100_000_000),
            ("2024-06-19T21:22:45.10+02:00", 1_718_824_965, 100_000_000),
            ("2024-06-19T14:52:45.0000000019-04:30", 1_718_824_965, 1),
            ("0000-01-01T00:00:00Z", FIRST, 0),
            ("2024-02-29T00:00:00+00:00", 1_709_164_800, 0),
            ("2024-02-29T0:00:00Z", 1_709_164_800, 0),
            ("2024-02-29T00:00:00,5Z", 1_709_164_800, 500_000_000),
            ("2024-02-29T00:00:00+24:00", 1_709_078_400, 0),
            ("2024-02-29T01:00:00+00:60", 1_709_164_800, 0),
        ] {
            let time: Time = text.parse().unwrap();
            assert_eq!((time.seconds, time.nanoseconds), (seconds, nanoseconds), "{text}");
            assert_eq!(time.to_string(), text);
            let again = Time::from(time.system_time());
            assert_eq!(
                (again.seconds, again.nanoseconds),
                (seconds, nanoseconds),
                "{text}"
            );
        }
        assert!(
            "9999-12-31T23:59:59.999999999Z"
                .parse::<Time>()
                .unwrap()
                .to_string()
                .ends_with("59.999999999Z")
        );
        assert!(Time::default().is_go_zero() && !Time::now().is_go_zero());
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for bad in [
            "",
            "2024-06-19",
            "2024-06-19 19:22:45Z",
            "2024-06-19T19:22:45",
            "2024-06-19T19:22:45.Z",
            "2024-06-19T19:22:45,Z",
            "2024-06-19T:22:45Z",
            "2024-06-19T19:2:45Z",
            "2024-06-19T19:22:45+00:61",
            "2024-06-19t19:22:45z",
            "2024-06-19T19:22Z",
            "2024-02-30T19:22:45Z",
            "2024-06-19T24:22:45Z",
            "2024-06-19T19:22:45+0200",
            "2024-06-19T19:22:45+02:00x",
            "2024-06-19T19:22:45Zx",
            "+024-06-19T19:22:45Z",
            "12024-06-19T19:22:45Z",
            "2024-06-19T19:22:45€",
            "2024-06-1€T19:22:45Z",
        ] {
            assert_eq!(
                bad.parse::<Time>().unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{bad}"
            );
        }
    }

    #[test]
    fn times_that_go_cannot_write_become_the_nearest() {
        let far = UNIX_EPOCH + Duration::from_secs(400_000_000_000);
        assert!(Time::from(far).to_string().starts_with("9999-12-"));
        let early = UNIX_EPOCH - Duration::from_secs(100_000_000_000);
        assert_eq!(Time::from(early).to_string(), "0000-01-01T00:00:00Z");
    }

    proptest! {
        #[test]
        fn any_time_comes_back(seconds in FIRST..253_402_207_000i64, nanoseconds in 0u32..1_000_000_000) {
            let time = Time { seconds, nanoseconds, original: None };
            prop_assert_eq!(&Time::from(time.system_time()), &time);
            prop_assert_eq!(&time.to_string().parse::<Time>().unwrap(), &time);
        }

        #[test]
        fn only_unusual_text_is_kept(
            text in "(0000|2024|9999)-(01|02|12)-(01|29|30|31)T(0|00|22|23|24):(00|59):(00|59|60)([.,][019]{1,11})?\
                (Z|[+-](00|23):(00|59))"
        ) {
            if let Ok(time) = text.parse::<Time>() {
                prop_assert_eq!(time.to_string(), text.clone());
                prop_assert_eq!(time.original.is_some(), time.timestamp().to_string() != text);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9T:.Z+\\-€]{0,40}") {
            if let Ok(time) = text.parse::<Time>() {
                prop_assert_eq!(time.to_string(), text);
            }
        }
    }
}
