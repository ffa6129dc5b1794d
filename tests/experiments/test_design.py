"""An experiment is what its file says, and a wrong file says what is wrong."""

from dataclasses import replace
from pathlib import Path

import pytest

from gfpl_flwr.experiments.design import ExperimentError, Planned
from gfpl_flwr.experiments.experiment_file import read_experiment

FILES = sorted((Path(__file__).parents[2] / "benchmarks" / "experiments").glob("*.toml"))


def test_every_cell_has_its_options_and_seeds(two_methods):
    methods, period = two_methods.parts
    cells = [(its.cell["method"], its.cell["ways"], its.seed) for its in methods.planned]
    two, three = [1, 2], [1, 2, 3]
    assert cells == [
        (method, ways, seed)
        for method in ("Local", "GFPL")
        for ways, seeds in (("n = 2", two), ("n = 3", three))
        for seed in seeds
    ]
    last = methods.planned[-1].options
    assert (last["algorithm"], last["dataset"], last["ways"], last["seed"], last["rounds"]) == (
        "gfpl",
        "digits",
        3,
        3,
        2,
    )
    assert methods.pages == [{"dataset": "Digits"}]
    assert period.pages == [{}]
    # GFPL with n = 3 and P = 5 stands in both parts and is done once
    assert len(two_methods.runs()) == 10 + 3


def test_runs_with_the_same_options_are_one_run_whatever_is_written_down():
    def key(**options):
        return Planned(
            {}, 1, {name.replace("__", ".").replace("_", "-"): value for name, value in options.items()}
        ).key

    plain = key(algorithm="gfpl", dataset="mnist")
    assert plain == key(algorithm="gfpl", dataset="mnist", rounds=80)  # the default
    assert plain == key(algorithm="gfpl", dataset="mnist", workers=3, data_dir="/x", torch_threads=2)
    assert plain == key(algorithm="gfpl", dataset="mnist", fedprox__mu=0.5)  # of another method
    assert plain != key(algorithm="gfpl", dataset="mnist", gfpl__threshold=0.5)
    assert plain != key(algorithm="gfpl", dataset="mnist", seed=2)
    assert plain.startswith("gfpl-mnist-")


def test_a_smaller_experiment_has_fewer_cells_seeds_and_rounds(two_methods):
    one = two_methods.with_changes(rounds=1).only({"method": ["gfpl"], "part": ["methods"]}, seeds=1)
    (part,) = one.parts
    assert [(its.cell["ways"], its.seed) for its in part.planned] == [("n = 2", 1), ("n = 3", 1)]
    assert all(its.options["rounds"] == 1 for its in part.planned)


def test_so_many_seeds_are_the_first_of_each_cell(two_methods):
    (part, _) = two_methods.only({"method": ["gfpl"]}, seeds=3).parts
    assert [(its.cell["ways"], its.seed) for its in part.planned] == [
        ("n = 2", 1), ("n = 2", 2), ("n = 3", 1), ("n = 3", 2), ("n = 3", 3),
    ]  # fmt: skip


@pytest.mark.parametrize(("rounds", "first"), [(20, 8), (160, 60), (1, 1)])
def test_t0_moves_in_proportion_to_the_rounds(write, rounds, first):
    path = write(("rounds = 2", "rounds = 80"), ('"gfpl.first-exchange" = 1', '"gfpl.first-exchange" = 30'))
    runs = read_experiment(path).with_changes(rounds=rounds).only({"method": ["GFPL"], "part": ["methods"]}).runs()
    for its in runs.values():
        assert (its.options["rounds"], its.options["gfpl.first-exchange"]) == (rounds, first)


def test_a_seed_is_chosen_as_a_value_of_an_axis_is(two_methods):
    (part, _) = two_methods.only({"method": ["gfpl"], "seed": ["2", "3"]}).parts
    assert [(its.cell["ways"], its.seed) for its in part.planned] == [("n = 2", 2), ("n = 3", 2), ("n = 3", 3)]


def test_values_that_no_run_has_together_are_an_error(two_methods):
    with pytest.raises(ExperimentError, match="small has no run with ways = n = 2, seed = 3"):
        two_methods.only({"ways": ["n = 2"], "seed": ["3"]})
    (part, _) = two_methods.only({"method": ["gfpl"], "ways": ["n = 3"], "seed": ["3"]}, seeds=1).parts
    assert [its.seed for its in part.planned] == [3]


