"""Fine-tune an ImageNet classifier on a folder of photos, and say honestly how good the result is."""
