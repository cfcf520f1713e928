//! Asking the nginx program: the configuration on disk, and what was compiled in.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::exec::{ExecError, Output, run};
use crate::swap::nginx_conf::Dump;

use super::error::NginxError;
use super::read;

/// Bound on one call: a test resolves every host name of the configuration, one after the other.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Where packages put nginx. A login without root rarely has these folders on its PATH.
pub(super) const PLACES: &[&str] = &[
    "/usr/sbin/nginx",
    "/usr/local/sbin/nginx",
    "/usr/local/nginx/sbin/nginx",
    "/usr/local/openresty/nginx/sbin/nginx",
];

/// Lines of standard error that are worth showing.
const STDERR_LINES: usize = 10;

/// Paths that nginx was built with (`auto/options` of its sources).
const BUILT_PREFIX: &str = "/usr/local/nginx";
const BUILT_PID: &str = "logs/nginx.pid";
const BUILT_CONF: &str = "conf/nginx.conf";

/// Tests the configuration on disk, and reads it: `nginx -T` is `nginx -t` that prints what it tested.
pub(super) async fn test_and_dump(command: &[String]) -> Result<Dump, NginxError> {
    let output = call(command, "-T").await?;
    if output.success() {
        return Ok(Dump::parse(&output.stdout)?);
    }
    let lines: Vec<String> = output.stderr.lines().map(str::to_owned).collect();
    let emergencies: Vec<String> =
        lines.iter().filter(|line| line.contains("[emerg]")).cloned().collect();
    if emergencies.is_empty() {
        Err(failed(command, "-T", &output))
    } else {
        Err(NginxError::Rejected { lines: emergencies })
    }
}

/// The pid file of a configuration, as nginx itself names it.
pub(super) async fn pid_file(command: &[String], dump: &Dump) -> Result<PathBuf, NginxError> {
    let written = dump.pid().map(PathBuf::from);
    let prefix = option(command, "-p").map(PathBuf::from);
    match (written, prefix) {
        (Some(file), _) if file.is_absolute() => Ok(file),
        (Some(file), Some(prefix)) => Ok(prefix.join(file)),
        (written, prefix) => {
            let prefix = match prefix {
                Some(prefix) => prefix,
                None => built_in(command, "--prefix=", "").await?,
            };
            match written {
                Some(file) => Ok(prefix.join(file)),
                None => Ok(prefix.join(built_in(command, "--pid-path=", BUILT_PID).await?)),
            }
        }
    }
}

/// The main file alone, where the whole configuration does not pass its test.
///
/// `None` if it cannot be read from here, is broken itself, or may be a file of somewhere else.
pub(super) async fn main_file(command: &[String]) -> Option<Dump> {
    // Behind any other word, like `docker exec`, the paths may be those of a container.
    let program = Path::new(command.first()?).file_name()?;
    if !["nginx", "openresty", "sudo"].iter().any(|known| program == *known) {
        return None;
    }
    let file = match option(command, "-c").map(PathBuf::from) {
        Some(file) => file,
        None => built_in(command, "--conf-path=", BUILT_CONF).await.ok()?,
    };
    let text = String::from_utf8_lossy(&read(&file).ok()?).into_owned();
    Dump::of_file(file, text).ok()
}

/// The main error log of a configuration, if it is a file with a full path.
pub(super) fn error_log(dump: &Dump) -> Option<PathBuf> {
    dump.error_logs().main.into_iter().map(PathBuf::from).find(|path| path.is_absolute())
}

/// A path that nginx was built with; a relative one starts at the prefix.
async fn built_in(command: &[String], name: &str, default: &str) -> Result<PathBuf, NginxError> {
    let output = call(command, "-V").await?;
    if !output.success() {
        return Err(failed(command, "-V", &output));
    }
    let arguments = output
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix("configure arguments:"))
        .unwrap_or_default();
    Ok(built_path(arguments, name, default))
}

fn built_path(arguments: &str, name: &str, default: &str) -> PathBuf {
    let words = shell_words::split(arguments).unwrap_or_default();
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name));
    Path::new(value("--prefix=").unwrap_or(BUILT_PREFIX)).join(value(name).unwrap_or(default))
}

async fn call(command: &[String], flag: &str) -> Result<Output, NginxError> {
    let mut argv = command.to_vec();
    argv.push(flag.to_owned());
    match run(&argv, CALL_LIMIT).await {
        // A folder of PATH that may not be read hides that the program is in none.
        Err(ExecError::Start { program, source })
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ) =>
        {
            let place = PLACES.iter().find(|place| program == "nginx" && Path::new(place).exists());
            match (place, argv.first_mut()) {
                (Some(place), Some(first)) => {
                    *first = (*place).to_owned();
                    Ok(run(&argv, CALL_LIMIT).await?)
                }
                _ => Err(NginxError::NotFound {
                    command: program.clone(),
                    source: ExecError::Start { program, source },
                }),
            }
        }
        other => Ok(other?),
    }
}

fn failed(command: &[String], flag: &str, output: &Output) -> NginxError {
    let lines: Vec<String> = output.stderr.lines().map(str::to_owned).collect();
    let stderr = lines.get(lines.len().saturating_sub(STDERR_LINES)..).unwrap_or_default().to_vec();
    NginxError::Failed {
        command: format!("{} {flag}", command.join(" ")),
        code: output.code,
        stderr,
    }
}

/// The value of an option of the command: `-p /srv/nginx`, or `-p/srv/nginx`.
fn option<'a>(command: &'a [String], name: &str) -> Option<&'a str> {
    let at = command.iter().rposition(|word| word.starts_with(name))?;
    let attached = command.get(at)?.strip_prefix(name).filter(|value| !value.is_empty());
    attached.or_else(|| command.get(at + 1).map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_are_found_apart_and_attached() {
        assert_eq!(option(&words("nginx -c /n.conf -p /srv"), "-p"), Some("/srv"));
        assert_eq!(option(&words("nginx -p/srv -c /n.conf"), "-p"), Some("/srv"));
        assert_eq!(option(&words("nginx -c /n.conf"), "-p"), None);
    }

    #[test]
    fn built_in_paths_are_read_from_the_configure_line() {
        let line = " --with-cc-opt='-g -O2 --pid-path=/no' --prefix=/usr/share/nginx --pid-path=/run/nginx.pid";
        assert_eq!(built_path(line, "--pid-path=", BUILT_PID), Path::new("/run/nginx.pid"));
        assert_eq!(built_path(line, "--prefix=", ""), Path::new("/usr/share/nginx"));
        assert_eq!(
            built_path(line, "--conf-path=", BUILT_CONF),
            Path::new("/usr/share/nginx/conf/nginx.conf")
        );
        assert_eq!(
            built_path("", "--pid-path=", BUILT_PID),
            Path::new("/usr/local/nginx/logs/nginx.pid")
        );
    }
}
