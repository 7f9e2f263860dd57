"""What is refused before any work, and how the message names it."""

from dataclasses import replace

import pytest
import torch
from tiny import (
    IMAGE_SHAPE,
    LATENT_SHAPE,
    build_tiny,
    make_blending,
    make_injection,
    make_job,
    make_self_injection,
    make_source,
    normal,
    uniform,
)

from fastdigin.engine.checks import check_job
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Blending, EarlyStop, Injection, Settings
from fastdigin.errors import UserError
from fastdigin.objectives import Distance

STEPS = 4
FRONT = (1.0, 1.0, 0.0, 0.0)


def zeros(*shape):
    return torch.zeros(shape)


def first_layer(injection, **changes):
    """The injection with one layer's SourceAttention changed."""
    name, source = next(iter(injection.layers.items()))
    values = {key: change(getattr(source, key)) for key, change in changes.items()}
    return replace(injection, layers={**injection.layers, name: replace(source, **values)})


BAD_JOBS = [
    ({"latents": zeros(4, 4, 8)}, r"latents have shape \(4, 4, 8\)"),
    ({"latents": zeros(1, 4, 8, 8)}, "latents have shape"),
    ({"conditioning": zeros(16, 8)}, r"conditioning has shape \(16, 8\)"),
    ({"conditioning": zeros(3, 16, 16)}, "T = 4 steps"),
    ({"conditioning": zeros(16)}, r"conditioning has shape \(16,\)"),
    ({"null_text": zeros(5, 16, 16)}, "T = 4 steps"),
    ({"null_text": zeros(7, 16)}, "null_text has 7 tokens, the conditioning has 16"),
    ({"null_text": None}, "null_text is None"),
    ({"offsets": zeros(3, 4, 8, 8)}, r"offsets have shape \(3, 4, 8, 8\), wanted \(4, 4, 8, 8\)"),
    ({"losses": []}, "no losses"),
    ({"losses": [Distance(uniform(*IMAGE_SHAPE))] * 2}, "distinct names"),
    ({"monitors": {"total": lambda x: 0}}, "distinct names"),
    ({"injection": Injection({}, torch.eye(16), (1.0,))}, "injection has 1 weights for 4"),
    ({"blending": Blending(zeros(8, 8), zeros(4, 4, 8, 8), (1.0,) * 5)}, "blending has 5 weights"),
    ({"blending": Blending(zeros(16, 16), zeros(4, 4, 8, 8), FRONT)}, r"needs a mask \(8, 8\)"),
    ({"blending": Blending(zeros(8, 8), zeros(4, 4, 4, 4), FRONT)}, "blending needs"),
    ({"blending": Blending(zeros(8, 8), zeros(1, 4, 8, 8), FRONT)}, "blending needs"),
    ({"settings": Settings(steps=1001)}, "steps must lie in"),
    (
        {"settings": Settings(steps=STEPS, guidance_scale=1.0, variables=("null_text",))},
        "has no null text, the only one of variables",
    ),
    (
        {"settings": Settings(steps=STEPS, early_stop=EarlyStop(above=0.9, of="confidense"))},
        "early_stop is of 'confidense'",
    ),
    (
        {"settings": Settings(steps=STEPS, early_stop=EarlyStop(1, also=EarlyStop(1, of="g")))},
        "early_stop is of 'g'",
    ),
    (
        {"settings": Settings(steps=STEPS, early_stop=EarlyStop(1, settled=("total",)))},
        "early_stop is of 'total', but there are only distance",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD_JOBS, ids=[m for _, m in BAD_JOBS])
def test_jobs_that_do_not_fit(tiny, changes, message):
    job = make_job(tiny.model, "sick")
    check_job(job, tiny.model)
    with pytest.raises(UserError, match=f"sick.*{message}|steps must lie in"):
        check_job(replace(job, **changes), tiny.model)


BAD_EDITS = {
    "injection maps": lambda cross, own: {"injection": replace(cross, mapping=torch.eye(7))},
    r"maps \(16, 7\)": lambda cross, own: {
        "injection": replace(cross, mapping=torch.eye(16)[:, :7])
    },
    "injection weights reach step 3": lambda cross, own: {
        "injection": replace(cross, weights=(1.0, 1.0, 1.0, 0.0))
    },
    "self_injection weights reach step 3": lambda cross, own: {
        "self_injection": replace(own, weights=(1.0, 1.0, 1.0, 0.0))
    },
    "does not fit the self-attention layers": lambda cross, own: {
        "self_injection": replace(own, layers=cross.layers)
    },
    "self-attention layers .* wanted": lambda cross, own: {  # keys of one step
        "self_injection": first_layer(own, keys=lambda x: x[:1])
    },
    "self-attention .* is": lambda cross, own: {  # a map of another size
        "self_injection": first_layer(own, keys=lambda x: None)
    },
    "attn2 is None, wanted": lambda cross, own: {  # of a layer that the model lacks
        "injection": replace(cross, layers={"no such layer": next(iter(cross.layers.values()))})
    },
    "does not fit the cross-attention": lambda cross, own: {
        "injection": first_layer(cross, tensor=lambda x: x[:, :, :5])
    },
    "target x source": lambda cross, own: {  # keys of another prompt's length
        "injection": first_layer(cross, keys=lambda x: x[:, :7])
    },
}


@pytest.mark.parametrize("message", BAD_EDITS)
def test_edits_that_do_not_fit(tiny, message):
    source = make_source(tiny.model, "a photo of a red sneaker", STEPS)
    edits = {
        "injection": make_injection(tiny.model, source, "a photo of a boot", FRONT),
        "self_injection": make_self_injection(tiny.model, source, FRONT),
    }
    job = make_job(tiny.model, "sick", **edits, blending=make_blending(source, FRONT))
    check_job(job, tiny.model)
    with pytest.raises(UserError, match=f"job 'sick': .*{message}"):
        check_job(replace(job, **BAD_EDITS[message](*edits.values())), tiny.model)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("steps", 0), ("guidance_scale", -1.0), ("iterations", -1), ("last_steps", 0),
        ("learning_rate", 0.0), ("latent_lr_factor", -0.1), ("optimiser", "lbfgs"),
        ("schedule", "linear"), ("clip_gradients", 0.0), ("variables", ()),
        ("variables", ("latent",)), ("steps", 2.5), ("steps", True), ("iterations", "3"),
        ("learning_rate", None), ("iterations", 10**12),
    ],
)  # fmt: skip
def test_settings_are_checked(option, value):
    with pytest.raises(UserError, match=option) as error:
        Settings(**{option: value})
    wrong = value[0] if isinstance(value, tuple) and value else value  # of several, the bad one
    assert repr(wrong) in str(error.value)


