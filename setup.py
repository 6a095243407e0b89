"""Build the optional C kernel; without a compiler the package installs all the same and computes in torch."""

import sys

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
            depends=["src/edgetune/directions/native/lanes.h"],
            extra_compile_args=FLAGS,
            extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
            optional=True,
        )
    ]
)
