"""The ServerApp: configuration in, run folder out."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from gfpl_flwr.algorithms import parse_run
from gfpl_flwr.algorithms.base import Algorithm
from gfpl_flwr.algorithms.gfpl import GFPL
from gfpl_flwr.config import ConfigError, RunConfig
from gfpl_flwr.dataset_settings import architecture_of, image_shape_of, num_classes_of
from gfpl_flwr.flower.deliveries import Deliveries
from gfpl_flwr.flower.progress import Progress, logged
from gfpl_flwr.flower.run_folder import RunFolder
from gfpl_flwr.flower.site_setup import initial_model, open_dataset
from gfpl_flwr.flower.strategy import GFPLStrategy, VisitStrategy
from gfpl_flwr.models import FEATURE_DIMS, SplitModel

logger = logging.getLogger("flwr.gfpl")
COMMAND = "GFPL_COMMAND"
"""Environment variable with the command that the user typed, for the run's record."""


def build_server_app() -> ServerApp:
    """Return the ServerApp that runs the configured algorithm."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        """Run all visits; the run's folder is the result."""
        # It is there where Flower's server is; elsewhere it takes a second to import.
        from flwr.superlink.grid import HttpGrid

        if not isinstance(grid, HttpGrid):  # the simulation's replies come from this machine, unpacked
            run(grid, context.run_config, engine="flower")
            return
        with Deliveries(grid) as deliveries:
            run(deliveries, context.run_config, engine="flower")

    return app


def run(
    grid: Grid,
    flat: Mapping[str, Any],
    *,
    engine: str,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunFolder:
    """Run the configured algorithm on a grid, from the first visit or from a checkpoint.

    Args:
        grid: Flower's, or the in-process one.
        flat: the run's flat configuration.
        engine: ``"flower"`` or ``"inprocess"``, for the record.
        on_progress: called when replies came and after every visit; they are logged by default.

    Returns:
        The run's folder.

    Raises:
        ConfigError: before anything is sent.
        QuorumError: too few sites; the folder says so and can be resumed.
    """
    config, algorithm = parse_run(flat)
    num_classes = num_classes_of(config)
    algorithm = algorithm.resolve(config, num_classes)
    model = reference_model(config, algorithm) if algorithm.knows_model else None
    # Without it: the arguments of this process are no command of the user's, and hold a token of Flower's.
    command = os.environ.get(COMMAND, "flwr run" if engine == "flower" else "run_in_process")
    folder = RunFolder.open(config, flat, engine=engine, command=command, state_name=algorithm.state_name)
    logger.info("run folder: %s", folder.path)
    face = GFPLStrategy if isinstance(algorithm, GFPL) else VisitStrategy
    strategy = face(
        algorithm,
        config,
        folder,
        feature_dim=FEATURE_DIMS[architecture_of(config)],
        num_classes=num_classes,
        model=model,
        on_progress=on_progress or logged(),
    )
    try:
        strategy.start(grid)
    except KeyboardInterrupt:
        folder.finish("interrupted", "stopped by the user", sites=strategy.attendance.expected)
        raise
    except Exception as error:
        folder.finish("failed", f"{type(error).__name__}: {error}", sites=strategy.attendance.expected)
        raise
    folder.finish("completed", sites=strategy.attendance.expected)
    strategy.settle(grid)
    return folder


def reference_model(config: RunConfig, algorithm: Algorithm) -> SplitModel:
    """Return the model that every site starts from, for a server that averages such models.

    Raises:
        ConfigError: the configuration does not tell the shape of the images or the number of classes.
    """
    shape, num_classes = image_shape_of(config), num_classes_of(config)
    if shape is None or num_classes is None:
        try:
            dataset = open_dataset(config, Path(config.data_dir))
        except ValueError as error:
            told = "image-channels and class-names" if config.dataset.startswith("folder:") else "the data set itself"
            raise ConfigError(
                f"algorithm = {config.algorithm!r}: the server must know the shape of the model, so it needs {told} "
                f"({error})"
            ) from None
        shape, num_classes = dataset.image_shape, dataset.num_classes
    return initial_model(config, algorithm, shape, num_classes)
