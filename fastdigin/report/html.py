"""The report of a results folder: one HTML page that needs nothing beside it.

Pictures are embedded, styles, curves and the script are inline, and the page's own content
security policy forbids every request and any script but ours. All text from users and models is
escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from pathlib import Path

from fastdigin.errors import UserError
from fastdigin.report.cards import card, picture, succeeded
from fastdigin.report.style import CSS, SCRIPT
from fastdigin.report.summary import Figure, summarise, times
from fastdigin.results.pictures import BRIGHTER, DARKER, RECOLOURED, UNCHANGED
from fastdigin.results.schema import tasks as known_tasks
from fastdigin.results.store import (
    RESULTS_FILE,
    flatten,
    read_lines,
    read_runs,
    write_atomically,
)

# Beyond these a page gets too heavy for a browser; the folder holds the rest.
CARDS_SHOWN = 200
FAILURES_SHOWN = 200
NEURONS_SHOWN = 24

_TITLES = {
    "counterfactual": ("Counterfactuals",
                       "What would have to change for the classifier to see another class?"),
    "disagreement": ("Disagreement", "What does one classifier recognise and the other one not?"),
    "neurons": ("Neurons", "What excites a single neuron most?"),
    "neuron-counterfactual": ("Neuron counterfactuals",
                              "What around the object does a neuron really look at?"),
}
_EXPLANATIONS = {
    "counterfactual":
        "Each photo is changed as little as possible until the classifier answers with the target "
        "class, and only changes that the diffusion model finds natural are allowed. What changed "
        "is what the classifier goes by. <em>Before</em> is the photo as the diffusion model "
        "reproduces it, <em>after</em> is the counterfactual; the mask marks the object, outside "
        "of which changes are costly.",
    "disagreement":
        "Two classifiers, f and g, judge images of one class. Each image is optimised until f is "
        "sure of the class and g is not; whatever these images have in common is what g misses, "
        "or what only f relies on. <em>Before</em> is the image as the prompt alone gives it.",
    "neurons":
        "For each neuron the word whose generated images excite it most is the start "
        "(<em>before</em>); then the image is optimised to raise the activation further "
        "(<em>after</em>). An image above the data set's maximum excites the neuron more than any "
        "photo does. The dark mark on the activation scale is that maximum.",
    "neuron-counterfactual":
        "A neuron is turned up or down while the object in the photo is kept, so that only the "
        "background may change. A background that turns into something else tells what the neuron "
        "responds to; if the class confidence follows, the classifier leans on the background. "
        "The mask marks the object that is kept.",
}


def write_report(out: Path | str) -> Path:
    """Writes OUT/report.html from OUT/run.json, OUT/results.jsonl and the pictures they name.

    Returns the page's path. Raises UserError when OUT holds no run or cannot be written.
    """
    out = Path(out)
    runs = read_runs(out)
    if not runs:
        raise UserError(f"'{out}' holds no results (no run.json); name the --out of a run.")
    records = [record for record in read_lines(out) if record["task"] in known_tasks()]
    tasks = [task for task in known_tasks()
             if task in runs or any(record["task"] == task for record in records)]
    by_task = {task: [r for r in records if r["task"] == task] for task in tasks}
    done = {task: [r for r in by_task[task] if r["status"] == "done"] for task in tasks}
    failed = [record for record in records if record["status"] == "failed"]
    shares = _share_out(CARDS_SHOWN, {task: len(done[task]) for task in tasks})
    sections = [_section(out, task, by_task[task], done[task], shares[task]) for task in tasks]
    page = html_page("".join((
        _header(out, tasks, done, failed),
        "<main>", *sections, _failures(failed), _settings(runs), _footer(), "</main>",
        _ENLARGER,
    )))
    target = out / "report.html"
    try:
        write_atomically(target, lambda file: file.write(page.encode("utf-8", "replace")))
    except OSError as error:
        raise UserError(f"'{target}' cannot be written ({error.strerror}); "
                        "make the folder writable.") from None
    return target


def html_page(body: str) -> str:
    """The whole page around ``body``, with style, script and content security policy."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
              f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>fastdigin report</title><style>{CSS}</style></head>"
        f"<body>{body}<script>{SCRIPT}</script></body></html>\n"
    )


_ENLARGER = (
    '<dialog aria-label="Enlarged picture"><img src="data:," alt=""><p>'
    '<button type="button" data-step="-1" aria-label="Previous picture">←</button><b></b>'
    '<button type="button" data-step="1" aria-label="Next picture">→</button>'
    '<button type="button" data-close>Close</button></p></dialog>'
)


