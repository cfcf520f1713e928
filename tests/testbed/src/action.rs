//! Runs model-swap exactly as GitHub runs a container action: no arguments; its inputs, GitHub's own variables, `HOME`
//! and `PATH` in the environment and nothing else; a workspace with the configuration; files for outputs and summary.
//! From the action's image, with the folders where the runner mounts them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Result;
use serde_json::json;
use tempfile::TempDir;

use crate::docker::{Engine, docker};
use crate::end;
use crate::github::FakeGitHub;
use crate::server::GpuServer;

/// The description that GitHub reads of which inputs there are and of their defaults.
const METADATA: &str = include_str!("../../../action.yml");

/// The files that the runner reads afterwards.
const OUTPUT: &str = "file_commands/output";
const STATE: &str = "file_commands/state";
const SUMMARY: &str = "file_commands/summary";

/// `PATH` of the action's image.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the runner's folders are in a container (runner, `ContainerActionHandler.cs`).
const MOUNTED: &str = "/github";

/// The runner's folders, which a container action finds below [`MOUNTED`].
const FOLDERS: [&str; 5] = ["workspace", "home", "workflow", "file_commands", "runner_temp"];

/// What is run, as what.
enum Program {
    /// The binary itself.
    Binary(PathBuf),
    /// The same, as the first process of a namespace.
    First(PathBuf),
    /// A container of this image.
    Image { name: String, entrypoint: Option<String>, place: Place },
}

/// Where a container runs.
enum Place {
    /// By the Engine that `DOCKER_HOST` names, in the machine's own network, because there the throwaway server is.
    Loopback,
    /// By the Engine of this `DOCKER_HOST`, on its bridge: as on GitHub's runners.
    Bridge(String),
}

/// One step of a workflow, ready to be run.
pub struct Action {
    program: Program,
    folder: TempDir,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
}

impl Action {
    /// A step that runs `program`; every input has its default.
    ///
    /// # Errors
    /// If its folder cannot be made.
    pub fn new(program: &Path, config: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("github-").tempdir()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut env = defaults()?;
        for (name, value) in [
            ("PATH", PATH),
            ("GITHUB_ACTIONS", "true"),
            ("HOME", &at("home")),
            ("GITHUB_WORKSPACE", &at("workspace")),
            ("GITHUB_OUTPUT", &at(OUTPUT)),
            ("GITHUB_STATE", &at(STATE)),
            ("GITHUB_STEP_SUMMARY", &at(SUMMARY)),
        ] {
            env.insert(name.to_owned(), value.to_owned());
        }
        FOLDERS.into_iter().try_for_each(|folder| fs::create_dir(at(folder)))?;
        [OUTPUT, STATE, SUMMARY].into_iter().try_for_each(|file| fs::write(at(file), ""))?;
        let action = Self { program: Program::Binary(program.to_owned()), folder, env };
        action.with_config(config)
    }

    /// Runs it from an image, by the Engine that `DOCKER_HOST` names; with the entry point of `post-entrypoint`, if that
    /// is the stage.
    pub fn from_image(self, name: &str, entrypoint: Option<&str>) -> Self {
        let (name, entrypoint) = (name.to_owned(), entrypoint.map(str::to_owned));
        Self { program: Program::Image { name, entrypoint, place: Place::Loopback }, ..self }
    }

    /// Runs it from an image of this Engine, on its bridge.
    pub fn on_bridge_of(self, engine: &Engine, name: &str) -> Self {
        let (name, place) = (name.to_owned(), Place::Bridge(engine.host()));
        Self { program: Program::Image { name, entrypoint: None, place }, ..self }
    }

    /// Gives it the key and the host keys of a server.
    pub fn with_access_to(self, server: &GpuServer) -> Self {
        self.with_inputs(&[
            ("ssh-key", server.private_key()),
            ("known-hosts", server.known_hosts()),
        ])
    }

    /// Adds what GitHub tells a run, with the fake as its API.
    pub fn on_github(self, github: &FakeGitHub) -> Self {
        self.with(&[
            ("GITHUB_API_URL", &github.ghes_url()),
            ("GITHUB_SERVER_URL", "https://github.example.com"),
            ("GITHUB_REPOSITORY", "acme/llm"),
            ("GITHUB_SHA", "0123456789012345678901234567890123456789"),
            ("GITHUB_REF", "refs/heads/main"),
            ("GITHUB_REF_NAME", "main"),
            ("GITHUB_RUN_ID", "77"),
            ("GITHUB_RUN_ATTEMPT", "1"),
            ("GITHUB_JOB", "swap"),
            ("GITHUB_ACTION", "model-swap"),
            ("GITHUB_ACTOR", "ann"),
            ("INPUT_GITHUB-TOKEN", github.token()),
        ])
    }

