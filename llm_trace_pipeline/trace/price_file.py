"""The user's price file: its entries, and which calls an entry is for."""

import tomllib
from collections import Counter
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.trace.costs import JOINS, UNITS, CallNames
from llm_trace_pipeline.trace.details import STANDARD, tier_named

VARIABLE = "LLM_TRACES_PRICES"

_Price = Annotated[Decimal, Field(ge=0, max_digits=16, decimal_places=6)]
_Name = Annotated[str, Field(min_length=1)]
_CONDITIONS: Final = (
    *("provider", "served_by", "service_tier"),
    *("speed", "inference_geo", "search_context_size"),
)


class Entry(BaseModel):
    """A price of a model from a day (UTC) on, in USD for a million tokens or a thousand uses.

    Tokens without a price of their own cost as much as those that they are part of: cached input as
    input, audio as text. A use without a price is not known. What an entry does not name (a tier,
    say), it does not restrict.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: _Name | None = None
    served_by: _Name | None = None
    model: _Name
    since: date = Field(default=date.min, alias="from")
    service_tier: _Name | None = None
    speed: _Name | None = None
    inference_geo: _Name | None = None
    search_context_size: _Name | None = None
    override: Literal["reported"] | None = None
    # A price names the unit that it is for.
    input: Annotated[_Price, "input_tokens"]
    cached_input: Annotated[_Price | None, "cache_read_tokens"] = None
    cache_write: Annotated[_Price | None, "cache_write_tokens"] = None
    cache_write_1h: Annotated[_Price | None, "cache_write_1h_tokens"] = None
    output: Annotated[_Price, "output_tokens"]
    reasoning: Annotated[_Price | None, "output_reasoning_tokens"] = None
    input_audio: Annotated[_Price | None, "input_audio_tokens"] = None
    input_image: Annotated[_Price | None, "input_image_tokens"] = None
    input_video: Annotated[_Price | None, "input_video_tokens"] = None
    cached_audio: Annotated[_Price | None, "cache_audio_read_tokens"] = None
    cached_image: Annotated[_Price | None, "cache_image_read_tokens"] = None
    cached_video: Annotated[_Price | None, "cache_video_read_tokens"] = None
    output_audio: Annotated[_Price | None, "output_audio_tokens"] = None
    output_image: Annotated[_Price | None, "output_image_tokens"] = None
    output_video: Annotated[_Price | None, "output_video_tokens"] = None
    citations: Annotated[_Price | None, "output_citation_tokens"] = None
    audio_hours: Annotated[_Price | None, "audio_seconds"] = None
    requests: Annotated[_Price | None, "requests"] = None
    web_searches: Annotated[_Price | None, "web_searches"] = None
    web_search_previews: Annotated[_Price | None, "web_search_previews"] = None
    social_searches: Annotated[_Price | None, "social_searches"] = None
    storage_searches: Annotated[_Price | None, "storage_searches"] = None
    search_sources: Annotated[_Price | None, "search_sources"] = None
    code_executions: Annotated[_Price | None, "code_executions"] = None
    document_searches: Annotated[_Price | None, "document_searches"] = None
    map_searches: Annotated[_Price | None, "map_searches"] = None
    image_generations: Annotated[_Price | None, "image_generations"] = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.provider is None and self.served_by is None:
            raise ValueError("names neither provider nor served_by")
        for both, (one, other) in JOINS.items():
            named = {UNITS[unit].price_key for unit in (one, other)} <= self.prices.keys()
            if named and UNITS[both].price_key not in self.prices:
                lacks = next(field for field, unit in _UNITS_OF_FIELDS.items() if unit == both)
                heard = other.removesuffix("_tokens")
                raise ValueError(f"has cached_input and {heard}, so that it needs {lacks}")
        return self

    @property
    def prices(self) -> dict[str, Decimal]:
        """The prices by the package's keys."""
        return {
            UNITS[unit].price_key: price
            for field, unit in _UNITS_OF_FIELDS.items()
            if (price := getattr(self, field)) is not None
        }

    @property
    def conditions(self) -> dict[str, str]:
        """What a call must have beside the model, by the names of ``CallNames``."""
        found = {name: value for name in _CONDITIONS if (value := getattr(self, name)) is not None}
        if tier := found.get("service_tier"):
            found["service_tier"] = "" if tier_named(tier) == STANDARD else tier_named(tier)
        return found

    def is_for(self, call: CallNames) -> bool:
        """Whether the entry prices a call; the model may be the one asked for or the one served."""
        models = (call.served_model, call.requested_model, call.model)
        return self.model in models and all(
            getattr(call, name) == value for name, value in self.conditions.items()
        )

    def rank(self, call: CallNames) -> tuple[bool, int, date]:
        """Return what tells which of several entries a call has: the highest rank."""
        return self.model == call.served_model, len(self.conditions), self.since

    def __str__(self) -> str:
        """Return provider, model, conditions and day, as a row's price entry names them."""
        conditions = self.conditions
        first = next(iter(conditions))  # provider or served_by
        label = f"{conditions.pop(first)}/{self.model}"
        since = {} if self.since == date.min else {"from": self.since}
        return " ".join(
            [label, *(f"{key}={value or STANDARD}" for key, value in (conditions | since).items())]
        )


_UNITS_OF_FIELDS: Final = {
    name: unit
    for name, field in Entry.model_fields.items()
    for unit in field.metadata
    if isinstance(unit, str)
}


class _PriceFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    override: Literal["reported"] | None = None  # for all entries
    prices: tuple[Entry, ...]


def read_price_file(path: Path) -> tuple[list[Entry], bytes]:
    """Return the entries of a price file, and its content.

    This is the only place under ``trace/`` that opens a file.

    Raises:
        SettingsError: the file cannot be read, or an entry is wrong.
    """
    try:
        content = path.read_bytes()
        tables = tomllib.loads(content.decode(), parse_float=Decimal)
        file = _PriceFile.model_validate(tables)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"])
        raise SettingsError(f"{VARIABLE}: {path}: {place}: {first['msg']}") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{VARIABLE}: {path}: {error}") from None
    names = Counter(
        (*(entry.conditions.get(name) for name in _CONDITIONS), entry.model, entry.since)
        for entry in file.prices
    )
    for (*conditions, model, since), count in names.items():
        if count > 1:
            who = "/".join(str(name) for name in (*conditions, model) if name)
            raise SettingsError(f"{VARIABLE}: {path}: two prices of {who} from {since}")
    if file.override:
        return [e.model_copy(update={"override": file.override}) for e in file.prices], content
    return list(file.prices), content
