"""The small models that come along: two CLIPs and a LLaVA, so that everything runs offline."""

from __future__ import annotations

from pathlib import Path

from rarvision.errors import OptionError

__all__ = ["MODELS", "weights_path"]

MODELS = ("clip-16", "clip-32", "mllm")
"""``clip-16`` sees 16 pixels a side and is the default encoder, ``clip-32`` is the better one, ``mllm`` the ranker."""


def weights_path(name: str) -> Path:
    """The folder of an embedded model, in the standard Hugging Face format.

    Raises:
        OptionError: There is no such model, or the installation lacks its weights.
    """
    if name not in MODELS:
        raise OptionError(f"no embedded model {name!r}; there are {', '.join(MODELS)}")
    folder = Path(__file__).parent / "weights" / name
    if not (folder / "model.safetensors").is_file():
        raise OptionError(
            f"the weights of {name!r} are missing from this installation ({folder}); reinstall rarvision, or train "
            "them: python -m rarvision.embedded.training --out runs/embedded --install"
        )
    return folder
