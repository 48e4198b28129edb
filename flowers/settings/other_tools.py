"""What a user means who types as other tools expect: their words, and the command that has the same effect here.

The words are those of timm, ultralytics, fastai, Keras, scikit-learn, Hugging Face and Lightning.
"""

import re
from collections.abc import Collection
from pathlib import Path

from flowers.settings.schema.values import TABLE_SUFFIXES

_YES, _NO = ("true", "1", "yes", "on", ""), ("false", "0", "no", "off", "none", "null")

# Overrides and the words of other tools for them. Of several overrides for a word, the first that a program knows
# counts. `{}` stands for the value; an override without it is for a word that is a switch.
_SETTINGS = {
    "optimizer.lr={}": "lr learning_rate lr0 base_lr initial_lr init_lr max_lr lr_max eta step_size",
    "finetune.backbone_lr={}": "backbone_lr encoder_lr lr_backbone finetune.lr",
    "optimizer.weight_decay={}": "wd weight_decay l2 decay",
    "optimizer={}": "opt optim optimiser",
    "scheduler={}": "sched lr_scheduler lr_schedule lr_scheduler_type schedule lr_policy",
    "scheduler=cosine": "cos_lr cosine cosine_annealing",
    "finetune.epochs={}": "epochs epoch n_epochs num_epochs max_epochs num_train_epochs nb_epoch nepochs ep e",
    "head.epochs={}": "freeze_epochs head_epochs frozen_epochs",
    "data.batch_size={}": (
        "batch_size bs batch b batchsize train_batch_size per_device_train_batch_size mini_batch_size"
    ),
    "data.image_size={}": "image_size img_size imgsz input_size size img_sz resolution crop_size image_sz res",
    "data.num_workers={}": "num_workers workers n_workers j nw dataloader_num_workers num_threads threads",
    "num_workers={}": "num_workers workers n_workers j nw threads",
    "data.val_fraction={}": "val val_split validation_split valid_pct val_size val_ratio valid_size val_pct",
    "data.test_fraction={}": "test_split test_size test_ratio test_pct",
    "data.folds={}": "k k_fold kfold k_folds n_folds n_splits cv num_folds folds",
    "data.balance=weights": "class_weight class_weights balanced balance_classes weighted_loss",
    "data.balance=sampler": "weighted_sampler oversample oversampling weighted_random_sampler",
    "data.hflip_prob={}": "hflip fliplr flip horizontal_flip random_horizontal_flip p_flip",
    "model={}": "model.name arch architecture model_name backbone network net encoder model_type timm_model",
    "model.weights={}": "weights pretrained_weights pretrained_path weights_path initial_checkpoint pretrained_model",
    "loss={}": "criterion loss_fn loss_function objective",
    "loss.label_smoothing={}": "smoothing label_smoothing label_smooth ls",
    "mixing=mixup": "mixup mixup_alpha",
    "mixing=cutmix": "cutmix cutmix_alpha",
    "callbacks=ema": "ema model_ema use_ema",
    "callbacks=early_stopping callbacks.early_stopping.patience={}": "patience es_patience",
    "callbacks=early_stopping": "early_stopping early_stop",
    "experiment=head_only": "freeze freeze_backbone frozen feature_extract feature_extraction linear_probe freeze_base",
    "trainer.devices={}": "gpus n_gpus num_gpus ngpus n_gpu num_devices nproc_per_node devices world_size",
    "trainer.accelerator={}": "device accelerator",
    "accelerator={}": "device accelerator",
    "trainer=gpu": "gpu cuda use_gpu use_cuda",
    "trainer=cpu": "cpu no_cuda no_gpu use_cpu",
    "accelerator=gpu": "gpu cuda use_gpu use_cuda",
    "accelerator=cpu": "cpu no_cuda no_gpu use_cpu",
    "trainer.precision={}": "precision dtype mixed_precision",
    "precision={}": "precision dtype mixed_precision",
    "trainer.precision=16-mixed": "amp fp16 half use_amp autocast native_amp",
    "trainer.precision=bf16-mixed": "bf16",
    "precision=16-mixed": "amp fp16 half use_amp autocast",
    "precision=bf16-mixed": "bf16",
    "trainer.accumulate_grad_batches={}": (
        "accumulate grad_accum gradient_accumulation_steps accum_iter accum grad_accum_steps"
    ),
    "trainer.gradient_clip_val={}": "clip clip_grad max_grad_norm grad_clip gradient_clip clipnorm clip_norm grad_norm",
    "trainer.max_time={}": "time timeout max_time budget time_limit minutes hours",
    "finetune.compile=true": "compile torch_compile",
    "debug=steps": "fast_dev_run dry_run smoke_test overfit_batches sanity_check",
    "logger={}": "tracker report_to log_with loggers",
    "logger=wandb": "wandb use_wandb wandb_project",
    "logger=mlflow": "mlflow use_mlflow",
    "logger=tensorboard": "tensorboard tb use_tensorboard tensorboard_dir",
    "seed={}": "random_state random_seed manual_seed rng rng_seed seed seeds",
    "data.split_seed={}": "split_seed",
    "group={}": "project project_name",
    "resume={}": "resume_from_checkpoint resume_from ckpt ckpt_path checkpoint checkpoint_path restore continue_from",
    "run={}": (
        "ckpt ckpt_path checkpoint checkpoint_path weights model model_path model_dir run_dir run_folder "
        "experiment exp load_from pretrained restore m w weights_path runs"
    ),
    "multirun={}": "sweep sweep_dir multirun_dir",
    "finetune.depth={}": "unfreeze unfreeze_layers trainable_layers n_unfreeze",
    "runs=[{}]": "run folders models checkpoints",
    "data=folder data.root={}": (
        "data_dir data_path data_root dataset dataset_dir dataset_path img_dir image_dir images images_dir "
        "imgs path root dir directory folder input input_dir train_dir train_data_dir train_path train "
        "train_data photos photo_dir source src data i"
    ),
    "data=table data.table={}": (
        "csv csv_file csv_path train_csv label_file labels_file labels_csv label_csv annotations annotation_file "
        "annotations_file table metadata metadata_file df dataframe train_df jsonl"
    ),
    "photos={}": (
        "data_dir data_path data_root dataset dataset_dir dataset_path img_dir image_dir images images_dir "
        "imgs img image path root dir directory folder input input_dir test_dir val_dir photo photo_dir "
        "source src data i file files filename test_data input_path image_path img_path"
    ),
    "pool={}": "unlabeled unlabelled photos images data_dir data path dir folder input source data_root",
    "hydra.run.dir={}": (
        "output out output_dir out_dir outdir save_dir save_path log_dir logdir exp_dir work_dir workdir "
        "results_dir results o experiment_dir default_root_dir checkpoint_dir run_name name exp_name save"
    ),
    "output={}": (
        "out output_dir out_dir outdir save_dir save_path results_dir results o output_file output_path csv "
        "save save_csv out_file destination dest report_dir"
    ),
    "confidence={}": (
        "conf threshold thresh conf_threshold confidence_threshold min_confidence score_threshold conf_thres"
    ),
    "tta=flip": "augment test_time_augmentation use_tta",
    "formats=[{}]": "format export_format fmt f to",
    "count={}": "n num number n_images budget num_images",
    "port={}": "server_port p",
    "host={}": "server_name ip address bind",
    "sweep.trials={}": "n_trials trials num_trials max_trials",
}