def test_early_stop_is_checked():
    with pytest.raises(UserError, match="held_for"):
        EarlyStop(0.1, held_for=0)
    for bounds in ({}, {"below": 1.0, "above": 0.0}):
        with pytest.raises(UserError, match="below and above"):
            EarlyStop(**bounds)


@pytest.mark.parametrize("network", ["unet", "vae", "text_encoder"])
def test_trainable_or_training_networks_are_refused(network):
    model = build_tiny().model
    engine = Engine(model)
    z, cond = normal(1, *LATENT_SHAPE), model.encode_prompts(["a cat"])
    for spoil, message in (
        (lambda n: next(n.parameters()).requires_grad_(True), "trainable weights"),
        (lambda n: n.requires_grad_(False).train(), "training mode"),
    ):
        spoil(getattr(model, network))
        with pytest.raises(UserError, match=message):
            engine.sample(z, cond, steps=2)
        with pytest.raises(UserError, match=message):
            Engine(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": normal(1, 4, 8, 4)}, r"latents have shape \(1, 4, 8, 4\)"),
        ({"latents": normal(*LATENT_SHAPE)}, "latents have shape"),
        ({"conditioning": normal(2, 16, 16)}, "conditioning has shape"),
        ({"conditioning": normal(1, 3, 16, 16)}, "T = 2"),
        ({"null_text": normal(16, 16)}, "null_text has shape"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 1001}, "steps must lie in"),
        ({"last_steps": 0}, "last_steps must be at least 1"),
        ({"latents": None}, "latents is None"),
        ({"latents": zeros(1, *LATENT_SHAPE).int()}, "latents is of torch.int"),
        ({"latents": zeros(1, *LATENT_SHAPE).to("meta")}, "latents is on meta"),
        ({"conditioning": zeros(1, 24, 12).long()}, "conditioning is of"),
        ({"conditioning": normal(24, 32)}, r"conditioning has shape \(24, 32\)"),
        ({"null_text": "no"}, "null_text is 'no'"),
        ({"null_text": normal(1, 3, 16)}, "null_text has 3 tokens, the conditioning has"),
        ({"pooled": normal(1, 2, 3)}, r"pooled is of shape \(1, 2, 3\)"),
        ({"noise": normal(1, 2, 3)}, r"noise has shape \(1, 2, 3\)"),
    ],
)
def test_bad_arguments_of_sample(tiny, arguments, message):
    defaults = {
        "latents": normal(1, *LATENT_SHAPE), "conditioning": normal(1, 16, 16), "steps": 2
    }  # fmt: skip
    with pytest.raises(UserError, match=message):
        Engine(tiny.model).sample(**{**defaults, **arguments})