def _swatch(colour: tuple[int, int, int], meaning: str) -> str:
    return (f'<span><span class="swatch" style="background:rgb{colour}"></span>'
            f"{meaning}</span>")


_READING = (
    f"In the pictures of the change: {_swatch(UNCHANGED, 'unchanged')}, "
    f"{_swatch(BRIGHTER, 'brighter')}, {_swatch(DARKER, 'darker')}, "
    f"{_swatch(RECOLOURED, 'another colour')} at the same brightness. Select a picture to enlarge "
    "it; the arrow keys then step through the job's pictures in place."
)


def _header(out: Path, tasks: list[str], done: dict[str, list[dict]], failed: list[dict]) -> str:
    images = sum(len(records) for records in done.values())
    counts = [_count(images, "image"), _count(len(tasks), "task")]
    if failed:
        counts.append(f'<a href="#failed">{len(failed)} failed</a>')
    links = "".join(_overview(out, task, done[task]) for task in tasks) if len(tasks) > 1 else ""
    return ('<div class="top"><div class="eyebrow">fastdigin report</div>'
            "<h1>What the classifier goes by</h1>"
            f'<p class="lead">{" · ".join(counts)}</p>'
            + (f'<nav class="tasks" aria-label="Tasks">{links}</nav>' if links else "")
            + (f'<p class="read swatches">{_READING}</p>' if images else "") + "</div>")


def _overview(out: Path, task: str, done: list[dict]) -> str:
    """A link to a task's section with one of its jobs, a successful one if there is one."""
    title, question = _TITLES[task]
    pair = ""
    if done:
        example = next(filter(succeeded, done), done[0])
        before, after = (picture(out, example.get(key), f"{label}, an example of {title}")
                         for key, label in (("initial_image", "Before"), ("image", "After")))
        pair = f'<div class="pair">{before}<span aria-hidden="true">→</span>{after}</div>'
    return (f'<a href="#{task}">{pair}<div><strong>{title}</strong>'
            f"<small>{question}</small></div></a>")


def _section(out: Path, task: str, records: list[dict], done: list[dict], shown: int) -> str:
    title, question = _TITLES[task]
    if done:
        body = (_tiles(summarise(task, records))
                + (_cross_activations(out, done) if task == "neurons" else "")
                + "".join(card(out, record) for record in done[:shown])
                + _left_out(task, len(done), shown))
    else:
        body = '<p class="note">No image is finished yet.</p>'
    return (f'<section id="{task}"><h2>{title}</h2><p>{question} {_EXPLANATIONS[task]}</p>'
            f"{body}</section>")


