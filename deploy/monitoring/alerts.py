"""What somebody should be told of, and what to do then; as the rule file that Prometheus loads."""

from dataclasses import dataclass
from typing import Any, Literal

from scopemill.deploy.monitoring.promql import rate, select, share
from scopemill.proto import metrics as m

WINDOW = "5m"
# Trainers that are done stay until those that they train with are done too: nothing is amiss with them.
_UNFINISHED = f"on (sweep, sae, instance) {select(m.TRAINER_STEP)} < {select(m.TRAINER_STEPS)}"


@dataclass(frozen=True)
class Alert:
    """Fires when ``query`` has been on the wrong side of ``threshold`` for as long as ``lasting`` (Prometheus' notation)."""

    name: str
    query: str
    comparison: Literal["<", "<=", ">"]
    threshold: float
    lasting: str
    severity: Literal["critical", "warning"]
    summary: str  # a template of Prometheus: may name labels and the value
    remedy: str

    def render(self) -> dict[str, Any]:
        rule = {"alert": self.name, "expr": f"({self.query}) {self.comparison} {self.threshold:g}", "for": self.lasting}
        return rule | {"labels": {"severity": self.severity}, "annotations": {"summary": self.summary, "description": self.remedy}}


ALERTS = (
    Alert(
        "ProcessSilent", 'up{job="scopemill"}', "<", 1, "1m", "critical",
        "{{ $labels.role }} at {{ $labels.instance }} of sweep {{ $labels.sweep }} does not answer",
        "Look at its log in Ray. A trainer, harvester or evaluator is started again by Ray, but not its metrics; if the "
        "driver itself is gone, run the same command again: it goes on where it was.",
    ),
    Alert(
        "SaeFailed", select(m.SWEEP_SAES, 'state="failed"'), ">", 0, "0s", "critical",
        "{{ $value }} SAEs of sweep {{ $labels.sweep }} failed",
        "The others go on. The sweep's last lines name each and why; mend that and run the command again, which trains only those.",
    ),
    Alert(
        "TrainerStalled", f"{rate(m.TRAINER_TOKENS, WINDOW)} and {_UNFINISHED}", "<=", 0, "5m", "critical",
        "SAE {{ $labels.sae }} of sweep {{ $labels.sweep }} makes no step",
        "See what trainers wait for on the data plane's dashboard: read is the bucket, window is the trainer with the largest lag.",
    ),
    Alert(
        # NaN is the only value that is not equal to itself.
        "LossNotANumber", f"{select(m.TRAINER_LOSS)} != bool {select(m.TRAINER_LOSS)}", ">", 0, "0s", "critical",
        "The loss of SAE {{ $labels.sae }} of sweep {{ $labels.sweep }} is not a number",
        "Nothing that it does from here on is of use. Lower train.learning_rate, or raise its warm-up, and train it anew.",
    ),
    Alert(
        "WorseThanTheMean", select(m.TRAINER_FVU), ">", 1, "15m", "warning",
        "SAE {{ $labels.sae }} of sweep {{ $labels.sweep }} explains less than the mean would: FVU {{ $value }}",
        "Its sparsity coefficient is too high for its learning rate, or its learning rate too high. Lower either.",
    ),
    Alert(
        "LatentsDead", f"{select(m.TRAINER_DEAD)} / {select(m.TRAINER_LATENTS)}", ">", 0.5, "30m", "warning",
        "{{ $value | humanizePercentage }} of the latents of SAE {{ $labels.sae }} of sweep {{ $labels.sweep }} are dead",
        "A lower sparsity coefficient, a longer warm-up of it or a smaller width keeps more of them alive.",
    ),
    Alert(
        "CheckpointOld", f"time() - {select(m.TRAINER_CHECKPOINT)} and {_UNFINISHED}", ">", 3600, "0s", "warning",
        "SAE {{ $labels.sae }} of sweep {{ $labels.sweep }} would lose {{ $value | humanizeDuration }} of work",
        "Lower train.checkpoint_every. If checkpoints used to come more often, see whether the trainer stands still or the bucket is slow.",
    ),
    Alert(
        "TrainersStarved",
        share(rate(m.TRAINER_SECONDS, WINDOW, 'phase="wait"'), rate(m.TRAINER_SECONDS, WINDOW), "sweep"), ">", 0.5, "10m", "warning",
        "Trainers of sweep {{ $labels.sweep }} spend {{ $value | humanizePercentage }} of their time waiting for data",
        "If they wait for reads, the bucket is slow: bring it nearer. If they wait for a slower trainer, raise server.window_mib, or set "
        "server.lag to detach.",
    ),
    Alert(
        "ReadsNotShared",
        share(rate(m.SERVER_DETACHED_BYTES, WINDOW), rate(m.SERVER_BYTES_READ, WINDOW), "sweep, stream"), ">", 0.1, "10m", "warning",
        "{{ $value | humanizePercentage }} of the reads of stream {{ $labels.stream }} of sweep {{ $labels.sweep }} serve one trainer only",
        "A trainer that is behind the window is read for alone until it has caught up. If it never does, raise server.window_mib.",
    ),
    Alert(
        "TrainerGivenUp", f"increase({select(m.SERVER_LOST)}[15m])", ">", 0, "0s", "warning",
        "A trainer of stream {{ $labels.stream }} of sweep {{ $labels.sweep }} went silent and did not come back in time",
        "If Ray starts it again it reads by itself until it has caught up. Raise server.join_seconds if restarts take longer than that.",
    ),
    Alert(
        "RequestsRetried", f"sum by (sweep) (rate({select(m.STORE_RETRIES)}[{WINDOW}])) or vector(0)", ">", 1, "10m", "warning",
        "Sweep {{ $labels.sweep }} tries {{ $value | humanize }} requests to the bucket again each second",
        "The bucket throttles, or the way to it is broken. Fewer trainers and harvesters at once, or a bucket that is nearer, will help.",
    ),
    Alert(
        "ReadsCorrupt", f"increase({select(m.STORE_CORRUPT_READS)}[15m])", ">", 0, "0s", "critical",
        "{{ $labels.role }} of sweep {{ $labels.sweep }} read chunks that do not match their checksum",
        "Read once more they may be right: then the way to the bucket is at fault. If a trainer fails with the object's name, remove "
        "that shard's commit and harvest again.",
    ),
    Alert(
        "OutliersDropped", share(select(m.HARVEST_OUTLIERS), select(m.HARVEST_ROWS), "sweep, dataset"), ">", 0.01, "5m", "warning",
        "The norm filter drops {{ $value | humanizePercentage }} of the rows of dataset {{ $labels.dataset }}",
        "Few rows have norms so large in most models: raise harvest.outlier_norm, or leave it out.",
    ),
    Alert(
        "NodeMemoryShort", "ray_node_mem_used / ray_node_mem_total", ">", 0.9, "2m", "critical",
        "{{ $value | humanizePercentage }} of the memory of node {{ $labels.ip }} is used",
        "Ray ends processes at 95%. Lower server.window_mib, train.at_once or harvest.rows_per_shard.",
    ),
)  # fmt: skip


def rule_file() -> dict[str, Any]:
    return {"groups": [{"name": "scopemill", "rules": [alert.render() for alert in ALERTS]}]}
