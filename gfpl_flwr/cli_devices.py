"""The commands of ``gfpl`` for devices and the servers that they join."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gfpl_flwr.command_line import ConfigOption, one_line_errors, options_of

if TYPE_CHECKING:
    from gfpl_flwr.flower.launch.control import Control

FederationArgument = Annotated[str, typer.Argument(help="A federation of pyproject-federation.toml.")]
DataDirOption = Annotated[
    Path | None, typer.Option(envvar="GFPL_DATA_DIR", help="Where prepared data sets lie; data by default.")
]


def doctor(
    superlink: Annotated[str, typer.Option(envvar="GFPL_SUPERLINK", help="The server, HOST:PORT.")] = "",
    root_certificates: Annotated[
        Path | None, typer.Option(envvar="GFPL_CA", help="Certificate authority's file; none: the system's.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="The server speaks plain HTTP.")] = False,
    key: Annotated[Path | None, typer.Option(envvar="GFPL_KEY", help="This node's private key.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="On a server: its own certificate.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    state_dir: Annotated[
        Path | None, typer.Option(envvar="GFPL_STATE_DIR", help="Where the node keeps its site's model.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Check a device or a server before it joins; the data set is looked at where -c dataset=... names one."""
    import json
    from dataclasses import asdict
    from functools import partial

    with one_line_errors():
        from gfpl_flwr.flower.doctor import machine, server
        from gfpl_flwr.flower.doctor.findings import Check, carried_out

        checks: list[tuple[str, Check]] = [("python", machine.interpreter), ("packages", machine.packages)]
        checks.append(("memory", machine.memory))
        if state_dir is not None:
            checks.append(("state", partial(machine.state, state_dir)))
        options = options_of(config, output_dir=None, data_dir=data_dir)
        if "dataset" in options:
            checks.append(("data", partial(machine.data, options, Path(str(options["data-dir"])))))
        if certificate is not None:
            checks.append(("certificate", partial(server.certificate, certificate)))
        if superlink:
            there = server.Server(superlink, root_certificates, insecure)
            checks.append(("address", partial(server.connection, there)))
            if key is not None:
                checks.append(("key", partial(server.key, there, key)))
        findings = []
        for finding in carried_out(checks):
            findings.append(finding)
            if not as_json:
                typer.echo(str(finding))
        failed = sum(not finding.passed for finding in findings)
        if as_json:
            typer.echo(json.dumps({"fit": not failed, "findings": [asdict(each) for each in findings]}, indent=2))
        else:
            typer.echo(
                f"{failed} of {len(findings)} checks failed" if failed else f"all {len(findings)} checks passed"
            )
    raise typer.Exit(1 if failed else 0)


def rehearse(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    limit: Annotated[int, typer.Option(help="Most MB of its own memory that the process may take; 0: no limit.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Do one visit of one round here, as the ClientApp would, and print its time and its peak of memory."""
    import json
    from dataclasses import asdict

    with one_line_errors():
        from gfpl_flwr.flower.doctor import rehearsal

        done = rehearsal.rehearse(options_of(config, output_dir=None, data_dir=data_dir), limit=limit)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    typer.echo(f"{done.samples} images: {done.seconds:.1f} s, {done.training:.1f} s of them one round of training")
    held = f", held to {limit} MB of its own" if limit else ""
    typer.echo(f"peak of memory {done.peak} MB{held}; at the end {done.own} MB its own, the rest pages of files")


def register(
    federation: FederationArgument,
    keys: Annotated[list[Path], typer.Argument(help="Public keys, NAME.pub; NAME is then the node's name.")],
) -> None:
    """Register the public keys of nodes with a SuperLink, so that it lets them in; known ones stay as they are."""
    with one_line_errors():
        from gfpl_flwr.flower.launch.nodes import register_keys

        for name, node, new in register_keys(_control(federation), keys):
            typer.echo(f"{name}: {'registered' if new else 'was registered before'}, node {node}")


def nodes(
    federation: FederationArgument = "",
    wait: Annotated[int | None, typer.Option(help="Wait until so many are connected.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 180.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the nodes that a SuperLink knows, and which of them are connected."""
    import json
    from dataclasses import asdict

    with one_line_errors():
        from gfpl_flwr.flower.launch.nodes import connected, known_nodes

        control = _control(federation)
        found = known_nodes(control) if wait is None else connected(control, wait, timeout=timeout)
    if as_json:
        typer.echo(json.dumps([asdict(node) for node in found], indent=2))
        return
    for node in found:
        typer.echo(f"{node.name or '-':<24} {node.status:<10} {node.node_id}")
    online = sum(node.status == "online" for node in found)
    typer.echo(f"{online} of {len(found)} nodes are connected")


def _control(federation: str) -> "Control":
    from gfpl_flwr.flower.launch.control import remote_control
    from gfpl_flwr.flower.launch.place import choose

    chosen = choose("flower", federation).federation
    if chosen is None or chosen.is_local:
        raise ValueError(f"federation {federation!r} is simulated on this machine: it has no nodes to register")
    return remote_control(chosen)
