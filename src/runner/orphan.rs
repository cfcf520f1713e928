//! A swap whose agent is gone while somebody follows it. Where no systemd brings another one, the next command ends it; whoever
//! follows asks for that at once: it is there, and wants to know how the swap ends.

use std::time::Duration;

use super::follow::Followed;
use crate::model::state::Requester;
use crate::model::wire::{
    AbortRequest, Command, Request, RollbackRequest, SwapRequest, Unknown, Wish,
};

/// For so many agents in a row the server is asked for another one: what kills each of them, as a kernel without memory does, is for
/// a person to mend.
const MOST_DEATHS: usize = 3;

/// What was asked for, whose agent may die.
pub(super) struct Orphan<'a> {
    origin: &'a Request,
    requester: &'a Requester,
    deaths: usize,
}

impl<'a> Orphan<'a> {
    /// Of a request, as it was sent first.
    pub(super) fn of(origin: &'a Request, requester: &'a Requester) -> Self {
        Self { origin, requester, deaths: 0 }
    }

    /// The request by which the server brings the swap to its end that was begun or followed. `None`: a person decides, or the next
    /// command.
    pub(super) fn brought_to_end(&mut self, followed: &mut Followed) -> Option<Request> {
        let command = self.ends(followed).filter(|_| self.deaths < MOST_DEATHS)?;
        self.deaths += 1;
        // Who takes it up asks for another one.
        followed.needs_no_word();
        Some(Request { v: self.origin.v, command })
    }

    fn ends(&self, followed: &Followed) -> Option<Command> {
        // Whoever is at work meanwhile has ended it first.
        let lock_wait = Duration::ZERO;
        match (self.origin.command.clone(), followed.swap.clone()) {
            // By its id the server knows that it has begun, and does not begin it again.
            (Command::Swap(wanted), Some(swap)) => {
                Some(Command::Swap(SwapRequest { swap, lock_wait, ..wanted }))
            }
            (Command::Rollback(wanted), Some(swap)) => {
                Some(Command::Rollback(RollbackRequest { swap, lock_wait, ..wanted }))
            }
            // What is at no end the server finds by itself. It had its turn, or dies before that: then it waits for it anew.
            (repair @ Command::Repair(_), _) => Some(repair),
            // Nobody has said that the order was heard.
            (abort @ Command::Abort(AbortRequest { of: Some(_), .. }), None) => Some(abort),
            // Who was to be given up is given up; whoever only follows decides nothing.
            (command @ (Command::Follow { .. } | Command::Abort(_)), Some(swap)) => {
                let is_order = matches!(command, Command::Abort(_));
                let abort = AbortRequest {
                    asked: command.asked()?.clone(),
                    of: Some(swap),
                    unknown: Unknown::Refused,
                    wish: if is_order { Wish::GivenUp } else { Wish::Ended },
                    since: followed.seq,
                    requester: self.requester.clone(),
                };
                followed.conclusion.is_none().then_some(Command::Abort(abort))
            }
            _ => None,
        }
    }

    /// The connection was lost, and nothing heard by it: nobody may know what was asked for.
    pub(super) fn unheard(&mut self) {
        self.deaths = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::github::inputs::CommandName;
    use crate::model::ids::SwapId;
    use crate::model::wire::{Asked, RepairRequest, Secrets, WIRE_VERSION, Wait, When};
    use crate::swap::planner::tests::spec;

    /// What was asked for first, and what is asked for at each death from then on.
    fn asked(command: impl FnOnce(Asked, SwapId) -> Command) -> Vec<Command> {
        let (asked, swap): (_, SwapId) =
            (Asked { spec: spec(), secrets: Secrets::default() }, "s-1".parse().unwrap());
        let origin = Request { v: WIRE_VERSION, command: command(asked, swap.clone()) };
        let requester = Requester::default();
        let mut orphan = Orphan::of(&origin, &requester);
        let mut followed = Followed::of(CommandName::Swap);
        assert!(orphan.brought_to_end(&mut followed).is_none(), "nothing has begun");
        followed.swap = Some(swap);
        let mut all = Vec::new();
        while let Some(request) = orphan.brought_to_end(&mut followed) {
            all.push(request.command);
        }
        orphan.unheard();
        assert!(orphan.brought_to_end(&mut followed).is_some(), "nobody may have heard of it");
        all
    }

    #[test]
    fn a_swap_is_asked_for_by_its_id_and_not_for_ever() {
        let swap = |asked, swap| {
            Command::Swap(SwapRequest {
                asked,
                swap,
                when: When::Changed,
                plan_digest: None,
                plan_parts: None,
                lock_wait: Duration::from_secs(60),
                wait: Wait::Promoted,
                requester: Requester::default(),
            })
        };
        let all = asked(swap);
        assert_eq!(all.len(), MOST_DEATHS);
        for command in all {
            let Command::Swap(again) = command else { panic!("{command:?}") };
            assert_eq!((again.swap.as_str(), again.lock_wait), ("s-1", Duration::ZERO));
        }
    }

    #[test]
    fn what_was_to_be_aborted_stays_so() {
        let abort = |asked, _| {
            let (unknown, requester) = (Unknown::Kept, Requester::default());
            let (of, wish) = (None, Wish::GivenUp);
            Command::Abort(AbortRequest { asked, of, unknown, wish, since: 0, requester })
        };
        for command in asked(abort) {
            let Command::Abort(again) = command else { panic!("{command:?}") };
            assert_eq!((again.of, again.wish), (Some("s-1".parse().unwrap()), Wish::GivenUp));
        }
    }

    #[test]
    fn who_follows_gives_nothing_up() {
        let follow = |asked, swap| Command::Follow { asked, swap, since: 0, wait: Wait::Promoted };
        for command in asked(follow) {
            let Command::Abort(ended) = command else { panic!("{command:?}") };
            assert_eq!((ended.of, ended.wish), (Some("s-1".parse().unwrap()), Wish::Ended));
        }
    }

    /// Its agent may die before it has said which swap it takes up.
    #[test]
    fn a_repair_is_asked_for_once_more_and_not_for_ever() {
        let asked = Asked { spec: spec(), secrets: Secrets::default() };
        let (lock_wait, requester) = (Duration::from_secs(60), Requester::default());
        let repair = RepairRequest { asked, id: None, lock_wait, requester: requester.clone() };
        let origin = Request { v: WIRE_VERSION, command: Command::Repair(repair) };
        let mut orphan = Orphan::of(&origin, &requester);
        let mut followed = Followed::of(CommandName::Repair);
        for death in 0..MOST_DEATHS {
            assert_eq!(orphan.brought_to_end(&mut followed), Some(origin.clone()), "{death}");
            followed.swap = Some("s-1".parse().unwrap());
        }
        assert_eq!(orphan.brought_to_end(&mut followed), None);
    }
}
