use super::*;
use crate::model::plan::Side;
use crate::swap::planner::tests::two_slot_plan;

fn revision(digest: &str) -> Revision {
    Revision {
        digest: digest.to_owned(),
        model: format!("model {digest}"),
        git_sha: None,
        image: None,
    }
}

/// A swap from one revision to another; what it takes to start the other again is kept.
fn swap(id: &str, (from, to): (&str, &str), strategy: Strategy, outcome: Outcome) -> Told {
    let mut plan = two_slot_plan();
    plan.strategy = strategy;
    plan.candidate.revision = revision(to);
    plan.incumbent = plan.incumbent.map(|side| Side { revision: revision(from), ..side });
    let mut keeps = vec![to.to_owned()];
    keeps.extend(from.starts_with("adopted").then(|| from.to_owned()));
    let at = jiff::Timestamp::UNIX_EPOCH;
    let (swap, revision) = (id.parse().unwrap(), revision(to));
    let past = Past { swap, at, outcome, revision, strategy: Some(strategy) };
    Told { past, plan: Some(plan), keeps }
}

fn promoted(id: &str, from: &str, to: &str) -> Told {
    swap(id, (from, to), Strategy::BlueGreen, Outcome::Promoted)
}

fn back(id: &str, from: &str, to: &str) -> Told {
    swap(id, (from, to), Strategy::WarmRollback, Outcome::RolledBack)
}

fn history(told: Vec<Told>, serves: &str) -> History {
    History::new(told, Some(serves.to_owned()), None)
}

fn course(
    history: &History,
    wanted: Wanted<'_>,
    serving_swap: Option<&str>,
) -> Result<Course, String> {
    let serving: Option<SwapId> = serving_swap.map(|id| id.parse().unwrap());
    history.course(wanted, serving.as_ref()).map_err(|failure| failure.to_string())
}

