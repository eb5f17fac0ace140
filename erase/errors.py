"""The exceptions of the library, all under one root.

EraseError
├── PolicyError       (also ValueError)  a policy, a preset name or a policy file is wrong
├── InputError        (also ValueError)  the arguments or tensors given are wrong or incomplete
├── EngineError                          the engine could not finish a sequence (`erase.engine` has its kinds)
└── UnsupportedError                     right, but not something that can be pruned correctly: a model, an input or a
                                         generation mode
"""


class EraseError(Exception):
    """Root of everything that this library raises on purpose."""


class PolicyError(EraseError, ValueError):
    """A policy cannot mean anything: values out of range, unknown keys, an unknown preset, an unreadable file."""


class InputError(EraseError, ValueError):
    """The caller gave arguments or tensors that are wrong or incomplete; the message says which ones are expected."""


class UnsupportedError(EraseError):
    """The model, the input or the generation mode cannot be pruned correctly, so nothing was run."""


class EngineError(EraseError):
    """The engine could not finish a sequence.

    The message may be shown to clients; `reason` is what went wrong inside, for those who run the model.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason

    @property
    def whole(self) -> str:
        """Message and reason."""
        return f"{self} ({self.reason})" if self.reason else str(self)
