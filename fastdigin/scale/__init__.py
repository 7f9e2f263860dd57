"""Many GPUs and machines, on Ray Data (extra ``ray``).

``fastdigin TASK ... --ray [ADDRESS]`` runs a command on a cluster; :func:`map` gives the same to a
pipeline that is on Ray already. All machines must see the results folder at one path.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.data import Dataset

    from fastdigin.scale.worker import Load

__all__ = ["map"]


def map(dataset: Dataset, task: Load, *, out: Path | str, workers: int | None = None) -> Dataset:
    """A Ray Dataset of records, one row per job of a Ray Dataset that names inputs.

    Args:
        dataset: its rows say what the jobs are, such as a path and a target; never pictures. A
            block is what an actor gets at a time: a few times its slots are good.
        task: called once in each actor, loads the model and the classifier there, and returns a
            function that makes of some rows a task and those of its requests that they mean.
        out: the results folder, which all machines see; pictures and records are written there.
            No address of a store such as s3://, which raises UserError.
        workers: how many actors; None takes one per GPU, or per core where there is none.

    Returns:
        A dataset with the keys of results.jsonl as columns; what is nested in a record is JSON. A
        job that could not be done is a row with status "failed" or "error" and says why.

    Example:
        >>> def task():
        ...     engine = fd.Engine(fd.LatentDiffusion.from_pretrained("embedded"))
        ...     classifier = fd.Classifier.load("embedded:robust")
        ...     def chosen(rows):
        ...         photos = [fd.ImageInput(id=row["id"], image=row["image"]) for row in rows]
        ...         made = fd.Counterfactuals(
        ...             engine=engine, classifier=classifier, photos=photos, targets=["boot"]
        ...         )
        ...         return made, made.requests
        ...     return chosen
        >>> records = fd.scale.map(ray.data.read_csv("photos.csv"), task, out="out")
    """
    from fastdigin.results.folder import check_local
    from fastdigin.scale.driver import Pool, connect, told

    check_local(out)
    connect(None)
    pool = Pool.of_cluster(workers)
    return pool.apply(dataset, task, told(Path(out), pool), full=True)
