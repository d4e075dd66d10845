"""tools/supported_versions.sh: its arguments. It installs nothing here."""

import subprocess
import sys

import pytest

from tests.fork_server import PROJECT


def run(*arguments):
    command = ["bash", "tools/supported_versions.sh", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)


def test_list():
    done = run("--list")
    assert done.returncode == 0, done.stderr
    versions = [tuple(map(int, line.split()[0].split("."))) for line in done.stdout.splitlines()]
    assert versions == sorted(set(versions)) and min(versions) >= (3, 10) and len(versions) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["3.11"], "3.11 is not PYTHON:TORCH"),
        (["3.11:latest"], "3.11:latest is not PYTHON:TORCH"),
        (["3.9:2.9.1"], "no Python 3.9 "),
        ([f"{sys.executable}:2.13.0", "nowhere/python:2.13.0"], "no Python nowhere/python "),
    ],
)
def test_mistakes_are_one_line_before_anything_is_installed(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and message in done.stderr


def test_usage():
    assert "--list" in run("--help").stdout
    done = run()
    assert done.returncode == 2 and "PYTHON:TORCH" in done.stderr
