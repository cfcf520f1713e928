//! Where the ssh session's end would be the agent's: the way out of the session, and the refusal where there is none.

use crate::host::logind::{self, Fate, LogindError, Refuge};
use crate::model::checkup::Finding;
use crate::model::failure::Failure;

/// What becomes of what is left behind. Where logind does not tell, nothing is known that would be in the way.
pub(super) async fn fate() -> Fate {
    logind::fate().await.unwrap_or(Fate::Stays)
}

/// The words in front of the agent's own, so that it stays where it can.
pub(super) fn words(fate: &Fate) -> &'static [&'static str] {
    match fate {
        Fate::Ended { refuge: Some(refuge), .. } => refuge.words(),
        Fate::Stays | Fate::Ended { refuge: None, .. } => &[],
    }
}

/// Why nothing may be begun here that is to last.
pub(super) fn barred(fate: &Fate) -> Option<Failure> {
    let Fate::Ended { user, refuge: None } = fate else { return None };
    let failure = Failure::new(format!(
        "systemd-logind ends every process of {user} when the ssh session ends (KillUserProcesses=yes), the agent and the new \
         model too"
    ));
    Some(
        failure
            .hint(format!(
                "`loginctl enable-linger {user}`, as root on the server: then both are put into a scope of {user}'s own systemd"
            ))
            .hint(format!(
                "or write `KillExcludeUsers=root {user}` into /etc/systemd/logind.conf and restart systemd-logind"
            )),
    )
}

/// What `doctor` says of it.
pub(super) fn finding(fate: Result<Fate, LogindError>) -> Finding {
    const WHAT: &str = "end of the ssh session";
    let fate = match fate {
        Ok(fate) => fate,
        Err(error) => return Finding::unseen(WHAT, Failure::from_error(&error).to_string()),
    };
    if let Some(failure) = barred(&fate) {
        return Finding::fail(WHAT, failure);
    }
    match fate {
        Fate::Stays => Finding::ok(WHAT, "the agent stays"),
        Fate::Ended { user, refuge } => {
            let whose = match refuge {
                Some(Refuge::User) => format!("{user}'s own systemd"),
                _ => "the server's systemd".to_owned(),
            };
            let seen = format!("KillUserProcesses=yes; the agent is put into a scope of {whose}");
            Finding::ok(WHAT, seen)
        }
    }
}
