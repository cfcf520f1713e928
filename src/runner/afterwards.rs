//! The stage after the step: where that died without a word, or lost the server, the server says how its swap ended. Nothing is
//! begun, and nothing given up: a swap whose agent is gone as well is brought to its end as it stands.
//!
//! The runner gives the variables that a step wrote to `GITHUB_STATE` to its later stage, as `STATE_` + name.

use std::time::Duration;

use super::typed::Typed;
use super::{Setting, Stopped, Voice, converse, request, summarise};
use crate::github::output;
use crate::model::failure::{Failure, Hint};
use crate::model::ids::SwapId;
use crate::model::outcome::Exit;
use crate::render::{Line, failure, summary};

/// The swap that the step has asked for.
const SWAP: &str = "swap";

/// That the step has said how it ended.
const TOLD: &str = "told";

/// How long a swap that is still under way is followed: after five minutes GitHub ends a job that was cancelled.
const FOLLOW_LIMIT: Duration = Duration::from_secs(4 * 60);

/// Leaves word of the swap that is about to be asked for, or is followed in its place.
pub(super) fn note_swap(setting: &Setting, swap: &SwapId, voice: &mut Voice) {
    note(setting, SWAP, swap.as_str(), voice);
}

/// Leaves word that the outcome, or why nothing began, has been said.
pub(super) fn note_told(setting: &Setting, voice: &mut Voice) {
    note(setting, TOLD, "true", voice);
}

fn note(setting: &Setting, name: &str, value: &str, voice: &mut Voice) {
    if let Some(path) = &setting.run.state
        && let Err(error) = output::append_state(path, name, value)
    {
        voice.say([Line::Warning(error.to_failure().to_string())]);
    }
}

/// Says how the swap of a step ended that could not say so itself. A step that could needs nothing.
pub async fn afterwards(mut setting: Setting, voice: &mut Voice) -> Exit {
    // GitHub's runner passes on what a step has put out, and nothing of its later stage.
    setting.run.output = None;
    voice.typed = Typed::of(&setting.inputs);
    let saved = |name: &str| setting.env.get(&format!("STATE_{name}")).filter(|v| !v.is_empty());
    let (Some(swap), None) = (saved(SWAP), saved(TOLD)) else { return Exit::Done };
    let text = format!("the step did not say how it ended: asking the server about swap {swap}");
    voice.say([Line::Text(text)]);
    let told = async {
        let swap =
            swap.parse().map_err(|error| Stopped::input(vec![Failure::from_error(&error)]))?;
        let config = super::load(&setting)?;
        let request = request::follow(&setting, &config, swap);
        converse(&setting, (&config, request), Some(FOLLOW_LIMIT), voice).await
    };
    match told.await {
        Ok(told) => told.exit,
        Err(Stopped { failures, exit }) => {
            voice.say(failure::refusal(&failures));
            summarise(&setting.run, &summary::of_unknown(&failures), voice);
            exit
        }
    }
}
