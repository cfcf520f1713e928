//! What the past allows: which revision a rollback goes back to, and by which way. Pure.
//!
//! The service's state remembers the latest swaps; the folder of each tells its plan and what it takes to start a
//! revision again: the specification of the one that it started, a snapshot of an incumbent that it adopted.

use std::collections::BTreeMap;

use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::moment::moment;
use crate::model::outcome::Outcome;
use crate::model::plan::{Plan, Strategy};
use crate::model::replica::Revision;
use crate::model::state::{Chapter, Past, WayBack};

/// One swap of the past, with what its folder tells.
#[derive(Debug, Clone)]
pub struct Told {
    /// What the service's state remembers.
    pub past: Past,
    /// Its plan, while its journal is there.
    pub plan: Option<Plan>,
    /// Digests of revisions that can be started again from its folder.
    pub keeps: Vec<String>,
}

/// The past, as seen from now.
#[derive(Debug)]
pub struct History {
    /// Newest last.
    told: Vec<Told>,
    /// Digest of what serves.
    serves: Option<String>,
    /// Digest of what is kept warm.
    warm: Option<String>,
}

/// What a rollback was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// The swap to undo; `None`: the one that serves.
    pub of: Option<&'a SwapId>,
    /// The revision to go back to, or the beginning of its digest; `None`: what served before.
    pub to: Option<&'a str>,
}

/// What a rollback comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Course {
    /// Nothing has to change; why, one line.
    Unchanged(String),
    /// Nor has it where requests go as nginx's file says: what is wanted serves by that; one line.
    Serves(String),
    /// This revision is to serve again.
    Back(Revision, WayBack),
}

impl Told {
    /// Whether the swap was a rollback that was asked for.
    fn is_rollback(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.strategy.is_rollback())
    }

    fn before(&self) -> Option<&Revision> {
        self.plan.as_ref()?.incumbent.as_ref().map(|side| &side.revision)
    }
}

impl History {
    /// The past, newest last, with the digests of what serves and of what is kept warm now.
    pub fn new(told: Vec<Told>, serves: Option<String>, warm: Option<String>) -> Self {
        Self { told, serves, warm }
    }

    /// The revision that a rollback has to bring back.
    ///
    /// # Errors
    /// If there is none, or no way back to it.
    pub fn course(
        &self,
        wanted: Wanted<'_>,
        serving_swap: Option<&SwapId>,
    ) -> Result<Course, Failure> {
        if let Some(named) = wanted.of
            && serving_swap != Some(named)
        {
            let serves = serving_swap
                .map_or("no swap's result".to_owned(), |id| format!("the result of {id}"));
            return Ok(Course::Unchanged(format!(
                "swap {named} is not what serves now ({serves} does)"
            )));
        }
        let target = match wanted.to {
            Some(text) => self.find(text)?,
            None => match self.before_what_serves(wanted, serving_swap)? {
                Ok(revision) => revision,
                Err(reason) => return Ok(Course::Unchanged(reason)),
            },
        };
        match self.way(&target.digest) {
            WayBack::Serves => Ok(Course::Serves(format!("{target} already serves"))),
            WayBack::RolledBack(by) => Ok(Course::Unchanged(format!(
                "{target} was rolled back by {by}, and no rollback brings it back; to have it serve all the same, swap to it"
            ))),
            WayBack::NeverServed => Err(Failure::new(format!(
                "there is nothing to roll back to: {target} never served"
            ))
            .hint(self.offer())),
            WayBack::Lost => Err(Failure::new(format!(
                "there is nothing to roll back to: what it takes to start {target} again is not on the server any more"
            ))
            .hint(self.offer())
            .hint("or swap to the model that you want")),
            way @ (WayBack::Warm | WayBack::Cold(_)) => Ok(Course::Back(target, way)),
        }
    }

    /// What served before the swap that serves; or why that is not to be undone.
    fn before_what_serves(
        &self,
        wanted: Wanted<'_>,
        serving_swap: Option<&SwapId>,
    ) -> Result<Result<Revision, String>, Failure> {
        // A rollback that failed changed nothing and may be tried again.
        let failed_rollback =
            |told: &&Told| told.is_rollback() && told.past.outcome != Outcome::RolledBack;
        let last = self.told.iter().rev().find(|told| !failed_rollback(told));
        let nothing = |why: String| {
            Failure::new(format!("there is nothing to roll back to: {why}"))
                .hint("swap to the model that you want: model-swap swap --model …")
        };
        match (serving_swap, last) {
            (None, None) => Err(nothing("no swap's result serves".to_owned())),
            (None, Some(last)) if last.is_rollback() => Ok(Err(format!(
                "what serves was brought back by {}, and is not rolled back in its turn",
                last.past.swap
            ))),
            (None, Some(last)) => Ok(Err(format!(
                "no swap's result serves; the last swap, {}, ended {}",
                last.past.swap, last.past.outcome
            ))),
            // Its job cannot mean the swap before: that one is healthy.
            (Some(serving), Some(last)) if &last.past.swap != serving && wanted.of.is_none() => {
                Ok(Err(format!(
                    "the last swap, {}, ended {}, and the result of {serving} serves as before it; name {serving} as the swap to undo, if it is",
                    last.past.swap, last.past.outcome
                )))
            }
            (Some(serving), _) => {
                let told = self.told.iter().rev().find(|told| &told.past.swap == serving);
                let before = told.and_then(Told::before).cloned();
                before.map(Ok).ok_or_else(|| {
                    nothing(match told.and_then(|told| told.plan.as_ref()) {
                        Some(_) => format!("nothing served before swap {serving}"),
                        None => format!("what served before swap {serving} is not known any more"),
                    })
                })
            }
        }
    }

