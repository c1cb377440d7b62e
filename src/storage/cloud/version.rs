//! What tells one version of an object from another, and whether it can be held.

use http::{
    header::{DATE, ETAG, LAST_MODIFIED},
    HeaderMap, HeaderName,
};
use object_store::ObjectMeta;

/// What a server tells of the version of an object.
#[derive(Debug, Clone)]
pub struct Version {
    pub len: u64,
    pub e_tag: Option<String>,
    /// When it was changed last, as the server writes it.
    modified: Option<String>,
    /// Whether another version would be told apart. A strong tag does that. A weak one may stay the
    /// same where bytes change, so it counts together with the time of the last change, which is
    /// told in seconds: it counts once a second has passed.
    pub is_held: bool,
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        // What a strong tag says is all there is to say: machines of one store may differ in time.
        let same_time = self.strong_tag().is_some() || self.modified == other.modified;
        self.len == other.len && self.e_tag == other.e_tag && same_time
    }
}

impl Version {
    /// What a store tells.
    pub fn of(meta: &ObjectMeta) -> Self {
        let e_tag = meta.e_tag.clone().filter(|tag| !tag.is_empty());
        let modified = Some(meta.last_modified.timestamp()).filter(|&seconds| seconds != 0);
        let is_held = e_tag.is_some() || modified.is_some();
        let modified = modified.map(|seconds| seconds.to_string());
        Self { len: meta.size, e_tag, modified, is_held }
    }

    /// What a web server tells of an object of `len` bytes.
    pub fn of_headers(headers: &HeaderMap, len: u64) -> Self {
        let text = |name: HeaderName| {
            let text = headers.get(name)?.to_str().ok()?.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        let (e_tag, modified) = (text(ETAG), text(LAST_MODIFIED));
        let changed = modified.as_deref().and_then(seconds);
        let has_settled = match (changed, text(DATE).as_deref().and_then(seconds)) {
            (Some(changed), Some(now)) => changed < now,
            _ => false,
        };
        let is_held = e_tag.as_deref().is_some_and(is_strong) || has_settled;
        Self { len, e_tag, modified, is_held }
    }

    /// The tag that a server may be held to: by the rules of HTTP, none that is weak.
    pub fn strong_tag(&self) -> Option<&str> {
        self.e_tag.as_deref().filter(|tag| is_strong(tag))
    }

    /// The same for versions that are equal, and for no others.
    pub fn told(&self) -> String {
        let modified = if self.strong_tag().is_some() { None } else { self.modified.as_deref() };
        format!("{:?} {modified:?} {}", self.e_tag, self.len)
    }

    /// What names this version among all of its object; `None` where nothing does surely.
    pub fn name(&self) -> Option<String> {
        let tag = self.e_tag.as_deref().filter(|_| self.is_held)?;
        let modified = self.modified.as_deref().filter(|_| !is_strong(tag)).unwrap_or_default();
        Some(format!("{tag}\0{modified}\0{}", self.len))
    }
}

fn is_strong(tag: &str) -> bool {
    !tag.starts_with("W/") && !tag.starts_with("w/")
}

/// The seconds since 1970 of a time as HTTP writes it: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn seconds(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let mut next = || words.next();
    let day: i64 = next()?.parse().ok()?;
    let month = next()?;
    let month = MONTHS.iter().position(|&name| name == month)? as i64 + 1;
    let year: i64 = next()?.parse().ok()?;
    let mut time = next()?.split(':').map(|part| part.parse::<i64>().ok());
    let mut part = || time.next()?.filter(|part| (0..=60).contains(part));
    let (hour, minute, second) = (part()?, part()?, part()?);
    if !(1..=31).contains(&day) || !(1970..=9999).contains(&year) {
        return None;
    }
    // Years that begin in March have their leap day at the end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    Some(((days - 719_468) * 24 + hour) * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: &str = "Mon, 01 Jan 2024 12:00:00 GMT";
    const LATER: &str = "Mon, 01 Jan 2024 12:00:01 GMT";

    fn told(tag: &str, modified: &str, now: &str) -> Version {
        let pairs = [(ETAG, tag), (LAST_MODIFIED, modified), (DATE, now)];
        let pairs = pairs.into_iter().filter(|(_, value)| !value.is_empty());
        let headers = pairs.map(|(name, value)| (name, value.parse().unwrap())).collect();
        Version::of_headers(&headers, 9)
    }

    #[test]
    fn times_are_read() {
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(seconds("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        for text in ["", "Sun, ", "Sun, 06 Xxx 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:99:37"] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn a_version_is_held_by_a_strong_tag_or_a_time_that_has_passed() {
        assert!(told("\"a\"", "", "").is_held);
        assert!(told("W/\"a\"", NOON, LATER).is_held && told("", NOON, LATER).is_held);
        for (tag, modified, now) in
            [("W/\"a\"", "", ""), ("W/\"a\"", NOON, NOON), ("", NOON, ""), ("", "", NOON)]
        {
            assert!(!told(tag, modified, now).is_held, "{tag} {modified} {now}");
        }
    }

    #[test]
    fn a_weak_tag_counts_together_with_the_time() {
        assert_ne!(told("W/\"a\"", NOON, LATER), told("W/\"a\"", LATER, LATER));
        assert_eq!(told("\"a\"", NOON, LATER), told("\"a\"", LATER, LATER));
        assert_ne!(told("\"a\"", NOON, LATER), told("W/\"a\"", NOON, LATER));
        assert_eq!(told("W/\"a\"", NOON, LATER).strong_tag(), None);
        assert_eq!(told("W/\"a\"", "", "").name(), None);
        assert_ne!(
            told("W/\"a\"", NOON, LATER).name(),
            told("W/\"a\"", "Mon, 01 Jan 2024 11:00:00 GMT", LATER).name()
        );
    }
}
