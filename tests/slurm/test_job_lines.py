"""What a local run shows of its jobs, and in which order it starts them."""

import json

from slurm.executors.job_lines import JobLines
from slurm.executors.local import chain_lengths
from slurm.experiment.job import Job
from slurm.jobs.job_log import log_path, progress_path

NAMES = ["data", "evaluate/world_model/baseline/seed_0"]


def report(folder, done, total, unit):
    path = progress_path(folder, "data")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"done": done, "total": total, "unit": unit}))


def test_a_line_shows_how_far_a_job_is_and_its_rate_once_it_is_known(tmp_path):
    with JobLines(tmp_path, NAMES) as lines:
        lines.started("data")
        assert lines.line("data").split() == ["data", "0", "s"]
        report(tmp_path, 10, 40, "videos")
        assert "10/40 videos" in lines.line("data") and "left" not in lines.line("data")
        report(tmp_path, 20, 40, "videos")
        assert "20/40 videos, " in lines.line("data") and "left" in lines.line("data")
        report(tmp_path, 5, 9, "windows")  # the job's next command
        assert "5/9 windows" in lines.line("data") and "left" not in lines.line("data")
        progress_path(tmp_path, "data").write_text("{")  # cut off
        assert "/" not in lines.line("data")


def test_ended_and_skipped_jobs_have_a_line_each_in_one_column(tmp_path, capsys):
    with JobLines(tmp_path, NAMES) as lines:
        lines.started("data")
        lines.ended("data", "stopped", "; the same command resumes it")
        lines.skipped(NAMES[1], "it needs data")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("data ") and first.endswith("after 0 s; the same command resumes it")
    assert first.index("stopped") == second.index("skipped, it needs data")


def test_verbose_copies_what_a_job_has_printed_since_it_started(tmp_path, capsys):
    path = log_path(tmp_path, "data")
    path.parent.mkdir(parents=True)
    path.write_text("of an earlier start\n")
    with JobLines(tmp_path, NAMES, verbose=True) as lines:
        lines.started("data")
        with path.open("a") as stream:
            stream.write("new\n")
        lines.refresh()
        lines.ended("data", "done")
    out = capsys.readouterr().out
    assert out.count("data: new\n") == 1 and "earlier" not in out


def test_the_job_with_the_longest_chain_behind_it_goes_first():
    waits = {"data": [], "control": ["data"], "model": ["data"], "rollout": ["model"]}
    jobs = [Job(name, "evaluate", [], [], needs, []) for name, needs in waits.items()]
    jobs.append(Job("report", "report", [], [], [], ["rollout", "control"]))
    found = chain_lengths(jobs)
    assert found == {"data": 4, "model": 3, "control": 2, "rollout": 2, "report": 1}
