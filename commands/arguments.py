"""Arguments of a configuration: which the data fill, which are null, which runs do not support."""

import inspect
import pydoc
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_args, get_type_hints

from jsonargparse import Namespace
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder
from pytorch_lightning.cli import LightningArgumentParser

from datamodules.splits import SplitDataModule
from errors import UserError

LINKS = (
    ("vocabulary", "vocabulary"),
    ("vocabulary_size", "network.init_args.decoder.init_args.vocabulary_size"),
    ("vocabulary_size", "network.init_args.vocabulary_size"),
    ("class_names", "class_names"),
    ("class_count", "network.init_args.classes"),
    ("channels", "network.init_args.channels"),
    ("inputs", "network.init_args.inputs"),
    ("size", "network.init_args.image_size"),
    ("dimension", "network.init_args.dimension"),
    ("dimension", "dimension"),
    ("low", "low"),
    ("high", "high"),
    ("low", "network.init_args.low"),
    ("high", "network.init_args.high"),
)
"""Model arguments filled from the data module: its attribute → the model's argument.

A link applies if the data module has the attribute and the model's class has the argument. Each
run logs at its start which arguments were filled.
"""


def find_filled(model: Namespace, data: LightningDataModule) -> Iterator[str]:
    """Yield ``argument=value`` for each argument of the model that the data module fills.

    Raises:
        UserError: if neither the data nor the configuration has an argument that the model needs.
    """
    for source, target in LINKS:
        *parents, argument = target.replace("init_args.", "").split(".")
        node: Any = model
        for parent in parents:
            node = node.get("init_args", {}).get(parent) if node else None
        parameter = find_parameter(node, argument)
        if parameter is None:
            continue
        if hasattr(data, source):
            value = getattr(data, source)
            shown = f"={value}" if isinstance(value, int | str) else ""
            yield ".".join(("model", *parents, argument)) + shown
        elif parameter.default is parameter.empty and node.init_args.get(argument) is None:
            raise UserError(
                f"{node.class_path} needs {argument}, which {type(data).__name__} does not have: "
                "use a data module of the same task"
            )


def check_filled(model: Namespace, data: Namespace) -> None:
    """Check that the data fill what the model needs; for a model that could not be constructed.

    Raises:
        UserError: if not.
    """
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    config = Namespace(data=data)  # type: ignore[no-untyped-call]
    try:
        built = parser.instantiate_classes(config).data
    except Exception:  # then the data, not the model, cannot be constructed
        return
    list(find_filled(model, built))


def check_nulls(config: Namespace) -> None:
    """Check that no argument of a class is null whose type does not allow it.

    jsonargparse checks the type of every value but null.

    Raises:
        UserError: if one is; names its key.
    """
    filled = {f"model.init_args.{target}" for _, target in LINKS}
    for key, node in find_classes(config, ""):
        for name, value in vars(node.init_args).items():
            full = f"{key}.init_args.{name}"
            if value is None and full not in filled and forbids_null(node, name):
                raise UserError(f"{full} is null: give it a value, or leave it out")


def find_classes(value: Any, key: str) -> Iterator[tuple[str, Namespace]]:
    """Yield the classes with arguments in a configuration, also in lists, each with its key."""
    if isinstance(value, list):
        for i, inner in enumerate(value):
            yield from find_classes(inner, f"{key}[{i}]")
    elif isinstance(value, Namespace):
        if isinstance(value.get("init_args"), Namespace):
            yield key, value
        for name, inner in vars(value).items():
            yield from find_classes(inner, f"{key}.{name}" if key else name)


def forbids_null(node: Namespace, name: str) -> bool:
    """Return whether the type of an argument is known, and does not include None."""
    constructor = find_constructor(node, name)
    if constructor is None or inspect.signature(constructor).parameters[name].default is None:
        return False
    try:
        hint = get_type_hints(constructor)[name]
    except Exception:  # a name that only type checkers know, or no annotation
        return False
    is_open = hint in (Any, object) or isinstance(hint, TypeVar)
    return not is_open and type(None) not in get_args(hint)


def find_parameter(node: Any, name: str) -> inspect.Parameter | None:
    """Return an argument of the class that a node of a configuration names, or of a base class."""
    constructor = find_constructor(node, name)
    return inspect.signature(constructor).parameters[name] if constructor else None


def find_constructor(node: Any, name: str) -> Callable[..., None] | None:
    """Return the constructor that has an argument, of a node's class or of a base class."""
    found = pydoc.locate(node.class_path) if node and "class_path" in node else None
    for base in inspect.getmro(found) if inspect.isclass(found) else ():
        constructor: Callable[..., None] | None = vars(base).get("__init__")
        if constructor is not None and name in inspect.signature(constructor).parameters:
            return constructor
    return None


OTHER_WEIGHTS = (
    *("16-true", "bf16-true", "64", "64-true"),
    *("transformer-engine", "transformer-engine-float16"),
)
"""Precisions of Lightning in which weights are not in float32."""


def check_trainer(trainer: Namespace, data: LightningDataModule, *, is_fit: bool) -> None:
    """Check the settings of the trainer that Lightning accepts and runs do not.

    Raises:
        UserError: if one is invalid or not supported.
    """
    if trainer.overfit_batches and isinstance(data, SplitDataModule):
        raise UserError(
            "trainer.overfit_batches is not supported: train on few examples with "
            "data.init_args.max_clips, or max_images, as configs/debug/overfit.yaml does"
        )
    if str(trainer.precision) in OTHER_WEIGHTS:
        raise UserError(
            f"trainer.precision={trainer.precision} is not supported: weights are in float32; "
            "choose 32-true, bf16-mixed or 16-mixed"
        )
    for setting in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if trainer[setting] is not None and trainer[setting] < 1:
            raise UserError(f"trainer.{setting} {trainer[setting]} is less than 1")
    for callback in as_list(trainer.callbacks):
        if isinstance(callback, BatchSizeFinder | LearningRateFinder):
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__} is not supported: compare "
                "values with python cli.py sweep"
            )
    if trainer.barebones or trainer.enable_checkpointing is False:
        raise UserError(
            "trainer.barebones and trainer.enable_checkpointing=false are not supported: runs "
            "always keep checkpoints; --trainer.fast_dev_run=true tries one step without"
        )
    if is_fit and trainer.limit_train_batches == 0:
        raise UserError("trainer.limit_train_batches 0 leaves nothing to train")


def as_list(given: Any) -> list[Any]:
    """Return what a configuration gives: nothing, one object or a list of them."""
    if given is None:
        return []
    return given if isinstance(given, list) else [given]
