"""Which blocks are worth reading, said before anything is quoted from them (DESIGN.md section 13). No numpy."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from lychee_sgl.memory.gate_features import NAMES, OF_THE_GAIN, Evidence, features

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA: Final = "lychee-sgl/memory-gate"
VERSION: Final = 1
"""Raised when a feature means something else."""
GATES: Final = Path(__file__).parent / "gates"
FURTHEST: Final = 6.0
"""Scales from the mean: what is further away counts as that far, or one odd feature would outvote all others."""


class GateError(ValueError):
    """A gate that cannot be used; the message names what is wrong and what is allowed."""


class Gate(Protocol):
    """Accepts or skips a block for a question, beside the notes so far."""

    @property
    def needs_gain(self) -> bool:
        """Whether the model has to be asked how much likelier the block makes the question."""

    @property
    def identity(self) -> object:
        """Everything that its verdict depends on beside the evidence, for JSON."""

    @property
    def model(self) -> str | None:
        """Which model it was made for; None: it does not matter."""

    def accepts(self, evidence: Evidence) -> bool:
        """Whether the block is read. Takes milliseconds: not for an event loop."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Accepts what makes the question likelier by so many nats a token."""

    least: float

    needs_gain = True
    model = None

    @property
    def identity(self) -> object:
        """The number."""
        return self.least

    def accepts(self, evidence: Evidence) -> bool:
        """Whether the mean gain reaches it."""
        return sum(evidence.gained) / len(evidence.gained) >= self.least


@dataclass(frozen=True, slots=True)
class Oracle:
    """Accepts the blocks that hold one of some texts: what a perfect gate would do, for measurements."""

    texts: tuple[str, ...]

    needs_gain = False
    model = None

    @property
    def identity(self) -> object:
        """The texts."""
        return ["oracle", *self.texts]

    def accepts(self, evidence: Evidence) -> bool:
        """Whether one of the texts stands in the block."""
        return any(text in evidence.block for text in self.texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One feature's part in a verdict: `weight * (value - mean) / scale`."""

    name: str
    mean: float
    scale: float
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """A logistic regression.

    Attributes:
        weights: one for each feature.
        bias: log-odds at the means.
        threshold: probability from which a block is accepted.
        model: the name of the model whose gains it was fitted to; None where it has no feature of the gain.
        made: how, for people.
    """

    weights: tuple[Weight, ...]
    bias: float
    threshold: float
    model: str | None
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_gain(self) -> bool:
        """Whether a feature is one of the gain."""
        return any(weight.name in OF_THE_GAIN for weight in self.weights)

    @property
    def identity(self) -> object:
        """SHA-256 of everything but how it was made."""
        body = {key: value for key, value in self.to_dict().items() if key != "made"}
        return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def accepts(self, evidence: Evidence) -> bool:
        """Whether the probability reaches the threshold."""
        return self.probability(features(evidence)) >= self.threshold

    def probability(self, values: Mapping[str, float]) -> float:
        """That the block is needed, for the values of its features."""
        odds = self.bias
        for one in self.weights:
            odds += one.weight * max(-FURTHEST, min(FURTHEST, (values[one.name] - one.mean) / one.scale))
        return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))

    def to_dict(self) -> dict[str, Any]:
        """The file's object."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "model": self.model,
            "features": [asdict(weight) for weight in self.weights],
            "bias": self.bias,
            "threshold": self.threshold,
            "made": dict(self.made),
        }

    @classmethod
    def from_dict(cls, body: object) -> Classifier:
        """Reads a file's object.

        Raises:
            GateError: names the entry, its value and what is allowed.
        """
        if not isinstance(body, dict):
            raise GateError("the file holds no object")
        for key, allowed in (("schema", SCHEMA), ("version", VERSION)):
            if body.get(key) != allowed:
                raise GateError(f"{key} is {body.get(key)!r:.80}, allowed: {allowed!r}")
        rows = body.get("features")
        if not isinstance(rows, list) or not rows:
            raise GateError(f"features is {rows!r:.80}, allowed: a list of at least one")
        weights = tuple(_weight(number, row) for number, row in enumerate(rows))
        names = [weight.name for weight in weights]
        if len(set(names)) < len(names):
            raise GateError(f"features is {names!r}, allowed: each once")
        threshold = _number("threshold", body.get("threshold"))
        if not 0 < threshold < 1:
            raise GateError(f"threshold is {threshold!r}, allowed: a number between 0 and 1")
        model, made = body.get("model"), body.get("made", {})
        gains = any(name in OF_THE_GAIN for name in names)
        if not (isinstance(model, str) and model) if gains else not isinstance(model, str | None):
            raise GateError(f"model is {model!r:.80}, allowed: a name{'' if gains else ', or null'}")
        if not isinstance(made, dict):
            raise GateError(f"made is {made!r:.80}, allowed: an object")
        return cls(weights=weights, bias=_number("bias", body.get("bias")), threshold=threshold, model=model, made=made)


def _weight(number: int, row: object) -> Weight:
    where = f"features[{number}]"
    if not isinstance(row, dict):
        raise GateError(f"{where} is {row!r:.80}, allowed: an object")
    if row.get("name") not in NAMES:
        raise GateError(f"{where}.name is {row.get('name')!r:.80}, allowed: {', '.join(NAMES)}")
    found = {key: _number(f"{where}.{key}", row.get(key)) for key in ("mean", "scale", "weight")}
    if found["scale"] <= 0:
        raise GateError(f"{where}.scale is {found['scale']!r}, allowed: a number above 0")
    return Weight(name=row["name"], **found)


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise GateError(f"{where} is {value!r:.80}, allowed: a number")
    return float(value)


def shipped() -> tuple[str, ...]:
    """Names of the gates of the package."""
    return tuple(sorted(path.stem for path in GATES.glob("*.json")))


def load(text: str) -> Threshold | Classifier:
    """Gives the gate that a setting names.

    Args:
        text: a number, the name of a shipped gate, or a file.

    Raises:
        GateError: it is none of these, or the file cannot be used.
    """
    try:
        least = float(text)
    except ValueError:
        pass
    else:
        if not math.isfinite(least):
            raise GateError(f"{text!r} is no finite number")
        return Threshold(least)
    path = GATES / f"{text}.json" if text in shipped() else Path(text).expanduser()
    try:
        return Classifier.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        names = ", ".join(shipped()) or "none"
        raise GateError(f"{text!r} is no file, allowed: a number, a file, or a shipped gate ({names})") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, GateError) as error:
        raise GateError(f"{text!r} cannot be used: {error}") from error


def foreign(gate: Gate, *names: str | None) -> str | None:
    """Says what is doubtful about a gate for a model; None where nothing is.

    Args:
        gate: the gate.
        names: what the served model is called: its path, its name in the API. Suffixes, as of another storage format,
            do not matter.
    """
    if gate.model is None:
        return None
    called = [name.replace("\\", "/").rstrip("/").rpartition("/")[2] for name in names if name]
    if any(name.lower().startswith(gate.model.lower()) for name in called):
        return None
    return (
        f"The memory gate was made for {gate.model}, this model is {' or '.join(dict.fromkeys(called))}: gains of one "
        "model say little of another's. Make one for it with `lychee-sgl memory gate train`."
    )
