//! Mistakes at a terminal: each ends with exit code 2, in the words of `arguments.txt`, before anybody is connected to.

use std::fs;

use anyhow::Result;

use crate::commands::Terminal;
use crate::support::snapshot::Snapshots;

const TABLE: &str = include_str!("arguments.txt");

/// Command lines. The folder has a good `model-swap.yaml`, a `key`, a `folder` and `bytes` that are no text.
const LINES: [&str; 26] = [
    "frobnicate",
    "swpa",
    "swap model-swap.yaml",
    "swap --modle x",
    "swap --model",
    "swap --model=",
    "swap --service Chat",
    "swap --host deploy@gpu-1:22",
    "swap --wait forever",
    "swap --lock-wait soon",
    "swap --plan-digest x",
    "swap --json=yes",
    "status --force",
    "rollback --swap-id ../x",
    "fail",
    "init",
    "init --host gpu-1 --ssh-port 99999",
    "init --host gpu-1 --jump=-oProxyCommand=x",
    "init --host gpu-1 --nginx '",
    "status --config none.yaml",
    "status --config folder",
    "status --config bytes",
    "status --ssh-key none",
    "status --ssh-key folder",
    "status --ssh-key none --known-hosts none --config none.yaml",
    "server install --user deploy",
];

#[tokio::test]
async fn each_mistake_is_named_with_what_is_accepted() -> Result<()> {
    let config = fs::read_to_string("docs/model-swap.yaml")?;
    let terminal = Terminal::with(&config, ("no key", ""))?;
    fs::create_dir(terminal.folder.path().join("folder"))?;
    fs::write(terminal.folder.path().join("bytes"), [0xff, 0xfe])?;
    let mut rows = Snapshots::of(TABLE);
    rows.name(terminal.folder.path().display(), "HERE");
    assert_eq!(rows.len(), LINES.len());
    for line in LINES {
        let output = terminal.run(line).await?;
        let said = String::from_utf8([output.stdout, output.stderr].concat())?;
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        rows.row(line, &said);
    }
    rows.assert();
    Ok(())
}
