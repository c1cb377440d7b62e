"""setup.py: what it says when something is missing, what it builds, and what lies installed."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import veturboio

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ["setup.py", "pyproject.toml", "Cargo.toml", "README.md", "LICENSE"]
FOLDERS = ["python", "cmake", "include"]

# Behaves like cargo without compiling anything: the "library" is a file of three letters.
CARGO = """#!/bin/sh
if [ "$1" = --version ]; then echo "cargo 1.95.0 (0123456 2026-01-01)"; exit; fi
echo "$@" > "$LOG"; echo "$LIBTORCH" >> "$LOG"; echo "$LIBTORCH_USE_PYTORCH" >> "$LOG"
printf lib > libmade.so
echo '{"reason":"compiler-artifact","target":{"kind":["custom-build"],"name":"build-script"},
"filenames":["/nowhere.so"]}' | tr -d '\\n'; echo
echo '{"reason":"compiler-artifact","target":{"kind":["cdylib","rlib"],"name":"veturboio"},
"filenames":["'$PWD'/libmade.rlib","'$PWD'/libmade.so"]}' | tr -d '\\n'; echo
echo '{"reason":"build-finished","success":true}'
"""
BROKEN_CARGO = """#!/bin/sh
if [ "$1" = --version ]; then echo "cargo 1.95.0"; exit; fi
echo "error: linking with cc failed" >&2; exit 101
"""
OLD_CARGO = "#!/bin/sh\necho 'cargo 1.63.0'\n"
CXX = "#!/bin/sh\n"


class Project:
    """A copy of what setup.py needs, with the tools on PATH that a test puts there."""

    def __init__(self, place: Path):
        self.root = place / "project"
        self.bin = place / "bin"
        self.log = place / "log"
        self.root.mkdir()
        self.bin.mkdir()
        for name in PROJECT:
            shutil.copy(ROOT / name, self.root / name)
        ignore = shutil.ignore_patterns("*.egg-info", "__pycache__", "*.so")
        for name in FOLDERS:
            shutil.copytree(ROOT / name, self.root / name, ignore=ignore)
        for name in ("sh", "tr"):
            self.bin.joinpath(name).symlink_to(f"/bin/{name}")

    def tool(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(script)
        path.chmod(0o755)

    def setup(
        self, *arguments: str, options: tuple[str, ...] = (), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "PYTHONPATH")}
        environment |= {"PATH": str(self.bin), "LOG": str(self.log), **variables}
        command = [sys.executable, *options, "setup.py", *arguments]
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True
        )


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture
def complete(project):
    project.tool("cargo", CARGO)
    project.tool("c++", CXX)
    return project


def sentences(done):
    """What was said on stderr: nothing may be built, and no traceback shown."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


def fake_torch(tmp_path, version):
    package = tmp_path / "fake" / "torch"
    package.mkdir(parents=True)
    package.joinpath("__init__.py").touch()
    package.joinpath("version.py").write_text(f"__version__ = '{version}'\n")
    return str(package.parent)


@pytest.mark.parametrize("command", ["install", "bdist_wheel", "build"])
def test_no_cargo(project, command):
    project.tool("c++", CXX)
    (said,) = sentences(project.setup(command))
    assert re.fullmatch(
        r"build veturboio: cargo is not on PATH, "
        r"install Rust 1\.\d+ or newer from https://rustup\.rs",
        said,
    )


def test_old_cargo(complete):
    complete.tool("cargo", OLD_CARGO)
    (said,) = sentences(complete.setup("install"))
    assert said.startswith("build veturboio: cargo 1.63 is too old, install Rust 1.")


def test_cargo_that_does_not_run(complete):
    complete.tool("cargo", "#!/bin/sh\necho 'no default toolchain' >&2; exit 1\n")
    (said,) = sentences(complete.setup("install"))
    assert said.startswith("build veturboio: cargo on PATH does not run, install Rust")


def test_no_compiler(project):
    project.tool("cargo", CARGO)
    (said,) = sentences(project.setup("install"))
    assert said == (
        "build veturboio: c++ is not on PATH, install a C++20 compiler (on Debian: apt install g++)"
    )


def test_the_compiler_that_cxx_names(complete):
    (said,) = sentences(complete.setup("install", CXX="clang++-99 -stdlib=libc++"))
    assert said.startswith("build veturboio: clang++-99 is not on PATH")


def test_wrong_torch(complete, tmp_path):
    fake = fake_torch(tmp_path, "2.12.1+cpu")
    (said,) = sentences(complete.setup("install", PYTHONPATH=fake))
    assert said == (
        "build veturboio: torch 2.12.1+cpu is installed and 2.13 is needed, "
        f"run `{sys.executable} -m pip install torch==2.13.0`"
    )


def test_torch_2_130_is_not_2_13(complete, tmp_path):
    (said,) = sentences(complete.setup("install", PYTHONPATH=fake_torch(tmp_path, "2.130.0")))
    assert "torch 2.130.0 is installed and 2.13 is needed" in said


def test_no_torch(complete):
    # -S: site-packages is not looked at, as in a fresh environment.
    (said,) = sentences(complete.setup("install", options=("-S",)))
    assert said.startswith(f"build veturboio: torch is not installed for {sys.executable}, run `")


