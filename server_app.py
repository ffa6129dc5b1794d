"""Flower's entry point on the server: ``[tool.flwr.app.components] serverapp`` in pyproject.toml."""

from gfpl_flwr.flower.marks import around_run
from gfpl_flwr.flower.server import build_server_app

app = build_server_app()
app.lifespan()(around_run)
