"""What convert takes for the state_dict, and that none of its advice loses a weight."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from probe import DTYPES, assert_same, header_of
from test_convert import convert, refused

import veturboio
import veturboio.convert as veturboio_convert
from veturboio import _result

SCALAR = torch.tensor(0.9)
VECTOR = torch.rand(100)
NET = OrderedDict(torch.nn.Linear(3, 2).state_dict())
OTHER = OrderedDict(torch.nn.Linear(3, 2).state_dict())
NORM = OrderedDict(torch.nn.BatchNorm1d(3).state_dict())
OPTIMIZER = {
    "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.rand(9, 9)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}

#: Checkpoints in which the state_dict cannot be mistaken, and the keys that lead to it.
TAKEN = {
    "beside a lone scalar": ("net", {"net": NET, "acc": SCALAR, "epoch": 3}),
    "beside a tensor of one element": ("net", {"acc": torch.tensor([0.9]), "net": NET}),
    "with scalars of its own": ("net", {"net": NORM, "acc": SCALAR}),
    "beside metrics": ("net", {"metrics": {"acc": SCALAR, "loss": SCALAR + 1}, "net": NET}),
    "beside a confusion matrix": ("net", {"metrics": {"cm": torch.rand(9, 9)}, "net": NET}),
    "deeper than metrics": ("run.net", {"best": {"acc": SCALAR}, "run": {"net": NET}}),
    "deeper than a scalar": ("a.b", {"a": {"b": NET, "acc": SCALAR}, "loss": SCALAR}),
    "in a list": ("models.0", {"models": [NET], "acc": SCALAR}),
    "beside an optimizer": ("net", {"optimizer": OPTIMIZER, "net": NET, "acc": SCALAR}),
    "beside random states": (
        "net",
        {"net": NET, "rng_state": torch.get_rng_state(), "cuda_rng_states": [VECTOR.byte()]},
    ),
    "of Lightning": (
        "state_dict",
        {
            "epoch": 1,
            "state_dict": NET,
            "optimizer_states": [OPTIMIZER],
            "loops": {"fit": {"best": SCALAR}},
            "callbacks": {"EarlyStopping{'monitor': 'loss'}": {"best_score": SCALAR}},
            "hyper_parameters": {"class_weights": VECTOR},
        },
    ),
    "of DataParallel": (
        "state_dict",
        {"state_dict": {f"module.{name}": value for name, value in NET.items()}, "best": SCALAR},
    ),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def at(checkpoint: object, key: str) -> dict:
    for step in key.split(".") if key else ():
        is_name = isinstance(checkpoint, dict) and step in checkpoint
        checkpoint = checkpoint[step if is_name else int(step)]
    return checkpoint


def leaves(value: object, keys: tuple = ()) -> Iterator[tuple[tuple, object]]:
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(child, (*keys, key))
    else:
        yield keys, value


@pytest.mark.parametrize("options", [[], ["--enable-to-valid-state-dict"]])
@pytest.mark.parametrize(("key", "checkpoint"), TAKEN.values(), ids=TAKEN)
def test_the_weights_are_taken(
    source: Path, target: Path, key: str, checkpoint: dict, options: list[str]
) -> None:
    torch.save(checkpoint, source)
    dry = convert("-i", source, *options, "--dry-run").stdout
    assert not target.exists()
    said = convert("-i", source, *options, "--validate-result").stdout
    assert f"converting '{key}' of {source}\n" in said
    assert dry.splitlines()[:-1] == said.splitlines()[:-1]
    assert_same(veturboio.load(target), at(checkpoint, key))
    beside = [name for name in checkpoint if name != key.split(".")[0]]
    assert all(f"{name!r} (" in said for name in beside)


def test_what_is_left_out_is_counted(source: Path) -> None:
    torch.save({"net": NET, "ema": {"a": {"x": VECTOR}, "b": [SCALAR]}, "n": {"x": 1}}, source)
    said = convert("-i", source, "--key", "net").stdout
    assert "'ema' (dict) with 2 tensors, 'n' (dict)\n" in said


#: Checkpoints that more than one answer is right for, or none.
ASKED = {
    "two": {"net": NET, "ema": OTHER},
    "beside a history": {"net": NET, "losses": VECTOR, "acc": SCALAR},
    "beside histories": {"net": NET, "losses": VECTOR, "accs": VECTOR + 1, "times": VECTOR + 2},
    "one weight beside a history": {"net": {"w": VECTOR[:4].clone()}, "losses": VECTOR},
    "deeper than a matrix": {"eval": {"cm": VECTOR}, "run": {"net": NET}},
    "several in a list": {"models": [NET, OTHER], "acc": SCALAR},
    "a list of state_dicts": [NET, OTHER],
    "tensors in a list": {"acc": SCALAR, "params": [VECTOR, VECTOR + 1]},
    "a list of tensors": [VECTOR, VECTOR + 1],
    "parts": {"encoder": NET, "decoder": OTHER},
    "parts and a scalar": {"encoder": NET, "decoder": OTHER, "acc": SCALAR, "epoch": 3},
    "a part beside tensors": {"weight": VECTOR, "epoch": 3, "block": NET},
    "as much inside": {**NET, "epoch": 3, "inner": OTHER},
    "more in a list": {**NET, "moments": [VECTOR, VECTOR + 1, VECTOR + 2]},
    "a tuple among its values": {**NET, "packed": (VECTOR, None)},
    "scalars": {"net": {"scale": SCALAR}, "acc": SCALAR + 1},
    "scalars and an optimizer": {"acc": SCALAR, "optimizer": OPTIMIZER},
    "an optimizer": OPTIMIZER,
    "integers as names": {"net": {0: VECTOR, 1: VECTOR + 1}, "acc": SCALAR},
    "scalars that are no tensors": {**NET, "epoch": 3, "lr": 0.1},
    "no weights": {"epoch": 3, "names": ["a"]},
}


def advised(reason: str) -> list[list[str]]:
    """The options that a refusal speaks of."""
    options = [[option] for option in ("--enable-to-valid-state-dict", "--flatten")]
    options = [option for option in options if option[0] in reason]
    if "--key" in reason:
        options += [["--key", key] for key in re.findall(r"'([^']*)' \(\d+ tensor", reason)]
    return options


@pytest.mark.parametrize("checkpoint", ASKED.values(), ids=ASKED)
def test_no_advice_loses_weights(source: Path, target: Path, checkpoint: object) -> None:
    """Each way that the messages show ends with all that was asked for, or with exit code 1."""
    torch.save(checkpoint, source)
    large = [
        (keys, value)
        for keys, value in leaves(checkpoint)
        if isinstance(value, torch.Tensor) and value.numel() > 1
    ]
    ways = [[]]
    while ways:
        options = ways.pop()
        target.unlink(missing_ok=True)
        done = convert("-i", source, *options, check=False)
        dry = convert("-i", source, "-o", target.parent / "x", *options, "--dry-run", check=False)
        assert dry.returncode == done.returncode
        if done.returncode:
            assert done.stderr.count("\n") == 1
            assert "Traceback" not in done.stderr
            assert not target.exists()
            ways += [
                options + more for more in advised(done.stderr) if not set(more) <= set(options)
            ]
            continue
        assert options != ["--enable-to-valid-state-dict"] or large
        held = veturboio.load(target)
        if "--key" in options:
            key = options[options.index("--key") + 1]
            inside = {
                name: value
                for name, value in leaves(at(checkpoint, key))
                if isinstance(value, torch.Tensor)
            }
            if "--flatten" not in options:
                inside = {keys: value for keys, value in inside.items() if len(keys) == 1}
            expected = [value for value in inside.values() if value.numel() > 1]
            assert expected or not large
        else:
            expected = [value for _, value in large]
        values = [*held.values()]
        assert all(any(same(value, other) for other in values) for value in expected)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


@pytest.mark.parametrize("key", ["", "metrics", "run"])
@pytest.mark.parametrize("options", [[], ["--enable-to-valid-state-dict"]])
def test_a_result_without_weights_is_a_failure(
    source: Path, target: Path, key: str, options: list[str]
) -> None:
    checkpoint = {"run": {"net": NET, "note": "x"}, "acc": SCALAR, "metrics": {"loss": SCALAR}}
    torch.save(checkpoint, source)
    reason = refused("-i", source, "--key", key, *options)
    assert f"at {key!r}" in reason
    assert "'run.net' (2 tensors)" in reason
    assert not target.exists()


def test_the_outermost_dict_by_the_empty_key(source: Path, target: Path) -> None:
    torch.save({"a": VECTOR, "net": NET, "epoch": 3}, source)
    assert "'' (1 tensor)" in refused("-i", source)
    reason = refused("-i", source, "--key", "")
    assert "'net' (OrderedDict) with 2 tensors" in reason
    assert "--flatten" in reason
    assert "--enable" not in reason
    said = convert("-i", source, "--key", "", "--enable-to-valid-state-dict").stdout
    assert "'net' (OrderedDict) with 2 tensors, 'epoch' (int)" in said
    assert_same(veturboio.load(target), {"a": VECTOR})


def test_flattened(source: Path, target: Path) -> None:
    tied = NET["weight"]
    checkpoint = {"net": NET, "more": [{"w": tied}, (VECTOR, {1: SCALAR})], "same": NET}
    torch.save({**checkpoint, "note": "x", "empty": {"a": []}}, source)
    reason = refused("-i", source, "--flatten")
    assert "'note' (str)" in reason
    assert "'empty' (dict)" in reason
    options = ["--flatten", "--enable-to-valid-state-dict", "--validate-result"]
    convert("-i", source, *options)
    expected = {
        **{f"net.{name}": value for name, value in NET.items()},
        "more.0.w": tied,
        "more.1.0": VECTOR,
        "more.1.1.1": SCALAR,
    }
    assert_same(veturboio.load(target), expected)
    convert("-i", source, "--flatten", "--key", "more.1", "--overwrite")
    assert_same(veturboio.load(target), {"0": VECTOR, "1.1": SCALAR})


def test_keys_that_are_joined_to_one_name(source: Path, target: Path) -> None:
    torch.save({"a.b": VECTOR, "a": {"b": VECTOR + 1}}, source)
    assert "'a.b'" in refused("-i", source, "--flatten")
    torch.save({"a": {1: VECTOR, "1": VECTOR + 1}}, source)
    assert "'a.1'" in refused("-i", source, "--flatten")
    assert not target.exists()


def test_circles_are_flattened_once(source: Path, target: Path) -> None:
    circle: dict = {"w": VECTOR}
    circle["list"] = [circle, {"v": VECTOR + 1, "up": circle}]
    torch.save(circle, source)
    convert("-i", source, "--flatten", "--enable-to-valid-state-dict")
    assert_same(veturboio.load(target), {"w": VECTOR, "list.1.v": VECTOR + 1})


def test_the_result_says_its_format(source: Path, target: Path) -> None:
    torch.save(NET, source)
    convert("-i", source)
    assert header_of(target)["__metadata__"] == {"format": "pt"}


def test_dry_run_knows_the_dtypes_of_the_format() -> None:
    assert set(DTYPES.values()) == _result.DTYPES


UNSAVABLE = {
    "sparse": torch.eye(3).to_sparse(),
    "complex128": torch.ones(2, dtype=torch.complex128),
    "quantized": torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNSAVABLE)
def test_a_dry_run_fails_where_the_conversion_would(source: Path, kind: str) -> None:
    torch.save({"w": torch.ones(2), "the culprit": UNSAVABLE[kind]}, source)
    for options in ([], ["--dry-run"]):
        done = convert("-i", source, *options, check=False)
        assert done.returncode == 1
        assert "culprit" in done.stderr or "refuses" in done.stderr, done.stderr


def test_a_dry_run_looks_for_the_directory(source: Path, tmp_path: Path) -> None:
    torch.save(NET, source)
    for option in ([], ["--dry-run"]):
        assert "no" in refused("-i", source, "-o", tmp_path / "no" / "file", *option)
        (tmp_path / "plain").touch()
        refused("-i", source, "-o", tmp_path / "plain" / "file", *option)
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o555)
        for option in ([], ["--dry-run"]):
            refused("-i", source, "-o", tmp_path / "locked" / "file", *option)


def test_a_result_that_differs_does_not_stay(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    torch.save(NET, source)
    monkeypatch.setattr(_result, "_identical", lambda one, other: False)
    assert veturboio_convert.main(["-i", str(source), "--validate-result"]) == 1
    assert "it has been removed" in capsys.readouterr().err
    assert not target.exists()


def test_running_out_of_memory_is_a_reason(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    torch.save(NET, source)
    monkeypatch.setattr(veturboio_convert, "load", fail)
    assert veturboio_convert.main(["-i", str(source)]) == 1
    assert capsys.readouterr().err == f"convert {source}: MemoryError\n"


def test_tensors_whose_names_are_no_strings(source: Path, target: Path) -> None:
    torch.save({0: VECTOR, 1: NET["bias"]}, source)
    assert "0, 1; --flatten keeps all tensors" in refused("-i", source)
    convert("-i", source, "-o", target, "--flatten")
    assert_same(veturboio.load(target), {"0": VECTOR, "1": NET["bias"]})
