"""What the dashboards show: a sweep as a whole, its data plane, one SAE."""

from prometheus_client.metrics import MetricWrapperBase

from scopemill.deploy.monitoring import promql
from scopemill.deploy.monitoring.grafana import Dashboard, Panel, Query, Row, Variable
from scopemill.deploy.monitoring.promql import share
from scopemill.proto import metrics as m

WINDOW = "$__rate_interval"  # Grafana's: at least four scrapes
LONG_WINDOW = "5m"  # for what would jump about otherwise
SWEEP, STREAM, SAES, SAE = 'sweep=~"$sweep"', 'stream=~"$stream"', 'sae=~"$sae"', 'sae="$sae"'
TRAINING, FAILED = 'state="training"', 'state="failed"'
GOOD_TO_BAD = ((0.25, "yellow"), (0.5, "red"))


def of(metric: MetricWrapperBase, *matchers: str) -> str:
    return promql.select(metric, SWEEP, *matchers)


def rate(metric: MetricWrapperBase, *matchers: str) -> str:
    return promql.rate(metric, WINDOW, SWEEP, *matchers)


def seconds_left(*matchers: str) -> str:
    """At the pace of the last minutes; nothing for a trainer that stands still."""
    step = of(m.TRAINER_STEP, *matchers)
    return f"({of(m.TRAINER_STEPS, *matchers)} - {step}) / (deriv({step}[{LONG_WINDOW}]) > 0)"


def checkpoint_age(*matchers: str) -> str:
    return f"time() - {of(m.TRAINER_CHECKPOINT, *matchers)}"


def stat(title: str, description: str, expr: str, unit: str, thresholds: tuple[tuple[float, str], ...] = (), legend: str = "") -> Panel:
    return Panel(title, description, (Query(expr, legend),), unit, kind="stat", width=4, height=4, thresholds=thresholds)


_SWEEP = Variable("sweep", 'up{job="scopemill"}')

_NOW = Row(
    "Now",
    (
        stat("Training", "SAEs in training.", f"sum({of(m.SWEEP_SAES, TRAINING)})", "none"),
        stat("Failed", "SAEs that failed; the sweep's end says why.", f"sum({of(m.SWEEP_SAES, FAILED)})", "none", ((1, "red"),)),
        stat("Steps done", "Of all steps of the SAEs in training.", share(of(m.TRAINER_STEP), of(m.TRAINER_STEPS)), "percentunit"),
        stat("Time left", "Until the slowest SAE in training is done, at the present pace.", f"max({seconds_left()})", "s"),
        stat("Processes", "Processes that answer Prometheus, by role.", f'sum by (role) (up{{job="scopemill",{SWEEP}}})', "none",
             legend="{{role}}"),
        stat("Alerts", "Alerts that fire.", f'count(ALERTS{{alertstate="firing",{SWEEP}}}) or vector(0)', "none", ((1, "red"),)),
    ),
)  # fmt: skip

_QUALITY = Row(
    "SAEs",
    (
        Panel("Loss", "Training loss, of activations with E||x||² = 1.", (Query(of(m.TRAINER_LOSS, SAES), "{{sae}}"),), "none",
              logarithmic=True),
        Panel("FVU in training", "Fraction of variance unexplained. 1 is no better than the mean.",
              (Query(of(m.TRAINER_FVU, SAES), "{{sae}}"),), "percentunit", thresholds=((1, "red"),)),
        Panel("L0 in training", "Active latents per token.", (Query(of(m.TRAINER_L0, SAES), "{{sae}}"),), "none", logarithmic=True),
        Panel("Dead latents", "The share of latents that have not fired for long.",
              (Query(f"{of(m.TRAINER_DEAD, SAES)} / {of(m.TRAINER_LATENTS, SAES)}", "{{sae}}"),), "percentunit",
              thresholds=GOOD_TO_BAD, most=1),
        Panel("FVU, measured", "Of the newest checkpoint measured, on text that was not harvested.",
              (Query(of(m.EVALUATED_FVU, SAES), "{{sae}}"),), "percentunit", kind="bargauge", thresholds=GOOD_TO_BAD),
        Panel("Delta loss, measured", "By how much the language model gets worse with the SAE spliced in, in nats a token.",
              (Query(of(m.EVALUATED_DELTA_LOSS, SAES), "{{sae}}"),), "none", kind="bargauge", signed=True),
    ),
)  # fmt: skip