# Words of other tools for which there is no setting, and why.
_NEEDLESS = {
    "leave it out: the classes are the sub-folders of data.root": (
        "num_classes n_classes nc num_labels classes class_names labels"
    ),
    "leave it out: training images are shuffled in every epoch": "shuffle shuffle_train",
    "put train, val and test side by side in one folder, and give data=folder data.root=FOLDER": (
        "val_dir valid_dir validation_dir test_dir val_path val_data test_data valid"
    ),
    "leave it out: accuracy and its interval are always measured": "metric metrics eval do_eval evaluate",
    "the length is in epochs: finetune.epochs=N, or in minutes: trainer.max_time=30m": (
        "steps max_steps num_steps iterations max_iter iters train_steps"
    ),
    "data/augmentation=light and data/augmentation=strong are others; data.hflip_prob=0 switches a part off": (
        "augment augmentation aug augmentations transform transforms auto_augment data_augmentation"
    ),
    "an argument of the network is model.options.NAME=VALUE": "dropout drop_rate drop_path drop_path_rate",
    "the program is the first word, such as flowers train": "mode task action command",
    "leave it out: what helps is printed": "verbose v quiet q verbosity",
    "give sweep.trials=N to flowers sweep": "n_trials trials num_trials max_trials",
    "leave it out: output=FILE.csv has the probabilities of all classes": "topk top_k top k num_predictions",
    "there is no public link: host=0.0.0.0 and token=SECRET let other machines in": "share public",
    "flowers new-experiment NAME writes a file of settings, and experiment=NAME uses it": (
        "config cfg config_file cfg_file yaml hyp settings params"
    ),
}

