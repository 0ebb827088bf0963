"""Write the folder `generated` from the code beside it: ``python -m scopemill.deploy.monitoring``."""

import json
from pathlib import Path

from scopemill.deploy.monitoring.alerts import rule_file
from scopemill.deploy.monitoring.dashboards import DASHBOARDS
from scopemill.deploy.monitoring.grafana import provisioned_dashboards, provisioned_sources
from scopemill.deploy.monitoring.prometheus import as_yaml, config

FOLDER = Path(__file__).parent / "generated"
TARGETS = "/tmp/scopemill-1000/targets/*.json"  # the default of the drivers of a Linux machine's first user, whose number is 1000


def render() -> dict[str, str]:
    """Return the text of every generated file, by its path in the folder."""
    dashboards = {f"grafana/dashboards/{d.name}.json": json.dumps(d.render(), indent=1, ensure_ascii=False) + "\n" for d in DASHBOARDS}
    return dashboards | {
        "grafana/provisioning/dashboards/scopemill.yaml": as_yaml(provisioned_dashboards()),
        "grafana/provisioning/datasources/scopemill.yaml": as_yaml(provisioned_sources()),
        "prometheus/prometheus.yml": as_yaml(config(TARGETS)),
        "prometheus/alerts.yml": as_yaml(rule_file()),
    }


if __name__ == "__main__":
    for name, text in render().items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(text)