_SPEED = Row(
    "Speed",
    (
        Panel("Tokens per second", "Harvested: each counts once for all hooks. Trained: summed over the SAEs.",
              (Query(f"sum({rate(m.HARVEST_ROWS)})", "harvested"), Query(f"sum({rate(m.TRAINER_TOKENS)})", "trained")), "short"),
        Panel("Trainers' time", "The share of each phase in the trainers' time.",
              (Query(f"sum by (phase) ({rate(m.TRAINER_SECONDS)}) / scalar(sum({rate(m.TRAINER_SECONDS)}))", "{{phase}}"),),
              "percentunit", most=1, stacked=True),
        Panel("Oldest checkpoint", "What a trainer would lose at most if it were killed now.", (Query(f"max({checkpoint_age()})", "age"),),
              "s", thresholds=((3600, "red"),)),
    ),
)  # fmt: skip

_HARVEST = Row(
    "Harvest and evaluation",
    (
        Panel("Written", "Bytes of activations written to the bucket.",
              (Query(f"sum by (dataset) ({rate(m.HARVEST_BYTES)})", "{{dataset}}"),), "Bps", width=6),
        Panel("Harvesters' time", "Forward passes and writes overlap: 2 is a harvester that is busy with both all the time.",
              (Query(f"sum by (phase) ({rate(m.HARVEST_SECONDS)})", "{{phase}}"),), "none", width=6, stacked=True),
        Panel("Shards and checkpoints", "Shards committed and checkpoints measured by the processes that are there.",
              (Query(f"sum({of(m.HARVEST_SHARDS)})", "shards"), Query(f"sum({of(m.EVALUATIONS)})", "checkpoints")), "none", width=6),
        Panel("Outliers", "The share of rows that the norm filter drops.",
              (Query(share(of(m.HARVEST_OUTLIERS), of(m.HARVEST_ROWS), "dataset"), "{{dataset}}"),), "percentunit", width=6,
              thresholds=((0.01, "red"),)),
    ),
)  # fmt: skip

_RAY = Row(
    "Ray cluster",
    (
        Panel("CPU", "Of each node.", (Query("ray_node_cpu_utilization", "{{ip}}"),), "percent", width=6, most=100),
        Panel("Memory", "Of each node; Ray ends processes at 95%.",
              (Query("ray_node_mem_used / ray_node_mem_total", "{{ip}}"),), "percentunit", width=6, thresholds=((0.9, "red"),), most=1),
        Panel("Network", "Of each node.",
              (Query("ray_node_network_receive_speed", "{{ip}} in"), Query("ray_node_network_send_speed", "{{ip}} out")), "Bps", width=6),
        Panel("Actors", "By what Ray says they do.", (Query('sum by (State) (ray_actors{Source="gcs"})', "{{State}}"),), "none", width=6),
    ),
)  # fmt: skip

_READ_AND_SERVED = Row(
    "Bytes",
    (
        Panel("Read from the bucket", "One read serves all trainers of a stream.",
              (Query(f"sum by (stream) ({rate(m.SERVER_BYTES_READ, STREAM)})", "{{stream}}"),), "Bps"),
        Panel("Served to trainers", "Bytes of batches sent.",
              (Query(f"sum by (stream) ({rate(m.SERVER_BYTES_SERVED, STREAM)})", "{{stream}}"),), "Bps"),
        Panel("Served for each byte read", "As many as there are trainers, if none reads by itself. It settles as the window fills.",
              (Query(share(of(m.SERVER_BYTES_SERVED, STREAM), of(m.SERVER_BYTES_READ, STREAM), "stream"), "{{stream}}"),), "none"),
    ),
)  # fmt: skip

_WINDOW = Row(
    "Window",
    (
        Panel("Occupancy", "Batches held, of those that the window has memory for. Full: trainers set the pace. Empty: reading does.",
              (Query(share(of(m.SERVER_WINDOW_BATCHES, STREAM), of(m.SERVER_WINDOW_CAPACITY, STREAM), "stream"), "{{stream}}"),),
              "percentunit", most=1),
        Panel("Lag", "Batches by which each trainer is behind the foremost of its stream. At the window's capacity it holds up the others.",
              (Query(of(m.SERVER_LAG, STREAM), "{{stream}} {{sae}}"),
               Query(f"max({of(m.SERVER_WINDOW_CAPACITY, STREAM)})", "largest window")), "none"),
        Panel("What trainers wait for", "How many wait, on average: credit (busy with what they have), read (the bucket), window (others).",
              (Query(f"sum by (reason) ({rate(m.SERVER_WAIT_SECONDS, STREAM)})", "{{reason}}"),), "none", stacked=True),
    ),
)  # fmt: skip

