"""Describe dashboards as data, and render them as the JSON that Grafana loads."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

GRID_WIDTH = 24  # Grafana's own
SCHEMA_VERSION = 39  # of Grafana 10.4 and 11; later ones migrate it when they load it
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """Describe one query of a panel, and the legend of its series."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """Describe one panel of a dashboard."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str  # as Grafana names units
    kind: Literal["timeseries", "stat", "bargauge"] = "timeseries"
    width: int = 8
    height: int = 8
    thresholds: tuple[tuple[float, str], ...] = ()  # (value, colour): the colour from this value on; green below
    most: float | None = None  # the end of the axis
    signed: bool = False  # the axis may go below 0
    logarithmic: bool = False
    stacked: bool = False

    def render(self) -> dict[str, Any]:
        """Return the panel as Grafana's JSON, without its place."""
        steps = [{"color": "green", "value": None}] + [{"color": colour, "value": value} for value, colour in self.thresholds]
        field: dict[str, Any] = {"unit": self.unit, "thresholds": {"mode": "absolute", "steps": steps}}
        field |= {} if self.signed or self.logarithmic else {"min": 0}
        field |= {} if self.most is None else {"max": self.most}
        reduced = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        if self.kind == "timeseries":
            field |= {"color": {"mode": "palette-classic"}, "custom": self._lines()}
            options: dict[str, Any] = {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        elif self.kind == "stat":
            options = reduced | {"colorMode": "value" if self.thresholds else "none", "graphMode": "area", "textMode": "auto"}
        else:
            options = reduced | {"displayMode": "basic", "orientation": "horizontal"}
        return {
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": SOURCE,
            "targets": [
                {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": q.expr, "legendFormat": q.legend or "__auto", "range": True}
                for i, q in enumerate(self.queries)
            ],
            "fieldConfig": {"defaults": field, "overrides": []},
            "options": options,
        }

    def _lines(self) -> dict[str, Any]:
        return {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if self.stacked else 0,
            "showPoints": "auto",  # a series of one scrape is a point
            "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
            "scaleDistribution": {"type": "log", "log": 10} if self.logarithmic else {"type": "linear"},
            "thresholdsStyle": {"mode": "dashed" if self.thresholds else "off"},
        }


@dataclass(frozen=True)
class Row:
    """Describe a row of panels under one title."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """Describe a choice at the dashboard's head.

    The values are those of the label ``name`` among the series that ``query`` selects.
    """

    name: str
    query: str
    many: bool = True  # several values may be chosen, or all

    def render(self) -> dict[str, Any]:
        """Return the choice as Grafana's JSON."""
        query = f"label_values({self.query}, {self.name})"
        return {
            "type": "query",
            "name": self.name,
            "label": self.name,
            "datasource": SOURCE,
            "definition": query,
            "query": {"query": query, "refId": self.name},
            "refresh": 2,  # whenever the time range changes
            "sort": 7,  # by natural order
            "multi": self.many,
            "includeAll": self.many,
            "current": {"text": "All", "value": "$__all"} if self.many else {},
        }


@dataclass(frozen=True)
class Dashboard:
    """Describe a whole dashboard."""

    name: str  # of the file
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Return the panels of all rows."""
        return tuple(panel for row in self.rows for panel in row.panels)

    def render(self) -> dict[str, Any]:
        """Return the dashboard as Grafana's JSON."""
        source = {"type": "datasource", "name": "datasource", "label": "data source", "query": "prometheus", "refresh": 1}
        return {
            "uid": f"scopemill-{self.name}",
            "title": self.title,
            "description": self.description,
            "tags": ["scopemill"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,  # one cross-hair for all panels
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "links": [{"type": "dashboards", "tags": ["scopemill"], "title": "Scopemill", "includeVars": True, "keepTime": True}],
            "annotations": {"list": [_firing_alerts()]},
            "templating": {"list": [source, *(variable.render() for variable in self.variables)]},
            "panels": [panel | {"id": number} for number, panel in enumerate(self._placed(), start=1)],
        }

    def _placed(self) -> Iterator[dict[str, Any]]:
        """Yield the rows one below the other, with the panels of a row from left to right and wrapped."""
        y = 0
        for row in self.rows:
            yield {"type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": _place(0, y, GRID_WIDTH, 1)}
            x, y, line = 0, y + 1, 0
            for panel in row.panels:
                if x + panel.width > GRID_WIDTH:
                    x, y, line = 0, y + line, 0
                yield panel.render() | {"gridPos": _place(x, y, panel.width, panel.height)}
                x, line = x + panel.width, max(line, panel.height)
            y += line


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _firing_alerts() -> dict[str, Any]:
    """Return an annotation that marks the time in which an alert fires."""
    return {
        "name": "alerts",
        "enable": True,
        "iconColor": "red",
        "datasource": SOURCE,
        "expr": 'ALERTS{alertstate="firing",sweep=~"$sweep"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{sae}} {{stream}} {{role}}",
    }


def provisioned_dashboards() -> dict[str, Any]:
    """Return Grafana's provider of the dashboards, in the folder that ``SCOPEMILL_GRAFANA`` names."""
    provider = {"name": "scopemill", "folder": "Scopemill", "type": "file", "options": {"path": "${SCOPEMILL_GRAFANA}/dashboards"}}
    return {"apiVersion": 1, "providers": [provider]}


def provisioned_sources() -> dict[str, Any]:
    """Return Grafana's data source: the Prometheus that ``scopemill monitor`` starts."""
    source = {"name": "Scopemill", "uid": "scopemill", "type": "prometheus", "access": "proxy", "url": "http://127.0.0.1:9090"}
    return {"apiVersion": 1, "datasources": [source | {"jsonData": {"timeInterval": "10s"}}]}
