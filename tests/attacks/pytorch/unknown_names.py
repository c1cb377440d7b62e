"""Sound archives whose pickle imports what is no part of a checkpoint: refused by its name.

Some would do harm if they were run: they create the file that ``MARKER`` names, in the working
directory. ``torch.load(weights_only=True)`` is asked about these; what it takes is none of ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import program as p
from .builder import Case, legacy, zipped

#: The file that these pickles would create if any of them were run.
MARKER = "executed.txt"

TOUCH = f"open({MARKER!r}, 'w').close()"

#: Names that run something, with arguments that would make the marker.
HARMFUL = {
    ("os", "system"): [p.text(f"touch {MARKER}")],
    ("posix", "system"): [p.text(f"touch {MARKER}")],
    ("os", "popen"): [p.text(f"touch {MARKER}")],
    ("subprocess", "check_output"): [p.listed(p.text("touch"), p.text(MARKER))],
    ("builtins", "eval"): [p.text(TOUCH)],
    ("__builtin__", "eval"): [p.text(TOUCH)],
    ("builtins", "exec"): [p.text(TOUCH)],
    ("builtins", "open"): [p.text(MARKER), p.text("w")],
    ("io", "open"): [p.text(MARKER), p.text("w")],
    ("torch", "save"): [p.NONE, p.text(MARKER)],
    ("torch.hub", "load"): [p.text("."), p.text(MARKER)],
    ("numpy", "savetxt"): [p.text(MARKER), p.EMPTY_LIST],
    ("timeit", "timeit"): [p.text(TOUCH)],
    ("runpy", "run_path"): [p.text(MARKER)],
    ("torch._utils", "_rebuild_tensor_v2.__globals__"): [],
    ("torch._utils", "_rebuild_tensor_v99"): [],
    ("builtins", "getattr"): [p.name("torch", "Size"), p.text("__class__")],
    ("numpy.core.multiarray", "_reconstruct"): [],
    ("nobody", "Nothing"): [],
    ("collections.OrderedDict", "fromkeys"): [],
    ("torch", "float33"): [],
    ("", ""): [],
    ("__torch__evil", "Class"): [],
}


def cases() -> Iterator[Case]:
    for (module, attribute), arguments in HARMFUL.items():
        dotted = f"{module}.{attribute}"
        called = p.call(p.name(module, attribute), *arguments)
        yield _case(f"{dotted}-called", dotted, p.mapping(a=p.tensor(p.storage()), b=called))
    system = p.name("os", "system")
    touch = p.items(p.text(f"touch {MARKER}"))
    called = system + touch + p.REDUCE
    stacked = p.text("os") + p.text("system") + b"\x93"
    for name, value in {
        "thrown-away": called + p.POP + p.mapping(a=p.tensor(p.storage())),
        "never-called": system + p.POP + p.mapping(a=p.tensor(p.storage())),
        "as-a-key": p.EMPTY_DICT + called + p.NONE + p.SETITEM,
        "as-new-object": system + touch + p.NEWOBJ,
        "in-the-memo": system + p.put(7) + p.POP + p.get(7) + touch + p.REDUCE,
        "from-the-stack": stacked + touch + p.REDUCE,
        "as-hooks": _with_hooks(called),
        "as-shape": p.tensor(p.storage(), shape=called),
        "as-storage": p.tensor(called),
        "as-key-of-storage": p.tensor(p.items(p.text("storage"), called) + p.BINPERSID),
        "as-persistent": called + p.BINPERSID,
        "as-state": p.ordered() + called + p.BUILD,
        "by-what-was-called": called + touch + p.REDUCE,
        "in-an-argument": p.call(p.name("torch", "Size"), called),
    }.items():
        yield _case(f"os.system-{name}", "os.system", value)
    legacy_value = p.mapping(a=called)
    for part in ("value", "facts", "keys", "version"):
        data = legacy(**{part: legacy_value if part == "value" else called})
        # Only in the value may a well-formed file of the old format name anything at all.
        reason = "os.system" if part == "value" else ""
        yield Case(f"os.system-in-legacy-{part}", data, reason, unknown=part == "value")
    after = legacy(stored=p.program(called))
    yield Case("os.system-behind-the-legacy-pickles", after, "")


def _with_hooks(hooks: bytes) -> bytes:
    stored = [p.storage(), p.integer(0), p.numbers(4), p.numbers(1), p.FALSE, hooks]
    return p.call(p.name("torch._utils", "_rebuild_tensor_v2"), *stored)


def _case(name: str, reason: str, value: bytes) -> Case:
    return Case(name.strip("."), zipped(value), reason, unknown=True)
