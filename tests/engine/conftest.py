"""What the tests of compiled steps share."""

import pytest


@pytest.fixture(scope="module")
def compiled_engine():
    """Two slots, some steps kept, all of them compiled by aot_eager: every graph takes seconds."""
    import torch
    from tiny import build_tiny

    from fastdigin.engine import compile_choice
    from fastdigin.engine.engine import Engine

    torch._dynamo.reset()  # it makes sizes dynamic that other tests have varied
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_choice, "BACKEND", "aot_eager")
        engine = Engine(build_tiny(levels=1).model, slots=2, kept_steps=1, compile="on")
        engine._choice.functions  # noqa: B018 - it is made with that backend
        yield engine
