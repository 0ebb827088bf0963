"""Define the dashboards: a sweep as a whole, its data plane, and one SAE."""

from prometheus_client.metrics import MetricWrapperBase

from scopemill.deploy.monitoring import promql
from scopemill.deploy.monitoring.grafana import Dashboard, Panel, Query, Row, Variable
from scopemill.deploy.monitoring.promql import share
from scopemill.proto import metrics as m

WINDOW = "$__rate_interval"  # Grafana's: at least four scrapes
LONG_WINDOW = "5m"  # for values that would be too noisy otherwise
SWEEP, STREAM, SAES, SAE = 'sweep=~"$sweep"', 'stream=~"$stream"', 'sae=~"$sae"', 'sae="$sae"'
TRAINING, FAILED = 'state="training"', 'state="failed"'
GOOD_TO_BAD = ((0.25, "yellow"), (0.5, "red"))


def of(metric: MetricWrapperBase, *matchers: str) -> str:
    """Return a selector of the metric's series in the chosen sweep."""
    return promql.select(metric, SWEEP, *matchers)


def rate(metric: MetricWrapperBase, *matchers: str) -> str:
    """Return the increase per second of a counter in the chosen sweep."""
    return promql.rate(metric, WINDOW, SWEEP, *matchers)


def seconds_left(*matchers: str) -> str:
    """Return the seconds until the last step, at the pace of the last minutes.

    A trainer that makes no steps has no value.
    """
    step = of(m.TRAINER_STEP, *matchers)
    return f"({of(m.TRAINER_STEPS, *matchers)} - {step}) / (deriv({step}[{LONG_WINDOW}]) > 0)"


def checkpoint_age(*matchers: str) -> str:
    """Return the seconds since the last checkpoint."""
    return f"time() - {of(m.TRAINER_CHECKPOINT, *matchers)}"


def stat(title: str, description: str, expr: str, unit: str, thresholds: tuple[tuple[float, str], ...] = (), legend: str = "") -> Panel:
    """Return a small panel that shows one number."""
    return Panel(title, description, (Query(expr, legend),), unit, kind="stat", width=4, height=4, thresholds=thresholds)


_SWEEP = Variable("sweep", 'up{job="scopemill"}')

_NOW = Row(
    "Now",
    (
        stat("Training", "SAEs in training.", f"sum({of(m.SWEEP_SAES, TRAINING)})", "none"),
        stat("Failed", "Failed SAEs; the sweep's last lines give the reasons.", f"sum({of(m.SWEEP_SAES, FAILED)})", "none", ((1, "red"),)),
        stat("Steps done", "Share of all steps of the SAEs in training.", share(of(m.TRAINER_STEP), of(m.TRAINER_STEPS)), "percentunit"),
        stat("Time left", "Time until the slowest SAE in training is done, at the present pace.", f"max({seconds_left()})", "s"),
        stat("Processes", "Processes that answer Prometheus, by role.", f'sum by (role) (up{{job="scopemill",{SWEEP}}})', "none",
             legend="{{role}}"),
        stat("Alerts", "Alerts that fire now.", f'count(ALERTS{{alertstate="firing",{SWEEP}}}) or vector(0)', "none", ((1, "red"),)),
    ),
)  # fmt: skip

