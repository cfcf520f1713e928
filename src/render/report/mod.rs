//! A swap as one page of HTML that needs nothing else: no script, no font, no request.

mod chart;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Line;
use super::counts::since;
use super::failure::{hints, reasons, tail};
use super::log::Log;
use super::plan::strategy;
use super::text::{duration, inert, millis_between, moment};
use crate::model::event::{Closing, Conclusion, Event, EventKind};
use crate::model::failure::Failure;
use crate::model::outcome::Outcome;
use crate::model::plan::{Plan, Side};
use crate::model::sample::{Load, Sample};
use chart::{Mark, Points, Series, chart, share};
use tables::{gates, requests};

const STYLE: &str = include_str!("report.css");

/// Nothing but the style that is in the page itself: whatever got into it, it asks nobody for anything.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// Bytes of a MiB's share in a GiB: a GPU's memory is read in GiB.
const MIB_IN_GIB: f64 = 1024.0;

/// The page; `None` before there is a plan.
pub fn page(events: &[Event]) -> Option<String> {
    let story = Story::of(events)?;
    let (plan, outcome) = (story.plan, story.outcome());
    let title = format!("{}: {outcome}", plan.service);
    let (class, began) = (story.class(), moment(story.began));
    let clock = (story.whole(), &*story.marks());
    let body = [
        story.head(),
        why(story.conclusion.and_then(|(_, end)| end.failure.as_ref())),
        timeline(&story),
        gates(&story),
        chart("Requests in flight", "", &story.in_flight(), clock),
        chart("Time to the whole answer, mean", " s", &story.latency(), clock),
        chart("GPU memory in use", " GiB", &story.memory(), clock),
        requests(&story),
        events_table(&story),
    ]
    .concat();
    Some(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\
         <title>{}</title><style>{STYLE}</style></head>\n<body class=\"{class}\"><main>\n{body}\
         <footer>model-swap, {} of {began}</footer></main></body></html>\n",
        escaped(&title),
        escaped(story.swap),
    ))
}

