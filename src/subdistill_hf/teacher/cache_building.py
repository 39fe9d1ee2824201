"""Run the teacher once over every augmented view, or find what an earlier run has kept of it."""

from __future__ import annotations

import hashlib
import math
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from subdistill_hf.acceleration.batch_size import within_memory
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.activations import Features
from subdistill_hf.core.distributed import largest_of_processes, processes_of_machine, several_processes
from subdistill_hf.data.collate import Collate, divided_for_teacher, is_stream, teacher_pixels
from subdistill_hf.errors import DistillationError
from subdistill_hf.formatting import memory
from subdistill_hf.teacher.cache import StoredLayer, Targets, TeacherCache
from subdistill_hf.teacher.cache_files import CacheError, TargetFile, make_room
from subdistill_hf.teacher.remote_cache import RemoteCache, folder_on_disk, is_remote
from subdistill_hf.teacher.targets import ComputedTargets

FORMAT = 1
COMPARED = 8  # images that are read twice, since those of a view must be the same each time
TOLERANCE = 0.05  # of the largest target: bfloat16 and other machines round otherwise


@dataclass(frozen=True)
class CacheRequest:
    """How targets are to be kept.

    Attributes:
        views: number of views of each image.
        folder: where: a folder on disk, or the address of a place from which they are fetched and where they are
            left; `None` takes `default_folder`.
        limit: bytes that all targets there may take.
        precision: `"float16"` or `"float32"`.
        batch_size: images of one pass of the teacher, fewer where memory is short.
        local_rank: number of this process on its machine.
        local_processes: number of processes on this machine.
        show: print what is done, with a progress bar.
    """

    views: int
    folder: str | None
    limit: int
    precision: str
    batch_size: int
    local_rank: int = 0
    local_processes: int = 1
    show: bool = True

    @classmethod
    def for_training(cls, args: SubDistillConfig, views: int) -> CacheRequest:
        """How a training with these arguments keeps its targets."""
        return cls(
            views=views,
            folder=args.teacher_cache_dir,
            limit=int(args.teacher_cache_limit * 2**30),
            precision=args.teacher_cache_precision,
            batch_size=args.per_device_train_batch_size,
            local_rank=args.local_process_index,
            local_processes=processes_of_machine(args.world_size),
            show=args.process_index == 0 and not args.disable_tqdm,
        )


