//! Workflows that are given away use only what there is: every input, command and output that they name.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use model_swap::github::inputs::{CommandName, INPUTS, Inputs};
use model_swap::github::output::OUTPUTS;
use serde_json::json;
use serde_yaml::Value;
use testbed::expression::{Scope, Status};

/// The action as the documentation calls it; what follows is a commit, or stands for one.
pub(crate) const ACTION: &str = "OWNER/model-swap@";

/// What is tried at each change.
const CI: &str = include_str!("../../.github/workflows/ci.yml");

/// The commit that stands for a release's in what is given away.
const ANY_COMMIT: &str = "0000000000000000000000000000000000000000";

/// A workflow, by the name of its place.
fn given_away() -> Result<Vec<(String, Value)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join("examples"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "yml") {
            let text = std::fs::read_to_string(&path)?;
            found.push((path.display().to_string(), serde_yaml::from_str(&text)?));
        }
    }
    let readme = std::fs::read_to_string(root.join("README.md"))?;
    for block in readme.split("```yaml\n").skip(1) {
        let text = block.split("```").next().unwrap_or_default();
        if text.contains(ACTION) {
            let name = format!("README.md: {}", text.lines().next().unwrap_or_default());
            found.push((name, serde_yaml::from_str(text)?));
        }
    }
    Ok(found)
}

/// The steps of a workflow that are ours.
fn our_steps(workflow: &Value) -> Vec<&Value> {
    let jobs = workflow["jobs"].as_mapping().into_iter().flat_map(|jobs| jobs.values());
    jobs.flat_map(|job| job["steps"].as_sequence().into_iter().flatten())
        .filter(|step| step["uses"].as_str().is_some_and(|uses| uses.starts_with(ACTION)))
        .collect()
}

/// The steps of ours that may roll back, each with its job.
fn rollbacks(workflow: &Value) -> Vec<(&Value, &Value)> {
    let jobs = workflow["jobs"].as_mapping().into_iter().flat_map(|jobs| jobs.values());
    let steps = jobs.flat_map(|job| {
        job["steps"].as_sequence().into_iter().flatten().map(move |step| (job, step))
    });
    let ours = our_steps(workflow);
    let is_way_back = |step: &Value| {
        let command = step["with"]["command"].as_str().unwrap_or("swap");
        ours.contains(&step)
            && commands(workflow, command).is_ok_and(|all| all.iter().any(|it| it == "rollback"))
    };
    steps.filter(|(_, step)| is_way_back(step)).collect()
}

