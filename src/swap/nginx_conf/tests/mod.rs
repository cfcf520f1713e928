use super::*;

mod dump;
mod edit;
mod syntax;
mod units;

/// `name arg arg [inner inner]` of every directive: enough to compare trees by eye.
fn outline(directives: &[Directive]) -> String {
    let one = |directive: &Directive| {
        let words: Vec<&str> = directive.words.iter().map(|word| word.value.as_str()).collect();
        match &directive.block {
            None => words.join("|"),
            Some(block) => format!("{} [{}]", words.join("|"), outline(block)),
        }
    };
    directives.iter().map(one).collect::<Vec<_>>().join(" / ")
}
