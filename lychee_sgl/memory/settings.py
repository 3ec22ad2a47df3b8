"""How a document is read: what a request may choose, and what it may not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from lychee_sgl.memory.gate import Oracle
from lychee_sgl.memory.split import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lychee_sgl.memory.gate import Gate

PREFIX: Final = "lychee_"
KEYS: Final = ("memory", "chunk", "working_memory", "ratio", "gate")
MODES: Final = ("text", "compressed", "off")
CHUNK: Final = 4096
WORKING_MEMORY: Final = 1024
QUESTION_TOKENS: Final = 1024
QUOTE_TOKENS: Final = 64
KEEP: Final = 0.4
SMALLEST_CHUNK: Final = 64
SMALLEST_MEMORY: Final = 32
SMALLEST_RATIO: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """How one document is read.

    Attributes:
        chunk: most tokens of a block.
        working_memory: most tokens of the notes.
        ahead: blocks that are read at once.
        gate: says which blocks are skipped; None: every block is read.
        quote_tokens: most tokens that are generated for a block.
        candidates: sentences of a block that become notes, if the model finds them relevant, beside those it quotes.
        keep: score from which a passage becomes a note.
        attempts: calls of a step until it has failed.
        ratio: tokens that an embedding stands for; None: blocks are read as text.
        salt: compressed blocks are shared with requests of the same one alone, as the engine's cache is.
    """

    chunk: int = CHUNK
    working_memory: int = WORKING_MEMORY
    ahead: int = 1
    gate: Gate | None = None
    quote_tokens: int = QUOTE_TOKENS
    candidates: int = 2
    keep: float = KEEP
    attempts: int = 3
    ratio: int | None = None
    salt: str | None = None

    @property
    def most_block_tokens(self) -> int:
        """What a block may take in a prompt: of a compressed one, its embeddings and the tokens that fill none."""
        return self.chunk if self.ratio is None else self.chunk // self.ratio + self.ratio - 1

    @property
    def most_note_tokens(self) -> int:
        """What the notes may take in a prompt: where their lines meet, a tokeniser may need one token more each."""
        return self.working_memory + self.working_memory // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRequest:
    """What a request asked for; None where it said nothing.

    Attributes:
        mode: `text`, `compressed` or `off`.
        chunk: most tokens of a block.
        working_memory: most tokens of the notes.
        gate: for measurements: "off", or the texts of an oracle gate.
    """

    mode: str | None = None
    chunk: int | None = None
    working_memory: int | None = None
    ratio: int | None = None
    gate: Literal["off"] | tuple[str, ...] | None = None

    @classmethod
    def from_custom_params(cls, params: Mapping[str, Any] | None, *, oracle: bool = False) -> MemoryRequest:
        """Reads and checks our entries of SGLang's `custom_params`.

        Args:
            params: the entries, and others.
            oracle: whether a request may choose the gate: only where measurements are made.

        Raises:
            Refused: names the entry, its value and what is allowed.
        """
        given = {key: (params or {}).get(f"{PREFIX}{key}") for key in KEYS}
        mode = given["memory"]
        if mode is not None and mode not in MODES:
            raise _refused("memory", mode, ", ".join(map(repr, MODES)))
        for key, least in (("chunk", SMALLEST_CHUNK), ("working_memory", SMALLEST_MEMORY)):
            value = given[key]
            if value is not None and (type(value) is not int or value < least):
                raise _refused(key, value, f"a whole number from {least}")
            if value is not None and mode not in ("text", "compressed"):
                raise _refused(key, value, f"only with {PREFIX}memory 'text' or 'compressed'")
        ratio = given["ratio"]
        if ratio is not None and (type(ratio) is not int or ratio < SMALLEST_RATIO):
            raise _refused("ratio", ratio, f"a whole number from {SMALLEST_RATIO}")
        if ratio is not None and mode != "compressed":
            raise _refused("ratio", ratio, f"only with {PREFIX}memory 'compressed'")
        gate = _gate(given["gate"], mode, oracle=oracle)
        return cls(mode=mode, chunk=given["chunk"], working_memory=given["working_memory"], ratio=ratio, gate=gate)

    def chosen_gate(self, own: Gate | None) -> Gate | None:
        """Gives the gate for this request: the engine's own one, unless a measurement asked for another."""
        if self.gate is None:
            return own
        return None if self.gate == "off" else Oracle(self.gate)

    @staticmethod
    def strip(params: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Gives `custom_params` without our entries; None for an empty one."""
        ours = {f"{PREFIX}{key}" for key in KEYS}
        return {key: value for key, value in (params or {}).items() if key not in ours} or None


def _refused(key: str, value: object, allowed: str) -> Refused:
    return Refused(f"{PREFIX}{key} is {value!r:.80}, allowed: {allowed}", f"{PREFIX}{key}")


def _gate(value: object, mode: str | None, *, oracle: bool) -> Literal["off"] | tuple[str, ...] | None:
    if value is None:
        return None
    if not oracle:
        raise _refused("gate", value, "only where LYCHEE_MEMORY_ORACLE is 1, for measurements")
    if mode not in ("text", "compressed"):
        raise _refused("gate", value, f"only with {PREFIX}memory 'text' or 'compressed'")
    if value == "off":
        return "off"
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
        raise _refused("gate", value, "'off', or a list of texts")
    return tuple(value)


def fit(asked: MemoryRequest, window: int) -> tuple[int, int]:
    """Gives chunk and working memory: what was asked for, else the defaults, made smaller for a small window.

    Half of the window is for the block and an eighth for the notes at most, where the request does not say.
    """
    chunk = asked.chunk if asked.chunk is not None else max(SMALLEST_CHUNK, min(CHUNK, window // 2))
    notes = asked.working_memory
    return chunk, notes if notes is not None else max(SMALLEST_MEMORY, min(WORKING_MEMORY, window // 8))


def check_fits(settings: ReadSettings, *, window: int, frame: int) -> None:
    """Checks that a block, the notes and a quote fit into the window beside the prompt's own words.

    Args:
        settings: what is wanted.
        window: of the model, in tokens.
        frame: tokens of template, question and instruction.

    Raises:
        Refused: they do not; names all numbers.
    """
    room = window - (settings.most_note_tokens + frame + settings.quote_tokens)
    if settings.most_block_tokens > room:
        ratio, at = settings.ratio or 1, f" at {PREFIX}ratio {settings.ratio}" if settings.ratio else ""
        # the longest that fits: one token more would be an embedding more
        most = ratio * (room - ratio + 2) - 1
        raise Refused(
            f"{PREFIX}chunk is {settings.chunk}, allowed: up to {max(0, most)}{at} beside {PREFIX}working_memory "
            f"{settings.working_memory} and {frame} tokens of question and instruction in a window of {window}",
            f"{PREFIX}chunk",
        )