def test_changes_come_before_everything_else(two_methods):
    changed = two_methods.with_changes(changes={"num-sites": 4, "learning-rate": 0.1})
    assert {(its.options["num-sites"], its.options["learning-rate"]) for its in changed.runs().values()} == {(4, 0.1)}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ways", 4, "ways is set by the axis ways, whose 'n = 2' would then name something else; leave it out"),
        ("algorithm", "local", "algorithm is set by the axis method, whose 'Local' would then name something else"),
    ],
)
def test_what_an_axis_sets_is_no_change_since_its_names_would_stay(two_methods, key, value, words):
    changed = two_methods.with_changes(changes={key: value})
    with pytest.raises(ExperimentError, match=words):
        changed.check_names(changed)


def test_what_an_axis_sets_in_parts_or_values_that_are_left_out_can_be_changed(two_methods):
    changed = two_methods.with_changes(changes={"gfpl.exchange-every": 3})
    for value in ("1", "5"):  # which sets nothing, since it is the default
        with pytest.raises(ExperimentError, match=f"gfpl.exchange-every is set by the axis P, whose '{value}'"):
            changed.check_names(changed.only({"P": [value], "part": ["period"]}))
    changed.check_names(changed.only({"part": ["methods"]}))


def test_rounds_move_the_first_exchange_but_not_that_of_an_axis(write):
    path = write(('"gfpl.exchange-every" = 1', '"gfpl.first-exchange" = 1'))
    changed = read_experiment(path).with_changes(rounds=2)
    with pytest.raises(ExperimentError, match=r"gfpl.first-exchange is set by the axis P, whose '1' would"):
        changed.check_names(changed)
    changed.check_names(changed.only({"part": ["methods"]}))


def test_rounds_are_no_change(two_methods):
    with pytest.raises(ExperimentError, match="rounds: --rounds N sets them"):
        two_methods.with_changes(changes={"rounds": 3})


def test_a_run_with_a_scene_is_not_the_same_run_without(two_methods):
    planned = next(iter(two_methods.runs().values()))
    assert replace(planned, scene=True).key != planned.key


def test_what_is_changed_is_another_experiment_and_says_so(two_methods):
    changed = two_methods.with_changes(rounds=1, changes={"learning-rate": 0.1})
    assert changed.name == "small-rounds-1-learning-rate-0.1"
    assert all(its.title.endswith(", with rounds = 1, learning-rate = 0.1") for its in (changed, *changed.parts))
    assert not any(part.paper for part in changed.parts)  # what it says is not about this
    assert two_methods.with_changes() is two_methods


def test_a_seed_is_no_change(two_methods):
    with pytest.raises(ExperimentError, match="seed: the seeds are the experiment's own; --only seed=N"):
        two_methods.with_changes(changes={"seed": 7})