/// The commands that a `command:` may come to: itself, or the choices of the input that it names.
fn commands(workflow: &Value, value: &str) -> Result<Vec<String>> {
    let Some(input) = value.strip_prefix("${{ inputs.").and_then(|rest| rest.strip_suffix(" }}"))
    else {
        return Ok(vec![value.to_owned()]);
    };
    let choices = &workflow["on"]["workflow_dispatch"]["inputs"][input]["options"];
    let choices = choices.as_sequence().with_context(|| format!("{value} is no choice"))?;
    Ok(choices.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

#[test]
fn workflows_that_are_given_away_use_only_what_there_is() -> Result<()> {
    let workflows = given_away()?;
    assert!(workflows.len() >= 6, "where are they? {workflows:?}");
    let known = CommandName::ALL.map(CommandName::as_str);
    for (name, workflow) in &workflows {
        let steps = our_steps(workflow);
        assert!(!steps.is_empty(), "{name} does not use the action");
        for step in steps {
            let with: BTreeMap<String, Value> = serde_yaml::from_value(step["with"].clone())?;
            for input in with.keys() {
                let declared = INPUTS.iter().any(|declared| declared.name == input);
                assert!(declared, "{name}: there is no input {input}");
            }
            let command = with.get("command").and_then(Value::as_str).unwrap_or("swap");
            for command in commands(workflow, command).context(name.clone())? {
                assert!(known.contains(&&*command), "{name}: there is no command {command}");
            }
        }
    }
    Ok(())
}

/// `steps.X.outputs.Y` of a step of ours, and what jobs hand on of it.
#[test]
fn outputs_that_workflows_read_are_there() -> Result<()> {
    let mut read = 0;
    for (name, workflow) in given_away()? {
        let text = serde_yaml::to_string(&workflow)?;
        let ours: Vec<&str> =
            our_steps(&workflow).iter().filter_map(|step| step["id"].as_str()).collect();
        for id in ours {
            for rest in text.split(&format!("steps.{id}.outputs.")).skip(1) {
                let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-');
                let output = &rest[..end.unwrap_or(rest.len())];
                assert!(OUTPUTS.contains(&output), "{name}: there is no output {output}");
                read += 1;
            }
        }
        let jobs = workflow["jobs"].as_mapping().context("jobs")?;
        for rest in text.split("needs.").skip(1).filter(|rest| rest.contains(".outputs.")) {
            let Some((job, rest)) =
                rest.split_once(".outputs.").filter(|(job, _)| !job.contains(' '))
            else {
                continue;
            };
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-');
            let output = &rest[..end.unwrap_or(rest.len())];
            let declared = &jobs.get(job).with_context(|| format!("{name}: job {job}"))?["outputs"];
            assert!(!declared[output].is_null(), "{name}: job {job} has no output {output}");
        }
    }
    assert!(read > 0, "no workflow reads an output of the action");
    Ok(())
}

/// A swap that is cancelled by the next has nobody to tell how it ended; two at once would wait for each other's lease. A way back
/// waits on the server: in the group of the swaps it would wait for a run that waits for a reviewer, and the next one takes its place.
#[test]
fn workflows_that_swap_are_never_cancelled_by_the_next() -> Result<()> {
    for (name, workflow) in given_away()? {
        let jobs = workflow["jobs"].as_mapping().into_iter().flat_map(|jobs| jobs.values());
        let levels = std::iter::once(&workflow).chain(jobs);
        let mut concurrencies = levels.map(|level| &level["concurrency"]);
        let concurrency = concurrencies.find(|found| found.is_mapping()).context(name.clone())?;
        let group = concurrency["group"].as_str().unwrap_or_default();
        let mut may = Vec::new();
        for step in our_steps(&workflow) {
            may.extend(commands(&workflow, step["with"]["command"].as_str().unwrap_or("swap"))?);
        }
        let is_with_swaps = group.contains("swap-chat");
        assert_eq!(is_with_swaps, may.contains(&"swap".to_owned()), "{name}: group {group:?}");
        assert!(
            is_with_swaps || group.contains("github.") || !may.contains(&"rollback".to_owned())
        );
        for (job, step) in rollbacks(&workflow) {
            assert!(step["with"]["lock-wait"].is_string(), "{name}: it is refused at once");
            assert!(
                job["timeout-minutes"].as_u64() >= Some(180),
                "{name}: a cold one starts a model"
            );
        }
        let cancels = &concurrency["cancel-in-progress"];
        let of_pull_requests = "${{ github.event_name == 'pull_request' }}";
        assert!(*cancels == false || *cancels == *of_pull_requests, "{name}: {cancels:?}");
    }
    Ok(())
}

fn permissions(job: &Value) -> Result<BTreeMap<String, String>> {
    serde_yaml::from_value(job["permissions"].clone()).context("permissions")
}

/// What the README says that the commands of a job need.
fn needed(workflow: &Value, name: &Value, job: &Value) -> Result<BTreeMap<String, String>> {
    let steps = job["steps"].as_sequence().into_iter().flatten();
    let mut needed = BTreeMap::new();
    if steps.clone().any(|step| !step["uses"].is_null()) {
        needed.insert("contents", "read");
    }
    for step in steps.filter(|step| step["uses"].as_str().is_some_and(|it| it.starts_with(ACTION)))
    {
        let with = &step["with"];
        for command in commands(workflow, with["command"].as_str().unwrap_or("swap"))? {
            needed.extend(match &*command {
                "swap" | "rollback" | "fail" => Some(("deployments", "write")),
                "status" if with["reconcile"] == true => Some(("deployments", "write")),
                // Of a plan that a pull request asks for.
                "plan" if *name == *"plan" => Some(("pull-requests", "write")),
                _ => None,
            });
        }
        if with["plan-digest"] == *"from-pr" {
            needed.insert("pull-requests", "read");
        }
        if !with["rollback-workflow"].is_null() {
            needed.insert("actions", "write");
        }
    }
    Ok(needed.into_iter().map(|(of, access)| (of.to_owned(), access.to_owned())).collect())
}

#[test]
fn examples_are_least_privileged_and_pinned() -> Result<()> {
    for (name, workflow) in given_away()?.iter().filter(|(name, _)| name.contains("examples/")) {
        let nothing = workflow["permissions"].as_mapping().is_some_and(|map| map.is_empty());
        assert!(nothing, "{name}: the workflow as a whole needs no permission");
        for (job, definition) in workflow["jobs"].as_mapping().context("jobs")? {
            assert_eq!(
                permissions(definition)?,
                needed(workflow, job, definition)?,
                "{name}: {job:?}"
            );
            assert!(definition["timeout-minutes"].is_u64(), "{name}: {job:?} has no bound");
        }
        for step in our_steps(workflow) {
            assert_eq!(step["uses"].as_str(), Some(&*format!("{ACTION}{ANY_COMMIT}")), "{name}");
        }
    }
    Ok(())
}

pub(crate) fn example(file: &str) -> Result<Value> {
    let all = given_away()?.into_iter();
    let found = all.filter(|(name, _)| name.ends_with(file)).map(|(_, workflow)| workflow).next();
    found.with_context(|| format!("no example {file}"))
}

/// A rollback that names no swap undoes whatever serves: an event must never start one.
#[test]
fn a_rollback_that_an_event_starts_names_its_swap() -> Result<()> {
    let workflow = example("on-failure.yml")?;
    let job = &workflow["jobs"]["rollback"];
    let condition = job["if"].as_str().context("if")?;
    for part in [
        "github.event.deployment_status.state == 'failure'",
        "github.event.deployment.task == 'deploy:model'",
        "github.event.deployment.payload.swap_id != ''",
        "contains(github.event.deployment_status.log_url, '#s-')",
        "inputs.swap-id != ''",
    ] {
        assert!(condition.contains(part), "{part} is not asked for in {condition}");
    }
    let swap = our_steps(&workflow)[0]["with"]["swap-id"].as_str().context("swap-id")?;
    let named = ["inputs.swap-id", "github.event.deployment.payload.swap_id"].join(" || ");
    assert_eq!(swap, format!("${{{{ {named} || github.event.deployment_status.log_url }}}}"));
    Ok(())
}

/// A failure that moves nothing pushes out no swap that waits, nor the rollback of another one; the server has it wait for its turn.
#[test]
fn a_rollback_that_an_event_starts_waits_on_the_server_and_not_with_the_swaps() -> Result<()> {
    let workflow = example("on-failure.yml")?;
    let job = &workflow["jobs"]["rollback"];
    let group = job["concurrency"]["group"].as_str().context("a group")?;
    for (contexts, expected) in [
        (json!({ "inputs": { "swap-id": "s-1" }, "github": {} }), "on-failure-s-1"),
        (
            json!({ "inputs": {}, "github": { "event": { "deployment": { "id": 7 } } } }),
            "on-failure-7",
        ),
    ] {
        let scope = Scope { contexts: &contexts, status: Status::Success };
        assert_eq!(scope.text(group)?.trim(), expected);
    }
    assert!(our_steps(&workflow)[0]["with"]["lock-wait"].is_string());
    assert!(job["timeout-minutes"].as_u64() >= Some(90), "a cold rollback starts a model");
    Ok(())
}

/// `fail` with `rollback-workflow` starts it with these two inputs, and GitHub refuses a start with any that is not declared.
#[test]
fn the_workflow_that_a_failure_starts_takes_what_it_is_given() -> Result<()> {
    let workflow = example("on-failure.yml")?;
    let inputs = workflow["on"]["workflow_dispatch"]["inputs"].as_mapping().context("inputs")?;
    let names: Vec<_> = inputs.keys().filter_map(Value::as_str).collect();
    assert_eq!(names, ["swap-id", "environment"]);
    Ok(())
}

/// Whatever a person leaves in the fields, each choice is accepted; a swap waits with the swaps, a way back on the server, where nothing
/// pushes it out.
#[test]
fn each_choice_by_hand_is_accepted_and_only_what_swaps_takes_turns() -> Result<()> {
    let workflow = example("manual.yml")?;
    let inputs = &workflow["on"]["workflow_dispatch"]["inputs"];
    let choices = inputs["command"]["options"].as_sequence().context("choices")?;
    let with = our_steps(&workflow)[0]["with"].as_mapping().context("with")?.clone();
    for choice in choices {
        let command = choice.as_str().context("a choice")?;
        let contexts = json!({
            "github": { "run_id": "77" },
            "inputs": { "command": command, "swap-id": "s-1", "to": "r-1" },
            "secrets": { "GPU_SSH_KEY": "key" },
            "vars": { "GPU_KNOWN_HOSTS": "hosts" },
        });
        let scope = Scope { contexts: &contexts, status: Status::Success };
        let mut env = BTreeMap::new();
        for (name, value) in &with {
            let (name, value) = (name.as_str().context("name")?, value.as_str().context("text")?);
            env.insert(format!("INPUT_{}", name.to_uppercase()), scope.text(value)?);
        }
        let read = Inputs::from_env(&env).map_err(|problems| anyhow!("{command}: {problems:?}"))?;
        let is_given = (read.swap_id.is_some(), read.to.is_some());
        let names_a_swap = ["rollback", "abort"].contains(&command);
        assert_eq!(is_given, (names_a_swap, command == "rollback"));
        let group = scope.text(workflow["concurrency"]["group"].as_str().context("a group")?)?;
        let own = format!("{command}-77");
        assert_eq!(group.trim(), if command == "swap" { "swap-chat" } else { &own });
        let waits_there = ["rollback", "repair"].contains(&command);
        assert_eq!(!read.lock_wait.is_zero(), waits_there, "{command}");
    }
    Ok(())
}

/// Who evaluates says on GitHub that the swap has failed, without the server's key.
#[test]
fn an_evaluation_marks_what_it_has_evaluated() -> Result<()> {
    let workflow = example("upgrade.yml")?;
    let job = &workflow["jobs"]["say-so"];
    let steps = job["steps"].as_sequence().context("steps")?;
    let fail = steps.iter().find(|step| step["with"]["command"] == *"fail").context("no fail")?;
    let condition = job["if"].as_str();
    for (evaluated, says_so) in
        [("failure", true), ("success", false), ("skipped", false), ("cancelled", false)]
    {
        let contexts = json!({ "needs": { "evaluate": { "result": evaluated } } });
        let scope = Scope { contexts: &contexts, status: Status::Failure };
        assert_eq!(scope.begins(condition)?, says_so, "{evaluated}");
    }
    // What has failed goes back at once, whatever becomes of its word.
    let waits_for = &workflow["jobs"]["rollback"]["needs"];
    assert_eq!(*waits_for, serde_yaml::from_str::<Value>("[swap, evaluate]")?);
    assert_eq!(fail["with"]["swap-id"], *"${{ needs.swap.outputs.swap-id }}");
    assert!(fail["with"]["ssh-key"].is_null() && job["environment"].is_null());
    assert_eq!(job["permissions"]["deployments"], *"write");
    Ok(())
}

/// Before there is a release, the image is built in the set-up of each job that uses it: that takes minutes of its time, and may fail. An
/// evaluation that fails so would take a good model back.
#[test]
fn an_evaluation_needs_nothing_that_is_set_up_and_every_other_job_has_time_for_it() -> Result<()> {
    let workflow = example("upgrade.yml")?;
    let steps = workflow["jobs"]["evaluate"]["steps"].as_sequence().context("steps")?;
    assert!(steps.iter().all(|step| step["uses"].is_null()), "{steps:?}");
    for (name, workflow) in given_away()?.iter().filter(|(name, _)| name.contains("examples/")) {
        let jobs = workflow["jobs"].as_mapping().into_iter().flatten();
        for (job, definition) in jobs.filter(|(job, _)| job.as_str() != Some("evaluate")) {
            let minutes = definition["timeout-minutes"].as_u64();
            assert!(minutes >= Some(30), "{name}: {job:?} has {minutes:?}");
        }
    }
    Ok(())
}

/// A job can fail after its swap was promoted, at whatever it does then: what serves by it is evaluated all the same.
#[test]
fn what_was_promoted_is_evaluated_however_its_job_ended() -> Result<()> {
    let workflow = example("upgrade.yml")?;
    let condition = workflow["jobs"]["evaluate"]["if"].as_str();
    for (swapped, outcome, is_evaluated) in [
        ("success", "promoted", true),
        ("failure", "promoted", true),
        ("success", "unchanged", false),
        ("failure", "failed", false),
        ("failure", "", false),
        ("skipped", "", false),
    ] {
        let swap = json!({ "result": swapped, "outputs": { "outcome": outcome } });
        let contexts = json!({ "needs": { "swap": swap } });
        let status = if swapped == "success" { Status::Success } else { Status::Failure };
        let begins = Scope { contexts: &contexts, status }.begins(condition)?;
        assert_eq!(begins, is_evaluated, "{swapped} {outcome:?}");
    }
    Ok(())
}

/// What was promoted and not found good goes, and so does what may have been promoted by a step that was killed.
#[test]
fn what_nobody_has_evaluated_is_rolled_back() -> Result<()> {
    let workflow = example("upgrade.yml")?;
    let condition = workflow["jobs"]["rollback"]["if"].as_str();
    for (swapped, outcome, swap, evaluated, goes_back) in [
        ("success", "promoted", "s-1", "success", false),
        ("failure", "promoted", "s-1", "success", false),
        ("success", "promoted", "s-1", "failure", true),
        ("success", "promoted", "s-1", "cancelled", true),
        ("success", "unchanged", "s-0", "skipped", false),
        ("failure", "failed", "s-1", "skipped", false),
        ("failure", "rolled-back", "s-1", "skipped", false),
        ("failure", "", "s-1", "skipped", true),
        ("cancelled", "aborted", "s-1", "skipped", false),
        // It was refused, or never asked.
        ("failure", "", "", "skipped", false),
        ("skipped", "", "", "skipped", false),
    ] {
        let outputs = json!({ "outcome": outcome, "swap-id": swap });
        let swap = json!({ "result": swapped, "outputs": outputs });
        let contexts = json!({ "needs": { "swap": swap, "evaluate": { "result": evaluated } } });
        let scope = Scope { contexts: &contexts, status: Status::Failure };
        assert_eq!(scope.begins(condition)?, goes_back, "{swapped} {outcome:?} {evaluated}");
    }
    Ok(())
}

/// A branch rule requires one check, so that no job may be missing in it.
#[test]
fn one_job_waits_for_all_others() -> Result<()> {
    let workflow: Value = serde_yaml::from_str(CI)?;
    let jobs = workflow["jobs"].as_mapping().context("jobs")?;
    let last = &jobs["ci"];
    let needs: Vec<_> = last["needs"].as_sequence().context("needs")?.iter().collect();
    let others: Vec<_> = jobs.keys().filter(|name| name.as_str() != Some("ci")).collect();
    assert_eq!(needs, others);
    assert_eq!(last["if"], *"${{ always() }}");
    let text = serde_yaml::to_string(last)?;
    for job in others {
        let result = format!("needs.{}.result", job.as_str().context("a name")?);
        assert!(text.contains(&result), "{result} is not asked for");
    }
    Ok(())
}
