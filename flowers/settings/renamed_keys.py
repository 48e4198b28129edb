"""Keys of settings that earlier versions named otherwise."""

from typing import Any

# Old key: new key. An old key may be valid in another program (`photos`), so a lookup first checks that it is unknown.
RENAMED_KEYS = {
    "data.on_bad_photo": "data.on_corrupt",
    "data.patience": "data.retry_timeout",
    "data.mixed_shards": "data.shuffle_shards",
    "data.flip": "data.hflip_prob",
    "data.memory_share": "data.decoded_cache_fraction",
    "data.endpoint": "data.s3_endpoint",
    "head.views": "head.cached_views",
    "features.max_gb": "features.cache_gb",
    "callbacks.within": "callbacks.mid_epoch",
    "callbacks.pictures": "callbacks.image_logger",
    "photos": "max_listed",
    "limit": "min_agreement",
    "int8_limit": "int8_min_agreement",
    "calibration": "calibration_images",
    "on_bad_photo": "on_corrupt",
    "checkpoint": "run",
}


def rename_old_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return a training configuration from an old checkpoint under today's key names; `config` stays unchanged."""
    upgraded = {group: dict(value) if isinstance(value, dict) else value for group, value in config.items()}
    for old, new in RENAMED_KEYS.items():
        group, dot, name = old.partition(".")
        settings = upgraded.get(group)
        if dot and isinstance(settings, dict) and name in settings:
            new_name = new.partition(".")[2]
            upgraded[group] = {new_name if key == name else key: value for key, value in settings.items()}
    return upgraded
