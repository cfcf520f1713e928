//! Asks the agent and follows its answer to the end, through lost connections.

use tokio::time::Instant;

use super::cancel::{self, Order, Traffic};
use super::orphan::Orphan;
use super::patience::Patience;
use super::report::Reporter;
use super::stop::Stop;
use super::verify::{self, Customer, Seen, Visit};
use super::{Setting, Stopped, Voice};
use crate::github::inputs::CommandName;
use crate::github::output::Outputs;
use crate::model::digest::UNCHANGED;
use crate::model::event::{Closing, Conclusion, Event, EventKind};
use crate::model::failure::{Failure, Hint};
use crate::model::ids::SwapId;
use crate::model::outcome::{Exit, Outcome};
use crate::model::plan::Plan;
use crate::model::refusal::{Known, Refusal};
use crate::model::state::StatusReport;
use crate::model::target::Target;
use crate::model::wire::{AbortRequest, Asked, Command, Frame, Request, Wait};
use crate::remote::agent::{Install, ask};
use crate::remote::error::RemoteError;
use crate::remote::session::{Credentials, Session};
use crate::render::log::Log;
use crate::render::summary::{self, Summary};
use crate::render::{self, history, plan, status};

/// How a swap may end that was to be repaired: anyhow, but at its end.
const REPAIRED: [Outcome; 4] =
    [Outcome::Promoted, Outcome::RolledBack, Outcome::Failed, Outcome::Aborted];

/// The way to the server.
pub(super) struct Line<'a> {
    pub(super) setting: &'a Setting,
    pub(super) target: &'a Target,
    pub(super) credentials: Credentials,
    pub(super) install: Install,
    /// What a customer would ask, where a swap waits for that.
    pub(super) customer: Option<Customer>,
}

/// What a command came to.
#[derive(Default)]
pub(super) struct Followed {
    pub(super) swap: Option<SwapId>,
    pub(super) conclusion: Option<Conclusion>,
    closing: Option<Closing>,
    unchanged: Option<(String, StatusReport)>,
    plan: Option<(Plan, Vec<String>)>,
    /// The plan of the swap that is followed, and when it was told.
    planned: Option<(Box<Plan>, Instant)>,
    /// The answer to `status`.
    pub(super) status: Option<StatusReport>,
    summary: Summary,
    /// The job summary of the swaps that were repaired before this one.
    earlier: String,
    /// Every event, for the report.
    pub(super) story: Vec<Event>,
    log: Log,
    /// Lines of a log on the server, said as one part when they are all there.
    lines: Vec<String>,
    pub(super) seq: u64,
    pub(super) traffic: Traffic,
    /// Whether it was asked, and the answer did not come: the server may have begun.
    pub(super) lost: bool,
    /// Why the server is not heard at the moment.
    pub(super) unheard: Option<Failure>,
    /// Whether the server was given back.
    uninstalled: bool,
    /// The look from outside that the swap waits for.
    pub(super) visit: Option<Visit>,
    /// The nonce of a look that has not begun.
    pub(super) awaited: Option<String>,
    /// Whether the swap that is followed is to be aborted.
    aborting: bool,
}

/// Where a swap can be found again after the connection is lost.
struct Thread {
    asked: Asked,
    wait: Wait,
}

