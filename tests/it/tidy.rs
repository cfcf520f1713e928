//! Rules of the source that no compiler knows.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use model_swap::github::inputs::INPUTS;
use model_swap::github::output::OUTPUTS;
use model_swap::model::outcome::Exit;
use model_swap::remote::build::ARCHITECTURES;

/// Every module of the crate and its floor. Imports go down only.
const FLOORS: [(&str, u8); 20] = [
    ("model", 0),
    ("swap", 1),
    ("config", 1),
    ("host", 2),
    ("abort", 2),
    ("confirmation", 2),
    ("event_log", 2),
    ("journal", 2),
    ("lease", 2),
    ("service_dir", 2),
    ("executor", 3),
    ("agent", 4),
    ("remote", 4),
    ("github", 4),
    ("render", 4),
    ("runner", 5),
    ("cli", 5),
    ("entry", 5),
    ("pid1", 5),
    ("main", 5),
];

/// The floor whose modules never import each other.
const SIBLINGS: u8 = 4;

const LONGEST_FILE: usize = 500;

const VAGUE: [&str; 8] =
    ["manager", "managers", "handler", "handlers", "helper", "helpers", "util", "utils"];

#[test]
fn imports_go_down_only() -> Result<()> {
    let broken: Vec<_> =
        sources("src")?.into_iter().flat_map(|(path, text)| wrong_imports(&path, &text)).collect();
    assert!(
        broken.is_empty(),
        "imports go down only (see ARCHITECTURE.md):\n{}",
        broken.join("\n")
    );
    Ok(())
}

#[test]
fn files_are_short() -> Result<()> {
    for (path, text) in sources("src")?.into_iter().chain(sources("tests")?) {
        let lines = text.lines().count();
        assert!(
            lines <= LONGEST_FILE,
            "{path} has {lines} lines; {LONGEST_FILE} is the limit: split it"
        );
    }
    Ok(())
}

#[test]
fn every_module_says_what_it_is() -> Result<()> {
    // Modules of tests are named after what they test.
    let is_test = |path: &str| path.ends_with("/tests.rs") || path.contains("/tests/");
    for (path, text) in sources("src")?.into_iter().filter(|(path, _)| !is_test(path)) {
        assert!(text.starts_with("//!"), "{path} does not begin with a //! comment on its purpose");
    }
    Ok(())
}

#[test]
fn names_are_not_vague() -> Result<()> {
    let broken: Vec<_> = sources("src")?
        .into_iter()
        .chain(sources("tests")?)
        .flat_map(|(path, text)| vague_names(&path, &text))
        .collect();
    assert!(broken.is_empty(), "these names say nothing:\n{}", broken.join("\n"));
    Ok(())
}

#[test]
fn the_readme_has_every_exit_code() -> Result<()> {
    let said: Vec<_> = read("README.md")?.lines().filter_map(exit_row).collect();
    let meant: Vec<_> = read("src/model/outcome.rs")?.lines().filter_map(exit_doc).collect();
    assert_eq!(said, meant, "the README's table of exit codes differs from the comments on `Exit`");
    assert_eq!(said.iter().map(|(code, _)| *code).collect::<Vec<_>>(), Exit::ALL.map(Exit::code));
    Ok(())
}

#[test]
fn the_image_has_every_file_that_is_looked_for_in_it() -> Result<()> {
    let dockerfile = read("Dockerfile")?;
    let builds = format!("for kind in {};", ARCHITECTURES.join(" "));
    assert!(dockerfile.contains(&builds), "no {builds:?} in the Dockerfile");
    let action: serde_yaml::Value = serde_yaml::from_str(&read("action.yml")?)?;
    let after = action["runs"]["post-entrypoint"].as_str().context("no post-entrypoint")?;
    let name = after.strip_prefix("/usr/local/bin/").context("not beside the entry point")?;
    let link = format!("ln -s model-swap {name}");
    assert!(dockerfile.contains(&link), "no {link:?} in the Dockerfile");
    Ok(())
}

/// `action.yml` is held equal to the same two lists by a unit test of `github::inputs`.
#[test]
fn the_readme_has_every_input_and_output() -> Result<()> {
    let readme = read("README.md")?;
    let inputs: Vec<_> =
        INPUTS.iter().map(|input| (input.name, input.default.map(str::to_owned))).collect();
    assert_eq!(rows(&readme, "## Inputs"), inputs, "the README's inputs or their defaults differ");
    let outputs: Vec<_> = rows(&readme, "## Outputs").into_iter().map(|(name, _)| name).collect();
    assert_eq!(outputs, OUTPUTS, "the README's outputs differ");
    Ok(())
}

/// The rows of the table under a heading: the code in the first cell, and in the second if there is any.
fn rows<'a>(text: &'a str, heading: &str) -> Vec<(&'a str, Option<String>)> {
    let code = |cell: &'a str| cell.trim().strip_prefix('`')?.strip_suffix('`');
    let section = text.lines().skip_while(|line| *line != heading).skip(1);
    let table = section.take_while(|line| !line.starts_with("## "));
    table
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|');
            Some((code(cells.next()?)?, cells.next().and_then(code).map(str::to_owned)))
        })
        .collect()
}

/// `| 6 | aborted |`
fn exit_row(line: &str) -> Option<(u8, String)> {
    let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
    Some((cells.next()?.parse().ok()?, cells.next()?.to_owned()))
}

/// `/// 6: aborted.`
fn exit_doc(line: &str) -> Option<(u8, String)> {
    let (code, meaning) = line.trim().strip_prefix("/// ")?.split_once(": ")?;
    Some((code.parse().ok()?, meaning.trim_end_matches('.').to_owned()))
}

