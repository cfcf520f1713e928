//! Medians, and how they compare.

use std::fmt;
use std::time::Duration;

use super::Variant;

/// What model-swap's warm median may be at most, as a multiple of the script's.
const AIM: f64 = 1.0;

/// The times of all runs at one distance.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<(Variant, Duration)>);

impl Times {
    pub(crate) fn add(&mut self, variant: Variant, took: Duration) {
        self.0.push((variant, took));
    }

    /// The times of one variant in seconds, in ascending order.
    fn of(&self, variant: Variant) -> Vec<f64> {
        let own = self.0.iter().filter(|(other, _)| *other == variant);
        let mut times: Vec<f64> = own.map(|(_, took)| took.as_secs_f64()).collect();
        times.sort_by(f64::total_cmp);
        times
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<24}{:>9}{:>9}{:>9}{:>11}", "", "median", "min", "max", "x script")?;
        let script = median(&self.of(Variant::Script));
        for variant in Variant::ALL {
            let times = self.of(variant);
            let (Some(least), Some(most)) = (times.first(), times.last()) else { continue };
            let middle = median(&times);
            let name = variant.name();
            write!(f, "{name:<24}{middle:>7.3} s{least:>7.3} s{most:>7.3} s")?;
            let ratio = middle / script;
            match variant {
                Variant::Connection => writeln!(f)?,
                Variant::Script | Variant::WaitingScript | Variant::Cold => {
                    writeln!(f, "{ratio:>11.2}")?
                }
                Variant::Warm => {
                    let verdict = if ratio <= AIM { "met" } else { "missed" };
                    writeln!(f, "{ratio:>11.2}   aim <= {AIM:.1}: {verdict}")?;
                }
            }
        }
        Ok(())
    }
}

/// The middle of sorted times.
fn median(times: &[f64]) -> f64 {
    let middle = times.len() / 2;
    let pair = [times.len().saturating_sub(1) / 2, middle];
    pair.iter().filter_map(|at| times.get(*at)).sum::<f64>() / 2.0
}

/// Bytes in millions.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
