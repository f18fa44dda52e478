"""Look at a workload once: facts, *yours*, and what the user's own code already sets."""

from __future__ import annotations

import math
import time
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autotune.errors import AutotuneError, DatasetError, LossError, ModelError, NonFiniteLossError
from autotune.facts import WorkloadFacts
from autotune.measure import (
    batches,
    broken,
    compiling,
    flags,
    gathering,
    loaders,
    losses,
    optimizers,
    sharding,
)
from autotune.measure import models as models_
from autotune.measure.classify import user_traceback
from autotune.measure.stepkit import StepKit
from autotune.settings import ComputeSettings, LoaderSettings, Settings, TransferSettings

if TYPE_CHECKING:
    from autotune.measure.session import Session

_CONVS = (nn.Conv2d, nn.ConvTranspose2d)
_SURVEY_STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one look found."""

    workload: WorkloadFacts
    yours: Settings
    notes: tuple[str, ...]


def fetch_one(parts: loaders.LoaderParts, batch_size: int | None) -> tuple[Any, int]:
    """The first batch of the loader, loaded in this process, and its number of samples.

    Raises:
        DatasetError: when the dataset raises; its traceback and, where it can be told, the index are shown.
    """
    plain = LoaderSettings(batch_size=batch_size)
    loader, endless = loaders.build_endless(loaders.private_copy(parts), plain)
    text = ""
    try:
        batch = next(iter(loader))
        indices = None if endless is None else endless.pending[0]
        own = parts.batch_sampler is not None
        return batch, batches.drawn_samples(batch, indices, batch_size, own_sampler=own)
    except StopIteration:
        raise DatasetError(
            "the dataset ended before its first batch",
            why=f"iter({type(parts.dataset).__name__}) gave nothing",
            fix="check what its iterator yields",
        ) from None
    except AutotuneError:
        raise
    except Exception as error:  # the user's dataset may raise anything
        text, name = user_traceback(error), type(error).__name__
    found = broken.broken_sample(parts, endless.pending[0] if endless and endless.pending else [])
    where = f" at index {found.shown}" if found is not None else ""
    raise DatasetError(
        f"the dataset raised {name}{where}", fix="make this sample loadable, or leave it out", detail=text
    )


def survey(session: Session) -> Survey:
    """Run the user's own step a few times and write down what it is.

    Raises:
        AutotuneError: when it does not run, or its loss is not finite.
    """
    notes: list[str] = []
    parts = session.parts
    own_size = None if parts is None else parts.settings.batch_size
    held, samples = session.held_batch(own_size)
    plan = session.loss_plan()
    yours = _yours(session)
    with flags.preserved():
        flags.seed_everything(0)
        kit = session.make_kit(yours)
        watch = _Watch(kit.models, session.device.type)
        try:
            first_loss, step_s = _run_steps(kit, held, session, plan)
        finally:
            watch.close()
    session.restore()
    if parts is not None and parts.note:
        notes.append(parts.note)
    if session.workload.optimizer is None:
        notes.append(f"no optimizer was given: steps are measured with SGD(lr={optimizers.MEASURING_LR:g})")
    return Survey(
        workload=_facts(session, kit, held, samples, watch, first_loss, step_s),
        yours=yours,
        notes=tuple(notes),
    )


def _run_steps(
    kit: StepKit, held: Any, session: Session, plan: losses.LossPlan | None
) -> tuple[float, float]:
    first, step_s = math.nan, 0.0
    name = plan.description if plan is not None else "train_step"
    if plan is not None:
        _probe_loss(kit, held, plan)
    for number in range(_SURVEY_STEPS):
        batch = batches.copied(held)  # a step may change it in place
        started = time.perf_counter()
        try:
            loss = kit.step(batch)
        except (AutotuneError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the user's own step
            raise _step_error(error, name, held) from None
        if not isinstance(loss, torch.Tensor):
            losses.check_loss(loss, name)
        value = float(loss)
        step_s = time.perf_counter() - started
        if number == 0:
            first = value
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the loss is {value} at step {number + 1}, before any setting was changed",
                why=f"with {name}, your optimizer and float32",
                fix="check the data for NaN and lower the learning rate; a run that diverges cannot be tuned",
            )
    return first, step_s


def _probe_loss(kit: StepKit, held: Any, plan: losses.LossPlan) -> None:
    batch = kit.to_device(batches.copied(held)) if held is not None else None
    try:
        loss = plan.loss_of(kit.model, batch)
    except (AutotuneError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the user's model or loss
        raise _step_error(error, plan.description, held) from None
    losses.check_loss(loss, plan.description)
    kit.zero_grad()


def _step_error(error: Exception, name: str, held: Any) -> AutotuneError:
    """Whether the model or the loss raised decides what the user should look at."""
    frames = traceback.extract_tb(error.__traceback__)
    in_model = any(frame.name in ("_call_impl", "_wrapped_call_impl") for frame in frames)
    cls = ModelError if in_model or name.startswith(("step", "train_step")) else LossError
    what = "the training step raised" if cls is ModelError else f"the loss {name} does not fit the batch"
    return cls(
        what,
        why=f"{type(error).__name__}: {error}\nthe batch is {batches.describe_batch(held)}",
        fix="make one step run on one batch; pass step=callable(model, batch) -> loss for other batches",
        detail=user_traceback(error),
    )


class _Watch:
    """Hooks on the model's leaves: is autocast already on inside, are there 4-D inputs."""

    def __init__(self, models: dict[str, nn.Module], device_type: str) -> None:
        self.user_autocast = False
        self.image_input = False
        self._device_type = device_type
        leaves = [m for model in models.values() for m in model.modules() if not list(m.children())]
        self._handles = [leaf.register_forward_pre_hook(self._look) for leaf in leaves]

    def _look(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_autocast_enabled(self._device_type):
            self.user_autocast = True
        if isinstance(module, _CONVS):
            self.image_input |= any(
                isinstance(x, torch.Tensor) and x.dim() == 4 and x.is_floating_point() for x in inputs
            )

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _yours(session: Session) -> Settings:
    """What the user runs: read before a kit switches anything."""
    on_cpu = session.device.type == "cpu"
    compute = ComputeSettings(
        precision=flags.user_precision(session.user_flags, session.device.type),
        cudnn_benchmark=session.user_flags.cudnn_benchmark and session.device.type == "cuda",
        channels_last=session.channels_last,
        fused_optimizer=optimizers.is_fused(session.build_optimizers().values()),
        cpu_threads=session.user_flags.num_threads if on_cpu else None,
        keep_host_memory=session.user_flags.keep_host_memory and on_cpu,
    )
    loader = session.parts.settings if session.parts is not None else LoaderSettings()
    if loader.num_workers == 0:
        loader = LoaderSettings(batch_size=loader.batch_size, pin_memory=loader.pin_memory)
    return Settings(loader=loader, transfer=TransferSettings(), compute=compute)


def _facts(
    session: Session,
    kit: StepKit,
    held: Any,
    samples: int,
    watch: _Watch,
    first_loss: float,
    step_s: float,
) -> WorkloadFacts:
    parts, models = session.parts, kit.models.values()
    parameters = [p for model in models for p in model.parameters()]
    built = list(kit.optimizers.values())
    given = session.workload.optimizer is not None
    plan = session.loss_plan()
    return WorkloadFacts(
        model_class="+".join(type(model).__name__ for model in models),
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        device=str(session.device),
        loss=plan.description if plan is not None else "train_step",
        batch_samples=samples,
        batch_bytes=batches.batch_bytes(held),
        step_samples=gathering.step_samples(
            session.workload, None if parts is None else parts.settings.batch_size, len(built)
        ),
        dataset_class=type(parts.dataset).__name__ if parts is not None else None,
        dataset_samples=parts.samples() if parts is not None else None,
        dropped_samples=_dropped_samples(parts),
        iterable=parts is not None and parts.iterable,
        sharded=parts is None or sharding.shards_itself(parts),
        batch_size_fixed=_batch_size_fixed(session),
        persistent_fixed=_persistent_fixed(parts),
        workers_fixed=_workers_fixed(held),
        optimizer_class="+".join(type(o).__name__ for o in built) if given else None,
        optimizer_family=optimizers.family(built[0]) if given and len(built) == 1 else "other",
        fused_available=given and optimizers.fused_available(built, session.device.type),
        has_conv2d=any(isinstance(m, _CONVS) for model in models for m in model.modules()),
        image_input=watch.image_input,
        autocast_fixed=_autocast_fixed(session, kit, watch),
        deterministic=session.user_flags.deterministic,
        learning_rates=optimizers.learning_rates(built) if given else (),
        weight_decays=optimizers.weight_decays(built) if given else (),
        decoupled_weight_decay=given and all(optimizers.decoupled(o) for o in built),
        beta2s=optimizers.beta2s(built) if given else (),
        batch_norm_momenta=models_.batch_norm_momenta(models),
        has_attention=models_.has_attention(models),
        compiled=compiling.compiled_already(models),
        leaf_modules=models_.leaf_modules(models),
        first_loss=first_loss,
        step_s=step_s,
    )


def _dropped_samples(parts: loaders.LoaderParts | None) -> int | None:
    if parts is None or not parts.drop_last:
        return None
    trained, all_of_them = parts.samples(), replace(parts, drop_last=False).samples()
    return None if trained is None or all_of_them is None else all_of_them - trained


def _autocast_fixed(session: Session, kit: StepKit, watch: _Watch) -> str:
    if watch.user_autocast:
        return "your own code runs under autocast already"
    if session.workload.train_step is not None and not kit.autocast_entered:
        return "train_step does not use kit.autocast()"
    return ""


def _batch_size_fixed(session: Session) -> str:
    parts = session.parts
    if parts is None:
        return "there is no DataLoader: the step makes its own batches"
    if parts.batch_sampler is not None:
        return "your batch sampler makes the batches"
    if parts.settings.batch_size is None:
        return "the dataset makes the batches"
    return ""


def _persistent_fixed(parts: loaders.LoaderParts | None) -> str:
    if parts is not None and hasattr(parts.dataset, "set_epoch"):
        return "the dataset has set_epoch(), which persistent workers would not see"
    return ""


def _workers_fixed(held: Any) -> str:
    for tensor in batches.tensors(held):
        if tensor.device.type not in ("cpu", "meta"):
            return f"the dataset's tensors are on {tensor.device} already"
    return ""
