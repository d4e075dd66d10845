"""Which tests run when, on which core, and what may be missing.

- `slow` alone decides the tier: `bash tools/test.sh` leaves these tests out and says how many.
- Parallel workers (pytest-xdist) have one core each, and so one thread, as have the processes that
  their tests start. Tests of a file that share a fixture stay on one worker.
- `serial` tests have the whole machine, after all others: those that measure it or wait for several
  processes, and all on a real Slurm.
- In CI (CI=true) a skipped test has failed, except for a reason in `MAY_BE_MISSING`.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MAY_BE_MISSING = (  # on the machines of CI
    "no GPU here",
    "this CPU has no bfloat16",
)
NOT_IN_CI = "in CI nothing may be skipped: "
SERIAL_FIXTURES = {"slurm"}
LOCK, GROUPS = "lock", "groups.json"  # in a folder of all workers
CORES = sorted(os.sched_getaffinity(0))


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


def own_core(worker: str) -> set[int]:
    """The core of the parallel worker gwN."""
    return {CORES[int(worker.removeprefix("gw")) % len(CORES)]}


class Tiers:
    """A plugin of the process that collects or runs tests, under pytest-xdist of each worker.

    a worker: collect ──GROUPS──> the first process: schedule ──> a worker: LOCK, run
    """

    def __init__(self, config: pytest.Config) -> None:
        self.left_out = 0
        self.worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.lock: int | None = None
        if self.worker:
            os.sched_setaffinity(0, own_core(self.worker["workerid"]))
            self.lock = os.open(Path(self.worker["folder"], LOCK), os.O_RDWR | os.O_CREAT)

    # --- order and places -----------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Iterator[None]:
        for item in items:
            if SERIAL_FIXTURES & set(getattr(item, "fixturenames", ())):
                item.add_marker("serial")
        yield
        # Long tests first: the short ones fill the gaps at the end.
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        long = {item.path for item in items if starts_processes(item)}
        items.sort(key=lambda i: (is_serial(i), i.path not in slow, i.path not in long))
        if self.worker is not None and self.worker["workerid"] == "gw0":
            groups = {i.nodeid: group for i in items if (group := group_of(i))}
            Path(self.worker["folder"], GROUPS).write_text(json.dumps(groups))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Serial tests wait until no other worker runs a test, and get all cores.

        They are last and on one worker, so that the others have nothing left to do meanwhile.
        """
        if self.lock is None:
            return (yield)
        fcntl.flock(self.lock, fcntl.LOCK_EX if is_serial(item) else fcntl.LOCK_SH)
        if is_serial(item):
            os.sched_setaffinity(0, CORES)
        try:
            return (yield)
        finally:
            os.sched_setaffinity(0, own_core(self.worker["workerid"]))
            fcntl.flock(self.lock, fcntl.LOCK_UN)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory()
        node.workerinput["folder"] = self.folder.name

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Groups stay together, all else goes where there is room, in the order of collection.

        `--dist loadgroup` would do, but its marks are lost under pytest 9 (pytest-xdist 3.8).
        """
        from xdist.scheduler import LoadScopeScheduling

        path = Path(self.folder.name, GROUPS)

        class GroupScheduling(LoadScopeScheduling):
            def _split_scope(self, nodeid: str) -> str:
                return read_groups(path).get(nodeid, nodeid)

        config.option.loadscopereorder = False
        return GroupScheduling(config, log)

    def pytest_unconfigure(self) -> None:
        if self.folder is not None:
            self.folder.cleanup()

    # --- what was not run -----------------------------------------------------------------------

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        if items and "slow" in items[0].config.option.markexpr:
            self.left_out += sum(item.get_closest_marker("slow") is not None for item in items)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.worker is not None:
            session.config.workeroutput["left_out"] = self.left_out

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.left_out = max(self.left_out, getattr(node, "workeroutput", {}).get("left_out", 0))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report = yield
        return without_skip(report)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self) -> Iterator[None]:
        report = yield
        return without_skip(report)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        failed = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
        for report in failed:
            if str(report.longrepr).startswith(NOT_IN_CI):
                terminalreporter.write_line(f"{report.nodeid}: {report.longrepr}")
        if self.left_out:
            terminalreporter.write_line(
                f"left out: {self.left_out} slow tests; `bash tools/test.sh all` runs everything"
            )


def is_serial(item: pytest.Item) -> bool:
    return item.get_closest_marker("serial") is not None


def starts_processes(item: pytest.Item) -> bool:
    return "fork_server" in getattr(item, "fixturenames", ())


def group_of(item: pytest.Item) -> str:
    """The name of those that share a worker with this test, or ""."""
    if is_serial(item):
        return "serial"
    known = getattr(item, "_fixtureinfo", None)
    fixtures = known.name2fixturedefs.values() if known else ()
    once_a_file = any(definitions[-1].scope == "module" for definitions in fixtures)
    return str(item.path) if once_a_file else ""


@functools.cache
def read_groups(path: Path) -> dict[str, str]:
    return json.loads(path.read_text())


def without_skip(report: Any) -> Any:
    """The report; in CI one of failure where the test was skipped for a reason not allowed."""
    if in_ci() and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(MAY_BE_MISSING):
            report.outcome, report.longrepr = "failed", NOT_IN_CI + reason
    return report
