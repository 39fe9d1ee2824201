"""The license of a model is what its card says, and unknown otherwise."""

import json

import pytest

from subdistill_hf.models.provenance import license_of


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# Card\n", "apache-2.0"),
        ("---\nlicense:\n- mit\n---\n", "mit"),
        ("---\nlicense:\n- mit\n- gpl-3.0\n---\n", None),
        ("---\ntags: [a]\n---\n", None),
        ("# license: mit\n", None),
        ("---\nlicense: [mit\n---\n", None),
        ("---\n- license\n---\n", None),
        (None, None),
    ],
)
def test_the_license_of_a_folder_is_in_its_card(tmp_path, card, expected):
    if card is not None:
        (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert license_of(str(tmp_path)) == expected


def test_the_license_of_a_hub_model_is_in_the_card_of_its_commit(hub):
    first = hub.put("user/thing", {"README.md": b"---\nlicense: mit\n---\n"}).at("main").oid
    hub.put("user/thing", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    hub.put("user/bare", {"config.json": b"{}"})
    hub.fail("user/gated", 403)
    found = hub.answer(
        """
        import json, sys
        from subdistill_hf.models.provenance import license_of
        print(json.dumps([license_of("user/thing"), license_of("user/thing", sys.argv[1]), license_of("user/bare"),
                          license_of("user/gated"), license_of("user/nothing"), license_of("not a name")]))
        """,
        first,
    )
    assert json.dumps(found) == '["apache-2.0", "mit", null, null, null, null]'