/// Sends the request and takes in every frame of the answer into `followed`.
pub(super) async fn follow(
    line: &Line<'_>,
    request: Request,
    followed: &mut Followed,
    (voice, reporter): (&mut Voice, &mut Reporter),
) -> Result<(), Stopped> {
    let thread = thread(&request.command);
    let order = Order::of(&request.command);
    let first = request;
    let mut request = first.clone();
    let mut orphan = Orphan::of(&first, &line.setting.run.requester);
    let mut stop = Stop::new()?;
    let mut patience = Patience::of(&request.command);
    loop {
        let known = followed.seq;
        let asked = (&request, order.as_ref());
        let error = match converse(line, asked, (followed, voice, reporter, &mut stop)).await {
            Ok(()) => {
                // Whoever found one swap again has not heard of the next.
                let repairs = matches!(first.command, Command::Repair(_));
                if repairs && followed.is_one_of_several(&request) {
                    request = first.clone();
                    continue;
                }
                let lines = std::mem::take(&mut followed.lines);
                voice.say((!lines.is_empty()).then(|| render::remote(&lines)));
                return Ok(());
            }
            Err(Ended::Stopped(stopped) | Ended::Refused(stopped)) => return Err(stopped),
            Err(Ended::Left(stopped)) => {
                request = orphan.brought_to_end(followed).ok_or(stopped)?;
                let text = "the agent is gone: asking the server to bring the swap to its end";
                voice.say([render::Line::Warning(text.to_owned())]);
                continue;
            }
            Err(Ended::Remote(error)) => error,
        };
        if followed.seq == known {
            orphan.unheard();
        }
        if let Some(patience) = patience.as_mut().filter(|_| followed.seq > known) {
            patience.renew();
            if let Some((plan, told)) = &followed.planned {
                patience.hear((plan, *told));
            }
        }
        // Only a swap goes on without us; and a connection that never was has begun nothing.
        followed.lost |= error.is_lost() && thread.is_some();
        if followed.lost && followed.swap.is_none() && means_any_swap(&request) {
            return Err(Stopped::remote(&error));
        }
        // What is only followed has begun before.
        let began = followed.began() || matches!(first.command, Command::Follow { .. });
        let patience = patience.as_mut().filter(|_| began && !error.is_input());
        let (Some(thread), Some(pause)) = (&thread, patience.and_then(Patience::pause)) else {
            return Err(Stopped::remote(&error));
        };
        let failure = error.to_failure();
        voice.say([render::Line::Warning(format!(
            "{failure}; the server goes on by itself; trying again in {}",
            humantime::format_duration(pause)
        ))]);
        followed.unheard = Some(failure);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.asked() => {
                let ears = (followed, voice, reporter, &mut stop);
                return cancel::give_up(None, line, order.as_ref(), ears).await;
            }
        }
        // Until the swap is known to be under way the same is asked again: its id makes it one swap.
        if let Some(swap) = followed.swap.clone() {
            let (asked, wait, since) = (thread.asked.clone(), thread.wait, followed.seq);
            request =
                Request { v: request.v, command: Command::Follow { asked, swap, since, wait } };
        }
    }
}

/// Whether the request is about whatever swap is under way when it comes: asked again it may meet another one.
fn means_any_swap(request: &Request) -> bool {
    matches!(request.command, Command::Abort(AbortRequest { of: None, .. }))
}

/// Why an answer was not heard to its end.
pub(super) enum Ended {
    /// The server refused.
    Refused(Stopped),
    /// What was followed is left by its agent, which is gone.
    Left(Stopped),
    /// A signal ended the command.
    Stopped(Stopped),
    /// The way to the server.
    Remote(RemoteError),
}

/// How far an answer was listened to.
enum Heard {
    All,
    UntilSignal,
}

async fn converse(
    line: &Line<'_>,
    (request, order): (&Request, Option<&Order>),
    (followed, voice, reporter, stop): Ears<'_>,
) -> Result<(), Ended> {
    let opened = tokio::select! {
        session = Session::open(line.target, line.credentials.clone()) => Some(session.map_err(Ended::Remote)?),
        () = stop.asked() => None,
    };
    let Some(session) = opened else {
        let given_up = cancel::give_up(None, line, order, (followed, voice, reporter, stop));
        return given_up.await.map_err(Ended::Stopped);
    };
    let ears = (&mut *followed, &mut *voice, &mut *reporter, &mut *stop);
    let result = match listen(&session, line, request, ears).await {
        Ok(Heard::All) => Ok(()),
        Ok(Heard::UntilSignal) => {
            let ears = (followed, voice, reporter, stop);
            cancel::give_up(Some(&session), line, order, ears).await.map_err(Ended::Stopped)
        }
        Err(ended) => Err(ended),
    };
    session.close().await;
    result
}

pub(super) type Ears<'a> = (&'a mut Followed, &'a mut Voice, &'a mut Reporter, &'a mut Stop);

async fn listen(
    session: &Session,
    line: &Line<'_>,
    request: &Request,
    (followed, voice, reporter, stop): Ears<'_>,
) -> Result<Heard, Ended> {
    let mut frames = tokio::select! {
        frames = ask(session, &line.install, request) => frames.map_err(Ended::Remote)?,
        () = stop.asked() => return Ok(Heard::UntilSignal),
    };
    loop {
        let frame = tokio::select! {
            frame = frames.next() => frame.map_err(Ended::Remote)?,
            () = stop.asked() => return Ok(Heard::UntilSignal),
            seen = Visit::next(&mut followed.visit) => {
                match seen {
                    Seen::Other(text) => voice.say([render::seen(&text)]),
                    Seen::Model(nonce) => {
                        // While it is under way nothing else is heard.
                        let refused = tokio::select! {
                            refused = verify::confirm(session, line, request, (followed, nonce)) => refused?,
                            () = stop.asked() => return Ok(Heard::UntilSignal),
                        };
                        voice.say(refused.iter().map(super::warning));
                    }
                }
                continue;
            }
        };
        let Some(frame) = frame else { return Ok(Heard::All) };
        if let (Frame::Accepted { swap }, Some(own)) = (&frame, request.command.begins())
            && swap != own
        {
            super::name_swap(line.setting, swap, voice);
            voice.say([render::earlier(swap)]);
        }
        followed.take(frame, voice, reporter)?;
        followed.visit(line);
    }
}

