"""Loads a multimodal checkpoint and its processor; turns what can go wrong into errors that say what to do."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, Literal

from rarvision.checkpoints import without_weight_bars
from rarvision.errors import ChatUnavailableError, ChatUnsupportedError, MissingExtraError, OptionError

__all__ = ["Quantization", "load_model", "load_processor", "require", "resolve_device", "resolve_dtype"]

Quantization = Literal["4bit", "8bit"]

_log = logging.getLogger(__name__)
_BY_HTTP = "serve it with a server that can (vLLM, SGLang, llama.cpp, …) and use HTTPChat('http://host:port/v1')"


def resolve_device(device: str) -> str:
    """``auto`` is the first GPU, else the CPU; anything else is passed on to torch."""
    import torch

    if device != "auto":
        try:
            torch.device(device)
        except RuntimeError as error:
            raise OptionError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:1', 'mps', …; got {device!r}") from error
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise OptionError(f"device {device!r}: this torch sees no CUDA GPU; use 'auto' or 'cpu'")
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_dtype(dtype: str, device: str) -> Any:
    """``auto`` is float32 on the CPU, where half precision is slow, and the checkpoint's own elsewhere."""
    import torch

    if dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise OptionError(f"dtype must be 'auto' or one of {', '.join(known)}; got {dtype!r}")
    return known[dtype]


def require(module: str, *, extra: str, wanted: str) -> None:
    """Raise `MissingExtraError`, naming the extra, where a module is not installed."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f"{wanted} needs {module}: pip install 'rarvision[{extra}]'")


def _explain(model: str, error: Exception) -> Exception:
    """The library's complaint about a checkpoint, as ours."""
    text = str(error)
    if "trust_remote_code" in text or "custom code" in text:
        return ChatUnsupportedError(
            f"{model} needs code from its repository, which is not run unless asked for: {_BY_HTTP}; "
            f"or, if you trust that code, pass trust_remote_code=True"
        )
    if "does not recognize this architecture" in text or "Unrecognized configuration class" in text:
        return ChatUnsupportedError(
            f"{model} is not a model of images and text that this version of transformers knows; {_BY_HTTP}. "
            f"({text[:200]})"
        )
    if "safetensors" in text:
        return ChatUnsupportedError(
            f"{model} has no safetensors weights, and pickled ones are not loaded; convert them. ({text[:200]})"
        )
    return ChatUnavailableError(f"cannot load {model}: {text[:500] or type(error).__name__}")


def load_model(
    model: str,
    *,
    device: str,
    dtype: Any,
    revision: str | None,
    device_map: str | dict[str, Any] | None,
    quantization: Quantization | None,
    trust_remote_code: bool,
) -> Any:
    """An ``AutoModelForImageTextToText`` in evaluation mode, with SDPA where the model has it; safetensors only.

    Raises:
        MissingExtraError: ``quantization`` or ``device_map`` without its extra.
        ChatUnsupportedError: remote code needed, unknown architecture, or pickled weights only.
        ChatUnavailableError: nothing there.
    """
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if quantization is not None:
        if quantization not in ("4bit", "8bit"):
            raise OptionError(f"quantization must be None, '4bit' or '8bit'; got {quantization!r}")
        require("bitsandbytes", extra="quantized", wanted=f"quantization={quantization!r}")
        require("accelerate", extra="quantized", wanted=f"quantization={quantization!r}")
    if device_map is not None:
        require("accelerate", extra="device-map", wanted="device_map")
    from transformers import AutoConfig, AutoModelForImageTextToText

    load: dict[str, Any] = {**options, "dtype": dtype, "use_safetensors": True}
    if quantization is not None:
        from transformers import BitsAndBytesConfig

        load["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=quantization == "4bit", load_in_8bit=quantization == "8bit"
        )
    if device_map is not None or quantization is not None:
        load["device_map"] = device_map if device_map is not None else {"": device}
    try:
        with without_weight_bars():
            config = AutoConfig.from_pretrained(model, **options)
            try:
                loaded = AutoModelForImageTextToText.from_pretrained(
                    model, config=config, attn_implementation="sdpa", **load
                )
            except ValueError as error:
                if "scaled_dot_product_attention" not in str(error):
                    raise
                _log.warning("%s has no SDPA attention; using its default", model)
                loaded = AutoModelForImageTextToText.from_pretrained(model, config=config, **load)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _explain(model, error) from error
    if "device_map" not in load:
        loaded = loaded.to(device)
    return loaded.eval()


def load_processor(model: str, config: Any, *, revision: str | None, trust_remote_code: bool) -> Any:
    """The checkpoint's processor, padding on the left, its images prepared by Pillow.

    The Pillow image processor is asked for by name, where the model has one: the same pixels whether torchvision is
    installed or not.

    Without torchvision, processors that also read video (Qwen2-VL, Qwen2.5-VL, Qwen3-VL) cannot be built; they are then
    put together from their image and text parts.

    Raises:
        ChatUnsupportedError: no processor, one that needs torchvision, or one without a chat template.
    """
    from transformers import AutoProcessor

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        processor = AutoProcessor.from_pretrained(model, **options)
    except ImportError as error:
        processor = _image_only_processor(model, config, error, options)
    except (OSError, ValueError, KeyError) as error:
        raise _explain(model, error) from error
    if getattr(processor, "image_processor", None) is not None:
        processor.image_processor = _pillow_processor(model, options) or processor.image_processor
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
        raise ChatUnsupportedError(
            f"{model} has no processor of both images and text; it has {type(processor).__name__}"
        )
    if getattr(processor, "chat_template", None) is None:
        raise ChatUnsupportedError(
            f"{model} has no chat template; add chat_template.jinja to its folder, or {_BY_HTTP}"
        )
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _pillow_processor(model: str, options: dict[str, Any]) -> Any:
    """The checkpoint's image processor by Pillow; None where it is not to be had apart from the whole processor."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(model, backend="pil", **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        _log.info("%s: its own image processor is used (%s)", model, str(error)[:200])
        return None


def _image_only_processor(model: str, config: Any, cause: ImportError, options: dict[str, Any]) -> Any:
    """A stock Qwen processor without its video part, which needs torchvision."""
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    stock = {
        "qwen2_vl": Qwen2VLProcessor,
        "qwen2_5_vl": Qwen2_5_VLProcessor,
        "qwen3_vl": Qwen3VLProcessor,
        "qwen3_vl_moe": Qwen3VLProcessor,
    }.get(config.model_type)
    if stock is None:
        raise ChatUnsupportedError(
            f"the processor of {model} ({config.model_type}) needs a package that is not installed: install "
            f"torchvision beside your build of torch, or {_BY_HTTP}. ({str(cause).strip()[:200]})"
        ) from cause
    parts = ["image_processor", "tokenizer"]
    image_only: Any = type(
        f"ImageOnly{stock.__name__}", (stock,), {"get_attributes": classmethod(lambda _: list(parts))}
    )
    _log.info("torchvision is not installed: %s is used for images only", stock.__name__)
    return image_only.from_pretrained(model, **options)
