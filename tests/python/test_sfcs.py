"""SFCS by its client library: held against a stand-in, ``tests/sfcs``, over a folder."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import veturboio

ROOT = Path(__file__).resolve().parents[2]

VARIABLES = {
    "SFCS_FSNAME": "fs",
    "SFCS_REGION": "cn-beijing",
    "SFCS_AUTHENTICATION_SERVICE_NAME": "cfs",
    "SFCS_NS_ID": "1",
    "SFCS_UFS_PATH": "bucket",
    "SFCS_MULTI_NIC_WHITELIST": "eth0",
    "SFCS_NETWORK_SEGMENT": "10.0.0.0/8",
    "SFCS_SECRET_KEY": "very-secret",
}

STATE = {"a": torch.arange(5_000_000), "b": torch.ones(3)}

#: Loads and compares, in a process of its own, since a process connects once.
BEGIN = "import os, torch, veturboio; a = {'a': torch.arange(5_000_000), 'b': torch.ones(3)}\n"
SAME = "assert all(torch.equal(a[k], veturboio.load(NAME)[k]) for k in a)\n"

Run = Callable[..., str]


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to build the stand-in")
    library = tmp_path_factory.mktemp("sfcs") / "libcloudfs.so"
    source = ROOT / "tests/sfcs/cloudfs.c"
    flags = ["-std=c17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", str(library), str(source)], check=True)
    return library


@pytest.fixture
def sfcs(standin: Path, tmp_path: Path, run_anew: Run) -> Callable[..., str]:
    """Runs code with the stand-in over ``tmp_path / "root"``."""
    (tmp_path / "root").mkdir()

    def run_code(code: str, **environment: str) -> str:
        given = {
            **VARIABLES,
            "LIBCFS_PATH": str(standin),
            "STANDIN_ROOT": str(tmp_path / "root"),
            "STANDIN_LOG": str(tmp_path / "log"),
            "LIBCLOUDFS_CONF": "",
            **environment,
        }
        return run_anew(BEGIN + code, **given)

    return run_code


def refused(code: str, kind: str = "Exception") -> str:
    return f"try:\n    {code}\nexcept {kind} as error:\n    print(type(error).__name__, error)\n"


def calls(tmp_path: Path) -> Counter[str]:
    return Counter((tmp_path / "log").read_text().split())


def test_a_file_is_read_by_many_handles_over_one_connection(
    tmp_path: Path, sfcs: Callable[..., str]
) -> None:
    veturboio.save_file(STATE, tmp_path / "root/model")
    told = sfcs(
        f"NAME = 'sfcs://model'\n{SAME}print(veturboio.explain(NAME))", STANDIN_SHORT="777777"
    )
    assert "read by range, 32 at a time, because each request to SFCS takes its time" in told
    made = calls(tmp_path)
    assert made["cfsBuilderConnect"] == 1
    assert made["cfsOpenFile"] == made["cfsCloseFile"] > 2
    assert made["cfsPread"] > 40_000_000 / 777_777


@pytest.mark.parametrize("environment", [{}, {"STANDIN_STRICT": "1"}, {"STANDIN_SHORT": "99999"}])
def test_a_save_is_whole_and_replaces_what_was_there(
    tmp_path: Path, sfcs: Callable[..., str], environment: dict[str, str]
) -> None:
    (tmp_path / "root/model").write_bytes(b"old")
    sfcs(f"NAME = 'sfcs:///model'\nveturboio.save_file(a, NAME)\n{SAME}", **environment)
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["model"]
    loaded = veturboio.load(tmp_path / "root/model")
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("name", ["sfcs:///model.pt", "/model.pt"])
def test_a_pytorch_file_is_saved(tmp_path: Path, sfcs: Callable[..., str], name: str) -> None:
    environment = {} if name.startswith("sfcs") else {"VETURBOIO_USE_SFCS_SDK": "1"}
    sfcs(f"NAME = {name!r}\nveturboio.save_pt(a, NAME)\n{SAME}", **environment)
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["model.pt"]
    loaded = torch.load(tmp_path / "root/model.pt")
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)


def test_what_only_torch_knows_comes_from_there(tmp_path: Path, sfcs: Callable[..., str]) -> None:
    """A file of this machine at the very path that SFCS has is another file."""
    path = tmp_path / "model.pt"
    there = tmp_path / "root" / path.relative_to("/")
    there.parent.mkdir(parents=True)
    torch.save({"where": torch.ones(2), "c": Counter("a")}, there)
    torch.save({"where": torch.zeros(2), "c": Counter("b")}, path)
    code = f"""
