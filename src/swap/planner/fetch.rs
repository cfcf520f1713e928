//! What is brought to the server before anything is reserved.

use super::Observed;
use super::steps::bound;
use crate::config::command;
use crate::model::plan::PlannedStep;
use crate::model::spec::SwapSpec;
use crate::model::step::Step;
use crate::swap::redact::redact;

/// What has to be brought here, if anything has.
pub(super) fn fetch(spec: &SwapSpec, seen: &Observed) -> Option<PlannedStep> {
    let image = spec.replica.image_reference().filter(|_| seen.must_pull);
    let does = fetched(spec, image);
    let pull = image.map(|_| spec.pull_limit());
    let run = spec.fetch.as_ref().map(|fetch| fetch.timeout);
    let limit = pull.into_iter().chain(run).sum();
    (!does.is_empty()).then_some(PlannedStep::new(Step::Fetch, does).within(limit))
}

/// What brings image and weights, in words; empty for nothing.
pub(in crate::swap) fn fetched(spec: &SwapSpec, image: Option<&str>) -> String {
    let pull = image.map(|image| format!("pull {image}"));
    let run = spec.fetch.as_ref().map(|fetch| {
        let argv =
            command::render_fetch(&fetch.command, &spec.model, spec.model_revision.as_deref());
        format!("run {}, at most {}", redact(&argv).join(" "), bound(fetch.timeout))
    });
    pull.into_iter().chain(run).collect::<Vec<_>>().join(", then ")
}