/// What the events tell, taken apart.
struct Story<'a> {
    events: &'a [Event],
    swap: &'a str,
    plan: &'a Plan,
    began: Timestamp,
    conclusion: Option<(Timestamp, &'a Conclusion)>,
    samples: Vec<(u64, &'a Sample)>,
}

impl<'a> Story<'a> {
    fn of(events: &'a [Event]) -> Option<Self> {
        let (first, plan) = events.iter().find_map(|event| match &event.kind {
            EventKind::Planned { plan, .. } => Some((event, plan.as_ref())),
            _ => None,
        })?;
        let conclusion = events.iter().rev().find_map(|event| match &event.kind {
            EventKind::Concluded(conclusion) => Some((event.at, conclusion)),
            _ => None,
        });
        let samples = events.iter().filter_map(|event| match &event.kind {
            EventKind::Sampled(sample) => Some((millis_between(first.at, event.at), sample)),
            _ => None,
        });
        let samples = samples.collect();
        let swap = first.swap.as_str();
        Some(Self { events, swap, plan, began: first.at, conclusion, samples })
    }

    fn after(&self, at: Timestamp) -> u64 {
        millis_between(self.began, at)
    }

    /// From the first event to the last, in milliseconds.
    fn whole(&self) -> u64 {
        self.events.iter().map(|event| self.after(event.at)).max().unwrap_or(0).max(1)
    }

    fn outcome(&self) -> String {
        let known = self.conclusion.map(|(_, end)| end.outcome.to_string());
        known.unwrap_or_else(|| "outcome not known".to_owned())
    }

    fn class(&self) -> &'static str {
        match self.conclusion.map(|(_, end)| end.outcome) {
            Some(Outcome::Promoted | Outcome::Unchanged) => "good",
            Some(Outcome::RolledBack) if self.plan.strategy.is_rollback() => "good",
            Some(Outcome::RolledBack | Outcome::Aborted) | None => "fair",
            Some(Outcome::Failed | Outcome::Stuck) => "bad",
        }
    }

    /// The ends of the steps that move traffic and conclude.
    fn marks(&self) -> Vec<Mark> {
        let name = |index: usize| {
            let step = &self.plan.all_steps().nth(index)?.step;
            Some(step.to_string())
                .filter(|name| name.starts_with("cut_over") || name.starts_with("promote"))
        };
        let marks = self.events.iter().filter_map(|event| match &event.kind {
            EventKind::StepSucceeded { index, .. } => {
                Some(Mark { at: self.after(event.at), name: name(*index)? })
            }
            EventKind::TrafficIsBack { .. } => {
                Some(Mark { at: self.after(event.at), name: "traffic is back".to_owned() })
            }
            _ => None,
        });
        marks.collect()
    }

    /// Whether the replica that served before may still be there.
    fn is_warm(&self) -> bool {
        let gone = |event: &Event| {
            matches!(
                event.kind,
                EventKind::Closed(Closing::Retired { .. } | Closing::Superseded { .. })
            )
        };
        !self.events.iter().any(gone)
    }

    fn head(&self) -> String {
        let Plan { service, strategy: by, incumbent, candidate, .. } = self.plan;
        let side = |side: &Side| {
            format!(
                "<b>{}</b> <small>{} · slot {}</small>",
                escaped(&side.revision.model),
                escaped(&side.revision.digest),
                side.slot
            )
        };
        let now = incumbent.as_ref().map_or_else(|| "nothing".to_owned(), side);
        let mut text = format!(
            "<header><h1>{service} <span class=\"badge\">{}</span></h1>\
             <p class=\"sides\"><span>{now}</span><span class=\"to\">→</span><span>{}</span></p><p>{}, {}",
            self.outcome(),
            side(candidate),
            strategy(*by),
            self.conclusion.map_or_else(
                || "followed for ".to_owned() + &duration(self.whole()),
                |(at, _)| "concluded after ".to_owned() + &duration(self.after(at))
            ),
        );
        match self.conclusion {
            Some((_, end)) => {
                text += &format!(": {}.</p>", escaped(&end.traffic));
                if let (Some(until), Outcome::Promoted, true) =
                    (end.rollback_until, end.outcome, self.is_warm())
                {
                    text += &format!(
                        "<p>The previous replica stays warm until {}. To bring it back: <code>command: rollback</code>, \
                         <code>swap-id: {}</code>.</p>",
                        moment(until),
                        escaped(self.swap)
                    );
                }
            }
            None => {
                text += ". The server goes on by itself; <code>command: status</code> tells what serves.</p>"
            }
        }
        text + "</header>\n"
    }

    /// What a slot's line is called, and its colour: slots in their order.
    fn slots(&self) -> Vec<(String, String)> {
        let sides = self.plan.incumbent.iter().chain([&self.plan.candidate]);
        let known: BTreeMap<_, _> =
            sides.map(|side| (side.slot.to_string(), &side.revision.model)).collect();
        let mut slots: Vec<String> = known.keys().cloned().collect();
        let measured = self.samples.iter().flat_map(|(_, sample)| &sample.replicas);
        slots.extend(measured.map(|replica| replica.slot.to_string()));
        slots.sort_unstable();
        slots.dedup();
        let name = |slot: String| match known.get(&slot) {
            Some(model) => (slot.clone(), format!("slot {slot}, {model}")),
            None => (slot.clone(), format!("slot {slot}")),
        };
        slots.into_iter().map(name).collect()
    }

    /// One line for each slot, of what is made of its loads; each with the one before, if the replica is the same.
    fn of_slots(&self, value: impl Fn(Option<&Load>, &Load) -> Option<f64>) -> Vec<Series> {
        let line = |(colour, (slot, name)): (usize, (String, String))| {
            let mut before: Option<&Load> = None;
            let mut points = Vec::new();
            for (at, sample) in &self.samples {
                let Some(found) = sample.replicas.iter().find(|found| found.slot.as_str() == slot)
                else {
                    points.push((*at, None));
                    before = None;
                    continue;
                };
                let same = before.filter(|before| before.completed <= found.load.completed);
                points.push((*at, value(same, &found.load)));
                before = Some(&found.load);
            }
            Series { name, colour, points }
        };
        self.slots().into_iter().enumerate().map(line).collect()
    }

    fn in_flight(&self) -> Vec<Series> {
        self.of_slots(|_, load| Some(number(load.in_flight)))
    }

    /// Of the requests that ended between two samples.
    fn latency(&self) -> Vec<Series> {
        self.of_slots(|before, load| {
            let between = since(before?, load);
            (between.timed > 0).then(|| number(between.took_ms) / number(between.timed) / 1000.0)
        })
    }

    fn memory(&self) -> Vec<Series> {
        let mut gpus: BTreeMap<u32, (u64, Points)> = BTreeMap::new();
        for (at, sample) in &self.samples {
            for gpu in &sample.gpus {
                let (total, points) = gpus.entry(gpu.index).or_default();
                *total = gpu.total;
                points.push((*at, Some(number(gpu.used) / MIB_IN_GIB)));
            }
        }
        let line = |(colour, (index, (total, points))): (usize, (u32, (u64, Vec<_>)))| {
            let name = format!("GPU {index} of {:.0} GiB", number(total) / MIB_IN_GIB);
            Series { name, colour, points }
        };
        gpus.into_iter().enumerate().map(line).collect()
    }
}