_QUALITY = Row(
    "SAEs",
    (
        Panel("Loss", "Training loss, for activations with E||x||² = 1.", (Query(of(m.TRAINER_LOSS, SAES), "{{sae}}"),), "none",
              logarithmic=True),
        Panel("FVU in training", "Fraction of variance unexplained. At 1 the SAE is no better than the mean activation.",
              (Query(of(m.TRAINER_FVU, SAES), "{{sae}}"),), "percentunit", thresholds=((1, "red"),)),
        Panel("L0 in training", "Active latents per token.", (Query(of(m.TRAINER_L0, SAES), "{{sae}}"),), "none", logarithmic=True),
        Panel("Dead latents", "Share of the latents that have not fired for a long time.",
              (Query(f"{of(m.TRAINER_DEAD, SAES)} / {of(m.TRAINER_LATENTS, SAES)}", "{{sae}}"),), "percentunit",
              thresholds=GOOD_TO_BAD, most=1),
        Panel("FVU, measured", "FVU of the newest evaluated checkpoint, on text that was not harvested.",
              (Query(of(m.EVALUATED_FVU, SAES), "{{sae}}"),), "percentunit", kind="bargauge", thresholds=GOOD_TO_BAD),
        Panel("Delta loss, measured", "Increase of the language model's loss with the SAE spliced in, in nats per token.",
              (Query(of(m.EVALUATED_DELTA_LOSS, SAES), "{{sae}}"),), "none", kind="bargauge", signed=True),
    ),
)  # fmt: skip

_SPEED = Row(
    "Speed",
    (
        Panel("Tokens per second", "Harvested: each token counts once for all hooks. Trained: the sum over the SAEs.",
              (Query(f"sum({rate(m.HARVEST_ROWS)})", "harvested"), Query(f"sum({rate(m.TRAINER_TOKENS)})", "trained")), "short"),
        Panel("Trainers' time", "Share of each phase in the trainers' time.",
              (Query(f"sum by (phase) ({rate(m.TRAINER_SECONDS)}) / scalar(sum({rate(m.TRAINER_SECONDS)}))", "{{phase}}"),),
              "percentunit", most=1, stacked=True),
        Panel("Oldest checkpoint", "The most work that a trainer would lose if killed now.", (Query(f"max({checkpoint_age()})", "age"),),
              "s", thresholds=((3600, "red"),)),
    ),
)  # fmt: skip

_HARVEST = Row(
    "Harvest and evaluation",
    (
        Panel("Written", "Bytes of activations written to the bucket.",
              (Query(f"sum by (dataset) ({rate(m.HARVEST_BYTES)})", "{{dataset}}"),), "Bps", width=6),
        Panel("Harvesters' time", "Busy harvesters, by phase. Forward passes and writes overlap, so one harvester counts 2 at most.",
              (Query(f"sum by (phase) ({rate(m.HARVEST_SECONDS)})", "{{phase}}"),), "none", width=6, stacked=True),
        Panel("Shards and checkpoints", "Shards committed and checkpoints evaluated by the processes that run now.",
              (Query(f"sum({of(m.HARVEST_SHARDS)})", "shards"), Query(f"sum({of(m.EVALUATIONS)})", "checkpoints")), "none", width=6),
        Panel("Outliers", "Share of the rows that the norm filter drops.",
              (Query(share(of(m.HARVEST_OUTLIERS), of(m.HARVEST_ROWS), "dataset"), "{{dataset}}"),), "percentunit", width=6,
              thresholds=((0.01, "red"),)),
    ),
)  # fmt: skip

_FINETUNING = Row(
    "Fine-tuning",
    (
        Panel("Steps", "Fine-tuning steps done, by SAE and arm.", (Query(of(m.FINETUNE_STEP), "{{sae}}"),), "none"),
        Panel("KL", "KL from the clean model's predictions in the last step, in nats per token. The arm mse has none.",
              (Query(of(m.FINETUNE_KL), "{{sae}}"),), "none"),
        Panel("Squared error", "Squared error of the last step, where E||x||² is 1.", (Query(of(m.FINETUNE_MSE), "{{sae}}"),), "none"),
    ),
)  # fmt: skip

_RAY = Row(
    "Ray cluster",
    (
        Panel("CPU", "CPU use of each node.", (Query("ray_node_cpu_utilization", "{{ip}}"),), "percent", width=6, most=100),
        Panel("Memory", "Memory in use on each node. Ray kills processes at 95%.",
              (Query("ray_node_mem_used / ray_node_mem_total", "{{ip}}"),), "percentunit", width=6, thresholds=((0.9, "red"),), most=1),
        Panel("Network", "Bytes received and sent by each node.",
              (Query("ray_node_network_receive_speed", "{{ip}} in"), Query("ray_node_network_send_speed", "{{ip}} out")), "Bps", width=6),
        Panel("Actors", "Ray actors by state.", (Query('sum by (State) (ray_actors{Source="gcs"})', "{{State}}"),), "none", width=6),
    ),
)  # fmt: skip

