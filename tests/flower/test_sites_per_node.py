"""One node that hosts several sites: the same bits as one node a site, one message, and every failure its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import load_file

from gfpl_flwr.algorithms import ALGORITHMS, parse_run
from gfpl_flwr.algorithms.base import Reply, Visit
from gfpl_flwr.algorithms.gfpl import GFPL
from gfpl_flwr.config import ConfigError
from gfpl_flwr.flower.attendance import QuorumError
from gfpl_flwr.flower.client import SITE_FAILED
from gfpl_flwr.flower.hosting import downloads, failure_in, hosted_sites, join_replies, split_reply, uploads
from gfpl_flwr.flower.inprocess import InProcessGrid, run_in_process
from gfpl_flwr.flower.launch.federations import Federation
from gfpl_flwr.flower.launch.local_superlink import LaunchError
from gfpl_flwr.flower.launch.place import Place
from gfpl_flwr.flower.launch.runner import Plan, execute
from gfpl_flwr.flower.node import Node
from gfpl_flwr.flower.server import run as serve
from gfpl_flwr.flower.tensors import Size, size_of
from gfpl_flwr.flower.wire import Order, SiteReply, decode_reply, encode_order, encode_reply


@pytest.fixture(autouse=True)
def _inside_a_run():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture
def flat(small) -> dict[str, Any]:
    """Seven sites on three nodes: two of three sites and one of a single one."""
    return small | {"num-sites": 7, "sites-per-node": 3, "shots": 4, "seed": 1, "rounds": 3}


class Spoiled(InProcessGrid):
    """Nodes of seven sites whose replies pass through ``spoil(visit, node, reply)``; None loses the reply."""

    def __init__(self, flat, spoil=lambda visit, node, reply: reply, nodes=(0, 1, 2)) -> None:
        super().__init__([{"partition-id": node, "num-partitions": 3} for node in nodes], flat)
        self.spoil = spoil
        self.sizes: list[tuple[Size, Size]] = []

    def push_messages(self, messages):
        messages = list(messages)
        self.down = {message.metadata.dst_node_id: size_of(message) for message in messages}
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        spoiled = []
        for reply in super().pull_messages(message_ids):
            node = reply.metadata.src_node_id - 2  # as this grid numbers its nodes
            kept = self.spoil(int(reply.metadata.group_id), node, reply)
            if kept is not None:
                self.sizes.append((self.down[node + 2], size_of(kept)))
                spoiled.append(kept)
        return spoiled


def lines(flat: dict[str, Any]) -> list[dict[str, Any]]:
    path = Path(flat["output-dir"]) / flat["name"] / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def failures(line: dict[str, Any]) -> dict[Any, str]:
    return {site["site"]: site["reason"] for site in line["sites"] if site["status"] == "error"}


def answered(line: dict[str, Any]) -> list[Any]:
    return [site["site"] for site in line["sites"] if site["status"] == "ok"]


# ---- the same results ---------------------------------------------------------------------------------------


def results(flat: dict[str, Any]) -> tuple[list[Any], dict[str, dict[str, torch.Tensor]]]:
    """What a run found: every accuracy and diagnostic; the server's state and every site's models by file."""
    path = run_in_process(flat).path
    told = [
        [
            (site["site"], site["samples"], site["labels"], site["accuracy"], site["diagnostics"])
            for site in line["sites"]
        ]
        for line in lines(flat)
    ]
    files = {file.name: load_file(file) for file in path.glob("*.safetensors")}
    models = path.parent.rglob("site-*/*.safetensors")
    return told, files | {f"{file.parent.name}/{file.name}": load_file(file) for file in models}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_hosting_changes_no_bit(flat, tmp_path, name):
    """Nodes one by one, on two workers, and a single one for all sites, against nodes of one site."""
    (told, files), *others = (
        results(flat | {"algorithm": name, "rounds": 2, "output-dir": str(tmp_path / str(number))} | options)
        for number, options in enumerate(
            [
                {"sites-per-node": 1, "cohort": 2, "workers": 1},
                {"sites-per-node": 3, "cohort": 3, "workers": 1},
                {"sites-per-node": 3, "cohort": 2, "workers": 2},
                {"sites-per-node": 7, "workers": 1},
            ]
        )
    )
    assert [site[0] for site in told[0]] == list(range(7))
    assert {name.split("/")[0] for name in files if "/" in name} == {f"site-{site}" for site in range(7)}
    for other_told, other_files in others:
        assert other_told == told
        assert other_files.keys() == files.keys()
        for file, tensors in files.items():
            for entry, tensor in tensors.items():
                assert torch.equal(tensor, other_files[file][entry]), (file, entry)


def test_one_message_a_node_and_bytes_that_add_up(flat):
    grid = Spoiled(flat)
    serve(grid, flat, engine="inprocess")
    alone = flat | {"sites-per-node": 1, "name": "alone"}
    run_in_process(alone)
    for number, (line, lone) in enumerate(zip(lines(flat), lines(alone), strict=True)):
        assert (line["messages"], lone["messages"]) == (3, 7)
        sizes = grid.sizes[3 * number : 3 * number + 3]
        assert line["bytes_down"] == sum(down.message for down, _ in sizes)
        assert line["bytes_up"] == sum(up.message for _, up in sizes)
        for key in ("bytes_down", "bytes_up", "array_bytes_up"):
            assert line[key] == sum(site[key] for site in line["sites"])
        # The same order goes out three times and not seven; the same arrays come up, whoever hosts the sites.
        assert line["array_bytes_down"] * 7 == lone["array_bytes_down"] * 3
        assert (line["array_bytes_up"], line["scalars_up"]) == (lone["array_bytes_up"], lone["scalars_up"])
        assert [site["array_bytes_up"] for site in line["sites"]] == [
            site["array_bytes_up"] for site in lone["sites"]
        ]
        for first, count in ((0, 3), (3, 3), (6, 1)):
            shares = [site["bytes_down"] for site in line["sites"][first : first + count]]
            assert sum(shares) == sizes[0][0].message
            assert max(shares) - min(shares) < count


# ---- failures -----------------------------------------------------------------------------------------------


def failing(*numbers: int, visit: int):
    """GFPL's half of a site, but these sites fail in this visit."""
    half = GFPL.steps

    def steps(self, site, down, this):
        if site.key in numbers and this.index == visit:
            raise RuntimeError(f"sensor {site.key} is\nunplugged")
        return (yield from half(self, site, down, this))

    return steps


