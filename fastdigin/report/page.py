"""Pages that need nothing beside them: pictures, styles and the one script are inside.

The page's own content security policy forbids every request and any script but ours. Templates
escape all text from users and models.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from fastdigin.results.card import source, templates
from fastdigin.results.folder import writing
from fastdigin.storage import write_atomically


def write_page(target: Path, template: str, **context: Any) -> Path:
    """Writes a template of this folder; returns the path. CannotWrite where the disk is full."""
    environment = templates("fastdigin.report", "fastdigin.results")
    script = source(environment, "page.js")
    page = environment.get_template(template).render(
        style=source(environment, "card.css") + source(environment, "page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **context,
    )
    with writing(target.parent):
        write_atomically(target, page.encode("utf-8", "replace"))
    return target
