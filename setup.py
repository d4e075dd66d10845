"""Package metadata. Ranges are what was tested; `constraints.txt` holds one exact set of versions that passes the tests."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "torch>=2.9,<2.14",  # 2.9 has torch.optim.Muon; 2.14 is untested, and a range that admits it pulls several GB of CUDA on a CPU machine
    "numpy>=1.26,<3",
    "accelerate>=1.15,<2",
    "deepspeed==0.19.8",
    "webdataset>=1.0.2,<2",
    "tensorboard>=2.21,<3",
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
    "report": ["matplotlib>=3.8,<4", "scikit-learn>=1.4,<2"],
    "hdf5": ["h5py>=3.10,<4"],  # data_prep.import_arrays of .h5
    "s3": ["s3fs>=2024.6"],  # data=s3://...
    "summary": [
        "gcastle>=1.0.4,<2"
    ],  # NOTEARS and DAG-GNN, for `evaluate_graph estimators=[summary:notears]`
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
        "hypothesis>=6.100,<7",
        "ruff>=0.8,<1",
        "mypy>=1.13,<3",
        "import-linter>=2.1,<3",
        "types-PyYAML>=6.0.12",
    ],
}

setup(
    name="cjepa-dist",
    version="0.1.0",
    description="C-JEPA world models with causal (CTT) losses on slots, and ALOE on top: simulated or real CLEVRER, one machine or many",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(
        include=["cjepa_dist", "cjepa_dist.*", "data_prep", "data_prep.*", "slurm"]
    ),
    install_requires=CORE,
    extras_require=EXTRAS,
)
