"""Values that torch.load(weights_only=True) takes and the core does not know, beside weights."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import uuid
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch._dynamo
from probe import bits

W = torch.arange(24.0).view(6, 4)
C = torch.tensor([[1 + 2j, 3 - 1j], [0, -1j]])


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Config:
    rate: float
    weight: torch.Tensor | None = None


class Point(NamedTuple):
    x: Any
    y: Any


class Tagged(torch.Tensor):
    """A subclass without anything of its own."""


def tagged() -> torch.Tensor:
    return torch.arange(3.0).as_subclass(Tagged)


def attributed() -> torch.Tensor:
    tensor = torch.arange(4.0)
    tensor.note = "kept"  # type: ignore[attr-defined]
    tensor.other = torch.ones(2)  # type: ignore[attr-defined]
    return tensor


def parameter_with_state() -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.arange(4.0))
    parameter.note = "kept"  # type: ignore[attr-defined]
    return parameter


def quantized(dtype: torch.dtype) -> torch.Tensor:
    return torch.quantize_per_tensor(W, 0.5, 1, dtype)


def per_channel(axis: int) -> torch.Tensor:
    count = W.size(axis)
    return torch.quantize_per_channel(
        W, torch.rand(count) + 0.1, torch.zeros(count), axis, torch.qint8
    )


def jagged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.requires_grad_()


SPARSE = torch.eye(4) * torch.arange(4.0)

#: A factory for each kind, and the classes that have to be allowed for it.
KINDS: dict[str, tuple[Callable[[], Any], list[Any]]] = {
    "Counter": (lambda: collections.Counter("aab"), []),
    "empty Counter": (collections.Counter, []),
    "Counter in a list": (lambda: [1, [collections.Counter({"a": 2, 3: 4})]], []),
    "Counter of tensors": (lambda: collections.Counter({"a": torch.ones(2)}), []),  # type: ignore
    "conjugated": (lambda: C.conj(), []),
    "conjugated double": (lambda: C.to(torch.complex128).conj(), []),
    "conjugated view": (lambda: C[1:].t().conj(), []),
    "conjugated with gradient": (lambda: with_gradient(C.clone()).conj().detach(), []),
    "negated": (lambda: C.conj().imag, []),
    "negated double": (lambda: C.to(torch.complex128).conj().imag, []),
    "negated row": (lambda: C.conj().imag[1], []),
    "conjugated parameter": (lambda: torch.nn.Parameter(C.conj()), []),
    "quint8": (lambda: quantized(torch.quint8), []),
    "qint8": (lambda: quantized(torch.qint8), []),
    "qint32": (lambda: quantized(torch.qint32), []),
    "quantized view": (lambda: quantized(torch.quint8)[1:3], []),
    "quantized transposed": (lambda: quantized(torch.quint8).t(), []),
    "quantized per row": (lambda: per_channel(0), []),
    "quantized per column": (lambda: per_channel(1), []),
    "sparse": (lambda: SPARSE.to_sparse(), []),
    "sparse uncoalesced": (
        lambda: torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 2)),
        [],
    ),
    "sparse hybrid": (lambda: torch.ones(3, 2).to_sparse(1), []),
    "sparse integers": (lambda: SPARSE.long().to_sparse(), []),
    "sparse nothing": (lambda: torch.zeros(3, 3).to_sparse(), []),
    "sparse with gradient": (lambda: with_gradient(SPARSE.to_sparse()), []),
    "csr": (lambda: SPARSE.to_sparse_csr(), []),
    "csc": (lambda: SPARSE.to_sparse_csc(), []),
    "bsr": (lambda: SPARSE.to_sparse_bsr((2, 2)), []),
    "bsc": (lambda: SPARSE.to_sparse_bsc((2, 2)), []),
    "nested": (nested, []),
    "jagged": (jagged, []),
    "bits8": (lambda: torch.arange(4, dtype=torch.uint8).view(torch.bits8), []),
    "bits16": (lambda: torch.arange(4, dtype=torch.int16).view(torch.bits16), []),
    "attributes": (attributed, []),
    "parameter with state": (parameter_with_state, []),
    "subclass": (tagged, [Tagged]),
    "buffer": (lambda: torch.nn.Buffer(torch.arange(3.0)), [torch.nn.Buffer]),
    "meta": (lambda: torch.empty(3, device="meta"), []),
    "storage": (lambda: torch.arange(3.0).untyped_storage(), []),
    "layouts": (lambda: [torch.strided, torch.sparse_coo], []),
    "schemes": (lambda: [torch.per_tensor_affine, torch.per_channel_symmetric], []),
    "narrow dtypes": (lambda: [torch.uint4, torch.uint2, torch.int4], []),
    "bits dtypes": (lambda: [torch.bits8, torch.quint8], []),
    "tensor class": (lambda: [torch.Tensor], []),
    "Parameter class": (lambda: [torch.nn.Parameter], []),
    "Namespace": (lambda: argparse.Namespace(lr=1), [argparse.Namespace]),
    "Namespace of tensors": (
        lambda: argparse.Namespace(t=torch.ones(2), deep=[torch.ones(3)]),
        [argparse.Namespace],
    ),
    "path": (lambda: pathlib.PurePosixPath("/a/b"), [pathlib.PurePosixPath]),
    "date": (lambda: datetime.date(2020, 1, 2), [datetime.date]),
    "datetime": (lambda: datetime.datetime(2020, 1, 2, 3), [datetime.datetime]),
    "timedelta": (lambda: datetime.timedelta(3), [datetime.timedelta]),
    "decimal": (lambda: decimal.Decimal("1.5"), [decimal.Decimal]),
    "fraction": (lambda: fractions.Fraction(1, 3), [fractions.Fraction]),
    "uuid": (lambda: uuid.UUID(int=5), [uuid.UUID, uuid.SafeUUID]),
    "named tuple": (lambda: Point(1, torch.ones(2)), [Point]),
    "named tuple of tuples": (lambda: Point(1, (2, torch.ones(3))), [Point]),
    "enum": (lambda: Colour.RED, [Colour]),
    "dataclass": (lambda: Config(0.5, torch.ones(2)), [Config]),
    "range": (lambda: range(3), [range]),
    "slice": (lambda: slice(1, 2), [slice]),
    "class": (lambda: Config, [Config]),
    "several": (
        lambda: {"a": collections.Counter("a"), "q": quantized(torch.qint8), "c": [C.conj()]},
        [],
    ),
}


def allowed(kind: str) -> AbstractContextManager[None]:
    """Allow the classes of a kind."""
    return torch.serialization.safe_globals(KINDS[kind][1])  # type: ignore[no-any-return]


def value_of(kind: str) -> dict[str, Any]:
    """A checkpoint with a weight, one that shares its storage, nested ones, and the value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "w": W.clone(),
            "x": KINDS[kind][0](),
            "model": {"p": torch.nn.Parameter(torch.ones(3)), "n": torch.arange(5)},
            "list": [torch.full((2, 2), 0.5), (torch.ones(1, dtype=torch.float64),)],
        }


