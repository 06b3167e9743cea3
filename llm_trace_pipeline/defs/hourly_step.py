"""A step that loads many hours: every hour is processed, checked and recorded by itself.

A run costs seconds of start-up, so it loads up to a day of hours. An hour that fails must not take
the others with it, so their materializations are recorded before the step fails.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime

import dagster as dg

from llm_trace_pipeline.defs.checks import HOURLY_CHECKS, Finding
from llm_trace_pipeline.defs.metadata import Metadata, as_metadata, describe_time, summary_of
from llm_trace_pipeline.defs.runs import FAILED_HOURS
from llm_trace_pipeline.errors import PipelineError, unexpected
from llm_trace_pipeline.hours import key_of, ranges

# Dagster shows this logger's lines in the run (see dagster.yaml), commands print them.
_LOG = logging.getLogger("llm_trace_pipeline")

_SHOWN = 3  # hours in the description of a check of many

HourOutcome = tuple[Metadata, Sequence[Finding]]
ProcessHours = Callable[[Sequence[datetime]], Mapping[datetime, HourOutcome]]


def materialize_hours(
    context: dg.AssetExecutionContext,
    groups: Sequence[Sequence[datetime]],
    process: ProcessHours,
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Process the hours of a run, and record every hour by itself.

    An hour that fails, or whose blocking check fails, is not recorded as materialized. The other
    hours are; then the step fails. The hours of a group are processed together.

    Raises:
        Failure: hours failed; the message has one line for every reason, which names its hours.
    """
    done: dict[str, Metadata] = {}
    failed: dict[datetime, str] = {}
    findings: list[tuple[str, Finding]] = []
    for hour, seconds, together, outcome in _process(groups, process):
        key = key_of(hour)
        if isinstance(outcome, PipelineError):
            failed[hour] = str(outcome)
            if key in failed[hour]:  # what does not name the hour is said once, below
                _LOG.error(failed[hour])
            continue
        metadata, found = outcome
        for finding in found:
            _log_finding(context, key, finding)
            if not finding.passed and finding.severity is dg.AssetCheckSeverity.ERROR:
                failed[hour] = f"hour {key}: check {finding.check} failed: {finding.said}"
                _LOG.error(failed[hour])
            findings.append((key, finding))
        if hour not in failed:
            done[key] = {**metadata, **describe_time(metadata["rows"], seconds, together)}
            _LOG.info(
                "%s: hour %s: %s rows in %.2f s",
                context.asset_key.to_user_string(),
                key,
                metadata["rows"],
                seconds / together,
            )
    if len(done) + len(failed) > 1:
        summary = {
            "summary of the run": summary_of(
                done, {key_of(hour): said for hour, said in failed.items()}
            )
        }
        context.log_event(dg.AssetObservation(context.asset_key, metadata=summary))
    if failed:
        _record(context, done, findings)
        raise _failure(context, len(done), failed)
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
    context: dg.AssetExecutionContext, done: int, failed: Mapping[datetime, str]
) -> dg.Failure:
    """Say what concerns several hours, and return the failure."""
    reasons = _reasons(failed)
    for reason in reasons:
        if reason not in failed.values():
            _LOG.error(reason)
    return dg.Failure(
        f"{len(failed)} of {len(failed) + done} hours failed; the others are done as far as "
        f"{context.asset_key.to_user_string()}:\n" + "\n".join(reasons),
        metadata={FAILED_HOURS: [key_of(hour) for hour in failed]},
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


def _process(
    groups: Sequence[Sequence[datetime]], process: ProcessHours
) -> Iterator[tuple[datetime, float, int, HourOutcome | PipelineError]]:
    """Return how every hour went, the seconds that its group took, and the hours of the group."""
    waiting = deque(groups)
    while waiting:
        group = waiting.popleft()
        started = time.monotonic()
        try:
            outcomes = process(group)
        except Exception as error:  # noqa: BLE001 -- reported as the failure of the hour
            if len(group) > 1:  # one by one, so that only the hour that is wrong fails
                waiting.extendleft([hour] for hour in reversed(group))
            elif isinstance(error, PipelineError):
                yield group[0], 0.0, 1, error
            else:
                yield group[0], 0.0, 1, unexpected(key_of(group[0]), error)
            continue
        seconds = time.monotonic() - started
        for hour, outcome in outcomes.items():
            yield hour, seconds, len(group), outcome


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
            said = "; ".join(f"{key}: {each.said}" for key, each in list(shown.items())[:_SHOWN])
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