import warnings
warnings.simplefilter("ignore")
for name in ({str(path)!r}, {"sfcs://" + str(path)!r}):
    assert veturboio.load(name)["c"]["a"] == 1
    assert veturboio.load(name, names=["where"])["where"].tolist() == [1, 1]
"""
    sfcs(code, VETURBOIO_USE_SFCS_SDK="1")


@pytest.mark.parametrize(
    "function", ["cfsOpenFileAcc", "cfsWrite", "cfsHSync", "cfsCloseFile", "cfsRename"]
)
def test_a_save_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, sfcs: Callable[..., str], function: str
) -> None:
    (tmp_path / "root/model").write_bytes(b"old")
    told = sfcs(refused("veturboio.save_file(a, 'sfcs://model')"), STANDIN_FAIL=function)
    assert told.startswith("OSError [Errno 5] save sfcs://model: SFCS: ")
    assert "told to fail" in told and "very-secret" not in told
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["model"]
    assert (tmp_path / "root/model").read_bytes() == b"old"


def test_overwrite_false_refuses_what_is_there(tmp_path: Path, sfcs: Callable[..., str]) -> None:
    (tmp_path / "root/model").write_bytes(b"old")
    told = sfcs(refused("veturboio.save_file(a, 'sfcs://model', overwrite=False)"))
    assert told.startswith("FileExistsError")
    assert (tmp_path / "root/model").read_bytes() == b"old"


#: Somebody else's file comes while ours is written: its writes are short, and so are many.
@pytest.mark.parametrize("environment", [{}, {"STANDIN_STRICT": "1"}, {"STANDIN_LAX": "1"}])
def test_overwrite_false_refuses_what_comes_meanwhile(
    tmp_path: Path, sfcs: Callable[..., str], environment: dict[str, str]
) -> None:
    """Whether a rename replaces a file, or not, and whether the library knows O_EXCL, or not."""
    code = "veturboio.save_file(a, 'sfcs://model', overwrite=False)"
    told = sfcs(refused(code), STANDIN_COMES="model", **environment)
    assert told.startswith("FileExistsError [Errno 17] save sfcs://model: File exists")
    assert (tmp_path / "root/model").read_bytes() == b"theirs"
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["model"]


@pytest.mark.parametrize("environment", [{}, {"STANDIN_STRICT": "1"}, {"STANDIN_LAX": "1"}])
def test_overwrite_false_makes_a_new_file(
    tmp_path: Path, sfcs: Callable[..., str], environment: dict[str, str]
) -> None:
    code = "veturboio.save_file(a, NAME, overwrite=False)\n"
    told = sfcs(f"NAME = 'sfcs://model'\n{code}{SAME}" + refused(code.strip()), **environment)
    assert told.startswith("FileExistsError")
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["model"]


@pytest.mark.parametrize("environment", [{}, {"STANDIN_STRICT": "1"}])
def test_of_many_that_make_a_file_one_does(
    tmp_path: Path, sfcs: Callable[..., str], environment: dict[str, str]
) -> None:
    code = """
import threading
made = []
def work(number):
    try:
        veturboio.save_file({"n": torch.tensor([number])}, "sfcs://model", overwrite=False)
        made.append(number)
    except FileExistsError:
        pass
threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(made) == 1, made
assert int(veturboio.load("sfcs://model")["n"]) == made[0]
"""
    sfcs(code, **environment)
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["model"]


@pytest.mark.parametrize("function", ["cfsOpenFileAcc", "cfsRename", "cfsCloseFile"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_new_file_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, sfcs: Callable[..., str], function: str, after: int
) -> None:
    told = sfcs(
        refused("veturboio.save_file(a, 'sfcs://model', overwrite=False)"),
        STANDIN_FAIL=function,
        STANDIN_AFTER=str(after),
    )
    assert not told or "OSError [Errno 5] save sfcs://model: SFCS: " in told
    left = [path.name for path in (tmp_path / "root").iterdir()]
    assert left in ([], ["model"])
    if left:
        loaded = veturboio.load(tmp_path / "root/model")
        assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)


def test_the_last_save_called_remains(tmp_path: Path, sfcs: Callable[..., str]) -> None:
    code = """
