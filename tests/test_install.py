"""What `pip install .` gives: one top-level package that does everything from any folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from cjepa_dist.config import locate
from tests.fork_server import PROJECT

FOLDERS = ("cjepa_dist", "slurm", "data_prep", "tools", "configs")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the project, so that the build leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(
            PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_project")
        )
    for name in FILES:
        shutil.copy(PROJECT / name, folder)
    return folder


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory):
    """The unpacked wheel: what stands in site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    stale = source / "build" / "lib" / "slurm"  # of a build before the folders moved
    stale.mkdir(parents=True)
    (stale / "__init__.py").touch()
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*pip, "-w", folder, source], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    subprocess.run(["git", "init", "-q", folder], check=False)  # as of a project that has a .venv
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    commit = ["git", "-C", folder, *identity, "commit", "-q", "--allow-empty", "-m", "theirs"]
    subprocess.run(commit, check=False)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def run(installed, tmp_path):
    """Runs Python with only the wheel, in a folder that holds another package called slurm."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")

    def start(*arguments, check=True):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return start


def test_one_top_level_package(installed):
    names = {path.name for path in installed.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"cjepa_dist"}
    (info,) = installed.glob("*.dist-info")
    assert (info / "top_level.txt").read_text().split() == ["cjepa_dist"]
    assert "cjepa = cjepa_dist.cli:main" in (info / "entry_points.txt").read_text()


def test_holds_every_file_of_the_project(source, installed):
    for name in FOLDERS:
        target = installed / ("" if name == "cjepa_dist" else "cjepa_dist/_project") / name
        for path in (source / name).rglob("*"):
            if path.is_file():
                assert (target / path.relative_to(source / name)).is_file(), path
    assert not list(installed.rglob("__pycache__"))


def test_works_from_any_folder(run, installed, tmp_path):
    assert str(installed / "cjepa_dist" / "_project") in run("-m", "cjepa_dist.cli").stdout
    sizes = ["train=20", "val=4", "test=0", "workers=2"]  # workers are processes of their own
    run("-m", "cjepa_dist.cli", "simulate", "quickstart", "out=data", *sizes)
    run("-m", "cjepa_dist.cli", "verify", "data=data")
    assert (tmp_path / "data" / "manifest.json").is_file()
    assert "cjepa status" in run("-m", "cjepa_dist.cli", "status", "--help").stdout

    train = ["quickstart", "data=data", "run=run", "contact_share=0", "val_windows=8"]
    train += ["loop.steps=1", "loop.global_batch_size=4", "loop.engine=ddp"]
    (tmp_path / "train.py").write_text(
        "import runpy, sys\n"
        "name = 'cjepa_dist.train_world_model'\n"
        "try: runpy.run_module(name, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: print('exit', end.code, 'deepspeed' in sys.modules)\n"
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    done = run(*torchrun, "train.py", *train)
    assert "exit 0 False" in done.stdout  # DeepSpeed, 3 s, is imported by ZeRO alone
    assert (tmp_path / "run" / "done.json").is_file()
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert recorded["commit"] == ""  # the repository around it is another project's
    listed = run("-m", "cjepa_dist.cli", "runs", "ls", ".").stdout
    assert "complete" in listed


def test_source_distribution(source, tmp_path):
    """The sdist holds all that a wheel is built from."""
    code = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for name in FOLDERS:
        for path in (source / name).rglob("*"):
            if path.is_file():
                assert (unpacked / path.relative_to(source)).is_file(), path
    assert all((unpacked / name).is_file() for name in FILES)


def test_the_checkout_is_the_project():
    assert locate.project_root() == PROJECT


# ------------------------------------------------------------------------------------------------

PIP = """\
#!/usr/bin/env bash
# Stands for an environment's Python: takes note of pip's arguments, has no torch.
if [[ $* == *"import torch"* ]]; then exit 1; fi
if [[ $* == *"-m pip"* ]]; then
    echo "$*" >>"$PIP_LOG"
    if [[ $* == *"${PIP_FAILS_ON:-no such word}"* ]]; then exit 1; fi
fi
"""
PROGRAMS = ("bash", "env", "cat", "cksum", "dirname", "grep", "sed")


@pytest.fixture
def make_venv(tmp_path):
    """tools/venv.sh, twice, where pip is ours: (exit code, stderr, pip's calls)."""
    programs, environment = tmp_path / "programs", tmp_path / "venv"
    programs.mkdir()  # neither nvidia-smi nor sbatch is there
    for name in PROGRAMS:
        (programs / name).symlink_to(shutil.which(name))
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").write_text(PIP)
    (environment / "bin" / "python").chmod(0o755)

    def make(gpu=False, **variables):
        if gpu:
            (programs / "nvidia-smi").write_text("#!/usr/bin/env bash\necho 'GPU 0: H100'\n")
            (programs / "nvidia-smi").chmod(0o755)
        log = tmp_path / "log"
        variables = {
            "VENV": str(environment),
            "PATH": str(programs),
            "PIP_LOG": str(log),
        } | variables
        done = subprocess.run(
            [programs / "bash", "-euo", "pipefail", "-c", "source tools/venv.sh; make_venv report;"
            " make_venv report"],
            cwd=PROJECT, env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr, log.read_text().splitlines() if log.exists() else []

    return make


def test_environment_takes_the_cpu_build_where_there_is_one(make_venv):
    code, _, (torch, project) = make_venv()  # the second make_venv had nothing to do
    assert code == 0
    assert "--no-deps torch==" in torch and torch.endswith("+cpu") and "--quiet" not in project
    assert project.endswith("-c constraints.txt -e .[report]")


def test_environment_without_a_cpu_build(make_venv):
    code, error, calls = make_venv(PIP_FAILS_ON="+cpu")
    assert (code, error, len(calls)) == (0, "", 2)


def test_environment_of_a_gpu(make_venv):
    code, _, (project,) = make_venv(gpu=True)
    assert code == 0 and project.endswith("-c constraints.txt -e .[report]")


def test_environment_with_an_index_for_torch(make_venv):
    code, _, (torch, _) = make_venv(TORCH_INDEX="https://wheels.example/cu1")
    assert code == 0 and "--index-url https://wheels.example/cu1 torch==" in torch


def test_environment_that_is_active(make_venv, tmp_path):
    code, _, calls = make_venv(VENV="active", VIRTUAL_ENV=str(tmp_path / "venv"))
    assert code == 0 and calls[-1].endswith("pip-version-check -e .[report]")
    code, error, _ = make_venv(VENV="active")
    assert code == 1 and "no virtual or conda environment is active" in error


def test_environment_offline(make_venv):
    code, error, _ = make_venv(PIP_FAILS_ON="pip")
    assert code == 1 and error.count("\n") == 1
    assert "PIP_FIND_LINKS" in error and "--no-index" in error
