"""FeSEM: assignment and centres by hand."""

import torch

from gfpl_flwr.algorithms.base import Reply
from gfpl_flwr.algorithms.fesem import FeSEM
from gfpl_flwr.models import SplitModel


def model_of(number: float, classifier: float = 0.0) -> dict[str, torch.Tensor]:
    return {
        "extractor.weight": torch.full((1, 2), number),
        "extractor.running_mean": torch.full((3,), 100 * number),
        "classifier.weight": torch.full((2, 1), classifier),
        "classifier.bias": torch.zeros(2),
    }


def start(algorithm: FeSEM) -> dict[str, torch.Tensor]:
    return {f"centres/{name}": torch.stack([value] * algorithm.num_centres) for name, value in model_of(0.0).items()}


def replies(*numbers: float) -> list[Reply]:
    return [Reply(model_of(number), 10 + site, site=site) for site, number in enumerate(numbers)]


def members(state: dict[str, torch.Tensor]) -> list[int]:
    return [int(state[f"member/{site}"]) for site in range(sum(key.startswith("member/") for key in state))]


def test_models_around_two_points_get_two_centres_and_each_is_the_plain_mean():
    algorithm = FeSEM()
    state = algorithm.aggregate(start(algorithm), replies(1.0, 9.0, 3.0, 7.0))
    found = members(state)
    assert found[0] == found[2] != found[1] == found[3]
    # sites count once each, whatever their samples: (1 + 3) / 2 and (9 + 7) / 2
    assert state["centres/extractor.weight"][found[0]].unique().tolist() == [2.0]
    assert state["centres/extractor.weight"][found[1]].unique().tolist() == [8.0]
    assert state["centres/extractor.running_mean"][found[1]].unique().tolist() == [800.0]
    assert algorithm.describe(state, []) == {"sites_by_centre": [2, 2]}


def test_a_site_is_handed_its_own_centre_and_a_new_one_that_of_most():
    algorithm = FeSEM()
    state = algorithm.aggregate(start(algorithm), replies(1.0, 9.0, 3.0))
    assert algorithm.downlink(state, 1)["extractor.weight"].unique().tolist() == [9.0]
    assert algorithm.downlink(state, 0)["extractor.weight"].unique().tolist() == [2.0]
    assert algorithm.downlink(state, "camera-9")["extractor.weight"].unique().tolist() == [2.0]
    assert algorithm.downlink(state, 0).keys() == model_of(0.0).keys()


def test_sites_change_their_centre_and_one_that_is_silent_keeps_it():
    algorithm = FeSEM()
    state = algorithm.aggregate(start(algorithm), replies(1.0, 9.0, 3.0, 7.0))
    before = members(state)
    state = algorithm.aggregate(state, [Reply(model_of(2.0), 1, site=1)])  # site 1 has come over
    assert members(state) == [before[0], before[0], before[2], before[3]]
    assert state["centres/extractor.weight"][before[3]].unique().tolist() == [8.0]  # nobody moved it


def test_a_centre_whose_sites_are_all_silent_stays_where_it_is():
    algorithm = FeSEM()
    state = algorithm.aggregate(start(algorithm), replies(0.0, 1.0, 100.0, 101.0))
    before = members(state)
    assert before[0] == before[1] != before[2] == before[3]
    state = algorithm.aggregate(state, replies(0.0, 2.0))  # sites 0 and 1
    assert members(state) == before
    centres = state["centres/extractor.weight"]
    assert [centres[before[site]].unique().tolist() for site in (0, 2)] == [[1.0], [100.5]]


def test_centres_do_not_collapse():
    algorithm = FeSEM(num_centres=3)
    state = algorithm.aggregate(start(algorithm), replies(0.0, 0.1, 10.0, 10.1, 20.0))
    assert sorted(set(members(state))) == [0, 1, 2]
    # all come close together: each centre still gets a site
    state = algorithm.aggregate(state, replies(0.0, 0.1, 0.2, 0.3, 0.4))
    assert sorted(set(members(state))) == [0, 1, 2]


def test_fewer_models_than_centres_are_no_error():
    algorithm = FeSEM(num_centres=3)
    state = algorithm.aggregate(start(algorithm), replies(4.0))
    assert state["centres/extractor.weight"].unique().tolist() == [4.0]


def test_statistics_have_no_part_in_distances_and_the_classifier_alone_can_tell_them():
    algorithm = FeSEM(distance_on="classifier")
    told = [(0.0, 5.0), (50.0, 5.1), (0.1, -5.0)]
    sent = [Reply(model_of(*numbers), 1, site=site) for site, numbers in enumerate(told)]
    found = members(algorithm.aggregate(start(algorithm), sent))
    assert found[0] == found[1] != found[2]
    flat = FeSEM()._flat({name: value[None] for name, value in model_of(1.0, 2.0).items()})
    assert sorted(flat[0].tolist()) == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]


def test_the_choice_of_the_first_centres_follows_the_seed():
    numbers = [0.0, 1.0, 2.0, 5.0, 9.0, 9.5]
    found = {seed: tuple(FeSEM(seed=seed)._first(torch.tensor(numbers)[:, None].double())) for seed in range(20)}
    assert found == {seed: tuple(FeSEM(seed=seed)._first(torch.tensor(numbers)[:, None].double())) for seed in found}
    assert len(set(found.values())) > 2
    # the second is the farthest from the first
    assert all(second == (5 if numbers[first] < 4.75 else 0) for first, second in found.values())


def test_its_first_state_has_every_centre_at_the_model_that_sites_start_from():
    model = SplitModel(torch.nn.Flatten(), 4, 2)
    state = FeSEM().initial(model)
    assert set(state) == {"centres/classifier.weight", "centres/classifier.bias"}
    assert torch.equal(state["centres/classifier.weight"][1], model.classifier.weight)
