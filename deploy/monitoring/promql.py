"""Write PromQL over Scopemill's own metrics.

Queries are made from the metric objects, so that no query names a missing metric.
"""

from prometheus_client.metrics import MetricWrapperBase


def name_of(metric: MetricWrapperBase) -> str:
    """Return the name under which Prometheus stores a metric: a counter's ends in ``_total``."""
    (family,) = metric.describe()
    return f"{family.name}_total" if family.type == "counter" else family.name


def select(metric: MetricWrapperBase, *matchers: str) -> str:
    """Return a selector of the metric's series whose labels match, such as ``phase="wait"``."""
    return name_of(metric) + (f"{{{','.join(matchers)}}}" if matchers else "")


def rate(metric: MetricWrapperBase, window: str, *matchers: str) -> str:
    """Return the increase per second of a counter over a window."""
    return f"rate({select(metric, *matchers)}[{window}])"


def share(part: str, whole: str, by: str = "") -> str:
    """Return a part divided by the whole, both summed by the named labels."""
    by = f" by ({by})" if by else ""
    return f"sum{by} ({part}) / sum{by} ({whole})"
