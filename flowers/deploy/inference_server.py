"""Answer the photos in requests with a classifier."""

import asyncio
import io
import math
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from fastapi import HTTPException, Request, Response
from starlette.requests import ClientDisconnect
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from flowers import __version__
from flowers.data.images import read_error_reason, read_image
from flowers.deploy.app_answers import JSON, Answers, Digests, FileAnswer, Limits, ModelFacts, Preprocessing
from flowers.deploy.app_settings import ServerSettings
from flowers.deploy.batches import Batches, BatchThread
from flowers.deploy.classifier import Classifier, Prediction
from flowers.deploy.explain import ImageCrops, crop_image, explain_images
from flowers.deploy.gradcam import grad_cam
from flowers.deploy.request_body import RequestBodies, Upload, busy
from flowers.models.backbones import state_dict_sha256
from flowers.runtime.hardware import available_cores

_JPEG_QUALITY = 90
_MAX_READERS = 8  # threads: each may hold an image of the largest size

T = TypeVar("T")


class InferenceServer:
    """Answers requests with a classifier. Nothing of a request is written to a disk, or is kept after its answer.

    Args:
        classifier: The trained classifier.
        settings: Who may ask, and how much.
    """

    def __init__(self, classifier: Classifier, settings: ServerSettings) -> None:
        self.classifier, self.settings = classifier, settings
        self.bit_depth = classifier.model.preprocessing.bit_depth
        self.facts = _describe(classifier, settings)
        self.bodies = RequestBodies(settings.max_request_bytes, settings.max_files)
        self.in_flight = 0
        # Threads suffice: Pillow and torch release the interpreter lock while they decode and resize.
        self._readers = ThreadPoolExecutor(min(_MAX_READERS, available_cores()))
        size = classifier.backbone.batch_size
        thread = BatchThread()
        self._predict = Batches[Tensor, Prediction](self._classify, size, thread)
        self._explain = Batches[ImageCrops, bytes](self._heat_maps, size, thread)
        self._room = asyncio.Semaphore(2 * size)  # decoded images: a batch that is computed, and the next one
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End the requests that wait."""
        self._stopping.set()

    async def predict(self, request: Request) -> Response:
        """Classify the files of a request."""

        async def answer(uploads: list[Upload]) -> Response:
            return JSON(Answers(predictions=await asyncio.gather(*map(self._answer, uploads))))

        return await self._with_uploads(request, answer)

    async def explain(self, request: Request) -> Response:
        """Draw an image beside its heat map."""

        async def answer(uploads: list[Upload]) -> Response:
            if len(uploads) != 1:
                raise HTTPException(400, f"expected one image, found {len(uploads)}")
            async with self._room:
                crops = await self._in_reader(self._read_crops, uploads[0])
                if isinstance(crops, str):
                    raise HTTPException(422, crops)
                return Response(await self._explain(crops), media_type="image/jpeg")

        if not self.facts.explains:
            raise HTTPException(404, "this model has no heat map")
        return await self._with_uploads(request, answer)

    async def _with_uploads(self, request: Request, answer: Callable[[list[Upload]], Awaitable[Response]]) -> Response:
        try:
            async with self.bodies.uploads(request) as uploads:
                if self.in_flight >= self.settings.max_in_flight:
                    raise busy()
                self.in_flight += 1
                try:
                    return await self._unless_gone(request, answer(uploads))
                finally:
                    self.in_flight -= 1
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it

    async def _unless_gone(self, request: Request, answer: Awaitable[Response]) -> Response:
        """Wait for an answer, but not after the client has gone or the server stops: then what waits is not computed.

        Raises:
            ClientDisconnect: The client has gone.
            HTTPException: The server stops.
        """
        tasks = [asyncio.ensure_future(each) for each in (answer, request.receive(), self._stopping.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                return tasks[0].result()  # type: ignore[return-value]
            raise ClientDisconnect if tasks[1].done() else HTTPException(503, "the server stops")
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, upload: Upload) -> FileAnswer:
        async with self._room:
            pixels = await self._in_reader(self._read_pixels, upload)
            if isinstance(pixels, str):
                return FileAnswer(name=upload.name, error=pixels)
            return _file_answer(upload.name, await self._predict(pixels), self.settings.confidence)

    async def _in_reader(self, read: Callable[[Upload], T], upload: Upload) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, read, upload)

    def _read_pixels(self, upload: Upload) -> Tensor | str:
        """Return the input of the network, or why there is none."""
        return self._read(upload, lambda image: torch.as_tensor(self.classifier.eval_transform(pil_to_tensor(image))))

    def _read_crops(self, upload: Upload) -> ImageCrops | str:
        return self._read(upload, lambda image: crop_image(self.classifier, image))

    def _read(self, upload: Upload, prepare: Callable[[Any], T]) -> T | str:
        if not upload.content:
            return "empty"
        try:
            return prepare(read_image(io.BytesIO(upload.content), self.settings.max_pixels, bit_depth=self.bit_depth))
        except Exception as error:  # Pillow raises anything from EOFError to struct.error for a damaged file
            return read_error_reason(error)

    def _classify(self, batch: Sequence[Tensor]) -> list[Prediction]:
        # The backbone pads a short batch anyway. So padded, an answer does not depend on who else asks, to the bit.
        padding = [batch[-1]] * (self.classifier.backbone.batch_size - len(batch))
        return self.classifier.classify(torch.stack([*batch, *padding]))[: len(batch)]

    def _heat_maps(self, batch: Sequence[ImageCrops]) -> list[bytes]:
        """Return the pictures of a batch as JPEG files."""
        files = []
        for explanation in explain_images(self.classifier, batch):
            file = io.BytesIO()
            explanation.picture.save(file, "JPEG", quality=_JPEG_QUALITY)
            files.append(file.getvalue())
        return files


def _describe(classifier: Classifier, settings: ServerSettings) -> ModelFacts:
    preprocessing = classifier.model.preprocessing
    size = preprocessing.image_size
    try:
        grad_cam(classifier, torch.zeros(1, 3, size, size, dtype=torch.uint8))
        explains = True
    except ValueError:  # this architecture has no feature map
        explains = False
    return ModelFacts(
        name=settings.name,
        version=__version__,
        classes=classifier.classes,
        preprocessing=Preprocessing(**preprocessing.to_dict()),
        tta=classifier.tta,
        digests=Digests(weights=state_dict_sha256(classifier.model), split=classifier.model.hparams["split_digest"]),
        rejects=classifier.rejection is not None,
        confidence=settings.confidence,
        explains=explains,
        limits=Limits(files=settings.max_files, request_bytes=settings.max_request_bytes, pixels=settings.max_pixels),
    )


def _file_answer(name: str | None, prediction: Prediction, confidence: float | None) -> FileAnswer:
    label, probability, probabilities, strangeness, rejected = prediction
    return FileAnswer(
        name=name,
        label=label,
        probability=probability,
        probabilities=probabilities,
        strangeness=strangeness if strangeness is not None and math.isfinite(strangeness) else None,
        rejected=rejected,
        abstains=confidence is not None and probability < confidence,
    )
