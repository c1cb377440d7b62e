"""Check 5: nesting deep enough to overflow the stack of a recursive parser."""

from collections.abc import Iterator

from .builder import Case, file

DEPTH = 200_000


def cases() -> Iterator[Case]:
    lists, objects = "[" * DEPTH + "]" * DEPTH, '{"a":' * DEPTH + "1" + "}" * DEPTH
    for name, bomb in {"lists": lists, "objects": objects, "open-lists": "[" * DEPTH}.items():
        yield _case(f"{name}-as-header", bomb, "a" if name == "objects" else None)
        yield _case(f"{name}-as-entry", f'{{"a":{bomb}}}', "a")
        yield _case(f"{name}-as-metadata", f'{{"__metadata__":{bomb}}}')
        field = f'{{"a":{{"dtype":"U8","shape":[0],"data_offsets":[0,0],"extra":{bomb}}}}}'
        yield _case(f"{name}-in-an-unknown-field", field, "a")
    entry = f'{{"a":{{"dtype":"U8","shape":{lists},"data_offsets":[0,0]}}}}'
    yield _case("lists-as-shape", entry, "a")


def _case(name: str, header: str, tensor_name: str | None = None) -> Case:
    return Case(name, file(header), "header is not valid: ", tensor_name)
