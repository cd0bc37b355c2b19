"""Model arguments that are filled from the data module."""

import inspect
import pydoc
from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import LightningDataModule

from errors import UserError

LINKS = (
    ("vocabulary", "vocabulary"),
    ("vocabulary_size", "network.init_args.decoder.init_args.vocabulary_size"),
    ("vocabulary_size", "network.init_args.vocabulary_size"),
    ("class_names", "class_names"),
    ("class_count", "network.init_args.classes"),
    ("channels", "network.init_args.channels"),
    ("inputs", "network.init_args.inputs"),
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
        found = pydoc.locate(node.class_path) if node and "class_path" in node else None
        parameters = inspect.signature(found).parameters if callable(found) else {}
        if argument not in parameters:
            continue
        if hasattr(data, source):
            value = getattr(data, source)
            shown = f"={value}" if isinstance(value, int | str) else ""
            yield ".".join(("model", *parents, argument)) + shown
        elif (
            parameters[argument].default is inspect.Parameter.empty
            and node.init_args.get(argument) is None
        ):
            raise UserError(
                f"{node.class_path} needs {argument}, which {type(data).__name__} does not have: "
                "use a data module of the same task"
            )
