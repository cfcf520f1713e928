//! What `uninstall` has removed, and what it has left.

use super::Line;
use super::text::inert;
use crate::model::wire::Uninstalled;

/// One line for everything that is gone, and one for everything that stays.
pub fn lines(report: &Uninstalled) -> Vec<Line> {
    let line = |word: &str, text: &String| Line::Text(format!("{word}  {}", inert(text)));
    let removed = report.removed.iter().map(|text| line("removed", text));
    let left = report.left.iter().map(|text| line("left   ", text));
    removed.chain(left).collect()
}
