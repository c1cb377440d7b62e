"""Tensors that do not lie in their storage, or have sizes no tensor can have."""

from __future__ import annotations

from collections.abc import Iterator

from . import program as p
from .builder import Case, zipped

PAST, BELOW, OVERFLOWS = "reaches past its storage of 16 bytes", "counts below zero", "overflows"
BIG = 2**62


def cases() -> Iterator[Case]:
    for name, (offset, shape, strides) in {
        "one-too-many": (0, [5], [1]),
        "offset-at-the-end": (4, [1], [1]),
        "offset-one-too-far": (1, [4], [1]),
        "offset-of-2-to-63": (2**63 - 1, [1], [1]),
        "stride-one-too-far": (0, [2, 2], [3, 1]),
        "stride-of-a-single-step": (0, [2], [2**62]),
        "scalar-behind-the-end": (4, [], []),
        "both-reach": (1, [2, 2], [2, 1]),
    }.items():
        yield _case(f"past-{name}", PAST, offset, shape, strides)
    for name, (offset, shape, strides) in {
        "offset": (-1, [1], [1]),
        "offset-of-2-to-63": (-(2**63), [1], [1]),
        "size": (0, [-1], [1]),
        "two-sizes": (0, [-2, -2], [1, 1]),
        "stride": (3, [4], [-1]),
        "stride-of-one-element": (0, [1], [-1]),
        "stride-without-elements": (0, [0], [-1]),
        "offset-without-elements": (-1, [0], [1]),
    }.items():
        # torch takes a stride along which it never steps.
        torch = not name.startswith("stride-")
        yield _case(f"below-{name}", BELOW, offset, shape, strides, torch)
    for name, (offset, shape, strides) in {
        "sizes": (0, [BIG, 4], [0, 0]),
        "sizes-without-strides": (0, [2**32, 2**32], [0, 0]),
        "many-sizes": (0, [2] * 64, [0] * 64),
        "stride-times-size": (0, [5, 1], [BIG, 1]),
        "sum-of-steps": (0, [2, 2, 2], [BIG, BIG, 1]),
        "offset-and-step": (2**63 - 1, [2], [1]),
    }.items():
        yield _case(f"overflow-{name}", OVERFLOWS, offset, shape, strides)
    yield _case("more-strides", "has not one stride a dimension", 0, [4], [1, 1])
    yield _case("fewer-strides", "has not one stride a dimension", 0, [2, 2], [1])
    yield from _wrong_types()


def _wrong_types() -> Iterator[Case]:
    no_tuple = "what is no tuple where it takes one"
    no_integer = "what is no integer where it takes one"
    one, stored = p.numbers(1), p.storage()
    wide = p.items(p.integer(2**63))
    for name, reason, value in (
        ("shape-a-number", no_tuple, p.tensor(stored, shape=p.integer(4))),
        ("shape-of-strings", no_integer, p.tensor(stored, shape=p.items(p.text("4")))),
        ("shape-of-2-to-63", no_integer, p.tensor(stored, shape=wide)),
        ("strides-of-2-to-63", no_integer, p.tensor(stored, p.integer(0), one, wide)),
        ("offset-of-2-to-63", no_integer, p.tensor(stored, p.integer(2**63))),
        ("offset-a-string", no_integer, p.tensor(stored, p.text("0"))),
        ("requires-grad-a-string", "no bool", p.tensor(stored, requires_grad=p.text("yes"))),
    ):
        yield Case(name, zipped(p.mapping(a=value)), reason, unknown=True)

    whole = p.storage("IntStorage")
    gradient = p.tensor(whole, requires_grad=p.TRUE)
    yield Case("gradient-of-integers", zipped(p.mapping(a=gradient)), "int32 has no gradient")
    few = p.call(p.name("torch._utils", "_rebuild_tensor_v2"), stored)
    yield Case("without-arguments", zipped(p.mapping(a=few)), "", unknown=True)
    number = p.call(p.integer(1), stored)
    yield Case("called-by-a-number", zipped(p.mapping(a=number)), "a call of what is no imported")
    parameter = p.call(
        p.name("torch._utils", "_rebuild_parameter"), p.integer(1), p.TRUE, p.ordered()
    )
    yield Case("parameter-of-a-number", zipped(p.mapping(a=parameter)), "", unknown=True)
    untyped = p.storage("FloatStorage", elements=16).replace(
        b"ctorch\nFloat", b"ctorch.storage\nUntyped"
    )
    for name, dtype, reason in (
        ("text", p.text("float32"), "dtype that is no dtype"),
        ("layout", p.name("torch", "FloatStorage"), "torch.FloatStorage as a dtype"),
    ):
        plain = (p.integer(0), p.numbers(4), p.numbers(1), p.FALSE, dtype)
        value = p.tensor(untyped, *plain, rebuild="_rebuild_tensor_v3")
        yield Case(f"dtype-{name}", zipped(p.mapping(a=value)), reason, unknown=True)


def _case(
    name: str, reason: str, offset: int, shape: list[int], strides: list[int], torch: bool = True
) -> Case:
    place = (p.integer(offset), p.numbers(*shape), p.numbers(*strides))
    return Case(name, zipped(p.mapping(a=p.tensor(p.storage(), *place))), reason, torch)
