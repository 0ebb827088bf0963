"""Define the alerts and their remedies, and render the rule file that Prometheus loads."""

from dataclasses import dataclass
from typing import Any, Literal

from scopemill.deploy.monitoring.promql import rate, select, share
from scopemill.proto import metrics as m

WINDOW = "5m"
# A finished trainer stays until the trainers beside it are finished too, and must raise no alert meanwhile.
_UNFINISHED = f"on (sweep, sae, instance) {select(m.TRAINER_STEP)} < {select(m.TRAINER_STEPS)}"


@dataclass(frozen=True)
class Alert:
    """Describe an alert that fires when ``query`` compares true with ``threshold`` for the duration ``lasting``.

    ``lasting`` is in Prometheus' notation.
    """

    name: str
    query: str
    comparison: Literal["<", "<=", ">"]
    threshold: float
    lasting: str
    severity: Literal["critical", "warning"]
    summary: str  # a template of Prometheus, which may name labels and the value
    remedy: str

    def render(self) -> dict[str, Any]:
        """Return the alert as a rule of Prometheus."""
        rule = {"alert": self.name, "expr": f"({self.query}) {self.comparison} {self.threshold:g}", "for": self.lasting}
        return rule | {"labels": {"severity": self.severity}, "annotations": {"summary": self.summary, "description": self.remedy}}


ALERTS = (
    Alert(
        "ProcessSilent", 'up{job="scopemill"}', "<", 1, "1m", "critical",
        "{{ $labels.role }} at {{ $labels.instance }} of sweep {{ $labels.sweep }} does not answer",
        "Read the log of the process in Ray. Ray restarts a trainer, harvester or evaluator, but the new process exposes no metrics. If "
        "the driver itself is gone, run the same command again: the sweep resumes.",
    ),
    Alert(
        "SaeFailed", select(m.SWEEP_SAES, 'state="failed"'), ">", 0, "0s", "critical",
        "{{ $value }} SAEs of sweep {{ $labels.sweep }} failed",
        "The other SAEs train on. The last lines of the sweep's log give the reason for each. Remove the reason and run the same command "
        "again: only the failed SAEs are trained.",
    ),
    Alert(
        "TrainerStalled", f"{rate(m.TRAINER_TOKENS, WINDOW)} and {_UNFINISHED}", "<=", 0, "5m", "critical",
        "SAE {{ $labels.sae }} of sweep {{ $labels.sweep }} has stopped making steps",
        "Look at the panel What trainers wait for of the dashboard Scopemill: data plane. For read, the bucket is slow; for window, the "
        "trainer with the largest lag holds up the others.",
    ),
    Alert(
        # NaN is the only value that is not equal to itself.
        "LossNotANumber", f"{select(m.TRAINER_LOSS)} != bool {select(m.TRAINER_LOSS)}", ">", 0, "0s", "critical",
        "The loss of SAE {{ $labels.sae }} of sweep {{ $labels.sweep }} is not a number",
        "The SAE cannot recover. Lower train.learning_rate or lengthen its warm-up, and train the SAE again from the start.",
    ),
    Alert(
        "WorseThanTheMean", select(m.TRAINER_FVU), ">", 1, "15m", "warning",
        "SAE {{ $labels.sae }} of sweep {{ $labels.sweep }} reconstructs worse than the mean activation: FVU {{ $value }}",
        "The sparsity coefficient or the learning rate is too high. Lower one of the two.",
    ),
    Alert(
        "LatentsDead", f"{select(m.TRAINER_DEAD)} / {select(m.TRAINER_LATENTS)}", ">", 0.5, "30m", "warning",
        "{{ $value | humanizePercentage }} of the latents of SAE {{ $labels.sae }} of sweep {{ $labels.sweep }} are dead",
        "Lower the sparsity coefficient, lengthen its warm-up, or choose a smaller width.",
    ),
    Alert(
        "CheckpointOld", f"time() - {select(m.TRAINER_CHECKPOINT)} and {_UNFINISHED}", ">", 3600, "0s", "warning",
        "SAE {{ $labels.sae }} of sweep {{ $labels.sweep }} made its last checkpoint {{ $value | humanizeDuration }} ago",
        "A crash now would lose that much work. Lower train.checkpoint_every. If checkpoints used to come more often, check whether the "
        "trainer makes steps and whether the bucket is slow.",
    ),
    Alert(
        "TrainersStarved",
        share(rate(m.TRAINER_SECONDS, WINDOW, 'phase="wait"'), rate(m.TRAINER_SECONDS, WINDOW), "sweep"), ">", 0.5, "10m", "warning",
        "Trainers of sweep {{ $labels.sweep }} spend {{ $value | humanizePercentage }} of their time waiting for data",
        "If trainers wait for reads, the bucket is slow: use one that is nearer. If trainers wait for a slower trainer, raise "
        "server.window_mib or set server.lag to detach.",
    ),
    Alert(
        "ReadsNotShared",
        share(rate(m.SERVER_DETACHED_BYTES, WINDOW), rate(m.SERVER_BYTES_READ, WINDOW), "sweep, stream"), ">", 0.1, "10m", "warning",
        "{{ $value | humanizePercentage }} of the reads of stream {{ $labels.stream }} of sweep {{ $labels.sweep }} serve one trainer only",
        "The server reads for a trainer alone while that trainer is behind the window. If the trainer does not catch up, raise "
        "server.window_mib.",
    ),
    Alert(
        "TrainerGivenUp", f"increase({select(m.SERVER_LOST)}[15m])", ">", 0, "0s", "warning",
        "A trainer of stream {{ $labels.stream }} of sweep {{ $labels.sweep }} went silent and did not reconnect in time",
        "If Ray restarts the trainer, the server reads for it alone until it has caught up. If restarts take longer than "
        "server.join_seconds, raise that value.",
    ),
    Alert(
        "RequestsRetried", f"sum by (sweep) (rate({select(m.STORE_RETRIES)}[{WINDOW}])) or vector(0)", ">", 1, "10m", "warning",
        "Sweep {{ $labels.sweep }} retries {{ $value | humanize }} requests to the bucket each second",
        "The bucket throttles, or the network is faulty. Lower train.at_once or harvest.actors, or use a bucket that is nearer.",
    ),
    Alert(
        "ReadsCorrupt", f"increase({select(m.STORE_CORRUPT_READS)}[15m])", ">", 0, "0s", "critical",
        "{{ $labels.role }} of sweep {{ $labels.sweep }} read chunks that do not match their checksums",
        "Each chunk is read once more; if the second read is right, the network is at fault. If a trainer fails with the object's name, "
        "delete that shard's commit record and harvest again.",
    ),
    Alert(
        "OutliersDropped", share(select(m.HARVEST_OUTLIERS), select(m.HARVEST_ROWS), "sweep, dataset"), ">", 0.01, "5m", "warning",
        "The norm filter drops {{ $value | humanizePercentage }} of the rows of dataset {{ $labels.dataset }}",
        "In most models few rows have such large norms. Raise harvest.outlier_norm, or leave it out.",
    ),
    Alert(
        "NodeMemoryShort", "ray_node_mem_used / ray_node_mem_total", ">", 0.9, "2m", "critical",
        "{{ $value | humanizePercentage }} of the memory of node {{ $labels.ip }} is used",
        "Ray kills processes at 95%. Lower server.window_mib, train.at_once or harvest.rows_per_shard.",
    ),
)  # fmt: skip


def rule_file() -> dict[str, Any]:
    """Return the rule file that Prometheus loads, with all alerts."""
    return {"groups": [{"name": "scopemill", "rules": [alert.render() for alert in ALERTS]}]}
