//! The transition table against a second description of a well-behaved agent, over random histories.
//!
//! The agent: does the steps in order, each once; after a failure or a death undoes what it began, last first, a step's
//! undo as often as it dies or is stuck in it, and never past a `retire`; concludes once, only when all is done, all is
//! undone or an undo failed; then only goes forward with what comes after `promote`, as often as that takes; and closes.
//! What is stuck may be taken up again, closed or not, by the undo that failed; and a cutover whose undo was begun by doing it
//! once more, and then what comes after it.
//! Which word a conclusion uses (failed or aborted, promoted or rolled back) is the executor's and not the table's.

use model_swap::model::failure::Failure;
use model_swap::model::outcome::Outcome;
use model_swap::model::plan::Plan;
use model_swap::model::record::{Done, RecordKind, Traffic, Undo};
use model_swap::model::step::Step;
use model_swap::swap::transition::{self, Status};

use super::scene::{Kind, Scene};

/// How many histories a plan gets, and how long one may be.
const HISTORIES: usize = 400;
const LONGEST: usize = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Now {
    Idle,
    Acting,
    Failed,
    Undoing(usize),
    /// Everything from here on is undone.
    Undone(usize),
    UndoFailed(usize),
}

/// A well-behaved agent.
#[derive(Debug)]
struct Agent<'a> {
    plan: &'a Plan,
    /// How many steps are done.
    done: usize,
    now: Now,
    /// Whether the step after them was begun.
    half_done: bool,
    outcome: Option<Outcome>,
    closed: bool,
}

impl<'a> Agent<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self { plan, done: 0, now: Now::Idle, half_done: false, outcome: None, closed: false }
    }

    fn promoted(&self) -> bool {
        self.done >= self.plan.steps.len()
    }

    fn total(&self) -> usize {
        self.plan.all_steps().count()
    }

    /// The next step to undo.
    fn to_undo(&self) -> Option<usize> {
        if self.promoted() {
            return None;
        }
        let begun = self.done + usize::from(self.half_done);
        let retires = |index: &usize| matches!(self.plan.steps[*index].step, Step::Retire { .. });
        let floor = (0..begun).rev().find(retires).map_or(0, |index| index + 1);
        let next = match self.now {
            Now::Idle | Now::Acting | Now::Failed => begun.checked_sub(1)?,
            Now::Undoing(step) | Now::UndoFailed(step) => step,
            Now::Undone(step) => step.checked_sub(1)?,
        };
        (next >= floor).then_some(next)
    }

    fn may(&self, kind: &RecordKind) -> bool {
        let stuck = self.outcome == Some(Outcome::Stuck);
        if stuck && matches!(kind, RecordKind::UndoStarted { .. }) {
            return matches!((self.now, kind), (Now::UndoFailed(one), RecordKind::UndoStarted { step }) if one == *step);
        }
        if let (Now::Undoing(one) | Now::UndoFailed(one), RecordKind::Started { step, .. }) =
            (self.now, kind)
        {
            return one == *step && matches!(self.plan.steps[one].step, Step::CutOver { .. });
        }
        let settled = self.outcome.is_some();
        if self.closed {
            return false;
        }
        match kind {
            RecordKind::Planned { .. } => false,
            RecordKind::Started { step, .. } => {
                let again = self.promoted() && matches!(self.now, Now::Acting | Now::Failed);
                *step == self.done
                    && *step < self.total()
                    && (self.now == Now::Idle || again)
                    && settled == self.promoted()
            }
            RecordKind::Succeeded { step, .. } | RecordKind::Failed { step, .. } => {
                self.now == Now::Acting && *step == self.done && settled == self.promoted()
            }
            RecordKind::UndoStarted { step } => !settled && self.to_undo() == Some(*step),
            RecordKind::UndoFinished { step, .. } | RecordKind::UndoFailed { step, .. } => {
                self.now == Now::Undoing(*step)
            }
            RecordKind::Concluded { outcome } => {
                let unwound = !self.promoted() && self.to_undo().is_none();
                !settled
                    && match outcome {
                        Outcome::Promoted => self.promoted(),
                        Outcome::RolledBack => self.promoted() || unwound,
                        Outcome::Failed | Outcome::Aborted => unwound,
                        Outcome::Stuck => matches!(self.now, Now::UndoFailed(_)),
                        Outcome::Unchanged => false,
                    }
            }
            RecordKind::Closed => settled,
        }
    }

    fn does(&mut self, kind: &RecordKind) {
        match kind {
            RecordKind::Planned { .. } => {}
            RecordKind::Started { step, .. } => {
                if matches!(self.now, Now::Undoing(_) | Now::UndoFailed(_)) {
                    (self.done, self.outcome, self.closed) = (*step, None, false);
                }
                (self.now, self.half_done) = (Now::Acting, true);
            }
            RecordKind::Succeeded { .. } => {
                self.done += 1;
                (self.now, self.half_done) = (Now::Idle, false);
            }
            RecordKind::Failed { .. } => self.now = Now::Failed,
            RecordKind::UndoStarted { step } => {
                self.now = Now::Undoing(*step);
                (self.outcome, self.closed) = (None, false);
            }
            RecordKind::UndoFinished { step, .. } => self.now = Now::Undone(*step),
            RecordKind::UndoFailed { step, .. } => self.now = Now::UndoFailed(*step),
            RecordKind::Concluded { outcome } => self.outcome = Some(*outcome),
            RecordKind::Closed => self.closed = true,
        }
    }
}

