//! The command line: vLLM's own flags, and the knobs that make it misbehave.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};

/// vLLM's version that the measured facts are of.
pub const VERSION: &str = "0.33.0";

/// `stub-engine serve MODEL …`, as `vllm serve MODEL …`.
#[derive(Debug, Clone, Parser)]
#[command(name = "stub-engine", about = "Behaves like vLLM, without a model")]
pub enum Options {
    /// Serves a model.
    Serve(Serve),
}

impl Options {
    /// The settings of the only command there is.
    pub fn into_serve(self) -> Serve {
        let Self::Serve(serve) = self;
        serve
    }
}

/// The settings of `serve`.
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// The model: `root` in `/v1/models`.
    pub model: String,
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// The port to listen on.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// The names that clients may ask for; the model itself if none is given.
    #[arg(long, num_args = 1..)]
    pub served_model_name: Vec<String>,
    /// The key that guards `/v1`; `VLLM_API_KEY` if absent.
    #[arg(long)]
    pub api_key: Option<String>,
    /// Seconds that SIGTERM leaves to requests in flight; 0 aborts them at once.
    #[arg(long, default_value_t = 0)]
    pub shutdown_timeout: u64,
    /// vLLM's flags about the engine.
    #[command(flatten)]
    pub engine: EngineFlags,
    /// What this stub can be told to do.
    #[command(flatten)]
    pub stub: Knobs,
}

impl Serve {
    /// The names that clients may ask for; the first one labels the metrics.
    pub fn served_names(&self) -> Vec<String> {
        if self.served_model_name.is_empty() {
            vec![self.model.clone()]
        } else {
            self.served_model_name.clone()
        }
    }

    /// The model that is really loaded: what `/v1/models` calls `root`.
    pub fn root(&self) -> &str {
        self.stub.stub_report_model.as_deref().unwrap_or(&self.model)
    }

    /// `system_fingerprint` of every answer: `vllm-<version>-<8 hex digits of the engine's configuration>`.
    ///
    /// Names, addresses and keys are no part of it, so that two replicas of one revision look the same.
    pub fn fingerprint(&self) -> String {
        let configuration = format!("{} {:?}", self.root(), self.engine);
        format!("vllm-{VERSION}-{:08x}", fnv1a(configuration.as_bytes()))
    }
}

/// Flags of vLLM that are accepted so that real command lines work.
#[derive(Debug, Clone, Args)]
pub struct EngineFlags {
    /// Longest sequence in tokens: reported in `/v1/models`, not enforced.
    #[arg(long, default_value_t = 2048)]
    pub max_model_len: u64,
    /// Sequences that run at once; more than that wait. 256 as in vLLM.
    #[arg(long, default_value_t = 256)]
    pub max_num_seqs: usize,
    /// Ignored.
    #[arg(long)]
    pub gpu_memory_utilization: Option<f64>,
    /// Ignored.
    #[arg(long)]
    pub kv_cache_memory_bytes: Option<u64>,
    /// Ignored.
    #[arg(long)]
    pub tensor_parallel_size: Option<u32>,
    /// Ignored.
    #[arg(long)]
    pub dtype: Option<String>,
    /// Ignored.
    #[arg(long)]
    pub quantization: Option<String>,
    /// Ignored.
    #[arg(long)]
    pub load_format: Option<String>,
    /// Ignored.
    #[arg(long)]
    pub revision: Option<String>,
    /// Ignored.
    #[arg(long)]
    pub download_dir: Option<String>,
}

/// What the stub can be told to do.
#[derive(Debug, Clone, Args)]
pub struct Knobs {
    /// How long loading takes; the port is bound but refuses connections meanwhile.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "0")]
    pub stub_load_time: Duration,
    /// Dies of "CUDA out of memory" with exit code 1 after this time, if still loading then.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub stub_die_after: Option<Duration>,
    /// Prints its argv and environment, and dies with exit code 1, once this file is there.
    #[arg(long)]
    pub stub_blab_if: Option<PathBuf>,
    /// Reports this model as `root` in place of the one asked for.
    #[arg(long)]
    pub stub_report_model: Option<String>,
    /// Reports one more name, of so many bytes.
    #[arg(long)]
    pub stub_long_name: Option<usize>,
    /// The time that one token takes.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "2ms")]
    pub stub_token_delay: Duration,
    /// Binds with `SO_REUSEPORT`.
    #[arg(long)]
    pub stub_reuse_port: bool,
    /// Runs a `VLLM::EngineCore` child, which outlives a SIGKILL of its parent.
    #[arg(long)]
    pub stub_child: bool,
    /// The status that `/health` always answers.
    #[arg(long)]
    pub stub_health_status: Option<u16>,
    /// Ignores SIGTERM.
    #[arg(long)]
    pub stub_hang_on_term: bool,
}

/// FNV-1a, 32 bits: a hash that is the same in every build, unlike the standard library's.
pub(super) fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(arguments: &[&str]) -> Serve {
        Options::try_parse_from(["stub-engine", "serve"].iter().chain(arguments))
            .unwrap()
            .into_serve()
    }

    #[test]
    fn takes_a_command_line_written_for_vllm() {
        let options = serve(&[
            "org/model-a",
            "--served-model-name",
            "chat",
            "chat-latest",
            "--port",
            "8001",
            "--max-model-len",
            "4096",
            "--gpu-memory-utilization",
            "0.9",
        ]);
        assert_eq!(options.served_names(), ["chat", "chat-latest"]);
        assert_eq!((options.port, options.engine.max_model_len), (8001, 4096));
    }

    #[test]
    fn the_fingerprint_follows_model_and_engine_but_not_names_and_ports() {
        let plain = serve(&["a"]).fingerprint();
        assert_eq!(plain, serve(&["a", "--port", "1", "--served-model-name", "x"]).fingerprint());
        assert_ne!(plain, serve(&["b"]).fingerprint());
        assert_ne!(plain, serve(&["a", "--max-model-len", "1"]).fingerprint());
        assert_ne!(plain, serve(&["a", "--stub-report-model", "b"]).fingerprint());
        assert!(
            plain.starts_with("vllm-0.33.0-") && plain.len() == "vllm-0.33.0-".len() + 8,
            "{plain}"
        );
    }
}
