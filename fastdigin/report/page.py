"""Pages that need nothing beside them: pictures, styles and the one script are inside.

The page's own content security policy forbids every request and any script but ours. Templates
escape all text from users and models.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from fastdigin.errors import UserError
from fastdigin.results.card import source, templates
from fastdigin.storage import write_atomically


def write_page(target: Path, template: str, **context: Any) -> Path:
    """Writes a template of this folder; returns the path. UserError where it cannot be written."""
    environment = templates("fastdigin.report", "fastdigin.results")
    script = source(environment, "page.js")
    page = environment.get_template(template).render(
        style=source(environment, "card.css") + source(environment, "page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **context,
    )
    try:
        write_atomically(target, page.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(
            f"'{target}' cannot be written ({error.strerror}); make the folder writable."
        ) from None
    return target
