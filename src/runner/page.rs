//! The report of a swap, one page of HTML, where a step asks for it.

use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use super::{Setting, Voice};
use crate::model::event::Event;
use crate::render::{self, Line};

/// Writes the report, where one is asked for.
pub(super) fn write(setting: &Setting, story: &[Event], voice: &mut Voice) {
    let Some(path) = &setting.inputs.report else { return };
    let Some(page) = render::report::page(story) else { return };
    let workspace = setting.run.workspace.as_deref();
    let path = workspace.map_or(path.clone(), |base| base.join(path));
    if let Err(error) = place(&path, &page, workspace) {
        let text = format!("cannot write the report {}: {error}", path.display());
        voice.say([Line::Warning(text)]);
    }
}

/// Writes a file, and makes the folders that it needs. What is made in the workspace is given to whom that belongs: root's own folders
/// are in the way of the next checkout on a self-hosted runner, which may not remove what is in them (actions/runner#434).
fn place(path: &Path, page: &str, workspace: Option<&Path>) -> io::Result<()> {
    let made: Vec<&Path> =
        path.ancestors().take_while(|there| there.symlink_metadata().is_err()).collect();
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    std::fs::write(path, page)?;
    if let Some(owner) = workspace.filter(|workspace| path.starts_with(workspace))
        && let Ok(owner) = owner.metadata()
    {
        for there in made {
            // Who is not root gives nothing away, and need not: it is his own.
            let _ = lchown(there, Some(owner.uid()), Some(owner.gid()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    #[test]
    fn what_is_made_in_the_workspace_belongs_to_whom_that_does() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = folder.path().join("workspace");
        std::fs::create_dir_all(workspace.join("kept")).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            chown(&workspace, Some(65534), Some(12)).unwrap();
        }
        let owner = |path: &Path| {
            let metadata = path.metadata().unwrap();
            (metadata.uid(), metadata.gid())
        };
        let (given, kept) = (owner(&workspace), owner(&workspace.join("kept")));
        assert!(!is_root || given != kept);
        place(&workspace.join("kept/out/swap/report.html"), "page", Some(&workspace)).unwrap();
        for made in ["kept/out", "kept/out/swap", "kept/out/swap/report.html"] {
            assert_eq!(owner(&workspace.join(made)), given, "{made}");
        }
        assert_eq!(owner(&workspace.join("kept")), kept, "it was there");
        // Nobody has said whose another place is.
        let elsewhere = folder.path().join("out/report.html");
        place(&elsewhere, "page", Some(&workspace)).unwrap();
        assert_eq!(owner(&elsewhere), kept);
        assert_eq!(std::fs::read_to_string(elsewhere).unwrap(), "page");
    }
}