@pytest.mark.parametrize("visit", [1, 2])
def test_a_hosted_site_fails_alone(flat, monkeypatch, visit):
    monkeypatch.setattr(GFPL, "steps", failing(3, 4, 6, visit=visit))
    serve(Spoiled(flat), flat, engine="inprocess")
    for line in lines(flat):
        if line["visit"] == visit:
            assert failures(line) == {site: f"RuntimeError: sensor {site} is unplugged" for site in (3, 4, 6)}
            assert answered(line) == [0, 1, 2, 5]
        else:
            assert answered(line) == list(range(7))


def test_the_others_contributions_are_those_of_a_run_in_which_it_failed_alone(flat, monkeypatch):
    monkeypatch.setattr(GFPL, "steps", failing(4, visit=1))
    alone = flat | {"sites-per-node": 1, "name": "alone"}
    banks = [load_file(run_in_process(options).path / "prototypes.safetensors") for options in (flat, alone)]
    for name, tensor in banks[0].items():
        assert torch.equal(tensor, banks[1][name])


def unsound_variances(content: RecordDict, name: str) -> None:
    record = content[name]
    array = record["variances"]
    assert array.data
    array.data = b"\x00\x00\x80\xbf" * (len(array.data) // 4)


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda c: unsound_variances(c, "arrays.2"), {5: "variances"}),
        (lambda c: c["measures"].update({"samples": -1}), {3: "samples must be an integer"}),
        (lambda c: c["site.2"].update({"run": "another"}), {5: "run 'another'"}),
        (lambda c: c["site.2"].update({"site": 0}), {5: "site 0 answered already"}),
        (lambda c: c["site.2"].update({"site": 6}), {5: "says it is site 6, but it was site 5"}),
        (lambda c: c["site.2"].update({"site": "door"}), {5: "says it is site door, but it was site 5"}),
        (lambda c: [c.pop(f"{name}.2") for name in ("site", "measures", "arrays")], {5: "has nothing of it"}),
        (lambda c: c.pop("arrays.1"), {4: "one array record"}),
        (lambda c: c.update({"failed.1": ConfigRecord({"site": 4, "reason": "?"})}), {4: "nothing else"}),
        (lambda c: c.update({"site.3": ConfigRecord()}), dict.fromkeys((3, 4, 5), "belongs to none of the 3 sites")),
        (lambda c: c.update({"more": ArrayRecord()}), dict.fromkeys((3, 4, 5), "'more' belongs to none")),
    ],
)
def test_what_is_unsound_costs_that_site_and_what_cannot_be_told_apart_the_node(flat, change, failed):
    def spoil(visit, node, reply):
        if (visit, node) == (2, 1):
            change(reply.content)
        return reply

    serve(Spoiled(flat, spoil), flat, engine="inprocess")
    line = lines(flat)[1]
    told = failures(line)
    assert told.keys() == failed.keys()
    assert all(failed[site] in told[site] for site in failed)
    assert answered(line) == [site for site in range(7) if site not in failed]
    assert not failures(lines(flat)[2])


