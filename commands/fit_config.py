"""The configuration that fit leaves in its run directory."""

from pathlib import Path

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.utilities import rank_zero_info

from commands.settings import find_changes
from engine import Reproducibility, RunDirectory, find_callbacks, whole_file


class SaveFitConfig(SaveConfigCallback):
    """Save the configuration of fit in the run directory, with any logger or none."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait: a run that refuses to resume keeps its configuration."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save when training starts."""
        if trainer.is_global_zero:
            run = RunDirectory(Path(trainer.default_root_dir))
            before = run.read_config() if trainer.ckpt_path and run.config.is_file() else {}
            config = self.config.clone()
            if trainer.ckpt_path:  # a resumed run keeps its seed, precision and first weights
                (engine,) = find_callbacks(trainer, Reproducibility)
                if before.get("seed_everything") is not False:
                    config.seed_everything = engine.seed
                config.init_from = before.get("init_from", config.init_from)
                if config.trainer.precision is None:
                    config.trainer.precision = before.get("trainer", {}).get("precision")
            with whole_file(run.config) as part:
                self.parser.save(config, part, skip_unset=False, overwrite=True, multifile=False)
            for key, (old, new) in find_changes(before, run.read_config()).items():
                rank_zero_info(f"{key} was {old} and is {new} now")
