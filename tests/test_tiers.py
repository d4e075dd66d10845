"""tests/tiers.py: which tests run side by side, what is left out, and what fails in CI."""

import os
import subprocess
import sys

import pytest

from tests.fork_server import PROJECT
from tests.tiers import CORES

CONFTEST = """
from tests.tiers import Tiers

def pytest_configure(config):
    config.pluginmanager.register(Tiers(config), "tiers")
"""
INI = """
[pytest]
markers =
    slow: s
    serial: s
    gets(cores): how many cores the test has
"""
PLACES = """
import fcntl, os, pathlib, pytest

RUNNING = pathlib.Path(__file__).with_name("running")

@pytest.fixture(autouse=True)
def cores(request):
    marker = request.node.get_closest_marker("gets")
    assert len(os.sched_getaffinity(0)) == marker.args[0]

@pytest.fixture(autouse=True)
def alone(request, tmp_path_factory):
    # Tests side by side share a lock; a serial one finds that nobody holds it.
    serial = request.node.get_closest_marker("serial")
    with open(RUNNING, "w") as file:
        fcntl.flock(file, (fcntl.LOCK_EX | fcntl.LOCK_NB) if serial else fcntl.LOCK_SH)
        yield

@pytest.fixture(scope="module")
def shared():
    return []

@pytest.mark.serial
@pytest.mark.gets(ALL)
@pytest.mark.parametrize("i", range(3))
def test_serial(i):
    pass

@pytest.mark.gets(1)
@pytest.mark.parametrize("i", range(20))
def test_side_by_side(i):
    pass

@pytest.mark.gets(1)
@pytest.mark.parametrize("i", range(5))
def test_on_one_worker(i, shared):
    shared.append(i)
    assert shared == list(range(i + 1))
"""
SKIPS = """
import pytest

def test_passes():
    pass

@pytest.mark.skipif(True, reason="no GPU here: it shows nothing")
def test_gpu():
    pass

def test_missing():
    pytest.skip("no Slurm on this machine")

@pytest.mark.xfail
def test_expected_to_fail():
    assert False

@pytest.mark.slow
def test_slow():
    pass
"""


@pytest.fixture
def run(tmp_path):
    """run(text of a test file, arguments, CI=...) -> (exit code, lines of output)."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text(INI)

    def start(text, *arguments, ci=""):
        (tmp_path / "test_it.py").write_text(text)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**kept, "PYTHONPATH": str(PROJECT), "CI": ci},
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, CORES),
        )
        return done.returncode, done.stdout.splitlines()

    return start


PARALLEL = ("-n", "2")


def test_workers_have_a_core_each_and_serial_tests_the_machine(run):
    code, lines = run(PLACES.replace("ALL", str(len(CORES))), *PARALLEL)
    assert code == 0 and lines[-1].startswith("28 passed"), "\n".join(lines)


@pytest.mark.parametrize("parallel", [(), PARALLEL])
def test_what_is_left_out_is_said(run, parallel):
    code, lines = run(SKIPS, "-m", "not slow", *parallel)
    assert code == 0 and "left out: 1 slow test" in "\n".join(lines[-3:])
    code, lines = run(SKIPS, *parallel)
    assert code == 0 and "left out" not in "\n".join(lines)


@pytest.mark.parametrize("parallel", [(), PARALLEL])
def test_a_skip_fails_in_ci(run, parallel):
    code, lines = run(SKIPS, *parallel, ci="true")
    assert code == 1
    assert lines[-1].startswith("1 failed, 2 passed, 1 skipped, 1 xfailed")
    assert "in CI nothing may be skipped: no Slurm on this machine" in "\n".join(lines[-4:])


def test_a_file_that_is_skipped_whole_fails_in_ci(run):
    text = "import pytest\npytest.importorskip('a_module_that_nobody_has')\n"
    assert run(text)[0] == 5
    code, lines = run(text, ci="true")
    assert code == 2 and "a_module_that_nobody_has" in "\n".join(lines[-4:])
