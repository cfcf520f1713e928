//! Commands as they have to be typed: hints name them by their verb alone, which is all where the configuration is the default
//! one. Anywhere else they get the options that mean the same service, server and key.

use crate::github::inputs::{CommandName, DEFAULT_CONFIG, Inputs};

/// What follows a command's verb.
#[derive(Debug, Clone, Default)]
pub(super) struct Typed(String);

impl Typed {
    /// The options that mean what these inputs mean, for somebody in the folder that they are read in.
    pub(super) fn of(inputs: &Inputs) -> Self {
        let config = inputs.config.display().to_string();
        let given = [
            ("--config", Some(config).filter(|config| config != DEFAULT_CONFIG)),
            ("--service", inputs.service.as_ref().map(ToString::to_string)),
            ("--model", inputs.model.clone()),
            ("--host", inputs.host.clone()),
        ];
        let given =
            given.into_iter().filter_map(|(option, value)| Some([option.to_owned(), value?]));
        let words: Vec<String> = given.flatten().chain(inputs.ssh_options.clone()).collect();
        Self(words.iter().map(|word| format!(" {}", shell_words::quote(word))).collect())
    }

    /// A text with every command of it as it has to be typed.
    pub(super) fn spell(&self, text: &str) -> String {
        let Self(options) = self;
        CommandName::ALL.iter().filter(|command| **command != CommandName::Init).fold(
            text.to_owned(),
            |text, command| {
                let named = format!("`model-swap {command}");
                let spell = |text: String, end: char| {
                    text.replace(&format!("{named}{end}"), &format!("{named}{options}{end}"))
                };
                // The other way round the options would follow twice.
                spell(spell(text, ' '), '`')
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(pairs: &[(&str, &str)], text: &str) -> String {
        let env = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Typed::of(&Inputs::from_env(&env).unwrap()).spell(text)
    }

    #[test]
    fn a_command_means_the_configuration_and_the_server_that_were_given() {
        let hint = "mend that, then `model-swap repair` (`command: repair`); `model-swap rollback --to r-1` and model-swap status";
        assert_eq!(spelled(&[], hint), hint);
        let given = [
            ("INPUT_CONFIG", "deploy/it's chat.yaml"),
            ("INPUT_HOST", "deploy@gpu-1"),
            ("INPUT_SSH-KEY", "-----BEGIN"),
        ];
        let options = r"--config 'deploy/it'\''s chat.yaml' --host deploy@gpu-1";
        assert_eq!(
            spelled(&given, hint),
            format!(
                "mend that, then `model-swap repair {options}` (`command: repair`); `model-swap rollback {options} --to r-1` \
                 and model-swap status"
            )
        );
        let other =
            "`model-swap init --host X` and `model-swap server install`, `model-swap repairs`";
        assert_eq!(spelled(&given, other), other);
    }
}