/// xorshift64*: the same histories in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(drawn).expect("31 bits") % bound
    }
}

/// Every record that there is, for steps up to one beyond the plan.
fn every_record(plan: &Plan) -> Vec<RecordKind> {
    let failure = || Failure::new("x");
    let steps = 0..=plan.all_steps().count();
    let of_step = |step| {
        [
            RecordKind::Started { step, undo: Undo::Nothing },
            RecordKind::Succeeded { step, done: Done::Nothing },
            RecordKind::Failed { step, failure: failure() },
            RecordKind::UndoStarted { step },
            RecordKind::UndoFinished { step, traffic: Traffic::Untouched },
            RecordKind::UndoFailed { step, failure: failure() },
        ]
    };
    let outcomes = [
        Outcome::Promoted,
        Outcome::Unchanged,
        Outcome::RolledBack,
        Outcome::Aborted,
        Outcome::Failed,
        Outcome::Stuck,
    ];
    let (swap, plan) = ("s-1".parse().unwrap(), Box::new(plan.clone()));
    let planned = RecordKind::Planned { swap, plan, requester: Box::default() };
    steps
        .flat_map(of_step)
        .chain(outcomes.map(|outcome| RecordKind::Concluded { outcome }))
        .chain([RecordKind::Closed, planned])
        .collect()
}

#[tokio::test(start_paused = true)]
async fn the_journal_accepts_exactly_what_a_well_behaved_agent_writes() {
    let mut dice = Dice(42);
    for kind in Kind::ALL {
        let (_scene, attempt) = Scene::of(kind).await;
        let records = every_record(&attempt.plan);
        for _ in 0..HISTORIES {
            let mut status = Status::of_plan(&attempt.plan);
            let mut agent = Agent::new(&attempt.plan);
            let mut history = Vec::new();
            for _ in 0..LONGEST {
                // Whatever might come next: accepted by both or by neither, and never a panic.
                for record in &records {
                    let accepted = transition::apply(&status, record).is_ok();
                    assert_eq!(accepted, agent.may(record), "{record:?} after {history:#?}");
                }
                let legal: Vec<_> = records.iter().filter(|record| agent.may(record)).collect();
                let Some(&next) = legal.get(dice.below(legal.len().max(1))) else { break };
                status = transition::apply(&status, next).unwrap();
                agent.does(next);
                history.push(next.clone());
            }
        }
    }
}
