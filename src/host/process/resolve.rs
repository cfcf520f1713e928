//! `argv[0]` to a file, as execvp(3) does.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::ProcessError;

/// The file that `program` would run as: itself if it holds a slash, else the first executable in `path`.
///
/// # Errors
/// If there is none, or if it can't be executed.
pub fn resolve(program: &str, path: &str, cwd: &Path) -> Result<PathBuf, ProcessError> {
    let missing = |searched: &str| ProcessError::NoProgram {
        program: program.to_owned(),
        searched: searched.to_owned(),
    };
    if program.contains('/') {
        let file = cwd.join(program);
        return match (file.exists(), is_executable(&file)) {
            (_, true) => Ok(file),
            (true, false) => Err(ProcessError::NotExecutable(file)),
            (false, false) => Err(missing(&cwd.to_string_lossy())),
        };
    }
    // An empty element means the working folder (environ(7)).
    let folders = path.split(':').filter(|_| !program.is_empty()).map(|folder| cwd.join(folder));
    let files: Vec<_> =
        folders.map(|folder| folder.join(program)).filter(|file| file.is_file()).collect();
    match (files.iter().find(|file| is_executable(file)), files.first()) {
        (Some(file), _) => Ok(file.clone()),
        (None, Some(file)) => Err(ProcessError::NotExecutable(file.clone())),
        (None, None) => Err(missing(path)),
    }
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && access(file, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(folder: &Path, name: &str, mode: u32) {
        std::fs::write(folder.join(name), "").unwrap();
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_first_executable_in_path_is_taken() {
        let [first, second] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        file(first.path(), "vllm", 0o644);
        file(second.path(), "vllm", 0o755);
        let path = format!("{}:{}", first.path().display(), second.path().display());
        assert_eq!(resolve("vllm", &path, Path::new("/")).unwrap(), second.path().join("vllm"));
        let only_plain = first.path().display().to_string();
        assert!(matches!(
            resolve("vllm", &only_plain, Path::new("/")),
            Err(ProcessError::NotExecutable(_))
        ));
        assert!(matches!(
            resolve("sglang", &path, Path::new("/")),
            Err(ProcessError::NoProgram { .. })
        ));
        assert!(matches!(resolve("", &path, Path::new("/")), Err(ProcessError::NoProgram { .. })));
    }

    #[test]
    fn a_slash_means_relative_to_the_working_folder() {
        let folder = tempfile::tempdir().unwrap();
        file(folder.path(), "run", 0o755);
        file(folder.path(), "plain", 0o644);
        let resolve = |program| resolve(program, "/usr/bin", folder.path());
        assert_eq!(resolve("./run").unwrap(), folder.path().join("./run"));
        assert!(matches!(resolve("./plain"), Err(ProcessError::NotExecutable(_))));
        assert!(matches!(resolve("./absent"), Err(ProcessError::NoProgram { .. })));
        assert!(matches!(resolve("/"), Err(ProcessError::NotExecutable(_))));
    }
}
