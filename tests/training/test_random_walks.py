"""PPO learns a sequence task with a known optimum: shortest paths, from demonstrations that wander."""

from itertools import pairwise
from pathlib import Path

import pytest

from bench import walks


def test_optimality_is_one_on_the_shortest_path_and_zero_where_a_walk_fails():
    world = walks.Graph({"a": [], "b": ["a", "c"], "c": ["b", "d"], "d": ["a"]}, {"a": 1, "b": 2, "c": 3, "d": 2})
    assert world.score(["b", "c", "c"], ["a", "da", "ba"]) == [1.0, 1.0, 1.0]
    assert world.score(["b"], ["cba"]) == [(10 - 4) / (10 - 2)]
    assert world.score(["b", "b", "b", "b"], ["d", "c", "", "aba"]) == [0.0] * 4  # no edge, no arrival, nothing, on
    assert world.optimality("bcbcbcbcba") == 0.0


@pytest.mark.parametrize("seed", [1, 2])
def test_every_node_of_a_graph_reaches_the_goal_and_walks_follow_edges(seed):
    world = walks.graph(seed)
    assert len(world.shortest) == 21
    assert min(map(len, world.edges.values())) >= 2
    found = world.walks(200, seed)
    assert all(b in world.edges[a] for walk in found for a, b in pairwise(walk))
    assert max(map(len, found)) <= 10
    assert {1.0} < {world.optimality(walk) for walk in found}  # some are as short as can be, not all


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_ppo_finds_near_shortest_paths(seed, tmp_path: Path):
    shares = walks.train(tmp_path, seed)
    assert shares["SFT"] < 0.6
    assert shares["PPO"] >= 0.9, shares
