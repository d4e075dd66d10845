"""The command `cjepa`: its list, its errors, configs by name, completion."""

import os
import shutil
import subprocess
import sys

import pytest

from cjepa_dist import cli
from cjepa_dist.config import command_line, completion, fields, locate, schema
from cjepa_dist.errors import UserError
from tests.fork_server import PROJECT

CJEPA = [sys.executable, "-m", "cjepa_dist.cli"]


def run(*command, cwd=PROJECT, **environment):
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_help_lists_every_command_and_imports_no_library():
    code = (
        "import sys; from cjepa_dist import cli; code = cli.main(['--help']);"
        "print({'torch', 'numpy', 'omegaconf'} & set(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stderr) == (0, "set()\n")
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(cli.COMMANDS)
    assert listed[0] == "simulate" and listed.index("rollout") < listed.index("train-aloe")
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert run(*CJEPA).stdout == done.stdout


@pytest.mark.parametrize(
    ("load", "given", "spins"), [(0.4, "", ""), (1.2, "", "1000"), (1.2, "7", "7")]
)
def test_threads_sleep_on_a_busy_machine(load, given, spins, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(cli.runpy, "run_module", lambda *unused, **also: None)
    monkeypatch.setattr(sys, "argv", ["cjepa"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("GOMP_SPINCOUNT", given)
    if not given:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr(command_line, "program", "cjepa")
    cli.run_command("info", [])
    assert os.environ.pop("GOMP_SPINCOUNT", "") == spins


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if cli.COMMANDS[name].module])
def test_module_exists(name):
    assert completion.parse(cli.COMMANDS[name].module) is not None


@pytest.mark.parametrize(
    "arguments",
    [["--help"], [], ["data=nowhere"], ["dta=nowhere"], ["nothing.yaml"]],
    ids=["help", "missing", "no_data", "unknown_key", "no_config"],
)
def test_same_as_the_module(arguments):
    """Same output, errors and exit code; only the usage line says how the command was called."""
    ours = run(*CJEPA, "verify", *arguments)
    module = run(sys.executable, "-m", "data_prep.verify", *arguments)
    assert ours.returncode == module.returncode == (0 if arguments == ["--help"] else 2)
    assert ours.stderr == module.stderr
    assert ours.stdout == module.stdout.replace("python -m data_prep.verify", "cjepa verify")
    assert ("usage: cjepa verify " in ours.stdout) == (arguments == ["--help"])


def test_help_of_a_command_without_a_schema():
    assert "`cjepa status RUNS" in run(*CJEPA, "status", "--help").stdout


def test_unknown_command():
    done = run(*CJEPA, "trian-aloe", "data=d")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "trian-aloe" in done.stderr and "train-aloe" in done.stderr


# ------------------------------------------------------------------------------------------------


def test_configs_are_found_by_name_from_any_folder(tmp_path, monkeypatch):
    file = PROJECT / "configs" / "world_model" / "quickstart_ctt.yaml"
    required = ["data=d", "run=r"]
    expected = command_line.parse(schema.TrainWorldModel, [str(file), *required])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart_ctt").mkdir()  # a folder is no config
    for name in (
        "quickstart_ctt",
        "quickstart_ctt.yaml",
        "configs/world_model/quickstart_ctt.yaml",
    ):
        assert command_line.parse(schema.TrainWorldModel, [name, *required]) == expected
    (tmp_path / "full.yaml").write_text("seed: 7\n")  # a file that exists is taken as it is
    config = command_line.parse(schema.TrainWorldModel, ["full.yaml", *required])
    assert config == command_line.parse(schema.TrainWorldModel, ["seed=7", *required])


@pytest.mark.parametrize("kind", ["accelerate", "aloe", "experiment", "simulate", "slurm"])
def test_every_kind_of_config(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = locate.config_names(kind)
    assert names
    for name in names:
        assert locate.find_config(kind, name) == PROJECT / "configs" / kind / f"{name}.yaml"
    assert locate.find_config("", f"{kind}/{names[0]}") == locate.find_config(kind, names[0])


def test_unknown_config():
    with pytest.raises(UserError, match=r"quikstart does not exist.*configs/aloe: quickstart"):
        command_line.parse(schema.TrainAloe, ["quikstart", "data=d", "run=r"])
    with pytest.raises(UserError, match=r"zzz does not exist; configs/simulate has full, quick"):
        locate.find_config("simulate", "zzz")


# ------------------------------------------------------------------------------------------------


def test_completion_reads_the_keys_of_a_schema_without_importing_it():
    from cjepa_dist.evaluate_graph import EvaluateGraph
    from data_prep.import_pickle import ImportPickle
    from slurm.experiment.schema import Experiment

    for command, kind in {
        "train-world-model": schema.TrainWorldModel,
        "train-aloe": schema.TrainAloe,
        "evaluate-graph": EvaluateGraph,
        "import-pickle": ImportPickle,
        "submit": Experiment,
    }.items():
        found = completion.arguments(cli.COMMANDS[command].module)
        expected = [f"{key}=" for key, _ in fields.leaf_fields(kind)]
        assert [name for name in found if name.endswith("=")] == expected


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The replies of bash to TAB at the end of the words of a line, as bash splits them."""
    folder = tmp_path_factory.mktemp("completion")
    program = folder / "bin" / "cjepa"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cjepa_dist.cli "$@"\n')
    program.chmod(0o755)
    (folder / "here.yaml").touch()
    (folder / "data folder").mkdir()
    script = (
        'eval "$(cjepa completion bash)"; complete -p cjepa >&2; COMP_WORDS=("$@");'
        'COMP_CWORD=$(($# - 1)); _cjepa 2>/dev/null; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"

    def reply(*words):
        start = ["bash", "--norc", "-uc", script, "bash", "cjepa", *words]
        done = run(*start, cwd=folder, PATH=path, PYTHONPATH=str(PROJECT))
        assert "_cjepa" in done.stderr, done.stderr
        return done.stdout.split("\n")[:-1]

    return reply


def test_bash_completion(complete):
    assert complete("") == list(cli.COMMANDS)
    assert complete("train") == ["train-world-model", "train-aloe"]
    assert complete("train-world-model", "quick") == locate_names("world_model", "quick")
    assert complete("simulate", "q")[0] == "quickstart"
    assert complete("train-aloe", "quickstart", "loop.glo") == ["loop.global_batch_size="]
    assert complete("evaluate-graph", "graph.est") == ["graph.estimator="]
    assert complete("runs", "c") == ["compare"]
    assert complete("completion", "") == ["bash", "zsh"]


def test_bash_completion_falls_back_to_files(complete):
    assert complete("train-world-model", "her") == ["here.yaml"]
    assert complete("status", "da") == ["data folder"]
    assert complete("train-world-model", "quickstart", "data", "=", "da") == ["data folder"]
    assert sorted(complete("train-world-model", "data", "=")) == ["bin", "data folder", "here.yaml"]


def locate_names(kind, start):
    return [name for name in locate.config_names(kind) if name.startswith(start)]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_script_is_valid(shell):
    script = run(*CJEPA, "completion", shell)
    assert script.returncode == 0 and "_cjepa" in script.stdout
    if program := shutil.which(shell):
        done = subprocess.run([program, "-n"], input=script.stdout, text=True, check=False)
        assert done.returncode == 0


def test_completion_of_an_unknown_shell():
    done = run(*CJEPA, "completion", "fish")
    assert done.returncode == 2 and "bash|zsh" in done.stderr
