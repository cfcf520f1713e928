//! Brings weights to this server with a program of the user's: room on the disk first, its growth as progress.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::process::{self, Launch, Launcher};
use crate::model::failure::Failure;

/// Between two looks at the folder: a walk over some hundred files, beside a download of minutes.
const LOOK: Duration = Duration::from_secs(1);

/// Progress is worth a line for each of so many parts of the size.
const PARTS: u64 = 20;

/// The same where the size is not known, in bytes.
const PART: u64 = 1_000_000_000;

/// How much of what the program wrote a failure shows.
const LAST_WORDS: usize = 40;

/// What says that nobody knows the model, or not to this token: the Hub tells no stranger of what is private, and so says the same
/// of both. In the words of Hugging Face's library, from 0.36 to 2.4.
const UNSEEN: [&str; 2] = ["repository not found", "make sure you are authenticated"];

/// What says that a token was not accepted, in the words of that library and of most others.
const DENIED: [&str; 6] = [
    "unauthorized",
    "forbidden",
    "gated repo",
    "access denied",
    "invalid user token",
    "authentication failed",
];

/// The same as a status of HTTP, as requests, curl and clients of other languages say it: the number alone is a part of sizes and
/// paths as well.
const STATUS: [&str; 12] = [
    "401 client error",
    "403 client error",
    "error: 401",
    "error: 403",
    "error 401",
    "error 403",
    "http 401",
    "http 403",
    "status code 401",
    "status code 403",
    "status 401",
    "status 403",
];

/// When room is looked for before anything is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// For what is missing of the size.
    ForTheRest,
    /// The same, but only where less than half of the size is here: it has been here before, and what was said of it may be too much.
    UnlessMostIsHere,
}

impl Room {
    /// Whether room is looked for where so many bytes of the size are here.
    fn is_asked(self, here: u64, size: u64) -> bool {
        match self {
            Self::ForTheRest => true,
            Self::UnlessMostIsHere => here < size / 2,
        }
    }
}

/// Weights that are to be brought.
#[derive(Debug)]
pub struct Fetch {
    /// The program, with its environment.
    pub launch: Launch,
    /// The folder of these weights alone: what is in it counts as brought, and its growth is progress.
    pub folder: PathBuf,
    /// What they need, in bytes; `None`: nobody knows.
    pub size: Option<u64>,
    /// What of that must have room.
    pub room: Room,
    /// Names of the variables that hold secrets, for a person whose token was not accepted.
    pub secrets: Vec<String>,
}

