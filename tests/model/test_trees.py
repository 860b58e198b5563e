"""Paths, rules over them and loud differences."""

from __future__ import annotations

import numpy as np
import pytest

from crem_jax import trees

TREE = {"a": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "b": {"scale": np.ones(2)}}


def test_flatten_and_unflatten_are_inverse():
    flat = trees.flatten(TREE)
    assert list(flat) == ["a/bias", "a/kernel", "b/scale"]
    again = trees.unflatten(flat)
    assert again["a"]["kernel"] is TREE["a"]["kernel"] and set(again) == {"a", "b"}


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a")])
def test_a_path_cannot_be_leaf_and_subtree(paths):
    with pytest.raises(trees.TreeError, match="leaf and a subtree at once"):
        trees.unflatten(dict.fromkeys(paths, 1))


def test_the_first_rule_that_matches_the_whole_path_wins():
    rules = [("a/.*", 1), (".*kernel", 2), (".*", 3)]
    got = trees.match(rules, TREE, where="optim.rules")
    assert got == {"a": {"kernel": 1, "bias": 1}, "b": {"scale": 3}}


def test_a_pattern_that_matches_nothing_is_an_error():
    rules = [("a/kernal", 1), ("kernel", 1), (".*", 0)]
    with pytest.raises(
        trees.TreeError, match=r"optim\.rules: matches no parameter: 'a/kernal', 'kernel'; paths"
    ):
        trees.match(rules, TREE, where="optim.rules")


def test_a_path_without_a_rule_is_an_error_or_takes_the_default():
    with pytest.raises(trees.TreeError, match="freeze: no rule matches a/bias, b/scale"):
        trees.match([(".*kernel", 1)], TREE, where="freeze")
    got = trees.match([(".*kernel", 1)], TREE, where="freeze", default=None)
    assert got["b"]["scale"] is None


def test_a_broken_pattern_names_the_key():
    with pytest.raises(trees.TreeError, match=r"freeze: '\(' is no regular expression"):
        trees.match([("(", 1)], TREE, where="freeze")


def test_check_same_lists_everything_at_once():
    got = {"a": {"kernel": np.zeros((3, 2))}, "c": np.zeros(1), "d": np.zeros(1)}
    with pytest.raises(trees.TreeError) as caught:
        trees.check_same(got, TREE, what="the checkpoint")
    assert str(caught.value) == (
        "the checkpoint does not fit: missing (2): a/bias, b/scale; extra (2): c, d; "
        "wrong shape (1): a/kernel has shape [3, 2], expected [2, 3]"
    )
    trees.check_same(TREE, TREE)
