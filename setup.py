"""The C++ kernels and the experiments of a wheel; `pyproject.toml` has the rest."""

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, find_namespace_packages, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

KERNELS = "rnn_lm/nn/cpu"
CPP = runpy.run_path(f"{KERNELS}/compiler.py")  # not imported: the package needs JAX
KINDS = CPP["kinds_here"]() if CPP["has_compiler"]() else []
# The library runs where there is no C++.
STATIC = ("-static-libgcc", "-static-libstdc++") if sys.platform == "linux" else ()


class BuildWithKernels(build_py):
    def run(self):
        super().run()
        if self.editable_mode:
            return  # compiled when first needed, as in a clone
        for old in (Path(self.build_lib) / KERNELS).glob("kernels-*"):
            old.unlink()  # of an earlier build in the same folder
        include = str(Path(importlib.util.find_spec("jaxlib").origin).parent / "include")
        for kind in KINDS:
            self.announce(f"compiling the kernels for {kind}", level=2)
            try:
                path = Path(self.build_lib) / KERNELS / CPP["file_name"](kind)
                CPP["compile_to"](path, kind, include=include, link=STATIC)
            except (OSError, subprocess.SubprocessError) as error:
                self.warn(f"no kernels for {kind}: {CPP['reason_of'](error)}")


class WheelOfAnyPython(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]  # XLA calls the kernels, not Python


class PackageWithKernels(Distribution):
    def has_ext_modules(self):
        return bool(KINDS)


setup(
    packages=[*find_packages(include=["rnn_lm*"]), "rnn_lm.experiments"]
    + [f"rnn_lm.experiments.{name}" for name in find_namespace_packages("experiments")],
    package_dir={"rnn_lm.experiments": "experiments"},
    distclass=PackageWithKernels,
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelOfAnyPython},
)
