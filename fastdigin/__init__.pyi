"""The public names of fastdigin: for editors and type checkers, and __init__.py reads them."""

from fastdigin import presets as presets
from fastdigin.editing.inversion import (
    Inversion as Inversion,
    InversionSettings as InversionSettings,
    invert as invert,
)
from fastdigin.editing.inversion_cache import InversionCache as InversionCache
from fastdigin.editing.schedules import (
    Cosine as Cosine,
    Threshold as Threshold,
)
from fastdigin.editing.segmentation import Segmentation as Segmentation
from fastdigin.engine.engine import Engine as Engine
from fastdigin.engine.job import (
    Blending as Blending,
    Candidate as Candidate,
    EarlyStop as EarlyStop,
    Injection as Injection,
    Job as Job,
    Result as Result,
    SelfInjection as SelfInjection,
    Settings as Settings,
)
from fastdigin.engine.queue import (
    Search as Search,
    Stage as Stage,
)
from fastdigin.errors import UserError as UserError
from fastdigin.models.captioner import Captioner as Captioner
from fastdigin.models.classifier import Classifier as Classifier
from fastdigin.models.diffusion import LatentDiffusion as LatentDiffusion
from fastdigin.models.preprocessing import Resizing as Resizing
from fastdigin.models.segmenter import Segmenter as Segmenter
from fastdigin.objectives import (
    ClassConfidence as ClassConfidence,
    Cutouts as Cutouts,
    Distance as Distance,
    FeatureDistance as FeatureDistance,
    LpipsDistance as LpipsDistance,
    NeuronActivation as NeuronActivation,
    load_lpips as load_lpips,
)
from fastdigin.photos import (
    ImageInput as ImageInput,
    collect as collect,
)
from fastdigin.report import write_report as write_report
from fastdigin.results import (
    CounterfactualRecord as CounterfactualRecord,
    DisagreementRecord as DisagreementRecord,
    NeuronCounterfactualRecord as NeuronCounterfactualRecord,
    NeuronRecord as NeuronRecord,
    Record as Record,
    read_records as read_records,
    to_pil as to_pil,
)
from fastdigin.retrieval import (
    Activating as Activating,
    find_similar as find_similar,
    load_embedding as load_embedding,
    most_activating as most_activating,
    photo_files as photo_files,
)
from fastdigin.storage import TensorCache as TensorCache
from fastdigin.tasks import register as register
from fastdigin.tasks.counterfactual import (
    Counterfactuals as Counterfactuals,
    CounterfactualSettings as CounterfactualSettings,
    counterfactuals as counterfactuals,
)
from fastdigin.tasks.disagreement import (
    Disagreements as Disagreements,
    DisagreementSettings as DisagreementSettings,
    disagreements as disagreements,
)
from fastdigin.tasks.naming import (
    CaptionedWords as CaptionedWords,
    RankedWords as RankedWords,
)
from fastdigin.tasks.neuron_counterfactual import (
    NeuronCounterfactuals as NeuronCounterfactuals,
    NeuronCounterfactualSettings as NeuronCounterfactualSettings,
    neuron_counterfactuals as neuron_counterfactuals,
)
from fastdigin.tasks.neurons import (
    NeuronSettings as NeuronSettings,
    NeuronVisualisations as NeuronVisualisations,
    visualise_neurons as visualise_neurons,
)
from fastdigin.tasks.regularisers import Regulariser as Regulariser
from fastdigin.tasks.sources import PhotoTools as PhotoTools
from fastdigin.tasks.task import Task as Task

__version__: str
__all__: list[str]
