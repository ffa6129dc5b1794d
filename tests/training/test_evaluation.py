"""Tests of a site's model count what is there."""

from dataclasses import replace

import pytest
import torch

from gfpl_flwr.training import Images, alone, evaluate


def images(labels):
    labels = torch.tensor(labels)
    half = torch.full((1, 1, 1), 0.5)
    return Images(torch.zeros(len(labels), 1, 12, 12, dtype=torch.uint8), labels, half, half)


def always(*answers):
    """Scores by which the heads answer these classes, whatever the features."""
    names = ("classifier", "other")

    def scores(model, features):
        return {
            name: torch.eye(model.num_classes)[answer].expand(len(features), -1)
            for name, answer in zip(names, answers, strict=False)
        }

    return scores


def site_with(site_of, **options):
    site = site_of(0, 4, algorithm="local", **options)
    return replace(site, train=images([1, 1, 3]), test=images([1, 1, 3]), common=images([0, 1, 2, 3, 4] * 2))


def test_own_and_common_images_are_counted_apart_by_hand(site_of):
    site = site_with(site_of, rounds=20, common_test_every=10)
    found = alone(evaluate(site, round=10, phase="train", scores=always(1, 4)))
    assert (found.round, found.phase) == (10, "train")
    assert found.total.tolist() == [0, 2, 0, 1, 0]
    assert found.correct["classifier"].tolist() == [0, 2, 0, 0, 0]
    assert found.correct["other"].tolist() == [0, 0, 0, 0, 0]
    # two images of each of five classes; the site has seen 1 and 3
    assert found.common.total == (4, 6)
    assert found.common.correct == {"classifier": (2, 0), "other": (0, 2)}


@pytest.mark.parametrize(("round", "asked"), [(1, False), (10, True), (13, False), (20, True), (25, True)])
def test_common_images_are_tested_every_so_many_rounds_and_in_the_last(site_of, round, asked):
    site = site_with(site_of, rounds=25, common_test_every=10)
    assert (alone(evaluate(site, round=round, phase="train")).common is not None) == asked


def test_without_common_images_there_is_no_such_count(site_of):
    site = replace(site_with(site_of, rounds=10), common=None)
    assert alone(evaluate(site, round=10, phase="train")).common is None
