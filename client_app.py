"""Flower's entry point on a site: ``[tool.flwr.app.components] clientapp`` in pyproject.toml."""

from gfpl_flwr.flower.client import build_client_app
from gfpl_flwr.flower.marks import around_visit, mark

app = build_client_app()
app.lifespan()(around_visit)
mark("apps")