_READ_AND_SERVED = Row(
    "Bytes",
    (
        Panel("Read from the bucket", "One read serves all trainers of a stream.",
              (Query(f"sum by (stream) ({rate(m.SERVER_BYTES_READ, STREAM)})", "{{stream}}"),), "Bps"),
        Panel("Served to trainers", "Bytes of batches sent.",
              (Query(f"sum by (stream) ({rate(m.SERVER_BYTES_SERVED, STREAM)})", "{{stream}}"),), "Bps"),
        Panel("Served for each byte read", "The number of trainers, if no trainer reads alone. The ratio settles as the window fills.",
              (Query(share(of(m.SERVER_BYTES_SERVED, STREAM), of(m.SERVER_BYTES_READ, STREAM), "stream"), "{{stream}}"),), "none"),
    ),
)  # fmt: skip

_WINDOW = Row(
    "Window",
    (
        Panel("Occupancy", "Share of the window's capacity in use. If full, trainers set the pace; if empty, reads do.",
              (Query(share(of(m.SERVER_WINDOW_BATCHES, STREAM), of(m.SERVER_WINDOW_CAPACITY, STREAM), "stream"), "{{stream}}"),),
              "percentunit", most=1),
        Panel("Lag", "Batches behind the foremost trainer of the stream. A trainer at the window's capacity holds up the others.",
              (Query(of(m.SERVER_LAG, STREAM), "{{stream}} {{sae}}"),
               Query(f"max({of(m.SERVER_WINDOW_CAPACITY, STREAM)})", "largest window")), "none"),
        Panel("What trainers wait for",
              "Waiting trainers, on average: credit (busy with earlier batches), read (the bucket), window (a slower trainer).",
              (Query(f"sum by (reason) ({rate(m.SERVER_WAIT_SECONDS, STREAM)})", "{{reason}}"),), "none", stacked=True),
    ),
)  # fmt: skip

_CONNECTIONS = Row(
    "Trainers that connect and leave",
    (
        Panel("Connected", "Trainers connected to the server.",
              (Query(f"sum by (stream) ({of(m.SERVER_CONSUMERS, STREAM)})", "{{stream}}"),), "none", width=4),
        Panel("Fell out of the window", "Trainers that fell behind the window and read alone from then on.",
              (Query(f"increase({of(m.SERVER_DETACHED, STREAM)}[{WINDOW}])", "{{stream}}"),), "none", width=5),
        Panel("Read for single trainers", "Bytes read that serve one trainer only.",
              (Query(f"sum by (stream) ({rate(m.SERVER_DETACHED_BYTES, STREAM)})", "{{stream}}"),), "Bps", width=5),
        Panel("Batches lost", "Batches that slow trainers missed under server.lag: skip.",
              (Query(f"increase({of(m.SERVER_SKIPPED, STREAM)}[{WINDOW}])", "{{stream}}"),), "none", width=5),
        Panel("Given up", "Trainers that went silent and did not reconnect in time.",
              (Query(f"increase({of(m.SERVER_LOST, STREAM)}[{WINDOW}])", "{{stream}}"),), "none", width=5),
    ),
)  # fmt: skip

_STORAGE = Row(
    "Bucket",
    (
        Panel("Requests retried", "Retries per second, by all processes of the sweep.",
              (Query(f"sum({rate(m.STORE_RETRIES)}) or vector(0)", "retries"),), "reqps", width=12),  # no series before the first
        Panel("Corrupt reads", "Chunks that did not match their checksums. Each is read once more.",
              (Query(f"sum by (role) (increase({of(m.STORE_CORRUPT_READS)}[{WINDOW}]))", "{{role}}"),), "none", width=12,
              thresholds=((1, "red"),)),
    ),
)  # fmt: skip

