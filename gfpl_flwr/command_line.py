"""What the commands of ``gfpl`` share: options of a run, and errors on one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gfpl_flwr.config import Scalar

ConfigOption = Annotated[
    list[str] | None,
    typer.Option("-c", "--config", metavar="KEY=VALUE", help="Set an option; repeat for more."),
]

DataOption = Annotated[Path | None, typer.Option(help="Where prepared data sets lie; data by default.")]


def options_of(words: list[str] | None, *, output_dir: Path | None, data_dir: Path | None) -> "dict[str, Scalar]":
    """Return the options of ``-c`` with absolute folders: Flower's processes run elsewhere."""
    options = dict(assignments(words or []))
    for key, given, default in (("output-dir", output_dir, "runs"), ("data-dir", data_dir, "data")):
        options[key] = str(Path(given or str(options.get(key, default))).expanduser().resolve())
    return options


def assignments(words: list[str]) -> "Iterator[tuple[str, Scalar]]":
    """Read ``key=value`` words; a value is TOML, and a bare word is a string.

    Several may stand in one word, separated by blanks, as in Flower's ``--run-config``.
    """
    import shlex
    import tomllib

    for word in words:
        try:
            parts = shlex.split(word)
        except ValueError as error:
            raise ValueError(f"-c {word}: {error}") from None
        for part in parts:
            key, equals, text = part.partition("=")
            if not equals or not key:
                raise ValueError(f"-c {word}: {part!r} is not KEY=VALUE")
            try:
                value = tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError:
                value = text
            yield key.strip(), value if isinstance(value, (bool, int, float)) else str(value)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an expected error into one line on standard error and an exit status."""
    try:
        yield
    except KeyboardInterrupt:
        typer.secho("stopped; what was computed is kept", err=True, fg="yellow")
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        typer.secho(f"error: {' '.join(str(error).split())}", err=True, fg="red")
        raise typer.Exit(2) from None
    except RuntimeError as error:
        typer.secho(f"error: {' '.join(str(error).split())}", err=True, fg="red")
        raise typer.Exit(1) from None
