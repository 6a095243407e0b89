"""Build the optional C kernel; without a compiler the package installs all the same and computes in torch."""

import sys
from pathlib import Path

from setuptools import Extension, setup

FLAGS = (
    []
    if sys.platform == "win32"
    else ["-std=c99", "-Wno-psabi", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
)

setup(
    ext_modules=[
        Extension(
            "edgetune.directions.native._kernel",
            sources=["src/edgetune/directions/native/kernel.c"],
            depends=[str(path) for path in Path("src/edgetune/directions/native").glob("*.h")],
            extra_compile_args=FLAGS,
            extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
            optional=True,
        )
    ]
)
