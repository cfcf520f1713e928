//! Clients that live as long as a container: `docker run` in the foreground, `docker start --attach`, `docker compose up`.

use std::path::{Path, PathBuf};

use super::Container;

const CLIENTS: [&str; 2] = ["docker", "docker-compose"];

/// What of the client's commands goes on until the container has ended; `up` is Compose's.
const LASTING: [&str; 4] = ["run", "start", "attach", "up"];

/// How many digits of an id people write at least: what `docker ps` shows.
const SHORT_ID: usize = 12;

impl Container {
    /// Whether it is the container of a client with this argv and working folder, whose end is the client's.
    pub fn is_of_client(&self, argv: &[String], folder: &Path) -> bool {
        let Some((program, words)) = argv.split_first() else { return false };
        let name = Path::new(program).file_name().and_then(|name| name.to_str());
        if !name.is_some_and(|name| CLIENTS.contains(&name)) {
            return false;
        }
        match words.iter().find(|word| LASTING.contains(&word.as_str())).map(String::as_str) {
            Some("up") => self.is_of_project(words, folder),
            Some("run") if option(words, &["--name"]).is_none() => {
                self.is_named_by(words, folder) || self.is_made_by(words)
            }
            Some(_) => self.is_named_by(words, folder),
            None => false,
        }
    }

    /// By its name, its id, or the file that its id was written to.
    fn is_named_by(&self, words: &[String], folder: &Path) -> bool {
        let name = self.name.trim_start_matches('/');
        let is_id = |word: &str| word.len() >= SHORT_ID && self.id.starts_with(word);
        let written = option(words, &["--cidfile"])
            .and_then(|file| std::fs::read_to_string(folder.join(file)).ok());
        words.iter().any(|word| word == name || is_id(word))
            || option(words, &["--name"]) == Some(name)
            || written.is_some_and(|id| id.trim() == self.id)
    }

    /// By its image and its command, which stand at the end of what `docker run` is told.
    fn is_made_by(&self, words: &[String]) -> bool {
        let (image, command) = (&self.config.image, self.config.cmd.as_deref().unwrap_or_default());
        let at = |own: usize| words.len().checked_sub(own + 1).and_then(|at| words.get(at));
        // An image has a command of its own, where nobody gives one.
        at(0) == Some(image) || (words.ends_with(command) && at(command.len()) == Some(image))
    }

    /// By the name of Compose's project, or the folder that it is called after.
    fn is_of_project(&self, words: &[String], folder: &Path) -> bool {
        let Some(project) = self.project() else { return false };
        if let Some(name) = option(words, &["--project-name", "-p"]) {
            return name == project;
        }
        let beside = |file: &str| folder.join(file).parent().map(Path::to_owned);
        let file = option(words, &["--file", "-f"]).and_then(beside);
        let named = option(words, &["--project-directory"]).map(|named| folder.join(named));
        let at: PathBuf = named.or(file).unwrap_or_else(|| folder.to_owned());
        self.label("com.docker.compose.project.working_dir").map(Path::new) == Some(&at)
    }
}

/// The value of an option, in the next word or behind `=`.
fn option<'a>(words: &'a [String], names: &[&str]) -> Option<&'a str> {
    words.iter().enumerate().find_map(|(at, word)| match word.split_once('=') {
        Some((name, value)) if names.contains(&name) => Some(value),
        None if names.contains(&word.as_str()) => words.get(at + 1).map(String::as_str),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> Container {
        let id = "0123456789abcdef".repeat(4);
        let text = serde_json::json!({
            "Id": id, "Name": "/llm", "Path": "vllm", "Args": [], "NetworkSettings": {},
            "State": { "Running": true, "Pid": 1, "ExitCode": 0 },
            "HostConfig": { "RestartPolicy": { "Name": "" } },
            "Config": {
                "Image": "vllm/vllm-openai:v1", "Cmd": ["--model", "Qwen/Old"],
                "Labels": {
                    "com.docker.compose.project": "chat",
                    "com.docker.compose.project.working_dir": "/srv/llm",
                },
            },
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn the_client_that_a_container_ends_with_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let it = container();
        std::fs::write(folder.path().join("cid"), &it.id).unwrap();
        let known =
            |line: &str, folder: &Path| it.is_of_client(&shell_words::split(line).unwrap(), folder);
        for line in [
            "/usr/bin/docker run --rm --name llm vllm/vllm-openai:v1",
            "docker run --name=llm other",
            "docker start -a llm",
            "docker attach 0123456789ab",
            "docker run --cidfile cid other",
            "docker --context default run --rm --gpus all vllm/vllm-openai:v1 --model Qwen/Old",
            "docker run vllm/vllm-openai:v1",
            "docker compose -p chat up",
            "/usr/libexec/docker/cli-plugins/docker-compose compose -f /srv/llm/compose.yaml up",
            "docker-compose --project-directory=/srv/llm up",
        ] {
            assert!(known(line, folder.path()), "{line}");
        }
        assert!(known("docker compose up", Path::new("/srv/llm")));
        for line in [
            "docker run --rm vllm/vllm-openai:v1 --model Qwen/Other",
            "docker run --rm --name other vllm/vllm-openai:v1 --model Qwen/Old",
            "docker logs -f llm",
            "docker attach 0123",
            "docker compose up",
            "docker compose -p other up",
            "vim run llm",
        ] {
            assert!(!known(line, folder.path()), "{line}");
        }
    }
}
