"""Any JSON, and responses of providers in which some of it stands in the place of something."""

from typing import Any

from hypothesis import strategies as st

from tests.harness.usage_cases import CASES

RESPONSES = [case["call"]["response_json"] for case in CASES]


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all subtrees."""
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(found for key, item in children for found in places_in(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


ANY_TEXT = st.text(st.characters(codec=None), max_size=8)  # lone surrogates and NUL too
KEYS = st.sampled_from(sorted(keys_of(RESPONSES) | {"error_type", "detail", "__type"}))
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**62, 2**65)
    | st.floats()
    | st.integers(0, 2**64).map(str)
    | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | ANY_TEXT, inner, max_size=5),
    max_leaves=12,
)


@st.composite
def mutated_responses(draw: st.DrawFn) -> Any:
    response = draw(st.sampled_from(RESPONSES))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places_in(response)))
        response = replaced(response, path, draw(ANY_JSON))
    return response
