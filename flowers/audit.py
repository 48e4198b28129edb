"""Find wrong labels and bad photos: `python -m flowers.audit --help`."""

from flowers.cli import program
from flowers.settings.schema.programs import AuditSettings


def audit(settings: AuditSettings) -> int:
    """Audit the photos of a folder or a run; return how many labels are likely wrong."""
    from flowers.studies.auditor import run_audit

    return run_audit(settings)


main = program(audit, AuditSettings)

if __name__ == "__main__":
    main()