def test_everything_is_missing(project):
    said = sentences(project.setup("install", options=("-S",)))
    assert [line.split()[2] for line in said] == ["torch", "cargo", "c++"]


def test_old_python(complete):
    pretend = "import runpy, sys; sys.version_info = (3, 9, 18); sys.argv = ['setup.py', 'install']"
    command = [sys.executable, "-c", f"{pretend}; runpy.run_path('setup.py')"]
    done = subprocess.run(command, cwd=complete.root, capture_output=True, text=True)
    assert sentences(done) == ["build veturboio: Python 3.9.18 is too old, 3.10 or newer is needed"]


def test_cargo_fails(complete):
    complete.tool("cargo", BROKEN_CARGO)
    said = sentences(complete.setup("bdist_wheel"))
    assert said[-2:] == [
        "error: linking with cc failed",
        "build veturboio: cargo failed, its own words stand above",
    ]


def test_questions_need_no_tools(project):
    done = project.setup("--version")
    assert done.returncode == 0
    assert done.stdout.strip() == veturboio.__version__


def test_cargo_is_given_the_torch_of_this_python(complete):
    done = complete.setup("build", LIBTORCH_USE_PYTORCH="1")
    assert done.returncode == 0, done.stderr
    arguments, libtorch, use_python = complete.log.read_text().splitlines()
    assert "--release" in arguments and "--locked" in arguments
    assert Path(libtorch, "lib", "libtorch.so").exists()
    assert use_python == ""


def test_wheel(complete):
    done = complete.setup("bdist_wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = complete.root.glob("dist/*.whl")
    assert re.fullmatch(r"veturboio-0\.1\.0-py3-none-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("veturboio/libveturboio.so") == b"lib"
        metadata = archive.read("veturboio-0.1.0.dist-info/METADATA").decode()
        version = archive.read("veturboio/share/cmake/veturboio/veturboioConfigVersion.cmake")
    assert {
        "veturboio/__init__.py",
        "veturboio/py.typed",
        "veturboio/include/veturboio/veturboio.h",
        "veturboio/share/cmake/veturboio/veturboioConfig.cmake",
        "veturboio-0.1.0.dist-info/licenses/LICENSE",
    } <= names
    assert all(name.startswith(("veturboio/", "veturboio-0.1.0.dist-info/")) for name in names)
    assert "Requires-Dist: torch==2.13.0" in metadata
    assert "Requires-Python: >=3.10" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert b'set(PACKAGE_VERSION "0.1.0")' in version


def test_a_removed_file_leaves_the_wheel(complete):
    extra = complete.root / "python" / "veturboio" / "extra.py"
    extra.touch()
    assert complete.setup("build").returncode == 0
    assert list(complete.root.glob("build/lib*/veturboio/extra.py"))
    extra.unlink()
    assert complete.setup("build").returncode == 0
    assert not list(complete.root.glob("build/lib*/veturboio/extra.py"))


def test_install_with_a_root_copies_files(complete, tmp_path):
    staging = tmp_path / "staging"
    done = complete.setup("install", "--root", str(staging))
    assert done.returncode == 0, done.stderr
    assert len(list(staging.rglob("veturboio/libveturboio.so"))) == 1
    assert len(list(staging.rglob("veturboio/py.typed"))) == 1


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        (["python3", "cargo", "c++"], []),
        (["python3", "c++"], ["cargo"]),
        (["python3", "cargo"], ["c++"]),
        (["cargo", "c++"], ["python3"]),
        ([], ["python3", "cargo", "c++"]),
    ],
)
def test_make_names_each_missing_tool_before_it_starts(tmp_path, present, missing):
    if (make := shutil.which("make")) is None:
        pytest.skip("make is not on PATH")
    for name in ("sh", "awk", "find"):
        tmp_path.joinpath(name).symlink_to(str(shutil.which(name)))
    for name in present:
        target = sys.executable if name == "python3" else "/bin/true"
        tmp_path.joinpath(name).symlink_to(target)
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [make, "check-tools"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("build veturboio: ")]
    assert [line.split()[2] for line in said] == missing
    assert (done.returncode == 0) == (not missing)


def test_installed_package_is_complete():
    package = Path(veturboio.__file__).parent
    for name in (
        "libveturboio.so",
        "py.typed",
        "include/veturboio/veturboio.h",
        "share/cmake/veturboio/veturboioConfig.cmake",
        "share/cmake/veturboio/veturboioConfigVersion.cmake",
    ):
        assert package.joinpath(name).is_file(), name
    assert Path(veturboio.cmake_prefix_path) == package / "share" / "cmake"


def test_installed_package_serves_every_python():
    wheel = importlib.metadata.distribution("veturboio").read_text("WHEEL")
    assert wheel is not None
    assert re.search(r"^Tag: py3-none-linux_\w+$", wheel, re.MULTILINE)
    library = Path(veturboio.__file__).parent / "libveturboio.so"
    dynamic = subprocess.run(
        ["readelf", "-d", library], capture_output=True, text=True, check=True
    ).stdout
    assert "libpython" not in dynamic
    assert "libtorch_python" not in dynamic
    assert "[$ORIGIN/../torch/lib]" in dynamic


def test_version_has_one_source():
    text = ROOT.joinpath("Cargo.toml").read_text()
    match = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    assert match is not None
    assert match.group(1) == veturboio.__version__ == importlib.metadata.version("veturboio")
