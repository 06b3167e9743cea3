"""A step that loads many hours: every hour is processed, checked and recorded by itself.

A run costs seconds of start-up, so it loads up to a day of hours. An hour that fails must not take
the others with it, so their materializations are recorded before the step fails.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import dagster as dg

from llm_trace_pipeline.defs.checks import HOURLY_CHECKS, Finding
from llm_trace_pipeline.defs.metadata import Metadata, as_metadata, describe_time, summary_of
from llm_trace_pipeline.defs.runs import FAILED_HOURS, STORE_DOWN, refuse_retries
from llm_trace_pipeline.errors import (
    ClickHouseError,
    LostTracesError,
    PipelineError,
    SettingsError,
    TransientClickHouseError,
    unexpected,
)
from llm_trace_pipeline.hours import key_of, ranges
from llm_trace_pipeline.trace.tally import EXAMPLES

# Dagster shows this logger's lines in the run (see dagster.yaml), commands print them.
_LOG = logging.getLogger("llm_trace_pipeline")

# What is wrong until somebody repairs it: to run again would fail again.
_LASTING = (LostTracesError, SettingsError, ClickHouseError)

HourOutcome = tuple[Metadata, Sequence[Finding]]
ProcessHours = Callable[[Sequence[datetime]], Mapping[datetime, HourOutcome]]


def materialize_hours(
    context: dg.AssetExecutionContext,
    groups: Sequence[Sequence[datetime]],
    process: ProcessHours,
    is_up: Callable[[], bool] = lambda: True,
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Process the hours of a run, and record every hour by itself.

    An hour that fails, or whose blocking check fails, is not recorded as materialized. The other
    hours are recorded, and then the step fails. Where a signal ends the step, the hours that are
    done by then are recorded too.

    Args:
        context: of the step.
        groups: the hours of a group are processed together.
        process: returns how every hour went.
        is_up: whether ClickHouse answers at all; where it does not, the hours that are left wait.

    Raises:
        Failure: hours failed; the message has one line for every reason, which names its hours.
    """
    done: dict[str, Metadata] = {}
    failed: dict[datetime, str] = {}
    findings: list[tuple[str, Finding]] = []
    may_pass = is_down = False  # whether a failure can be gone in a moment; ClickHouse is down
    try:
        for each in _process(groups, process, is_up):
            key = key_of(each.hour)
            if isinstance(each.outcome, PipelineError):
                failed[each.hour] = str(each.outcome)
                may_pass = may_pass or can_pass(each.outcome)
                is_down = is_down or isinstance(each.outcome, StoreDownError)
                if key in failed[each.hour]:  # what does not name the hour is said once, below
                    _LOG.error(failed[each.hour])
                continue
            metadata, found = each.outcome
            findings += [(key, finding) for finding in found]
            if wrong := _log_findings(context, key, found):
                failed[each.hour] = wrong
                _LOG.error(wrong)
            else:
                done[key] = _described(context, each, metadata)
    except BaseException:  # by a signal
        _record(context, done, findings)
        raise
    if len(done) + len(failed) > 1:
        summary = {
            "summary of the run": summary_of(
                done, {key_of(hour): said for hour, said in failed.items()}
            )
        }
        context.log_event(dg.AssetObservation(context.asset_key, metadata=summary))
    if failed:
        _record(context, done, findings)
        if not may_pass:
            refuse_retries(context)
        raise _failure(context, len(done), failed, {STORE_DOWN: True} if is_down else {})
    for key, metadata in done.items():
        context.add_asset_metadata(metadata, partition_key=key)
    yield dg.MaterializeResult()
    yield from _summaries(findings)


def _record(
    context: dg.AssetExecutionContext,
    done: Mapping[str, Metadata],
    findings: Sequence[tuple[str, Finding]],
) -> None:
    """Record the hours that are done, and what was checked, of a step that is about to fail."""
    for key, metadata in done.items():
        context.log_event(
            dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata)
        )
    for result in _summaries(findings):
        context.log_event(
            dg.AssetCheckEvaluation(
                asset_key=context.asset_key,
                check_name=str(result.check_name),
                passed=result.passed,
                severity=result.severity,
                description=result.description,
                metadata=result.metadata,
            )
        )


def _failure(
    context: dg.AssetExecutionContext,
    done: int,
    failed: Mapping[datetime, str],
    metadata: Metadata,
) -> dg.Failure:
    """Say what concerns several hours, and return the failure."""
    reasons = _reasons(failed)
    for reason in reasons:
        if reason not in failed.values():
            _LOG.error(reason)
    return dg.Failure(
        f"{len(failed)} of {len(failed) + done} hours failed; the others are done as far as "
        f"{context.asset_key.to_user_string()}:\n" + "\n".join(reasons),
        metadata={FAILED_HOURS: [key_of(hour) for hour in failed], **metadata},
    )


def _reasons(failed: Mapping[datetime, str]) -> list[str]:
    """Return why hours failed, one line a reason: one that does not name its hours follows them."""
    hours_of: dict[str, list[datetime]] = {}
    for hour, reason in failed.items():
        hours_of.setdefault(reason, []).append(hour)
    return [
        reason if all(key_of(hour) in reason for hour in hours) else f"{_named(hours)}: {reason}"
        for reason, hours in hours_of.items()
    ]


