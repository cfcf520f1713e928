//! What is different between two plans, line by line.

use super::Line;
use super::markdown::{fenced, words};
use super::summary::OUTLOOK;
use super::text::inert;

/// The lines of the first text that the second does not have, led by `- `, then those of the second that the first does not
/// have, led by `+ `. Both are Markdown, and compared by their words; process ids and the outlook, which no digest holds, are not.
pub fn of(before: &str, now: &str) -> Vec<String> {
    let [before, now] = [before, now].map(|text| {
        let lines = text.lines().filter(|line| !line.starts_with(OUTLOOK)).map(words);
        let lines = lines.filter(|line| !line.is_empty());
        lines.collect::<Vec<String>>()
    });
    let only = |these: &[String], those: &[String], mark: &str| -> Vec<String> {
        let there = |line: &String| those.iter().any(|other| same(line) == same(other));
        these.iter().filter(|line| !there(line)).map(|line| format!("{mark} {line}")).collect()
    };
    [only(&before, &now, "-"), only(&now, &before, "+")].concat()
}

/// The same where the end of the first text is missing: what the second has after the last line that both have is not told.
pub fn up_to_the_end_of(before: &str, now: &str) -> Vec<String> {
    let last = before.lines().map(words).rfind(|line| !line.is_empty()).unwrap_or_default();
    let lines: Vec<&str> = now.lines().collect();
    let end = lines.iter().position(|line| same(&words(line)) == same(&last));
    // Where that line is another one now, nobody knows where the rest would begin: so many lines are compared.
    let end = end.map_or_else(|| before.lines().count(), |last| last + 1).min(lines.len());
    of(before, &lines[..end].join("\n"))
}

/// As a part of a log.
pub fn lines(title: &str, different: &[String]) -> Vec<Line> {
    let mut lines = vec![Line::GroupStart(title.to_owned())];
    lines.extend(different.iter().map(|line| Line::Text(inert(line))));
    lines.push(Line::GroupEnd);
    lines
}

/// As a part of a summary.
pub fn markdown(title: &str, different: &[String]) -> String {
    format!("\n### {title}\n\n{}", fenced(different))
}

/// A line without what is another number each time.
fn same(line: &str) -> String {
    let mut parts = line.split("pid ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |line, rest| {
        line + "pid" + rest.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::super::summary::of_plan;
    use super::*;
    use crate::model::plan::Plan;

    #[test]
    fn only_what_is_different_is_said_and_pids_are_not() {
        let before = sample::plan();
        let mut now = before.clone();
        now.later[0].does = "stops pid 4711".to_owned();
        let seen = |room: &str| vec![format!("GPU 1 has {room} GiB free")];
        assert_eq!(of(&of_plan(&before, &seen("70")), &of_plan(&now, &seen("69"))), [""; 0]);
        now.candidate.revision.model = "Qwen/<C>".to_owned();
        let plan = Plan { digest: "p-2".to_owned(), ..now };
        assert_eq!(
            of(&of_plan(&before, &[]), &of_plan(&plan, &[])),
            [
                "- Plan for chat: blue-green p-1",
                "- Qwen/A (adopted-a) on slot a → Qwen/B (r-b) on slot b",
                "+ Plan for chat: blue-green p-2",
                "+ Qwen/A (adopted-a) on slot a → Qwen/<C> (r-b) on slot b",
            ]
        );
        // Cut behind the model: whatever is missing is not what is different.
        let [whole, other] = [&before, &plan].map(|plan| of_plan(plan, &[]));
        let end = whole.find("(r-b)").unwrap();
        let cut = &whole[..end + whole[end..].find('\n').unwrap()];
        assert!(of(cut, &whole).len() > 1, "{cut}");
        assert_eq!(up_to_the_end_of(cut, &whole), [""; 0]);
        assert_eq!(up_to_the_end_of(cut, &other), of(&whole, &other));
        assert!(markdown("T", &["- ```".to_owned()]).contains("````text\n- ```\n````"));
    }
}
