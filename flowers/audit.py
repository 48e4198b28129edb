"""Find wrong labels and bad photos: `python -m flowers.audit --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def audit(cfg: DictConfig) -> int:
    """Audit the photos of a folder or a run; return how many labels are likely wrong."""
    from flowers.evaluation.auditor import run_audit

    return run_audit(cfg)


main = program(audit, "audit")

if __name__ == "__main__":
    main()
