"""Settings of the gateway: defaults, then environment variables, then command-line flags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FilePath, SecretStr, ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENV_PREFIX = "LYCHEE_GATEWAY_"


class SettingsError(ValueError):
    """A setting has a value that is not allowed; the message is one line that names it."""


def _http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must look like http://HOST:PORT")
    if parts.port == 0 or parts.query or parts.fragment or parts.username:
        raise ValueError("must have no port 0, user, query or fragment")
    return url.rstrip("/")


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _different(urls: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(urls)) != len(urls):
        raise ValueError("must all be different")
    return urls


HttpUrl = Annotated[str, AfterValidator(_http_url)]
EngineUrls = Annotated[tuple[HttpUrl, ...], BeforeValidator(_split), AfterValidator(_different), Field(max_length=64)]
Secret = Annotated[SecretStr, Field(min_length=1)]
# An empty variable is how a compose file leaves a file out. Keys are no such files: without them the gateway is open.
OptionalFile = Annotated[FilePath | None, BeforeValidator(lambda value: value or None)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Settings(BaseModel):
    """Everything that can be set, with its default and its allowed range. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine_url: HttpUrl = Field(default="http://127.0.0.1:8001", description="address of the SGLang engine")
    engine_urls: EngineUrls = Field(
        default=(), description="addresses of several engines with the same model, with commas; instead of `engine_url`"
    )
    engine_api_key: Secret | None = Field(default=None, description="key that the engines want (SGLang's `--api-key`)")
    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65_535, description="port to listen on; 0 takes a free one")
    keys_file: FilePath | None = Field(
        default=None,
        description="keys of the callers, made by `lychee-gateway keys add`; without keys everybody may call",
    )
    api_key: Secret | None = Field(
        default=None, description="one key, without a tier; instead of `keys_file` or beside it"
    )
    max_concurrency: int = Field(
        default=256, ge=1, le=100_000, description="requests to the engines at one time; the next ones wait"
    )
    max_queue: int = Field(default=256, ge=0, le=100_000, description="requests that wait for a place; above that, 429")
    queue_timeout: Seconds = Field(default=30.0, description="longest wait for a place; then 503")
    max_body_bytes: int = Field(
        default=32 * 2**20, ge=1024, le=2**31, description="longest request body; above that, 413"
    )
    max_header_bytes: int = Field(
        default=32 * 2**10, ge=1024, le=2**20, description="longest request line and headers together; above that, 431"
    )
    header_timeout: Seconds = Field(default=10.0, description="time a client has for a request's line and headers")
    body_timeout: Seconds = Field(default=60.0, description="time a client has for a request's body; then 408")
    connect_timeout: Seconds = Field(default=2.0, description="wait for a connection to the engine")
    stream_idle_timeout: Seconds = Field(
        default=300.0, description="longest silence of a stream, in either direction; the first token counts too"
    )
    response_timeout: Seconds = Field(default=600.0, description="wait for an answer that is not streamed")
    drain_timeout: Seconds = Field(default=30.0, description="time that open requests get after SIGTERM")
    health_interval: Seconds = Field(default=1.0, description="pause between two looks at the engine's /health")
    health_timeout: Seconds = Field(default=5.0, description="wait for the engine's /health")
    ready_timeout: Seconds = Field(default=30.0, description="wait for the first token of a (re)started engine")
    unhealthy_after: Seconds = Field(
        default=60.0,
        description="an engine that accepts connections but is not healthy (a long prefill can do that) "
        "is taken out of service after this time",
    )
    breaker_failures: int = Field(
        default=5, ge=1, le=1000, description="failures in a row after which an engine gets no requests for a while"
    )
    breaker_pause: Seconds = Field(default=10.0, description="how long; then one request tries it")
    retry_after: int = Field(
        default=5, ge=1, le=3600, description="`Retry-After` of 429 and 503 answers that know no better time"
    )
    policy_file: OptionalFile = Field(default=None, description="the budget policy, a YAML file; SIGHUP reads it again")
    otlp_endpoint: HttpUrl | None = Field(
        default=None,
        description="collector (OTLP/HTTP) that gets a span for each request; needs the extra `otel`",
    )
    curve_file: OptionalFile = Field(
        default=None, description="the engine's speed curve, a JSON file that `lychee-sgl calibrate` wrote"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least severe log line")
    log_format: Literal["json", "text"] = Field(default="json", description="log lines for machines or for people")
    access_log: bool = Field(default=False, description="one log line for every request")

    @property
    def all_engine_urls(self) -> tuple[str, ...]:
        """The engines' addresses, at least one."""
        return self.engine_urls or (self.engine_url,)


SECRETS = ("api_key", "engine_api_key")
"""Settings that can also come from a file, as Docker's secrets do: `LYCHEE_GATEWAY_API_KEY_FILE` names it."""


def load_settings(environ: Mapping[str, str], flags: Mapping[str, str]) -> Settings:
    """Merge defaults, `LYCHEE_GATEWAY_*` variables and flags; the later wins.

    Args:
        environ: the process environment.
        flags: values given on the command line, by field name.

    Raises:
        SettingsError: a secret's file that cannot be read, an unknown variable, or a value out of range; names the
            place, the value and what is allowed.
    """
    from_env = {
        name.removeprefix(ENV_PREFIX).lower(): value for name, value in environ.items() if name.startswith(ENV_PREFIX)
    }
    for name in [name for name in from_env if name.removesuffix("_file") in SECRETS and name.endswith("_file")]:
        from_env[name.removesuffix("_file")] = _secret(name, from_env.pop(name))
    try:
        return Settings.model_validate({**from_env, **flags})
    except ValidationError as error:
        raise SettingsError(_one_line(error, flags)) from error


def _secret(name: str, path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SettingsError(f"{ENV_PREFIX}{name.upper()} is {path!r}: {reason}") from error


def _one_line(error: ValidationError, flags: Mapping[str, str]) -> str:
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0])
    place = f"--{field.replace('_', '-')}" if field in flags else f"{ENV_PREFIX}{field.upper()}"
    if first["type"] == "extra_forbidden":
        return f"{place}: there is no such setting; known are {', '.join(sorted(Settings.model_fields))}"
    if field in SECRETS:
        return f"{place}: {first['msg']}"
    return f"{place} is {first['input']!r}: {first['msg'].removeprefix('Value error, ')}"
