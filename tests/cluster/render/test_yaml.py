"""Comments in YAML are in the right place, occur once, and do not change the content."""

from __future__ import annotations

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.render.yaml import dump, dump_all

DOCUMENT = {"pods": [{"name": "a", "size": {"cpu": "2"}}, {"name": "b", "size": {"cpu": "4"}}], "size": "large"}


def test_a_comment_is_above_the_first_field_with_its_path() -> None:
    text = dump(DOCUMENT, {"pods.name": "Name of the pod.", "size.cpu": "Cores.", "large": "A value is no field."})
    assert text == (
        "pods:\n"
        "  # Name of the pod.\n"
        "  - name: a\n"
        "    size:\n"
        "      # Cores.\n"
        "      cpu: '2'\n"
        "  - name: b\n"
        "    size:\n"
        "      cpu: '4'\n"
        "size: large\n"
    )


def test_a_long_comment_has_several_lines_and_text_of_several_lines_is_a_block() -> None:
    text = dump({"recipe": "run: a\n# not a comment of ours\n"}, {"recipe": "word " * 40})
    assert text.startswith("# word word") and "\n# word" in text
    assert text.endswith("recipe: |\n  run: a\n  # not a comment of ours\n")


def test_repeated_values_have_no_anchors() -> None:
    same = {"cpu": "2"}
    assert "&" not in dump({"requests": same, "limits": same})


_leaves = st.one_of(st.text(), st.integers(), st.booleans(), st.none())
_documents = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=20
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "c"]), _documents, min_size=1), max_size=3))
@example([{"a": "x\x85y", "b": "x\u2028\ny", "c": "x\r\ny \n\tz"}])
def test_comments_change_nothing(documents: list[object]) -> None:
    comments = {"a": "one", "b": "two # three: {", "a.b": "four"}
    assert list(yaml.safe_load_all(dump_all(documents, comments))) == documents