_MISHAPS = Row(
    "Trainers that come and go",
    (
        Panel("Joined", "Trainers connected.",
              (Query(f"sum by (stream) ({of(m.SERVER_CONSUMERS, STREAM)})", "{{stream}}"),), "none", width=4),
        Panel("Fell out of the window", "And read on by themselves.",
              (Query(f"increase({of(m.SERVER_DETACHED, STREAM)}[{WINDOW}])", "{{stream}}"),), "none", width=5),
        Panel("Read for single trainers", "Bytes that serve one trainer only.",
              (Query(f"sum by (stream) ({rate(m.SERVER_DETACHED_BYTES, STREAM)})", "{{stream}}"),), "Bps", width=5),
        Panel("Batches lost", "Under lag: skip, by trainers that were too slow.",
              (Query(f"increase({of(m.SERVER_SKIPPED, STREAM)}[{WINDOW}])", "{{stream}}"),), "none", width=5),
        Panel("Given up", "Trainers that went silent and did not come back in time.",
              (Query(f"increase({of(m.SERVER_LOST, STREAM)}[{WINDOW}])", "{{stream}}"),), "none", width=5),
    ),
)  # fmt: skip

_STORAGE = Row(
    "Bucket",
    (
        Panel("Requests tried again", "Per second, by every process of the sweep.",
              (Query(f"sum({rate(m.STORE_RETRIES)}) or vector(0)", "retries"),), "reqps", width=12),  # no series before the first
        Panel("Corrupt reads", "Chunks that did not match their checksum; each is read once more.",
              (Query(f"sum by (role) (increase({of(m.STORE_CORRUPT_READS)}[{WINDOW}]))", "{{role}}"),), "none", width=12,
              thresholds=((1, "red"),)),
    ),
)  # fmt: skip

_ONE_NOW = Row(
    "Now",
    (
        stat("Steps done", "Of its steps.", share(of(m.TRAINER_STEP, SAE), of(m.TRAINER_STEPS, SAE)), "percentunit"),
        stat("Time left", "At the present pace.", seconds_left(SAE), "s"),
        stat("Tokens per second", "Rows trained on.", f"sum({rate(m.TRAINER_TOKENS, SAE)})", "short"),
        stat("Checkpoint age", "What would be lost if it were killed now.", checkpoint_age(SAE), "s", ((3600, "red"),)),
        stat("L0", "Active latents per token, in training.", of(m.TRAINER_L0, SAE), "none"),
        stat("FVU", "Fraction of variance unexplained, in training.", of(m.TRAINER_FVU, SAE), "percentunit", ((1, "red"),)),
    ),
)

_ONE_CURVES = Row(
    "Training",
    (
        Panel("Loss", "Of activations with E||x||² = 1.", (Query(of(m.TRAINER_LOSS, SAE), "loss"),), "none", width=6, logarithmic=True),
        Panel("L0", "Active latents per token.", (Query(of(m.TRAINER_L0, SAE), "L0"),), "none", width=6, logarithmic=True),
        Panel("FVU", "On the training batches, and of the newest checkpoint measured.",
              (Query(of(m.TRAINER_FVU, SAE), "training"), Query(of(m.EVALUATED_FVU, SAE), "measured")), "percentunit", width=6,
              thresholds=((1, "red"),)),
        Panel("Dead latents", "Latents that have not fired for long, of all.",
              (Query(of(m.TRAINER_DEAD, SAE), "dead"), Query(of(m.TRAINER_LATENTS, SAE), "all")), "none", width=6),
    ),
)  # fmt: skip

_ONE_SPEED = Row(
    "Pace and fidelity",
    (
        Panel("Seconds per step", "By phase: waiting for data, copying to the device, the step itself, checkpoints.",
              (Query(f"{rate(m.TRAINER_SECONDS, SAE)} / scalar(deriv({of(m.TRAINER_STEP, SAE)}[{WINDOW}]) > 0)", "{{phase}}"),), "s",
              stacked=True),
        Panel("Lag", "Batches behind the foremost trainer of its stream.", (Query(of(m.SERVER_LAG, SAE), "{{stream}}"),), "none"),
        Panel("Delta loss, measured", "Of the newest checkpoint measured, in nats a token.",
              (Query(of(m.EVALUATED_DELTA_LOSS, SAE), "delta loss"),), "none", signed=True),
    ),
)  # fmt: skip

DASHBOARDS = (
    Dashboard("sweep", "Scopemill: sweep", "How far a sweep is, how good its SAEs are, and what the machines do.",
              (_SWEEP, Variable("sae", of(m.TRAINER_STEPS))), (_NOW, _QUALITY, _SPEED, _HARVEST, _RAY)),
    Dashboard("data-plane", "Scopemill: data plane", "How batches get from the bucket to the trainers, and who holds up whom.",
              (_SWEEP, Variable("stream", of(m.SERVER_WINDOW_CAPACITY))), (_READ_AND_SERVED, _WINDOW, _MISHAPS, _STORAGE)),
    Dashboard("sae", "Scopemill: one SAE", "One SAE's training, pace and fidelity.",
              (_SWEEP, Variable("sae", of(m.TRAINER_STEPS), many=False)), (_ONE_NOW, _ONE_CURVES, _ONE_SPEED)),
)  # fmt: skip
