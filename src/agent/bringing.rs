//! By which `fetch` a cold rollback brings weights: by the one of then, and by today's where that one cannot be had any more.

use crate::config::command;
use crate::model::failure::Failure;
use crate::model::refusal::{Fault, Refusal};
use crate::model::spec::{FetchSpec, SwapSpec};
use crate::swap::redact::redact;

/// What brings the weights of a revision of the past.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bringing {
    /// The command; `None`: its engine, as then.
    pub(super) fetch: Option<FetchSpec>,
    /// What people should know of it, one line.
    pub(super) note: Option<String>,
}

/// Chooses between the `fetch` of then, which is in what is to be started again, and that of today's configuration. `usable`
/// refuses a command that is not on the server, or that the key may not ask for.
///
/// # Errors
/// If a command brought the weights that is not usable any more, and today's does not stand in for it.
pub(super) fn choose(
    (then, now): (&SwapSpec, &SwapSpec),
    usable: impl Fn(&FetchSpec) -> Result<(), Refusal>,
) -> Result<Bringing, Refusal> {
    let model = &then.model;
    // What its engine or somebody's hand has brought is asked of no command that was never meant for it.
    let Some(fetch) = &then.fetch else { return Ok(Bringing { fetch: None, note: None }) };
    let Err(refusal) = usable(fetch) else {
        return Ok(Bringing { fetch: Some(fetch.clone()), note: None });
    };
    let why =
        format!("the fetch of then ({}) cannot be used again: {}", shown(fetch), said(&refusal));
    match stand_in((then, now), &usable) {
        Ok(today) => {
            let note = format!("{why}; today's ({}) brings {model} in its place", shown(&today));
            Ok(Bringing { fetch: Some(today), note: Some(note) })
        }
        Err(reason) => Err(barred(refusal, vec![why, reason], then)),
    }
}

/// What says why nothing brings the weights of then, and what mends it.
fn barred(refusal: Refusal, causes: Vec<String>, then: &SwapSpec) -> Refusal {
    let again = match refusal.fault {
        // It may be there, and is not allowed.
        Fault::Input => refusal.failures.into_iter().flat_map(|failure| failure.hints).collect(),
        _ => vec!["or put the program of then back on the server".to_owned()],
    };
    let tokens = needed(then).collect::<Vec<_>>().join(" and ");
    let mut failure = Failure::new(format!("nothing brings the weights of {}", then.model)).hint(
        format!("write a fetch into the configuration that brings any model: with {tokens} in its command"),
    );
    failure.causes = causes;
    failure.hints.extend(again);
    Refusal::of([failure], refusal.fault)
}

/// Today's `fetch`, for the model of then; or why it does not stand in, a clause.
fn stand_in(
    (then, now): (&SwapSpec, &SwapSpec),
    usable: impl Fn(&FetchSpec) -> Result<(), Refusal>,
) -> Result<FetchSpec, String> {
    let Some(fetch) = &now.fetch else {
        return Err("the configuration has none that could stand in for it".to_owned());
    };
    let why_not =
        |why: String| format!("today's ({}) does not stand in for it: {why}", shown(fetch));
    if let Some(token) = needed(then).find(|token| !command::holds(&fetch.command, token)) {
        return Err(why_not(format!("its command does not name {token}")));
    }
    let is_path = |spec: &SwapSpec| spec.model.starts_with('/');
    if is_path(then) != is_path(now) {
        let kind = if is_path(then) { "a path" } else { "none" };
        let (today, model) = (&now.model, &then.model);
        return Err(why_not(format!("it is for a model like {today}, and {model} is {kind}")));
    }
    let mut fetch = fetch.clone();
    if then.model != now.model {
        // They are said of today's model alone.
        (fetch.folder, fetch.size) = (None, None);
    }
    usable(&fetch).map_err(|refusal| why_not(said(&refusal)))?;
    Ok(fetch)
}

/// The tokens that a command needs to bring the very weights of then.
fn needed(then: &SwapSpec) -> impl Iterator<Item = &'static str> {
    let [model, revision] = command::FETCH_TOKENS;
    std::iter::once(model).chain(then.model_revision.as_ref().map(|_| revision))
}