def test_a_node_that_hosts_one_site_cannot_answer_for_more(flat):
    def spoil(visit, node, reply):
        if (visit, node) == (2, 2):
            for name in ("site", "measures", "arrays"):
                reply.content[f"{name}.1"] = reply.content[name]
        return reply

    serve(Spoiled(flat, spoil), flat, engine="inprocess")
    line = lines(flat)[1]
    assert answered(line) == list(range(7))
    ((name, reason),) = failures(line).items()
    assert name == "node 4"
    assert "hosts no more than 1 sites" in reason


def error_reply(reply: Message) -> Message:
    broken = Message(Error(2, "boom"), reply_to=reply)
    broken.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return broken


def test_a_node_that_is_silent_or_broken_is_recorded_for_each_of_its_sites(flat):
    def spoil(visit, node, reply):
        if visit != 2 or node == 2:
            return reply
        return error_reply(reply) if node == 1 else None

    flat = flat | {"visit-deadline": 2.0, "quorum": 0.1}
    serve(Spoiled(flat, spoil), flat, engine="inprocess")
    silent = dict.fromkeys((0, 1, 2), "no reply within visit-deadline = 2 s")
    assert failures(lines(flat)[1]) == silent | dict.fromkeys((3, 4, 5), "boom (code 2)")
    assert answered(lines(flat)[1]) == [6]
    assert answered(lines(flat)[2]) == list(range(7))


def test_a_node_that_never_said_which_it_is_counts_as_often_as_it_may_host_sites(flat):
    serve(Spoiled(flat, nodes=(0, 1, 9)), flat, engine="inprocess")
    for line in lines(flat):
        assert answered(line) == [0, 1, 2, 3, 4, 5]
        unknown = [(site["site"], site["reason"]) for site in line["sites"] if site["status"] == "error"]
        assert [name for name, _ in unknown] == ["node 4"] * 3
        assert all("partition-id = 9: must be an integer below 3" in reason for _, reason in unknown)


def test_a_node_that_never_answers_counts_as_often_as_it_may_host_sites_and_no_other_is_made_up(flat):
    """Of 9 sites, 3 a node, one node is silent from the first visit on: nobody else is missing."""
    told = []
    nine = flat | {"num-sites": 9, "visit-deadline": 2.0, "rounds": 2}
    spoiled = Spoiled(nine, lambda visit, node, reply: None if node == 2 else reply)
    serve(spoiled, nine, engine="inprocess", on_progress=told.append)
    for line in lines(flat):
        assert answered(line) == [0, 1, 2, 3, 4, 5]
        unknown = [(site["site"], site["reason"]) for site in line["sites"] if site["status"] == "error"]
        assert unknown == [("node 4", "no reply within visit-deadline = 2 s")] * 3
    assert {(progress.sites, progress.expected) for progress in told if progress.done} == {(9, 9)}


def test_two_nodes_with_one_partition_id_are_one_node_and_a_mistake(flat):
    serve(Spoiled(flat, nodes=(0, 1, 1)), flat, engine="inprocess")
    for line in lines(flat):
        assert answered(line) == [0, 1, 2, 3, 4, 5]
        reasons = [site["reason"] for site in line["sites"] if site["status"] == "error"]
        assert len(reasons) == 3  # as many as a node may host
        assert all("two nodes have the same partition-id" in reason for reason in reasons)


