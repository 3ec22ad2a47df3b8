"""Grafana's dashboards, written with Grafana's typed builders. `python -m deploy.dashboards` writes their JSON."""
