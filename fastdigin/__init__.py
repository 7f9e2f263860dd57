"""Explain image classifiers by optimising images through an unrolled diffusion sampler."""

from importlib import import_module

from fastdigin import presets as presets

__version__ = "0.1.0"

# Imported on first use: torch and diffusers take seconds, and `fastdigin --help` needs neither.
# Editors and type checkers read the same names in __init__.pyi.
_HOME = {
    # Models and the engine.
    "Classifier": "fastdigin.models.classifier",
    "LatentDiffusion": "fastdigin.models.diffusion",
    "Resizing": "fastdigin.models.preprocessing",
    "Segmenter": "fastdigin.models.segmenter",
    "Captioner": "fastdigin.models.captioner",
    "Engine": "fastdigin.engine.engine",
    "Blending": "fastdigin.engine.job",
    "Candidate": "fastdigin.engine.job",
    "EarlyStop": "fastdigin.engine.job",
    "Injection": "fastdigin.engine.job",
    "Job": "fastdigin.engine.job",
    "Result": "fastdigin.engine.job",
    "SelfInjection": "fastdigin.engine.job",
    "Settings": "fastdigin.engine.job",
    "Search": "fastdigin.engine.queue",
    "Stage": "fastdigin.engine.queue",
    # Losses.
    "ClassConfidence": "fastdigin.objectives",
    "Cutouts": "fastdigin.objectives",
    "Distance": "fastdigin.objectives",
    "FeatureDistance": "fastdigin.objectives",
    "LpipsDistance": "fastdigin.objectives",
    "NeuronActivation": "fastdigin.objectives",
    "load_lpips": "fastdigin.objectives",
    # Editing.
    "Inversion": "fastdigin.editing.inversion",
    "InversionCache": "fastdigin.editing.inversion_cache",
    "InversionSettings": "fastdigin.editing.inversion",
    "Segmentation": "fastdigin.editing.segmentation",
    "Cosine": "fastdigin.editing.schedules",
    "Threshold": "fastdigin.editing.schedules",
    "invert": "fastdigin.editing.inversion",
    # Tasks.
    "CaptionedWords": "fastdigin.tasks.naming",
    "CounterfactualSettings": "fastdigin.tasks.counterfactual",
    "Counterfactuals": "fastdigin.tasks.counterfactual",
    "DisagreementSettings": "fastdigin.tasks.disagreement",
    "Disagreements": "fastdigin.tasks.disagreement",
    "NeuronCounterfactualSettings": "fastdigin.tasks.neuron_counterfactual",
    "NeuronCounterfactuals": "fastdigin.tasks.neuron_counterfactual",
    "NeuronSettings": "fastdigin.tasks.neurons",
    "NeuronVisualisations": "fastdigin.tasks.neurons",
    "PhotoTools": "fastdigin.tasks.sources",
    "RankedWords": "fastdigin.tasks.naming",
    "Regulariser": "fastdigin.tasks.regularisers",
    "Task": "fastdigin.tasks.task",
    "counterfactuals": "fastdigin.tasks.counterfactual",
    "disagreements": "fastdigin.tasks.disagreement",
    "neuron_counterfactuals": "fastdigin.tasks.neuron_counterfactual",
    "register": "fastdigin.tasks",
    "visualise_neurons": "fastdigin.tasks.neurons",
    # Photos.
    "Activating": "fastdigin.retrieval",
    "ImageInput": "fastdigin.photos",
    "collect": "fastdigin.photos",
    "find_similar": "fastdigin.retrieval",
    "load_embedding": "fastdigin.retrieval",
    "most_activating": "fastdigin.retrieval",
    "photo_files": "fastdigin.retrieval",
    # Records and the report.
    "CounterfactualRecord": "fastdigin.results",
    "DisagreementRecord": "fastdigin.results",
    "NeuronCounterfactualRecord": "fastdigin.results",
    "NeuronRecord": "fastdigin.results",
    "Record": "fastdigin.results",
    "read_records": "fastdigin.results",
    "to_pil": "fastdigin.results",
    "write_report": "fastdigin.report",
    "TensorCache": "fastdigin.storage",
    "UserError": "fastdigin.errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name == "scale":
        return import_module("fastdigin.scale")  # a room of its own: its `map` is not Python's
    if name not in _HOME:
        raise AttributeError(f"module 'fastdigin' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
