"""Which data a run is trained on: RUN/data.json, so that it never goes on with others.

manifest of config.data ──fingerprint of the splits that the run reads──> RUN/data.json
the same, when the run is resumed or evaluated ──differs?──> UserError
"""

from __future__ import annotations

import json
from pathlib import Path

from cjepa_dist.config.schema import TrainConfig
from cjepa_dist.data.format.fingerprint import Fingerprint, dataset_fingerprint, differences
from cjepa_dist.data.format.manifest import Manifest
from cjepa_dist.errors import UserError
from cjepa_dist.runtime.files import write_json

DATA_NAME = "data.json"
SEALED_SPLIT = "sealed"  # judges a study at its end; see docs/studies


class RunData:
    """The data of a run; `check` before anything is written, then `record`."""

    def __init__(self, run_dir: Path, config: TrainConfig) -> None:
        self.run_dir, self.config = run_dir, config
        self.now: Fingerprint = {}

    def check(self) -> None:
        """Raises UserError, naming what differs, where the data are not those of the run.

        Also where a run would train or validate on the sealed split.
        """
        for name in ("train_split", "val_split"):
            if getattr(self.config, name) == SEALED_SPLIT:
                raise UserError(
                    f"config field {name}={SEALED_SPLIT}: this split judges a study at its end, so"
                    " no model is trained or chosen by it; take another split"
                )
        self.now = run_data_fingerprint(self.config)
        before = read_run_data(self.run_dir)
        if before and (found := differences(before, self.now)):
            raise UserError(
                f"{self.run_dir} was trained on other data than {self.config.data} holds now: they"
                f" differ in {', '.join(found)}; restore the data, or choose another run="
            )

    def record(self) -> None:
        """Write RUN/data.json, after `check`."""
        write_json(self.run_dir / DATA_NAME, self.now)


def run_data_fingerprint(config: TrainConfig) -> Fingerprint:
    """The fingerprint of the data at `config.data` now, of the splits that a run reads."""
    return dataset_fingerprint(Manifest.load(config.data), [config.train_split, config.val_split])


def read_run_data(run_dir: Path) -> Fingerprint | None:
    """What RUN/data.json says; None without one. Raises UserError where it cannot be read."""
    path = run_dir / DATA_NAME
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}, which says what data the run is trained on, cannot be read: restore it"
        ) from error


def check_evaluated_split(run_dir: Path, config: TrainConfig, split: str) -> None:
    """Raises UserError where `split` of the run's own data is not what it was in training."""
    before = read_run_data(run_dir)
    if not before:
        return
    now = run_data_fingerprint(config)
    for one in (before, now):
        one["shards"] = {name: x for name, x in one["shards"].items() if name == split}
    if found := differences(before, now):
        raise UserError(
            f"run {run_dir} was trained with other data than {config.data} holds now: they differ"
            f" in {', '.join(found)}; restore the data, or say data={config.data} to evaluate on it"
        )
