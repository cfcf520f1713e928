//! `/metrics` in vLLM's names, labels and number format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::engine::{Engine, Finish};

/// Upper bounds of `vllm:time_to_first_token_seconds`, from a real exposition.
const TIME_TO_FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// Upper bounds of `vllm:e2e_request_latency_seconds`, from a real exposition.
const END_TO_END: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// The values of `finished_reason`; the last two never happen here.
const REASONS: [&str; 5] = ["stop", "length", "abort", "error", "repetition"];

/// Everything that is counted.
#[derive(Debug)]
pub(super) struct Books {
    /// Generations that have a seat.
    pub(super) running: u64,
    /// Generations that wait for one.
    pub(super) waiting: u64,
    /// Tokens read.
    pub(super) prompt_tokens: u64,
    /// Tokens made.
    pub(super) generation_tokens: u64,
    /// From admission to the first token.
    pub(super) time_to_first_token: Histogram,
    end_to_end: Histogram,
    finished: BTreeMap<Finish, u64>,
    /// By handler, method and status class.
    http: BTreeMap<(String, String, String), u64>,
}

impl Default for Books {
    fn default() -> Self {
        Self {
            running: 0,
            waiting: 0,
            prompt_tokens: 0,
            generation_tokens: 0,
            time_to_first_token: Histogram::new(&TIME_TO_FIRST_TOKEN),
            end_to_end: Histogram::new(&END_TO_END),
            finished: BTreeMap::new(),
            http: BTreeMap::new(),
        }
    }
}

impl Books {
    /// A generation ended. One that its client left does not count, as measured.
    pub(super) fn finished(&mut self, finish: Finish, took: Duration) {
        *self.finished.entry(finish).or_default() += 1;
        self.end_to_end.observe(took);
    }

    /// An HTTP answer is complete, or its client has left.
    pub(super) fn answered(&mut self, handler: &str, method: &str, status: u16) {
        let key = (handler.to_owned(), method.to_owned(), format!("{}xx", status / 100));
        *self.http.entry(key).or_default() += 1;
    }
}

/// A Prometheus histogram of seconds.
#[derive(Debug)]
pub(super) struct Histogram {
    /// Upper bound and observations at or under it.
    buckets: Vec<(f64, u64)>,
    count: u64,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &[f64]) -> Self {
        Self { buckets: bounds.iter().map(|bound| (*bound, 0)).collect(), count: 0, sum: 0.0 }
    }

    /// Adds one observation.
    pub(super) fn observe(&mut self, value: Duration) {
        let seconds = value.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        for (_, count) in self.buckets.iter_mut().filter(|(bound, _)| seconds <= *bound) {
            *count += 1;
        }
    }
}

/// The exposition's text.
pub(super) fn exposition(engine: &Engine) -> String {
    let books = engine.books.borrow();
    let name = engine.options.served_names().swap_remove(0);
    let mut page = Page { text: String::new(), model: name };
    page.gauge("vllm:num_requests_running", &[("", books.running as f64)]);
    page.gauge("vllm:num_requests_waiting", &[("", books.waiting as f64)]);
    let by_reason = [(",reason=\"capacity\"", books.waiting as f64), (",reason=\"deferred\"", 0.0)];
    page.gauge("vllm:num_requests_waiting_by_reason", &by_reason);
    page.gauge("vllm:kv_cache_usage_perc", &[("", books.running.min(100) as f64 / 100.0)]);
    page.counter("vllm:prompt_tokens", books.prompt_tokens);
    page.counter("vllm:generation_tokens", books.generation_tokens);
    page.finished(&books.finished);
    // Each step of this engine makes one token.
    page.line(&format!(
        "vllm:iteration_tokens_total_count{{engine=\"0\",model_name=\"{}\"}} {:?}",
        page.model, books.generation_tokens as f64
    ));
    page.histogram("vllm:time_to_first_token_seconds", &books.time_to_first_token);
    page.histogram("vllm:e2e_request_latency_seconds", &books.end_to_end);
    page.line("# TYPE http_requests_total counter");
    for ((handler, method, status), count) in &books.http {
        page.line(&format!(
            "http_requests_total{{handler=\"{handler}\",method=\"{method}\",status=\"{status}\"}} {:?}",
            *count as f64
        ));
    }
    page.text
}

struct Page {
    text: String,
    model: String,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn gauge(&mut self, name: &str, samples: &[(&str, f64)]) {
        self.line(&format!("# TYPE {name} gauge"));
        for (label, value) in samples {
            self.line(&format!(
                "{name}{{engine=\"0\",model_name=\"{}\"{label}}} {value:?}",
                self.model
            ));
        }
    }

    /// Also writes the `_created` series, which readers must not mistake for counts.
    fn counter(&mut self, name: &str, value: u64) {
        self.line(&format!("# TYPE {name}_total counter"));
        self.line(&format!(
            "{name}_total{{engine=\"0\",model_name=\"{}\"}} {:?}",
            self.model, value as f64
        ));
        self.line(&format!("# TYPE {name}_created gauge"));
        self.line(&format!(
            "{name}_created{{engine=\"0\",model_name=\"{}\"}} 1.7954179098573446e+09",
            self.model
        ));
    }

    fn finished(&mut self, finished: &BTreeMap<Finish, u64>) {
        self.line("# TYPE vllm:request_success_total counter");
        for reason in REASONS {
            let count = finished
                .iter()
                .find(|(finish, _)| finish.name() == reason)
                .map_or(0, |(_, count)| *count);
            self.line(&format!(
                "vllm:request_success_total{{engine=\"0\",finished_reason=\"{reason}\",model_name=\"{}\"}} {:?}",
                self.model, count as f64
            ));
        }
    }

    fn histogram(&mut self, name: &str, histogram: &Histogram) {
        self.line(&format!("# TYPE {name} histogram"));
        let model = self.model.clone();
        let infinity = ("+Inf".to_owned(), histogram.count);
        let bounds = histogram.buckets.iter().map(|(bound, count)| (format!("{bound:?}"), *count));
        for (bound, count) in bounds.chain([infinity]) {
            self.line(&format!(
                "{name}_bucket{{engine=\"0\",le=\"{bound}\",model_name=\"{model}\"}} {:?}",
                count as f64
            ));
        }
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.text,
            "{name}_count{{engine=\"0\",model_name=\"{model}\"}} {:?}\n{name}_sum{{engine=\"0\",model_name=\"{model}\"}} \
             {:?}",
            histogram.count as f64, histogram.sum
        );
    }
}