_OPTIONS = {
    "trainer": {"cuda": "gpu", "gpus": "gpu", "mps": "auto", "multi_gpu": "ddp", "ddp2": "ddp", "fsdp2": "fsdp"},
    "logger": {"tb": "tensorboard", "wb": "wandb", "weights_and_biases": "wandb", "file": "csv", "false": "none"},
    "loss": {"ce": "cross_entropy", "crossentropy": "cross_entropy", "categorical_crossentropy": "cross_entropy"},
    "data": {"imagefolder": "folder", "image_folder": "folder", "custom": "folder", "webdataset": "shards"},
    "scheduler": {"none": "constant", "fixed": "constant", "steplr": "step", "multistep": "step", "cos": "cosine"},
    "model": {
        "vit": "vit_b_16",
        "resnet": "resnet50",
        "efficientnet": "efficientnet_v2_s",
        "convnext": "convnext_tiny",
    },
    "experiment": {"quick": "quickstart", "fast": "best_small", "small": "best_small", "default": "report"},
}

_PROGRAMS = {
    "train": "fit finetune fine-tune fine_tune tune_model learn training start run main trainer do_train",
    "evaluate": "test val validate validation eval score metrics do_eval check_accuracy accuracy report",
    "predict": "infer inference classify label prediction pred detect predictions batch_predict answer",
    "app": "serve server web webapp gui ui demo api gradio streamlit launch",
    "sweep": "tune hpo optuna hyperopt search tuning hyperparameters optimize grid_search gridsearch",
    "export": "convert onnx quantize torchscript jit freeze compile to_onnx",
    "audit": "clean check dedup duplicates inspect verify cleanlab label_errors check_data",
    "explain": "gradcam grad-cam heatmap cam saliency interpret explanation visualize attention",
    "soup": "ensemble average swa merge model_soup",
    "probe": "features linear_probe linear-probe embed embeddings knn compare_models",
    "compare": "diff leaderboard mcnemar versus vs",
    "pack": "shard webdataset tar wds",
    "suggest": "active active_learning active-learning query select",
    "learning_curve": "curve learning-curve data_curve how_many",
    "new-experiment": "init new create scaffold config_template",
    "train find_lr=true": "lr_find lr-find find_lr find-lr lrfinder lr_finder find",
    "train resume=FOLDER": "resume continue restart",
    "train --help": "config settings options configure params",
    "--help": "list commands usage programs ls",
    "--version": "version -V",
    "!tensorboard --logdir .": "tensorboard tb board logs",
}

# Values of settings, by the last word of their keys.
_VALUES = {
    "precision": {
        **dict.fromkeys(("fp16", "16", "half", "float16", "amp", "true"), "16-mixed"),
        **dict.fromkeys(("bf16", "bfloat16"), "bf16-mixed"),
        **dict.fromkeys(("fp32", "32", "float32", "full", "false"), "32-true"),
    },
    "devices": {"all": "auto", "-1": "auto"},
}

_TRAINING_GROUPS = {"experiment", "debug", "mixing", "callbacks", "logger"}  # groups that no schema has


