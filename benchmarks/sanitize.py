"""The kernels of `rnn_lm/nn/cpu` under the sanitizers of the C++ compiler: addresses, undefined behaviour, threads.

Random layers of all cells, inputs and masks, and output layers, run forward and backward, and texts, cut for 1, 2, 5
and 64 threads, with the tiles of this CPU and those of another. All must have the same bits, read nothing past an end
and race for nothing.

python -m benchmarks.sanitize [--cases=200]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rnn_lm.nn.cpu
from rnn_lm.nn.cpu.compiler import compiler, kind_of_cpu

SOURCE = Path(__file__).with_suffix(".cc")
SANITIZERS = {
    "none": ["-O3"],
    "addresses, undefined behaviour": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-O1", "-g", "-fsanitize=thread"],
}
OTHER, LANES, ROWS = ("AVX2", 8, 6) if kind_of_cpu() == "x86-64-v4" else ("AVX-512", 16, 12)
SIZE = [f"-DRNN_LM_LANES={LANES}", f"-DRNN_LM_ROWS={ROWS}"]
TILES = {
    "of this CPU": ["-march=native"],
    f"of {OTHER}": ["-march=native", *SIZE, "-Wno-psabi", "-ffp-contract=off"],
}


def build(folder: str, flags: list[str]) -> str:
    """The program's path."""
    out = str(Path(folder) / "sanitize")
    kernels = Path(rnn_lm.nn.cpu.__file__).parent
    sources = [f"-I{kernels}", str(SOURCE), str(kernels / "gemm.cc")]
    subprocess.run([*compiler(), "-std=c++17", "-pthread", *flags, *sources, "-o", out], check=True)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200, help="how many random layers")
    cases = parser.parse_args().cases
    failed = 0
    for sanitizer, flags in SANITIZERS.items():
        for tiles, of_tiles in TILES.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.monotonic()
                result = subprocess.run(
                    [build(folder, [*flags, *of_tiles]), str(cases)], capture_output=True, text=True
                )
            print(f"sanitizer: {sanitizer}; tiles {tiles}; {time.monotonic() - start:.0f} s: {result.stdout.strip()}")
            if result.returncode:
                print(result.stderr[-4000:], file=sys.stderr)
                failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
