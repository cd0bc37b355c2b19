"""Configurations compared."""

from typing import Any

from commands.settings import apply_changes, describe_changes, find_changes

BEAM = {"class_path": "networks.BeamSearch", "init_args": {"width": 20, "language_model": None}}


def make_config(search: Any, width: int = 3) -> dict[str, Any]:
    return {
        "model": {
            "class_path": "A",
            "init_args": {"decoding": search, "network": {"width": width}},
        },
        "trainer": {"precision": None, "max_epochs": width},
    }


def test_changes_are_found_named_and_applied() -> None:
    before, now = make_config(None), make_config(BEAM, 4)
    changes = find_changes(before, now)
    key = "model.init_args.decoding"
    assert changes == {key: (None, BEAM), "model.init_args.network.width": (3, 4)}
    assert find_changes(now, before)[key] == (BEAM, None)
    wider = {**BEAM, "init_args": {"width": 30}}  # a setting that only one has is left out
    assert find_changes(make_config(BEAM), make_config(wider)) == {
        f"{key}.init_args.width": (20, 30)
    }
    greedy = make_config({"class_path": "networks.GreedySearch", "init_args": {"max_tokens": 9}})
    assert find_changes(greedy, make_config(BEAM))[key][1] == BEAM
    assert apply_changes(before, {f"{key}.init_args.width": 4}) == before  # it has no such part
    new = {key: value for key, (_, value) in changes.items()}
    assert describe_changes(new) == "decoding BeamSearch (width 20), width 4"
    assert apply_changes(before, new)["model"] == now["model"]
    assert before == make_config(None)