    /// For a push that has brought these commits, oldest first.
    ///
    /// # Errors
    /// If the event cannot be written.
    pub fn for_push(self, commits: &[&str]) -> Result<Self> {
        let path = self.folder.path().join("workflow/event.json");
        let commits: Vec<_> =
            commits.iter().map(|id| json!({ "id": id, "distinct": true })).collect();
        fs::write(&path, json!({ "ref": "refs/heads/main", "commits": commits }).to_string())?;
        let path = path.display().to_string();
        Ok(self.with(&[("GITHUB_EVENT_NAME", "push"), ("GITHUB_EVENT_PATH", &path)]))
    }

    /// Adds what GitHub tells a run for pull request 7 of `acme/llm`, whose commits come from the repository `head`; or, as
    /// `workflow_run`, a run that follows one for it.
    ///
    /// # Errors
    /// If the event cannot be written.
    pub fn for_pull_request(self, event: &str, head: &str) -> Result<Self> {
        let path = self.folder.path().join("workflow/event.json");
        let payload = json!({
            "action": "synchronize",
            "number": 7,
            "pull_request": {
                "number": 7,
                "head": { "ref": "new-model", "repo": { "full_name": head } },
                "base": { "ref": "main", "repo": { "full_name": "acme/llm" } },
            },
        });
        let following = json!({
            "action": "completed",
            "workflow_run": { "event": "pull_request", "head_repository": { "full_name": head } },
            "repository": { "full_name": "acme/llm" },
        });
        let follows = event == "workflow_run";
        fs::write(&path, if follows { following } else { payload }.to_string())?;
        let event = self.with(&[
            ("GITHUB_EVENT_NAME", event),
            ("GITHUB_EVENT_PATH", &path.display().to_string()),
        ]);
        if follows {
            return Ok(event);
        }
        Ok(event.with(&[
            ("GITHUB_REF", "refs/pull/7/merge"),
            ("GITHUB_REF_NAME", "7/merge"),
            ("GITHUB_HEAD_REF", "new-model"),
            ("GITHUB_BASE_REF", "main"),
        ]))
    }

    /// Sets inputs.
    pub fn with_inputs(mut self, inputs: &[(&str, &str)]) -> Self {
        self.env.extend(inputs.iter().map(|(name, value)| (variable(name), (*value).to_owned())));
        self
    }

    /// Sets variables.
    pub fn with(mut self, variables: &[(&str, &str)]) -> Self {
        let pairs = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.env.extend(pairs);
        self
    }

    /// As a container runs it, without an image: the binary is the first process of a namespace. For root.
    pub fn as_first_process(mut self) -> Self {
        if let Program::Binary(path) = self.program {
            self.program = Program::First(path);
        }
        self
    }

    /// Replaces the configuration.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn with_config(self, text: &str) -> Result<Self> {
        fs::write(self.folder.path().join("workspace/model-swap.yaml"), text)?;
        Ok(self)
    }

    /// The command that GitHub runs, without a standard input.
    pub fn command(&self) -> Command {
        let mut command = match &self.program {
            Program::Binary(path) => {
                let mut command = Command::new(path);
                command.env_clear().envs(&self.env);
                command
            }
            // `unshare` ends as its child does.
            Program::First(path) => {
                let mut command = Command::new("unshare");
                command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(path);
                command.env_clear().envs(&self.env);
                command
            }
            Program::Image { name, entrypoint, place } => {
                self.contained(name, entrypoint.as_deref(), place)
            }
        };
        command.current_dir(self.folder.path().join("workspace")).stdin(Stdio::null());
        command
    }

    /// The runner's `docker run` (`DockerCommandManager.cs`): values are in the client's environment, and only their
    /// names among its arguments.
    fn contained(&self, image: &str, entrypoint: Option<&str>, place: &Place) -> Command {
        let mut command = docker(["run", "--rm"]);
        match place {
            Place::Loopback => command.args(["--network", "host"]),
            Place::Bridge(engine) => command.env("DOCKER_HOST", engine),
        };
        command.args(["--label", "model-swap-test", "--workdir", &format!("{MOUNTED}/workspace")]);
        command.args(entrypoint.into_iter().flat_map(|path| ["--entrypoint", path]));
        let host = self.folder.path().display().to_string();
        // The image has a PATH of its own.
        for (name, value) in self.env.iter().filter(|(name, _)| *name != "PATH") {
            command.args(["-e", name]).env(name, value.replace(&host, MOUNTED));
        }
        for folder in FOLDERS {
            command.args(["-v", &format!("{host}/{folder}:{MOUNTED}/{folder}")]);
        }
        command.arg(image);
        command
    }

    /// Starts it.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn spawn(self) -> Result<Running> {
        let child = self.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(Running { child, action: self })
    }

    /// The outputs so far, as a workflow sees them: an empty one is none.
    ///
    /// # Errors
    /// If the file is gone.
    pub fn outputs(&self) -> Result<BTreeMap<String, String>> {
        let mut outputs = parse_outputs(&fs::read_to_string(self.folder.path().join(OUTPUT))?);
        outputs.retain(|_, value| !value.is_empty());
        Ok(outputs)
    }

    /// The state so far, as the runner hands it to the stage after the step.
    ///
    /// # Errors
    /// If the file is gone.
    pub fn state(&self) -> Result<BTreeMap<String, String>> {
        Ok(parse_outputs(&fs::read_to_string(self.folder.path().join(STATE))?))
    }

    /// The job summary so far, in Markdown.
    ///
    /// # Errors
    /// If the file is gone.
    pub fn summary(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.path().join(SUMMARY))?)
    }
}

