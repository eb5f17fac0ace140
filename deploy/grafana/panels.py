"""What the Grafana dashboard shows: rows of panels as data, and the PromQL they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Panel:
    """One panel: `queries` are (PromQL, legend); `unit` is a Grafana unit id; `width` is in 24ths of a row."""

    title: str
    description: str
    queries: tuple[tuple[str, str], ...]
    unit: str
    width: int = 8
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"


@dataclass(frozen=True)
class Row:
    """A titled group of panels."""

    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, by: str = "") -> str:
    """Per-second rate of a counter that each process counts for itself."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}[$__rate_interval]))"


def ledger_rate(metric: str, by: str = "") -> str:
    """Per-second rate of a counter that every service process reads from the ledger: the same value, hence max."""
    grouping = f" by ({by})" if by else ""
    return f"max{grouping} (rate({metric}[$__rate_interval]))"


def quantile(q: float, histogram: str, by: str = "") -> str:
    """Quantile of a histogram over all processes."""
    grouping = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({grouping}) (rate({histogram}_bucket[$__rate_interval])))"


def quantiles(histogram: str) -> tuple[tuple[str, str], ...]:
    """p50, p95 and p99 of a histogram."""
    return tuple((quantile(q, histogram), f"p{round(q * 100)}") for q in (0.5, 0.95, 0.99))


def mean(histogram: str, by: str = "") -> str:
    """Mean of what a histogram observed."""
    return f"{rate(histogram + '_sum', by)} / {rate(histogram + '_count', by)}"


def heat(histogram: str, matcher: str = "") -> tuple[tuple[str, str], ...]:
    """Observations per bucket and interval."""
    return ((f"sum by (le) (increase({histogram}_bucket{matcher}[$__rate_interval]))", "{{le}}"),)


def token_reduction(window: str) -> str:
    """Share of vision tokens that pruning saved, averaged over decoder layers."""
    kept = f'sum(rate(erase_vision_tokens_total{{stage="layer_average"}}[{window}]))'
    return f'1 - {kept} / sum(rate(erase_vision_tokens_total{{stage="input"}}[{window}]))'