def _tiles(figures: list[Figure]) -> str:
    columns = len(figures) if len(figures) <= 6 else -(-len(figures) // 2)
    return (f'<div class="tiles" style="--columns:{columns}">'
            f'{"".join(map(_tile, figures))}</div>')


def _tile(figure: Figure) -> str:
    track = ""
    if figure.change is not None:
        start, end = figure.change
        track = (f'<i class="range" style="left:{100 * min(start, end):.1f}%;'
                 f'width:{100 * abs(end - start):.1f}%"></i>'
                 f'<i class="from" style="left:{100 * start:.1f}%"></i>'
                 f'<i class="to" style="left:{100 * end:.1f}%"></i>')
    elif figure.interval is not None:
        low, rate, high = figure.interval
        track = (f'<i class="range" style="left:{100 * low:.1f}%;'
                 f'width:{100 * (high - low):.1f}%"></i>'
                 f'<i class="to" style="left:{100 * rate:.1f}%"></i>')
    if track:
        track = f'<div class="track" aria-hidden="true">{track}</div>'
    note = escape(figure.note).replace("n = ", "n&nbsp;=&nbsp;")
    return (f'<div class="tile t{figure.tone}"><span>{escape(figure.label)}</span>'
            f"<b>{escape(figure.value)}</b>{track}<small>{note}</small></div>")


def _cross_activations(out: Path, done: list[dict]) -> str:
    """Rows: images optimised for one neuron; columns: every neuron's activation on that image."""
    rows = [record for record in done if record.get("cross_activations")]
    columns = list(dict.fromkeys(key for r in rows for key in r["cross_activations"]))
    if len(columns) < 2:
        return ""
    head = "".join(f'<th scope="col">{escape(neuron)}</th>' for neuron in columns[:NEURONS_SHOWN])
    body = []
    for record in rows[:NEURONS_SHOWN]:
        own, values = str(record.get("neuron")), record["cross_activations"]
        word = f" {record['word']}" if record.get("word") else ""
        cells = "".join(_cross_cell(values.get(neuron), neuron == own)
                        for neuron in columns[:NEURONS_SHOWN])
        image = picture(out, record.get("image"), f"Image optimised for neuron {own}")
        body.append(f'<tr><th scope="row"><div>{image}<span>{escape(own)}'
                    f'<span class="note">{escape(word)}</span></span></div></th>{cells}</tr>')
    cut = max(len(rows), len(columns)) > NEURONS_SHOWN
    note = (f" The first {NEURONS_SHOWN} of {len(rows)} images and {len(columns)} neurons."
            if cut else "")
    return ('<div class="scroll"><table class="cross"><caption>Does an image excite its own neuron '
            "only? Rows: images, by the neuron they were optimised for. Columns: a neuron's "
            "activation on that image, as a multiple of its maximum over the data set. The row's "
            f"own neuron is framed.{note}</caption>"
            f'<thead><tr><th scope="col">image for neuron</th>{head}</tr></thead>'
            f'<tbody>{"".join(body)}</tbody></table></div>')


def _cross_cell(value: float | None, own: bool) -> str:
    share = min(1.0, max(0.0, value or 0.0))
    text = "–" if value is None else times(value)
    return f'<td{" class=own" if own else ""} style="--share:{share:.2f}">{text}</td>'


def _left_out(task: str, done: int, shown: int) -> str:
    if done <= shown:
        return ""
    return (f'<p class="note">The first {shown} of {done} images are shown. The pictures of the '
            f"other {done - shown} are in <code>images/{task}</code>, their figures in "
            f"<code>{RESULTS_FILE}</code>.</p>")


def _failures(failed: list[dict]) -> str:
    if not failed:
        return ""
    rows = "".join(
        f'<tr><td>{escape(r["task"])}</td><td><code>{escape(str(r["id"]))}</code></td>'
        f'<td>{escape(str(r.get("error") or "no reason recorded"))}</td></tr>'
        for r in failed[:FAILURES_SHOWN])
    more = "" if len(failed) <= FAILURES_SHOWN else (
        f'<p class="note">The first {FAILURES_SHOWN} of {len(failed)} are listed; all are in '
        f"<code>{RESULTS_FILE}</code>.</p>")
    return ('<section id="failed"><h2>Failed jobs</h2><p>The same command, run again, repeats '
            'these jobs and keeps the finished ones.</p><div class="scroll"><table><thead><tr>'
            '<th scope="col">task</th><th scope="col">id</th><th scope="col">error</th></tr>'
            f"</thead><tbody>{rows}</tbody></table></div>{more}</section>")


def _settings(runs: dict[str, dict]) -> str:
    """One table, a row a setting, a column a task."""
    flat = {task: flatten(settings) for task, settings in runs.items()}
    keys = list(dict.fromkeys(key for settings in flat.values() for key in settings))
    if not keys:
        return ""
    head = "".join(f'<th scope="col">{escape(task)}</th>' for task in flat)
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th>'
        + "".join(f"<td>{_setting(settings, key)}</td>" for settings in flat.values()) + "</tr>"
        for key in keys)
    return ('<section id="settings"><h2>Settings</h2><div class="scroll"><table><thead><tr>'
            f'<th scope="col">setting</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
            "</section>")


def _setting(settings: dict, key: str) -> str:
    if key not in settings:
        return '<span class="note">–</span>'
    value = settings[key]
    if isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value):
        return escape(", ".join(map(_plain, value)))
    return escape(_plain(value))


def _plain(value) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _footer() -> str:
    return ("<footer>The method is DiG-IN (Augustin et al., CVPR 2024). Confidences are the "
            "classifiers' softmax probabilities; intervals are Wilson's at 95%. Curves are "
            "evaluated on the plain image, without crops or noise.</footer>")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _share_out(total: int, wanted: dict[str, int]) -> dict[str, int]:
    """Splits ``total`` cards among the tasks: what a small task leaves goes to the larger ones."""
    shares, left = {}, total
    for place, (task, n) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        shares[task] = min(n, left // (len(wanted) - place))
        left -= shares[task]
    return shares
