"""The user's price file: its entries, and which calls an entry is for."""

import tomllib
from collections import Counter
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm_trace_pipeline.errors import SettingsError
from llm_trace_pipeline.trace.costs import JOINS, UNITS
from llm_trace_pipeline.trace.details import STANDARD, tier_named

VARIABLE = "LLM_TRACES_PRICES"

_Price = Annotated[Decimal, Field(ge=0, max_digits=16, decimal_places=6)]
_Name = Annotated[str, Field(min_length=1)]
# The fields of an entry that are prices, and the units that they price.
_PRICES: Final = {
    "input": "input_tokens",
    "cached_input": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "output": "output_tokens",
    "reasoning": "output_reasoning_tokens",
    "input_audio": "input_audio_tokens",
    "input_image": "input_image_tokens",
    "input_video": "input_video_tokens",
    "cached_audio": "cache_audio_read_tokens",
    "cached_image": "cache_image_read_tokens",
    "cached_video": "cache_video_read_tokens",
    "output_audio": "output_audio_tokens",
    "output_image": "output_image_tokens",
    "output_video": "output_video_tokens",
    "citations": "output_citation_tokens",
    "audio_hours": "audio_seconds",
    "requests": "requests",
    "web_searches": "web_searches",
    "web_search_previews": "web_search_previews",
    "social_searches": "social_searches",
    "storage_searches": "storage_searches",
    "search_sources": "search_sources",
    "code_executions": "code_executions",
    "document_searches": "document_searches",
    "map_searches": "map_searches",
    "image_generations": "image_generations",
}
_CONDITIONS: Final = (
    *("provider", "served_by", "service_tier"),
    *("speed", "inference_geo", "search_context_size"),
)


class CallNames(NamedTuple):
    """What decides which price a call has, beside its moment; '' stands for none."""

    provider: str
    served_by: str
    model: str
    served_model: str
    service_tier: str
    speed: str = ""
    inference_geo: str = ""
    search_context_size: str = ""
    requested_model: str = ""  # where it is another one than the configuration's

    @property
    def context(self) -> dict[str, str]:
        """How the call was served, as far as it is not the usual way."""
        names = ("service_tier", "speed", "inference_geo", "search_context_size")
        return {name: value for name in names if (value := getattr(self, name))}


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
    input: _Price
    cached_input: _Price | None = None
    cache_write: _Price | None = None
    cache_write_1h: _Price | None = None
    output: _Price
    reasoning: _Price | None = None
    input_audio: _Price | None = None
    input_image: _Price | None = None
    input_video: _Price | None = None
    cached_audio: _Price | None = None
    cached_image: _Price | None = None
    cached_video: _Price | None = None
    output_audio: _Price | None = None
    output_image: _Price | None = None
    output_video: _Price | None = None
    citations: _Price | None = None
    audio_hours: _Price | None = None
    requests: _Price | None = None
    web_searches: _Price | None = None
    web_search_previews: _Price | None = None
    social_searches: _Price | None = None
    storage_searches: _Price | None = None
    search_sources: _Price | None = None
    code_executions: _Price | None = None
    document_searches: _Price | None = None
    map_searches: _Price | None = None
    image_generations: _Price | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.provider is None and self.served_by is None:
            raise ValueError("names neither provider nor served_by")
        for both, (one, other) in JOINS.items():
            named = {UNITS[unit].price_key for unit in (one, other)} <= self.prices.keys()
            if named and UNITS[both].price_key not in self.prices:
                lacks = next(field for field, unit in _PRICES.items() if unit == both)
                heard = other.removesuffix("_tokens")
                raise ValueError(f"has cached_input and {heard}, so that it needs {lacks}")
        return self

    @property
    def prices(self) -> dict[str, Decimal]:
        """The prices by the package's keys."""
        return {
            UNITS[unit].price_key: price
            for field, unit in _PRICES.items()
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
        return " ".join([label, *(f"{key}={value}" for key, value in (conditions | since).items())])


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
        (*(entry.conditions.get(name, "") for name in _CONDITIONS), entry.model, entry.since)
        for entry in file.prices
    )
    for (*conditions, model, since), count in names.items():
        if count > 1:
            who = "/".join([*filter(None, map(str, conditions)), str(model)])
            raise SettingsError(f"{VARIABLE}: {path}: two prices of {who} from {since}")
    if file.override:
        return [e.model_copy(update={"override": file.override}) for e in file.prices], content
    return list(file.prices), content
