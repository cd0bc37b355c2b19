"""Settings of optimizers: learning rates of parts, fused steps, and what changed on resume."""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from engine.reproducibility import find_callbacks
from errors import UserError

Settings = dict[str, Any]

OTHERS = "others"
"""Name of the group of parameters without a learning rate of its own."""
FUSED = (SGD, Adam, AdamW)
"""Optimizers whose fused step does what the other does."""


def group_parameters(
    module: LightningModule, rate: float, factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Divide the parameters into groups with learning rates of their own.

    Args:
        module: module to train.
        rate: learning rate of parameters without a factor.
        factors: factor of the learning rate by name of a part of the module, such as
            ``network.encoder``; the longest name that fits a parameter counts.

    Returns:
        Parameter groups, the one without a factor first.

    Raises:
        UserError: if a name fits no parameter.
    """
    groups: dict[str, list[Tensor]] = {"": [], **{part: [] for part in factors}}
    for name, parameter in module.named_parameters():
        fitting = [part for part in factors if f"{name}.".startswith(f"{part}.")]
        groups[max(fitting, key=len, default="")].append(parameter)
    for part, parameters in groups.items():
        if part and not parameters:
            known = {".".join(n.split(".")[:2]) for n, _ in module.named_parameters()}
            raise UserError(
                f"lr_factors: the model has no part {part!r}; its parts are "
                f"{', '.join(sorted(known)[:8])} and theirs"
            )
    return [
        {"params": parameters, "lr": rate * factors.get(part, 1.0), "name": part or OTHERS}
        for part, parameters in groups.items()
        if parameters
    ]


def fuse_steps(optimizer: Optimizer, model: nn.Module) -> None:
    """Let an optimizer update all its parameters in one pass, unless its settings say how.

    On a CPU the pass takes a fourth of the time of PyTorch's default (docs/speed.md).

    Args:
        optimizer: optimizer, before its first step.
        model: module that the parameters belong to.
    """
    if type(optimizer) not in FUSED or any(getattr(m, "sparse", False) for m in model.modules()):
        return
    for group in optimizer.param_groups:
        is_open = group["fused"] is None and group["foreach"] is None
        # A fused step with momentum fails if a parameter has its first gradient after others.
        is_plain = not group["differentiable"] and not group.get("momentum")
        if is_open and is_plain and all(map(can_be_fused, group["params"])):
            group["fused"] = True


def can_be_fused(parameter: nn.Parameter) -> bool:
    """Return whether fused steps work on a parameter; they ignore strides on a CPU."""
    is_known = parameter.device.type in ("cpu", "cuda")
    return is_known and parameter.is_floating_point() and parameter.is_contiguous()


class OptimizerSettings(Callback):
    """Compare a resumed run's settings with those it was trained with.

    PyTorch restores optimizers and schedules with their settings, whatever the command line says.
    Here an optimizer's new settings replace the old ones. If a schedule has already changed the
    learning rate, the current rate is scaled in proportion. A different optimizer is refused, and
    so is a different schedule, because the run's position in it would be undefined.
    """

    def __init__(self) -> None:
        self._now: dict[str, Settings] = {}
        self._before: dict[str, Settings] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the command line's settings, before any are restored.

        Raises:
            UserError: if the parameters are grouped otherwise than in the checkpoint, whose state
                would go to other parameters.
        """
        self._now = {}
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                settings = plain(group)
                # A schedule has already changed lr; initial_lr is the value it started from.
                settings["lr"] = settings.pop("initial_lr", settings["lr"])
                name = f"optimizer {len(self._now)}"
                self._now[name] = {"class": type(optimizer).__name__, **settings}
        for i, config in enumerate(trainer.lr_scheduler_configs):
            settings = plain(config.scheduler.state_dict())
            rates = {"base_lrs", "_last_lr"}  # the optimizer's
            settings = {key: value for key, value in settings.items() if key not in rates}
            self._now[f"schedule {i}"] = {"class": type(config.scheduler).__name__, **settings}
        parts = [group_names(settings) for settings in (self._before, self._now)]
        if self._before and parts[0] != parts[1]:
            before, now = (", ".join(names) or "none" for names in parts)
            raise UserError(
                f"the run was trained with lr_factors for {before}, this configuration has them "
                f"for {now}: resume with the same parts in the same order"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the settings, for the checkpoint."""
        return self._now

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the checkpoint's settings until everything is restored."""
        self._before = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the command line's settings win.

        Raises:
            UserError: if the optimizer or schedule differs.
        """
        saved, self._before = self._before, {}
        if not saved:
            return
        # StochasticWeightAveraging has taken the schedule away, and brings its own.
        has_swa = bool(find_callbacks(trainer, StochasticWeightAveraging))
        for name in saved | self._now:
            old, new = saved.get(name, {}), self._now.get(name, {})
            kind, number = name.split()
            if kind == "schedule" and has_swa:
                continue
            for key in old | new:
                if old.get(key) == new.get(key):
                    continue
                if kind == "schedule" or key == "class":
                    raise UserError(explain_refusal(kind, key, old.get(key), new.get(key)))
                groups = [group for each in trainer.optimizers for group in each.param_groups]
                if key == "lr":
                    change_rate(trainer, groups[int(number)], old["lr"], new["lr"])
                elif key in new:
                    groups[int(number)][key] = new[key]
                else:  # of another version of PyTorch
                    continue
                before, now = old.get(key), new[key]
                rank_zero_info(f"{key} of the optimizer was {before} and is {now} now")
                if key == "fused":
                    for optimizer in trainer.optimizers:
                        # Moves the step counts to the device, where a fused step needs them.
                        optimizer.load_state_dict(optimizer.state_dict())


def group_names(settings: dict[str, Settings]) -> list[str]:
    """Return the names of the parameter groups with a learning rate of their own."""
    names = [str(group["name"]) for group in settings.values() if "name" in group]
    return [name for name in names if name != OTHERS]


def explain_refusal(kind: str, key: str, old: Any, new: Any) -> str:
    """Return the reason why a run cannot be resumed with a setting."""
    what = "optimizer" if kind == "optimizer" else "learning-rate schedule"
    if key == "class":
        return (
            f"the run was trained with {f'the {what} {old}' if old else f'no {what}'}, this "
            f"configuration has {new or 'none'}: resume with what it was trained with"
        )
    return (
        f"the checkpoint's {what} has {key} {old}, this configuration's {new}: give "
        f"--lr_scheduler.init_args.{key}={old} to resume"
    )


def change_rate(trainer: Trainer, group: Settings, old: float, new: float) -> None:
    """Change the learning rate of a parameter group and the base rate of its schedule."""
    group["lr"] = group["lr"] * new / old if old else new
    if "initial_lr" in group:
        group["initial_lr"] = new
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        for i, scheduled in enumerate(scheduler.optimizer.param_groups):
            if scheduled is group and hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs[i] = new
                scheduler._last_lr[i] = group["lr"]  # noqa: SLF001


def plain(settings: dict[str, Any]) -> Settings:
    """Return the settings that are numbers, names or sequences of them."""
    kinds = (bool, int, float, str, type(None))
    return {
        key: value
        for key, value in settings.items()
        if isinstance(value, kinds)
        or (isinstance(value, list | tuple) and all(isinstance(v, kinds) for v in value))
    }