fn unchanged(course: Result<Course, String>) -> String {
    match course {
        Ok(Course::Unchanged(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

fn cold(digest: &str, kept_in: &str) -> Course {
    Course::Back(revision(digest), WayBack::Cold(kept_in.parse().unwrap()))
}

fn to(digest: &str) -> Wanted<'_> {
    Wanted { of: None, to: Some(digest) }
}

#[test]
fn what_served_before_comes_back_from_the_swap_that_kept_it() {
    let told = vec![promoted("s-1", "adopted-0", "r-1"), promoted("s-2", "r-1", "r-2")];
    let two = history(told.clone(), "r-2");
    assert_eq!(course(&two, Wanted::default(), Some("s-2")), Ok(cold("r-1", "s-1")));
    assert_eq!(course(&two, to("adopted"), Some("s-2")), Ok(cold("adopted-0", "s-1")));
    let one = history(told[..1].to_vec(), "r-1");
    assert_eq!(course(&one, Wanted::default(), Some("s-1")), Ok(cold("adopted-0", "s-1")));
    let warm = History::new(told, Some("r-2".to_owned()), Some("r-1".to_owned()));
    assert_eq!(
        course(&warm, Wanted::default(), Some("s-2")),
        Ok(Course::Back(revision("r-1"), WayBack::Warm))
    );
}

#[test]
fn only_the_swap_that_serves_can_be_undone() {
    let two = history(vec![promoted("s-1", "r-0", "r-1"), promoted("s-2", "r-1", "r-2")], "r-2");
    let of = "s-1".parse().unwrap();
    assert_eq!(
        unchanged(course(&two, Wanted { of: Some(&of), to: None }, Some("s-2"))),
        "swap s-1 is not what serves now (the result of s-2 does)"
    );
}

#[test]
fn a_repeated_rollback_moves_nothing_and_brings_nothing_bad_back() {
    let told = vec![promoted("s-1", "adopted-0", "r-1"), back("s-2", "r-1", "adopted-0")];
    let after = history(told.clone(), "adopted-0");
    assert!(unchanged(course(&after, Wanted::default(), None)).contains("brought back by s-2"));
    assert!(matches!(course(&after, to("adopted-0"), None), Ok(Course::Serves(_))));
    let bad = unchanged(course(&after, to("r-1"), None));
    assert!(bad.contains("was rolled back by s-2"), "{bad}");
    let note = "this revision was rolled back by s-2 at 1970-01-01 00:00:00 UTC";
    assert_eq!(after.against("r-1").unwrap(), note);
    assert_eq!(after.against("adopted-0"), None);

    // Whoever swaps to it has it serve, and it is good again.
    let again = [told, vec![promoted("s-3", "adopted-0", "r-1"), promoted("s-4", "r-1", "r-4")]];
    let again = history(again.concat(), "r-4");
    assert_eq!(again.against("r-1"), None);
    assert_eq!(course(&again, Wanted::default(), Some("s-4")), Ok(cold("r-1", "s-3")));
}

#[test]
fn a_failed_candidate_does_not_move_the_healthy_one() {
    for outcome in [Outcome::Failed, Outcome::RolledBack, Outcome::Aborted] {
        let failed = swap("s-2", ("r-1", "r-2"), Strategy::BlueGreen, outcome);
        let seen = history(vec![promoted("s-1", "adopted-0", "r-1"), failed], "r-1");
        let reason = unchanged(course(&seen, Wanted::default(), Some("s-1")));
        assert!(reason.contains(&format!("s-2, ended {outcome}")), "{reason}");
        let of = "s-1".parse().unwrap();
        let named = Wanted { of: Some(&of), to: None };
        assert_eq!(course(&seen, named, Some("s-1")), Ok(cold("adopted-0", "s-1")));
    }
    // A rollback that failed may be tried again.
    let failed = swap("s-2", ("r-1", "adopted-0"), Strategy::ColdRollback, Outcome::Failed);
    let seen = history(vec![promoted("s-1", "adopted-0", "r-1"), failed], "r-1");
    assert!(matches!(course(&seen, Wanted::default(), Some("s-1")), Ok(Course::Back(..))));
}

#[test]
fn what_cannot_come_back_is_said() {
    let none = history(Vec::new(), "adopted-0");
    assert_eq!(
        course(&none, Wanted::default(), None),
        Err("there is nothing to roll back to: no swap's result serves".to_owned())
    );
    let mut lost = promoted("s-1", "adopted-0", "r-1");
    lost.keeps.clear();
    let failed = swap("s-2", ("r-1", "r-2"), Strategy::BlueGreen, Outcome::Failed);
    let seen = history(vec![lost, failed], "r-1");
    let refused = |wanted| course(&seen, wanted, Some("s-1")).unwrap_err();
    assert!(refused(to("adopted")).contains("is not on the server any more"));
    assert!(refused(to("r-2")).contains("never served"));
    assert!(refused(to("r-9")).contains("begins with \"r-9\""));
    assert!(
        refused(to("r-")).contains("the beginning of more than one digest"),
        "{}",
        refused(to("r-"))
    );
    // Without the part before the dash.
    let serves = Course::Serves("model r-1 (r-1) already serves".to_owned());
    assert_eq!(course(&seen, to("1"), Some("s-1")), Ok(serves));
    let mut forgotten = promoted("s-1", "adopted-0", "r-1");
    forgotten.plan = None;
    let refused = course(&history(vec![forgotten], "r-1"), Wanted::default(), Some("s-1"));
    assert!(refused.unwrap_err().contains("what served before swap s-1 is not known any more"));
}

#[test]
fn the_chapters_tell_the_ways() {
    let told = vec![promoted("s-1", "adopted-0", "r-1"), promoted("s-2", "r-1", "r-2")];
    let chapters = history(told, "r-2").chapters();
    let kept = WayBack::Cold("s-1".parse().unwrap());
    assert_eq!(chapters[0].way, kept);
    assert_eq!(chapters[0].previous, Some((revision("adopted-0"), kept.clone())));
    assert_eq!(
        (&chapters[1].way, chapters[1].previous.clone().unwrap().1),
        (&WayBack::Serves, kept)
    );
}