def test_a_run_has_the_options_of_its_own_method_alone(write):
    path = write(('{ dataset = "digits" }', '{ dataset = "digits", "fedproto.weight" = 0.1 }'))
    runs = read_experiment(path).runs().values()
    assert not any("fedproto.weight" in its.options for its in runs)
    assert not any("gfpl.first-exchange" in its.options for its in runs if its.options.get("algorithm") == "local")
    assert all("gfpl.first-exchange" in its.options for its in runs if its.options.get("algorithm") != "local")


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"dataset": ["mnst"]}, "small: dataset 'mnst' is unknown: known are Digits"),
        ({"methods": ["GFPL"]}, "small has no axis methods: it has P, dataset, method, ways, seed, and part"),
        ({"part": ["x"]}, "part 'x' is unknown: known are methods, period"),
        ({"seed": ["9"]}, "small: seed '9' is unknown: known are 1, 2, 3"),
    ],
)
def test_an_unknown_value_lists_the_known_ones(two_methods, chosen, words):
    with pytest.raises(ExperimentError, match=words):
        two_methods.only(chosen)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('show = "methods"', 'show = "pie"', "show = 'pie': must be one of methods, variants, lines"),
        ('rows = "method"', 'rows = "methods"', "part methods: there is no axis 'methods'"),
        ("num-sites = 3", "num-site = 3", "options: unknown key 'num-site'"),
        ("num-sites = 3", 'output-dir = "x"', "options: unknown key 'output-dir'"),
        ("rounds = 2", "rounds = 0", "rounds = 0: must be an integer >= 1"),
        ('algorithm = "local"', 'algorithm = "locl"', "algorithm = 'locl': must be one of gfpl, local"),
        ('"gfpl.first-exchange" = 1', '"gfpl.first-exchange" = 9', "gfpl.first-exchange = 9: must be <= rounds = 2"),
        ('title = "Two methods"', "", "'title'"),
        ('name = "period"', 'name = "methods"', "two parts have the same name"),
        ("seeds = [1, 2]", "seed = [1]", "the experiment: unknown key 'seed'"),
        ("[[parts]]", "[[parts]", "small.toml"),
        ("rounds = 2", "seed = 2", "options: unknown key 'seed'"),
        (
            '{ ways = "n = 3" }',
            '{ way = "n = 3" }',
            "more-seeds: unknown key 'way', known are P, dataset, method, ways",
        ),
        ('{ ways = "n = 3" }', '{ ways = "n = 4" }', "more-seeds: unknown ways 'n = 4', known are n = 2, n = 3"),
        (
            'columns = "ways"',
            'columns = "ways"\nleft-out = [{ method = "local" }]',
            "part methods: unknown method 'local', known are GFPL, Local",
        ),
        (
            'columns = "ways"',
            'columns = "ways"\nexceptions = [{ where = { ways = "n = 4" }, options = {} }]',
            "part methods: unknown ways 'n = 4', known are n = 2, n = 3",
        ),
        (
            'columns = "ways"',
            'columns = "ways"\nexceptions = [{ where = { ways = "n = 3" }, options = { rate = 0.1 } }]',
            "options: unknown key 'rate'",
        ),
        (
            'columns = "ways"',
            'columns = "ways"\nexceptions = [{ where = { ways = "n = 3" }, options = { learning-rate = -1.0 } }]',
            "learning-rate = -1.0: must be",
        ),
    ],
)
def test_a_wrong_file_says_what_is_wrong(write, old, new, words):
    path = write()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ExperimentError) as told:
        read_experiment(path)
    assert words in str(told.value)
    assert str(path) in str(told.value)


def test_cells_can_be_left_out(write):
    path = write(('columns = "ways"', 'columns = "ways"\nleft-out = [{ method = "Local", ways = "n = 2" }]'))
    cells = {(its.cell["method"], its.cell["ways"]) for its in read_experiment(path).parts[0].planned}
    assert cells == {("Local", "n = 3"), ("GFPL", "n = 2"), ("GFPL", "n = 3")}


def test_some_cells_can_have_options_of_their_own(write):
    exception = '{ where = { method = "Local", ways = "n = 2" }, options = { learning-rate = 0.5 } }'
    changed = write(('columns = "ways"', f'columns = "ways"\nexceptions = [{exception}]'), name="changed")
    plain, other = ({its.key: its for its in read_experiment(path).parts[0].planned} for path in (write(), changed))
    own = [other[key] for key in other.keys() - plain.keys()]
    assert [(its.cell["method"], its.cell["ways"], its.options["learning-rate"]) for its in own] == [
        ("Local", "n = 2", 0.5)
    ] * 2
    assert len(plain.keys() & other.keys()) == len(plain) - 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_of_the_checkout_can_be_read(path):
    experiment = read_experiment(path)
    assert experiment.runs()
    seeds = {its.seed for its in experiment.runs().values()}
    # the defaults are chosen on seeds that no reported table uses
    assert seeds <= set(range(1, 6)) if path.stem != "defaults" else not seeds & set(range(1, 6))


def test_there_is_one_for_every_table_and_figure_of_the_paper():
    assert {"table1", "table2", "fig2", "fig3", "fig4", "fig5", "fig6", "fig7"} <= {path.stem for path in FILES}
    (part,) = read_experiment(next(path for path in FILES if path.stem == "table1")).parts
    assert list(part.axes["dataset"]) == ["MNIST", "FEMNIST", "CIFAR10", "CIFAR100"]
    assert len(part.axes["method"]) == 10
    assert len(part.axes["ways"]) == 3


def test_a_run_is_told_in_words_a_bare_number_with_its_axis(two_methods):
    methods, period = (part.planned[0] for part in two_methods.parts)
    assert methods.words == "Digits, Local, n = 2, seed 1"
    assert period.words == "P = 1, n = 3, seed 1"
