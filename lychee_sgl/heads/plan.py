"""The head plan: which KV heads retrieve, which are sparse, and whose set each sparse head reads.

Standard library only. The format and its meaning are DESIGN.md sections 2 and 4.1. A `HeadPlan` is checked
when it is made, by whatever way, so code that holds one need not check again.
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, cast

from lychee_sgl.heads import checks
from lychee_sgl.heads.checks import PlanError

__all__ = [
    "MODES",
    "SCHEMA",
    "VERSION",
    "AutoBudget",
    "Head",
    "HeadPlan",
    "Mode",
    "ModelShape",
    "PlanDefaults",
    "PlanError",
]

SCHEMA = "lychee-sgl/head-plan"
VERSION = 1

Head = tuple[int, int]
"""A KV head: (layer, head), both from 0."""

Mode = Literal["topk", "ratio", "threshold", "top_p"]
MODES: tuple[Mode, ...] = ("topk", "ratio", "threshold", "top_p")

_HEAD = re.compile(r"(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")
_SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a plan needs to know of a model. `name` tells models of one shape apart and decides nothing by itself."""

    name: str
    architecture: str
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        checks.text("model.name", self.name)
        checks.text("model.architecture", self.architecture)
        for key in _SIZES:
            checks.integer(f"model.{key}", getattr(self, key), low=1, high=1_000_000)
        if self.num_attention_heads % self.num_key_value_heads:
            raise checks.fail(
                "model.num_key_value_heads", self.num_key_value_heads,
                f"a divisor of num_attention_heads = {self.num_attention_heads}",
            )  # fmt: skip

    @property
    def group_size(self) -> int:
        """Query heads that read one KV head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def base_name(self) -> str:
        """The last part of a path or repository name, in lower case: `HuggingFaceTB/SmolLM2` -> `smollm2`."""
        return self.name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()

    def fits(self, other: "ModelShape") -> bool:
        """Whether architecture and all sizes agree; names may differ."""
        return all(getattr(self, key) == getattr(other, key) for key in ("architecture", *_SIZES))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, name: str | None = None) -> Self:
        """The shape in a Hugging Face `config.json`.

        Args:
            config: the parsed file. `num_key_value_heads` defaults to `num_attention_heads`, `head_dim` to
                hidden size / heads.
            name: the model's name; by default the file's `_name_or_path`, or `unnamed`.

        Raises:
            PlanError: a size is missing or not a whole number above 0.
        """
        config = checks.mapping("model config", config)
        architectures = config.get("architectures")
        if not isinstance(architectures, list) or not architectures:
            raise checks.fail("model config architectures", architectures, "a list with the model class's name")
        layers, heads = (checks.integer(f"model config {key}", config.get(key), low=1) for key in _SIZES[:2])
        head_dim = config.get("head_dim")
        if head_dim is None:
            hidden = checks.integer("model config hidden_size", config.get("hidden_size"), low=1)
            if hidden % heads:
                raise checks.fail("model config hidden_size", hidden, f"a multiple of num_attention_heads = {heads}")
            head_dim = hidden // heads
        kv_heads = config.get("num_key_value_heads")
        return cls(
            name=name or config.get("_name_or_path") or "unnamed",
            architecture=architectures[0],
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads if kv_heads is None else kv_heads,
            head_dim=head_dim,
        )

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.architecture}: {self.num_hidden_layers} layers, "
            f"{self.num_attention_heads} query heads, {self.num_key_value_heads} KV heads of {self.head_dim})"
        )


@dataclass(frozen=True, slots=True)
class AutoBudget:
    """The rule behind the budget `"auto"`: a share of the prompt, within bounds."""

    fraction: float = 0.125
    min: int = 512
    max: int = 4096

    def __post_init__(self) -> None:
        checks.fraction("defaults.auto.fraction", self.fraction, one=True)
        checks.integer("defaults.auto.min", self.min, low=1)
        checks.integer("defaults.auto.max", self.max, low=1)
        if self.max < self.min:
            raise checks.fail("defaults.auto.max", self.max, f"at least defaults.auto.min = {self.min}")

    def resolve(self, prompt_tokens: int) -> int:
        """The budget of a request whose prompt has so many tokens."""
        return max(self.min, min(self.max, math.ceil(prompt_tokens * self.fraction)))


@dataclass(frozen=True, slots=True)
class PlanDefaults:
    """What a request gets that asks for nothing. `budget` None: no bound, in the modes that choose by value."""

    budget: int | Literal["dense", "auto"] | None = 1024
    mode: Mode = "topk"
    value: float | None = None
    sinks: int = 64
    recent: int = 256
    auto: AutoBudget = field(default_factory=AutoBudget)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise checks.fail("defaults.mode", self.mode, ", ".join(MODES))
        if self.budget is None:
            if self.mode == "topk":
                raise checks.fail(
                    "defaults.budget", None, 'a whole number, "dense" or "auto" (mode topk needs a bound)'
                )
        elif self.budget not in ("dense", "auto"):
            if type(self.budget) is not int or not 1 <= self.budget < 2**31:
                raise checks.fail("defaults.budget", self.budget, 'a whole number above 0, "dense" or "auto"')
        elif self.budget == "dense" and self.mode != "topk":
            raise checks.fail("defaults.mode", self.mode, 'topk (the budget "dense" takes no other mode)')
        if self.mode != "topk":
            checks.fraction("defaults.value", self.value, one=self.mode != "threshold")
        elif self.value is not None:
            raise checks.fail("defaults.value", self.value, "null (mode topk takes none)")
        checks.integer("defaults.sinks", self.sinks, low=0)
        checks.integer("defaults.recent", self.recent, low=0)
        if not isinstance(self.auto, AutoBudget):
            raise checks.fail("defaults.auto", self.auto, "an object with fraction, min, max")


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """Roles and sources of every KV head of one model.

    Attributes:
        name: the plan's own name.
        model: the shape it was made for.
        roles: one string a layer, one letter a KV head: `R` retrieval, `S` sparse.
        sources: sparse heads whose source is not the same index of the layer before; entries that say just
            that are dropped.
        defaults: what a request gets that asks for nothing.
        provenance: how the plan was made; any JSON object.
    """

    name: str
    model: ModelShape
    roles: tuple[str, ...]
    sources: Mapping[Head, Head] = field(default_factory=dict)
    defaults: PlanDefaults = field(default_factory=PlanDefaults)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.text("name", self.name)
        self._check_roles()
        for head, source in self.sources.items():
            self._check_source(head, source)
        kept = {head: source for head, source in sorted(self.sources.items()) if source != (head[0] - 1, head[1])}
        object.__setattr__(self, "sources", kept)  # the one way into a frozen dataclass, here before anyone has seen it
        try:  # a copy, so that the plan cannot change with its maker's dictionary
            copy = json.loads(checks.canonical_json(checks.mapping("provenance", self.provenance)))
        except (TypeError, ValueError) as error:
            if isinstance(error, PlanError):
                raise
            raise checks.fail("provenance", self.provenance, f"JSON values ({error})") from error
        object.__setattr__(self, "provenance", copy)

    def _check_roles(self) -> None:
        layers, heads = self.model.num_hidden_layers, self.model.num_key_value_heads
        if len(self.roles) != layers:
            raise PlanError(
                f"head plan: roles has {len(self.roles)} rows; allowed: {layers}, one a layer of {self.model}"
            )
        for layer, row in enumerate(self.roles):
            if not isinstance(row, str) or len(row) != heads or not set(row) <= {"R", "S"}:
                raise checks.fail(f"roles[{layer}]", row, f"{heads} letters R (retrieval) or S (sparse), one a KV head")
        if "S" in self.roles[0]:
            raise checks.fail("roles[0]", self.roles[0], "R alone: layer 0 has no earlier layer to read a set from")

    def _check_source(self, head: Head, source: Head) -> None:
        layers, heads = self.model.num_hidden_layers, self.model.num_key_value_heads
        key = f"sources[{_text(head)}]"
        for pair, where in ((head, f"{key} (the sparse head)"), (source, key)):
            if not (0 <= pair[0] < layers and 0 <= pair[1] < heads):
                raise checks.fail(where, _text(pair), f"layer.head with layer below {layers} and head below {heads}")
        if self.roles[head[0]][head[1]] != "S":
            raise checks.fail(key, _text(source), f"nothing: head {_text(head)} is a retrieval head and has no source")
        if source[0] >= head[0]:
            raise checks.fail(key, _text(source), f"a head of a layer before {head[0]}")

    def is_retrieval(self, layer: int, head: int) -> bool:
        """Whether a head attends to everything and selects a set.

        Raises:
            IndexError: no such head.
        """
        if not (0 <= layer < len(self.roles) and 0 <= head < self.model.num_key_value_heads):
            raise IndexError(f"no head {layer}.{head} in a plan for {self.model}")
        return self.roles[layer][head] == "R"

    def source(self, layer: int, head: int) -> Head:
        """The head of an earlier layer whose set this sparse head reads; it may itself be sparse.

        Raises:
            ValueError: a retrieval head, which reads no set.
            IndexError: no such head.
        """
        if self.is_retrieval(layer, head):
            raise ValueError(f"head {layer}.{head} is a retrieval head and has no source")
        return self.sources.get((layer, head), (layer - 1, head))

    def root(self, layer: int, head: int) -> Head:
        """The retrieval head whose set this head reads, chains followed; a retrieval head is its own root."""
        while not self.is_retrieval(layer, head):
            layer, head = self.source(layer, head)
        return layer, head

    def roots(self) -> tuple[Head, ...]:
        """The retrieval heads whose set some sparse head reads, sorted."""
        return tuple(sorted({self.root(*head) for head in self.sparse_heads()}))

    def sparse_heads(self) -> tuple[Head, ...]:
        """All sparse heads, sorted."""
        return tuple((i, h) for i, row in enumerate(self.roles) for h, role in enumerate(row) if role == "S")

    @property
    def retrieval_count(self) -> int:
        """Number of retrieval heads, layer 0 included."""
        return sum(row.count("R") for row in self.roles)

    @property
    def head_count(self) -> int:
        """Number of KV heads of the model."""
        return self.model.num_hidden_layers * self.model.num_key_value_heads

    def check_fits(self, shape: ModelShape) -> None:
        """Refuse a model this plan was not made for; another name with the same shape is logged as a warning.

        Raises:
            PlanError: architecture, layers, query heads, KV heads or head size differ.
        """
        if not self.model.fits(shape):
            raise PlanError(f"head plan {self.name!r} is for {self.model}; the model is {shape}")
        if self.model.base_name != shape.base_name:
            logger.warning(
                "head plan %r was made for %s, the model is called %s", self.name, self.model.name, shape.name
            )

    def to_dict(self) -> dict[str, Any]:
        """The plan as the JSON object of DESIGN.md 4.1."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "name": self.name,
            "model": asdict(self.model),
            "roles": list(self.roles),
            "sources": {_text(head): _text(source) for head, source in self.sources.items()},
            "defaults": asdict(self.defaults),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """A plan out of its JSON object.

        `sources`, `defaults` (and each of its entries) and `provenance` may be left out.

        Raises:
            PlanError: anything else than a well-formed plan; the message names the key, the value and what is allowed.
        """
        data = checks.mapping("the plan", data)
        for key, only in (
            ("schema", SCHEMA),
            ("version", VERSION),
        ):  # first: another version may have other keys
            if key not in data or type(data[key]) is not type(only) or data[key] != only:
                raise checks.fail(key, data.get(key), repr(only))
        checks.keys("", data, required=("schema", "version", "name", "model", "roles"),
                    optional=("sources", "defaults", "provenance"))  # fmt: skip
        model = checks.mapping("model", data["model"])
        checks.keys("model", model, required=[item.name for item in fields(ModelShape)])
        if not isinstance(data["roles"], list):
            raise checks.fail("roles", data["roles"], "a list with one string a layer")
        sources = checks.mapping("sources", data.get("sources", {}))
        return cls(
            name=data["name"],
            model=ModelShape(**model),
            roles=tuple(data["roles"]),
            sources={_head("a key of sources", key): _head(f"sources[{key}]", sources[key]) for key in sources},
            defaults=_defaults(data.get("defaults", {})),
            provenance=data.get("provenance", {}),
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan file.

        Raises:
            PlanError: it cannot be read, is not strict UTF-8 JSON, or is malformed; the message names the file.
        """
        path = Path(path)
        data = checks.read_json(path)
        try:
            return cls.from_dict(cast("Mapping[str, Any]", data))
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the plan, first beside the target and then by rename, so that no reader sees half of it.

        Raises:
            OSError: the folder is missing or not writable.
        """
        checks.write_text(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def sha256(self) -> str:
        """Hash of the plan's canonical JSON (sorted keys, no spaces), 64 hexadecimal digits."""
        return hashlib.sha256(checks.canonical_json(self.to_dict()).encode()).hexdigest()


def _text(head: Head) -> str:
    return f"{head[0]}.{head[1]}"


def _head(key: str, value: object) -> Head:
    match = _HEAD.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise checks.fail(key, value, 'a string "layer.head", as "3.1"')
    return int(match[1]), int(match[2])


def _defaults(data: object) -> PlanDefaults:
    given = checks.mapping("defaults", data)
    checks.keys("defaults", given, required=(), optional=[item.name for item in fields(PlanDefaults)])
    auto = checks.mapping("defaults.auto", given.get("auto", {}))
    checks.keys("defaults.auto", auto, required=(), optional=[item.name for item in fields(AutoBudget)])
    return PlanDefaults(**{**given, "auto": AutoBudget(**auto)})
