"""Made-up photos, and runs on a painted garden: no network, no file but what a test makes."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is loaded: the test processes share the cores, and a test's networks are too small for two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import numpy as np
import pytest
from PIL import Image, ImageFilter

from flowers.data.synthetic import generate_dataset
from flowers.evaluation.evaluator import run_evaluation
from flowers.runtime.logging import HARMLESS_WARNINGS
from flowers.settings.config_reference import config_folders
from flowers.training.experiment import run_training
from tests.helpers import SMALL, TINY, configuration, packed

# A slow machine is no failure, and a test fails for the same examples everywhere.
hypothesis.settings.register_profile("flowers", deadline=None, derandomize=True)
hypothesis.settings.load_profile("flowers")


def pytest_configure(config: pytest.Config) -> None:
    # Warnings are errors here, but for those that the programs themselves silence, each with its reason.
    for message in HARMLESS_WARNINGS:
        config.addinivalue_line("filterwarnings", f"ignore:{message}")


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWERS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Compositions(dict[tuple[Path, ...], Any]):
    """What is composed from options, by the folders that they are searched in, not by the loader of one command."""

    def setdefault(self, loader: object, default: Any = None) -> Any:
        return super().setdefault(tuple(config_folders()), default)


@pytest.fixture(autouse=True, scope="session")
def compositions():
    """Options are composed once for all tests of a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowers.settings.overrides._composed", Compositions())
        patch.setattr("flowers.settings.overrides._COMPOSED_JOBS", 200)
        yield


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A garden of 60 photos of 48 pixels."""
    root = tmp_path_factory.mktemp("painted") / "garden"
    generate_dataset(root, number=60, size=48)
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, painted: Path) -> Path:
    """The folder of a run through both stages, and on to a test split."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    settings = [f"data.root={painted}", f"run_dir={folder}", "data.test_fraction=0.1", "logger=[tensorboard,csv]"]
    run_training(configuration(*SMALL, *settings))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, painted: Path) -> Path:
    """The folder of a run as that, of the network of TINY: what a run with one thing changed is compared with."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run_training(configuration(*TINY, f"data.root={painted}", f"run_dir={folder}", "data.test_fraction=0.1"))
    return folder


@pytest.fixture(scope="session")
def rejecting(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """The folder of a copy of that run, which rejects images of none of its classes."""
    folder = tmp_path_factory.mktemp("runs") / "rejecting"
    shutil.copytree(trained, folder)
    run_evaluation(configuration(f"run={folder}", "reject=0.2", name="evaluate"))
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, painted: Path) -> Path:
    """The painted images in shards, with a test split."""
    output = tmp_path_factory.mktemp("shards") / "packed"
    packed(painted, output, "data.test_fraction=0.1")
    return output


@pytest.fixture(scope="session")
def s3(shards: Path) -> Iterator[str]:
    """The endpoint of an S3-compatible server on this machine, with the shards at s3://garden/packed."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        server.start()
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="garden")
        for path in shards.iterdir():
            client.upload_file(str(path), "garden", f"packed/{path.name}")
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture
def photo() -> Callable[..., Image.Image]:
    """Makes a photo that no other resembles: smooth noise, its own for each seed."""

    def make(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))

    return make


@pytest.fixture
def folder(tmp_path: Path, photo: Callable[..., Image.Image]) -> Path:
    """A folder of two classes with ten photos each."""
    for number in range(20):
        path = tmp_path / "photos" / ("lily" if number % 2 else "orchid") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(path)
    return tmp_path / "photos"