ROWS = (
    Row(
        "Overview",
        (
            Panel(
                "Requests",
                "HTTP requests answered per second, by route.",
                ((rate("erase_http_requests_total", "route"), "{{route}}"),),
                "reqps",
            ),
            Panel(
                "Goodput",
                "Answers per second that were complete within the limit chosen above, beside all answers.",
                (
                    (rate('erase_e2e_request_latency_seconds_bucket{le="$goodput_limit"}'), "within the limit"),
                    (rate("erase_e2e_request_latency_seconds_count"), "all answers"),
                ),
                "reqps",
            ),
            Panel(
                "Errors by type",
                "Refused requests by problem type, and accepted jobs that ended in anything but success or a cancel.",
                (
                    (rate("erase_rejections_total", "reason"), "refused: {{reason}}"),
                    (
                        ledger_rate('erase_jobs_finished_total{state=~"failed|expired|dead"}', "state"),
                        "job {{state}}",
                    ),
                ),
                "reqps",
            ),
            Panel(
                "Latency",
                "From acceptance to the whole answer.",
                quantiles("erase_e2e_request_latency_seconds"),
                "s",
            ),
            Panel(
                "Time to first token",
                "From acceptance to the first token: queueing, preprocessing, encoding and prefill.",
                quantiles("erase_time_to_first_token_seconds"),
                "s",
            ),
            Panel(
                "Phases, p95",
                "Where the time goes. A long queue phase needs workers; a long prefill phase needs less retention.",
                ((quantile(0.95, "erase_phase_duration_seconds", "phase"), "{{phase}}"),),
                "s",
            ),
            Panel(
                "HTTP responses by status",
                "Responses per second. 503 means that requests could not be accepted, 504 that a deadline passed.",
                ((rate("erase_http_requests_total", "status"), "{{status}}"),),
                "reqps",
                12,
            ),
            Panel(
                "Tokens",
                "Prompt tokens before pruning, and tokens generated.",
                (
                    (rate("erase_prompt_tokens_total"), "prompt"),
                    (rate("erase_generation_tokens_total"), "generated"),
                ),
                "cps",
                12,
            ),
        ),
    ),
    Row(
        "Pruning",
        (
            Panel(
                "Token reduction",
                "Share of vision tokens saved over the time range, averaged over decoder layers.",
                ((token_reduction("$__range"), "saved"),),
                "percentunit",
                4,
                "stat",
            ),
            Panel(
                "Token reduction over time",
                "Share of vision tokens saved, averaged over decoder layers.",
                ((token_reduction("$__rate_interval"), "saved"),),
                "percentunit",
                10,
            ),
            Panel(
                "Vision tokens by stage",
                "Vision tokens per second: all, into the decoder (what the image needs), kept at its end (what "
                "the question needs), and the mean over decoder layers, which is what compute and memory follow.",
                ((rate("erase_vision_tokens_total", "stage"), "{{stage}}"),),
                "cps",
                10,
            ),
            Panel(
                "Final retention",
                "Share of vision tokens that a request still had after the last cut.",
                heat("erase_retention_ratio", '{kind="final"}'),
                "percentunit",
                12,
                "heatmap",
            ),
            Panel(
                "Image complexity",
                "Complexity of the images in nats; it sets how much of an image stage 1 keeps.",
                heat("erase_image_complexity_nats"),
                "none",
                12,
                "heatmap",
            ),
        ),
    ),
    Row(
        "Queue and workers",
        (
            Panel(
                "Queue depth",
                "Wake-ups in the Celery queues. Jobs that a worker holds are not in it.",
                (("max by (queue) (erase_queue_depth)", "{{queue}}"),),
                "none",
            ),
            Panel(
                "Jobs and slots",
                "Open jobs, jobs that workers hold, and the slots they have. Scale on (open jobs) / slots.",
                (
                    ("max(erase_jobs_open)", "open"),
                    ("max(erase_worker_running)", "held by workers"),
                    ("max(erase_worker_slots)", "slots"),
                ),
                "none",
            ),
            Panel(
                "Engine: running and waiting",
                "Sequences that the engines decode, sequences that wait for one, and requests that wait for a job.",
                (
                    ("sum(erase_num_requests_running)", "running"),
                    ("sum(erase_num_requests_waiting)", "waiting"),
                    ("sum(erase_http_requests_waiting)", "HTTP requests waiting"),
                ),
                "none",
            ),
            Panel(
                "Oldest open job",
                "Age of the oldest job that waits or is due for a check; alerted above two minutes.",
                (("max(erase_oldest_open_job_age_seconds)", "age"),),
                "s",
            ),
            Panel(
                "Workers alive",
                "Workers with a heartbeat in the last 30 seconds.",
                (("max(erase_workers)", "workers"),),
                "none",
            ),
            Panel(
                "Heartbeat age",
                "Time since each worker's last heartbeat; alerted above 15 seconds.",
                (("max by (worker) (erase_worker_heartbeat_age_seconds)", "{{worker}}"),),
                "s",
            ),
            Panel(
                "Batch size",
                "Mean number of sequences that ran together in one step.",
                ((mean("erase_batch_size", "phase"), "{{phase}}"),),
                "none",
            ),
            Panel(
                "Key/value cache",
                "Tokens held in the key/value cache of each worker, averaged over layers, and how many would fit.",
                (
                    ("erase_kv_cache_tokens", "{{instance}} held"),
                    ("erase_kv_cache_capacity_tokens", "{{instance}} capacity"),
                ),
                "none",
            ),
            Panel(
                "Preempted and pruned more",
                "Sequences that gave their cache to others for a while, and requests whose retention overload lowered.",
                (
                    (rate("erase_preemptions_total"), "preempted"),
                    (rate("erase_retention_lowered_total"), "pruned more"),
                ),
                "ops",
            ),
            Panel(
                "Images",
                "Images per second whose features were still known (cache), and that had to be encoded (encoder).",
                ((rate("erase_image_features_total", "source"), "{{source}}"),),
                "ops",
            ),
            Panel(
                "GPU memory",
                "CUDA memory of each worker; empty where workers run on CPU.",
                (("erase_gpu_memory_bytes", "{{instance}} {{kind}}"),),
                "bytes",
            ),
        ),
    ),
    Row(
        "Reliability",
        (
            Panel(
                "Accepted and finished",
                "Jobs per second. Over time the finished ones must add up to the accepted and the requeued ones.",
                (
                    (ledger_rate("erase_jobs_accepted_total"), "accepted"),
                    (ledger_rate("erase_jobs_requeued_total"), "requeued"),
                    (ledger_rate("erase_jobs_finished_total", "state"), "{{state}}"),
                ),
                "reqps",
                12,
            ),
            Panel(
                "Accepted, and accounted for",
                "Jobs accepted or asked again, beside those finished or open. Lines that part mean a lost job.",
                (
                    ("max(erase_jobs_accepted_total) + max(erase_jobs_requeued_total)", "accepted + requeued"),
                    (
                        "sum(max by (state) (erase_jobs_finished_total)) + max(erase_jobs_open)",
                        "finished + open",
                    ),
                ),
                "none",
                12,
            ),
            Panel(
                "Redeliveries",
                "Jobs per second that were leased for a second or later attempt.",
                ((rate("erase_redeliveries_total"), "redelivered"),),
                "reqps",
            ),
            Panel(
                "Wake-ups",
                "Wake-ups that the sweeper sent again, and wake-ups that a worker dropped because nothing was to do.",
                (
                    (ledger_rate("erase_wakeups_resent_total"), "resent"),
                    (rate("erase_wakeups_dropped_total", "reason"), "dropped: {{reason}}"),
                ),
                "reqps",
            ),
            Panel(
                "Leases lost and writes fenced",
                "Jobs taken over from a worker that stopped renewing, and its late writes that were refused.",
                (
                    (ledger_rate("erase_leases_lost_total"), "leases lost"),
                    (ledger_rate("erase_fenced_writes_total"), "writes fenced"),
                ),
                "reqps",
            ),
            Panel(
                "Dead letters",
                "Jobs given up after their last attempt, in the time range.",
                (('max(increase(erase_jobs_finished_total{state="dead"}[$__range]))', "dead"),),
                "none",
                6,
                "stat",
            ),
            Panel(
                "Redis",
                "1 while every service process reaches Redis.",
                (("min(erase_redis_up)", "up"),),
                "none",
                6,
                "stat",
            ),
            Panel(
                "What runs",
                "Versions and models in use.",
                (
                    ("max by (component, version, contract) (erase_build_info)", "{{component}} {{version}}"),
                    ("sum by (model, device, dtype, policy) (erase_model_info)", "{{model}} {{device}} {{policy}}"),
                ),
                "none",
                12,
                "stat",
            ),
        ),
    ),
)
