//! The Prometheus text format, as far as counting needs it. Pure.

/// The sum of a gauge over all its labels; `None` if the page has no such metric, or a value is not a count.
///
/// `name{label="value",…} value [timestamp]`, one sample a line (Prometheus exposition format 0.0.4).
pub fn count(page: &str, name: &str) -> Option<u64> {
    count_where(page, name, |_| true)
}

/// As [`count`], over the samples whose labels pass.
pub(super) fn count_where(page: &str, name: &str, passes: impl Fn(&str) -> bool) -> Option<u64> {
    let samples = samples(page, name).filter(|(labels, _)| passes(labels));
    let values: Option<Vec<u64>> = samples.map(|(_, value)| whole(value)).collect();
    values.filter(|values| !values.is_empty()).map(|values| values.iter().sum())
}

/// The sum of seconds over all labels, in whole milliseconds; `None` if the page has no such metric.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be in range"
)]
pub(super) fn millis(page: &str, name: &str) -> Option<u64> {
    let seconds = samples(page, name)
        .map(|(_, value)| value.split_whitespace().next()?.parse::<f64>().ok())
        .collect::<Option<Vec<f64>>>()
        .filter(|values| !values.is_empty())?;
    let millis = seconds.iter().sum::<f64>() * 1000.0;
    (0.0..9e15).contains(&millis).then_some(millis as u64)
}

/// Labels and value of each sample of a metric.
fn samples<'a>(page: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    page.lines().filter_map(move |line| {
        let rest = line.trim_start().strip_prefix(name)?;
        match rest.strip_prefix('{') {
            // A label's value may hold braces; sample values never do.
            Some(labels) => labels.rsplit_once('}'),
            None => rest.starts_with([' ', '\t']).then_some(("", rest)),
        }
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be a whole number in range"
)]
fn whole(value: &str) -> Option<u64> {
    let value: f64 = value.split_whitespace().next()?.parse().ok()?;
    // Request counts are far below 2^53, where every whole f64 is exact.
    ((0.0..9e15).contains(&value) && value.fract() == 0.0).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = "vllm:num_requests_running";
    const WAITING: &str = "vllm:num_requests_waiting";

    /// From a page of vLLM 0.32 with two requests in flight.
    const IN_FLIGHT: &str = r#"
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 2.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="deferred"} 7.0
"#;

    #[test]
    fn a_real_page_is_counted() {
        assert_eq!(count(IN_FLIGHT, RUNNING), Some(2));
        assert_eq!(count(IN_FLIGHT, WAITING), Some(0));
        assert_eq!(count(IN_FLIGHT, "vllm:num_requests"), None);
    }

    #[test]
    fn engines_are_summed_and_labels_may_hold_anything() {
        let page = "m{engine=\"0\",model_name=\"a}b{ 9\"} 2\nm{engine=\"1\"} 3.0 1700000000\nm 4\nmore 100\n";
        assert_eq!(count(page, "m"), Some(9));
    }

    #[test]
    fn labels_choose_and_seconds_are_summed() {
        let page = "m{reason=\"stop\",x=\"}\"} 2\nm{reason=\"abort\"} 3\ns_sum{e=\"0\"} 1.25\ns_sum{e=\"1\"} 0.5\n";
        let abort = |labels: &str| labels.contains("reason=\"abort\"");
        assert_eq!(count_where(page, "m", abort), Some(3));
        assert_eq!(count_where(page, "m", |labels| !abort(labels)), Some(2));
        assert_eq!(millis(page, "s_sum"), Some(1750));
        assert_eq!((millis(page, "s"), millis("s_sum x", "s_sum")), (None, None));
    }

    #[test]
    fn what_is_no_count_is_not_taken_for_zero() {
        for page in
            ["", "m NaN", "m -1", "m +Inf", "m 0.5", "m{a=\"b\"}", "m{a=\"b\"} x", "m 1\nm NaN"]
        {
            assert_eq!(count(page, "m"), None, "{page:?}");
        }
    }
}
