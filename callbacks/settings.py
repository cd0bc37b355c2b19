"""What the command line says of optimizer and schedule holds for a resumed run too."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from errors import UserError

Settings = dict[str, Any]


class ResumeSettings(Callback):
    """Compare the settings that a run is resumed with to those it was trained with.

    PyTorch restores optimizers and schedules with their settings, whatever the command line says.
    Here an optimizer's new settings take the place of the old ones (a learning rate that a schedule
    has changed, changes in proportion); another schedule is refused: nobody knows where in it the
    run would be.
    """

    def __init__(self) -> None:
        self._now: dict[str, Settings] = {}
        self._before: dict[str, Settings] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the settings; nothing is restored yet."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._now = {f"optimizer {i}": plain(group) for i, group in enumerate(groups)}
        for i, config in enumerate(trainer.lr_scheduler_configs):
            self._now[f"schedule {i}"] = plain(config.scheduler.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the settings, for the checkpoint."""
        return self._now

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the checkpoint's settings until all is restored."""
        self._before = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the command line's settings win.

        Raises:
            UserError: if the schedule is another one.
        """
        before, self._before = self._before, {}
        changes = [
            (place, key, old, self._now[place].get(key))
            for place, settings in before.items()
            if place in self._now
            for key, old in settings.items()
            if old != self._now[place].get(key)
        ]
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        factors: dict[int, float] = {}
        for place, key, old, new in changes:
            kind, number = place.split()
            if kind == "optimizer" and key in {"lr", "initial_lr"}:
                if key == "lr":
                    factors[int(number)] = new / old
            elif kind == "optimizer":
                groups[int(number)][key] = new
            elif key not in {"base_lrs", "_last_lr"}:  # the optimizer's
                raise UserError(
                    f"the checkpoint's learning-rate schedule has {key} {old}, this "
                    f"configuration's {new}: give --lr_scheduler.init_args.{key}={old} to resume"
                )
            if kind == "optimizer" and key != "initial_lr":
                rank_zero_info(f"{key} of the optimizer was {old} and is {new} from here on")
        for i, factor in factors.items():
            for key in {"lr", "initial_lr"} & groups[i].keys():
                groups[i][key] *= factor
        if factors:
            for config in trainer.lr_scheduler_configs:
                for name in ("base_lrs", "_last_lr"):
                    rates = getattr(config.scheduler, name, [])
                    rates[:] = [rate * factors.get(i, 1) for i, rate in enumerate(rates)]


def plain(settings: dict[str, Any]) -> Settings:
    """Return the settings that are numbers, names or sequences of them."""
    kinds = (bool, int, float, str, type(None))
    return {
        key: value
        for key, value in settings.items()
        if isinstance(value, kinds)
        or (isinstance(value, list | tuple) and all(isinstance(v, kinds) for v in value))
    }
