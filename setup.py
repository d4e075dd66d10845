"""Package metadata, and a wheel that holds the whole project under one top-level name.

    slurm/ data_prep/ tools/ configs/  ──build──>  cjepa_dist/_project/   found by config/locate.py

Ranges are what was tested; constraints.txt holds one exact set of versions that passes the tests.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PROJECT = ("slurm", "data_prep", "tools", "configs")
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "cjepa_dist" / "__init__.py").read_text())

CORE = [
    "torch>=2.12,<2.15",  # tools/supported_versions.sh ran 2.12.0, 2.13.0 and 2.14.1
    "numpy>=1.26,<3",
    "accelerate>=1.15,<2",
    "deepspeed>=0.19.8,<0.20",  # imported by ZeRO alone
    "webdataset>=1.0.2,<2",
    "tensorboard>=2.21,<3",
    "pillow>=10.1",  # animations; TensorBoard needs it too
    "submitit>=1.5.4,<2",
    "omegaconf>=2.3,<3",
    "PyYAML>=6,<7",
    "safetensors>=0.5,<1",
    "rich>=13,<16",
    "xxhash>=3.4,<5",
    "psutil>=5.9,<8",
    "scipy>=1.11,<2",  # linear_sum_assignment, in data_prep.match
    "fsspec>=2024.6",  # URLs other than http(s); torch needs it too
]
EXTRAS = {
    "report": [
        "matplotlib>=3.8,<4",
        "scikit-learn>=1.4,<2",
        "jinja2>=3.1,<4",  # report.html; torch needs it too
        "markdown-it-py>=3,<5",  # its tables; rich needs it too
    ],
    "hdf5": ["h5py>=3.10,<4"],  # data_prep.import_arrays of .h5
    "download": ["huggingface_hub>=0.34,<3"],  # slots on its hub; accelerate needs it too
    "s3": ["s3fs>=2024.6"],  # data=s3://...
    "summary": ["gcastle>=1.0.4,<2"],  # NOTEARS and DAG-GNN, `estimators=[summary:notears]`
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2"],
    "test": [
        "gcastle>=1.0.4,<2",  # the extra `summary`, 0.2 MB and pandas
        "h5py>=3.10,<4",
        "s3fs>=2024.6",  # the extra `s3`
        "moto[s3]>=5.1,<6",  # an S3 server, on this machine
        "flask>=3,<4",  # moto's server
        "flask-cors>=5,<7",
        "pymunk>=7.0,<8",  # the simulator's impulses are compared with an independent engine's
        "pytest>=8,<10",
        "pytest-timeout>=2.3,<3",
        "pytest-xdist>=3.7,<4",  # parallel workers; 3.7 can keep the order of tests
        "hypothesis>=6.100,<7",
        "ruff>=0.8,<1",
        "mypy>=1.13,<3",
        "import-linter>=2.1,<3",
        "types-PyYAML>=6.0.12",
        "selenium>=4.20,<5",  # report.html in a headless Chromium, where there is one
        "setuptools>=77.0.3",  # builds a wheel in tests/test_install.py
    ],
}


class BuildWithProject(build_py):
    """Puts the project's other folders into the package, in the build folder only."""

    def run(self) -> None:
        if self.editable_mode:  # the checkout has them beside the package
            return super().run()
        shutil.rmtree(self.build_lib, ignore_errors=True)  # or modules removed since are built too
        super().run()
        for name in PROJECT:
            target = Path(self.build_lib) / "cjepa_dist" / "_project" / name
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name="cjepa-dist",
    version=VERSION[1],
    description="Causal object-slot world models (C-JEPA, CTT losses) and question answering (ALOE)"
    " on CLEVRER, on one machine or many",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["cjepa_dist", "cjepa_dist.*"]),
    package_data={
        "cjepa_dist.reporting.page": ["*.jinja", "*.css"],
        "cjepa_dist.reporting.scene": ["*.js", "*.css"],
    },
    cmdclass={"build_py": BuildWithProject},
    entry_points={"console_scripts": ["cjepa = cjepa_dist.cli:main"]},
    install_requires=CORE,
    extras_require=EXTRAS,
)
