"""PromQL over our own metrics, written from the objects of `proto/metrics.py`: no query can name one that is not there."""

from prometheus_client.metrics import MetricWrapperBase


def name_of(metric: MetricWrapperBase) -> str:
    """As Prometheus stores it: a counter's name ends in ``_total``."""
    family = metric.describe()[0]
    return f"{family.name}_total" if family.type == "counter" else family.name


def select(metric: MetricWrapperBase, *matchers: str) -> str:
    """The metric's series whose labels match, such as ``phase="wait"``."""
    return name_of(metric) + (f"{{{','.join(matchers)}}}" if matchers else "")


def rate(metric: MetricWrapperBase, window: str, *matchers: str) -> str:
    return f"rate({select(metric, *matchers)}[{window}])"


def share(part: str, whole: str, by: str = "") -> str:
    """A part of a whole, both summed by the named labels."""
    by = f" by ({by})" if by else ""
    return f"sum{by} ({part}) / sum{by} ({whole})"
