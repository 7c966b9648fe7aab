"""The one rule for values: what is JSON stays as it is, its relatives become it, all else is refused by place."""

from __future__ import annotations

import collections
from typing import Any

import orjson
import pytest
from hypothesis import given, settings

from asyncsynth.records import MAX_DEPTH, NotPlainJson, not_json, plain_json
from tests.kit.values import REFUSED, Real, Text, anything, nested


def check_refused(value: Any, what: str, advice: str) -> None:
    assert not_json(value) == ("", what)
    for inside, place in (({"a": value}, "a"), ([0, value], "[1]"), ({"a": ("x", {"b c": [value]})}, "a[1].b c[0]")):
        with pytest.raises(NotPlainJson) as caught:
            plain_json(inside)
        assert (caught.value.place, caught.value.what) == (place, what)
        assert advice in caught.value.advice
        assert str(caught.value) == f"{place} is {what}"


@pytest.mark.parametrize(("value", "what", "advice"), REFUSED, ids=lambda value: ascii(value)[:30])
def test_what_json_cannot_carry_is_refused_by_place(value: Any, what: str, advice: str) -> None:
    check_refused(value, what, advice)


def test_values_of_numpy_are_refused_by_name() -> None:
    np = pytest.importorskip("numpy")
    for value, what in (
        (np.float32(1.5), "float32"),
        (np.int64(3), "int64"),
        (np.array([1]), "ndarray"),
        (np.bool_(True), "numpy.bool"),
    ):
        check_refused(value, f"of type {what}", "tolist()")
    check_refused(np.float64("nan"), "NaN", "None")
    assert type(plain_json({"f": Real(0.1)})["f"]) is float


def test_values_of_pandas_are_refused_by_name() -> None:
    pd = pytest.importorskip("pandas")
    check_refused(pd.NaT, "of type NaTType", "Write None")
    check_refused(pd.NA, "of type NAType", "Write None")
    check_refused(pd.DataFrame({"a": [1]}), "of type DataFrame", "to_dict('records')")


def test_depth_is_bounded_and_named_by_its_column() -> None:
    assert plain_json(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    assert not_json({"deep": {"er": nested(MAX_DEPTH + 50)}}) == ("deep", f"nested more than {MAX_DEPTH} levels deep")
    around: list[Any] = []
    around.append(around)
    assert not_json({"around": around}) == ("around", f"nested more than {MAX_DEPTH} levels deep")


def test_relatives_of_the_plain_types_become_them() -> None:
    given_ = {
        "t": (1, ("a",)), "s": Text("é"), "f": Real(0.1), "d": collections.OrderedDict(a=1),
        "i": type("Int", (int,), {})(3), "l": type("List", (list,), {})([1]), Text("k"): collections.defaultdict(int),
    }  # fmt: skip
    made = plain_json(given_)
    assert made == {"t": [1, ["a"]], "s": "é", "f": 0.1, "d": {"a": 1}, "i": 3, "l": [1], "k": {}}
    kinds = [type(value) for value in (*made, *made.values(), made["t"][1])]
    assert kinds == [str] * 7 + [list, str, float, dict, int, list, dict, list]


@settings(max_examples=400, deadline=None)
@given(anything)
def test_what_passes_comes_back_from_the_disk_as_it_is(value: Any) -> None:
    try:
        made = plain_json(value)
    except NotPlainJson:
        return
    back = orjson.loads(orjson.dumps(made, option=orjson.OPT_PASSTHROUGH_SUBCLASS))
    assert back == made
    assert repr(back) == repr(made)  # 1 and 1.0 and True are not the same
    assert plain_json(made) == made