/// A bar for each step.
fn timeline(story: &Story<'_>) -> String {
    let whole = story.whole();
    let mut rows = Vec::new();
    for (index, planned) in story.plan.all_steps().enumerate() {
        let mut began = None;
        let (mut end, mut class, mut detail) = (None, "later", planned.does.as_str());
        for event in story.events {
            let at = story.after(event.at);
            let (now, said) = match &event.kind {
                EventKind::StepStarted { index: of } if *of == index => {
                    began = Some(at);
                    ("running", None)
                }
                EventKind::StepSucceeded { index: of, detail, .. } if *of == index => {
                    ("done", Some(detail.as_str()))
                }
                EventKind::StepFailed { index: of, failure, .. } if *of == index => {
                    ("failed", Some(failure.message.as_str()))
                }
                EventKind::UndoFinished { index: of, detail }
                    if *of == index && class != "failed" =>
                {
                    ("undone", Some(detail.as_str()))
                }
                EventKind::UndoFailed { index: of, failure } if *of == index => {
                    ("failed", Some(failure.message.as_str()))
                }
                _ => continue,
            };
            class = now;
            detail = said.filter(|said| !said.is_empty()).unwrap_or(detail);
            if matches!(event.kind, EventKind::StepSucceeded { .. } | EventKind::StepFailed { .. })
            {
                end = Some(at);
            }
        }
        let took = began.map(|began| end.unwrap_or(whole).saturating_sub(began));
        let bar = began.zip(took).map(|(began, took)| {
            format!(
                "<i style=\"left:{:.2}%;width:{:.2}%\"></i>",
                share(began, whole) * 100.0,
                share(took, whole) * 100.0
            )
        });
        rows.push(format!(
            "<li class=\"{class}\"><b>{}</b><span class=\"bar\">{}</span><time>{}</time><small>{}</small></li>",
            escaped(&planned.step.to_string()),
            bar.unwrap_or_default(),
            took.map(duration).unwrap_or_else(|| "–".to_owned()),
            escaped(detail),
        ));
    }
    let end = duration(whole);
    format!(
        "<section><h2>Timeline</h2><ol class=\"steps\">{}</ol><div class=\"x steps-x\"><span>0</span><span>{end}</span></div></section>\n",
        rows.concat()
    )
}

fn why(failure: Option<&Failure>) -> String {
    let Some(failure) = failure else { return String::new() };
    let lines =
        |lines: &[String]| lines.iter().map(|line| escaped(line) + "\n").collect::<String>();
    let mut text = format!(
        "<section><h2>Why</h2><pre>{}{}</pre>",
        lines(&reasons(failure)),
        lines(&hints(failure))
    );
    let tail = tail(failure);
    if !tail.is_empty() {
        text += &format!(
            "<details><summary>Last {} lines of its log</summary><pre>{}</pre></details>",
            tail.len(),
            lines(tail)
        );
    }
    text + "</section>\n"
}

/// Every event in the words of the log.
fn events_table(story: &Story<'_>) -> String {
    let mut log = Log::default();
    let mut rows = String::new();
    for event in story.events {
        let mut lines = log.lines(event);
        // The plan is the timeline, but for its notes.
        if matches!(event.kind, EventKind::Planned { .. }) {
            lines.retain(|line| matches!(line, Line::Warning(_)));
        }
        let after = duration(story.after(event.at));
        for line in lines {
            let (class, text) = match line {
                Line::Text(text) => ("", without_time(&text, &after)),
                Line::Warning(text) => ("warning", text),
                Line::Error(text, _) => ("error", text),
                Line::GroupStart(_) | Line::GroupEnd | Line::Remote(_) => continue,
            };
            let text = escaped(&text);
            rows += &format!("<tr class=\"{class}\"><td>{after}</td><td>{text}</td></tr>");
        }
    }
    format!(
        "<section><h2>Events</h2><details open><summary>from {}</summary>\
         <table class=\"events\"><tbody>{rows}</tbody></table></details></section>\n",
        moment(story.began)
    )
}

/// A line of the log begins with the time, which has a column of its own here.
fn without_time(text: &str, after: &str) -> String {
    let text = text.trim_start();
    text.strip_prefix(after).unwrap_or(text).trim().to_owned()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts and milliseconds of one swap are far below 2^53"
)]
fn number(value: u64) -> f64 {
    value as f64
}

/// Foreign text as nothing but text, in an attribute as well.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in inert(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