def assert_equal(ours: Any, theirs: Any, where: str = "") -> None:
    """Assert that two values have the same types and contents; tensors of any kind too."""
    assert type(ours) is type(theirs), (where, type(ours), type(theirs))
    if isinstance(ours, torch.Tensor):
        _assert_tensors(ours, theirs, where)
    elif isinstance(ours, Mapping):
        assert list(ours) == list(theirs), where
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for at, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{where}[{at}]")
    elif isinstance(ours, (torch.UntypedStorage, torch.TypedStorage)):
        assert ours.tolist() == theirs.tolist(), where
    elif isinstance(ours, (Config, argparse.Namespace)):
        assert_equal(vars(ours), vars(theirs), where)
    else:
        assert ours == theirs, where


def _assert_tensors(ours: torch.Tensor, theirs: torch.Tensor, where: str) -> None:
    for what in ("dtype", "layout", "device", "requires_grad", "is_quantized", "is_nested"):
        assert getattr(ours, what) == getattr(theirs, what), (where, what)
    if ours.is_nested:
        assert_equal(ours.unbind(), theirs.unbind(), where)
        return
    assert_equal(dict(vars(ours)), dict(vars(theirs)), f"{where}.__dict__")
    if ours.layout is not torch.strided or ours.is_quantized or ours.is_meta:
        assert repr(ours) == repr(theirs), where
        return
    assert ours.shape == theirs.shape, where
    assert (ours.is_conj(), ours.is_neg()) == (theirs.is_conj(), theirs.is_neg()), where
    if str(ours.dtype).startswith("torch.bits"):
        assert ours.untyped_storage().tolist() == theirs.untyped_storage().tolist(), where
    else:
        assert bits(ours.resolve_conj().resolve_neg()) == bits(
            theirs.resolve_conj().resolve_neg()
        ), where