/// Every import of a source file that breaks a rule, in words.
fn wrong_imports(path: &str, text: &str) -> Vec<String> {
    let inner = path.trim_start_matches("src/").trim_end_matches(".rs");
    let own = inner.split('/').next().unwrap_or_default();
    if own == "lib" {
        return Vec::new();
    }
    let Some(ours) = floor(own) else {
        return vec![format!(
            "{path}: the module {own} has no floor; give it one in tests/it/tidy.rs"
        )];
    };
    imported(&code(text), depth(inner))
        .into_iter()
        .filter_map(|name| {
            let rule = match floor(&name)? {
                _ if name == own => return None,
                theirs if theirs > ours => format!("F{ours} never imports F{theirs}"),
                theirs if theirs == ours && ours == SIBLINGS => {
                    "siblings never import each other".to_owned()
                }
                1.. if own == "render" => "render sees model only".to_owned(),
                _ => return None,
            };
            Some(format!("{path}: imports {name}: {rule}"))
        })
        .collect()
}

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// How many `super::` lead from a file to the root of the crate.
fn depth(inner: &str) -> usize {
    inner.trim_end_matches("/mod").split('/').count()
}

/// Names of the modules at the root of the crate that the code reaches, by `crate::` or by enough `super::`.
fn imported(code: &str, depth: usize) -> Vec<String> {
    let up = "super::".repeat(depth);
    // In a module of tests inside the file, the same `super::` lead less far.
    let outer = code.split("mod tests {").next().unwrap_or_default();
    let (by_crate, by_super) = (code.split("crate::").skip(1), outer.split(&up).skip(1));
    by_crate
        .chain(by_super)
        .flat_map(|rest| match rest.strip_prefix('{') {
            Some(group) => group_heads(group),
            None => vec![head(rest)],
        })
        .collect()
}

/// The first names of the paths in `a::b, c::{d, e}}…`.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = vec![head(group)];
    let mut open = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => open += 1,
            '}' if open == 0 => break,
            '}' => open -= 1,
            ',' if open == 0 => heads.push(head(&group[at + 1..])),
            _ => {}
        }
    }
    heads
}

fn head(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Declared names, and the file's own, that end in a word that says nothing.
fn vague_names(path: &str, text: &str) -> Vec<String> {
    const DECLARES: [&str; 8] = ["struct", "enum", "trait", "fn", "mod", "type", "const", "static"];
    let code = code(text);
    let words: Vec<_> = code.split_whitespace().collect();
    let declared =
        words.windows(2).filter(|pair| DECLARES.contains(&pair[0])).map(|pair| head(pair[1]));
    let file = Path::new(path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    declared
        .chain([file])
        .filter(|name| VAGUE.iter().any(|word| name.to_lowercase().ends_with(word)))
        .map(|name| format!("{path}: {name}"))
        .collect()
}

/// A text without its comment lines.
fn code(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Path from the root of the repository, and text, of every Rust file under a folder.
fn sources(folder: &str) -> Result<Vec<(String, String)>> {
    let mut folders = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).context(folder.clone())? {
            let entry = entry?;
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.ends_with(".rs") {
                let text = read(&path)?;
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources under {folder}");
    Ok(found)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).context(path.to_owned())
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_wrong_import_is_seen() {
    for (path, text, names) in [
        ("src/model/ids.rs", "use crate::config::Config;", vec!["config"]),
        (
            "src/host/exec.rs",
            "use crate::{model::ids, executor::{run, swap}, agent};",
            vec!["executor", "agent"],
        ),
        ("src/host/exec.rs", "let x = crate::swap::plan();\nuse crate::journal::Journal;", vec![]),
        ("src/host/exec.rs", "use super::super::runner::Run;", vec!["runner"]),
        ("src/host/mod.rs", "use super::runner::Run;\n// crate::agent\n", vec!["runner"]),
        (
            "src/journal.rs",
            "use crate::{\n    model::ids,\n    runner::{self, x},\n};",
            vec!["runner"],
        ),
        ("src/agent/mod.rs", "use crate::agent::x; use crate::remote::y;", vec!["remote"]),
        (
            "src/render/log.rs",
            "use crate::model::event::Event; use crate::swap::plan;",
            vec!["swap"],
        ),
        ("src/new.rs", "", vec![""]),
        ("src/lib.rs", "pub use crate::runner::run;", vec![]),
    ] {
        let wrong = wrong_imports(path, text);
        assert_eq!(wrong.len(), names.len(), "{path}: {wrong:?}");
        for (wrong, name) in wrong.iter().zip(names) {
            assert!(wrong.contains(name), "{wrong}");
        }
    }
}

#[test]
fn a_vague_name_is_seen() {
    let text = "struct SwapManager;\nfn handler() {}\n//mod helper\nmod swap { type Handle = (); }";
    assert_eq!(vague_names("src/a.rs", text), ["src/a.rs: SwapManager", "src/a.rs: handler"]);
    assert_eq!(vague_names("src/utils.rs", ""), ["src/utils.rs: utils"]);
}

/// Whoever looks a message up finds it by the words that the program prints.
#[test]
fn the_messages_of_the_troubleshooting_page_are_messages_of_the_program() -> Result<()> {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md"))?;
    let code: String = sources("src")?.into_iter().map(|(_, text)| text).collect();
    let headings: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    assert!(headings.len() >= 20, "{headings:?}");
    let unknown: Vec<_> = headings.into_iter().filter(|words| !code.contains(words)).collect();
    assert!(
        unknown.is_empty(),
        "docs/troubleshooting.md explains what nothing prints: {unknown:?}"
    );
    Ok(())
}