/// Runs the program to its end; says what is there then.
///
/// The program outlives this future: whoever drops it has to stop what carries the launch's marker.
///
/// # Errors
/// If there is no room, if it cannot be run, or if it fails: then with the last lines that it wrote.
pub async fn fetch(order: &Fetch, told: impl Fn(String)) -> Result<String, Failure> {
    let before = on_disk(&order.folder);
    if let Some(size) = order.size.filter(|size| order.room.is_asked(before, *size)) {
        room_for(&order.folder, size)?;
    }
    let mut child = process::start(&order.launch, &Launcher::default()).await?.child;
    let step = order.size.map_or(PART, |size| size / PARTS).max(1);
    let mut shown = before;
    let status = loop {
        tokio::select! {
            biased;
            status = child.wait() => break status.map_err(|error| Failure::from_error(&error))?,
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = on_disk(&order.folder);
        if now.abs_diff(shown) >= step {
            told(match order.size {
                Some(size) => format!("{} of {} on the disk", bytes(now), bytes(size)),
                None => format!("{} on the disk", bytes(now)),
            });
            shown = now;
        }
    };
    let now = on_disk(&order.folder);
    if status.success() {
        return Ok(match now.saturating_sub(before) {
            0 => format!("all was there, {} in {}", bytes(now), order.folder.display()),
            grown => format!(
                "{} are in {}, {} of them new",
                bytes(now),
                order.folder.display(),
                bytes(grown)
            ),
        });
    }
    Err(failed(order, status))
}

fn failed(order: &Fetch, status: ExitStatus) -> Failure {
    let program = order.launch.argv.first().map_or("", String::as_str);
    let log = process::log_tail(&order.launch.log, LAST_WORDS);
    let said = log.join("\n").to_lowercase();
    let folder = order.folder.display();
    let failure = if UNSEEN.iter().any(|words| said.contains(words)) {
        Failure::new(format!("{program} found no such model, or its token may not see it")).hint(
            format!("look whether the model's name is right; if it is private, {}", token(order)),
        )
    } else if is_denied(&said) {
        Failure::new(format!(
            "{program} was refused: the token was not accepted, or may not read this model"
        ))
        .hint(format!("{}, and whether the model's licence was accepted", token(order)))
    } else if said.contains("no space left") {
        Failure::new(format!("{program} found no room in {folder}"))
            .hint("make room; with fetch.size it is looked for before anything is begun")
    } else if said.contains("read-only file system") {
        Failure::new(format!(
            "{program} may not write where it puts the weights, which is to be {folder}: a file system there is mounted read-only"
        ))
        .hint("mount it for writing on the server, or have fetch.command and fetch.folder name another one")
    } else if lacks_a_right(&said) {
        let user = process::user_name(order.launch.identity.uid);
        Failure::new(format!(
            "{program} may not do with a file what it wants to, most likely write where it puts the weights, which is to be {folder}"
        ))
        .hint(let_write(&user))
    } else {
        Failure::new(format!("{program} failed: {status}"))
            .hint("the last lines that it wrote say why; what it has brought so far is kept")
    };
    failure.log(log)
}

/// What to do about the token, by the variable that holds it.
fn token(order: &Fetch) -> String {
    match &order.secrets[..] {
        [] => "name the variable that holds its token, like HF_TOKEN, in replica.secret_env; look whether that may read it".to_owned(),
        names => format!("look whether {} may read it", names.join(" or ")),
    }
}

/// Whether a program's last words, in lower case, say that a token was not accepted.
fn is_denied(said: &str) -> bool {
    DENIED.iter().chain(&STATUS).any(|words| said.contains(words))
}

/// Whether they say that the file system has refused something; a server that is asked for weights over ssh says it of a key.
fn lacks_a_right(said: &str) -> bool {
    const WORDS: &str = "permission denied";
    said.match_indices(WORDS).any(|(at, _)| {
        let after = said[at + WORDS.len()..].trim_start();
        let of_a_key = |rest: &str| rest.starts_with(char::is_alphabetic);
        !after.starts_with(", please try again") && !after.strip_prefix('(').is_some_and(of_a_key)
    })
}

/// What mends it that `fetch` may not write where it brings the weights to.
pub fn let_write(user: &str) -> String {
    format!(
        "let {user} write there (chown, chmod or a mount without `ro`), or name in replica.user as whom both run"
    )
}

/// Refuses to begin what cannot be brought to its end: so many bytes in all, in a folder where some may be already.
///
/// # Errors
/// If there is no room for what is missing.
pub fn room_for(folder: &Path, size: u64) -> Result<(), Failure> {
    let needed = size.saturating_sub(on_disk(folder));
    let place = folder.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"));
    let Ok(disk) = rustix::fs::statvfs(place) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= needed {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the weights need {} more in {}, which has {} free",
        bytes(needed),
        folder.display(),
        bytes(free)
    ))
    .hint("make room, or put fetch.folder and the engine's cache on a larger disk"))
}

/// What a file, or the files below a folder, take on the disk, in bytes: a link counts once, a hole not at all.
fn on_disk(folder: &Path) -> u64 {
    // stat(2): blocks of 512 bytes, whatever the file system's are.
    let taken = |found: std::fs::Metadata| found.blocks() * 512;
    let mut sum = std::fs::metadata(folder).ok().filter(|found| found.is_file()).map_or(0, taken);
    let mut folders = vec![folder.to_owned()];
    while let Some(entries) = folders.pop().map(std::fs::read_dir) {
        // Files come and go meanwhile.
        for entry in entries.into_iter().flatten().flatten() {
            let Ok(found) = entry.path().symlink_metadata() else { continue };
            if found.is_dir() {
                folders.push(entry.path());
            } else {
                sum += taken(found);
            }
        }
    }
    sum
}