def _named(hours: Sequence[datetime]) -> str:
    """Return the names of hours, such as ``hours 2026-03-01-09:00 to 2026-03-01-11:00``."""
    spans = [
        key_of(window.start) + (f" to {key_of(window.last)}" if len(window.hours) > 1 else "")
        for window in ranges(hours)
    ]
    return f"hour{'s' if len(hours) > 1 else ''} {', '.join(spans)}"


class StoreDownError(PipelineError):
    """ClickHouse does not answer."""


def is_transient(error: BaseException) -> bool:
    """Whether ClickHouse may answer in a moment, also where all attempts of a minute failed."""
    return any(isinstance(each, TransientClickHouseError) for each in (error, error.__cause__))


def can_pass(error: PipelineError) -> bool:
    """Whether an error can be gone in a moment, so that the run may be tried again."""
    return is_transient(error) or not isinstance(error, _LASTING)


@dataclass(frozen=True)
class _Processed:
    """How an hour went."""

    hour: datetime
    outcome: HourOutcome | PipelineError
    seconds: float = 0.0  # of the group
    together: int = 1  # hours of the group


def _process(
    groups: Sequence[Sequence[datetime]], process: ProcessHours, is_up: Callable[[], bool]
) -> Iterator[_Processed]:
    """Return how every hour went."""
    waiting = deque(groups)
    while waiting:
        group = waiting.popleft()
        started = time.monotonic()
        try:
            outcomes = process(group)
        except Exception as error:  # noqa: BLE001 -- reported as the failure of the hour
            if is_transient(error) and not is_up():
                first, *others = [*group, *(hour for later in waiting for hour in later)]
                yield from _waiting(first, others, error)
                return
            if len(group) > 1:  # one by one, so that only the hour that is wrong fails
                waiting.extendleft([hour] for hour in reversed(group))
            elif isinstance(error, PipelineError):
                yield _Processed(group[0], error)
            else:
                yield _Processed(group[0], unexpected(key_of(group[0]), error))
            continue
        seconds = time.monotonic() - started
        for hour, outcome in outcomes.items():
            yield _Processed(hour, outcome, seconds, len(group))


def _waiting(first: datetime, others: Sequence[datetime], error: Exception) -> Iterator[_Processed]:
    """Return hours as failed, since ClickHouse does not answer: the first with the error."""
    yield _Processed(
        first,
        StoreDownError(
            f"hour {key_of(first)}: ClickHouse does not answer, so that this hour and those after "
            f"it wait; make preflight says more: {error}"
        ),
    )
    for hour in others:
        yield _Processed(hour, StoreDownError(f"hour {key_of(hour)}: not tried"))


def _described(context: dg.AssetExecutionContext, each: _Processed, metadata: Metadata) -> Metadata:
    """Return the figures of an hour that is done, and log it."""
    _LOG.info(
        "%s: hour %s: %s rows in %.2f s",
        context.asset_key.to_user_string(),
        key_of(each.hour),
        metadata["rows"],
        each.seconds / each.together,
    )
    return {**metadata, **describe_time(metadata["rows"], each.seconds, each.together)}


def _log_findings(context: dg.AssetExecutionContext, key: str, findings: Sequence[Finding]) -> str:
    """Record what the checks say of an hour; return why it must not be recorded as loaded."""
    wrong = ""
    for finding in findings:
        _log_finding(context, key, finding)
        if not finding.passed and finding.severity is dg.AssetCheckSeverity.ERROR:
            wrong = f"hour {key}: check {finding.check} failed: {finding.said}"
    return wrong


def _log_finding(context: dg.AssetExecutionContext, key: str, finding: Finding) -> None:
    """Record the outcome of a check for one hour: a step may return one result per check only."""
    context.log_event(
        dg.AssetCheckEvaluation(
            asset_key=context.asset_key,
            check_name=finding.check,
            passed=finding.passed,
            severity=finding.severity,
            description=f"{key}: {finding.said}",
            metadata=as_metadata(finding.metadata),
            partition=key,
            blocking=HOURLY_CHECKS[finding.check].blocking,
        )
    )


def _summaries(findings: Sequence[tuple[str, Finding]]) -> Iterator[dg.AssetCheckResult]:
    """Return one result per check, for all hours together."""
    for name in dict.fromkeys(finding.check for _, finding in findings):
        of_check = {key: finding for key, finding in findings if finding.check == name}
        failed = {key: finding for key, finding in of_check.items() if not finding.passed}
        shown = failed or of_check
        of_hours = f"{len(failed):,} of {len(of_check):,} hours failed; " if failed else ""
        if len(shown) == 1 or failed:
            said = "; ".join(f"{key}: {each.said}" for key, each in list(shown.items())[:EXAMPLES])
        else:
            first, *_, last = of_check
            said = f"{first} to {last}: none of {len(of_check):,} hours failed"
        severities = {each.severity for each in shown.values()}
        is_error = dg.AssetCheckSeverity.ERROR in severities
        yield dg.AssetCheckResult(
            check_name=name,
            passed=not failed,
            severity=dg.AssetCheckSeverity.ERROR if is_error else dg.AssetCheckSeverity.WARN,
            description=of_hours + said,
            metadata={
                "hours": len(of_check),
                "hours that failed": len(failed),
                "said": dg.MetadataValue.json({key: each.said for key, each in of_check.items()}),
            },
        )
