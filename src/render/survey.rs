//! What `init` has written.

use super::markdown::{code, fenced};

/// The file, to be copied from a job's summary.
pub fn markdown(name: &str, text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    format!("## A first configuration: {}\n\n{}", code(name), fenced(&lines))
}
