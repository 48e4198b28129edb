"""The program `flowers.audit`: audit the photos of a folder, and write a table and a page for the review."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Column, Table

from flowers.data.datamodule import ImageDataModule
from flowers.data.sources.build import photos_setting
from flowers.evaluation.tables import plain
from flowers.features.extractor import Extraction, extract_features
from flowers.features.pretrained import pretrained_network
from flowers.models.backbones import check_backbone
from flowers.models.input_settings import resolve_input_settings
from flowers.models.network import Network
from flowers.runs.run import Run
from flowers.runs.run_folder import CORRECTIONS_FILE
from flowers.runtime.extras import require_extra
from flowers.runtime.hardware import check_devices
from flowers.runtime.logging import configure_logging
from flowers.runtime.text import one_line, write_csv
from flowers.settings.schema.programs import AuditSettings
from flowers.settings.schema.training import Resizing, Shards, Trainer
from flowers.studies.audit import KINDS, Audit, audit_images, preview_images
from flowers.studies.review_page import review_content, write_page

AUDIT_COLUMNS = ("path", "kind", "label", "suggested", "score", "likely", "neighbors", "sha256")
_LISTED_PAIRS = 3


def run_audit(settings: AuditSettings) -> int:
    """Audit the photos in `settings.photos`, or those of the run `settings.run`, and write audit.csv and audit.html.

    Photos are only read.

    Returns:
        The number of labels that are likely wrong.

    Raises:
        ValueError: A setting is wrong, or the photos cannot be used.
    """
    configure_logging()  # Lightning is imported by now
    require_extra("an audit", "audit", "cleanlab")
    check_devices(settings.accelerator or "auto", key="accelerator")
    data, model, trained = _open_run(settings) if settings.run else (*_open_folder(settings), None)
    how = Extraction.requested(settings, settings.cache_gb, trained)
    images = data.splitter.grouped(data.images, data.source)
    dataset = data.full_dataset(model.classes)
    features = extract_features(model, data, dataset, "all photos", how)
    judged = {line.sha256 for line in data.corrections.lines}
    audit = audit_images(
        images,
        model.classes,
        features,
        preview_images(data.source, [image.path for image in images]),
        folds=settings.folds,
        seed=settings.seed,
        neighbors=settings.neighbors,
        image_size=data.preprocessing.image_size,
        is_judged=[image.sha256 in judged for image in images],
    )
    console = Console(highlight=False, markup=False, emoji=False)
    _print(audit, console)
    output = Path(settings.output)
    replaced = " (in place of those of an earlier audit)" * (output / "audit.csv").exists()
    save_audit(audit, output / "audit.csv")
    write_page(output / "audit.html", review_content(audit, data.corrections.lines, settings.max_photos))
    files = f"{one_line(output / 'audit.csv')} and audit.html, a page to review them"
    console.print(f"details: {files}{replaced}", soft_wrap=True)
    return len(audit.likely("label"))


def _open_folder(settings: AuditSettings) -> tuple[ImageDataModule, Network]:
    """Return the photos of a folder and a frozen backbone."""
    if not settings.photos:
        raise ValueError("nothing to audit: expected photos=FOLDER or run=FOLDER")
    check_backbone(settings.model.architecture, settings.model.weights, settings.model.options)
    model, pixels = resolve_input_settings(
        settings.model, Resizing(image_size=settings.image_size, resize=None, interpolation=None)
    )
    data = ImageDataModule.from_settings(
        **photos_setting(settings.photos),
        columns=settings.columns.to_dict(),
        corrections=settings.corrections,
        on_corrupt=settings.on_corrupt or "skip",
        layout=settings.layout or "auto",
        merge_similar_names=bool(settings.merge_similar_names),
        **pixels.given(),
        bit_depth="auto",
        max_megapixels=settings.max_megapixels,
    )
    return data, pretrained_network(model, pixels, sorted({image.label for image in data.images}), settings.seed)


def _open_run(settings: AuditSettings) -> tuple[ImageDataModule, Network, Trainer]:
    """Return the photos of a run, with the corrections that it was trained with, its pretrained backbone and device."""
    run = Run.open(settings.run, settings.photos).replace(root_key="photos", max_megapixels=settings.max_megapixels)
    if isinstance(run.settings.data, Shards) and run.settings.data.packed and not settings.photos:
        raise ValueError(f"run={settings.run}: its photos are in shards: name their folder with photos=FOLDER")
    own = run.folder / CORRECTIONS_FILE
    corrections = settings.corrections or (own if own.is_file() else None)
    asked = {name: getattr(settings, name) for name in ("on_corrupt", "layout", "merge_similar_names")}
    data = run.data(whole=True, packed=False, corrections=corrections, **asked)
    # Random features tell nothing of the labels: without weights, only the trained backbone can.
    return data, run.network(trained=run.settings.model.weights is None), run.settings.trainer


def save_audit(audit: Audit, path: Path) -> None:
    """Write audit.csv: the findings, strongest first within each kind."""
    rows: list[tuple[object, ...]] = [AUDIT_COLUMNS]
    for finding in audit.findings:
        image = audit.images[finding.photo]
        suggested = audit.classes[finding.suggested] if finding.suggested is not None else ""
        neighbors = "; ".join(audit.images[neighbor].path for neighbor in finding.neighbors)
        likely = "true" if finding.is_likely else "false"
        rows.append(
            (image.path, finding.kind, image.label, suggested, f"{finding.score:.4f}", likely, neighbors, image.sha256)
        )
    write_csv(path, rows)


def _print(audit: Audit, console: Console) -> None:
    table = Table("kind", Column("photos", justify="right"), "what it means", "first", box=box.SIMPLE)
    for kind, text in KINDS.items():
        likely = audit.likely(kind)
        first = audit.images[likely[0].photo].path if likely else ""
        table.add_row(kind, f"{len(likely):,}", text, plain(first))
    console.print(table)
    n, wrong = len(audit.images), len(audit.likely("label"))
    console.print(f"{n:,} photos of {len(audit.classes)} classes, {wrong / n:.1%} with a label that is likely wrong")
    for first, second, share in audit.overlap[:_LISTED_PAIRS]:
        console.print(
            f"{share:.1%} of {one_line(first)} and {one_line(second)} are taken for the other class", soft_wrap=True
        )
