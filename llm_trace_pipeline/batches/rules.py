"""The rules by which rows of the source become rows of a batch: billing, prices, kept payloads."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import pyarrow as pa

from llm_trace_pipeline.batches.files import Files
from llm_trace_pipeline.settings import Settings
from llm_trace_pipeline.trace.billing import BillingMatcher
from llm_trace_pipeline.trace.payloads import KEEP_ALL, PayloadPolicy
from llm_trace_pipeline.trace.prices import PACKAGED, PriceBook


@dataclass(frozen=True)
class Rules:
    """What a row is given beside the columns of the source, and how much of its text is kept."""

    history: pa.Table  # every billing version ever seen: rows of billing.HISTORY_SCHEMA
    prices: PriceBook = PACKAGED
    payloads: PayloadPolicy = KEEP_ALL

    @classmethod
    def of(cls, settings: Settings, history: pa.Table) -> Self:
        """Return the rules that the settings name.

        Raises:
            SettingsError: the price file or the redacting function cannot be used.
        """
        return cls(history, PriceBook.of(settings), PayloadPolicy.of(settings))

    @cached_property
    def billing(self) -> BillingMatcher:
        """The history, indexed for the match."""
        return BillingMatcher(self.history)


def keep_prices(files: Files, prices: PriceBook) -> None:
    """Keep a price file under its version, before a batch that it priced is published.

    Whoever doubts an amount later finds the prices that it was computed with.
    """
    if prices.file and not files.exists(key := prices_key(prices.file_version)):
        files.switch(key, prices.file)


def prices_key(file_version: str) -> str:
    """Return where a price file of some version is kept, such as ``prices/1f….toml``."""
    return f"prices/{file_version.removeprefix('file:')}.toml"
