"""audit.html: one page, without network, on which a person judges the photos that an audit has found."""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flowers.data.corrections import CORRECTION_COLUMNS, Correction
from flowers.evaluation.audit import KINDS, Audit, Finding
from flowers.runtime.files import atomic_write_text


def write_review_page(audit: Audit, path: Path, earlier: Sequence[Correction] = (), max_photos: int = 4000) -> None:
    """Write the page. Its button saves corrections.csv; photos are never changed.

    Its only script is that of the template; names are data, which no browser runs.

    Args:
        audit: The findings.
        path: The page.
        earlier: Verdicts of an earlier review, which the page saves again.
        max_photos: How many photos are on it, those to look at first, beside their neighbors.
    """
    environment = Environment(
        loader=PackageLoader("flowers.evaluation", "templates"), autoescape=True, undefined=StrictUndefined
    )
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "review.js")[0]
    # The content security policy names the digest of the script, so that the browser runs no other.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content = page_content(audit, earlier, max_photos)
    # In a script element, only "<" can end the data. Lone surrogates, of names that are not UTF-8, become escapes.
    data = json.dumps(content, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    text = environment.get_template("review.html").render(
        title=f"Review of {len(audit.images):,} photos", data=Markup(data), script=Markup(script), digest=digest
    )
    atomic_write_text(path, text)


def page_content(audit: Audit, earlier: Sequence[Correction], max_photos: int) -> dict[str, Any]:
    """Return what the page shows, ready for JSON. A photo with several findings is one item."""
    ordered = [finding for finding in audit.findings if finding.is_likely]
    ordered += [finding for finding in audit.findings if not finding.is_likely]
    findings_of: dict[int, list[Finding]] = {}
    for finding in ordered:
        findings_of.setdefault(finding.photo, []).append(finding)
    shown = dict(list(findings_of.items())[:max_photos])
    places: dict[int, int] = {}  # of the photos on the page
    items = []
    for index, findings in shown.items():
        suggested = next((each.suggested for each in findings if each.suggested is not None), None)
        neighbors = dict.fromkeys(neighbor for each in findings for neighbor in each.neighbors)
        items.append(
            {
                "photo": places.setdefault(index, len(places)),
                "kinds": [each.kind for each in findings if each.is_likely],
                "is_copied": any(each.kind == "conflict" and each.score == 1 for each in findings),
                "suggested": suggested,
                "probability": round(float(audit.probabilities[index].max()), 2),
                "neighbors": [places.setdefault(neighbor, len(places)) for neighbor in neighbors],
            }
        )
    numbers = {name: number for number, name in enumerate(audit.classes)}
    photos = []
    for index in places:
        image = audit.images[index]
        thumbnail = base64.b64encode(audit.previews[index].jpeg).decode()
        photos.append([image.path, numbers[image.label], image.sha256, thumbnail])
    return {
        "id": hashlib.sha256("".join(image.sha256 for image in audit.images).encode()).hexdigest()[:16],
        "columns": CORRECTION_COLUMNS,
        "classes": list(audit.classes),
        "kinds": KINDS,
        "photos": photos,
        "items": items,
        "omitted": len(findings_of) - len(items),
        "overlap": audit.overlap,
        "earlier": [list(line) for line in earlier],
    }