def test_progress_and_quorum_count_sites(flat, monkeypatch):
    """Of 7 sites 0.5 are 4: with three failures there are just enough, with four too few."""
    told = []
    monkeypatch.setattr(GFPL, "steps", failing(0, 3, 4, visit=1))
    serve(Spoiled(flat), flat, engine="inprocess", on_progress=told.append)
    assert [(progress.sites, progress.expected) for progress in told if progress.visit == 1] == [
        (3, 7), (6, 7), (7, 7), (7, 7)
    ]  # fmt: skip
    summary = json.loads((Path(flat["output-dir"]) / flat["name"] / "summary.json").read_text())
    assert summary["sites"] == 7
    fewer = flat | {"name": "fewer"}
    monkeypatch.setattr(GFPL, "steps", failing(0, 3, 4, 6, visit=1))
    with pytest.raises(QuorumError, match=r"visit 1: 3 of 7 sites answered, quorum = 0.5; site 0: RuntimeError"):
        serve(Spoiled(fewer), fewer, engine="inprocess")


def test_the_server_waits_for_nodes_and_not_for_as_many_as_there_are_sites(flat):
    flat = flat | {"algorithm": "local", "node-deadline": 0.1}
    serve(Spoiled(flat, nodes=(0, 1)), flat, engine="inprocess")
    assert answered(lines(flat)[0]) == [0, 1, 2, 3, 4, 5]
    one = flat | {"name": "one"}
    # 4 sites of 7 are the quorum: one node hosts 3 at most
    words = r"1 of 3 nodes connected .* num-supernodes must be num-sites / sites-per-node = 3"
    with pytest.raises(QuorumError, match=words):
        serve(Spoiled(one, nodes=(0,)), one, engine="inprocess")


def test_the_simulation_engine_starts_as_many_nodes_as_the_sites_need(flat):
    class Link:
        federation = Federation(name="local", address=":local:", simulation={"num_supernodes": 20})

        def run(self, app_dir, overrides, *, num_sites, on_log):
            raise LaunchError(f"{self.federation.simulation_of(num_sites)['num_supernodes']} nodes")

    for options, nodes in [(flat, 3), (flat | {"sites-per-node": 1}, 7), (flat | {"sites-per-node": 7}, 1)]:
        plan = Plan([options], Place("flower", Link.federation, Path()), 0.0)
        with pytest.raises(LaunchError, match=f"^{nodes} nodes"):
            list(execute(plan, lambda flat, progress: None, print, link=Link()))


# ---- what is refused ----------------------------------------------------------------------------------------


def test_combinations_that_cannot_work_are_refused_before_anything_is_sent(small):
    with pytest.raises(ConfigError, match=r"sites-per-node = 2: give num-sites"):
        parse_run({"sites-per-node": 2})
    with pytest.raises(ConfigError, match=r"sites-per-node = 2: must be 1 with partition = 'own'"):
        parse_run({"sites-per-node": 2, "num-sites": 4, "partition": "own"})
    with pytest.raises(ConfigError, match=r"sites-per-node = 5: must be at most num-sites = 4"):
        parse_run({"sites-per-node": 5, "num-sites": 4})
    with pytest.raises(ConfigError, match=r"sites-per-node = 0: must be an integer >= 1"):
        parse_run({"sites-per-node": 0})
    free = small | {"num-sites": 0, "sites-per-node": 2}
    with pytest.raises(ConfigError, match="give num-sites"):
        serve(InProcessGrid([], free), free, engine="inprocess")
    assert not (Path(small["output-dir"]) / "run").exists()


@pytest.mark.parametrize("partition_id", [3, -1, None, True, "1"])
def test_a_node_that_hosts_nothing_says_what_to_write(flat, partition_id):
    grid = InProcessGrid([{"partition-id": partition_id}], flat)
    (reply,) = grid.send_and_receive([Message(encode_order(Order("run", Visit(1, 1, 1), {})), 2, "train")])
    assert reply.error.code == SITE_FAILED
    assert f"partition-id = {partition_id!r}: must be an integer below 3" in reply.error.reason


def test_hosted_sites_have_no_names(flat):
    config, _ = parse_run(flat)
    assert [Node.of({"partition-id": 1, "num-partitions": 3}, config, place).site for place in range(3)] == [3, 4, 5]
    with pytest.raises(ConfigError, match=r"site = 'door': leave it out with sites-per-node = 3"):
        Node.of({"partition-id": 1, "site": "door"}, config)


