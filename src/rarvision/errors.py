"""The errors that rarvision raises on purpose.

::

    RarvisionError
    ├── InputError                 what the caller gave is wrong; the message says what to give instead
    │   ├── ImageError             an image cannot be read: truncated, empty, not an image
    │   │   └── ImageTooLargeError more pixels than the limit; refused before decoding
    │   ├── DatasetError           a folder, CSV, JSONL or name list is not as documented
    │   ├── NoNamesError           no name was found for any of the images that were to be named
    │   ├── LeakageError           sets that must be apart share images or categories
    │   └── OptionError            an option's value is out of range or unknown
    ├── MissingExtraError          an optional dependency is not installed; names the exact command
    ├── EncoderError               an encoder cannot be loaded or returned something that is not a vector
    ├── MemoryStoreError           the external memory
    │   ├── MemoryNotFoundError    no memory at that place
    │   ├── MemoryExistsError      a memory is there already
    │   ├── MemoryEmptyError       nothing to search
    │   ├── MemoryLockedError      another process is writing to it
    │   ├── MemoryUnavailableError the server that keeps it does not answer
    │   ├── MemoryCorruptError     what is stored does not fit together
    │   └── EncoderMismatchError   another encoder's vectors
    ├── TrainingError              training cannot go on; what was saved before stays
    └── ChatError                  the multimodal LLM
        ├── AdapterError           an adapter is missing, damaged, or of another model
        ├── ChatUnsupportedError   the backend cannot do this; names what it can
        ├── ContextLengthError     the prompt does not fit the context window
        ├── ChatUnavailableError   no answer: connection refused, timeout, 429/5xx after retries
        └── ChatProtocolError      an answer that is not the protocol: HTML, truncated JSON, missing fields

Callers switch on the class; the text is for people and may change.
"""

from __future__ import annotations

__all__ = [
    "AdapterError",
    "ChatError",
    "ChatProtocolError",
    "ChatUnavailableError",
    "ChatUnsupportedError",
    "ContextLengthError",
    "DatasetError",
    "EncoderError",
    "EncoderMismatchError",
    "ImageError",
    "ImageTooLargeError",
    "InputError",
    "LeakageError",
    "MemoryCorruptError",
    "MemoryEmptyError",
    "MemoryExistsError",
    "MemoryLockedError",
    "MemoryNotFoundError",
    "MemoryStoreError",
    "MemoryUnavailableError",
    "MissingExtraError",
    "NoNamesError",
    "OptionError",
    "RarvisionError",
    "TrainingError",
]


class RarvisionError(Exception):
    """Anything that rarvision raises on purpose."""


class InputError(RarvisionError):
    """What the caller gave is wrong; the message says what to give instead."""


class ImageError(InputError):
    """An image cannot be read."""


class ImageTooLargeError(ImageError):
    """An image has more pixels than the limit; refused before decoding."""


class DatasetError(InputError):
    """A folder, CSV, JSONL or list of names is not as documented."""


class NoNamesError(InputError):
    """No name was guessed for any of the images, or none has enough votes."""


class LeakageError(InputError):
    """Images or categories that are tested with are also learnt from, or stored in the memory."""


class OptionError(InputError):
    """An option's value is out of range or unknown."""


class MissingExtraError(RarvisionError):
    """An optional dependency is not installed; the message names the exact command."""


class EncoderError(RarvisionError):
    """An encoder cannot be loaded, or returned something that is not a finite vector per input."""


class MemoryStoreError(RarvisionError):
    """The external memory cannot do what was asked."""


class MemoryNotFoundError(MemoryStoreError):
    """There is no memory at that place."""


class MemoryExistsError(MemoryStoreError):
    """There is a memory at that place already."""


class MemoryEmptyError(MemoryStoreError):
    """The memory holds nothing to search."""


class MemoryLockedError(MemoryStoreError):
    """Another process is writing to the memory."""


class MemoryUnavailableError(MemoryStoreError):
    """The server that keeps the memory does not answer: absent, overloaded, or it refuses the credentials."""


class MemoryCorruptError(MemoryStoreError):
    """What the memory stores does not fit together."""


class EncoderMismatchError(MemoryStoreError):
    """The memory's vectors were made by another encoder."""


class TrainingError(RarvisionError):
    """Training cannot go on, such as with a loss that is no number; the last good checkpoint stays."""


class ChatError(RarvisionError):
    """The multimodal LLM cannot answer."""


class AdapterError(ChatError):
    """An adapter is missing, cut short, damaged, or was trained on another model."""


class ChatUnsupportedError(ChatError):
    """The backend cannot serve this request; the message names what it can."""


class ContextLengthError(ChatError):
    """The prompt does not fit the model's context window."""


class ChatUnavailableError(ChatError):
    """No usable answer: connection refused, timed out, or 429/5xx after the last retry."""


class ChatProtocolError(ChatError):
    """The server answered something that is not the protocol."""
