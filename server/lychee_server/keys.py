"""Bearer keys: who may call, and in which tier. Only hashes of keys are stored."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lychee_server.errors import NoSuchTier, NotAuthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from pydantic import SecretStr

log = logging.getLogger(__name__)

PREFIX = "lychee-"
SHORTEST_KEY = 20
_RANDOM_BYTES = 32
_LARGEST_FILE = 16 * 2**20
_BUCKET_CHARACTERS = 4

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]


class KeysError(ValueError):
    """The keys file cannot be used; the message is one line."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request.

    Attributes:
        id: of the key; in logs, and what limits are counted by.
        tier: a name in the policy; None: none.
    """

    id: str
    tier: str | None = None


ANONYMOUS = Caller("anonymous")


class KeyEntry(BaseModel):
    """One entry of the keys file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Name
    tier: Name | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


_ENTRIES = TypeAdapter(list[KeyEntry])


class KeyRing:
    """The keys that are valid; without any, everybody may call."""

    def __init__(self, entries: Iterable[KeyEntry]) -> None:
        """Take the entries; raises `KeysError` for an id or a hash that is there twice."""
        self._buckets: dict[str, list[tuple[str, Caller]]] = defaultdict(list)
        self._count = 0
        ids: set[str] = set()
        hashes: set[str] = set()
        for entry in entries:
            if entry.id in ids or entry.sha256 in hashes:
                raise KeysError(f"the key {entry.id!r} (or its hash) is there twice")
            ids.add(entry.id)
            hashes.add(entry.sha256)
            self._count += 1
            self._buckets[entry.sha256[:_BUCKET_CHARACTERS]].append((entry.sha256, Caller(entry.id, entry.tier)))
        self.ids = frozenset(ids)
        self.tiers = frozenset(
            caller.tier for bucket in self._buckets.values() for _, caller in bucket if caller.tier is not None
        )

    def __len__(self) -> int:
        return self._count

    def find(self, key: str) -> Caller | None:
        """Return whose key this is.

        The time does not tell how much of a stored hash was right: what narrows the search is the first two bytes of
        the hash of what the caller sent, and the comparison behind it takes the same time whatever it finds.
        """
        given = hash_key(key)
        found = None
        for stored, caller in self._buckets.get(given[:_BUCKET_CHARACTERS], ()):
            if hmac.compare_digest(stored, given):
                found = caller
        return found


def hash_key(key: str) -> str:
    """Return what is stored of a key.

    One SHA-256 is enough: a key made here has 256 random bits, so there is no dictionary to try.
    """
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def new_key() -> str:
    """Make a key."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def read_entries(path: Path) -> list[KeyEntry]:
    """Read and check a keys file: a YAML list of `id`, `tier` (may be left out) and `sha256`.

    Raises:
        KeysError: names the file, the place and what is allowed. Never shows a value: it could be a key.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise KeysError(f"{path}: longer than {_LARGEST_FILE} bytes")
        return parse_entries(path.read_bytes(), str(path))
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}") from error


def parse_entries(text: bytes | str, name: str) -> list[KeyEntry]:
    """Check the YAML of a keys file; `name` stands for it in messages. Raises as `read_entries`."""
    try:
        # libyaml where it is there: ten times as quick, for SIGHUP reads while requests run
        value = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise KeysError(f"{name}{f':{mark.line + 1}' if mark else ''}: not YAML") from None
    try:
        return _ENTRIES.validate_python([] if value is None else value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "entry " + ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
        raise KeysError(f"{name}: {place if first['loc'] else 'the file'}: {first['msg']}") from None


def load_ring(path: Path | None, single: SecretStr | None) -> KeyRing:
    """Make the ring of a keys file and of the one key that a setting can give; raises `KeysError`."""
    entries = read_entries(path) if path is not None else []
    if single is not None:
        entries.append(KeyEntry(id="default", sha256=hash_key(single.get_secret_value())))
    try:
        ring = KeyRing(entries)
    except KeysError as error:
        raise KeysError(f"{path}: {error}") from None
    if path is not None and not len(ring):
        raise KeysError(f"{path}: no keys; without a keys file the gateway is open to everybody")
    return ring


class Authentication:
    """Decides who a request is from, by the keys in force.

    Attributes:
        ring: the keys.
    """

    def __init__(
        self, path: Path | None, single: SecretStr | None, tiers: Callable[[], Collection[str] | None] = lambda: None
    ) -> None:
        """Read the keys.

        Args:
            path: of the keys file.
            single: one key more.
            tiers: names of the policy's tiers; None: there is no policy, and tiers mean nothing.

        Raises:
            KeysError: the file cannot be used, or names a tier that the policy does not have.
        """
        self._path = path
        self._single = single
        self._tiers = tiers
        self.ring = self._load()

    def _load(self) -> KeyRing:
        ring, known = load_ring(self._path, self._single), self._tiers()
        strange = sorted(ring.tiers.difference(known)) if known is not None else []
        if strange:
            allowed = ", ".join(known or ()) or "none"
            raise KeysError(f"{self._path}: there is no tier {strange[0]!r} in the policy; tiers are: {allowed}")
        return ring

    def reload(self) -> bool:
        """Read the keys again; a bad file is refused, and the old ones stay. Returns whether it was taken."""
        try:
            self.ring = self._load()
        except KeysError as error:
            log.error("the keys were not reloaded; the old ones stay", extra={"problem": str(error)})
            return False
        log.info("the keys were reloaded", extra={"keys": len(self.ring)})
        return True

    def caller(self, authorization: str | None) -> Caller:
        """Return who sends a request with this `Authorization` header.

        Raises:
            NotAuthenticated: keys are in force, and this is none of them.
            NoSuchTier: a new policy has lost the key's tier.
        """
        if not len(self.ring):
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise NotAuthenticated("a key is needed: send the header Authorization: Bearer KEY", code="missing_api_key")
        found = self.ring.find(key.strip())
        if found is None:
            raise NotAuthenticated("this key is not valid")
        known = self._tiers()
        if known is not None and found.tier is not None and found.tier not in known:
            raise NoSuchTier(f"the tier of this key, {found.tier!r}, is not in the policy any more")
        return found