fn thread(command: &Command) -> Option<Thread> {
    let (asked, wait) = match command {
        Command::Swap(request) => (&request.asked, request.wait),
        Command::Rollback(request) => (&request.asked, request.wait),
        Command::Abort(request) => (&request.asked, Wait::Promoted),
        Command::Repair(request) => (&request.asked, Wait::Promoted),
        Command::Follow { asked, wait, .. } => (asked, *wait),
        Command::Plan(_)
        | Command::Confirm(_)
        | Command::Status(_)
        | Command::Logs(_)
        | Command::History(_)
        | Command::Doctor(_)
        | Command::Uninstall(_)
        | Command::Survey(_) => return None,
    };
    Some(Thread { asked: asked.clone(), wait })
}

impl Followed {
    /// Nothing yet of what a command will come to.
    pub(super) fn of(command: CommandName) -> Self {
        match command {
            CommandName::Abort => {
                Self { aborting: true, log: Log::wanting(&[Outcome::Aborted]), ..Self::default() }
            }
            CommandName::Repair => Self { log: Log::wanting(&REPAIRED), ..Self::default() },
            _ => Self::default(),
        }
    }

    /// Looks from outside once the swap waits for it; the latest attempt counts.
    fn visit(&mut self, line: &Line<'_>) {
        if let (Some(customer), Some(nonce)) = (&line.customer, self.awaited.take()) {
            self.visit = Some(customer.visit(nonce));
        }
    }

    /// Nobody waits for the word any more.
    pub(super) fn needs_no_word(&mut self) {
        (self.awaited, self.visit) = (None, None);
    }

    /// How the command ended. A swap that could not be aborted any more was left alone.
    fn outcome(&self) -> Option<Outcome> {
        let outcome = self.conclusion.as_ref()?.outcome;
        let left_alone = self.aborting && !matches!(outcome, Outcome::Aborted | Outcome::Stuck);
        Some(if left_alone { Outcome::Unchanged } else { outcome })
    }

    /// Whether a repaired swap was only followed to its end, and others may need repair as well.
    fn is_one_of_several(&self, asked: &Request) -> bool {
        matches!(asked.command, Command::Follow { .. })
            && self.outcome().is_some_and(|outcome| outcome != Outcome::Stuck)
    }

    /// Whether something has begun on the server, as far as is known.
    pub(super) fn began(&self) -> bool {
        self.swap.is_some() || self.lost
    }

    /// Whether it may have begun, and nobody has said how it ended.
    pub(super) fn is_open(&self) -> bool {
        self.began() && self.conclusion.is_none() && self.unchanged.is_none()
    }

    pub(super) fn take(
        &mut self,
        frame: Frame,
        voice: &mut Voice,
        reporter: &mut Reporter,
    ) -> Result<(), Ended> {
        self.unheard = None;
        // Asked once more whether anything is left to repair, the server says no.
        if matches!(frame, Frame::Unchanged { .. }) && self.conclusion.is_some() {
            return Ok(());
        }
        // Whoever brings a swap to its end tells its story from the beginning.
        if matches!(&frame, Frame::Event(event) if event.seq <= self.seq) {
            return Ok(());
        }
        voice.pass_on(&frame);
        match frame {
            Frame::Hello(_) | Frame::End => {}
            Frame::Plan { plan, outlook } => {
                voice.say(plan::lines(&plan));
                voice.say(plan::outlook(&outlook));
                self.plan = Some((*plan, outlook));
            }
            Frame::Unchanged { reason, status } => {
                voice.say(status::unchanged(&reason, &status));
                self.unchanged = Some((reason, *status));
            }
            Frame::Waiting { holder, limit, id } => {
                voice.say([status::waiting(&holder, limit, id.as_ref())]);
            }
            Frame::Accepted { swap } => {
                if self.swap.as_ref().is_some_and(|known| *known != swap) {
                    self.turn_the_page();
                }
                self.swap = Some(swap);
            }
            Frame::Event(event) => self.event(&event, voice, reporter),
            Frame::Status { report } => {
                voice.say(status::lines(&report));
                self.status = Some(*report);
            }
            // What would go by it needs to know what serves.
            Frame::Unseen { report } => voice.say(status::lines(&report)),
            Frame::History { report } => voice.say(history::lines(&report)),
            Frame::Line { text } => self.lines.push(text),
            Frame::Uninstalled(report) => {
                voice.say(render::uninstalled::lines(&report));
                self.uninstalled = true;
            }
            // The answers to `doctor` and `init`, which are not followed.
            Frame::Checkup { .. } | Frame::Survey { .. } => {}
            Frame::Refused(Refusal { failures, fault, known }) => {
                // An answer that was lost may have told of a swap that goes on, whatever this one is refused for.
                self.lost &= known != Known::Unbegun;
                let stopped = Stopped { failures, exit: fault.exit() };
                return Err(match known {
                    Known::Untold | Known::Unbegun => Ended::Refused(stopped),
                    Known::Left => Ended::Left(stopped),
                });
            }
        }
        Ok(())
    }