def _words(table: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for meaning, words in table.items():
        for word in words.split():
            found.setdefault(word.replace("_", ""), []).append(meaning)
    return found


_SHARES_OF_TRAIN = ("split", "trainsplit", "trainsize", "trainratio", "trainfraction", "trainpct")
_SETTINGS_OF, _NEEDLESS_OF, _PROGRAMS_OF = _words(_SETTINGS), _words(_NEEDLESS), _words(_PROGRAMS)


def our_overrides(key: str, value: str | None, valid: Collection[str]) -> list[str]:
    """Return the overrides that mean what `key=value` means in other tools; none if that is not known.

    Args:
        key: Such as "lr", "learning-rate" or "training.lr".
        value: As typed; None if only the names of the settings are asked for.
        valid: The keys and groups of the program.
    """
    word = next((name for name in (key.lower(), _plain(key)) if name in _SETTINGS_OF), _plain(key))
    if value is not None and word in _SHARES_OF_TRAIN and (share := _number(value)) and 0 < share < 1:
        word, value = "valsplit", f"{1 - share:.6g}"
    if value is not None and word == "pretrained" and value.lower() in _YES + _NO:
        return ["model.weights=" + ("DEFAULT" if value.lower() in _YES else "null")] * ("model.weights" in valid)
    meanings = _SETTINGS_OF.get(word, [])
    if value is not None and word in ("device", "accelerator", "gpu", "cuda"):
        meanings = _device(value)
    elif value is not None and value.lower() in _NO:
        is_freezing = word in _words_of_freezing()
        meanings = ["head.epochs=0"] if is_freezing else [each for each in meanings if "{}" in each]
    for meaning in meanings:
        parts = meaning.split()
        if all(_is_valid(part.partition("=")[0], valid) for part in parts):
            filled = (
                part.removesuffix("={}")
                if value is None
                else part.replace("{}", value.strip("[]") if "[{}]" in part else value)
                for part in parts
            )
            return [our_value(each) for each in filled]
    return []


def _is_table(path: str) -> bool:
    return Path(path).suffix.lower() in TABLE_SUFFIXES


def our_value(override: str) -> str:
    """Return an override with the value that other tools write as the given one; as it is if that is not known."""
    key, equals, value = override.partition("=")
    return f"{key}{equals}{_VALUES.get(key.rpartition('.')[2], {}).get(value.lower(), value)}"


def why_needless(key: str) -> str | None:
    """Return why a setting of other tools is not needed; None if it is not known."""
    return next(iter(_NEEDLESS_OF.get(_plain(key), [])), None)


def our_option(group: str, option: str) -> list[str]:
    """Return overrides for an option that a group lacks: one that other tools call so, or a path; none if unknown."""
    if meant := _OPTIONS.get(group, {}).get(option.lower().replace("-", "_")):
        return [f"{group}={meant}"]
    if group == "data" and ("/" in option or Path(option).expanduser().exists()):
        return ["data=table", f"data.table={option}"] if _is_table(option) else ["data=folder", f"data.root={option}"]
    return [f"model.weights={option}"] if group == "model" and "/" in option else []


def our_program(word: str) -> str | None:
    """Return the program, with its first settings, that other tools call `word`; None if that is not known."""
    return next(iter(_PROGRAMS_OF.get(word.lower().removesuffix(".py").replace("_", ""), [])), None)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def is_word(key: str) -> bool:
    """Return whether other tools have a setting of this name."""
    return _plain(key) in _SETTINGS_OF or _plain(key) in _NEEDLESS_OF


def _plain(key: str) -> str:
    return re.sub("[-_]", "", key.lstrip("-+").lower().replace("/", ".").rpartition(".")[2])


def _words_of_freezing() -> list[str]:
    return _SETTINGS["experiment=head_only"].replace("_", "").split()


def _device(value: str) -> list[str]:
    kind, _, number = value.lower().partition(":")
    if kind.replace(",", "").isdigit() and kind not in ("0", "1"):
        number = kind
    if kind in ("cpu", "-1", *_NO) and kind != "0":
        kind = "cpu"
    elif kind == "mps":
        return ["trainer.accelerator=mps", "accelerator=mps"]
    else:
        kind = "gpu"
    devices = f" trainer.devices=[{number}]" if number else ""
    return [f"trainer.accelerator={kind}{devices}", f"accelerator={kind}"]


def _is_valid(name: str, valid: Collection[str]) -> bool:
    if name in valid:
        return True
    if name.partition(".")[0] in (*_TRAINING_GROUPS, "trainer"):
        return "head.epochs" in valid
    aliases = {"hydra.run.dir": "run_dir", "data.table": "data.root"}  # data=table, before it, makes the latter one
    return aliases.get(name) in valid
