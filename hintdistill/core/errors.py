"""Define the errors of this package as one small class tree.

Every error carries a message, advice (`hint`), the exit code of the command, and whether a retry can help. A failure is
classified once, at the boundary where it happened; after that it is data.

Exit codes: 0 success, 1 a bug, 2 configuration or usage, 3 input, 4 an empty funnel, 5 an outside service, 6 a
tripwire, 130 interrupted.
"""

from __future__ import annotations

from hintdistill.core.masking import mask


class HintdistillError(Exception):
    """Base class of every error that this package raises on purpose. Its text never contains a key that was sent to a
    server."""

    exit_code = 1
    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        message = mask(message)
        super().__init__(message)
        self.message = message
        self.hint = mask(hint)

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message

    @property
    def reason(self) -> str:
        """A short name for funnel counts, e.g. `template_error`."""
        name = type(self).__name__.removesuffix("Error")
        return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class ReasonedError(HintdistillError):
    """An error of several kinds, each counted under its own word, `reason`."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why

    @property
    def reason(self) -> str:
        """The kind of the error, in one word."""
        return self.why


class ConfigError(HintdistillError):
    """The configuration or the command line is wrong."""

    exit_code = 2


class ArgumentError(ConfigError, TypeError):
    """An argument of a Python call has a type or a value that the call does not accept."""


class PromptError(ConfigError):
    """A prompt does not parse, uses an unknown variable, or fails to render."""


class NoHintError(PromptError):
    """A finding has no hint, and its error class has no template."""


CONTEXT_REASONS = frozenset(
    [
        "no_demonstration",
        "no_file",
        "no_finding",
        "no_observation",
        "no_other_hint",
        "no_own_success",
        "no_part",
        "no_peer",
        "no_peer_failure",
        "no_peer_success",
        "no_rule",
        "no_solution",
        "no_tools",
    ]
)
"""Reasons why a step lacks such a context. A plugin's maker may add its own."""


class NoContextError(ReasonedError, PromptError):
    """A step lacks the material for its context. `reason` is one of `CONTEXT_REASONS` and is counted."""


class InputError(HintdistillError):
    """A trace, model or other input cannot be used."""

    exit_code = 3


class DiskError(InputError):
    """A file cannot be written: the disk is full, the folder is read-only, or a quota or limit was reached."""


class TraceError(InputError):
    """One record of a trace file is not a trace."""


class UnreadBranchesError(TraceError):
    """The branches of a search are not read; only its answered branch is."""

    code = "unread_branches"


class LostStepError(TraceError):
    """A record names a step that its messages lack; the other messages are read."""

    code = "lost_step"


class ModelError(InputError):
    """The model folder, its tokenizer or its template cannot be used."""


class SharingError(ModelError):
    """This model's prefixes cannot be shared in this way. The self-check then falls back to the next slower way."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message, hint="sharing='separate' reads every sequence on its own, which is exact for any model"
        )


class TemplateError(ModelError):
    """The chat template refuses these messages, or cannot be rendered with the exact tokens."""


class SpliceError(InputError):
    """The hint cannot be inserted, or the step's tokens cannot be separated from their context."""


class ControlTokensError(SpliceError):
    """A hint holds control tokens of the student's template, or control characters."""


class HintTooLongError(SpliceError):
    """A hint has more tokens than `inject.max_hint_tokens`, or more than its share of the context."""


class QuoteNotFoundError(SpliceError):
    """The critic's quote does not occur in the step."""


TWIN_REASONS = frozenset(
    [
        "beyond_step",
        "control_tokens",
        "count",
        "critic_adds",
        "edits_a_step",
        "empty",
        "finds_error",
        "no_call",
        "no_edit",
        "no_maker",
        "no_value",
        "not_a_schema",
        "not_judged",
        "not_shown",
        "recorded_differs",
        "rerender_differs",
        "same_as_another",
        "state_changing",
        "too_many",
    ]
)
"""Reasons why an edit makes no twin; docs/twins.md explains each. A plugin's maker may add its own."""


class TwinError(ReasonedError, InputError):
    """An edit makes no twin of its step. `reason` is one of `TWIN_REASONS` and is counted."""


class ContextLengthError(InputError):
    """A step lies beyond the model's context length."""


class DoesNotFitError(InputError):
    """A trace is too long for the available memory."""


class ScoreError(InputError):
    """A log-probability is missing or not finite."""


class UncheckedTwinError(InputError):
    """A twin cannot be checked, because the hint of its finding has no target."""


class EnvironmentFailure(InputError):
    """An environment raised an error or returned malformed data; this costs one episode."""


class EmptyFunnelError(HintdistillError):
    """Nothing is left to work on: no usable trace, no finding, no accepted hint."""

    exit_code = 4


class ServiceError(HintdistillError):
    """An outside service failed: it is unreachable, refused the request, or gave an unusable answer."""

    exit_code = 5
    retryable = True


class TripwireError(HintdistillError):
    """A safety bound was crossed; the last good state is kept."""

    exit_code = 6
