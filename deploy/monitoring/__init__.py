"""Generate Prometheus alerts and Grafana dashboards, and run Prometheus."""
