"""Offline pages: review the photos of an audit, or label photos."""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flowers.data.corrections import CORRECTION_COLUMNS, Correction
from flowers.runtime.files import atomic_write_text
from flowers.studies.audit import KINDS, Audit, Finding, Preview

LABEL_COLUMNS = ("path", "class", "sha256")  # of labels.csv


def write_page(path: Path, content: dict[str, Any]) -> None:
    """Write a page. Its button saves a CSV file. It changes no photo.

    Its only script is that of the template; names are data, which no browser runs.

    Args:
        path: The page.
        content: See `review_content` and `labeling_content`.
    """
    environment = Environment(
        loader=PackageLoader("flowers.studies", "templates"), autoescape=True, undefined=StrictUndefined
    )
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "review.js")[0]
    # The content security policy names the digest of the script, so that the browser runs no other.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # In a script element, only "<" can end the data. Lone surrogates, of names that are not UTF-8, become escapes.
    data = json.dumps(content, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    text = environment.get_template("review.html").render(
        title=content["title"], task=content["task"], data=Markup(data), script=Markup(script), digest=digest
    )
    atomic_write_text(path, text)


def review_content(audit: Audit, earlier: Sequence[Correction], max_photos: int) -> dict[str, Any]:
    """Return the content of the page that reviews an audit and saves corrections.csv.

    A photo with several findings is one item.

    Args:
        audit: The findings.
        earlier: Verdicts of an earlier review, which the page saves again.
        max_photos: How many photos are on it, those to look at first, beside their neighbors.
    """
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
        photos.append([image.path, numbers[image.label], image.sha256, _base64(audit.previews[index])])
    return {
        "task": "review",
        "title": f"Review of {len(audit.images):,} photos",
        "file": "corrections.csv",
        "id": _page_id([image.sha256 for image in audit.images]),
        "columns": CORRECTION_COLUMNS,
        "classes": list(audit.classes),
        "kinds": KINDS,
        "photos": photos,
        "items": items,
        "omitted": len(findings_of) - len(items),
        "overlap": audit.overlap,
        "earlier": [list(line) for line in earlier],
    }


def labeling_content(
    photos: Sequence[tuple[str, str]],
    previews: Sequence[Preview],
    guesses: Sequence[tuple[int, float]],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Return the content of the page that labels photos and saves labels.csv.

    Args:
        photos: The path and the SHA-256 of each photo, the one to label first in front.
        previews: What the photos look like.
        guesses: The most likely class of each photo and its probability.
        classes: The names of the classes.
    """
    return {
        "task": "label",
        "title": f"{len(photos):,} photos to label",
        "file": "labels.csv",
        "id": _page_id([sha256 for _, sha256 in photos]),
        "columns": LABEL_COLUMNS,
        "classes": list(classes),
        "kinds": {},
        "photos": [
            [path, None, sha256, _base64(preview)] for (path, sha256), preview in zip(photos, previews, strict=True)
        ],
        "items": [
            {
                "photo": index,
                "kinds": [],
                "is_copied": False,
                "suggested": guess,
                "probability": round(probability, 2),
                "neighbors": [],
            }
            for index, (guess, probability) in enumerate(guesses)
        ],
        "omitted": 0,
        "overlap": [],
        "earlier": [],
    }


def _base64(preview: Preview) -> str:
    return base64.b64encode(preview.jpeg).decode()


def _page_id(digests: Sequence[str]) -> str:
    """Return under which name a browser keeps the verdicts on these photos."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
