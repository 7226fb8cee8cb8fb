"""What training leaves: an adapter or a whole model with its papers, and adapters merged into their models."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rarvision.chat.adapters import ADAPTER_METADATA, ADAPTER_WEIGHTS, Adapter
from rarvision.chat.loading import load_model, require, resolve_dtype
from rarvision.checkpoints import checkpoint_source, copy_companions, weights_fingerprint, without_weight_bars
from rarvision.errors import AdapterError, ChatUnavailableError, InputError, OptionError
from rarvision.tuning.runs import write_json

__all__ = ["merge_adapter", "save_adapter", "save_whole_model", "stored_dtype"]

_DTYPES = ("auto", "float32", "float16", "bfloat16")


def save_adapter(model: Any, folder: Path, *, state: dict[str, Any] | None, metadata: Mapping[str, Any]) -> None:
    """Write a peft model's adapter and where it comes from; call it in the main process.

    Args:
        model: The peft model.
        folder: To be made; must be empty or missing.
        state: All weights, where they are spread over processes.
        metadata: JSON values: ``base`` (``name``, ``revision``, ``fingerprint``), and what it was trained on.
    """
    _emptied(folder)
    model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's form for a model card, with nothing filled in
    with (folder / ADAPTER_WEIGHTS).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    write_json(folder / ADAPTER_METADATA, {"rarvision_adapter": 1, "weights_sha256": sha256, **metadata})


def save_whole_model(
    model: Any,
    folder: Path,
    *,
    base: str,
    revision: str | None,
    dtype: Any,
    state: dict[str, Any] | None = None,
    metadata: Mapping[str, Any],
) -> None:
    """Write a model as a checkpoint of its own, with its base's tokenizer, processor and chat template.

    Args:
        model: Of transformers; its number format is changed in place.
        folder: To be made; must be empty or missing.
        base: Where it comes from, as `rarvision.checkpoints.checkpoint_source` gives it.
        revision: Of the base, on the hub.
        dtype: Of torch, for the weights on disk.
        state: All weights, where they are spread over processes.
        metadata: JSON values that say what it was trained on.
    """
    from transformers import GenerationConfig

    _emptied(folder)
    if state is None:
        model.to(dtype)
    else:
        state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    model.generation_config = GenerationConfig()  # the base's own file is copied; some of them do not pass its checks
    model.config.use_cache = True
    with without_weight_bars():
        model.save_pretrained(folder, state_dict=state)
    (folder / "generation_config.json").unlink(missing_ok=True)
    copy_companions(base, folder, revision=revision)
    write_json(folder / ADAPTER_METADATA, {"rarvision_model": 1, **metadata})


def _emptied(folder: Path) -> None:
    """Remove what an interruption left under a temporary name."""
    shutil.rmtree(folder, ignore_errors=True)


def merge_adapter(
    adapter: Path | str,
    out: Path | str,
    *,
    model: str | Path | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Path:
    """Merge an adapter into its base model: a checkpoint that needs no peft, for `LocalChat` or any server.

    It is computed on the CPU in float32, so it needs memory for the whole model: 4 bytes a parameter.

    Args:
        adapter: The adapter's folder.
        out: Folder of the new checkpoint; must be empty or missing.
        model: The base model; None for the one that the adapter names.
        revision: Of the base model; None for the adapter's, where it names the model.
        dtype: Number format on disk: ``auto`` (the base model's), ``float32``, ``float16`` or ``bfloat16``.
        trust_remote_code: Run code from the base model's repository.

    Returns:
        ``out``.

    Raises:
        AdapterError: The adapter is missing, damaged, or of another model.
        ChatError: The base model cannot be loaded.
        InputError: ``out`` is not empty.
        MissingExtraError: peft is not installed.
    """
    out = Path(out)
    if dtype not in _DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(_DTYPES)}; got {dtype!r}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: is there already; give a new or an empty folder")
    require("peft", extra="tune", wanted="merging an adapter")
    found = Adapter.read(adapter)
    if model is None:
        model, revision = _base_of(found)
    source = checkpoint_source(model, missing=ChatUnavailableError)
    found.check_base(source, revision=revision)
    loaded = load_model(
        source,
        device="cpu",
        dtype=resolve_dtype("float32", "cpu"),
        revision=revision,
        device_map=None,
        quantization=None,
        trust_remote_code=trust_remote_code,
    )
    merged = found.wrap(loaded).merge_and_unload(safe_merge=True)
    base = {
        "name": str(model),
        "revision": revision,
        "fingerprint": weights_fingerprint(source, revision=revision, missing=ChatUnavailableError),
    }
    part = out.with_name(f"{out.name}.part")
    stored = stored_dtype(source, revision=revision, trust_remote_code=trust_remote_code)
    save_whole_model(
        merged,
        part,
        base=source,
        revision=revision,
        dtype=stored if dtype == "auto" else resolve_dtype(dtype, "cpu"),
        metadata={**found.metadata, "base": base, "merged_adapter_sha256": found.sha256},
    )
    if out.exists():
        out.rmdir()
    part.replace(out)
    return out


def _base_of(adapter: Adapter) -> tuple[str, str | None]:
    """The model that an adapter says it was trained on."""
    if adapter.base.get("name"):
        return str(adapter.base["name"]), adapter.base.get("revision")
    config = json.loads((adapter.folder / "adapter_config.json").read_text(encoding="utf-8"))
    if not config.get("base_model_name_or_path"):
        raise AdapterError(f"{adapter.folder} does not tell its base model; give it as model (--model)")
    return str(config["base_model_name_or_path"]), config.get("revision")


def stored_dtype(model: str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """The number format that a checkpoint says its weights are in; torch's float32 where it says none."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    return getattr(config, "dtype", None) or torch.float32
