//! Moments as people read them.

use jiff::Timestamp;

/// A moment by the second, in UTC.
pub fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}
