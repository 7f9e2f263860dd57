"""Explain image classifiers by optimising images through an unrolled diffusion sampler."""

from importlib import import_module

__version__ = "0.1.0"

# Imported on first use: torch and diffusers take seconds, and `fastdigin --help` needs neither.
_HOME = {
    "Classifier": "fastdigin.models.classifier",
    "Resizing": "fastdigin.models.preprocessing",
    "LatentDiffusion": "fastdigin.models.diffusion",
    "Engine": "fastdigin.engine.engine",
    "Job": "fastdigin.engine.job",
    "Result": "fastdigin.engine.job",
    "Settings": "fastdigin.engine.job",
    "EarlyStop": "fastdigin.engine.job",
    "ImageInput": "fastdigin.photos",
    "UserError": "fastdigin.errors",
    "counterfactuals": "fastdigin.tasks.counterfactual",
    "CounterfactualSettings": "fastdigin.tasks.counterfactual",
    "disagreements": "fastdigin.tasks.disagreement",
    "DisagreementSettings": "fastdigin.tasks.disagreement",
    "visualise_neurons": "fastdigin.tasks.neurons",
    "NeuronSettings": "fastdigin.tasks.neurons",
    "neuron_counterfactuals": "fastdigin.tasks.neuron_counterfactual",
    "NeuronCounterfactualSettings": "fastdigin.tasks.neuron_counterfactual",
    "InversionCache": "fastdigin.editing.inversion_cache",
    "Segmentation": "fastdigin.editing.segmentation",
    "Segmenter": "fastdigin.models.segmenter",
    "PhotoTools": "fastdigin.tasks.sources",
    "find_similar": "fastdigin.retrieval",
    "load_embedding": "fastdigin.retrieval",
    "most_activating": "fastdigin.retrieval",
    "photo_files": "fastdigin.retrieval",
    "write_report": "fastdigin.report",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'fastdigin' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
