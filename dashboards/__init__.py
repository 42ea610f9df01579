"""Grafana dashboards and Prometheus rules as code, derived from the catalogue."""
