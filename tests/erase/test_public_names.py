"""What `import erase` offers."""

import erase


def test_the_public_names_are_these_and_sorted():
    assert erase.__all__ == [
        "BaselinePolicy",
        "BinnedPolicy",
        "BudgetPolicy",
        "DistinctPolicy",
        "EraseError",
        "InputError",
        "PolicyError",
        "UnsupportedError",
        "load_policy",
        "preset",
        "preset_names",
        "pruning",
        "save_policy",
    ]
    assert erase.__all__ == sorted(erase.__all__)
    assert all(hasattr(erase, name) for name in erase.__all__)
    assert isinstance(erase.__version__, str)
