//! Single files that are mounted: what replaces a file by rename must know them.

use std::path::{Path, PathBuf};

use super::error::NginxError;

/// Refuses a file that is a mount point of its own.
///
/// `file` is where this process sees it, `named` where the process `master` does.
pub(super) fn refuse_bind_mount(file: &Path, named: &Path, master: i32) -> Result<(), NginxError> {
    for (pid, path) in [("self".to_owned(), file), (master.to_string(), named)] {
        let list = PathBuf::from(format!("/proc/{pid}/mountinfo"));
        let text =
            std::fs::read(&list).map_err(|source| NginxError::Unreadable { file: list, source })?;
        if mount_points(&String::from_utf8_lossy(&text)).any(|point| point == path) {
            return Err(NginxError::BindMount { file: path.to_owned() });
        }
    }
    Ok(())
}

/// The mount points of `/proc/PID/mountinfo` (proc(5): the fifth field; blanks as octal escapes).
fn mount_points(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
}

fn unescape(field: &str) -> String {
    // A backslash itself is written as \134, so that no order of replacement but the last is wrong.
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_the_fifth_field() {
        let text = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
                    90 27 8:1 /srv/llm.conf /etc/nginx/conf.d/my\\040llm.conf rw shared:1 - ext4 /dev/sda1 rw\n\
                    91 27 8:1 /x /back\\134040slash rw - ext4 /dev/sda1 rw\n";
        let points: Vec<PathBuf> = mount_points(text).collect();
        assert_eq!(
            points,
            ["/proc", "/etc/nginx/conf.d/my llm.conf", "/back\\040slash"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_plain_file_is_no_mount_and_a_mount_point_is() {
        let folder = tempfile::tempdir().unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(refuse_bind_mount(folder.path(), folder.path(), me).is_ok());
        assert!(matches!(
            refuse_bind_mount(Path::new("/proc"), folder.path(), me),
            Err(NginxError::BindMount { .. })
        ));
        assert!(matches!(
            refuse_bind_mount(folder.path(), Path::new("/proc"), me),
            Err(NginxError::BindMount { .. })
        ));
    }
}