fn shown(fetch: &FetchSpec) -> String {
    redact(&fetch.command).join(" ")
}

fn said(refusal: &Refusal) -> String {
    refusal.failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::swap::planner::tests::spec;

    fn fetch(command: &str) -> FetchSpec {
        FetchSpec {
            command: command.split(' ').map(str::to_owned).collect(),
            timeout: Duration::from_secs(60),
            folder: Some("/srv/own".into()),
            size: Some(70),
        }
    }

    fn of(model: &str, command: Option<&str>) -> SwapSpec {
        SwapSpec { model: model.to_owned(), fetch: command.map(fetch), ..spec() }
    }

    /// On a server that has no program `gone`.
    fn chosen(then: &SwapSpec, now: &SwapSpec) -> Result<Bringing, Failure> {
        let usable = |fetch: &FetchSpec| match fetch.command[0].as_str() {
            "gone" => Err(Refusal::environment(Failure::new("there is no program gone"))),
            _ => Ok(()),
        };
        choose((then, now), usable).map_err(|mut refusal| refusal.failures.remove(0))
    }

    #[test]
    fn what_brought_it_brings_it_again_as_long_as_it_is_there() {
        let then = of("Qwen/Old", Some("old {model}"));
        for now in [None, Some("new {model}"), Some("gone"), Some("new static")] {
            let bringing = chosen(&then, &of("Qwen/New", now)).unwrap();
            assert_eq!(bringing, Bringing { fetch: then.fetch.clone(), note: None }, "{now:?}");
        }
    }

    #[test]
    fn todays_stands_in_for_one_that_is_gone_with_what_is_said_of_its_own_model_left_out() {
        for (model, own) in [("Qwen/Old", None), ("Qwen/New", Some(70))] {
            let then = of(model, Some("gone {model}"));
            let Bringing { fetch, note } =
                chosen(&then, &of("Qwen/New", Some("new {model}"))).unwrap();
            let fetch = fetch.unwrap();
            assert_eq!((fetch.command[0].as_str(), fetch.size), ("new", own));
            assert_eq!(fetch.folder.is_some(), own.is_some());
            let note = note.unwrap();
            let said =
                ["(gone {model}) cannot be used again: there is no program gone", "(new {model})"];
            assert!(said.iter().all(|said| note.contains(said)), "{note}");
        }
    }

    #[test]
    fn one_that_brings_its_own_model_alone_stands_in_for_nothing() {
        let then = of("Qwen/Old", Some("gone {model}"));
        let pinned = SwapSpec { model_revision: Some("5ede1c97".to_owned()), ..then.clone() };
        let path = of("/srv/models/old", Some("gone"));
        for (then, now, reason) in [
            (&then, None, "the configuration has none"),
            (
                &then,
                Some("new static"),
                "today's (new static) does not stand in for it: its command does not name {model}",
            ),
            (
                &then,
                Some("gone {model} anew"),
                "today's (gone {model} anew) does not stand in for it: there is no program gone",
            ),
            (&pinned, Some("new {model}"), "does not name {revision}"),
            (
                &path,
                Some("new {model}"),
                "it is for a model like Qwen/New, and /srv/models/old is a path",
            ),
        ] {
            let failure = chosen(then, &of("Qwen/New", now)).unwrap_err();
            let said = failure.to_string();
            assert!(said.contains("the fetch of then (gone") && said.contains(reason), "{said}");
            assert!(failure.hints[0].contains("{model}"), "{failure:?}");
        }
    }

    #[test]
    fn what_no_command_has_brought_is_left_to_its_engine() {
        for then in ["Qwen/Old", "/srv/models/old"] {
            for now in [None, Some("new {model}")] {
                let bringing = chosen(&of(then, None), &of("Qwen/New", now)).unwrap();
                assert_eq!(bringing, Bringing { fetch: None, note: None }, "{then}, {now:?}");
            }
        }
    }
}