for later in ("sfcs://model", "sfcs:///model", "sfcs://x/../model", "/model"):
    first = veturboio.save_file(a, "sfcs://model", wait=False)
    veturboio.save_file({"step": torch.tensor([2])}, later)
    first.result()
    assert list(veturboio.load("sfcs://model")) == ["step"], later
"""
    (tmp_path / "root/x").mkdir(parents=True, exist_ok=True)
    sfcs(code, VETURBOIO_USE_SFCS_SDK="1")


def test_a_failing_read_is_told(tmp_path: Path, sfcs: Callable[..., str]) -> None:
    veturboio.save_file(STATE, tmp_path / "root/model")
    code = refused("veturboio.load('sfcs://model')")
    told = sfcs(code, STANDIN_FAIL="cfsPread", STANDIN_AFTER="3")
    assert told.startswith("OSError [Errno 5] read sfcs://model: SFCS: cfsPread was told to fail")
    assert "very-secret" not in told


def test_what_is_not_there_and_what_is_a_directory(
    tmp_path: Path, sfcs: Callable[..., str]
) -> None:
    (tmp_path / "root/directory").mkdir()
    code = "".join(refused(f"veturboio.load('sfcs://{name}')") for name in ("none", "directory"))
    one, other = sfcs(code).splitlines()
    assert one.startswith("FileNotFoundError [Errno 2] open sfcs://none: SFCS: no such path")
    assert other.startswith("IsADirectoryError")


def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path, sfcs: Callable[..., str]) -> None:
    veturboio.save_file(STATE, tmp_path / "root/model")
    code = (
        "def replace(done, of):\n"
        "    os.utime(os.environ['STANDIN_ROOT'] + '/model', (1, 1))\n"
        + refused("veturboio.load('sfcs://model', progress=replace, num_thread=2)", "OSError")
    )
    # The second handle may have been opened before; then nothing was mixed, and nothing is said.
    told = sfcs(code, STANDIN_SHORT="4096")
    assert told == "" or "the file was replaced while it was read" in told


def test_a_variable_makes_plain_paths_sfcs(tmp_path: Path, sfcs: Callable[..., str]) -> None:
    veturboio.save_file(STATE, tmp_path / "root/model")
    sfcs(f"NAME = '/model'\n{SAME}", VETURBOIO_USE_SFCS_SDK="1")
    code = (
        "shmem = veturboio.load_to_shmem('/model')\n"
        f"NAME = '/dev/shm/' + shmem.name\n{SAME}shmem.close(); shmem.unlink()"
    )
    before = calls(tmp_path)["cfsGetPathInfo"]
    sfcs(code, VETURBOIO_USE_SFCS_SDK="1")
    assert calls(tmp_path)["cfsGetPathInfo"] > before


def test_a_missing_library_missing_variables_and_a_refused_connection(
    sfcs: Callable[..., str], tmp_path: Path
) -> None:
    code = refused("veturboio.load('sfcs://model')")
    told = sfcs(code, LIBCFS_PATH="/none/libcloudfs.so")
    assert "the SFCS client library /none/libcloudfs.so cannot be loaded" in told
    assert "LIBCFS_PATH" in told and told.count("\n") == 1
    told = sfcs(code, SFCS_REGION="", SFCS_NS_ID="")
    assert told.endswith("SFCS needs the variables SFCS_REGION, SFCS_NS_ID\n")
    told = sfcs(code, STANDIN_FAIL="cfsBuilderConnect")
    assert told.startswith("ConnectionRefusedError [Errno 111] open sfcs://model: SFCS refused")
    assert "very-secret" not in told


def test_settings_that_are_there_already_win(tmp_path: Path, sfcs: Callable[..., str]) -> None:
    veturboio.save_file(STATE, tmp_path / "root/model")
    code = f"NAME = 'sfcs://model'\n{SAME}"
    conf = tmp_path / "conf.xml"
    conf.write_text("<configuration/>")
    told = sfcs(refused("veturboio.load('sfcs://model')"), LIBCLOUDFS_CONF=str(conf))
    assert "the settings are not whole" in told
    sfcs(code + "assert 'LIBCLOUDFS_CONF' not in os.environ or not os.environ['LIBCLOUDFS_CONF']")


#: Ends the process where the list of variables is changed, once that is forbidden.
FORBIDDEN = """
#include <stdlib.h>
int is_forbidden;
#define FORBID(name, ...) int name(__VA_ARGS__) { if (is_forbidden) abort(); return 0; }
FORBID(setenv, const char *n, const char *v, int o)
FORBID(unsetenv, const char *n)
FORBID(putenv, char *t)
FORBID(clearenv, void)
"""


def test_connecting_does_not_call_what_no_process_with_threads_may(
    tmp_path: Path, sfcs: Callable[..., str]
) -> None:
    veturboio.save_file(STATE, tmp_path / "root/model")
    (tmp_path / "forbidden.c").write_text(FORBIDDEN)
    library = tmp_path / "forbidden.so"
    source = str(tmp_path / "forbidden.c")
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", str(library), source], check=True)
    code = (
        "import ctypes\n"
        "program = ctypes.CDLL(None)\n"
        "program.getenv.restype = ctypes.c_char_p\n"
        "ctypes.c_int.in_dll(program, 'is_forbidden').value = 1\n"
        "before = program.getenv(b'SFCS_FSNAME')\n"
        f"NAME = 'sfcs://model'\n{SAME}"
        "assert not program.getenv(b'LIBCLOUDFS_CONF')\n"
        "assert program.getenv(b'SFCS_FSNAME') == before == b'fs'\n"
        "import subprocess, sys\n"
        'code = \'import os; print(os.environ.get("LIBCLOUDFS_CONF", "") == "")\'\n'
        "told = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)\n"
        "assert told.stdout == 'True\\n', told\n"
    )
    sfcs(code, LD_PRELOAD=str(library))


def test_a_child_of_one_that_connects_makes_settings_of_its_own(
    tmp_path: Path, sfcs: Callable[..., str]
) -> None:
    """It has inherited a name of what only its parent has open."""
    veturboio.save_file(STATE, tmp_path / "root/model")
    sfcs(f"NAME = 'sfcs://model'\n{SAME}", LIBCLOUDFS_CONF="/proc/self/fd/4711")


@pytest.mark.parametrize("name", ["odd.pt", "sfcs://odd.pt"])
def test_no_fallback_reads_a_path_of_this_machine(
    tmp_path: Path, sfcs: Callable[..., str], name: str
) -> None:
    """What lies at the same path here is another file: one that torch.load would read."""
    named = str(tmp_path / "odd.pt") if name == "odd.pt" else name
    inside = tmp_path / "root" / named.removeprefix("sfcs://").lstrip("/")
    inside.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"a": Path("weights"), "n": 1}, inside)
    torch.save({"a": torch.arange(3)}, tmp_path / "odd.pt")
    here = str(tmp_path / "odd.safetensors")
    veturboio.save_file({"here": torch.ones(1)}, here)
    for arguments in ("", ", names=['a']", ", dtype=torch.float16", ", map_location={'': 'cpu'}"):
        told = sfcs(refused(f"veturboio.load({named!r}{arguments})"), VETURBOIO_USE_SFCS_SDK="1")
        assert told.startswith(("FormatError", "UnknownNameError")), told
    code = (
        "import sys\n"
        "from veturboio import convert\n"
        f"print(convert.main(['-i', {named!r}]), convert.main(['-d', '-i', {here!r}]))\n"
    )
    assert sfcs(code, VETURBOIO_USE_SFCS_SDK="1").endswith("1 1\n")
    assert veturboio.load(here).keys() == {"here"}


def test_the_command_converts_in_sfcs(tmp_path: Path, sfcs: Callable[..., str]) -> None:
    torch.save(STATE, tmp_path / "root/model.pt")
    code = (
        "from veturboio import convert\n"
        "assert convert.main(['-i', '/model.pt', '--validate-result']) == 0\n"
        "assert convert.main(['-i', '/model.pt']) == 1  # is there already\n"
        f"NAME = '/model.safetensors'\n{SAME}"
    )
    sfcs(code, VETURBOIO_USE_SFCS_SDK="1")
    assert (tmp_path / "root/model.safetensors").exists()
    assert not Path("/model.safetensors").exists()


def test_a_forked_child_connects_anew(tmp_path: Path, sfcs: Callable[..., str]) -> None:
    veturboio.save_file(STATE, tmp_path / "root/model")
    sfcs(
        f"NAME = 'sfcs://model'\n{SAME}"
        "if (child := os.fork()) == 0:\n"
        "    assert torch.equal(veturboio.load(NAME)['b'], a['b'])\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n" + SAME
    )
    assert calls(tmp_path)["cfsBuilderConnect"] == 2
