"""Which key of a ``map_location`` decides for a name."""

from __future__ import annotations

import random

from veturboio.placement import Rules


def naive(keys: list[str], name: str) -> str | None:
    fitting = [key for key in keys if not key or name == key or name.startswith(f"{key}.")]
    return max(fitting, key=len, default=None)


def test_rules_are_those_of_a_naive_search() -> None:
    chance = random.Random(7)

    def name() -> str:
        return ".".join(chance.choice(["", "a", "b", "layer"]) for _ in range(chance.randint(1, 4)))

    for _ in range(2000):
        keys = list({name() for _ in range(chance.randint(0, 5))})
        wanted = name()
        assert Rules(keys).deciding(wanted) == naive(keys, wanted), (keys, wanted)


def test_a_name_of_a_million_dots_takes_one_pass() -> None:
    rules = Rules(["layer", "." * 1000])
    assert rules.deciding("layer" + "." * 1_000_000) == "layer"
    assert rules.deciding("." * 1_000_000) == "." * 1000
