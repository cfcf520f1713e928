//! `doctor`: everything that a swap needs, looked at from here and on the server, all at once.

use jiff::Timestamp;

use super::stop::Stop;
use super::{Setting, Stopped, Told, Voice, credentials, install, request, summarise, trust};
use crate::config::{self, Config};
use crate::model::checkup::{Checkup, Finding, Mark, Part};
use crate::model::failure::Failure;
use crate::model::outcome::Exit;
use crate::model::refusal::{Fault, Refusal};
use crate::model::wire::{Frame, Hello};
use crate::remote::agent::ask;
use crate::remote::session::Session;
use crate::remote::way;
use crate::render;

/// More than this between two clocks, in seconds, and times in logs and deadlines mislead.
const CLOCK_SLACK_S: i64 = 10;

const AGENT: &str = "agent";
const CLOCK: &str = "clock";

/// Looks at everything, and says what was found.
pub(super) async fn doctor(
    setting: &Setting,
    config: &Config,
    voice: &mut Voice,
) -> Result<Told, Stopped> {
    let mut stop = Stop::new()?;
    let parts = tokio::select! {
        parts = parts(setting, config) => parts?,
        () = stop.asked() => {
            let failures = vec![Failure::new("stopped by a signal before everything was looked at")];
            return Err(Stopped { failures, exit: Exit::Environment });
        }
    };
    let title = format!("{} on {}", config.spec.service, config.target.host);
    voice.put(&serde_json::json!({ "frame": "checkup", "parts": parts }));
    voice.say(render::checkup::lines(&title, &parts));
    let markdown = render::checkup::markdown(&title, &parts);
    summarise(&setting.run, &markdown, voice);
    Ok(Told { markdown, ..Told::of(exit(&parts)) })
}

/// Wrong input alone is the user's; whatever else failed is the environment's.
fn exit(parts: &[Part]) -> Exit {
    let marks = || parts.iter().flat_map(|part| &part.findings).map(|finding| finding.mark);
    if marks().any(|mark| mark == Mark::Fail(Fault::Environment)) {
        Exit::Environment
    } else if marks().any(|mark| matches!(mark, Mark::Fail(_))) {
        Exit::Input
    } else {
        Exit::Done
    }
}

async fn parts(setting: &Setting, config: &Config) -> Result<[Part; 2], Stopped> {
    let mut here = secrets(setting, config);
    let missing = trust::missing(setting, &config.target);
    here.extend(missing.map(|it| Finding::of_failure("inputs", Fault::Input, it)));
    let way = way::look(&config.target, credentials(setting)).await;
    here.extend(way.findings);
    let there = match way.session {
        Some(session) => {
            let found = on_server(setting, config, &session).await;
            session.close().await;
            found?
        }
        None => vec![Finding::unseen("everything", "not reached")],
    };
    let place = format!("on the server, {}", config.target.host);
    Ok([Part { place: "on this side".to_owned(), findings: here }, Part { place, findings: there }])
}

/// What the configuration names and the step's environment should hold.
fn secrets(setting: &Setting, config: &Config) -> Vec<Finding> {
    const WHAT: &str = "secrets";
    let names = config.secret_names();
    if names.is_empty() {
        return Vec::new();
    }
    match config::secrets(&names, &setting.env) {
        Ok(_) => {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let have = if names.len() == 1 { "has its value" } else { "have their values" };
            vec![Finding::ok(WHAT, format!("{} {have}", names.join(", ")))]
        }
        Err(problems) => problems
            .to_failures()
            .into_iter()
            .map(|failure| Finding::of_failure(WHAT, Fault::Input, failure))
            .collect(),
    }
}

/// Asks the agent, which is brought where it is not there yet: the one thing that is ever left behind.
async fn on_server(
    setting: &Setting,
    config: &Config,
    session: &Session,
) -> Result<Vec<Finding>, Stopped> {
    let (install, request) = (install(config)?, request::of(setting, config)?);
    let mut frames = match ask(session, &install, &request).await {
        Ok(frames) => frames,
        Err(error) => return Ok(vec![way::of_error(AGENT, &error)]),
    };
    let mut findings = Vec::new();
    loop {
        match frames.next().await {
            Ok(Some(Frame::Hello(hello))) => {
                let how = if frames.brought() { "was brought" } else { "was there" };
                findings.push(introduced(&hello, how));
            }
            Ok(Some(Frame::Checkup { checkup })) => {
                findings.push(clock(&checkup));
                findings.extend(checkup.findings);
            }
            Ok(Some(Frame::Refused(Refusal { failures, fault, .. }))) => {
                let refused = |failure| Finding::of_failure(AGENT, fault, failure);
                findings.extend(failures.into_iter().map(refused));
            }
            Ok(Some(_)) => {}
            Ok(None) => return Ok(findings),
            Err(error) => {
                findings.push(way::of_error(AGENT, &error));
                return Ok(findings);
            }
        }
    }
}

fn introduced(hello: &Hello, how: &str) -> Finding {
    Finding::ok(AGENT, format!("version {} answers; its binary {how}", hello.version))
}

fn clock(checkup: &Checkup) -> Finding {
    let ahead = checkup.at.as_second() - Timestamp::now().as_second();
    let seen = match ahead {
        -1..=1 => "as here".to_owned(),
        2.. => format!("{ahead} s ahead of this side"),
        _ => format!("{} s behind this side", -ahead),
    };
    if ahead.abs() > CLOCK_SLACK_S {
        Finding::warn(
            CLOCK,
            seen,
            "let both sides take their time from NTP (timedatectl set-ntp true)",
        )
    } else {
        Finding::ok(CLOCK, seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(findings: Vec<Finding>) -> Exit {
        exit(&[Part { place: String::new(), findings }])
    }

    #[test]
    fn the_exit_says_whose_fault_it_is() {
        let input = || Finding::of_failure("a", Fault::Input, Failure::new("x"));
        let warned = || Finding::warn("a", "b", "c");
        assert_eq!(
            ends(vec![Finding::ok("a", "b"), warned(), Finding::unseen("a", "b")]),
            Exit::Done
        );
        assert_eq!(ends(vec![warned(), input()]), Exit::Input);
        assert_eq!(ends(vec![input(), Finding::fail("a", Failure::new("y"))]), Exit::Environment);
    }

    #[test]
    fn a_clock_that_differs_is_told_with_its_direction() {
        let at = |seconds: i64| {
            let at = Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap();
            clock(&Checkup { at, findings: Vec::new() })
        };
        assert_eq!(at(0).mark, Mark::Ok);
        assert_eq!((at(-7200).mark, at(7200).mark), (Mark::Warn, Mark::Warn));
        assert!(at(-7200).seen.ends_with("s behind this side"), "{}", at(-7200).seen);
        assert!(at(7200).seen.ends_with("s ahead of this side"), "{}", at(7200).seen);
    }
}
