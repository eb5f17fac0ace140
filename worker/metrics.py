"""The worker's Prometheus metrics; docs/metrics.md explains each."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from worker.contract import Answer

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
NATS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.6)
BATCH = (1, 2, 4, 8, 16, 32, 64, 128)


class WorkerMetrics:
    """All metrics of one worker process on a registry of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.jobs = Counter("erase_jobs", "Jobs ended or let go", ["outcome", "priority"], registry=registry)
        self.redeliveries = Counter("erase_redeliveries", "Jobs leased again", registry=registry)
        self.wakeups_dropped = Counter(
            "erase_wakeups_dropped", "Wake-ups without work to do", ["reason"], registry=registry
        )
        for reason in ("taken", "finished", "gone"):
            self.wakeups_dropped.labels(reason)
        self.prompt_tokens = Counter("erase_prompt_tokens", "Prompt tokens before pruning", registry=registry)
        self.generation_tokens = Counter("erase_generation_tokens", "Tokens generated", registry=registry)
        self.vision_tokens = Counter("erase_vision_tokens", "Vision tokens by stage", ["stage"], registry=registry)
        self.retention = Histogram(
            "erase_retention_ratio", "Retention of a request", ["kind"], buckets=RATIOS, registry=registry
        )
        self.retention_lowered = Counter(
            "erase_retention_lowered", "Requests pruned more because of overload", registry=registry
        )
        self.preemptions = Counter(
            "erase_preemptions", "Sequences that gave their cache to others for a while", registry=registry
        )
        self.image_features = Counter(
            "erase_image_features",
            "Images in the engine by where their features came from",
            ["source"],
            registry=registry,
        )
        for source in ("cache", "encoder"):
            self.image_features.labels(source)
        self.complexity = Histogram(
            "erase_image_complexity_nats", "Complexity of an image", buckets=NATS, registry=registry
        )
        self.phase = Histogram(
            "erase_phase_duration_seconds", "Time of each phase", ["phase"], buckets=SECONDS, registry=registry
        )
        self.first_token = Histogram(
            "erase_time_to_first_token_seconds", "Acceptance to first token", buckets=SECONDS, registry=registry
        )
        self.latency = Histogram(
            "erase_e2e_request_latency_seconds", "Acceptance to answer", buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "erase_batch_size", "Sequences that ran together", ["phase"], buckets=BATCH, registry=registry
        )
        self.running = Gauge("erase_num_requests_running", "Sequences being decoded", registry=registry)
        self.waiting = Gauge("erase_num_requests_waiting", "Sequences that wait for the engine", registry=registry)
        self.cache_tokens = Gauge("erase_kv_cache_tokens", "Tokens in the key/value cache", registry=registry)
        self.cache_capacity = Gauge("erase_kv_cache_capacity_tokens", "Tokens that fit into it", registry=registry)
        self.gpu_memory = Gauge("erase_gpu_memory_bytes", "CUDA memory", ["kind"], registry=registry)
        self.load_seconds = Gauge("erase_model_load_seconds", "Time to load and warm up", registry=registry)
        self.model_info = Gauge(
            "erase_model_info", "Model served", ["model", "revision", "device", "dtype", "policy"], registry=registry
        )
        self.build_info = Gauge("erase_build_info", "Version", ["version", "contract", "component"], registry=registry)

    def observe(self, answer: Answer) -> None:
        """Count what one answer took and saved."""
        usage, times = answer.usage, answer.timings_ms
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.generation_tokens.inc(usage.completion_tokens)
        if usage.vision_tokens.input:
            for stage, count in usage.vision_tokens:
                self.vision_tokens.labels(stage).inc(count)
            self.retention.labels("final").observe(answer.pruning.final)
            self.retention.labels("layer_average").observe(answer.pruning.layer_average)
        for image in answer.images:
            self.complexity.observe(image.complexity)
        for phase in ("queue", "preprocess", "encode", "prefill", "decode"):
            self.phase.labels(phase).observe(getattr(times, phase) / 1000)
        self.first_token.observe(times.first_token / 1000)
        self.latency.observe(times.total / 1000)