/// A step that runs.
pub struct Running {
    /// Its process; both outputs are pipes.
    pub child: Child,
    action: Action,
}

impl Running {
    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end, with what it said.
    pub async fn finish(self) -> Result<Run> {
        let Self { child, action } = self;
        let output = tokio::task::spawn_blocking(move || end::output(child)).await??;
        Ok(Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            outputs: action.outputs()?,
            summary: action.summary()?,
            state: action.state()?,
        })
    }
}

/// What a finished run of the binary left.
#[derive(Debug)]
pub struct Run {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Its log.
    pub stdout: String,
    /// What it should never write to.
    pub stderr: String,
    /// Outputs of the step.
    pub outputs: BTreeMap<String, String>,
    /// The job summary, in Markdown.
    pub summary: String,
    /// What it leaves to the stage after it.
    pub state: BTreeMap<String, String>,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "exit code {}\n{}\n{}", self.code, self.stdout, self.stderr)?;
        writeln!(f, "{:#?}\n{}", self.outputs, self.summary)
    }
}

impl Run {
    /// Asserts how it ended; shows everything if it did not.
    ///
    /// # Panics
    /// If it ended otherwise.
    #[track_caller]
    pub fn ended(self, code: i32, outcome: &str) -> Self {
        assert_eq!(
            (self.code, self.outputs.get("outcome").map_or("", String::as_str)),
            (code, outcome),
            "{self}"
        );
        self
    }

    /// Asserts that it went no further than a refusal, and that every text is in its words.
    ///
    /// # Panics
    /// If it ended otherwise, or said otherwise.
    #[track_caller]
    pub fn refused(self, code: i32, texts: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self}");
        for text in texts {
            assert!(self.stdout.contains(text), "no {text:?} in\n{self}");
        }
        self
    }

    /// Asserts that a question was answered, and that every text is in the answer.
    ///
    /// # Panics
    /// If it ended otherwise, or said otherwise.
    #[track_caller]
    pub fn answered(self, texts: &[&str]) -> Self {
        self.refused(0, texts)
    }

    /// An output of the step.
    ///
    /// # Panics
    /// If there is none of this name.
    #[track_caller]
    pub fn output(&self, name: &str) -> &str {
        self.outputs.get(name).unwrap_or_else(|| panic!("no output {name} in\n{self}"))
    }
}

/// Every input of the action with its default, or empty, as the runner passes them.
fn defaults() -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        inputs: BTreeMap<String, Input>,
    }
    #[derive(serde::Deserialize)]
    struct Input {
        default: Option<String>,
    }
    let Metadata { inputs } = serde_yaml::from_str(METADATA)?;
    // The only expression is the token, which a step without GitHub does not have.
    let value =
        |input: Input| input.default.filter(|text| !text.contains("${{")).unwrap_or_default();
    Ok(inputs.into_iter().map(|(name, input)| (variable(&name), value(input))).collect())
}

/// The variable of an input (runner, `Handler.cs`): dashes stay.
fn variable(input: &str) -> String {
    format!("INPUT_{}", input.replace(' ', "_").to_uppercase())
}

/// Reads a `GITHUB_OUTPUT` file as the runner does.
pub fn parse_outputs(text: &str) -> BTreeMap<String, String> {
    let mut outputs = BTreeMap::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some((name, delimiter)) = line.split_once("<<") {
            let value: Vec<_> = lines.by_ref().take_while(|line| *line != delimiter).collect();
            outputs.insert(name.to_owned(), value.join("\n"));
        } else if let Some((name, value)) = line.split_once('=') {
            outputs.insert(name.to_owned(), value.to_owned());
        }
    }
    outputs
}
