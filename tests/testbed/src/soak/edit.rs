//! What a person writes into nginx's file, and takes out again.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Words that nobody else writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edit {
    /// They change nothing.
    Comment,
    /// They stand in the line that names the upstream's server, and nginx accepts them.
    Line,
    /// nginx does not know them.
    Nonsense,
}

/// How the line begins that names the upstream's server.
const SERVER: &str = "    server 127.0.0.1:";

impl Edit {
    fn words(self) -> &'static str {
        match self {
            Self::Comment => "# by hand\n",
            Self::Line => " weight=7",
            Self::Nonsense => "by_hand on;\n",
        }
    }

    /// Writes them, as editors do: the file is never there by half.
    pub(super) fn write(self, file: &Path) -> Result<()> {
        let text = fs::read_to_string(file)?;
        let at = match self {
            Self::Comment => 0,
            Self::Line => {
                let line = text.find(SERVER).context("no line of the upstream's server")?;
                line + text[line..].find(';').context("no end of that line")?
            }
            Self::Nonsense => text.len(),
        };
        save(file, &format!("{}{}{}", &text[..at], self.words(), &text[at..]))
    }

    /// Takes them out again.
    ///
    /// # Errors
    /// If they are not there any more: somebody has overwritten them.
    pub(super) fn take_back(self, file: &Path) -> Result<()> {
        let text = fs::read_to_string(file)?;
        let found = text.matches(self.words()).count();
        ensure!(found == 1, "{:?} is {found} times in nginx's file:\n{text}", self.words());
        save(file, &text.replace(self.words(), ""))
    }
}

/// The port of the upstream's server, as the file has it.
pub(super) fn port(file: &Path) -> Result<u16> {
    let text = fs::read_to_string(file)?;
    let (_, rest) = text.split_once(SERVER).context("no line of the upstream's server")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("no port in\n{text}"))
}

fn save(file: &Path, text: &str) -> Result<()> {
    let next = file.with_extension("by-hand");
    fs::copy(file, &next)?;
    fs::write(&next, text)?;
    Ok(fs::rename(next, file)?)
}