@dataclass(frozen=True)
class TeacherViews:
    """The views of a training, and what computes the teacher's targets of them.

    Attributes:
        targets: computes them.
        dataset: with `views`, `fingerprint` and `set_epoch`, and `index` and `view` in its examples (`ViewDataset`).
        collate: gives `pixel_values` or `teacher_pixel_values` for the teacher, `index` and `view`.
    """

    targets: ComputedTargets
    dataset: Any
    collate: Collate

    def first_pixels(self) -> Tensor:
        """The teacher's pixels of the first two images, as the collator makes them."""
        return teacher_pixels(self.collate(self._examples(range(min(2, len(self.dataset))))))

    def check_that_they_come_again(self) -> None:
        """Refuse views that differ each time they are read: the student would see others than the teacher did.

        Raises:
            DistillationError: for a dataset or a collator that draws at random.
        """
        count = min(COMPARED, len(self.dataset))
        places = [place * (len(self.dataset) - 1) // max(count - 1, 1) for place in range(count)]
        first, second = (teacher_pixels(self.collate(self._examples(places))) for _ in range(2))
        if not torch.equal(first, second):
            raise DistillationError(
                "teacher_cache needs views that are the same each time they are read, and those of "
                f"{type(self.dataset).__name__} differ: the student would see other pixels than those whose targets "
                "are kept. Draw what is random from (seed, view, image), as ViewDataset does, or use "
                "teacher_cache='off'"
            )

    def of(self, places: Sequence[int]) -> tuple[Tensor, Tensor, Targets]:
        """Numbers and views of some images in the dataset's present view, and the teacher's logits and targets.

        Raises:
            DistillationError: for a batch that does not say which view is which.
        """
        gather, pixels_of = divided_for_teacher(self.collate, self.targets.teacher.device)
        batch = gather(self._examples(places))
        if "index" not in batch or "view" not in batch:
            raise DistillationError(
                "teacher_cache needs `index` and `view` in the batch, as ViewDataset and ViewCollator give them"
            )
        targets = self.targets.of_pixels(pixels_of(batch))
        return torch.as_tensor(batch["index"]), torch.as_tensor(batch["view"]), targets

    def _examples(self, places: Sequence[int]) -> list[Any]:
        if hasattr(self.dataset, "__getitems__"):
            examples: list[Any] = self.dataset.__getitems__(list(places))
            return examples
        return [self.dataset[place] for place in places]


def open_cache(views: TeacherViews, request: CacheRequest) -> TeacherCache:
    """The targets of all views, from files that exist or are made now.

    Args:
        views: whose targets.
        request: how they are kept.

    Raises:
        DistillationError: for batches that do not say which view is which.
        CacheError: when the targets are larger than allowed, or than half precision can hold; when those of another
            place cannot be fetched.
    """
    folder = folder_on_disk(request.folder)
    folder.mkdir(parents=True, exist_ok=True)
    remote = RemoteCache(request.folder) if request.folder is not None and is_remote(request.folder) else None
    cache, newest = _describe(views, request, folder)
    missing = _missing(cache, request, newest, remote)
    subject = f"teacher  its targets of {cache.images} images x {cache.views} views"
    if missing:
        needed = sum(cache.files[name].size for name in missing)
        if request.local_rank == 0:
            keep = {file.name for name, file in cache.files.items() if name not in missing}
            make_room(folder, needed, request.limit, keep)
        if request.show:
            tqdm.write(f"{subject}: {memory(needed)}")
        _build(views, request, cache, missing)
        views.dataset.set_epoch(0)
    elif request.show:
        tqdm.write(f"{subject} are there already")
    cache.open()
    if remote is not None and (not several_processes() or torch.distributed.get_rank() == 0):
        _leave(cache, remote, request)
    return cache


def check_views(dataset: Any, views: int) -> None:
    """Refuse a dataset whose views cannot be told apart.

    Args:
        dataset: needs a length, `views`, `fingerprint` and `set_epoch`, as `ViewDataset` has them.
        views: number of views that are to be kept.

    Raises:
        DistillationError: naming what is missing.
    """
    if is_stream(dataset):
        raise DistillationError("teacher_cache needs a dataset whose images have numbers, found a streamed one")
    lacking = [name for name in ("views", "fingerprint", "set_epoch") if not hasattr(dataset, name)]
    if lacking:
        raise DistillationError(
            f"teacher_cache needs a dataset that says which view is which, as ViewDataset does: "
            f"{type(dataset).__name__} has no {', '.join(lacking)}. Use one, or teacher_cache='off'"
        )
    if dataset.views != views:
        raise DistillationError(
            f"teacher_cache={views} needs a dataset of {views} views an image, found views={dataset.views}: pass "
            f"views={views} to the dataset"
        )


def _describe(
    views: TeacherViews, request: CacheRequest, folder: Path
) -> tuple[TeacherCache, tuple[Tensor, dict[str, Tensor]]]:
    """Which files hold the targets; two images tell their shapes, and what the teacher's preprocessing makes.

    Returns:
        The cache, and the rows of these images in each file with what belongs there.
    """
    teacher, dataset = views.targets.teacher, views.dataset
    dataset.set_epoch(0)
    views.check_that_they_come_again()
    pixels = views.first_pixels()
    numbers, shown, (logits, features) = views.of(range(min(2, len(dataset))))
    common = {
        "format": FORMAT,
        "teacher": teacher.digest,
        "teacher_precision": str(teacher.dtype),
        "images": dataset.fingerprint,
        "views": request.views,
        "first_pixels": hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest(),
    }
    classes = teacher.outputs
    rows = len(dataset) * request.views

    def file(description: Mapping[str, Any], shape: Sequence[int]) -> TargetFile:
        return TargetFile(folder, {**common, **description}, (rows, *shape), request.precision)

    layers = {}
    for name, loss in views.targets.losses.items():
        found = features[name]
        tokens = found.values.transpose(1, 2).is_contiguous()
        shape = found.values.shape[1:][::-1] if tokens else found.values.shape[1:]
        what = {"layer": name, "target": loss.identity(), "grid": list(found.grid), "tokens": tokens}
        what |= {} if loss.teacher_scale == 1 else {"scale": loss.teacher_scale}
        layers[name] = StoredLayer(file(what, shape), found.grid, found.prefix, tokens)
    cache = TeacherCache(len(dataset), request.views, file({"classes": classes}, logits.shape[1:]), layers)
    return cache, (cache.rows(numbers, shown), cache.packed(logits, features))


def _missing(
    cache: TeacherCache,
    request: CacheRequest,
    newest: tuple[Tensor, dict[str, Tensor]],
    remote: RemoteCache | None,
) -> list[str]:
    """Names of the files that must be made, the same in all processes; damaged ones are deleted.

    What is in the remote place and not here is fetched, by one process of a machine.
    """
    missing = []
    rows, targets = newest
    if request.local_rank == 0:
        for name, file in cache.files.items():
            reason = _unusable(file, rows, targets[name])
            if reason is not None and remote is not None and remote.holds(file):
                make_room(file.folder, file.size, request.limit, {each.name for each in cache.files.values()})
                if request.show:
                    tqdm.write(f"teacher  fetches {memory(file.size)} of its targets from {remote.address}")
                reason = remote.fetch(file)
                _tell(reason, f"kept targets in {remote.address}")
                reason = reason or _unusable(file, rows, targets[name])
                if reason is not None:
                    remote.replace(file)
            if reason is not None:
                missing.append(name)
    if several_processes():
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, missing)
        missing = [name for name in cache.files if any(name in names for names in gathered)]
    return missing


