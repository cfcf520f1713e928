//! The two command lines that the server's login shell is ever given.
//!
//! The login shell may be sh, bash, dash, zsh, fish or csh, so each line is one `exec sh -c '…'` with nothing inside the
//! quotes that any of them touches: no quote, backslash, exclamation mark or newline. The values that go in are held
//! to a set of characters that are nothing special to sh either. Secrets never go in.

use std::path::Path;

use super::agent::Install;
use super::error::RemoteError;
use crate::model::wire::SENTINEL;

/// What the line says when the agent is not there, in front of the server's architecture.
pub(super) const ABSENT: &str = "--- model-swap absent ---";

/// The file's name in its folder.
const BINARY: &str = "model-swap";

/// Whether a master of nginx that runs is the user's; `m` names those that run. By its title and its status: who owns what is under
/// its `/proc/PID` differs where the program has capabilities of its own, as for port 80.
const NGINX_IS_HIS: &str =
    "for p in $m; do grep -qs \"^Uid:.$(id -u)[^0-9]\" \"${p%cmdline}status\" && break; done";
/// The masters of nginx that run.
const MASTERS: &str = "$(grep -ls \"^nginx: master\" /proc/[0-9]*/cmdline)";

/// Where the agent is, and as whom it runs: values that were checked.
pub(super) struct Place<'a> {
    digest: &'a str,
    nginx: Option<&'a str>,
    state_dir: Option<&'a str>,
}

impl<'a> Place<'a> {
    pub(super) fn new(install: &'a Install) -> Result<Self, RemoteError> {
        let state_dir =
            install.state_dir.as_deref().map(|path| plain_path("state_dir", path)).transpose()?;
        Ok(Self {
            digest: plain("digest", &install.build.digest)?,
            nginx: install
                .nginx_config
                .as_deref()
                .map(|path| plain_path("nginx.config", path))
                .transpose()?,
            state_dir,
        })
    }

    /// Runs the agent, or says [`ABSENT`] with exit code 127.
    ///
    /// Where the user may not look into the folder, root looks.
    pub(super) fn ask(&self) -> String {
        let place = self.place();
        format!(
            "exec sh -c '{place}; b=\"$f/{BINARY}\"; \
             [ -x \"$b\" ] || $r test -x \"$b\" || {{ echo \"{ABSENT} $(uname -m)\"; exit 127; }}; \
             exec $r \"$b\" agent session'"
        )
    }

    /// Takes the program from standard input and lets it install itself.
    ///
    /// The folder is made by whom the agent will run as: what root runs, only root may write. Where the connection is cut
    /// in the middle, nobody reads any more what the shell says of half a program, and it must live to remove that.
    pub(super) fn bring(&self) -> String {
        let place = self.place();
        let digest = self.digest;
        format!(
            "exec sh -c '{place}; t=\"$f/.{BINARY}.$$\"; trap : HUP PIPE TERM; \
             $r mkdir -p \"$f\" && $r tee \"$t\" >/dev/null && $r chmod 755 \"$t\" && $r \"$t\" agent install {digest}; \
             c=$?; $r rm -f \"$t\"; exit $c'"
        )
    }

    /// Sets `r` to what a command needs in front of it, and `f` to the folder of the agent.
    ///
    /// Root is root; who owns nginx's configuration needs no root, unless every nginx that runs is somebody else's and sudo can
    /// be used: his file may be linked from root's configuration. What is under way counts before that, so that nobody looks for it
    /// elsewhere while nginx is down: a lease of his, and where no nginx runs, what is root's. Everybody else uses sudo. Where no
    /// configuration is known yet, sudo is used if it can be. It adds its umask to ours, and a folder of root must be open for the
    /// user to see that the agent is there.
    fn place(&self) -> String {
        let Self { digest, nginx, state_dir } = self;
        let (own, roots, bin) = match state_dir {
            Some(dir) => (*dir, *dir, "/bin"),
            None => (
                "${XDG_STATE_HOME:-$HOME/.local/state}/model-swap",
                "/usr/local/libexec/model-swap",
                "",
            ),
        };
        let by_sudo = "r=\"sudo -n\"";
        let as_user = format!("f=\"{own}/bin/{digest}\"; umask 077");
        let (question, yes, no) = match nginx {
            Some(file) => {
                let is_his = format!(
                    "[ -O \"{file}\" ] && {{ grep -qs . \"{own}\"/*/lease.json || {{ m={MASTERS}; if [ \"$m\" ]; then {NGINX_IS_HIS}; \
                     elif [ -e {roots} ]; then [ -O {roots} ]; fi; }} || if sudo -n true; then false; fi; }} >/dev/null 2>&1"
                );
                (is_his, as_user.as_str(), by_sudo)
            }
            None => ("sudo -n true 2>/dev/null".to_owned(), by_sudo, as_user.as_str()),
        };
        format!(
            "r=; f=\"{roots}{bin}/{digest}\"; umask 022; \
             if [ \"$(id -u)\" = 0 ]; then :; elif {question}; then {yes}; else {no}; fi"
        )
    }
}

/// Whether a line says that the agent speaks from here on. What a login script printed before may lack a newline.
pub(super) fn is_sentinel(line: &str) -> bool {
    line.trim_end().ends_with(SENTINEL)
}

fn plain<'a>(what: &'static str, value: &'a str) -> Result<&'a str, RemoteError> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+@:,=".contains(&b);
    if !value.is_empty() && value.bytes().all(is_plain) {
        Ok(value)
    } else {
        Err(RemoteError::Value { what, value: value.to_owned() })
    }
}

fn plain_path<'a>(what: &'static str, path: &'a Path) -> Result<&'a str, RemoteError> {
    match path.to_str() {
        Some(text) if path.is_absolute() => plain(what, text),
        _ => Err(RemoteError::Value { what, value: path.to_string_lossy().into_owned() }),
    }
}