/// A size for people.
pub fn bytes(number: u64) -> String {
    match number {
        0..1_000_000 => format!("{:.0} kB", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", number as f64 / 1e6),
        _ => format!("{:.1} GB", number as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn sizes_are_in_units_that_people_use() {
        assert_eq!([0, 1_500_000, 65_432_000_000].map(bytes), ["0 kB", "2 MB", "65.4 GB"]);
    }

    #[test]
    fn what_was_here_once_has_to_have_room_unless_most_of_it_is_here() {
        const SIZE: u64 = 140_000_000_000;
        // A lock, a note of a download: no weights.
        for (here, is_asked) in [(0, true), (4096, true), (SIZE / 2, false), (SIZE, false)] {
            assert_eq!(Room::UnlessMostIsHere.is_asked(here, SIZE), is_asked, "{here}");
            assert!(Room::ForTheRest.is_asked(here, SIZE), "{here}");
        }
    }

    #[test]
    fn a_token_that_is_refused_is_told_from_a_number_that_looks_like_it() {
        for said in [
            "401 Client Error: Unauthorized for url: https://huggingface.co/api/models/acme/llm",
            "403 Client Error. (Request ID: Root=1-67)",
            "Client error '401 Unauthorized' for url 'https://huggingface.co/api/models/acme/llm'",
            "Cannot access gated repo for url https://huggingface.co/acme/llm/resolve/main/x.",
            "curl: (22) The requested URL returned error: 403",
            "HTTP request sent, awaiting response... 403 Forbidden",
            "request failed with status code 401",
            "fatal: Authentication failed for 'https://huggingface.co/acme/llm/'",
        ] {
            assert!(is_denied(&said.to_lowercase()), "{said}");
        }
        for said in [
            "model-00001.safetensors:   8%|8         | 401M/4.98G [00:04<00:48, 93.4MB/s]\nConnection reset by peer",
            "403 of 512 files\nread timed out",
            "/srv/models/v401/llm-403.safetensors: Input/output error",
            "curl: (22) The requested URL returned error: 503",
        ] {
            assert!(!is_denied(&said.to_lowercase()), "{said}");
        }
    }

    /// What a program that has written this and failed is told to be.
    fn told(said: &str, secrets: &[&str]) -> Failure {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("fetch.log");
        std::fs::write(&log, said).unwrap();
        let launch = Launch {
            argv: vec!["hf".to_owned()],
            env: BTreeMap::new(),
            cwd: "/".into(),
            identity: process::Identity::own(),
            log,
            keeper: crate::model::replica::Keeper::Nobody,
            container: None,
        };
        let secrets = secrets.iter().map(ToString::to_string).collect();
        let (folder, size, room) = ("/srv/hf".into(), None, Room::ForTheRest);
        failed(&Fetch { launch, folder, size, room, secrets }, ExitStatus::from_raw(1 << 8))
    }

    /// As `hf download` of huggingface_hub 0.36 and 2.4 says it, asked with a wrong token.
    #[test]
    fn a_token_that_does_not_do_is_named_by_its_variable() {
        let refused = "hf was refused: the token was not accepted, or may not read this model";
        let unseen = "hf found no such model, or its token may not see it";
        for (said, message) in [
            (
                "Error: Access denied. Model 'acme/llm' requires approval.\nHint: set HF_DEBUG=1",
                refused,
            ),
            (
                "Error: Client error '401 Unauthorized' for url 'https://huggingface.co/api/models/acme/llm/revision/main'\n\nInvalid username or password.",
                refused,
            ),
            (
                "huggingface_hub.errors.GatedRepoError: 403 Client Error.\n\nCannot access gated repo for url https://huggingface.co/api/models/acme/llm",
                refused,
            ),
            (
                "Error: Model 'acme/llm' not found.\nIf the repo is private, make sure you are authenticated and your token has the required permissions.",
                unseen,
            ),
            (
                "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error.\n\nRepository Not Found for url: https://huggingface.co/api/models/acme/llm",
                unseen,
            ),
        ] {
            let failure = told(said, &["HF_TOKEN"]);
            assert_eq!(failure.message, message, "{said}");
            assert!(failure.hints[0].contains("look whether HF_TOKEN may read it"), "{failure:?}");
            let nameless = told(said, &[]);
            assert!(nameless.hints[0].contains("like HF_TOKEN, in replica.secret_env"));
        }
        let broken = told("Error: Revision not found in model 'acme/llm'.", &["HF_TOKEN"]);
        assert!(broken.message.starts_with("hf failed: "), "{broken:?}");
    }

    #[test]
    fn a_file_that_may_not_be_written_is_told_from_a_key_that_is_not_let_in() {
        for said in [
            "PermissionError: [Errno 13] Permission denied: '/srv/models/qwen'",
            "mkdir: cannot create directory '/srv/models': Permission denied\n",
            "rsync: mkstemp \"/srv/models/.x\" failed: Permission denied (13)",
        ] {
            assert!(lacks_a_right(&said.to_lowercase()), "{said}");
        }
        for said in [
            "git@hub: Permission denied (publickey).",
            "Permission denied, please try again.",
            "connection reset by peer",
        ] {
            assert!(!lacks_a_right(&said.to_lowercase()), "{said}");
        }
    }

    #[test]
    fn what_is_on_the_disk_is_counted_below_folders_and_not_through_links() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(on_disk(&folder.path().join("none")), 0);
        std::fs::create_dir(folder.path().join("blobs")).unwrap();
        std::fs::write(folder.path().join("blobs/a"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("blobs/a", folder.path().join("link")).unwrap();
        let sum = on_disk(folder.path());
        assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&sum), "{sum}");
    }
}