_ONE_NOW = Row(
    "Now",
    (
        stat("Steps done", "Share of the SAE's steps.", share(of(m.TRAINER_STEP, SAE), of(m.TRAINER_STEPS, SAE)), "percentunit"),
        stat("Time left", "Time until the last step, at the present pace.", seconds_left(SAE), "s"),
        stat("Tokens per second", "Rows trained on per second.", f"sum({rate(m.TRAINER_TOKENS, SAE)})", "short"),
        stat("Checkpoint age", "The work that would be lost if the trainer were killed now.", checkpoint_age(SAE), "s", ((3600, "red"),)),
        stat("L0", "Active latents per token, in training.", of(m.TRAINER_L0, SAE), "none"),
        stat("FVU", "Fraction of variance unexplained, in training.", of(m.TRAINER_FVU, SAE), "percentunit", ((1, "red"),)),
    ),
)

_ONE_CURVES = Row(
    "Training",
    (
        Panel("Loss", "Training loss, for activations with E||x||² = 1.", (Query(of(m.TRAINER_LOSS, SAE), "loss"),), "none", width=6,
              logarithmic=True),
        Panel("L0", "Active latents per token.", (Query(of(m.TRAINER_L0, SAE), "L0"),), "none", width=6, logarithmic=True),
        Panel("FVU", "FVU on the training batches, and of the newest evaluated checkpoint.",
              (Query(of(m.TRAINER_FVU, SAE), "training"), Query(of(m.EVALUATED_FVU, SAE), "measured")), "percentunit", width=6,
              thresholds=((1, "red"),)),
        Panel("Dead latents", "Latents that have not fired for a long time, and all latents.",
              (Query(of(m.TRAINER_DEAD, SAE), "dead"), Query(of(m.TRAINER_LATENTS, SAE), "all")), "none", width=6),
    ),
)  # fmt: skip

_ONE_SPEED = Row(
    "Pace and fidelity",
    (
        Panel("Seconds per step", "Seconds per step, by phase: wait for data, copy to the device, step, checkpoint.",
              (Query(f"{rate(m.TRAINER_SECONDS, SAE)} / scalar(deriv({of(m.TRAINER_STEP, SAE)}[{WINDOW}]) > 0)", "{{phase}}"),), "s",
              stacked=True),
        Panel("Lag", "Batches by which the SAE is behind the foremost trainer of its stream.",
              (Query(of(m.SERVER_LAG, SAE), "{{stream}}"),), "none"),
        Panel("Delta loss, measured", "Delta loss of the newest evaluated checkpoint, in nats per token.",
              (Query(of(m.EVALUATED_DELTA_LOSS, SAE), "delta loss"),), "none", signed=True),
    ),
)  # fmt: skip

DASHBOARDS = (
    Dashboard("sweep", "Scopemill: sweep", "Progress of a sweep, quality of its SAEs, and load of the machines.",
              (_SWEEP, Variable("sae", of(m.TRAINER_STEPS))), (_NOW, _QUALITY, _SPEED, _HARVEST, _FINETUNING, _RAY)),
    Dashboard("data-plane", "Scopemill: data plane", "The way of batches from the bucket to the trainers, and what holds trainers up.",
              (_SWEEP, Variable("stream", of(m.SERVER_WINDOW_CAPACITY))), (_READ_AND_SERVED, _WINDOW, _CONNECTIONS, _STORAGE)),
    Dashboard("sae", "Scopemill: one SAE", "One SAE's training, pace and fidelity.",
              (_SWEEP, Variable("sae", of(m.TRAINER_STEPS), many=False)), (_ONE_NOW, _ONE_CURVES, _ONE_SPEED)),
)  # fmt: skip