    /// The revision whose digest begins so, with or without what stands before the dash.
    fn find(&self, text: &str) -> Result<Revision, Failure> {
        let matches = |digest: &str| {
            digest.starts_with(text)
                || digest.split_once('-').is_some_and(|(_, hex)| hex.starts_with(text))
        };
        let found: Vec<&Revision> =
            self.revisions().into_values().filter(|revision| matches(&revision.digest)).collect();
        match found[..] {
            [one] => Ok(one.clone()),
            [] => Err(Failure::new(format!(
                "no revision in the history has a digest that begins with {text:?}"
            ))
            .hint(self.offer())),
            _ => {
                let names: Vec<_> = found.iter().map(ToString::to_string).collect();
                Err(Failure::new(format!(
                    "{text:?} is the beginning of more than one digest in the history: {}",
                    names.join(", ")
                ))
                .hint("give more of it"))
            }
        }
    }

    /// Every revision that is known, by its digest.
    fn revisions(&self) -> BTreeMap<&str, &Revision> {
        self.told
            .iter()
            .flat_map(|told| std::iter::once(&told.past.revision).chain(told.before()))
            .map(|revision| (revision.digest.as_str(), revision))
            .collect()
    }

    /// What there is to choose from, in words.
    fn offer(&self) -> String {
        let possible: Vec<String> = self
            .revisions()
            .into_values()
            .filter(|revision| {
                matches!(self.way(&revision.digest), WayBack::Warm | WayBack::Cold(_))
            })
            .map(ToString::to_string)
            .collect();
        if possible.is_empty() {
            return "no revision of the history can be gone back to now; `model-swap history` says why".to_owned();
        }
        format!("possible are {}; `model-swap history` shows them all", possible.join(", "))
    }

    /// Whether and how a revision could be made to serve.
    pub fn way(&self, digest: &str) -> WayBack {
        if self.serves.as_deref() == Some(digest) {
            return WayBack::Serves;
        }
        if let Some(by) = self.rolled_back_by(digest) {
            return WayBack::RolledBack(by.swap.clone());
        }
        if self.warm.as_deref() == Some(digest) {
            return WayBack::Warm;
        }
        if !self.told.iter().any(|told| served(told, digest)) {
            return WayBack::NeverServed;
        }
        let keeper =
            self.told.iter().rev().find(|told| told.keeps.iter().any(|kept| kept == digest));
        keeper.map_or(WayBack::Lost, |told| WayBack::Cold(told.past.swap.clone()))
    }

    /// The swap that took a revision out of service because it was bad, unless it was brought into service since.
    fn rolled_back_by(&self, digest: &str) -> Option<&Past> {
        self.told.iter().rev().find_map(|told| {
            let brought = told.past.revision.digest == digest;
            let rolled_back = told.past.outcome == Outcome::RolledBack;
            let took_away = told.before().is_some_and(|before| before.digest == digest);
            match told.plan.as_ref().map(|plan| plan.strategy) {
                _ if brought && told.past.outcome == Outcome::Promoted => Some(None),
                Some(strategy) if strategy.is_rollback() && rolled_back && brought => Some(None),
                Some(strategy) if strategy.is_rollback() && rolled_back && took_away => {
                    Some(Some(&told.past))
                }
                Some(Strategy::BlueGreen) if rolled_back && brought => Some(Some(&told.past)),
                _ => None,
            }
        })?
    }

    /// What the past has against a swap to a revision, by its digest, if anything.
    pub fn against(&self, digest: &str) -> Option<String> {
        let by = self.rolled_back_by(digest)?;
        Some(format!("this revision was rolled back by {} at {}", by.swap, moment(by.at)))
    }

    /// The past as `history` tells it, newest last.
    pub fn chapters(&self) -> Vec<Chapter> {
        let chapter = |told: &Told| Chapter {
            past: told.past.clone(),
            way: self.way(&told.past.revision.digest),
            previous: told.before().map(|before| (before.clone(), self.way(&before.digest))),
        };
        self.told.iter().map(chapter).collect()
    }
}

/// Whether a revision served before, during or after a swap.
fn served(told: &Told, digest: &str) -> bool {
    let brought = match told.past.outcome {
        Outcome::Promoted => true,
        // Without its plan nobody knows whether it was brought back or taken away.
        Outcome::RolledBack => told.is_rollback(),
        _ => false,
    };
    (brought && told.past.revision.digest == digest)
        || told.before().is_some_and(|before| before.digest == digest)
}

#[cfg(test)]
mod tests;
