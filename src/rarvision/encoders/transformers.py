"""CLIP and SigLIP models from transformers as encoders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float

from rarvision.checkpoints import checkpoint_source, weight_files, without_weight_bars
from rarvision.encoders.base import Encoder, batch_size_of
from rarvision.encoders.pixels import PixelPlan
from rarvision.errors import EncoderError, OptionError
from rarvision.images import Picture

__all__ = ["TransformersEncoder", "device_of"]

_FAMILIES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
_PREPROCESSING = (
    "do_convert_rgb",
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "patch_size",
    "max_num_patches",
)


@final
class TransformersEncoder(Encoder):
    """CLIP, SigLIP and SigLIP 2 checkpoints, from a hub name or a folder; safetensors only, no remote code.

    Args:
        model: Hub name (``openai/clip-vit-base-patch16``) or folder with a checkpoint, its tokenizer and its
            image processor.
        device: ``auto`` (an accelerator where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``float32``, ``float16`` or ``bfloat16``; the vectors are float32 in any case.
        revision: Branch, tag or commit of a hub repository.
        batch_size: Images or texts in one forward pass.

    Raises:
        EncoderError: No such model, another family, or weights in another format than safetensors.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "float32",
        revision: str | None = None,
        batch_size: int = 32,
    ) -> None:
        self._name = checkpoint_source(model, missing=EncoderError)
        self._revision = revision
        self._batch = batch_size_of(batch_size)
        self._family = self._read_family()
        self._model, self._processor, self._tokenizer = self._load(_dtype(dtype), device_of(device))
        self._plan = PixelPlan.of(self._processor)
        text_config = self._model.config.text_config
        self._text_length = int(text_config.max_position_embeddings)
        self._dim = self._width()

    @property
    def name(self) -> str:
        """The hub name or folder."""
        return self._name

    @property
    def revision(self) -> str | None:
        """The revision that was asked for."""
        return self._revision

    @property
    def dim(self) -> int:
        """Number of dimensions of the vectors."""
        return self._dim

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self._model.device)

    @property
    def precision(self) -> str:
        """The dtype that was asked for."""
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def batch_size(self) -> int:
        """Images or texts in one forward pass."""
        return self._batch

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the stored weights as float32, the preprocessing's values and the tokenizer's vocabulary.

        It does not depend on the device, on the dtype that computes, on library versions or on torchvision.
        """
        digest = hashlib.sha256()
        digest.update(json.dumps(self._settings(), sort_keys=True).encode())
        for name, weights in self._stored_weights():
            digest.update(name.encode())
            digest.update(json.dumps(list(weights.shape)).encode())
            digest.update(weights.data)
        return f"transformers:{self._family}:{digest.hexdigest()}"

    @property
    def input_side(self) -> int | None:
        """The shorter side that images are resized to; None where the model's own processor is asked (SigLIP 2)."""
        return None if self._plan is None else self._plan.side

    @property
    def overlaps(self) -> bool:
        """False on a processor: the model uses all of its cores, and decoding beside it slows both."""
        return str(self._model.device) != "cpu"

    def _prepare(self, picture: Picture) -> Any:
        """Pixels as bytes; what the model's own image processor returns where it is asked."""
        if self._plan is not None:
            return self._plan.pixels(picture)
        return self._processor(images=[picture.whole()], return_tensors="pt")

    def _encode_images(self, images: list[Any]) -> Float[np.ndarray, "n dim"]:
        import torch

        with torch.inference_mode():
            output = self._model.get_image_features(**self._inputs(images))
        return _pooled(output)

    def _inputs(self, images: list[Any]) -> dict[str, Any]:
        """A batch of what `_prepare` returned, as the model takes it."""
        import torch

        device, dtype = self._model.device, self._model.dtype
        if self._plan is not None:
            pixels = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).to(torch.float32)
            mean, std = (
                torch.tensor(v, dtype=torch.float32, device=device)[:, None, None]
                for v in (self._plan.mean, self._plan.std)
            )
            return {"pixel_values": ((pixels * self._plan.factor - mean) / std).to(dtype).contiguous()}
        return {
            name: torch.cat([each[name] for each in images]).to(device, dtype if tensor.is_floating_point() else None)
            for name, tensor in images[0].items()
        }

    def _encode_texts(self, texts: list[str]) -> Float[np.ndarray, "n dim"]:
        import torch

        length = self._text_length
        if self._family == "clip":
            encoded = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
            inputs = {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}
        else:  # SigLIP was trained on lower-case text padded to its full length, without a mask
            lowered = [text.lower() for text in texts]
            encoded = self._tokenizer(
                lowered, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            )
            inputs = {"input_ids": encoded["input_ids"]}
        with torch.inference_mode():
            output = self._model.get_text_features(**{k: v.to(self._model.device) for k, v in inputs.items()})
        return _pooled(output)

    def _read_family(self) -> str:
        from transformers import AutoConfig

        folder = Path(self._name)
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise EncoderError(
                f"{folder} is not a model folder: it has no config.json. Give a folder that save_pretrained wrote, "
                "or a hub name such as openai/clip-vit-base-patch16"
            )
        try:
            config = AutoConfig.from_pretrained(self._name, revision=self._revision)
        except Exception as error:
            raise self._cannot_load(error) from error
        family = str(config.model_type)
        if family not in _FAMILIES:
            raise EncoderError(
                f"{self._name} is a {family!r} model; encoders are of the families {', '.join(sorted(_FAMILIES))}. "
                "For another one, write a subclass of rarvision.Encoder (two methods)"
            )
        return family

    def _load(self, dtype: Any, device: str) -> tuple[Any, Any, Any]:
        import transformers

        options = {"revision": self._revision}
        try:
            with without_weight_bars():
                model = getattr(transformers, _FAMILIES[self._family]).from_pretrained(
                    self._name, dtype=dtype, use_safetensors=True, **options
                )
            # The PIL backend is asked for by name: the same pixels whether torchvision is installed or not.
            processor = transformers.AutoImageProcessor.from_pretrained(self._name, backend="pil", **options)
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._name, **options)
        except Exception as error:
            raise self._cannot_load(error) from error
        try:
            model = model.to(device)
        except (AssertionError, RuntimeError, NotImplementedError) as error:  # torch's ways to say "no such device"
            reason = " ".join(str(error).split())[:300]
            raise EncoderError(f"{self._name} cannot run on device {device!r}; use auto or cpu: {reason}") from error
        return model.eval(), processor, tokenizer

    def _cannot_load(self, error: Exception) -> EncoderError:
        reason = " ".join(str(error).split())[:300]
        if Path(self._name).is_dir():
            advice = "the folder must hold config.json, model.safetensors, the tokenizer and preprocessor_config.json"
        else:
            advice = (
                "if the model hub cannot be reached from here, download the model elsewhere "
                f"(hf download {self._name}) and give its folder instead of the name"
            )
        return EncoderError(f"cannot load the encoder {self._name}: {advice}. {type(error).__name__}: {reason}")

    def _width(self) -> int:
        if self._family == "clip":
            return int(self._model.config.projection_dim)
        return int(self._model.config.vision_config.hidden_size)

    def _settings(self) -> dict[str, Any]:
        values = self._processor.to_dict()
        preprocessing = {key: _plain(values[key]) for key in _PREPROCESSING if values.get(key) is not None}
        vocabulary = json.dumps(sorted(self._tokenizer.get_vocab().items()), ensure_ascii=False)
        return {
            "family": self._family,
            "preprocessing": preprocessing,
            "text_length": self._text_length,
            "vocabulary": hashlib.sha256(vocabulary.encode("utf-8", "surrogatepass")).hexdigest(),
        }

    def _stored_weights(self) -> Iterator[tuple[str, Float[np.ndarray, ...]]]:
        """Floating tensors as stored, by name; integer buffers (position ids) come and go between versions."""
        import torch
        from safetensors import safe_open

        for file, names in weight_files(self._name, revision=self._revision, missing=EncoderError):
            with safe_open(file, framework="pt") as tensors:
                for name in names or sorted(tensors.keys()):
                    tensor = tensors.get_tensor(name)
                    if tensor.is_floating_point():
                        yield name, np.ascontiguousarray(tensor.to(torch.float32).numpy())


def _pooled(output: Any) -> Float[np.ndarray, "n dim"]:
    vectors = getattr(output, "pooler_output", output)
    array: Float[np.ndarray, "n dim"] = vectors.float().cpu().numpy()
    return array


def _plain(value: Any) -> Any:
    """Values of an image processor as JSON, written the same way by every version of the library."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in sorted(value.items()) if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return float(value)
    return str(value)


def _dtype(name: str) -> Any:
    import torch

    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in names:
        raise OptionError(f"dtype must be one of {', '.join(names)}, got {name!r}")
    return names[name]


def device_of(name: str) -> str:
    """``auto`` is an accelerator where there is one; anything else as torch knows it."""
    import torch

    if name != "auto":
        try:
            return str(torch.device(name))
        except RuntimeError as error:
            raise OptionError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:0 or mps") from error
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