@pytest.mark.parametrize(("sites", "each"), [(7, 3), (6, 3), (5, 5), (20, 1), (9, 4)])
def test_every_site_is_hosted_once(sites, each):
    config, _ = parse_run({"num-sites": sites, "sites-per-node": each})
    hosted = [hosted_sites(node, config) for node in range(config.num_nodes)]
    assert [site for node in hosted for site in node] == list(range(sites))
    assert all(len(node) == each for node in hosted[:-1])


# ---- the message --------------------------------------------------------------------------------------------


def content(site: int, rows: int = 2) -> RecordDict:
    reply = Reply({"means": torch.full((rows, 3), float(site))}, 17 + site, diagnostics={"train_loss": 0.5})
    return encode_reply(SiteReply(site, "run@1", 2, reply, {1: 10}))


def test_a_nodes_reply_comes_back_as_it_was():
    joined = join_replies({3: content(3), 4: "OSError: no lens", 5: content(5)})
    assert list(joined) == ["site", "measures", "arrays", "failed.1", "site.2", "measures.2", "arrays.2"]
    first, second, third = split_reply(joined, sites_per_node=4)
    for site, group in ((3, first), (5, third)):
        assert failure_in(group) is None
        got = decode_reply(group)
        assert (got.site, got.reply.samples) == (site, 17 + site)
        assert torch.equal(got.reply.tensors["means"], torch.full((2, 3), float(site)))
    failure = failure_in(second)
    assert (failure.site, failure.reason) == (4, "OSError: no lens")


def test_a_lone_sites_reply_is_byte_for_byte_the_first_group():
    lone = content(3)
    assert join_replies({3: lone}).deflate() == lone.deflate()
    assert split_reply(lone, sites_per_node=1) == [lone]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("site.01", "'site.01' belongs to none of the 3 sites"),
        ("site.0", "'site.0' belongs to none"),
        ("site.3", "'site.3' belongs to none"),
        ("site.-1", "belongs to none"),
        ("site.1.1", "belongs to none"),
        ("weights", "belongs to none"),
        ("x" * 9999, "belongs to none"),
        ("site.2", "from the first on, got places \\[0, 2\\]"),
    ],
)
def test_records_of_no_group_are_refused(name, words):
    joined = content(0)
    joined[name] = ConfigRecord()
    with pytest.raises(ValueError, match=words) as refused:
        split_reply(joined, sites_per_node=3)
    assert len(str(refused.value)) < 200


def test_an_empty_reply_is_refused():
    with pytest.raises(ValueError, match=r"got places \[\]"):
        split_reply(RecordDict(), sites_per_node=2)


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord(),
        ConfigRecord({"site": 1}),
        ConfigRecord({"site": True, "reason": "?"}),
        ConfigRecord({"site": 1, "reason": [1]}),
        MetricRecord({"site": 1}),
        ArrayRecord(),
    ],
)
def test_a_failure_that_says_nothing_is_refused(record):
    with pytest.raises(ValueError, match=r"failed|failure"):
        failure_in(RecordDict({"failed": record}))


@pytest.mark.parametrize("first", [0, 2])
def test_sizes_of_sites_add_up_to_that_of_the_message(first):
    """Sites 3 and 3 say the same, so that their records travel once; their arrays are told for each."""
    joined = join_replies({0: content(3), 1: content(3), 2: content(5, rows=4)})
    whole = size_of(Message(joined, 2, "train"))
    shares = uploads(joined, 3, first=first)
    assert sum(shares, Size()) == whole
    framing = len(joined.deflate())
    assert shares[1].message == 0
    # Names of 5 letters; 2 x 3 and 4 x 3 numbers of 4 bytes
    assert [share.arrays for share in shares] == [29, 29, 53]
    assert [share.scalars for share in shares] == [6, 6, 12]
    lone = size_of(Message(content(5, rows=4), 2, "train")).message - len(content(5, rows=4).deflate())
    assert shares[2].message == lone + (framing if first == 2 else 0)


def test_a_download_is_split_evenly():
    assert downloads(Size(10, 7, 2), 3) == [Size(4, 3, 2), Size(3, 2, 0), Size(3, 2, 0)]
    assert downloads(Size(10, 7, 2), 1) == [Size(10, 7, 2)]