    /// A repair takes up one swap after another: each has a story of its own, and the last one's end counts.
    fn turn_the_page(&mut self) {
        let earlier = self.markdown();
        *self = Self { earlier, ..Self::of(CommandName::Repair) };
    }

    pub(super) fn event(&mut self, event: &Event, voice: &mut Voice, reporter: &mut Reporter) {
        if event.seq <= self.seq {
            return;
        }
        self.seq = event.seq;
        self.swap.get_or_insert_with(|| event.swap.clone());
        voice.follow(event);
        voice.say(self.log.lines(event));
        self.summary.apply(event);
        self.story.push(event.clone());
        reporter.hear(event);
        self.traffic.hear(&event.kind);
        match &event.kind {
            EventKind::Planned { plan, .. } => self.planned = Some((plan.clone(), Instant::now())),
            EventKind::Concluded(conclusion) => {
                self.conclusion = Some(conclusion.clone());
                // Of a swap that ended before, nobody ever will.
                self.needs_no_word();
                if self.outcome() == Some(Outcome::Unchanged) {
                    let text = "unchanged: the swap could not be aborted any more";
                    voice.say([render::Line::Text(text.to_owned())]);
                }
            }
            EventKind::Closed(closing) => self.closing = Some(closing.clone()),
            EventKind::AwaitsWord { nonce } => self.awaited = Some(nonce.clone()),
            EventKind::StepFailed { .. } => self.needs_no_word(),
            _ => {}
        }
    }

    /// How the process should exit.
    pub(super) fn exit(&self, setting: &Setting) -> Exit {
        if setting.inputs.command.only_asks() || self.unchanged.is_some() || self.uninstalled {
            return Exit::Done;
        }
        let Some(outcome) = self.outcome() else {
            return Exit::Environment;
        };
        // Asked to wait for the end, and the old replica runs on: somebody has to look.
        let kept = matches!(self.closing, Some(Closing::Kept { .. }))
            && setting.inputs.wait == Wait::Retired;
        match (setting.inputs.command, kept) {
            (_, true) => Exit::Stuck,
            (CommandName::Abort, false) => Exit::of_abort(outcome),
            (CommandName::Repair, false) => Exit::of_repair(outcome),
            (CommandName::Rollback | CommandName::Fail, false) => Exit::of_rollback(outcome),
            (_, false) => Exit::of_swap(outcome),
        }
    }

    /// The job summary.
    pub(super) fn markdown(&self) -> String {
        match (&self.unchanged, &self.plan) {
            (Some((reason, _)), _) => summary::of_unchanged(reason),
            (None, Some((plan, outlook))) => summary::of_plan(plan, outlook),
            (None, None) => self.earlier.clone() + &self.summary.markdown(),
        }
    }

    /// The step's outputs, but for the deployment.
    pub(super) fn outputs(&self) -> Outputs {
        if let Some((_, status)) = &self.unchanged {
            let serving = status.serving();
            return Outputs {
                outcome: Some(Outcome::Unchanged),
                swap_id: status.serving_swap.clone(),
                revision: serving.and_then(|slot| Some(slot.revision.as_ref()?.digest.clone())),
                slot: serving.map(|slot| slot.slot.clone()),
                rollback_until: status.rollback_until,
                plan_digest: Some(UNCHANGED.to_owned()),
                ..Outputs::default()
            };
        }
        let conclusion = self.conclusion.as_ref();
        let digest = |revision: &Option<crate::model::replica::Revision>| {
            Some(revision.as_ref()?.digest.clone())
        };
        Outputs {
            outcome: self.outcome(),
            swap_id: self.swap.clone(),
            revision: conclusion.and_then(|conclusion| digest(&conclusion.revision)),
            previous_revision: conclusion
                .and_then(|conclusion| digest(&conclusion.previous_revision)),
            slot: conclusion.and_then(|conclusion| conclusion.slot.clone()),
            rollback_until: conclusion.and_then(|conclusion| conclusion.rollback_until),
            plan_digest: self.plan.as_ref().map(|(plan, _)| plan.approval().to_string()),
            ..Outputs::default()
        }
    }
}
