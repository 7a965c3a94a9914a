"""The encoder of rows writes what the standard library writes: digests of logs of any age depend on it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from antdt_streams.storage.rows import json_encoder
from hypothesis import given
from hypothesis import strategies as st

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)


OPTIONS = [{"sort_keys": True, "allow_nan": False}, {"ensure_ascii": False}, {"separators": (", ", ": ")}]


@pytest.mark.parametrize("options", OPTIONS)
@given(value=TREES)
def test_it_writes_what_the_library_writes(options: dict[str, Any], value: Any) -> None:
    assert json_encoder(**options)(value) == json.JSONEncoder(**{"separators": (",", ":"), **options}).encode(value)


def test_what_is_no_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_encoder(allow_nan=False)([float("nan")])
    with pytest.raises(TypeError, match="not JSON serializable"):
        json_encoder()([b"bytes"])
