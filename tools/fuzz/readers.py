"""The readers of files and words that may come from anywhere, each with its valid inputs.

seeds ──mutate──> a file ──read──> what this package does with it, up to where it is used
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cjepa_dist.checkpoint.integrity import Choice, verify_checkpoint
from cjepa_dist.checkpoint.resume import LAST_CHECKPOINT, check_record
from cjepa_dist.clevrer.questions import scene_objects
from cjepa_dist.config import merge
from cjepa_dist.config.command_line import parse
from cjepa_dist.config.schema import TrainWorldModel
from cjepa_dist.data.format.journal import JOURNAL_NAME, Journal
from cjepa_dist.data.format.manifest import MANIFEST_NAME, Manifest
from cjepa_dist.data.format.sample import ANNOTATION, MATCH, QUESTIONS, TRUTH, WORLDS, Sample
from cjepa_dist.data.format.shard_reader import ShardReader
from cjepa_dist.data.format.storage import local_copy
from cjepa_dist.data.question_encoding import EncodedQuestions
from cjepa_dist.reporting.plots.learning import read_curves
from cjepa_dist.runtime.environment import RANGES, check_launch, read_int
from cjepa_dist.runtime.files import drop_lines_after, read_json_lines
from data_prep.annotations import SceneMetadata
from data_prep.array_files import open_arrays
from data_prep.faults import Faults
from data_prep.pickle import reader as pickle_reader
from data_prep.slot_matching import AnnotatedScene
from slurm.experiment.job import Job
from slurm.job_state import JobState, read_progress
from slurm.record import Record
from tools import runs
from tools.fuzz import containers, mutations, seeds

ENVIRONMENT = (*RANGES, "MASTER_ADDR", "CJEPA_STAGED", "SLURM_RESTART_COUNT")
FIELDS = ("run", "data", "seed", "loop.steps", "optimizer.lr", "mask.probs", "reading", "plugins")


@dataclass(frozen=True)
class Reader:
    """`file`: name in `folder` of case {}; `names`: what else a line may name in its place.

    `writes`: it may change its input, by what it is for.
    """

    name: str
    folder: Path
    file: str
    seeds: Sequence[bytes]
    mutate: mutations.Mutation
    read: Callable[[Path], Any]
    names: tuple[str, ...] = ()
    writes: bool = False


def manifest(folder: Path) -> Reader:
    def read(path: Path) -> None:
        found = Manifest.load(path.parent)
        for split in found.splits:
            assert len(found.keys(split)) >= 0
            found.count(split)

    content = [(seeds.dataset(folder.with_name("data")) / MANIFEST_NAME).read_bytes()]
    return Reader("manifest", folder, MANIFEST_NAME, content, mutations.mutate_json, read)


def shard(folder: Path) -> Reader:
    data = seeds.dataset(folder)
    about = Manifest.load(data)
    entry = about.shards("train")[0]

    def read(path: Path) -> None:
        ours = replace(entry, bytes=path.stat().st_size)
        with ShardReader(data, "train", ours) as opened:
            for key in entry.keys:
                opened.read_slots(key, about)
                opened.read_json(key, ANNOTATION)
                opened.read_json(key, ANNOTATION, ["object_property", "collision"])
                opened.read_json(key, QUESTIONS)
                for member in (TRUTH, WORLDS, MATCH):
                    opened.read_arrays(key, member)

    file = f"train/{entry.name}"
    tars = [(data / file).read_bytes()]
    return Reader("tar shard", folder, file, tars, containers.mutate_tar, read)


def arrays(
    name: str, suffix: str, contents: Sequence[bytes], mutate: mutations.Mutation
) -> Callable[[Path], Reader]:
    def read(path: Path) -> None:
        for array in open_arrays(path).values():
            if array.shape and array.shape[0]:
                array.read(0)
            array.read(None)

    # Another name for each case: files that were read stay open by name, time and size.
    return lambda folder: Reader(name, folder, "case{}" + suffix, contents, mutate, read)


def pickles(folder: Path) -> Reader:
    def read(path: Path) -> None:
        pickle_reader.load(path)

    return Reader("pickle", folder, "case.pkl", seeds.pickles(), containers.mutate_torch, read)


def questions(folder: Path) -> Reader:
    """What passes the import must pass the encoding for training too."""

    def read(path: Path) -> None:
        metadata, faults = SceneMetadata(str(path), ""), Faults()
        metadata.check_answers("train", metadata.found)
        encoded = EncodedQuestions(str(path), "train")
        for scene in metadata.found:
            sample = Sample("video_00002")
            metadata.add_to(sample, scene, faults)
            encoded.add(0, sample.questions, scene)
        if faults.entries:
            raise faults.error("questions")
        encoded.labelled()

    return Reader("questions", folder, "train.json", seeds.questions(), mutations.mutate_json, read)


def scene_annotations(folder: Path) -> Reader:
    """What passes the import must pass `match`, and the checks of counterfactual questions too."""
    asked = folder.with_name("questions.json")
    asked.write_bytes(seeds.questions()[0])

    def read(path: Path) -> None:
        metadata, faults = SceneMetadata(str(asked), str(path.parent)), Faults()
        sample = Sample("video_00002")
        metadata.add_to(sample, 2, faults)
        if sample.annotation is not None:
            AnnotatedScene.from_annotation(sample.annotation)
            if sample.annotation.get("object_property"):
                scene_objects(sample.annotation)
        if faults.entries:
            raise faults.error("annotations")

    file, names = "annotation_00002.json", (asked.name,)
    content = [seeds.annotation()]
    return Reader("annotations", folder, file, content, mutations.mutate_json, read, names)


def metrics(folder: Path) -> Reader:
    """By a resume, by `cjepa runs`, by the report's curves, by the status of an experiment."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_bytes(seeds.CONFIG)

    def read(path: Path) -> None:
        copy = path.with_name("copy.jsonl")
        copy.write_bytes(path.read_bytes())
        read_json_lines(path)
        drop_lines_after(copy, 2)
        read_json_lines(copy)
        copy.unlink()
        read_curves(path.parent)
        outputs = [str(path.with_name("done.json"))]
        job = Job("train", "world_model", [], outputs, needs=[], after=[])
        read_progress(JobState(job, "RUNNING"), Record(path.parent.parent, {}, {}))
        runs.list_runs(path.parent.parent)
        runs.describe_run(path.parent)
        runs.compare_runs([path.parent, path.parent])

    file = "metrics.jsonl"
    return Reader("metrics.jsonl", folder, file, [seeds.METRICS], mutations.mutate_lines, read)


