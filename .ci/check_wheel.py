"""Check what the built wheel holds: typed, licensed, with the embedded weights, no pickles, not too large."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

MAX_WEIGHTS = 25_000_000


def main(path: Path) -> int:
    """Print what is wrong with the wheel; return the exit code."""
    with zipfile.ZipFile(path) as wheel:
        sizes = {info.filename: info.file_size for info in wheel.infolist()}
    weights = {name: size for name, size in sizes.items() if name.startswith("rarvision/embedded/")}
    problems = [f"lacks {name}" for name in ("rarvision/py.typed", "rarvision/cli/__init__.py") if name not in sizes]
    if not any(name.endswith("licenses/LICENSE") for name in sizes):
        problems.append("lacks the licence")
    problems += [
        f"lacks the embedded weights of {model}"
        for model in ("clip-16", "clip-32", "mllm")
        if not any(f"/{model}/" in name and name.endswith(".safetensors") for name in weights)
    ]
    if sum(weights.values()) > MAX_WEIGHTS:
        problems.append(f"embedded files take {sum(weights.values()):,} bytes, more than {MAX_WEIGHTS:,}")
    problems += [f"holds a pickle: {name}" for name in sizes if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
    for problem in problems:
        print(f"{path.name}: {problem}", file=sys.stderr)
    print(f"{path.name}: {path.stat().st_size:,} bytes, {len(sizes)} files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
