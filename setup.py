"""Builds libveturboio.so with cargo and puts it, its header and its CMake package in the wheel.

Both `python setup.py install` and `pip install --no-build-isolation .` come here. The library is
compiled against the torch of the running interpreter and knows nothing of Python itself, so one
wheel serves every CPython: its tag is py3-none-<platform>.

The checks for missing tools run before setuptools is imported, and in the syntax of old Pythons:
who lacks something reads one sentence and no traceback.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TORCH = "2.13"
# The first setuptools that knows `license = "Apache-2.0"`; torch itself asks for 77.0.3.
SETUPTOOLS = 77
BUILDING = {"bdist_wheel", "build", "build_py", "develop", "editable_wheel", "install"}


def cargo_field(name):
    """A string of Cargo.toml, which holds the version for Rust, Python and CMake alike."""
    match = re.search(rf'^{name} = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    if match is None:
        sys.exit(f"read Cargo.toml: it has no {name}")
    return match.group(1)


def torch_directory():
    """Where this interpreter's torch lies, or None. Importing it would take seconds."""
    spec = importlib.util.find_spec("torch")
    places = spec.submodule_search_locations if spec else None
    return Path(os.path.realpath(places[0])) if places else None


def torch_fault():
    """One sentence if torch cannot be built against, else None."""
    remedy = f"run `{sys.executable} -m pip install torch=={TORCH}.0`"
    directory = torch_directory()
    if directory is None:
        return f"torch is not installed for {sys.executable}, {remedy}"
    try:
        text = (directory / "version.py").read_text()
    except OSError as error:
        return f"torch in {directory} does not tell its version ({error.strerror}), {remedy}"
    match = re.search(r"^__version__.*= *['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    version = match.group(1) if match else "of an unknown version"
    if not version.startswith(TORCH + "."):
        return f"torch {version} is installed and {TORCH} is needed, {remedy}"
    return None


def setuptools_fault():
    """One sentence if setuptools is absent or too old, else None."""
    remedy = f"run `{sys.executable} -m pip install -U setuptools`"
    try:
        from setuptools import __version__ as version
    except ImportError:
        return f"setuptools is not installed for {sys.executable}, {remedy}"
    if int(version.split(".")[0]) < SETUPTOOLS:
        return f"setuptools {version} is too old, {SETUPTOOLS} or newer is needed, {remedy}"
    return None


def cargo_fault():
    """One sentence if cargo is absent, broken or too old, else None."""
    needed = cargo_field("rust-version")
    remedy = f"install Rust {needed} or newer from https://rustup.rs"
    if shutil.which("cargo") is None:
        return f"cargo is not on PATH, {remedy}"
    answer = subprocess.run(["cargo", "--version"], capture_output=True, text=True, cwd=ROOT)
    match = re.match(r"cargo (\d+)\.(\d+)", answer.stdout)
    if answer.returncode != 0 or match is None:
        return f"cargo on PATH does not run, {remedy}"
    if tuple(map(int, match.groups())) < tuple(map(int, needed.split(".")[:2])):
        return f"cargo {match.group(1)}.{match.group(2)} is too old, {remedy}"
    return None


def compiler_fault():
    """One sentence if there is no C++ compiler, else None."""
    compiler = (shlex.split(os.environ.get("CXX", "")) or ["c++"])[0]
    if shutil.which(compiler) is None:
        return f"{compiler} is not on PATH, install a C++20 compiler (on Debian: apt install g++)"
    return None


def faults():
    """What is missing for a build, one sentence each."""
    if sys.version_info < (3, 10):  # noqa: UP036 - an old Python reads this before any other file
        version = "{}.{}.{}".format(*sys.version_info[:3])
        return [f"Python {version} is too old, 3.10 or newer is needed"]
    torch = torch_fault()
    # Installing torch brings setuptools along, so its absence is not worth a second sentence.
    found = [torch or setuptools_fault(), cargo_fault(), compiler_fault()]
    return [fault for fault in found if fault is not None]


if BUILDING.intersection(sys.argv[1:]):
    missing = faults()
    if missing:
        sys.exit("\n".join(f"build veturboio: {fault}" for fault in missing))

from setuptools import Distribution, setup  # noqa: E402
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402
from setuptools.command.build_py import build_py  # noqa: E402
from setuptools.command.install import install  # noqa: E402


def build_library():
    """Runs cargo and returns the path of libveturboio.so, as cargo names it."""
    environment = dict(os.environ)
    # torch-sys would ask whatever `python3` is first on PATH. Naming the directory is exact, and
    # cargo notices when it changes.
    for name in ("LIBTORCH_USE_PYTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_LIB"):
        environment.pop(name, None)
    environment["LIBTORCH"] = str(torch_directory())
    command = ["cargo", "build", "--release", "--lib", "--locked"]
    command.append("--message-format=json-render-diagnostics")
    library = None
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as cargo:
        for line in cargo.stdout:
            message = json.loads(line)
            if message["reason"] != "compiler-artifact":
                continue
            if "cdylib" in message["target"]["kind"] and message["target"]["name"] == "veturboio":
                library = next(Path(name) for name in message["filenames"] if name.endswith(".so"))
    if cargo.returncode != 0 or library is None:
        sys.exit("build veturboio: cargo failed, its own words stand above")
    return library


class BuildPackage(build_py):
    """Adds to the Python files what cargo made and what C++ programs need."""

    def run(self):
        """Fills the build directory anew, so that no file of an earlier build stays in it."""
        if self.editable_mode:
            sys.exit("build veturboio: editable installs are not supported, run `make install`")
        package = Path(self.build_lib, "veturboio")
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        for source, target in self.extra_files().items():
            (package / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, package / target)
        template = (ROOT / "cmake/veturboioConfigVersion.cmake.in").read_text()
        version = package / "share/cmake/veturboio/veturboioConfigVersion.cmake"
        version.write_text(template.replace("@VERSION@", cargo_field("version")))

    def extra_files(self):
        """Where each further file comes from, and where in the package it goes."""
        return {
            build_library(): "libveturboio.so",
            ROOT / "include/veturboio/veturboio.h": "include/veturboio/veturboio.h",
            ROOT / "cmake/veturboioConfig.cmake": "share/cmake/veturboio/veturboioConfig.cmake",
        }


class BuildWheel(bdist_wheel):
    """A wheel for one platform and every Python."""

    def get_tag(self):
        """The library has no Python ABI, only a platform."""
        return ("py3", "none", super().get_tag()[2])


class Install(install):
    """Makes the wheel and hands it to pip, so that both ways of installing leave the same files.

    pip then also replaces an earlier install whole, and can remove this one. A command line that
    names a place of its own (--root, --prefix, ...) gets the plain copying of distutils.
    """

    def initialize_options(self):
        """Leaves out the warning against setup.py: what it warns of is handed to pip here."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().initialize_options()

    def run(self):
        """Builds and installs."""
        if self.root or self.distribution.get_option_dict("install"):
            super().run()
            return
        if importlib.util.find_spec("pip") is None:
            sys.exit(
                f"install veturboio: {sys.executable} has no pip, "
                f"run `{sys.executable} -m ensurepip`"
            )
        self.run_command("bdist_wheel")
        wheel = self.distribution.dist_files[-1][2]
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps"]
        if subprocess.run([*command, "--force-reinstall", wheel]).returncode != 0:
            sys.exit("install veturboio: pip failed, its own words stand above")


class PlatformDistribution(Distribution):
    """Tells setuptools that the package holds machine code, which it cannot see by itself."""

    def has_ext_modules(self):
        """Machine code goes to platlib, and makes the wheel one for this platform."""
        return True


setup(
    version=cargo_field("version"),
    distclass=PlatformDistribution,
    cmdclass={"bdist_wheel": BuildWheel, "build_py": BuildPackage, "install": Install},
)