def journal(folder: Path) -> Reader:
    content = seeds.journal()

    def read(path: Path) -> None:
        shard_path = path.parent / "train" / "000000.tar"
        shard_path.parent.mkdir(exist_ok=True)
        shard_path.write_bytes(bytes(seeds.JOURNAL_SHARD))
        Journal(path.parent, json.loads(content.splitlines()[0]))

    return Reader(
        "journal", folder, JOURNAL_NAME, [content], mutations.mutate_lines, read, writes=True
    )


def marks(folder: Path) -> Reader:
    """The small files of a run: of its checkpoints, its end, its stop, its environment."""
    checkpoint = folder.with_name("run") / "checkpoints" / "step_00000004"
    checkpoint.mkdir(parents=True, exist_ok=True)
    run_dir = checkpoint.parent.parent
    (run_dir / "config.yaml").write_bytes(seeds.CONFIG)

    def read(path: Path) -> None:
        content = path.read_bytes()
        for place in (
            run_dir / "done.json",
            run_dir / "environment.json",
            checkpoint / "meta.json",
        ):
            place.write_bytes(content)
            try:
                runs.list_runs(run_dir.parent)
                runs.describe_run(run_dir)
            finally:
                place.unlink()
        (checkpoint / "checksums.json").write_bytes(content)
        verify_checkpoint(checkpoint)
        (run_dir / LAST_CHECKPOINT).write_bytes(content)
        check_record(run_dir, Choice(4, (), ""))

    names = ("done.json", "environment.json", "meta.json")
    return Reader(
        "marks of a run", folder, "mark.json", seeds.MARKS, mutations.mutate_json, read, names
    )


def config(folder: Path) -> Reader:
    def read(path: Path) -> None:
        found = merge.build(TrainWorldModel, merge.read_yaml(path))
        merge.save_yaml(found, path.with_name("saved.yaml"))
        path.with_name("saved.yaml").unlink()

    names = ("config field", "config key", "missing: ", "plugin")
    return Reader(
        "config", folder, "config.yaml", [seeds.CONFIG], mutations.mutate_yaml, read, names
    )


def words(folder: Path) -> Reader:
    """Arguments of a command line."""

    def read(path: Path) -> None:
        text = path.read_bytes().decode("utf-8", "surrogatepass")
        parse(TrainWorldModel, [line for line in text.splitlines() if line])

    names = (
        *("config field", "config key", "missing: ", "arguments are", "config file", "plugin"),
        *("no config", "errors"),
    )
    mutate = mutations.mutate_words(FIELDS)
    return Reader("command line", folder, "words.txt", [b"run=x\ndata=y"], mutate, read, names)


def environment(folder: Path) -> Reader:
    """Variables of launchers and jobs."""

    def read(path: Path) -> None:
        text = path.read_bytes().decode("utf-8", "surrogatepass")
        pairs = [line.partition("=") for line in text.splitlines()]
        old = dict(os.environ)
        try:
            for name, _, value in pairs:
                if name in ENVIRONMENT and "\0" not in value:  # the system takes no others
                    os.environ[name] = value.encode("utf-8", "replace").decode()
            check_launch()
            read_int("SLURM_RESTART_COUNT", 0)
            local_copy(folder)
        finally:
            os.environ.clear()
            os.environ.update(old)

    mutate = mutations.mutate_words(ENVIRONMENT)
    return Reader("environment", folder, "words.txt", seeds.VARIABLES, mutate, read, ENVIRONMENT)


READERS: dict[str, Callable[[Path], Reader]] = {
    "manifest": manifest,
    "shard": shard,
    "npy": arrays("npy", ".npy", seeds.npys(), containers.mutate_npy),
    "npz": arrays("npz", ".npz", seeds.npzs(), containers.mutate_zip),
    "hdf5": arrays("HDF5", ".h5", seeds.hdf5s(), mutations.mutate_bytes),
    "safetensors": arrays(
        "safetensors", ".safetensors", seeds.safetensors(), containers.mutate_safetensors
    ),
    "pickle": pickles,
    "questions": questions,
    "annotations": scene_annotations,
    "metrics": metrics,
    "journal": journal,
    "marks": marks,
    "config": config,
    "words": words,
    "environment": environment,
}


def make_reader(name: str, folder: Path) -> Reader:
    """A reader that works in a folder of its own."""
    place = folder / name / "input"
    place.mkdir(parents=True)
    return READERS[name](place)
