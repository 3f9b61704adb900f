"""The package map; every other fact about the distribution is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["videolm", "videolm.*"]) + find_packages("kernels"),
    package_dir={"videolm_kernels": "kernels/videolm_kernels"},
    package_data={
        "videolm": ["py.typed", "assets/mini/*"],
        "videolm_kernels": ["py.typed"],
    },
)