def _unusable(file: TargetFile, rows: Tensor, targets: Tensor) -> str | None:
    """Why a file cannot be used, or `None`; a damaged one is told of and deleted."""
    reason = file.check() or _difference(file, rows, targets.cpu())
    if reason not in (None, "not there"):
        _tell(reason, "kept targets of the teacher")
        file.remove()
    return reason


def _tell(reason: str | None, what: str) -> None:
    if reason is not None:
        warnings.warn(f"{what} are {reason}: they are made again", stacklevel=2)


def _leave(cache: TeacherCache, remote: RemoteCache, request: CacheRequest) -> None:
    """Copy targets to the remote place; where that fails a warning says so, since they are whole on this disk."""
    try:
        for file in cache.files.values():
            if remote.leave(file) and request.show:
                tqdm.write(f"teacher  {memory(file.size)} of its targets are in {remote.address}")
    except CacheError as error:
        warnings.warn(f"{error}. The run goes on with the targets on this disk", stacklevel=2)


def _difference(file: TargetFile, rows: Tensor, targets: Tensor) -> str | None:
    """Why a whole file is not this teacher's: its weights do not tell of an adapter that was switched meanwhile."""
    path = file.find()
    if path is None:
        return "not there"
    kept = file.mapped(path)[rows].float()
    close = (kept - targets.float()).abs().max() <= TOLERANCE * targets.abs().max()
    return None if bool(close) else "another teacher's"


def _build(views: TeacherViews, request: CacheRequest, cache: TeacherCache, missing: Sequence[str]) -> None:
    """One pass over all views, each process of a machine over its share of the images."""
    token = [uuid.uuid4().hex]
    if several_processes():
        torch.distributed.broadcast_object_list(token, src=0)
    group = torch.distributed.get_rank() - request.local_rank if several_processes() else 0
    files = {name: cache.files[name] for name in missing}
    parts = {name: file.folder / f".{file.name}-{token[0]}-{group}.part" for name, file in files.items()}
    try:
        if request.local_rank == 0:
            for name, file in files.items():
                file.begin(parts[name])
        _wait()
        arrays = {name: file.mapped(parts[name], writable=True) for name, file in files.items()}
        kind = next(iter(arrays.values())).dtype

        def fill(batch_size: int) -> None:
            for rows, logits, features in _targets_of_all(views, request, cache, batch_size):
                packed = cache.packed(logits, features)
                for name, array in arrays.items():
                    array[rows] = _kept(packed[name], kind)

        if views.targets.teacher.is_sharded:  # a process that began again would leave the others alone
            fill(request.batch_size)
        else:
            within_memory(fill, request.batch_size)
        arrays.clear()
        _wait()
        if request.local_rank == 0:
            for name, file in files.items():
                file.publish(parts[name])
        _wait()
    finally:
        if request.local_rank == 0:
            for part in parts.values():
                part.unlink(missing_ok=True)


def _kept(values: Tensor, kind: torch.dtype) -> Tensor:
    """Targets as they are written."""
    kept = values.to("cpu", kind)
    if not bool(kept.isfinite().all()):
        raise CacheError(
            "a target of the teacher is not finite or too large for half precision (65504): use "
            "teacher_cache_precision=float32, or teacher_cache=off"
        )
    return kept


def _targets_of_all(
    views: TeacherViews, request: CacheRequest, cache: TeacherCache, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, dict[str, Features]]]:
    """Rows, logits and features of this process's share, batch by batch."""
    share = range(request.local_rank, cache.images, request.local_processes)
    passes = math.ceil(len(share) / batch_size)
    if views.targets.teacher.is_sharded:
        passes = largest_of_processes(passes)
    with tqdm(total=len(share) * cache.views, desc="teacher", unit=" images", disable=not request.show) as bar:
        for view in range(cache.views):
            views.dataset.set_epoch(view)
            for start in range(0, passes * batch_size, batch_size):
                places = share[start : start + batch_size]
                if not places:  # a pass of a sharded teacher takes all processes
                    views.of([0])
                    continue
                numbers, shown, (logits, features) = views.of(places)
                yield cache.rows(numbers, shown), logits, features
                bar.update(len(numbers))


def _wait() -> None:
    if several_processes():
        torch.distributed.barrier()
